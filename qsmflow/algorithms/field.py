"""The total field from the unwrapped phase of all echoes.

Both methods share the noise level, the noise floor, what they do where the phase bends, and the error map (:func:`_maps`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numba import njit

from qsmflow.algorithms.lines import median_square, weighted_line
from qsmflow.algorithms.units import rad_to_ppm
from qsmflow.algorithms.unwrap.wrapping import TWO_PI, wrapped

#: Echoes below this many noise standard deviations carry no phase.
_FLOOR = 3.0

#: A misfit this many times the median one is more than noise makes.
_MISFIT = 5.0


def weighted_least_squares(
    phase: np.ndarray,
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    b0: float,
    intercept: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit the field to the unwrapped phase of all echoes by weighted least squares.

    Parameters
    ----------
    phase : ndarray
        Unwrapped phase, (X, Y, Z, E), rad.
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where to fit, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s.
    b0 : float
        Main field strength, T.
    intercept : bool
        Also fit the phase at echo time 0. It costs precision and is needed where an offset that all echoes share was not
        removed before. A single echo is always fitted through the origin.

    Returns
    -------
    total_field : ndarray
        Field, (X, Y, Z), ppm, float32; 0 outside the mask.
    field_error : ndarray
        Standard deviation of the field, (X, Y, Z), ppm, float32; 0 outside the mask. Where no echo has any signal, the largest
        value of the mask; where the phase does not follow a line, raised accordingly (Notes).
    residual : ndarray
        Root mean square of the misfit, weighted with the squared magnitude, (X, Y, Z), rad, float32; 0 outside the mask.

    Notes
    -----
    Weights are ``m^2``, the inverse variance of the phase. Through the origin, ``w = sum m^2 TE phi / sum m^2 TE^2`` with the
    variance ``s^2 / sum m^2 TE^2``; with an intercept, ``TE`` is replaced by ``TE - sum m^2 TE / sum m^2``. The noise level
    ``s`` is that of the magnitude, one number for the image: the median over the mask of the weighted misfit, scaled as the
    median of a chi-square distribution with as many degrees of freedom as there are echoes beyond the fitted parameters. When
    there are none, ``s`` comes from the differences between the magnitudes of neighbouring voxels instead. Echoes with
    ``m < 3 s`` are then left out, unless fewer echoes than parameters would remain. Near strong sources the phase of
    late echoes bends, and the line through it is wrong by more than noise: where the misfit exceeds five times its median,
    the last echoes are left out one by one as long as that lowers it, and the error is multiplied by what remains of the
    ratio. Every voxel is fitted on its own; the
    mask's edge plays no role.

    Examples
    --------
    1 ppm at 3 T turns the phase by 802.57 rad/s:

    >>> phase = np.full((2, 2, 2, 2), 802.57) * np.array([0.004, 0.008])
    >>> inside = np.ones((2, 2, 2), bool)
    >>> field, error, residual = weighted_least_squares(phase, np.ones_like(phase), inside, echo_times=(0.004, 0.008), b0=3.0)
    >>> round(float(field.mean()), 4)
    1.0

    References
    ----------
    Robinson SD, Bredies K, Khabipova D, Dymerska B, Marques JP, Schweser F. An illustrated comparison of processing methods for
    MR phase imaging and QSM: combining array coil signals and phase unwrapping. NMR Biomed 2017;30:e3601. doi:10.1002/nbm.3601
    """
    return _maps(phase, magnitude, mask, echo_times, b0, intercept, _fit_line)


