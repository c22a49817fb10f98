"""R2*, T2* and S0 from several echoes.

All methods fit a signal that is pooled over a small neighbourhood, has lost its noise floor, and ends where a voxel's signal
is lost (:func:`_maps`, :func:`complex_decay`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy import ndimage

from qsmflow.algorithms import decay
from qsmflow.algorithms.unwrap.temporal import temporal

_FWHM = 2 * math.sqrt(2 * math.log(2))


def arlo(
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    fwhm: float = 1.5,
    dropout: float = 4.0,
    floor: Literal["subtract", "none"] = "subtract",
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
    floor : {"subtract", "none"}
        Take the noise floor out of the signal power, or leave it in.

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
    >>> decaying = np.broadcast_to(100 * np.exp(-25 * np.array(times)), (3, 3, 3, 4))
    >>> r2star, t2star, s0 = arlo(decaying, np.ones((3, 3, 3), bool), echo_times=times)
    >>> round(float(r2star.mean()), 2), round(float(t2star.mean()), 3), round(float(s0.mean()))
    (25.0, 0.04, 100)

    References
    ----------
    Pei M, Nguyen TD, Thimmappa ND, et al. Algorithm for fast monoexponential fitting based on Auto-Regression on Linear
    Operations (ARLO) of data. Magn Reson Med 2015;73:843-850. doi:10.1002/mrm.25137
    """
    return _maps(magnitude, mask, echo_times, fwhm, dropout, floor != "none", lambda *data: decay.arlo(*data[:3]))


