"""From what a scanner stores to phase in radians and magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_TURN = 2 * math.pi

#: Ranges in which scanners and converters store one turn: lowest and highest value, the value of zero phase, a name.
_KNOWN_RANGES = (
    (-4096.0, 4096.0, 0.0, "Siemens, -4096 to 4096"),
    (0.0, 4096.0, 2048.0, "Siemens or Philips without rescaling, 0 to 4096"),
    (-1000 * math.pi, 1000 * math.pi, 0.0, "Philips or GE, rad times 1000"),
    (-2048.0, 2048.0, 0.0, "12 bit, -2048 to 2048"),
    (-math.pi, math.pi, 0.0, "radians, -pi to pi"),
    (0.0, _TURN, 0.0, "radians, 0 to 2 pi"),
    (-180.0, 180.0, 0.0, "degrees, -180 to 180"),
    (0.0, 360.0, 0.0, "degrees, 0 to 360"),
)

#: Phase with noise or wraps fills its range; one that leaves more than this fraction empty is not recognised.
_FILLED = 0.9

#: Values may exceed a known range by this fraction (rounding).
_EXCESS = 1e-3

#: A range whose centre is off zero by less than this fraction of its width is taken to be symmetrical.
_ASYMMETRY = 0.025

#: Fewer levels per turn than this are worth a notice (512 levels: an rms error of 0.0035 rad).
_FEW_LEVELS = 512

_SAMPLE = 1 << 20

#: Radians that span less than this, or more turns than that, are probably something else.
_LEAST_SPAN, _MOST_TURNS = 0.5, 50


@dataclass(frozen=True)
class PhaseScale:
    """How stored values become radians: ``(value - zero) * factor``; ``how`` says it in words, ``warning`` if it is a guess."""

    zero: float
    factor: float
    how: str
    warning: str | None = None

    def apply(self, phase: np.ndarray) -> np.ndarray:
        """Phase in radians within -pi to pi, float32; what is not finite becomes 0."""
        result = np.subtract(phase, self.zero, dtype=np.float32)
        result *= np.float32(self.factor)
        result[~np.isfinite(result)] = 0
        return wrap(result)


def wrap(phase: np.ndarray) -> np.ndarray:
    """Phase within -pi to pi.

    Parameters
    ----------
    phase : ndarray
        Phase, rad.

    Returns
    -------
    ndarray
        ``phase - 2 pi round(phase / 2 pi)``; values that lie within -pi to pi stay as they are, bit by bit.

    Examples
    --------
    >>> wrap(np.array([0.5, 2 * np.pi - 0.5, -7 * np.pi + 0.1])).round(6)
    array([ 0.5     , -0.5     , -3.041593])
    """
    outside = np.abs(phase) > math.pi * (1 + 1e-6)
    if not outside.any():
        return phase
    return np.where(outside, phase - _TURN * np.round(phase / _TURN), phase).astype(phase.dtype, copy=False)


def finite_range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest finite value (``(inf, -inf)`` if there is none, which leaves a running range unchanged).

    Parameters
    ----------
    values : ndarray
        Any values, NaN and infinities included.

    Returns
    -------
    tuple of float

    Examples
    --------
    >>> finite_range(np.array([np.nan, -2.0, 3.0, np.inf]))
    (-2.0, 3.0)
    """
    is_finite = np.isfinite(values)
    finite = values if is_finite.all() else values[is_finite]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)


