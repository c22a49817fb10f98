"""HARPERELLA and iHARPERELLA: the Laplacian of the total field, continued outside the mask so that no background is left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage as ndi

from qsmflow.algorithms import fourier, morphology, operators
from qsmflow.algorithms.background import smv
from qsmflow.algorithms.background.lbv import negative_laplacian
from qsmflow.algorithms.background.pdf import outer_sources


def harperella(
    total_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    radius: float = 10.0,
    iterations: int = 40,
    tolerance: float = 1e-2,
    peel: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Local field by HARPERELLA (harmonic phase removal using the Laplacian operator).

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    radius : float
        Radius of the sphere over which the Laplacian is averaged, mm.
    iterations : int
        Largest number of conjugate-gradient iterations; stopping early regularises.
    tolerance : float
        Stop when the residual of the normal equations has fallen by this factor.
    peel : int
        Layers of voxels at the mask's edge whose values do not count, because they may hold a part of what lies outside.

    Returns
    -------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm, 0 outside the mask.
    mask : ndarray of bool, (X, Y, Z)
        The given mask: every voxel keeps a value.

    Raises
    ------
    ValueError
        If the sphere fits nowhere into the mask.

    Notes
    -----
    With the Laplacian L of the total field where its stencil fits into the peeled mask (0 elsewhere), the Laplacian E outside
    the mask is chosen such that the spherical means of both together are the same on the whole grid, equal to their mean where
    the sphere sees nothing but L: ``min_E ||S (L + E) - c||^2``. ``f_local = lap^-1 (L + E)`` less its mean. In the layers
    between, the local field is taken as harmonic: voxels at the mask's edge hold a part of strong sources outside, where the
    field is not harmonic, and this part would pass for sources inside. The published method takes L from the wrapped phase of
    each echo; here it is that of the combined phase, which the total field is, so that nothing is left to unwrap.

    References
    ----------
    Li et al., NMR Biomed 27:219, 2014, doi:10.1002/nbm.3056.

    Examples
    --------
    A linear field is background everywhere:

    >>> ramp = np.linspace(-1, 1, 32, dtype=np.float32)[:, None, None] * np.ones((1, 32, 32), np.float32)
    >>> local, _ = harperella(ramp, np.ones(ramp.shape, bool), voxel_size=(1, 1, 1))
    >>> bool(abs(local).max() < 1e-3)
    True
    """
    radius = max(radius, min(voxel_size))
    smv.room(mask, radius, voxel_size)
    box, inside, known, laplacian = _laplacian(total_field, mask, voxel_size, peel)
    shape = fourier.padded_shape(inside.shape, [2 * n for n in smv.reach(radius, voxel_size)])
    kernel = smv.sphere_spectrum(radius, voxel_size, shape)
    interior = smv.fits(smv.distance_inside(known, voxel_size), radius, voxel_size)
    mean = fourier.convolve_onto(laplacian, kernel, shape)
    level = mean[tuple(slice(n) for n in inside.shape)][interior].mean(dtype=np.float64) if interior.any() else 0.0
    weights = np.ones(shape, np.float32)
    missing = np.float32(level) - mean
    whole = outer_sources(missing, weights, inside, kernel, shape, iterations=iterations, tolerance=tolerance)
    whole[tuple(slice(n) for n in inside.shape)] += laplacian
    local = fourier.convolve_onto(whole, _inverse_laplacian(shape, voxel_size), shape, inside.shape)
    return _placed(local, box, mask), mask.copy()


def iharperella(
    total_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    iterations: int = 20,
    tolerance: float = 1e-2,
    margin: float = 20.0,
    peel: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Local field by iHARPERELLA (HARPERELLA with the least energy in the mask).

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    iterations : int
        Largest number of conjugate-gradient iterations; stopping early regularises.
    tolerance : float
        Stop when the residual of the normal equations has fallen by this factor.
    margin : float
        Width of the border around the mask's bounding box, both sides together, in which the Laplacian is free, mm.
    peel : int
        Layers of voxels at the mask's edge whose values do not count, because they may hold a part of what lies outside.

    Returns
    -------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm, 0 outside the mask.
    mask : ndarray of bool, (X, Y, Z)
        The given mask: every voxel keeps a value.

    Notes
    -----
    With the Laplacian L of the total field where its stencil fits into the peeled mask (0 elsewhere), the Laplacian E outside
    the mask is chosen such that the field has the least energy in the mask: ``min_E ||M lap^-1 (L + E)||^2``,
    ``f_local = M lap^-1 (L + E)`` less its mean. As in :func:`harperella`, the layers between count as harmonic, and L is that
    of the combined phase. More iterations explain sources near the edge from outside.

    References
    ----------
    Li et al., Proc ISMRM 23:3313, 2015 (an abstract).
    Li et al., NMR Biomed 27:219, 2014, doi:10.1002/nbm.3056 (HARPERELLA).

    Examples
    --------
    A linear field is background everywhere:

    >>> ramp = np.linspace(-1, 1, 32, dtype=np.float32)[:, None, None] * np.ones((1, 32, 32), np.float32)
    >>> local, _ = iharperella(ramp, np.ones(ramp.shape, bool), voxel_size=(1, 1, 1))
    >>> bool(abs(local).max() < 1e-3)
    True
    """
    box, inside, _, laplacian = _laplacian(total_field, mask, voxel_size, peel)
    shape = fourier.padded_shape(inside.shape, [int(np.ceil(margin / h)) for h in voxel_size])
    kernel = _inverse_laplacian(shape, voxel_size)
    field = fourier.convolve(laplacian, kernel, shape)
    field -= field[inside].mean(dtype=np.float64)
    weights = inside.astype(np.float32)
    sources = outer_sources(field, weights, inside, kernel, shape, iterations=iterations, tolerance=tolerance)
    local = field - fourier.convolve_onto(sources, kernel, shape, inside.shape)
    return _placed(local, box, mask), mask.copy()


def _laplacian(field, mask, voxel_size, peel):
    """The mask's box, the mask in it, where the stencil fits into the peeled mask, and the 7-point Laplacian there, else 0."""
    box = morphology.bounding_box(mask)
    inside = mask[box]
    known = ndi.binary_erosion(inside, iterations=1 + peel)
    weights = tuple(np.float32(-1 / h**2) for h in voxel_size)
    laplacian = np.zeros(inside.shape, np.float32)
    negative_laplacian(smv.without_mean(field[box], inside), known, weights, laplacian)
    return box, inside, known, laplacian


def _inverse_laplacian(shape, voxel_size):
    """Half spectrum of the inverse 7-point Laplacian, 0 for the mean."""
    power = -operators.gradient_power(shape, voxel_size)
    power[0, 0, 0] = np.inf
    return 1 / power


def _placed(local, box, mask):
    """The field of a box on the whole grid, less its mean in the mask."""
    whole = np.zeros(mask.shape, np.float32)
    whole[box] = smv.without_mean(local, mask[box])
    return whole