def complex_fit(
    phase: np.ndarray,
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    b0: float,
    intercept: bool = False,
    iterations: int = 20,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit the field to the complex signal of all echoes by nonlinear least squares.

    Parameters
    ----------
    phase : ndarray
        Unwrapped phase, (X, Y, Z, E), rad.
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where to fit, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s; they need not be equally spaced.
    b0 : float
        Main field strength, T.
    intercept : bool
        Also fit the phase at echo time 0. It costs precision and is needed where an offset that all echoes share was not
        removed before. A single echo is always fitted through the origin.
    iterations : int
        Greatest number of Gauss-Newton steps; a voxel stops when no echo's phase changes by more than 1e-6 rad.

    Returns
    -------
    total_field : ndarray
        Field, (X, Y, Z), ppm, float32; 0 outside the mask.
    field_error : ndarray
        Standard deviation of the field, (X, Y, Z), ppm, float32; 0 outside the mask. As in :func:`weighted_least_squares`.
    residual : ndarray
        Root mean square of the misfit, wrapped and weighted with the squared magnitude, (X, Y, Z), rad, float32; 0 outside the
        mask.

    Notes
    -----
    Minimises ``sum |S - m exp(i (p0 + w TE))|^2`` with the signal ``S = m exp(i phi)``, that is
    ``2 sum m^2 (1 - cos(phi - p0 - w TE))``. A Gauss-Newton step is the weighted least-squares fit to the sines of the misfit;
    near the solution that is the fit of a line, with the same variance. Whole turns in the phase of an echo do not matter to
    the sum, only to where the search begins: once at the line through the unwrapped phase of all echoes, and once at the line
    that follows from the first echo (with an intercept, the first two), each later one put within half a turn of the line
    through those before. The better end counts. The field therefore keeps the branch of the unwrapped phase, and wrong turns
    in single echoes do no harm. Noise level, noise floor, bending phase and the mask's edge are as in
    :func:`weighted_least_squares`.

    Examples
    --------
    1 ppm at 3 T turns the phase by 802.57 rad/s; the last echo has lost a turn:

    >>> phase = np.full((2, 2, 2, 3), 802.57) * np.array([0.004, 0.008, 0.012])
    >>> phase[..., 2] -= 2 * np.pi
    >>> inside, times = np.ones((2, 2, 2), bool), (0.004, 0.008, 0.012)
    >>> field, error, residual = complex_fit(phase, np.ones_like(phase), inside, echo_times=times, b0=3.0)
    >>> round(float(field.mean()), 4)
    1.0

    References
    ----------
    Liu T, Wisnieff C, Lou M, Chen W, Spincemaille P, Wang Y. Nonlinear formulation of the magnetic field to source relationship
    for robust quantitative susceptibility mapping. Magn Reson Med 2013;69:467-476. doi:10.1002/mrm.24272
    """

    def fit(*data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _fit_complex(*data, iterations)

    return _maps(phase, magnitude, mask, echo_times, b0, intercept, fit)


def _maps(phase, magnitude, mask, echo_times, b0: float, intercept: bool, fit: Callable) -> tuple[np.ndarray, ...]:
    """The three maps, with ``fit(phase, magnitude, times, intercept, floor)`` giving slope, its unit error and the misfit."""
    mask = np.asarray(mask, dtype=bool)
    angles, signal = (np.ascontiguousarray(a[mask], dtype=np.float32) for a in (phase, magnitude))
    times = np.asarray(echo_times, dtype=np.float64)
    intercept = intercept and len(times) > 1
    freedom = len(times) - 1 - intercept
    rate, error, misfit = fit(angles, signal, times, intercept, 0.0)
    if freedom > 0 and misfit.size:
        power = np.einsum("ve,ve->v", signal, signal, dtype=np.float64) * np.square(misfit, dtype=np.float64)
        noise = float(np.sqrt(np.median(power) / median_square(freedom)))
        rate, error, misfit = fit(angles, signal, times, intercept, _FLOOR * noise)
    else:
        noise = spatial_noise(magnitude[..., 0], mask)
    # Exact data have no noise; the rounding of float32 keeps the map meaningful as a weight.
    noise = max(noise, float(np.finfo(np.float32).eps * signal.max(initial=0)))
    if freedom > 0 and misfit.size:
        # float32 holds large unwrapped phases to a few 1e-7 of their size
        limit = _MISFIT * max(np.median(misfit), 1e-6 * np.abs(angles).max())
        for echoes in range(len(times) - 1, 1 + intercept, -1):
            bent = np.flatnonzero(misfit > limit)
            fewer = fit(angles[bent, :echoes], signal[bent, :echoes], times[:echoes], intercept, _FLOOR * noise)
            better = fewer[2] < misfit[bent]
            for values, shorter in zip((rate, error, misfit), fewer, strict=True):
                values[bent[better]] = shorter[better]
        error = error * np.maximum(1, misfit / limit)
    error = np.where(error > 0, error, error.max(initial=0))
    return tuple(_volume(values, mask) for values in (rad_to_ppm(rate, b0=b0), rad_to_ppm(noise * error, b0=b0), misfit))


def _volume(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    volume = np.zeros(mask.shape, np.float32)
    volume[mask] = values
    return volume


def spatial_noise(image: np.ndarray, mask: np.ndarray) -> float:
    """Noise level of an image from the image alone.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Image, any unit.
    mask : ndarray of bool, (X, Y, Z)
        Where to look.

    Returns
    -------
    float
        Standard deviation of the noise, in the unit of the image; 0 where the mask has no 2 x 2 x 2 voxels.

    Notes
    -----
    From the median of the squared mixed difference over cubes of 2 x 2 x 2 voxels, in which smooth structure cancels.

    Examples
    --------
    >>> ramp, mask = np.ones((20, 20, 20)) * np.arange(20), np.ones((20, 20, 20), bool)
    >>> round(spatial_noise(ramp + 0.1 * np.random.default_rng(0).standard_normal(ramp.shape), mask), 2)
    0.1
    """
    difference, inside = image.astype(np.float64), mask
    for axis in range(3):
        if mask.shape[axis] > 1:
            difference = np.diff(difference, axis=axis)
            inside = inside.take(range(1, inside.shape[axis]), axis) & inside.take(range(inside.shape[axis] - 1), axis)
    voxels = 2 ** sum(n > 1 for n in mask.shape)
    return float(np.sqrt(np.median(difference[inside] ** 2) / median_square(1) / voxels)) if inside.any() else 0.0


@njit(cache=True)
def _weights(magnitude, floor, least, weight):
    """Squared magnitudes of the echoes above the floor, or of all if fewer than ``least`` are; returns their sum."""
    kept = 0
    for e in range(magnitude.size):
        kept += magnitude[e] >= floor
    for e in range(magnitude.size):
        used = magnitude[e] >= floor or kept < least
        weight[e] = float(magnitude[e]) ** 2 if used else 0.0
    return weight.sum()


@njit(cache=True)
def _fit_line(phase, magnitude, times, intercept, floor):
    """Slope (rad/s), its standard deviation per unit noise (0: no signal) and the weighted misfit (rad) of every voxel."""
    voxels, echoes = phase.shape
    slope, error, misfit = np.zeros(voxels), np.zeros(voxels), np.zeros(voxels, np.float32)
    weight = np.zeros(echoes)
    for v in range(voxels):
        total = _weights(magnitude[v], floor, 1 + intercept, weight)
        time0, phase0, rate, spread = weighted_line(phase[v], weight, times, intercept)
        if spread == 0:
            continue
        slope[v], error[v] = rate, 1 / np.sqrt(spread)
        square = 0.0
        for e in range(echoes):
            square += weight[e] * (phase[v, e] - phase0 - rate * (times[e] - time0)) ** 2
        misfit[v] = np.sqrt(square / total)
    return slope, error, misfit


@njit(cache=True)
def _follow(phase, weight, times, intercept, line):
    """Phase of one voxel with every echo put within half a turn of the line through those before it, into ``line``."""
    partial = np.zeros(times.size)
    first = 1 + intercept
    for e in range(times.size):
        line[e] = phase[e]
        if e >= first:
            time0, phase0, rate, _ = weighted_line(line, partial, times, intercept)
            ahead = phase0 + rate * (times[e] - time0)
            line[e] += TWO_PI * np.rint((ahead - phase[e]) / TWO_PI)
        partial[e] = weight[e]


@njit(cache=True)
def _descend(phase, weight, times, intercept, offset, rate, iterations):
    """Gauss-Newton steps from a line: offset at echo time 0, slope, and ``sum m^2 (1 - cos(misfit))``."""
    sines = np.zeros(times.size)
    for _ in range(iterations):
        for e in range(times.size):
            sines[e] = np.sin(phase[e] - offset - rate * times[e])
        time0, sine0, step, _ = weighted_line(sines, weight, times, intercept)
        offset += sine0 - step * time0
        rate += step
        if abs(sine0 - step * time0) + abs(step) * times[-1] < 1e-6:
            break
    cost = 0.0
    for e in range(times.size):
        cost += weight[e] * (1 - np.cos(phase[e] - offset - rate * times[e]))
    return offset, rate, cost


@njit(cache=True)
def _fit_complex(phase, magnitude, times, intercept, floor, iterations):
    """As :func:`_fit_line`, to the complex signal."""
    voxels, echoes = phase.shape
    slope, error, misfit = np.zeros(voxels), np.zeros(voxels), np.zeros(voxels, np.float32)
    weight, line = np.zeros(echoes), np.zeros(echoes)
    for v in range(voxels):
        total = _weights(magnitude[v], floor, 1 + intercept, weight)
        time0, phase0, rate, spread = weighted_line(phase[v], weight, times, intercept)
        if spread == 0:
            continue
        offset, rate, cost = _descend(phase[v], weight, times, intercept, phase0 - rate * time0, rate, iterations)
        _follow(phase[v], weight, times, intercept, line)
        time0, phase0, other, _ = weighted_line(line, weight, times, intercept)
        start = phase0 - other * time0
        other_offset, other, other_cost = _descend(phase[v], weight, times, intercept, start, other, iterations)
        if other_cost < cost - 1e-9 * total:
            offset, rate = other_offset, other
        slope[v], error[v] = rate, 1 / np.sqrt(spread)
        square = 0.0
        for e in range(echoes):
            square += weight[e] * wrapped(phase[v, e] - offset - rate * times[e]) ** 2
        misfit[v] = np.sqrt(square / total)
    return slope, error, misfit
