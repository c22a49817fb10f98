"""Susceptibility-weighted imaging: a magnitude, darkened where phase or susceptibility says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from qsmflow.algorithms.background.vsharp import vsharp
from qsmflow.algorithms.swi.magnitude import minimum_projection, root_sum_of_squares, sensitivity, softplus
from qsmflow.algorithms.swi.phase import Shape, high_pass, homodyne, phase_mask
from qsmflow.algorithms.unwrap.romeo import romeo

#: Echo time times field strength at which veins stand out by phase and signal is left, T s: 40 ms at 1.5 T, 20 ms at 3 T.
_DOSE = 0.06

Source = Literal["paramagnetic", "diamagnetic"]


def swi(
    magnitude: np.ndarray,
    phase: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
    echo: int = 0,
    filter: Literal["homodyne", "gaussian", "vsharp"] = "homodyne",
    wavelength: float = 7.0,
    sigma: float = 4.0,
    shape: Shape = "negative",
    power: float = 4.0,
    thickness: float = 14.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classic susceptibility-weighted image of one echo.

    Parameters
    ----------
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes, any unit.
    phase : ndarray, (X, Y, Z, E)
        Wrapped phase of all echoes, rad.
    mask : ndarray of bool, (X, Y, Z)
        Where the result is wanted.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes; slices are cut across the axis nearest to it.
    b0 : float
        Main field strength, T.
    echo_times : sequence of float, (E,)
        Echo times, s.
    echo : int
        The echo that is used, counted from 1; 0 takes the one nearest to 60 ms over the field strength in tesla (20 ms at 3 T).
    filter : {"homodyne", "gaussian", "vsharp"}
        How slow phase is taken away: complex division by the low-passed image, unwrapping and subtraction of the smoothed
        phase, or unwrapping and background field removal.
    wavelength : float
        Shortest wavelength in the slice that the low-pass of the homodyne filter lets through, mm.
    sigma : float
        Standard deviation of the smoothing of the Gaussian filter, mm.
    shape : {"negative", "positive", "triangular", "sigmoid"}
        The phase mask: darkens paramagnetic sources, diamagnetic ones, both, or paramagnetic ones by a smooth step.
    power : float
        How often the phase mask is multiplied; for the sigmoid its steepness.
    thickness : float
        Thickness of the slab of the minimum intensity projection, mm.

    Returns
    -------
    swi, minip, phase_mask : ndarray, (X, Y, Z)
        The weighted magnitude, its minimum intensity projection, and the weight (mask to the power, 0 to 1), float32; 0 outside
        the mask.

    Notes
    -----
    ``m W^n`` with W of :func:`phase_mask`. The phase is that of :func:`homodyne`, or the phase unwrapped by ROMEO less its
    Gaussian mean over the mask, or that less its harmonic part (V-SHARP; no weight at the outermost voxels of the mask).
    Signal outside the mask plays no part. Homodyne filtering also takes away the phase of large structures, such as the deep
    nuclei, and leaves wraps where the field is steep.

    References
    ----------
    Haacke EM, Xu Y, Cheng YCN, Reichenbach JR. Magn Reson Med 2004;52:612-618. doi:10.1002/mrm.20198

    Examples
    --------
    Without phase there is nothing to add:

    >>> magnitude, full = np.ones((8, 8, 4, 1), np.float32), np.ones((8, 8, 4), bool)
    >>> context = {"voxel_size": (1, 1, 2), "b0_dir": (0, 0, 1), "b0": 3.0, "echo_times": (0.02,)}
    >>> weighted, projected, weight = swi(magnitude, 0 * magnitude, full, **context)
    >>> bool(np.allclose(weighted, 1) and np.allclose(projected, 1) and np.allclose(weight, 1))
    True
    """
    chosen = _echo(echo, echo_times, b0)
    mask = np.asarray(mask, dtype=bool)
    signal, angle = (np.ascontiguousarray(a[..., chosen], dtype=np.float32) for a in (magnitude, phase))
    if filter == "homodyne":
        filtered = homodyne(signal, angle, mask, voxel_size=voxel_size, b0_dir=b0_dir, wavelength=wavelength)
    else:
        times = echo_times[chosen : chosen + 1]
        unwrapped = romeo(angle[..., np.newaxis], signal[..., np.newaxis], mask, echo_times=times)[..., 0]
        if filter == "gaussian":
            filtered = high_pass(unwrapped, mask, voxel_size=voxel_size, sigma=sigma)
        else:
            filtered = vsharp(unwrapped, mask, voxel_size=voxel_size)[0]
    weight = phase_mask(filtered, mask, shape=shape, power=power)
    return _weighted(signal, weight, mask, voxel_size=voxel_size, b0_dir=b0_dir, thickness=thickness)


