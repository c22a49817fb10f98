"""DECOMPOSE-QSM: paramagnetic and diamagnetic parts of the susceptibility from how both bend the signal over the echoes.

The compiled loops measure susceptibility by the rate at which it dephases a voxel, ``a |chi|`` in 1/s: in these units the model
knows neither the main field nor the gyromagnetic ratio. A signal of E echoes is a row of 2E numbers, real parts first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import njit, prange

from qsmflow.algorithms.units import hz_per_ppm

#: Turn of the phase (rad/s) for each 1/s of dephasing: 2/3 gamma B0 chi over 2 pi / (9 sqrt 3) gamma B0 chi.
_TURN = 3 * math.sqrt(3) / math.pi

#: The starts of each susceptibility are the centres of equal parts, on a logarithmic scale, of this to the largest one, ppm.
_SMALLEST = 0.01

#: R0 at all starts, 1/s.
_START_R0 = 15.0

#: A fit has settled when a step takes less than this part off its misfit.
_SETTLED = 1e-5

#: Least pivot of a system, relative to its diagonal, that is not taken as singular.
_SINGULAR = 1e-13


def decompose(
    chi_echoes: np.ndarray,
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    b0: float,
    echo_times: Sequence[float],
    max_chi: float = 0.5,
    max_r0: float = 100.0,
    starts: int = 2,
    iterations: int = 40,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Separate paramagnetic and diamagnetic susceptibility by a fit of three pools to every voxel (DECOMPOSE-QSM).

    Parameters
    ----------
    chi_echoes : ndarray
        Susceptibility from each echo alone, (X, Y, Z, E), ppm.
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where to fit, (X, Y, Z).
    b0 : float
        Main field strength, T.
    echo_times : sequence of float
        Echo times, s; they need not be equally spaced.
    max_chi : float
        Largest susceptibility of the paramagnetic pool and, with a minus, of the diamagnetic pool, ppm.
    max_r0 : float
        Largest rate at which all pools decay together, 1/s.
    starts : int
        Number of starting values of each of the two susceptibilities; every voxel is fitted from all their pairs and keeps the
        best fit. The more there are, the fewer voxels miss their best fit, above all at 7 T.
    iterations : int
        Greatest number of steps of each fit; it stops when a step takes less than 1e-5 off its misfit.

    Returns
    -------
    chi_para : ndarray
        Paramagnetic component susceptibility (PCS), (X, Y, Z), ppm, float32, not negative; 0 outside the mask.
    chi_dia : ndarray
        Diamagnetic component susceptibility (DCS), (X, Y, Z), ppm, float32, not positive; 0 outside the mask.
    rate : float
        Median of R0 in the mask, 1/s.

    Raises
    ------
    ValueError
        If there are fewer than four echoes, the arrays or echo times do not fit together, or a bound or number of starts is not
        positive.

    Notes
    -----
    With ``a = 2 pi gamma B0 / (9 sqrt(3))``, the static dephasing rate of random spheres, and ``k = 2/3 gamma B0``, each voxel
    holds a paramagnetic, a diamagnetic and a neutral pool::

        s(t) = C+ exp((-a chi+ + i k chi+ - R0) t) + C- exp((a chi- + i k chi- - R0) t) + C0 exp(-R0 t)

    with ``C >= 0``, ``chi+ >= 0 >= chi-`` and ``R0 >= 0``. It is fitted to ``magnitude exp(i k chi_echoes t)`` by least
    squares: an echo counts as much as it has signal. The amplitudes follow from the other three parameters by non-negative
    least squares; those three take Levenberg-Marquardt steps within their bounds (variable projection). The alternation of the
    original description, amplitudes and susceptibilities in turn, stops short of the least-squares solution even without noise.

    The six parameters are hardly determined one by one. What is returned are composites: the susceptibility that the voxel
    would show if only one of its two sources had an effect, ::

        PCS = sum_e arg(C+ exp((-a chi+ + i k chi+) t_e) + C- + C0) / (k sum_e t_e)

    and DCS likewise with ``C- exp((a chi- + i k chi-) t_e) + C+ + C0``. The phase is followed from 0 at ``t = 0``, so that it
    does not wrap. PCS is not ``C+ chi+ / (C+ + C- + C0)``, which it approaches as the echo times go to 0: a pool that dephases
    fades from the signal. Both composites thus depend on the echo times, their sum in general is not the susceptibility, and
    in a voxel with other pools PCS rises with ``chi+`` only up to about ``1 / (a max(t_e))`` and falls beyond.

    Sources are told apart by how the susceptibility changes over the echoes and how the decay departs from an exponential. The
    rate itself says nothing, as R0 is free: a voxel of one susceptibility at all echoes that decays exponentially is one pool,
    and all of its susceptibility goes into the component of its sign, even if R2* is far above what that pool makes.

    Neither component can have the other sign: in noise, sources that are weak or absent come out too strong on average, in both
    components alike. The zero of ``chi_echoes`` is that of the neutral pool: a shift of it goes into one of the components.

    Every voxel is fitted on its own and nothing crosses the mask's edge. Voxels without signal, or with values that are not
    finite, are 0.

    Examples
    --------
    Half of the water sits in a pool of 0.1 ppm; PCS is less than 0.05 ppm, as this half fades from the signal:

    >>> times = np.array([0.005, 0.010, 0.015, 0.020, 0.025])
    >>> dephasing, turning = 323.5 * 0.1, 535.0 * 0.1
    >>> signal = 0.5 * np.exp((-dephasing + 1j * turning - 20) * times) + 0.5 * np.exp(-20 * times)
    >>> chi = np.broadcast_to(np.angle(signal) / (535.0 * times), (2, 2, 2, 5))
    >>> magnitude, whole = np.abs(signal) * np.ones((2, 2, 2, 1)), np.ones((2, 2, 2), bool)
    >>> para, dia, rate = decompose(chi, magnitude, whole, b0=3.0, echo_times=times)
    >>> round(float(para.mean()), 3), round(float(abs(dia).max()), 3), round(rate, 1)
    (0.034, 0.0, 20.0)

    References
    ----------
    Chen J, Gong NJ, Chaim KT, Otaduy MCG, Liu C. Decompose quantitative susceptibility mapping (QSM) to sub-voxel diamagnetic
    and paramagnetic components based on gradient-echo MRI data. NeuroImage 2021;242:118477.
    doi:10.1016/j.neuroimage.2021.118477

    Yablonskiy DA, Haacke EM. Theory of NMR signal behavior in magnetically inhomogeneous tissues: the static dephasing regime.
    Magn Reson Med 1994;32:749-763. doi:10.1002/mrm.1910320610
    """
    _check(chi_echoes, magnitude, mask, echo_times, max_chi, max_r0, starts)
    mask, times = np.asarray(mask, dtype=bool), np.asarray(echo_times, dtype=np.float64)
    signal = _signal(chi_echoes[mask], magnitude[mask], times, b0)
    chi, r0, fractions = _pools(signal, times, b0, max_chi, max_r0, starts, iterations)
    phases = _composites(chi * _dephasing(b0), fractions, times)
    components = phases / (_turning(b0) * times.sum()) * (1, -1) + 0.0  # the sum leaves no negative zeros
    chi_para, chi_dia = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    chi_para[mask], chi_dia[mask] = components.T
    return chi_para, chi_dia, float(np.median(r0)) if r0.size else 0.0


