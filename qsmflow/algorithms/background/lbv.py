"""LBV: the background field from its values at the boundary, by Laplace's equation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, prange
from scipy import ndimage as ndi

from qsmflow.algorithms import morphology, solvers
from qsmflow.algorithms.background import smv


def lbv(
    total_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    peel: int = 2,
    tolerance: float = 1e-4,
    iterations: int = 500,
) -> tuple[np.ndarray, np.ndarray]:
    """Local field by solving the Laplacian boundary value problem (LBV).

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    peel : int
        Layers of voxels taken off the mask first, because errors of the field at its boundary go deep.
    tolerance : float
        Conjugate gradients stop when the residual has fallen by this factor.
    iterations : int
        Largest number of conjugate-gradient iterations.

    Returns
    -------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm, 0 at the boundary and outside.
    mask : ndarray of bool, (X, Y, Z)
        What lies inside the boundary: the given mask less ``peel + 1`` layers.

    Raises
    ------
    ValueError
        If nothing lies inside the boundary.

    Notes
    -----
    ``lap g = 0`` inside, ``g = f`` at the boundary (voxels of the peeled mask that have a neighbour outside it), and
    ``f_local = f - g``.
    Equivalently ``lap f_local = lap f`` with ``f_local = 0`` at the boundary, which is what conjugate gradients solve with the
    7-point Laplacian. The local field at the boundary is taken as background, together with its harmonic continuation.

    References
    ----------
    Zhou et al., NMR Biomed 27:312, 2014, doi:10.1002/nbm.3064.

    Examples
    --------
    A linear field is background everywhere:

    >>> ramp = np.linspace(-1, 1, 32, dtype=np.float32)[:, None, None] * np.ones((1, 32, 32), np.float32)
    >>> local, inside = lbv(ramp, np.ones(ramp.shape, bool), voxel_size=(1, 1, 1))
    >>> bool(abs(local).max() < 1e-4)
    True
    """
    peeled = ndi.binary_erosion(mask, iterations=peel) if peel else mask
    valid = ndi.binary_erosion(peeled)
    if not valid.any():
        raise ValueError(f"the mask is gone after {peel + 1} layers; give a larger mask or a smaller peel")
    box = morphology.bounding_box(peeled)
    inside, field = valid[box], smv.without_mean(total_field[box], peeled[box])
    weights = tuple(np.float32(min(voxel_size) ** 2 / h**2) for h in voxel_size)

    def laplacian(x):
        result = np.zeros_like(x)
        negative_laplacian(x, inside, weights, result)
        return result

    local = np.zeros(mask.shape, np.float32)
    local[box] = solvers.conjugate_gradients(laplacian, laplacian(field), iterations=iterations, tolerance=tolerance)
    return local, valid


@njit(parallel=True, cache=True)
def negative_laplacian(x, inside, weights, out):
    """Negative 7-point Laplacian of ``x`` with a weight per axis into ``out``, at voxels ``inside`` but the grid's border."""
    nx, ny, nz = x.shape
    wx, wy, wz = weights
    for i in prange(1, nx - 1):
        for j in range(1, ny - 1):
            for k in range(1, nz - 1):
                if inside[i, j, k]:
                    here = x[i, j, k]
                    out[i, j, k] = (
                        wx * ((here - x[i - 1, j, k]) + (here - x[i + 1, j, k]))
                        + wy * ((here - x[i, j - 1, k]) + (here - x[i, j + 1, k]))
                        + wz * ((here - x[i, j, k - 1]) + (here - x[i, j, k + 1]))
                    )
