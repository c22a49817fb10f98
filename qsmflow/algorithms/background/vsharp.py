"""SHARP and V-SHARP: sophisticated harmonic artifact reduction with spheres of one size, or as large as the mask allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms import fourier, morphology
from qsmflow.algorithms.background import smv


def smv_filter(
    total_field: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], radius: float = 5.0
) -> tuple[np.ndarray, np.ndarray]:
    """Total field less its spherical mean.

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    radius : float
        Radius of the sphere, mm (never below the smallest voxel side); the mask shrinks by as much.

    Returns
    -------
    local_field : ndarray, (X, Y, Z)
        Local field less its own spherical mean, ppm, 0 outside the returned mask.
    mask : ndarray of bool, (X, Y, Z)
        Where the sphere fits into the given mask.

    Raises
    ------
    ValueError
        If the sphere fits nowhere into the mask.

    Notes
    -----
    ``f - S f`` with the mean S over a sphere: harmonic fields vanish, and the local field loses what is smoother than the
    sphere, because nothing undoes the filter. :func:`sharp` does.

    References
    ----------
    Schweser et al., NeuroImage 54:2789, 2011, doi:10.1016/j.neuroimage.2010.10.070.

    Examples
    --------
    A linear field is background everywhere:

    >>> ramp = np.linspace(-1, 1, 32, dtype=np.float32)[:, None, None] * np.ones((1, 32, 32), np.float32)
    >>> local, inside = smv_filter(ramp, np.ones(ramp.shape, bool), voxel_size=(1, 1, 1))
    >>> bool(abs(local[inside]).max() < 1e-4)
    True
    """
    radius = max(radius, min(voxel_size))
    box = morphology.bounding_box(mask)
    filtered, inside, _ = _filtered(total_field[box], mask[box], voxel_size, [radius])
    return _placed(filtered, inside, box, mask.shape)


def sharp(
    total_field: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], radius: float = 4.0, threshold: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """Local field by SHARP.

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    radius : float
        Radius of the sphere, mm (never below the smallest voxel side); the mask shrinks by as much.
    threshold : float
        Frequencies where the deconvolution kernel is below this value are set to zero.

    Returns
    -------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm, 0 outside the returned mask.
    mask : ndarray of bool, (X, Y, Z)
        Where the sphere fits into the given mask.

    Raises
    ------
    ValueError
        If the sphere fits nowhere into the mask.

    Notes
    -----
    ``y = M (f - S f)`` with the mean S over a sphere and the shrunken mask M; ``f_local = M F^-1(F(y) / (1 - F(S)))``,
    truncated where ``1 - F(S) < threshold``: the mean and the smoothest part of the local field are lost.

    References
    ----------
    Schweser et al., NeuroImage 54:2789, 2011, doi:10.1016/j.neuroimage.2010.10.070.

    Examples
    --------
    A linear field is background everywhere:

    >>> ramp = np.linspace(-1, 1, 32, dtype=np.float32)[:, None, None] * np.ones((1, 32, 32), np.float32)
    >>> local, inside = sharp(ramp, np.ones(ramp.shape, bool), voxel_size=(1, 1, 1))
    >>> bool(abs(local[inside]).max() < 1e-3)
    True
    """
    radius = max(radius, min(voxel_size))
    return _deconvolved(total_field, mask, voxel_size, [radius], threshold)


def vsharp(
    total_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    max_radius: float = 12.0,
    min_radius: float = 1.5,
    step: float = 1.5,
    threshold: float = 0.05,
) -> tuple[np.ndarray, np.ndarray]:
    """Local field by V-SHARP.

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    max_radius : float
        Radius of the largest sphere, mm; it is also the one that is deconvolved.
    min_radius : float
        Radius of the smallest sphere, mm (never below the smallest voxel side); closer to the edge no value is given.
    step : float
        Difference between successive radii, mm.
    threshold : float
        Frequencies where the deconvolution kernel is below this value are set to zero.

    Returns
    -------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm, 0 outside the returned mask.
    mask : ndarray of bool, (X, Y, Z)
        Where the smallest sphere fits into the given mask.

    Raises
    ------
    ValueError
        If no sphere fits into the mask.

    Notes
    -----
    With ``S_r`` the mean over a sphere of radius r, ``y = f - S_r f`` is taken with the largest sphere that fits around each
    voxel; harmonic fields vanish in it. ``f_local = F^-1(F(y) / (1 - F(S)))`` with the largest kernel, truncated where
    ``|1 - F(S)| < threshold``.

    References
    ----------
    Wu et al., MRM 67:137, 2012, doi:10.1002/mrm.23000.
    Li, Wu & Liu, NeuroImage 55:1645, 2011, doi:10.1016/j.neuroimage.2010.11.088.

    Examples
    --------
    A linear field is background everywhere:

    >>> ramp = np.linspace(-1, 1, 32, dtype=np.float32)[:, None, None] * np.ones((1, 32, 32), np.float32)
    >>> local, inside = vsharp(ramp, np.ones(ramp.shape, bool), voxel_size=(1, 1, 1), max_radius=6.0)
    >>> bool(abs(local[inside]).max() < 1e-3)
    True
    """
    smallest = max(min_radius, min(voxel_size))
    radii = [max_radius - i * step for i in range(max(0, round((max_radius - smallest) / step)))] + [smallest]
    return _deconvolved(total_field, mask, voxel_size, radii, threshold)


def _deconvolved(total_field, mask, voxel_size, radii, threshold):
    """Filter with the largest sphere that fits, divide by the largest kernel that fits anywhere, truncated."""
    box = morphology.bounding_box(mask)
    filtered, inside, kernel = _filtered(total_field[box], mask[box], voxel_size, radii)
    kept = np.abs(kernel) >= threshold
    np.divide(1, kernel, out=kernel, where=kept)
    kernel *= kept
    shape = _grid(filtered.shape)
    return _placed(fourier.convolve(filtered, kernel, shape), inside, box, mask.shape)


def _grid(shape: Sequence[int]) -> tuple[int, ...]:
    """The transforms' grid: a sphere around a valid voxel never leaves the mask, so that no margin is needed."""
    return fourier.padded_shape(shape)


def _filtered(field, mask, voxel_size, radii):
    """``f - S_r f`` with the largest of the descending radii that fits around each voxel, where one does, and its kernel."""
    distance, shape = smv.distance_inside(mask, voxel_size), _grid(mask.shape)
    spectrum = fourier.rfftn(smv.without_mean(field, mask), shape)
    filtered, inside, largest = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, bool), None
    for radius in radii:
        new = smv.fits(distance, radius, voxel_size) & ~inside
        if new.any():
            kernel = smv.sphere_spectrum(radius, voxel_size, shape)
            np.subtract(1, kernel, out=kernel)
            largest = kernel if largest is None else largest
            np.copyto(filtered, fourier.irfftn(kernel * spectrum, shape, mask.shape, overwrite=True), where=new)
            inside |= new
    if largest is None:
        raise smv.no_room(radii[-1])
    return filtered, inside, largest


def _placed(field, inside, box, shape):
    """A box's field and mask on the whole grid."""
    local, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
    local[box], valid[box] = np.where(inside, field, 0), inside
    return local, valid
