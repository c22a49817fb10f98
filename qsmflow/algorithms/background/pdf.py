"""PDF: projection onto the fields of dipoles outside the mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms import fourier, morphology, solvers
from qsmflow.algorithms.dipole import dipole_kernel
from qsmflow.algorithms.weights import error_weights

#: Field errors up to this many times their median weigh alike.
_ALIKE = 3.0


def pdf(
    total_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    iterations: int = 40,
    tolerance: float = 1e-3,
    margin: float = 40.0,
    weighted: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Local field by projection onto dipole fields.

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the total field, ppm (only ratios matter).
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    iterations : int
        Largest number of conjugate-gradient iterations; stopping early regularises.
    tolerance : float
        Stop when the residual of the normal equations has fallen by this factor.
    margin : float
        Width of the border around the mask's bounding box, both sides together, mm. It may hold sources, and keeps periodic
        copies apart.
    weighted : bool
        Weight voxels whose field error exceeds three times its median with its inverse (Notes); otherwise all equally.

    Returns
    -------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm, 0 outside the mask.
    mask : ndarray of bool, (X, Y, Z)
        The given mask: every voxel keeps a value. Sources within a few voxels of the edge look alike from both sides, so that
        the local field is too small there.

    Notes
    -----
    ``min_x ||W M (f - D (1 - M) x)||^2`` and ``f_local = M (f - D (1 - M) x)``: x are sources anywhere outside the mask, D the
    unit dipole's field by its Green's function (a kernel sampled in k-space would alias the far field of the sources). The mean
    of the field in the mask is removed first.

    Voxels near the edge tell most about the sources outside, and have the larger errors. Noise that differs by a factor of two
    or three matters less than what they tell: W is 1 up to three times the median error, and falls with its inverse from there,
    so that only voxels whose field is wrong are left out.

    References
    ----------
    Liu et al., NMR Biomed 24:1129, 2011, doi:10.1002/nbm.1670.

    Examples
    --------
    The field of a sphere outside the mask is background:

    >>> from qsmflow.algorithms.dipole import forward_field
    >>> x, y, z = np.ogrid[-16:16, -16:16, -16:16]
    >>> source = ((x - 10) ** 2 + y**2 + z**2 < 9).astype(np.float32)
    >>> inside = (x + 4) ** 2 + y**2 + z**2 < 81
    >>> field = forward_field(source, voxel_size=(1, 1, 1), b0_dir=(0, 0, 1)) * inside
    >>> local, _ = pdf(field, inside, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(local.std() < 0.03 * field.std())
    True
    """
    box = morphology.bounding_box(mask)
    inside, field = mask[box], total_field[box]
    shape = fourier.padded_shape(inside.shape, [int(np.ceil(margin / h)) for h in voxel_size])
    kernel = dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir, space="image")
    squared = inside.astype(np.float32)
    if weighted:
        squared *= error_weights(field_error[box], inside, alike=_ALIKE) ** 2
    field = np.where(inside, field - np.average(field[inside], weights=squared[inside]), 0).astype(np.float32)
    local = np.zeros(mask.shape, np.float32)
    sources = outer_sources(field, squared, inside, kernel, shape, iterations=iterations, tolerance=tolerance)
    local[box] = np.where(inside, field - fourier.convolve_onto(sources, kernel, shape, inside.shape), 0)
    return local, mask.copy()


def outer_sources(
    field: np.ndarray,
    squared: np.ndarray,
    inside: np.ndarray,
    kernel: np.ndarray,
    shape: Sequence[int],
    *,
    iterations: int,
    tolerance: float,
) -> np.ndarray:
    """The sources outside a mask that explain a field best.

    Parameters
    ----------
    field : ndarray, (X, Y, Z)
        The field.
    squared : ndarray, (X, Y, Z)
        Squared weights of its voxels, 0 where it is not known.
    inside : ndarray of bool, (X, Y, Z)
        Where no source may be.
    kernel : ndarray
        Half spectrum of the field K of a unit source, on the grid ``shape``, which may be larger than the field's.
    shape : sequence of int, (3,)
        Grid of the transforms; all of it but ``inside`` may hold sources.
    iterations, tolerance : int, float
        Of the conjugate gradients.

    Returns
    -------
    ndarray, ``shape``
        ``x`` with ``min_x ||W (f - K (1 - M) x)||^2``, 0 inside the mask.
    """
    corner = tuple(slice(n) for n in inside.shape)

    def from_field(weighed):
        """The adjoint, from the weighted field to the sources."""
        sources = fourier.convolve_onto(weighed, kernel, shape)
        np.copyto(sources[corner], 0, where=inside)
        return sources

    def normal(sources):
        made = fourier.convolve_onto(sources, kernel, shape, squared.shape)
        made *= squared
        return from_field(made)

    return solvers.conjugate_gradients(normal, from_field(squared * field), iterations=iterations, tolerance=tolerance)