def nonlinear(
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    fwhm: float = 1.5,
    dropout: float = 4.0,
    floor: Literal["subtract", "model", "none"] = "subtract",
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
    floor : {"subtract", "model", "none"}
        Take the noise floor out of the signal power, make it part of the model, or leave it in.
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
    weights ``m^2``. With ``floor="model"``, ``sum (m - sqrt(S0^2 exp(-2 R2* TE) + 2 s^2))^2`` is minimised from there on by
    Gauss-Newton steps, which keeps the bias of weak single voxels small. Echo times need not be equally spaced. Pooling, noise
    floor, loss of signal and the mask's edge are as in :func:`arlo`.

    Examples
    --------
    >>> times = (0.003, 0.008, 0.015, 0.030)
    >>> decaying = np.broadcast_to(100 * np.exp(-40 * np.array(times)), (3, 3, 3, 4))
    >>> r2star, t2star, s0 = nonlinear(decaying, np.ones((3, 3, 3), bool), echo_times=times)
    >>> round(float(r2star.mean()), 2), round(float(t2star.mean()), 3), round(float(s0.mean()))
    (40.0, 0.025, 100)

    References
    ----------
    Golub G, Pereyra V. Separable nonlinear least squares: the variable projection method and its applications. Inverse Problems
    2003;19:R1-R26. doi:10.1088/0266-5611/19/2/201
    """

    def fit(signal: np.ndarray, used: np.ndarray, times: np.ndarray, raw: np.ndarray, power: float) -> np.ndarray:
        rates = decay.newton(signal, used, times, iterations)
        return decay.with_floor(raw, used, times, rates, power, iterations) if floor == "model" and power > 0 else rates

    return _maps(magnitude, mask, echo_times, fwhm, dropout, floor != "none", fit)


def loglinear(
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    fwhm: float = 1.5,
    dropout: float = 4.0,
    floor: Literal["subtract", "none"] = "subtract",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute R2* by a line through the logarithm of the magnitudes, weighted with their squares.

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
    floor : {"subtract", "none"}
        Take the noise floor out of the signal power, or leave it in.

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
    ``ln m = ln S0 - R2* TE`` in closed form. The variance of ``ln m`` is ``s^2 / m^2``, hence the weights ``m^2``; noise still
    pulls them along, so that weak late echoes count too little. S0 follows by linear least squares. Pooling, noise floor, loss
    of signal and the mask's edge are as in :func:`arlo`.

    Examples
    --------
    >>> times = (0.003, 0.008, 0.015, 0.030)
    >>> decaying = np.broadcast_to(100 * np.exp(-40 * np.array(times)), (3, 3, 3, 4))
    >>> r2star, t2star, s0 = loglinear(decaying, np.ones((3, 3, 3), bool), echo_times=times)
    >>> round(float(r2star.mean()), 2), round(float(t2star.mean()), 3), round(float(s0.mean()))
    (40.0, 0.025, 100)

    References
    ----------
    Salvador R, Pena A, Menon DK, Carpenter TA, Pickard JD, Bullmore ET. Formal characterization and extension of the linearized
    diffusion tensor model. Human Brain Mapping 2005;24:144-155. doi:10.1002/hbm.20076
    """
    return _maps(magnitude, mask, echo_times, fwhm, dropout, floor != "none", lambda *data: decay.loglinear(*data[:3]))


def numart2s(
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    fwhm: float = 1.5,
    dropout: float = 4.0,
    floor: Literal["subtract", "none"] = "subtract",
    correct: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute R2* by numerical integration of the decay (NumART2*).

    Parameters
    ----------
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where to fit, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s; they need not be equally spaced.
    fwhm : float
        Full width at half maximum, along each axis, of the Gaussian over which the signal power is pooled, in voxels; 0 takes
        every voxel on its own.
    dropout : float
        An echo that lies this many noise standard deviations below the decay of the echoes before it is left out, and so are
        those after it; 0 keeps them.
    floor : {"subtract", "none"}
        Take the noise floor out of the signal power, or leave it in.
    correct : bool
        Take out the error of the trapezoidal rule.

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
    ``R2* = (m_1 - m_N) / sum_i h_i (m_i + m_(i+1)) / 2`` with the spacings ``h_i``. For a decay, ``m_i - m_(i+1)`` is
    ``tanh(R2* h_i / 2) (m_i + m_(i+1))``: at equal spacing the plain value is ``(2 / h) tanh(R2* h / 2)``, 2 % low at
    ``R2* h = 0.5``. The correction solves ``sum_i tanh(R2* h_i / 2) (m_i + m_(i+1)) = m_1 - m_N``, which is exact at any
    spacing. Only the outer echoes enter the numerator, so that noise weighs more than in a fit. S0 follows by linear least
    squares. Pooling, noise floor, loss of signal and the mask's edge are as in :func:`arlo`.

    Examples
    --------
    >>> times = (0.003, 0.008, 0.015, 0.030)
    >>> decaying = np.broadcast_to(100 * np.exp(-40 * np.array(times)), (3, 3, 3, 4))
    >>> r2star, t2star, s0 = numart2s(decaying, np.ones((3, 3, 3), bool), echo_times=times)
    >>> round(float(r2star.mean()), 2), round(float(t2star.mean()), 3), round(float(s0.mean()))
    (40.0, 0.025, 100)

    References
    ----------
    Hagberg GE, Indovina I, Sanes JN, Posse S. Real-time quantification of T2* changes using multiecho planar imaging and
    numerical methods. Magn Reson Med 2002;48:877-882. doi:10.1002/mrm.10283
    """

    def fit(signal: np.ndarray, used: np.ndarray, times: np.ndarray, *_: object) -> np.ndarray:
        return decay.integral(signal, used, times, correct)

    return _maps(magnitude, mask, echo_times, fwhm, dropout, floor != "none", fit)


def complex_decay(
    magnitude: np.ndarray,
    phase: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    fwhm: float = 1.5,
    dropout: float = 4.0,
    bend: float = 4.0,
    iterations: int = 20,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit R2* and the field together to the complex signal, which has no noise floor.

    Parameters
    ----------
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    phase : ndarray
        Wrapped phase, with or without an offset that all echoes share, (X, Y, Z, E), rad.
    mask : ndarray of bool
        Where to fit, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s.
    fwhm : float
        Full width at half maximum, along each axis, of the Gaussian over which the demodulated signal is pooled, in voxels; 0
        takes every voxel on its own.
    dropout : float
        An echo that lies this many noise standard deviations below the decay of the echoes before it is left out, and so are
        those after it; 0 keeps them.
    bend : float
        Where the phase of an echo lies this many noise standard deviations off its line, the magnitudes are fitted instead; 0
        never does.
    iterations : int
        Greatest number of steps of each fit; a voxel stops when R2* changes by less than 1e-4 of its value.

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
    Minimises ``sum |m exp(i phi) - S0 exp(i p0 + (i w - R2*) TE)|^2`` in every voxel, from the phase unwrapped along the
    echoes. The signal is then turned back by ``p0 + w TE``; its real part decays to 0 with Gaussian noise around it, whereas a
    magnitude never falls below the noise. This real part is pooled inside the mask and fitted by variable projection as in
    :func:`nonlinear`; loss of signal is treated as in :func:`arlo`. Near strong sources the phase bends over the echoes and the
    real part would take the bend for decay: where the imaginary part of an echo exceeds ``bend`` noise standard deviations, the
    line is no model of the phase, and the magnitudes without their noise floor (``m^2 - 2 s^2``) take the place of the real
    part. Noise alone hardly reaches the limit, so that weak signals stay free of the floor. With two echoes the phase says
    nothing about the decay, and the result is that of the magnitudes with their noise floor.

    Examples
    --------
    >>> times = np.array([0.003, 0.008, 0.015, 0.030])
    >>> decaying, turning = (np.broadcast_to(a, (3, 3, 3, 4)) for a in (100 * np.exp(-40 * times), 0.5 + 300 * times))
    >>> r2star, t2star, s0 = complex_decay(decaying, turning, np.ones((3, 3, 3), bool), echo_times=times)
    >>> round(float(r2star.mean()), 2), round(float(t2star.mean()), 3), round(float(s0.mean()))
    (40.0, 0.025, 100)

    References
    ----------
    de Rochefort L, Brown R, Prince MR, Wang Y. Quantitative MR susceptibility mapping using piece-wise constant regularized
    inversion of the magnetic field. Magn Reson Med 2008;60:1003-1009. doi:10.1002/mrm.21710
    """
    _check(magnitude)
    mask, times = np.asarray(mask, dtype=bool), np.asarray(echo_times, dtype=np.float64)
    angles = temporal(phase, mask, echo_times=echo_times)[mask]
    signal = np.ascontiguousarray(magnitude[mask], dtype=np.float32)
    real, noise = decay.demodulate(signal, angles, times, iterations), decay.noise_level(signal, times)
    if bend > 0 and noise > 0:
        bent = (signal**2 - real**2 > np.float32(bend * noise) ** 2).any(axis=1)
        real[bent] = np.sqrt(np.maximum(signal[bent] ** 2 - np.float32(2 * noise**2), 0))
    pooled = _pool(real, mask, fwhm / _FWHM)
    used = decay.usable_echoes(pooled, times, decay.noise_level(pooled, times), dropout if dropout > 0 else np.inf)
    return _volumes(mask, decay.finish(decay.newton(pooled, used, times, iterations), pooled, used, times))


def _maps(magnitude, mask, echo_times, fwhm, dropout, subtract: bool, fit: Callable) -> tuple[np.ndarray, ...]:
    """The three maps, with ``fit(signal, used, times, raw, power)`` giving the unbounded R2* of every voxel in the mask.

    ``raw`` is the signal with its noise floor, whose power is ``power``. How many echoes are used is decided without the floor.
    """
    _check(magnitude)
    mask, times = np.asarray(mask, dtype=bool), np.asarray(echo_times, dtype=np.float64)
    raw = np.ascontiguousarray(magnitude[mask], dtype=np.float32)
    power = 2 * decay.noise_level(raw, times) ** 2
    if fwhm > 0:
        raw = np.sqrt(_pool(raw**2, mask, fwhm / _FWHM))
    remaining = decay.noise_level(raw, times)
    signal = np.sqrt(np.maximum(raw**2 - np.float32(power), 0))
    used = decay.usable_echoes(signal, times, remaining, dropout if dropout > 0 else np.inf)
    if not subtract:
        signal = raw
    return _volumes(mask, decay.finish(fit(signal, used, times, raw, power), signal, used, times))


def _check(magnitude: np.ndarray) -> None:
    if magnitude.shape[3] < 2:
        raise ValueError("relaxometry needs at least two echoes")


def _pool(values: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean of (voxels, E) values over the voxels of the mask; a copy without a width."""
    if sigma <= 0 or not len(values):
        return values.copy()
    pooled, volume = np.empty_like(values), np.zeros(mask.shape, np.float32)
    norm = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="constant")[mask]
    for e in range(values.shape[1]):
        volume[mask] = values[:, e]
        pooled[:, e] = ndimage.gaussian_filter(volume, sigma, mode="constant")[mask] / norm
    return pooled


def _volumes(mask: np.ndarray, found: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R2*, T2* and S0 from the rates and starts of the voxels in the mask."""
    rate, start = found
    maps = [np.zeros(mask.shape, np.float32) for _ in range(3)]
    maps[0][mask] = rate
    maps[1][mask] = np.divide(1, rate, out=np.zeros_like(rate), where=rate > 0)
    maps[2][mask] = start
    return tuple(maps)
