"""Source separation by fitting the field and the relaxation of both kinds of sources at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, prange

from qsmflow.algorithms import fourier, operators, solvers
from qsmflow.algorithms.inversion import misfit
from qsmflow.algorithms.inversion.admm import Grid, Residual, Variation, prepare
from qsmflow.algorithms.separation.rates import source_rate


def chisep(
    chi: np.ndarray,
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    r2star: np.ndarray,
    r2: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    relaxivity_para: float = 45.7,
    relaxivity_dia: float = 45.7,
    baseline: float = 0.0,
    balance: float = 1.0,
    lambda_: float = 2e-4,
    iterations: int = 200,
    tolerance: float = 5e-3,
    weighted: bool = True,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Paramagnetic and diamagnetic susceptibility from field and R2' together (chi-separation).

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm; only tells the rate of tissue without sources, where that is not known.
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter).
    r2star : ndarray, (X, Y, Z)
        R2*, 1/s.
    r2 : ndarray, (X, Y, Z)
        R2, 1/s; 0 where it was not measured.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    b0 : float
        Main field strength, T.
    relaxivity_para : float
        R2' that paramagnetic sources of one ppm make, 1/s per ppm and tesla.
    relaxivity_dia : float
        The same for diamagnetic sources.
    baseline : float
        R2 where it was not measured, 1/s; 0 takes the median of what the susceptibility leaves of R2*.
    balance : float
        Weight of the misfit of R2' (as a susceptibility) against that of the field.
    lambda_ : float
        Weight of the total variation of either map, ppm mm.
    iterations : int
        Largest number of ADMM iterations.
    tolerance : float
        Stop when both maps in the mask change by less than this fraction of their norm.
    weighted : bool
        Weight voxels of the field with the inverse of their field error instead of equally.

    Returns
    -------
    chi_para : ndarray, (X, Y, Z)
        Susceptibility of the paramagnetic sources, ppm, at least 0; 0 outside the mask.
    chi_dia : ndarray, (X, Y, Z)
        That of the diamagnetic ones, ppm, at most 0; 0 outside the mask.
    rate : float
        R2 that was taken off (its median), 1/s.

    Notes
    -----
    ``min 1/2 ||W (D (p + d) - f)||^2 + balance/2 ||M (a_p p - a_d d - R2') / a_p||^2 + lambda (||grad p||_1 + ||grad d||_1)``
    over ``p >= 0 >= d``, with ``a = relaxivity B0``: the field tells their sum, but for the cone of the dipole, and R2' their
    distance. The regularisation is total variation of both maps; the method as published takes that of MEDI or of iLSQR.
    The field, both gradients and both maps are split off; sum and difference of the maps decouple in k-space, six
    transforms an iteration. Outside the mask the sum is free, as in the inversions.

    The defaults are 137 1/s per ppm at 3 T, for sources of either sign. Where R2 was not measured, R2' is what R2* has beyond
    one value for all tissue (:func:`qsmflow.algorithms.separation.rates.source_rate`), which is a pseudo-R2'.

    References
    ----------
    Shin et al., NeuroImage 240:118371, 2021, doi:10.1016/j.neuroimage.2021.118371.

    Examples
    --------
    A sphere that holds sources of both signs, which cancel by half:

    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> ball, whole = (r2 < 36).astype(np.float32), r2 < 196
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1)}
    >>> field, rate = forward_field(0.05 * ball, **context), 12 + 137.1 * 0.15 * ball
    >>> maps = chisep(0.05 * ball, field, whole, np.ones_like(field), rate, 12 + 0 * field, **context, b0=3.0)
    >>> [round(float(m[r2 < 16].mean()), 2) for m in maps[:2]]
    [0.1, -0.05]
    """
    scale = relaxivity_para * b0
    rate, rest = source_rate(r2star, r2, chi, mask, relaxivity=scale, baseline=baseline)
    grid, field, weight = prepare(local_field, mask, field_error, weighted, voxel_size, b0_dir)
    weight *= weight
    data = Residual(grid, field, weight, misfit.squares)
    maps = _Maps(grid, mask, rate / np.float32(scale), np.float32(balance), np.float32(relaxivity_dia / relaxivity_para))
    para, dia = _minimise(grid, data, maps, lambda_, mask=mask, iterations=iterations, tolerance=tolerance)
    return grid.crop(np.maximum(para, 0), mask), grid.crop(0 - np.maximum(dia, 0), mask), rest  # not -0


