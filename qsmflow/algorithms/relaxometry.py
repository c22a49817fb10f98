"""R2*, T2* and S0 from the magnitudes of several echoes.

Both methods fit the same signal (:func:`_usable_signal`): pooled over a small neighbourhood, without the noise floor, and cut
where a voxel's signal is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numba import njit
from scipy import ndimage
from scipy.stats import chi2

#: Bounds of R2*, 1/s.
BOUNDS = (0.1, 1000.0)

#: Echoes whose expected signal is below this many noise standard deviations are not used.
_FLOOR = 3.0

_FWHM = 2 * math.sqrt(2 * math.log(2))


def arlo(
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    fwhm: float = 1.5,
    dropout: float = 4.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute R2* by auto-regression on linear operations (ARLO), without iteration.

    Parameters
    ----------
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where to fit, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s.
    fwhm : float
        Full width at half maximum, along each axis, of the Gaussian over which the signal power is pooled, in voxels; 0 takes
        every voxel on its own.
    dropout : float
        An echo that lies this many noise standard deviations below the decay of the echoes before it is left out, and so are
        those after it; 0 keeps them.

    Returns
    -------
    r2star : ndarray
        R2*, (X, Y, Z), 1/s, float32, from 0.1 to 1000; 0 outside the mask and where there is no signal.
    t2star : ndarray
        T2* = 1 / R2*, (X, Y, Z), s, float32; 0 where R2* is 0.
    s0 : ndarray
        Signal at echo time 0, (X, Y, Z), units of the magnitude, float32; 0 where R2* is 0.

    Raises
    ------
    ValueError
        If there are fewer than two echoes.

    Notes
    -----
    For an exponential decay, the integral over three successive echoes is T2* times the difference of the outer two. With
    ``S_i`` Simpson's rule for that integral, ``d_i = m_i - m_(i+2)`` and ``a_i = (TE_(i+2) - TE_i) / 6``,
    ``T2* = sum (S_i^2 + a_i S_i d_i) / sum (a_i d_i^2 + S_i d_i)``. At equal spacing this is ARLO as published; at unequal
    spacing Simpson's rule for unequal intervals is used. Simpson's rule makes R2* 0.5 % too low at ``R2* dTE = 1``. Two usable
    echoes give ``log(m_1 / m_2) / (TE_2 - TE_1)``. S0 follows by linear least squares.

    Signal power is pooled against noise and ringing, inside the mask only, so that nothing enters across its edge. It loses the
    noise floor ``2 s^2``, where ``s`` is the median misfit of a monoexponential decay (three echoes or more). Mixed tissue
    decays ever more slowly: a drop below the decay of the preceding echoes is due to a macroscopic field gradient and would
    raise R2* (``dropout``). An echo whose expected signal is below ``3 s`` ends the decay likewise, with ``s`` after pooling.
    The first two echoes are always kept.

    Examples
    --------
    >>> times = (0.005, 0.010, 0.015, 0.020)
    >>> decay = np.broadcast_to(100 * np.exp(-25 * np.array(times)), (3, 3, 3, 4))
    >>> r2star, t2star, s0 = arlo(decay, np.ones((3, 3, 3), bool), echo_times=times)
    >>> round(float(r2star.mean()), 2), round(float(t2star.mean()), 3), round(float(s0.mean()))
    (25.0, 0.04, 100)

    References
    ----------
    Pei M, Nguyen TD, Thimmappa ND, et al. Algorithm for fast monoexponential fitting based on Auto-Regression on Linear
    Operations (ARLO) of data. Magn Reson Med 2015;73:843-850. doi:10.1002/mrm.25137
    """
    return _maps(magnitude, mask, echo_times, fwhm, dropout, _arlo)


