"""iLSQR: least squares, then the streaks that a fast second estimate tells from structure are found and subtracted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms import fourier, operators, solvers
from qsmflow.algorithms.background import smv
from qsmflow.algorithms.dipole import dipole_kernel

#: Percentiles of the field's Laplacian between which the data weights fall from 1 to 0.
_ROUGH = (60.0, 99.9)

#: Percentiles of the fast estimate's gradient between which it counts less and less as smooth.
_SMOOTH = (50.0, 70.0)

#: The fast estimate: power of the dipole kernel that weights k-space and the percentiles that this is scaled by; radius of
#: the sphere that fills in, mm; threshold of the division that it is scaled to.
_POWER, _FILLED, _RADIUS, _THRESHOLD = 1e-3, (1.0, 30.0), 3.0, 1 / 8


def ilsqr(
    local_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    cone: float = 0.1,
    iterations: int = 50,
    tolerance: float = 1e-2,
) -> np.ndarray:
    """Susceptibility by iterative least squares with estimated streaks removed.

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    cone : float
        Streaks live where the dipole kernel's magnitude is below this value.
    iterations : int
        Largest number of iterations, of the least squares and of the estimate of streaks each.
    tolerance : float
        Both stop when the residual of their normal equations has fallen by this factor.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    In four parts:

    1. ``min ||D W D chi_0 - D W f||``, W falling from 1 to 0 between the 60th and 99.9th percentile of the Laplacian of f. The
       Laplacian is taken without the neighbours outside the mask.
    2. ``chi_fast``: ``sign(D) F(f)`` with what is near the cone replaced by its mean over spheres of 3 mm, twice, scaled and
       shifted to thresholded division (1/8).
    3. ``min ||G grad(chi_0 - chi_SA)||`` over chi_SA with frequencies ``|D| < cone`` alone: where chi_fast is smooth, chi_0
       should be, and what is not is streaks. G falls from 1 to 0 between the 50th and 70th percentile of the gradient of
       chi_fast, component by component, and is 0 beyond the mask.
    4. ``chi = chi_0 - chi_SA``.

    The least squares are solved by conjugate gradients on their normal equations, which gives the iterates of LSQR.

    References
    ----------
    Li et al., NeuroImage 55:1645, 2011, doi:10.1016/j.neuroimage.2010.11.088.
    Li et al., NeuroImage 108:111, 2015, doi:10.1016/j.neuroimage.2014.12.043.

    Examples
    --------
    The contrast of a small sphere is underestimated, because its frequencies within the cone count as streaks in part:

    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field((r2 < 9).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> chi = ilsqr(field, r2 < 225, voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(0.6 < chi[r2 < 5].mean() - chi[(r2 > 64) & (r2 < 169)].mean() < 1)
    True
    """
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    shape = fourier.padded_shape(mask.shape)
    kernel = dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir)
    field = np.where(mask, local_field, 0).astype(np.float32)
    first = least_squares(field, mask, kernel, shape, voxel_size, iterations=iterations, tolerance=tolerance)
    fast = fast_estimate(field, mask, kernel, shape, voxel_size)
    streaks = streak_estimate(
        first, fast, mask, np.abs(kernel) < cone, shape, voxel_size, iterations=iterations, tolerance=tolerance
    )
    return np.where(mask, first - streaks[tuple(slice(n) for n in mask.shape)], np.float32(0))


def least_squares(field, mask, kernel, shape, voxel_size, *, iterations, tolerance):
    """Part 1: ``chi_0``, cropped and masked."""
    weight = np.zeros(shape, np.float32)
    weight[tuple(slice(n) for n in mask.shape)] = _falling(_roughness(field, mask, voxel_size), mask, _ROUGH)
    padded = np.zeros(shape, np.float32)
    padded[tuple(slice(n) for n in mask.shape)] = field
    square = kernel**2

    def apply(x):
        """``(D W D)^2 x``."""
        inner = weight * fourier.convolve(weight * fourier.convolve(x, kernel, shape), square, shape)
        return fourier.convolve(inner, kernel, shape)

    right = fourier.convolve(weight * fourier.convolve(weight * padded, square, shape), kernel, shape)
    chi = solvers.conjugate_gradients(apply, right, iterations=iterations, tolerance=tolerance)
    return chi[tuple(slice(n) for n in mask.shape)] * mask


def fast_estimate(field, mask, kernel, shape, voxel_size):
    """Part 2: ``chi_fast``, cropped and masked."""
    spectrum = fourier.rfftn(field, shape)
    trust = np.abs(kernel) ** np.float32(_POWER)
    low, high = np.percentile(trust, _FILLED)
    trust = np.clip((trust - low) / (high - low), 0, 1).astype(np.float32)
    blend = trust + (1 - trust) * smv.sphere_spectrum(_RADIUS, voxel_size, shape)
    once = fourier.irfftn(np.sign(kernel) * blend * spectrum, shape, mask.shape) * mask
    twice = fourier.convolve(once, blend, shape) * mask
    limited = np.where(np.abs(kernel) < _THRESHOLD, np.copysign(np.float32(_THRESHOLD), kernel), kernel)
    limited[0, 0, 0] = np.inf  # leaves the mean out
    divided = fourier.irfftn(spectrum / limited, shape, mask.shape) * mask
    slope, shift = np.polyfit(twice.ravel().astype(np.float64), divided.ravel().astype(np.float64), 1)
    return (np.float32(slope) * twice + np.float32(shift)) * mask


def streak_estimate(first, fast, mask, cone, shape, voxel_size, *, iterations, tolerance):
    """Part 3: ``chi_SA`` on the padded grid, frequencies within the cone alone."""
    inverse_size = tuple(np.float32(1 / h) for h in voxel_size)
    inside = np.zeros(shape, bool)
    inside[tuple(slice(n) for n in mask.shape)] = mask
    padded, slopes = np.zeros(shape, np.float32), np.empty((3, *shape), np.float32)
    padded[inside] = fast[mask]
    operators.gradient(padded, inverse_size, slopes)
    for axis, slope in enumerate(slopes):
        slope[...] = _falling(np.abs(slope), inside & np.roll(inside, -1, axis), _SMOOTH) ** 2

    def apply(x):
        """``E^H G^2 E x`` within the cone; x has nothing outside it."""
        smooth = np.zeros(shape, np.float32)
        operators.diffuse(x, slopes, inverse_size, np.float32(1), smooth)
        return fourier.convolve(smooth, cone, shape)

    padded[inside] = first[mask]
    return solvers.conjugate_gradients(apply, apply(padded), iterations=iterations, tolerance=tolerance)


def _falling(values, mask, percentiles):
    """1 where a value is below the first percentile within the mask, 0 above the second, a ramp between; 0 outside."""
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    low, high = np.percentile(values[mask], percentiles)
    ramp = np.clip((high - values) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    return np.where(mask, np.where(values <= low, 1, ramp), 0).astype(np.float32)


def _roughness(field, mask, voxel_size):
    """Magnitude of the Laplacian, from neighbours inside the mask alone."""
    result = np.zeros(field.shape, np.float32)
    for axis, h in enumerate(voxel_size):
        before, after = np.moveaxis(field, axis, 0)[:-1], np.moveaxis(field, axis, 0)[1:]
        both = np.moveaxis(mask, axis, 0)[:-1] & np.moveaxis(mask, axis, 0)[1:]
        step = np.where(both, after - before, 0) / np.float32(h * h)
        view = np.moveaxis(result, axis, 0)
        view[:-1] += step
        view[1:] -= step
    return np.abs(result)