def phase_scale(low: float, high: float, *, units: str) -> PhaseScale:
    """The conversion to radians that fits the range of stored phase over all echoes.

    Parameters
    ----------
    low, high : float
        Lowest and highest finite value over all echoes, slope and intercept applied.
    units : str
        ``rad`` or ``arbitrary``, as the sidecars say.

    Returns
    -------
    PhaseScale

    Raises
    ------
    ValueError
        If the phase is constant, so that it has no scale, or ``units`` is neither.

    Notes
    -----
    One turn is ``2 pi = (HIGH - LOW) * factor`` with LOW and HIGH of the first known range that the values fill. If they fill
    none, their own range is taken as one turn, with a warning; it is made symmetrical about 0 when it nearly is, so that zero
    phase stays zero.

    Examples
    --------
    >>> phase_scale(-4096, 4094, units="arbitrary").how
    'Siemens, -4096 to 4096'
    >>> phase_scale(0, 4095, units="arbitrary").zero
    2048.0
    >>> phase_scale(-0.5, 0.5, units="arbitrary").factor == 2 * np.pi
    True
    """
    if not high > low:
        raise ValueError("the phase is constant over all echoes")
    if units == "rad":
        span = high - low
        odd = f"the phase is declared as rad but ranges from {low:.4g} to {high:.4g}"
        warning = odd if span < _LEAST_SPAN or span > _MOST_TURNS * _TURN else None
        return PhaseScale(0.0, 1.0, "radians, as declared", warning)
    if units != "arbitrary":
        raise ValueError(f"units must be 'rad' or 'arbitrary', not '{units}'")
    for lowest, highest, zero, name in _KNOWN_RANGES:
        width = highest - lowest
        inside = low >= lowest - _EXCESS * width and high <= highest + _EXCESS * width
        if inside and high - low >= _FILLED * width:
            return PhaseScale(zero, _TURN / width, name)
    centre, half = (low + high) / 2, (high - low) / 2
    if abs(centre) < 2 * _ASYMMETRY * half:
        centre, half = 0.0, max(-low, high)
    return PhaseScale(
        centre,
        math.pi / half,
        f"range of all echoes, {low:.4g} to {high:.4g}, taken as one turn",
        f"the phase ranges from {low:.4g} to {high:.4g}, which no known scanner uses: this range was taken as one turn",
    )


def phase_to_radians(phase: np.ndarray, *, units: str) -> tuple[np.ndarray, str, str | None]:
    """Phase in radians from stored phase, the same scale for all echoes.

    Parameters
    ----------
    phase : ndarray, shape (X, Y, Z, E)
        Stored phase, slope and intercept applied.
    units : str
        ``rad`` or ``arbitrary``, as the sidecars say.

    Returns
    -------
    phase : ndarray of float32, shape (X, Y, Z, E)
        Phase within -pi to pi, rad; 0 where the input is not finite.
    how : str
        What was done, in words.
    warning : str or None
        What is doubtful about it.

    Raises
    ------
    ValueError
        If the phase is constant.

    Notes
    -----
    See :func:`phase_scale` for the rule. Multiples of 2 pi are lost, if the input was unwrapped.

    Examples
    --------
    >>> stored = np.array([-4096, 0, 2048, 4094], dtype=np.int16).reshape(1, 1, 4, 1)
    >>> radians, how, warning = phase_to_radians(stored, units="arbitrary")
    >>> (radians.ravel() / np.pi).round(4)
    array([-1.    ,  0.    ,  0.5   ,  0.9995], dtype=float32)
    """
    scale = phase_scale(*finite_range(phase), units=units)
    return scale.apply(phase), scale.how, scale.warning


