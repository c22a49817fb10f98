"""Voxel by voxel: smoothing within a mask, mean and spread of a cohort in one pass, permutation tests."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from nilearn.mass_univariate import permuted_ols
from scipy import ndimage


@dataclass(frozen=True, eq=False)
class Voxels:
    """What a comparison voxel by voxel left.

    ``pictures`` are title, caption and PNG, ``table`` has one row per effect, ``methods`` tells in sentences what was done.
    """

    pictures: tuple[tuple[str, str, bytes], ...]
    table: pd.DataFrame
    notices: tuple[str, ...]
    methods: str


_FWHM = 2 * np.sqrt(2 * np.log(2))


def smooth(chi: np.ndarray, known: np.ndarray, *, fwhm: float, voxel_size: tuple[float, float, float]) -> np.ndarray:
    """Gaussian smoothing that neither leaks over the edge of a mask nor darkens it.

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
    known : ndarray of bool, (X, Y, Z)
        Where there is a value.
    fwhm : float
        Full width at half maximum, mm; 0 for none.
    voxel_size : tuple of float
        mm.

    Returns
    -------
    ndarray, (X, Y, Z)
        float32; 0 where nothing is known.

    Notes
    -----
    The smoothed values over the smoothed mask.

    Examples
    --------
    >>> known = np.zeros((9, 9, 9), bool)
    >>> known[:4] = True
    >>> bool(np.allclose(smooth(2.0 * known, known, fwhm=3.0, voxel_size=(1, 1, 1))[known], 2))
    True
    """
    chi = np.where(known, chi, 0).astype(np.float32)
    if not fwhm:
        return chi
    sigma = [fwhm / _FWHM / size for size in voxel_size]
    weight = ndimage.gaussian_filter(known.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(chi, sigma)
    return np.where(known, total / np.maximum(weight, 1e-6), 0).astype(np.float32)


@dataclass(eq=False)
class Moments:
    """Mean and standard deviation over maps that come one after the other; memory for two maps only."""

    count: np.ndarray | None = None
    mean: np.ndarray = field(default_factory=lambda: np.zeros(1))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def add(self, chi: np.ndarray, known: np.ndarray) -> None:
        """Take one map in where it is known (Welford's method).

        Examples
        --------
        >>> moments = Moments()
        >>> for value in (1.0, 2.0, 6.0):
        ...     moments.add(np.full(1, value), np.ones(1, bool))
        >>> float(moments.mean[0]), round(float(moments.sd[0]), 4)
        (3.0, 2.6458)
        """
        if self.count is None:
            self.count = np.zeros(chi.shape, np.int32)
            self.mean, self.squares = np.zeros(chi.shape), np.zeros(chi.shape)
        self.count[known] += 1
        change = chi[known] - self.mean[known]
        self.mean[known] += change / self.count[known]
        self.squares[known] += change * (chi[known] - self.mean[known])

    @property
    def sd(self) -> np.ndarray:
        """Standard deviation; 0 where fewer than two maps are known."""
        return np.sqrt(self.squares / np.maximum(self.count - 1, 1))


def permutation_test(
    maps: np.ndarray, tested: np.ndarray, others: np.ndarray, *, permutations: int, seed: int, masker=None, tfce: bool = False
) -> tuple[dict[str, np.ndarray], float]:
    """Test one effect in every voxel.

    Parameters
    ----------
    maps : ndarray, (scans, voxels)
    tested : ndarray, (scans,)
        The effect.
    others : ndarray, (scans, covariates)
        What the maps are adjusted for; without the intercept.
    permutations, seed : int
        Permutations, and the seed of their draw.
    masker : NiftiMasker, optional
        Where the voxels lie; needed for ``tfce``.
    tfce : bool
        Also threshold-free cluster enhancement, which takes much longer.

    Returns
    -------
    found : dict of ndarray, (voxels,)
        ``t``; ``logp``, minus the decimal logarithm of the p value corrected for the largest t of the whole map (two-sided);
        with ``tfce`` also ``logp_tfce``.
    limit : float
        Size that t must exceed for a corrected p below 0.05; infinite with fewer than 20 permutations.

    References
    ----------
    Freedman & Lane, J Bus Econ Stat 1:292, 1983, doi:10.1080/07350015.1983.10509354.
    Smith & Nichols, NeuroImage 44:83, 2009, doi:10.1016/j.neuroimage.2008.03.061.
    """
    result = permuted_ols(
        tested[:, None], maps, confounding_vars=others if others.size else None, model_intercept=True, n_perm=permutations,
        two_sided_test=True, random_state=seed, n_jobs=1, verbose=0, masker=masker if tfce else None, tfce=tfce,
        output_type="dict",
    )  # fmt: skip
    found = {"t": result["t"][0], "logp": result["logp_max_t"][0]}
    # p = (1 + permutations that reach t) / (1 + permutations), so that many of them may reach it:
    allowed = math.ceil((permutations + 1) / 20) - 2
    limit = float(np.sort(result["h0_max_t"].ravel())[::-1][allowed]) if allowed >= 0 else math.inf
    return found | ({"logp_tfce": result["logp_max_tfce"][0]} if tfce else {}), limit