def nonlinear(
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    fwhm: float = 1.5,
    dropout: float = 4.0,
    iterations: int = 20,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit R2* to the magnitudes by nonlinear least squares.

    Parameters
    ----------
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where to fit, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s.
    fwhm : float
        Full width at half maximum, along each axis, of the Gaussian over which the signal power is pooled, in voxels; 0 takes
        every voxel on its own.
    dropout : float
        An echo that lies this many noise standard deviations below the decay of the echoes before it is left out, and so are
        those after it; 0 keeps them.
    iterations : int
        Greatest number of Newton steps; a voxel stops when R2* changes by less than 1e-4 of its value.

    Returns
    -------
    r2star : ndarray
        R2*, (X, Y, Z), 1/s, float32, from 0.1 to 1000; 0 outside the mask and where there is no signal.
    t2star : ndarray
        T2* = 1 / R2*, (X, Y, Z), s, float32; 0 where R2* is 0.
    s0 : ndarray
        Signal at echo time 0, (X, Y, Z), units of the magnitude, float32; 0 where R2* is 0.

    Raises
    ------
    ValueError
        If there are fewer than two echoes.

    Notes
    -----
    Minimises ``sum (m - S0 exp(-R2* TE))^2``. S0 is eliminated (variable projection), which leaves a maximisation of
    ``(sum m e)^2 / sum e^2``, ``e = exp(-R2* TE)``, over R2* alone; Newton's method starts from the logarithmic fit with
    weights ``m^2``. Echo times need not be equally spaced. Pooling, noise floor, loss of signal and the mask's edge are as in
    :func:`arlo`.

    Examples
    --------
    >>> times = (0.003, 0.008, 0.015, 0.030)
    >>> decay = np.broadcast_to(100 * np.exp(-40 * np.array(times)), (3, 3, 3, 4))
    >>> r2star, t2star, s0 = nonlinear(decay, np.ones((3, 3, 3), bool), echo_times=times)
    >>> round(float(r2star.mean()), 2), round(float(t2star.mean()), 3), round(float(s0.mean()))
    (40.0, 0.025, 100)

    References
    ----------
    Golub G, Pereyra V. Separable nonlinear least squares: the variable projection method and its applications. Inverse Problems
    2003;19:R1-R26. doi:10.1088/0266-5611/19/2/201
    """
    return _maps(magnitude, mask, echo_times, fwhm, dropout, lambda *data: _newton(*data, iterations))


def _maps(magnitude, mask, echo_times, fwhm, dropout, fit: Callable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three maps, with ``fit(signal, used, times)`` giving the unbounded R2* of every voxel in the mask."""
    if magnitude.shape[3] < 2:
        raise ValueError("relaxometry needs at least two echoes")
    mask, times = np.asarray(mask, dtype=bool), np.asarray(echo_times, dtype=np.float64)
    signal, used = _usable_signal(magnitude, mask, times, fwhm / _FWHM, dropout)
    rate, start = _finish(fit(signal, used, times), signal, used, times)
    maps = [np.zeros(mask.shape, np.float32) for _ in range(3)]
    maps[0][mask] = rate
    maps[1][mask] = np.divide(1, rate, out=np.zeros_like(rate), where=rate > 0)
    maps[2][mask] = start
    return tuple(maps)


def _usable_signal(magnitude, mask, times, sigma: float, dropout: float) -> tuple[np.ndarray, np.ndarray]:
    """Signal of the voxels in the mask, (voxels, E) float32, and how many of its echoes to use."""
    signal = np.ascontiguousarray(magnitude[mask], dtype=np.float32)
    noise = _noise(signal, times)
    pooled = signal
    if sigma > 0 and len(signal):
        pooled = np.empty_like(signal)
        norm = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="constant")[mask]
        for e in range(len(times)):
            power = np.where(mask, magnitude[..., e], 0).astype(np.float32, copy=False) ** 2
            pooled[:, e] = np.sqrt(ndimage.gaussian_filter(power, sigma, mode="constant")[mask] / norm)
    remaining = _noise(pooled, times)
    pooled = np.sqrt(np.maximum(pooled**2 - np.float32(2 * noise**2), 0))
    return pooled, _usable_echoes(pooled, times, remaining, dropout if dropout > 0 else np.inf)


def _noise(signal: np.ndarray, times: np.ndarray) -> float:
    """Noise level: median misfit of a monoexponential decay, at least float32 rounding; 0 with two echoes, which leave none."""
    freedom = signal.shape[1] - 2
    if freedom == 0 or not signal.size:
        return 0.0
    misfit = np.sqrt(np.median(_misfit(signal, times)) / chi2.median(freedom))
    return float(max(misfit, np.finfo(np.float32).eps * signal.max()))


@njit(cache=True)
def _line(signal, times, echoes):
    """Logarithmic fit to the first echoes with weights m^2: rate, centre of time and of log signal, weight, spread of time."""
    weight, time0, log0 = 0.0, 0.0, 0.0
    for e in range(echoes):
        w = float(signal[e]) ** 2
        if w > 0:
            weight += w
            time0 += w * times[e]
            log0 += w * math.log(signal[e])
    if weight == 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    time0 /= weight
    log0 /= weight
    spread, moment = 0.0, 0.0
    for e in range(echoes):
        w = float(signal[e]) ** 2
        if w > 0:
            spread += w * (times[e] - time0) ** 2
            moment += w * (times[e] - time0) * (math.log(signal[e]) - log0)
    return (-moment / spread if spread > 0 else 0.0), time0, log0, weight, spread


