"""Rapid two-step inversion: what the field tells well is kept, total variation fills in the cone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms import fourier, solvers
from qsmflow.algorithms.inversion.admm import Anchor, Variation, begin, minimise, prepare


def rts(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    threshold: float = 0.15,
    steps: int = 4,
    mu: float = 1e5,
    iterations: int = 20,
    tolerance: float = 1e-2,
    weighted: bool = True,
) -> np.ndarray:
    """Susceptibility by rapid two-step inversion (RTS).

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
    threshold : float
        Smallest magnitude of the dipole kernel that counts as well-conditioned.
    steps : int
        Conjugate-gradient iterations of the first step.
    mu : float
        Weight that keeps the well-conditioned part as it is, 1/(ppm mm).
    iterations : int
        Largest number of ADMM iterations of the second step.
    tolerance : float
        Stop when the susceptibility in the mask changes by less than this fraction of its norm.
    weighted : bool
        Weight voxels of the mask with the inverse of their field error instead of equally.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    First a few iterations on ``min ||W (D chi_1 - f)||^2``, which settle where ``|D|`` is large. Then
    ``min mu/2 ||F chi - F chi_1||^2 + ||grad chi||_1`` with the first norm over ``|D| > threshold`` alone. W = 0 outside the
    mask.

    References
    ----------
    Kames et al., NeuroImage 167:276, 2018, doi:10.1016/j.neuroimage.2017.11.018.

    Examples
    --------
    Contrast comes back in part:

    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field((r2 < 64).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> chi = rts(field, r2 < 196, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(0.5 < chi[r2 < 36].mean() - chi[(r2 > 100) & (r2 < 196)].mean() < 1)
    True
    """
    grid, field, weight = prepare(local_field, mask, field_error, weighted, voxel_size, b0_dir)
    weight *= weight
    first = solvers.conjugate_gradients(
        lambda x: grid.forward(weight * grid.forward(x)), grid.forward(weight * field), iterations=steps, tolerance=0.0
    )
    kept = (np.abs(grid.kernel) > threshold).astype(np.float32)
    data, penalty = Anchor(kept, fourier.rfftn(first, grid.shape)), Variation(grid, 1 / mu)
    begin(grid, data, penalty, first)
    options = {"mask": mask, "iterations": iterations, "tolerance": tolerance, "name": "rts"}
    return grid.crop(minimise(grid, data, penalty, start=first, **options), mask)
