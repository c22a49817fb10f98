"""HD-QSM: an L1 data term finds the fields that are not to be believed, a weighted L2 one does the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms.inversion import misfit
from qsmflow.algorithms.inversion.admm import Residual, Variation, begin, minimise, prepare
from qsmflow.algorithms.inversion.fansi import SMALL_MISFIT


def hdqsm(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    lambda_: float = 1e-4,
    iterations_l1: int = 20,
    iterations: int = 80,
    tolerance: float = 5e-3,
    weighted: bool = True,
) -> np.ndarray:
    """Susceptibility by total-variation inversion with an L1, then a reweighted L2 data term (HD-QSM).

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter).
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    lambda_ : float
        Weight of the total variation in the second stage, ppm mm; the first takes its square root.
    iterations_l1 : int
        ADMM iterations of the first stage.
    iterations : int
        Largest number of ADMM iterations of the second stage.
    tolerance : float
        Stop when the susceptibility in the mask changes by less than this fraction of its norm (second stage).
    weighted : bool
        Weight voxels of the mask with the inverse of their field error instead of equally.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    First ``min ||W (D chi - f)||_1 + sqrt(lambda) ||grad chi||_1``, a few iterations; its residual r gives the weight
    ``W (1 - |r| / max |r|)`` of ``min 1/2 ||W2 (D chi - f)||^2 + lambda ||grad chi||_1``, which goes on from there. W = 0
    outside the mask, where the susceptibility is free.

    References
    ----------
    Lambert et al., MRM 88:962, 2022, doi:10.1002/mrm.29218.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field((r2 < 64).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> chi = hdqsm(field, r2 < 196, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(abs(chi[r2 < 36].mean() - chi[(r2 > 100) & (r2 < 196)].mean() - 1) < 0.05)
    True
    """
    grid, field, weight = prepare(local_field, mask, field_error, weighted, voxel_size, b0_dir)
    data = Residual(grid, field, np.float32(SMALL_MISFIT) * weight, misfit.absolute)
    penalty = Variation(grid, SMALL_MISFIT * lambda_**0.5)
    chi = minimise(grid, data, penalty, mask=mask, iterations=iterations_l1, tolerance=0.0, name="hdqsm")
    residual = np.abs(grid.forward(chi) - field) * (weight > 0)
    weight *= 1 - residual / max(float(residual.max()), np.finfo(np.float32).tiny)
    data, penalty = Residual(grid, field, weight * weight, misfit.squares), Variation(grid, lambda_)
    begin(grid, data, penalty, chi)
    options = {"mask": mask, "iterations": iterations, "tolerance": tolerance, "name": "hdqsm", "since": iterations_l1}
    return grid.crop(minimise(grid, data, penalty, start=chi, **options), mask)
