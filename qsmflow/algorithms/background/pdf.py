"""PDF: projection onto the fields of dipoles outside the mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms import fourier, solvers
from qsmflow.algorithms.dipole import dipole_kernel
from qsmflow.algorithms.weights import error_weights


def pdf(
    total_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    iterations: int = 50,
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
        Width of the border around the grid that may hold sources and keeps periodic copies apart, mm.
    weighted : bool
        Weight voxels with the inverse of their field error instead of equally.

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
    shape = fourier.padded_shape(mask.shape, [int(np.ceil(margin / h)) for h in voxel_size])
    corner = tuple(slice(n) for n in mask.shape)
    kernel = dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir, space="image")
    outside = np.ones(shape, np.float32)
    outside[corner] = ~mask
    weight = np.zeros(mask.shape, np.float32)
    weight[mask] = error_weights(field_error, mask)[mask] if weighted else 1
    squared = np.zeros(shape, np.float32)
    squared[corner] = weight**2
    field = np.zeros(shape, np.float32)
    field[corner] = np.where(mask, total_field - np.average(total_field[mask], weights=weight[mask] ** 2), 0)

    def adjoint(residual):
        return outside * fourier.convolve(squared * residual, kernel, shape)

    sources = solvers.conjugate_gradients(
        lambda x: adjoint(fourier.convolve(x, kernel, shape)), adjoint(field), iterations=iterations, tolerance=tolerance
    )
    background = fourier.convolve(sources, kernel, shape)[corner]
    return np.where(mask, field[corner] - background, 0).astype(np.float32), mask.copy()
