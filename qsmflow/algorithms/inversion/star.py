"""STAR: strong sources first, the rest from what they leave of the field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.inversion.tv import tv

#: Weight of the total variation at the level of strong sources, ppm mm.
_STRONG_WEIGHT = 2e-3


def star(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    strong: float = 0.3,
    lambda_: float = 1e-4,
    iterations: int = 100,
    tolerance: float = 1e-2,
) -> np.ndarray:
    """Susceptibility by total variation at two levels, so that strong sources cast no streaks over weak ones.

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
    strong : float
        A source is strong beyond this distance from the median, ppm.
    lambda_ : float
        Weight of the total variation for the rest, ppm mm.
    iterations : int
        Largest number of ADMM iterations at each level.
    tolerance : float
        A level is done when the susceptibility changes by less than this fraction of its norm.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    ``chi_s`` is total-variation inversion with a weight of 2e-3 ppm mm, 0 where it is within ``strong`` of its median.
    ``chi_w`` is total-variation inversion of ``f - D chi_s`` with ``lambda_``, without the field within the strong sources,
    where the signal is mostly gone; ``chi = chi_s + chi_w``. The second level also makes up for what the first took off strong
    sources, from the field around them. Only a compiled implementation by the authors is public: weights, threshold and
    leaving out the field are choices of this one.

    References
    ----------
    Wei et al., NMR Biomed 28:1294, 2015, doi:10.1002/nbm.3383.

    Examples
    --------
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field((r2 < 25).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> chi = star(field, r2 < 196, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(abs(chi[r2 < 9].mean() - chi[(r2 > 64) & (r2 < 196)].mean() - 1) < 0.1)
    True
    """
    context = {"voxel_size": voxel_size, "b0_dir": b0_dir}
    stop = {"iterations": iterations, "tolerance": tolerance}
    first = tv(local_field, mask, field_error, lambda_=_STRONG_WEIGHT, **context, **stop)
    excess = np.where(mask, first - np.median(first[mask]), 0) if mask.any() else first
    sources = np.where(np.abs(excess) > strong, excess, 0).astype(np.float32)
    rest = np.where(mask, local_field - forward_field(sources, **context), 0).astype(np.float32)
    error = np.where(sources, 0, field_error)  # no error is no data
    return sources + tv(rest, mask, error, lambda_=lambda_, **context, **stop)
