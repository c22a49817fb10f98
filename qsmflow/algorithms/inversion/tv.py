"""Inversion with total variation and least squares in the mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from qsmflow.algorithms.inversion import admm, misfit
from qsmflow.algorithms.inversion.admm import Residual, Variation, minimise, prepare


def tv(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    lambda_: float = 2e-4,
    iterations: int = 100,
    tolerance: float = 1e-2,
    weighted: bool = True,
    isotropic: bool = True,
    tune: Literal["none", "lcurve", "discrepancy", "frequency"] = "none",
) -> np.ndarray:
    """Susceptibility by total-variation regularised inversion.

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter, unless ``tune`` is ``"discrepancy"``).
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    lambda_ : float
        Weight of the total variation, ppm mm.
    iterations : int
        Largest number of ADMM iterations.
    tolerance : float
        Stop when the susceptibility in the mask changes by less than this fraction of its norm.
    weighted : bool
        Weight voxels of the mask with the inverse of their field error instead of equally.
    isotropic : bool
        Penalise the length of the gradient in every voxel instead of its components one by one.
    tune : {"none", "lcurve", "discrepancy", "frequency"}
        Take ``lambda_`` as it is, or a weight between a tenth and ten times it: where the L-curve straightens below its corner
        (takes 220 iterations more), where the misfit is what the field error lets expect (which must then be that of the
        field, in ppm), or where the map is as strong near the dipole's cone as far from it (both up to 220 iterations).

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    ``min 1/2 ||W (D chi - f)||^2 + lambda ||grad chi||_1``, W = 0 outside the mask: nothing is claimed about the field there,
    and the susceptibility outside may take up what is left of the background. Both ``grad chi`` and ``D chi`` are split off,
    with penalties ``100 lambda`` and 1, so that each iteration is one division in k-space and two steps voxel by voxel; four
    transforms in all. Gradients are per mm. The mean over the grid is set to 0.

    References
    ----------
    Bilgic et al., MRM 72:1444, 2014, doi:10.1002/mrm.25029 (total variation by ADMM).
    Milovic et al., MRM 80:814, 2018, doi:10.1002/mrm.27073 (the split of the data term that admits weights).
    Milovic et al., MRM 85:480, 2021, doi:10.1002/mrm.28435 (choice of the weight).

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field((r2 < 64).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> chi = tv(field, r2 < 196, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(abs(chi[r2 < 36].mean() - chi[(r2 > 100) & (r2 < 196)].mean() - 1) < 0.05)
    True
    """
    grid, field, weight = prepare(local_field, mask, field_error, weighted, voxel_size, b0_dir)
    weight *= weight
    data = Residual(grid, field, weight, misfit.squares)
    penalty = Variation(grid, lambda_, isotropic)
    options = {"mask": mask, "name": "tv"}
    start = admm.tune(grid, data, penalty, lambda_, tune, power=2, field_error=field_error, **options)
    chi = minimise(grid, data, penalty, start=start, iterations=iterations, tolerance=tolerance, **options)
    return grid.crop(chi, mask)
