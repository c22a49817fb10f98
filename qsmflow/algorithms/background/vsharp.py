"""V-SHARP: sophisticated harmonic artifact reduction with spheres as large as the mask allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms import fourier
from qsmflow.algorithms.background import smv


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
    distance = smv.distance_inside(mask, voxel_size)
    smallest = max(min_radius, min(voxel_size))
    radii = [max_radius - i * step for i in range(max(0, round((max_radius - smallest) / step)))] + [smallest]
    radii = [r for r in radii if smv.fits(distance, r, voxel_size).any()]
    if not radii:
        raise ValueError(f"the mask holds no sphere of radius {smallest:g} mm; give a larger mask or a smaller min_radius")
    # a sphere around a valid voxel never leaves the mask, so that no margin is needed
    shape = fourier.padded_shape(mask.shape)
    spectrum = fourier.rfftn(np.where(mask, total_field - total_field[mask].mean(), 0).astype(np.float32), shape)
    filtered = np.zeros(mask.shape, np.float32)
    valid = np.zeros(mask.shape, bool)
    for radius in radii:
        kernel = 1 - smv.sphere_spectrum(radius, voxel_size, shape)
        if radius == radii[0]:
            largest = kernel
        new = smv.fits(distance, radius, voxel_size) & ~valid
        filtered[new] = fourier.irfftn(kernel * spectrum, shape, mask.shape)[new]
        valid |= new
    inverse = np.zeros_like(largest)
    np.divide(1, largest, out=inverse, where=np.abs(largest) >= threshold)
    return fourier.convolve(filtered, inverse, shape) * valid, valid