def few_levels(phase: np.ndarray) -> int | None:
    """Number of levels per turn, where phase was rounded to few of them.

    Parameters
    ----------
    phase : ndarray
        Phase of one echo, rad.

    Returns
    -------
    int or None
        Levels per turn if there are at most 512, else None.

    Notes
    -----
    The step is the smallest difference between values that occur in about a million voxels. It is not judged from less than
    four voxels per value.

    Examples
    --------
    >>> angles = np.linspace(-np.pi, np.pi, 10_000)
    >>> few_levels(np.round(angles / (2 * np.pi / 256)) * (2 * np.pi / 256)), few_levels(angles)
    (256, None)
    """
    sample = phase.ravel()[:: max(1, phase.size // _SAMPLE)]
    values = np.unique(sample)
    values = values[np.concatenate([[True], np.diff(values) > 1e-5])]
    if len(values) < 2 or sample.size < 4 * len(values):
        return None
    levels = round(_TURN / float(np.diff(values).min()))
    return levels if levels <= _FEW_LEVELS else None


def complex_to_polar(real: np.ndarray, imag: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Magnitude and phase of a complex signal given as real and imaginary part.

    Parameters
    ----------
    real, imag : ndarray
        Real and imaginary part, in the same arbitrary unit.

    Returns
    -------
    magnitude : ndarray of float32
        In the unit of the input; 0 where either part is not finite.
    phase : ndarray of float32
        Phase within -pi to pi, rad; 0 where either part is not finite.

    Examples
    --------
    >>> magnitude, phase = complex_to_polar(np.array([3.0, 0.0]), np.array([4.0, -2.0]))
    >>> magnitude, (phase / np.pi).round(4)
    (array([5., 2.], dtype=float32), array([ 0.2952, -0.5   ], dtype=float32))
    """
    real, imag = np.asarray(real, dtype=np.float32), np.asarray(imag, dtype=np.float32)
    magnitude, phase = np.hypot(real, imag), np.arctan2(imag, real)
    bad = ~np.isfinite(magnitude)
    magnitude[bad], phase[bad] = 0, 0
    return magnitude, phase


def chopped_axes(phase: np.ndarray, magnitude: np.ndarray) -> tuple[int, ...]:
    """Array axes along which the sign of the signal alternates from slice to slice (chopping, usual in GE raw exports).

    Parameters
    ----------
    phase : ndarray, shape (X, Y, Z)
        Phase of the first echo, rad.
    magnitude : ndarray, shape (X, Y, Z)
        Its magnitude, arbitrary unit.

    Returns
    -------
    tuple of int
        The axes, empty for a normal image.

    Notes
    -----
    Between neighbouring slices the mean phase step is the angle of ``sum m1 m2 exp(i (phase2 - phase1))``. It is near pi for
    *every* pair of slices with signal if the signs alternate; a field gradient reaches pi per slice only here and there. An
    axis counts as chopped if nine of ten pairs, weighted by their signal, step by more than 2 pi / 3.

    Examples
    --------
    >>> smooth = np.zeros((6, 6, 8), dtype=np.float32)
    >>> chopped_axes(smooth, np.ones_like(smooth))
    ()
    >>> chopped_axes(smooth + np.pi * (np.arange(8) % 2), np.ones_like(smooth))
    (2,)
    """
    signal = magnitude * np.exp(1j * np.asarray(phase, dtype=np.float32))
    result = []
    for axis in range(3):
        slices = np.moveaxis(signal, axis, 0)
        steps = np.array([np.vdot(one, two) for one, two in pairwise(slices)])
        weight = np.abs(steps)
        if len(steps) < 4 or not weight.sum() > 0:
            continue
        if weight[np.abs(np.angle(steps)) > _TURN / 3].sum() >= 0.9 * weight.sum():
            result.append(axis)
    return tuple(result)


def undo_chopping(phase: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Phase with pi added in every second slice along the given axes.

    Parameters
    ----------
    phase : ndarray, shape (X, Y, Z) or (X, Y, Z, E)
        Phase, rad.
    axes : tuple of int
        Axes, as :func:`chopped_axes` gives them.

    Returns
    -------
    ndarray
        Phase within -pi to pi, rad.

    Examples
    --------
    >>> chopped = np.full((2, 2, 4), 0.5) - np.pi * (np.arange(4) % 2)
    >>> bool(np.allclose(undo_chopping(chopped, (2,)), 0.5))
    True
    """
    result = phase.copy()
    for axis in axes:
        slices = np.moveaxis(result, axis, 0)
        slices[1::2] = wrap(slices[1::2] + np.asarray(math.pi, dtype=phase.dtype))
    return result