def _check(
    chi_echoes: np.ndarray,
    magnitude: np.ndarray,
    mask: np.ndarray,
    echo_times: Sequence[float],
    max_chi: float,
    max_r0: float,
    starts: int,
) -> None:
    echoes = magnitude.shape[-1]
    if magnitude.shape != chi_echoes.shape or magnitude.shape[:-1] != mask.shape or len(echo_times) != echoes:
        raise ValueError(
            f"{len(echo_times)} echo times, susceptibilities of shape {chi_echoes.shape}, magnitudes of shape "
            f"{magnitude.shape} and a mask of shape {mask.shape} do not fit together"
        )
    if echoes < 4:
        raise ValueError(f"DECOMPOSE-QSM needs at least four echoes, not {echoes}; choose a separation by R2* or R2'")
    for name, value in (("max_chi", max_chi), ("max_r0", max_r0), ("starts", starts)):
        if value <= 0:
            raise ValueError(f"{name} must be above 0, not {value:g}")


def _turning(b0: float) -> float:
    """Phase that 1 ppm makes inside a voxel, rad/s."""
    return 2 / 3 * 2 * math.pi * hz_per_ppm(b0=b0)


def _dephasing(b0: float) -> float:
    """Decay that 1 ppm makes inside a voxel, 1/s."""
    return _turning(b0) / _TURN


