"""Differences between scanners taken out of region values (ComBat)."""

from __future__ import annotations

import numpy as np

_TOLERANCE, _MAX_ITERATIONS = 1e-6, 500


def combat(values: np.ndarray, sites: np.ndarray, covariates: np.ndarray | None = None) -> np.ndarray:
    """Values without the additive and multiplicative effects of sites.

    Parameters
    ----------
    values : ndarray, (scans, regions)
        NaN where a value is missing; it stays missing.
    sites : ndarray, (scans,)
        Label of the site of every scan.
    covariates : ndarray, (scans, covariates), optional
        Effects to keep (age, group, …).

    Returns
    -------
    ndarray, (scans, regions)

    Raises
    ------
    ValueError
        If there are fewer than two sites.

    Notes
    -----
    ``y = alpha + X beta + gamma_site + delta_site epsilon`` for every region, by least squares; gamma and delta are shrunk
    towards the mean over the regions of a site by parametric empirical Bayes (normal and inverse gamma priors, their moments
    estimated from the regions).

    References
    ----------
    Johnson, Li & Rabinovic, Biostatistics 8:118, 2007, doi:10.1093/biostatistics/kxj037.
    Fortin et al., NeuroImage 167:104, 2018, doi:10.1016/j.neuroimage.2017.11.024.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> site = np.repeat(["a", "b"], 20)
    >>> values = rng.normal(size=(40, 10)) + np.where(site == "b", 5.0, 0.0)[:, None]
    >>> clean = combat(values, site)
    >>> bool(abs(clean[20:].mean() - clean[:20].mean()) < 0.1)
    True
    """
    labels = sorted(set(sites))
    if len(labels) < 2:
        raise ValueError("harmonisation needs at least two sites")
    member = np.array([sites == label for label in labels], float).T
    kept = np.zeros((len(sites), 0)) if covariates is None else np.asarray(covariates, float)
    standard, centre, spread = _standardised(np.asarray(values, float), member, kept)
    result = np.full(values.shape, np.nan)
    for number in range(len(labels)):
        rows = member[:, number] > 0
        gamma, delta = _shrunk(standard[rows])
        result[rows] = (standard[rows] - gamma) / np.sqrt(delta)
    return result * spread + centre


def _standardised(values: np.ndarray, member: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals over their standard deviation with the site effects still in, the fit without them, and the deviation."""
    design = np.column_stack([member, kept])
    standard, centre, spread = (np.full(values.shape, np.nan) for _ in range(3))
    for region in range(values.shape[1]):
        known = np.isfinite(values[:, region])
        y, x = values[known, region], design[known]
        coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
        share = x[:, : member.shape[1]].mean(axis=0)
        mean = share @ coefficients[: member.shape[1]] + x[:, member.shape[1] :] @ coefficients[member.shape[1] :]
        deviation = np.sqrt(np.mean((y - x @ coefficients) ** 2))
        centre[known, region], spread[known, region] = mean, deviation
        standard[known, region] = (y - mean) / deviation
    return standard, centre, spread


def _shrunk(standard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means of a site's offsets and variances, per region."""
    number = np.isfinite(standard).sum(axis=0)
    offset, variance = np.nanmean(standard, axis=0), np.nanvar(standard, axis=0, ddof=1)
    prior_mean, prior_variance = offset.mean(), offset.var(ddof=1)
    mean, square = variance.mean(), variance.var(ddof=1)
    shape, rate = (2 * square + mean**2) / square, (mean * square + mean**3) / square
    gamma, delta = offset, variance
    for _ in range(_MAX_ITERATIONS):
        new_gamma = (number * prior_variance * offset + delta * prior_mean) / (number * prior_variance + delta)
        squares = np.nansum((standard - new_gamma) ** 2, axis=0)
        new_delta = (rate + 0.5 * squares) / (number / 2 + shape - 1)
        change = max(np.max(np.abs(new_gamma - gamma) / np.abs(gamma)), np.max(np.abs(new_delta - delta) / delta))
        gamma, delta = new_gamma, new_delta
        if change < _TOLERANCE:
            break
    return gamma, delta