class _Maps:
    """The split of the strengths p and -d (padded): at least 0, and in the mask drawn to what the rate says of them."""

    #: Penalty of the split, that of the data's misfit.
    strength = np.float32(1)

    def __init__(self, grid: Grid, mask: np.ndarray, rate: np.ndarray, balance: np.float32, ratio: np.float32):
        self.rate, self.weight, self.ratio = grid.pad(rate), grid.pad(balance * mask), ratio
        self.dual, self.target = (np.zeros((2, *grid.shape), np.float32) for _ in range(2))

    def step(self, para: np.ndarray, dia: np.ndarray, relaxation: np.float32) -> None:
        """Step the split."""
        _take(self.rate, self.weight, self.ratio, para, dia, self.dual, self.target, relaxation)


def _minimise(
    grid: Grid, data: Residual, maps: _Maps, lambda_: float, *, mask: np.ndarray, iterations: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """The strengths of both kinds of sources on the padded grid."""
    slopes = Variation(grid, lambda_), Variation(grid, lambda_)
    relaxation = slopes[0].relaxation
    both = slopes[0].strength * operators.gradient_power(grid.shape, grid.voxel_size) + maps.strength
    total, rest = 1 / both, 1 / (both + 2 * grid.kernel**2)
    para, dia = (np.zeros(grid.shape, np.float32) for _ in range(2))
    reached, iteration = np.inf, 0
    while iteration < iterations and reached >= tolerance:
        iteration += 1
        right = [slope.pull() + target for slope, target in zip(slopes, maps.target, strict=True)]
        added = fourier.rfftn(right[0] + right[1], grid.shape) * total
        field = fourier.rfftn(data.target, grid.shape) * grid.kernel
        chi = (fourier.rfftn(right[0] - right[1], grid.shape) + 2 * field) * rest
        before = para, dia
        half = [fourier.irfftn(spectrum, grid.shape) / 2 for spectrum in (added, chi)]
        para, dia = half[0] + half[1], half[0] - half[1]
        reached = max(solvers.change(now, old, mask) for now, old in zip((para, dia), before, strict=True))
        data.step(chi, relaxation)
        for slope, strength in zip(slopes, (para, dia), strict=True):
            slope.step(strength)
        maps.step(para, dia, relaxation)
    solvers.note_end("chisep", iteration, reached, tolerance)
    return para, dia


@njit(parallel=True, cache=True)
def _take(rate, weight, ratio, para, dia, dual, target, relaxation):
    """Step of ``weight/2 (u + ratio v - rate)^2`` over ``u, v >= 0``: the root, or the better of the two sides."""
    for i in prange(rate.shape[0]):
        for j in range(rate.shape[1]):
            for k in range(rate.shape[2]):
                s = misfit.relaxed(para[i, j, k], dual[0, i, j, k], target[0, i, j, k], relaxation)
                t = misfit.relaxed(dia[i, j, k], dual[1, i, j, k], target[1, i, j, k], relaxation)
                w, r = weight[i, j, k], rate[i, j, k]
                away = w * (s + ratio * t - r) / (np.float32(1) + w * (np.float32(1) + ratio * ratio))
                u, v = s - away, t - ratio * away
                if u < 0 or v < 0:
                    u = max((w * r + s) / (w + np.float32(1)), np.float32(0))
                    v = max((w * ratio * r + t) / (w * ratio * ratio + np.float32(1)), np.float32(0))
                    first = w * (u - r) ** 2 + (u - s) ** 2 + t * t
                    second = w * (ratio * v - r) ** 2 + (v - t) ** 2 + s * s
                    u, v = (u, np.float32(0)) if first <= second else (np.float32(0), v)
                dual[0, i, j, k], target[0, i, j, k] = s - u, u + u - s
                dual[1, i, j, k], target[1, i, j, k] = t - v, v + v - t