def _signal(chi: np.ndarray, magnitude: np.ndarray, times: np.ndarray, b0: float) -> np.ndarray:
    """Rows of 2E numbers, in units of the voxel's largest magnitude; 0 where there is none or a value is not finite."""
    magnitude, chi = magnitude.astype(np.float64), chi.astype(np.float64)
    usable = np.isfinite(magnitude).all(axis=1) & np.isfinite(chi).all(axis=1)
    magnitude[~usable], chi[~usable] = 0, 0
    largest = magnitude.max(axis=1, initial=0, keepdims=True)
    magnitude = np.divide(magnitude, largest, out=np.zeros_like(magnitude), where=largest > 0)
    phase = _turning(b0) * chi * times
    return np.concatenate([magnitude * np.cos(phase), magnitude * np.sin(phase)], axis=1)


def _pools(
    signal: np.ndarray, times: np.ndarray, b0: float, max_chi: float, max_r0: float, starts: int, iterations: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What voxels hold: ``|chi|`` of paramagnetic and diamagnetic pool (V, 2), R0 (V,), fractions of all three pools (V, 3)."""
    smallest = min(_SMALLEST, max_chi / 2)
    grid = smallest * (max_chi / smallest) ** ((np.arange(starts) + 0.5) / starts)
    first = [(_dephasing(b0) * para, _dephasing(b0) * dia, min(_START_R0, max_r0)) for para in grid for dia in grid]
    upper = np.array([_dephasing(b0) * max_chi, _dephasing(b0) * max_chi, max_r0])
    rates, weights = _fit(signal, times, np.array(first), upper, iterations)
    total = weights.sum(axis=1, keepdims=True)
    fractions = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return rates[:, :2] / _dephasing(b0), rates[:, 2], fractions


@njit(cache=True)
def _solve(matrix, right, used, solution):
    """Solve a symmetric 3 x 3 system for the unknowns that are used, the others being 0; False if it is singular."""
    a = matrix[0, 0] if used[0] else 1.0
    b = matrix[1, 0] if used[0] and used[1] else 0.0
    c = matrix[2, 0] if used[0] and used[2] else 0.0
    d = matrix[1, 1] if used[1] else 1.0
    e = matrix[2, 1] if used[1] and used[2] else 0.0
    f = matrix[2, 2] if used[2] else 1.0
    if a <= 0 or d <= 0 or f <= 0:
        return False
    down_b, down_c = b / a, c / a
    second = d - down_b * b
    if second <= _SINGULAR * d:
        return False
    down_e = (e - down_c * b) / second
    third = f - down_c * c - down_e * down_e * second
    if third <= _SINGULAR * f:
        return False
    x = right[0] if used[0] else 0.0
    y = (right[1] if used[1] else 0.0) - down_b * x
    z = (right[2] if used[2] else 0.0) - down_c * x - down_e * y
    solution[2] = z / third
    solution[1] = y / second - down_e * solution[2]
    solution[0] = x / a - down_b * solution[1] - down_c * solution[2]
    return True


@njit(cache=True)
def _amplitudes(gram, moment, used, weights):
    """Non-negative least squares: of all sets of pools, the solution without a negative amplitude that explains most."""
    used[:] = True
    if _solve(gram, moment, used, weights) and weights[0] >= 0 and weights[1] >= 0 and weights[2] >= 0:
        return
    weights[:] = 0
    most = 0.0
    for i in range(3):
        alone = moment[i] / gram[i, i] if gram[i, i] > 0 else 0.0
        if alone * moment[i] > most and alone > 0:
            most = alone * moment[i]
            weights[:] = 0
            weights[i] = alone
        for j in range(i):
            determinant = gram[i, i] * gram[j, j] - gram[i, j] ** 2
            if determinant <= _SINGULAR * gram[i, i] * gram[j, j]:
                continue
            one = (gram[j, j] * moment[i] - gram[i, j] * moment[j]) / determinant
            other = (gram[i, i] * moment[j] - gram[i, j] * moment[i]) / determinant
            if one >= 0 and other >= 0 and one * moment[i] + other * moment[j] > most:
                most = one * moment[i] + other * moment[j]
                weights[:] = 0
                weights[i], weights[j] = one, other


@njit(cache=True)
def _evaluate(signal, times, rates, basis, gram, weights, moment, used):
    """Misfit at the best amplitudes; the signals of the three pools and of the voxel go into ``basis``, (4, 2E)."""
    echoes = times.size
    for e in range(echoes):
        common = math.exp(-rates[2] * times[e])
        para, dia = rates[0] * times[e], rates[1] * times[e]
        left, right = common * math.exp(-para), common * math.exp(-dia)
        basis[0, e], basis[0, echoes + e] = left * math.cos(_TURN * para), left * math.sin(_TURN * para)
        basis[1, e], basis[1, echoes + e] = right * math.cos(_TURN * dia), -right * math.sin(_TURN * dia)
        basis[2, e], basis[2, echoes + e] = common, 0.0
    for i in range(3):
        product = 0.0
        for n in range(2 * echoes):
            product += basis[i, n] * signal[n]
        moment[i] = product
        for j in range(i + 1):
            product = 0.0
            for n in range(2 * echoes):
                product += basis[i, n] * basis[j, n]
            gram[i, j] = gram[j, i] = product
    _amplitudes(gram, moment, used, weights)
    misfit = 0.0
    for n in range(2 * echoes):
        basis[3, n] = weights[0] * basis[0, n] + weights[1] * basis[1, n] + weights[2] * basis[2, n]
        misfit += (signal[n] - basis[3, n]) ** 2
    return misfit


@njit(cache=True)
def _normal(signal, times, basis, gram, weights, slopes, used, shared, followed, hessian, gradient):
    """Gauss-Newton system of the rates, with the amplitudes of the pools that are present taken along (Kaufman)."""
    echoes = times.size
    for e in range(echoes):
        t = times[e]
        real, imaginary = weights[0] * basis[0, e], weights[0] * basis[0, echoes + e]
        slopes[0, e], slopes[0, echoes + e] = -t * (real + _TURN * imaginary), t * (_TURN * real - imaginary)
        real, imaginary = weights[1] * basis[1, e], weights[1] * basis[1, echoes + e]
        slopes[1, e], slopes[1, echoes + e] = -t * (real - _TURN * imaginary), -t * (_TURN * real + imaginary)
        slopes[2, e], slopes[2, echoes + e] = -t * basis[3, e], -t * basis[3, echoes + e]
    for i in range(3):
        used[i] = weights[i] > 0
    for k in range(3):
        product = 0.0
        for n in range(2 * echoes):
            product += slopes[k, n] * (signal[n] - basis[3, n])
        gradient[k] = product
        for i in range(3):
            product = 0.0
            for n in range(2 * echoes):
                product += slopes[k, n] * basis[i, n]
            shared[k, i] = product
        _solve(gram, shared[k], used, followed)
        for j in range(k + 1):
            product = 0.0
            for n in range(2 * echoes):
                product += slopes[k, n] * slopes[j, n]
            for i in range(3):
                product -= followed[i] * shared[j, i]
            hessian[k, j] = hessian[j, k] = product


@njit(cache=True)
def _descend(signal, power, times, rates, upper, iterations, weights):
    """Levenberg-Marquardt steps from ``rates`` on, within bounds; leaves rates and weights of the end, returns its misfit."""
    bases, slopes = np.empty((2, 4, signal.size)), np.empty((3, signal.size))
    gram, hessian, damped, shared = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    gradient, step, trial, trial_weights, moment = np.empty(3), np.zeros(3), np.empty(3), np.empty(3), np.empty(3)
    used, free = np.empty(3, np.bool_), np.empty(3, np.bool_)
    misfit = _evaluate(signal, times, rates, bases[0], gram, weights, moment, used)
    now, damping = 0, 1e-2
    for _ in range(iterations):
        _normal(signal, times, bases[now], gram, weights, slopes, used, shared, step, hessian, gradient)
        for k in range(3):
            held = (rates[k] <= 0 and gradient[k] < 0) or (rates[k] >= upper[k] and gradient[k] > 0)
            free[k] = hessian[k, k] > 1e-14 * power * times[-1] ** 2 and not held
        lower = misfit
        while damping < 1e10:
            for k in range(3):
                for j in range(3):
                    damped[k, j] = hessian[k, j]
                damped[k, k] *= 1 + damping
            if _solve(damped, gradient, free, step):
                for k in range(3):
                    trial[k] = min(max(rates[k] + step[k], 0.0), upper[k])
                lower = _evaluate(signal, times, trial, bases[1 - now], gram, trial_weights, moment, used)
                if lower < misfit:
                    break
            damping *= 8
        if not lower < misfit:
            break
        for k in range(3):
            rates[k], weights[k] = trial[k], trial_weights[k]
        settled = misfit - lower < _SETTLED * lower or lower < 1e-26 * power
        misfit, now, damping = lower, 1 - now, max(damping / 10, 1e-9)
        if settled:
            break
    return misfit


@njit(cache=True)
def _best(signal, times, starts, upper, iterations, rates, weights):
    """Fits of one voxel from all starts; leaves rates and weights of the best."""
    trial, trial_weights = np.empty(3), np.empty(3)
    power = 0.0
    for n in range(signal.size):
        power += signal[n] ** 2
    least = power
    for s in range(len(starts)):
        for k in range(3):
            trial[k] = starts[s, k]
        misfit = _descend(signal, power, times, trial, upper, iterations, trial_weights)
        if misfit < least:
            least = misfit
            for k in range(3):
                rates[k], weights[k] = trial[k], trial_weights[k]


@njit(parallel=True, cache=True)
def _fit(signal, times, starts, upper, iterations):
    """Best rates (V, 3) and amplitudes (V, 3) of every voxel from all starts; a voxel without signal keeps 0."""
    rates, weights = np.zeros((len(signal), 3)), np.zeros((len(signal), 3))
    for v in prange(len(signal)):
        _best(signal[v], times, starts, upper, iterations, rates[v], weights[v])
    return rates, weights


@njit(cache=True)
def _composite(weight, rate, rest, time):
    """Phase of a pool together with neutral signal, followed from time 0 on.

    While the pool outweighs the rest, the phase is that of the pool and what the rest bends it; afterwards it stays at the full
    turns that the pool has made until then.
    """
    turned, left = _TURN * rate * time, weight * math.exp(-rate * time)
    if left >= rest:
        bend = rest / left if left > 0 else 0.0
        return turned - math.atan2(bend * math.sin(turned), 1 + bend * math.cos(turned))
    turns = round(_TURN * math.log(weight / rest) / (2 * math.pi)) if weight > rest else 0
    bend = left / rest
    return 2 * math.pi * turns + math.atan2(bend * math.sin(turned), 1 + bend * math.cos(turned))


@njit(cache=True)
def _composites(rates, fractions, times):
    """Phases of paramagnetic and diamagnetic pool with neutral signal, summed over the echoes and not negative, (V, 2)."""
    phases = np.zeros((len(rates), 2))
    for v in range(len(rates)):
        for pool in range(2):
            rest = fractions[v, 1 - pool] + fractions[v, 2]
            for time in times:
                phases[v, pool] += _composite(fractions[v, pool], rates[v, pool], rest, time)
            phases[v, pool] = max(phases[v, pool], 0.0)
    return phases