def clearswi(
    magnitude: np.ndarray,
    phase: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
    sigma: float = 4.0,
    shape: Shape = "sigmoid",
    power: float = 4.0,
    evenness: float = 7.0,
    thickness: float = 14.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CLEAR-SWI: all echoes together, with even intensity and more contrast.

    Parameters
    ----------
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes, any unit.
    phase : ndarray, (X, Y, Z, E)
        Wrapped phase of all echoes, rad.
    mask : ndarray of bool, (X, Y, Z)
        Where the result is wanted.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes; slices are cut across the axis nearest to it.
    b0 : float
        Main field strength, T.
    echo_times : sequence of float, (E,)
        Echo times, s.
    sigma : float
        Standard deviation of the smoothing whose result is subtracted from the unwrapped phase, mm.
    shape : {"negative", "positive", "triangular", "sigmoid"}
        The phase mask: darkens paramagnetic sources, diamagnetic ones, both, or paramagnetic ones by a smooth step.
    power : float
        How often the phase mask is multiplied; for the sigmoid its steepness.
    evenness : float
        Standard deviation of the smoothing by which the receive sensitivity is estimated, mm; 0 leaves the intensity as it is.
    thickness : float
        Thickness of the slab of the minimum intensity projection, mm.

    Returns
    -------
    swi, minip, phase_mask : ndarray, (X, Y, Z)
        The weighted magnitude, its minimum intensity projection, and the weight (mask to the power, 0 to 1), float32; 0 outside
        the mask.

    Notes
    -----
    The phase of every echo is unwrapped (by ROMEO; the publication takes a Laplacian) and high-passed, and the echoes are
    averaged as ``sum m phi / sum m TE``, the mean of ``phi / TE`` weighted with ``m TE``; times 60 ms T over the field strength
    it is the phase of the echo that :func:`swi` would choose. The magnitude is the root of the sum of squares over the echoes,
    divided by :func:`sensitivity` and taken through :func:`softplus`. The sensitivity is found from voxels near the mean of
    their surroundings rather than box by box as published. Signal outside the mask plays no part.

    References
    ----------
    Eckstein K, Bachrata B, Hangel G, et al. NeuroImage 2021;237:118175. doi:10.1016/j.neuroimage.2021.118175

    Examples
    --------
    A map without structure stays without:

    >>> magnitude, full = np.ones((8, 8, 4, 2), np.float32), np.ones((8, 8, 4), bool)
    >>> context = {"voxel_size": (1, 1, 2), "b0_dir": (0, 0, 1), "b0": 3.0, "echo_times": (0.01, 0.02)}
    >>> weighted, _, weight = clearswi(magnitude, 0 * magnitude, full, **context)
    >>> bool(np.ptp(weighted) < 1e-5 and np.allclose(weight, 1))
    True
    """
    mask = np.asarray(mask, dtype=bool)
    total, times = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    unwrapped = romeo(phase, magnitude, mask, echo_times=echo_times)
    for e, te in enumerate(echo_times):
        signal = magnitude[..., e].astype(np.float32, copy=False)
        total += signal * high_pass(unwrapped[..., e], mask, voxel_size=voxel_size, sigma=sigma)
        times += signal * np.float32(te)
    del unwrapped
    rate = np.divide(total, times, out=np.zeros_like(total), where=mask & (times > 0))
    weight = phase_mask(rate * np.float32(_DOSE / b0), mask, shape=shape, power=power)
    combined = root_sum_of_squares(magnitude)
    if evenness > 0:
        field = sensitivity(combined, mask, voxel_size=voxel_size, sigma=evenness)
        combined = np.divide(combined, field, out=np.zeros_like(combined), where=field > 0)
    return _weighted(softplus(combined, mask), weight, mask, voxel_size=voxel_size, b0_dir=b0_dir, thickness=thickness)


def tswi(
    magnitude: np.ndarray,
    chi: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
    source: Source = "paramagnetic",
    low: float = 0.0,
    high: float = 0.45,
    power: float = 2.0,
    thickness: float = 14.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True SWI: the magnitude of one echo weighted by susceptibility.

    Parameters
    ----------
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes, any unit; the one nearest to 60 ms over the field strength in tesla is used.
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm; 0 where it is not known.
    mask : ndarray of bool, (X, Y, Z)
        Where the result is wanted.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes; slices are cut across the axis nearest to it.
    b0 : float
        Main field strength, T.
    echo_times : sequence of float, (E,)
        Echo times, s.
    source : {"paramagnetic", "diamagnetic"}
        What is darkened: veins and iron, or calcium.
    low, high : float
        Susceptibility (for diamagnetic sources its negative) where the weight begins to fall and where it is 0, ppm.
    power : float
        How often the weight is multiplied.
    thickness : float
        Thickness of the slab of the minimum intensity projection, mm.

    Returns
    -------
    swi, minip, phase_mask : ndarray, (X, Y, Z)
        The weighted magnitude, its minimum intensity projection, and the weight (to the power, 0 to 1), float32; 0 outside the
        mask.

    Raises
    ------
    ValueError
        If ``high`` is not above ``low``.

    Notes
    -----
    ``m W^n`` with ``W = 1 - (chi - low) / (high - low)``, kept between 0 and 1. Unlike phase, susceptibility does not depend on
    the direction of a vein, and does not spread beyond it. Where the susceptibility is not known, in the rim that background
    removal took, the magnitude is left as it is.

    References
    ----------
    Liu S, Mok K, Neelavalli J, et al. J Magn Reson Imaging 2014;40:698-708. doi:10.1002/jmri.24413

    Examples
    --------
    A vein of 0.225 ppm is halfway:

    >>> full, context = np.ones((2, 2, 2), bool), {"voxel_size": (1, 1, 2), "b0_dir": (0, 0, 1)}
    >>> chi, magnitude = np.full((2, 2, 2), 0.225), np.ones((2, 2, 2, 1))
    >>> float(tswi(magnitude, chi, full, **context, b0=3.0, echo_times=(0.02,))[0][0, 0, 0])
    0.25
    """
    if not high > low:
        raise ValueError(f"the weight must fall between two values, not from {low:g} to {high:g} ppm")
    mask = np.asarray(mask, dtype=bool)
    signal = np.ascontiguousarray(magnitude[..., _echo(0, echo_times, b0)], dtype=np.float32)
    weight = _susceptibility_mask(chi, mask, source=source, low=low, high=high, power=power)
    return _weighted(signal, weight, mask, voxel_size=voxel_size, b0_dir=b0_dir, thickness=thickness)


def smwi(
    magnitude: np.ndarray,
    chi: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    source: Source = "paramagnetic",
    threshold: float = 1.0,
    power: float = 4.0,
    thickness: float = 14.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Susceptibility map-weighted image: all echoes together, weighted by susceptibility.

    Parameters
    ----------
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes, any unit.
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm; 0 where it is not known.
    mask : ndarray of bool, (X, Y, Z)
        Where the result is wanted.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes; slices are cut across the axis nearest to it.
    source : {"paramagnetic", "diamagnetic"}
        What is darkened: veins and iron, or calcium.
    threshold : float
        Susceptibility (for diamagnetic sources its negative) at which the weight is 0, ppm.
    power : float
        How often the weight is multiplied.
    thickness : float
        Thickness of the slab of the minimum intensity projection, mm.

    Returns
    -------
    swi, minip, phase_mask : ndarray, (X, Y, Z)
        The weighted magnitude, its minimum intensity projection, and the weight (to the power, 0 to 1), float32; 0 outside the
        mask.

    Notes
    -----
    ``m W^n`` with ``W = (threshold - chi) / threshold``, kept between 0 and 1, and m the root of the sum of squares over the
    echoes. Made for small structures with little contrast, such as nigrosome 1. Where the susceptibility is not known, in the
    rim that background removal took, the magnitude is left as it is.

    References
    ----------
    Gho SM, Liu C, Li W, et al. Magn Reson Med 2014;72:337-346. doi:10.1002/mrm.24920

    Examples
    --------
    >>> full, context = np.ones((2, 2, 2), bool), {"voxel_size": (1, 1, 2), "b0_dir": (0, 0, 1)}
    >>> float(smwi(np.ones((2, 2, 2, 1)), np.full((2, 2, 2), 0.5), full, **context)[0][0, 0, 0])
    0.0625
    """
    if not threshold > 0:
        raise ValueError(f"the threshold must be above 0, not {threshold:g} ppm")
    mask = np.asarray(mask, dtype=bool)
    weight = _susceptibility_mask(chi, mask, source=source, low=0.0, high=threshold, power=power)
    combined = root_sum_of_squares(magnitude)
    return _weighted(combined, weight, mask, voxel_size=voxel_size, b0_dir=b0_dir, thickness=thickness)


def _weighted(image: np.ndarray, weight: np.ndarray, mask: np.ndarray, **slab) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three results of every method."""
    weighted = np.where(mask, image * weight, 0).astype(np.float32)
    return weighted, minimum_projection(weighted, mask, **slab), weight


def _susceptibility_mask(
    chi: np.ndarray, mask: np.ndarray, *, source: Source, low: float, high: float, power: float
) -> np.ndarray:
    if not power > 0:
        raise ValueError(f"the power of the susceptibility mask must be above 0, not {power:g}")
    excess = (chi if source == "paramagnetic" else -chi) - low
    return np.where(mask, np.clip(1 - excess / (high - low), 0, 1) ** power, 0).astype(np.float32)


def _echo(echo: int, echo_times: Sequence[float], b0: float) -> int:
    """Index of the echo that is asked for, or of the one best suited."""
    if not 0 <= echo <= len(echo_times):
        raise ValueError(f"there is no echo {echo} among {len(echo_times)}")
    return echo - 1 if echo else int(np.argmin(np.abs(np.asarray(echo_times) - _DOSE / b0)))