@njit(cache=True)
def _misfit(signal, times):
    """Squared misfit of the logarithmic fit of every voxel, in units of the signal squared."""
    misfit = np.zeros(len(signal))
    for v in range(len(signal)):
        rate, time0, log0, _, _ = _line(signal[v], times, times.size)
        for e in range(times.size):
            misfit[v] += (signal[v, e] - math.exp(log0 - rate * (times[e] - time0))) ** 2
    return misfit


@njit(cache=True)
def _usable_echoes(signal, times, noise, dropout):
    """Number of echoes of every voxel before its signal drops out or sinks into the noise; at least two."""
    used = np.full(len(signal), times.size)
    for v in range(len(signal)):
        for e in range(2, times.size):
            rate, time0, log0, weight, spread = _line(signal[v], times, e)
            ahead = times[e] - time0
            expected = math.exp(log0 - rate * ahead) if weight > 0 else 0.0
            lost = expected <= _FLOOR * noise
            if not lost and spread > 0:
                deviation = noise * math.sqrt(1 + expected**2 * (1 / weight + ahead**2 / spread))
                lost = signal[v, e] < expected - dropout * deviation
            if lost:
                used[v] = e
                break
    return used


@njit(cache=True)
def _arlo(signal, used, times):
    rate = np.zeros(len(signal))
    for v in range(len(signal)):
        if used[v] == 2:
            rate[v] = _line(signal[v], times, 2)[0]
            continue
        top, bottom = 0.0, 0.0
        for e in range(used[v] - 2):
            first, last = times[e + 1] - times[e], times[e + 2] - times[e + 1]
            width = first + last
            m0, m1, m2 = float(signal[v, e]), float(signal[v, e + 1]), float(signal[v, e + 2])
            simpson = width / 6 * ((2 - last / first) * m0 + width**2 / (first * last) * m1 + (2 - first / last) * m2)
            drop = m0 - m2
            top += simpson * (simpson + width / 6 * drop)
            bottom += drop * (simpson + width / 6 * drop)
        rate[v] = bottom / top if top > 0 else 0.0
    return rate


@njit(cache=True)
def _newton(signal, used, times, iterations):
    """Maximum over the rate of A^2 / B, A = sum m e, B = sum e^2, where e is the decay."""
    rates = np.zeros(len(signal))
    for v in range(len(signal)):
        rate = min(max(_line(signal[v], times, used[v])[0], BOUNDS[0]), BOUNDS[1])
        for _ in range(iterations):
            a, a1, a2, b, b1, b2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for e in range(used[v]):
                # The decay is taken from the first echo on, so that a high rate does not underflow.
                t = times[e] - times[0]
                decay = math.exp(-rate * t)
                a += signal[v, e] * decay
                a1 -= t * signal[v, e] * decay
                a2 += t * t * signal[v, e] * decay
                b += decay * decay
                b1 -= 2 * t * decay * decay
                b2 += 4 * t * t * decay * decay
            slope = a / b * (2 * a1 - a * b1 / b)
            curve = 2 * (a1 * a1 + a * a2) / b - (4 * a * a1 * b1 + a * a * b2) / b**2 + 2 * (a * b1) ** 2 / b**3
            # Where the curve is not concave, go uphill by half of the value.
            step = -slope / curve if curve < 0 else math.copysign(rate / 2, slope)
            new = min(max(rate + min(max(step, -rate / 2), rate), BOUNDS[0]), BOUNDS[1])
            done = abs(new - rate) < 1e-4 * rate
            rate = new
            if done:
                break
        rates[v] = rate
    return rates


@njit(cache=True)
def _finish(rates, signal, used, times):
    """Bounded R2* and S0 by linear least squares, float32; both 0 for a voxel without signal."""
    bounded, start = np.zeros(len(rates), np.float32), np.zeros(len(rates), np.float32)
    for v in range(len(rates)):
        rate = min(max(rates[v], BOUNDS[0]), BOUNDS[1])
        top, bottom = 0.0, 0.0
        for e in range(used[v]):
            decay = math.exp(-rate * times[e])
            top += signal[v, e] * decay
            bottom += decay * decay
        if top > 0:
            bounded[v] = rate
            start[v] = top / bottom
    return bounded, start
