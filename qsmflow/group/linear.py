"""Linear models of one region: the design, the fit (ordinary or mixed) and its tests, on statsmodels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.stats import chi2, norm
from statsmodels.stats.multitest import multipletests


@dataclass(frozen=True, eq=False)
class Design:
    """Columns of a linear model. Covariates are centred and factors sum to zero over their levels, so that the intercept and
    the groups' columns speak of the mean covariate and of all levels alike."""

    matrix: np.ndarray
    names: tuple[str, ...]

    def columns(self, *names: str) -> np.ndarray:
        """Rows that pick the named columns (all levels of a factor), for a joint test."""
        picked = [i for i, name in enumerate(self.names) if name.split("[")[0] in names]
        return np.eye(len(self.names))[picked]

    def rows(self, keep: np.ndarray) -> Design:
        """The same columns for some rows."""
        return Design(self.matrix[keep], self.names)

    @property
    def deficient(self) -> bool:
        """Whether some columns cannot be told apart, or stand on one scan alone (whose HC3 error does not exist)."""
        if np.linalg.matrix_rank(self.matrix) < self.matrix.shape[1]:
            return True
        basis = np.linalg.qr(self.matrix)[0]
        return bool(np.max(np.sum(basis**2, axis=1)) > 1 - 1e-9)


def design(
    people: pd.DataFrame, *, numeric: Sequence[str] = (), factors: Sequence[str] = (), group: str = "", reference: str = ""
) -> Design:
    """The design of intercept, groups against the reference, covariates and factors.

    Examples
    --------
    >>> people = pd.DataFrame({"age": [20.0, 40.0], "sex": ["F", "M"], "group": ["a", "b"]})
    >>> made = design(people, numeric=["age"], factors=["sex"], group="group", reference="a")
    >>> made.names, made.matrix[1].tolist()
    (('intercept', 'group[b]', 'age', 'sex[M]'), [1.0, 1.0, 10.0, 1.0])
    """
    columns = {"intercept": np.ones(len(people))}
    if group:
        for level in sorted(set(people[group]) - {reference}):
            columns[f"group[{level}]"] = (people[group] == level).to_numpy(float)
    for name in numeric:
        values = people[name].to_numpy(float)
        columns[name] = values - values.mean()
    for name in factors:
        first, *others = sorted(people[name].unique())
        for level in others:
            columns[f"{name}[{level}]"] = (people[name] == level).to_numpy(float) - (people[name] == first).to_numpy(float)
    return Design(np.column_stack(list(columns.values())), tuple(columns))


def fit(values: np.ndarray, made: Design, participants: np.ndarray | None = None):
    """Fit one region.

    Parameters
    ----------
    values : ndarray, (scans,)
        No missing ones.
    made : Design
        For these scans.
    participants : ndarray, (scans,), optional
        Who was scanned: with it, a random intercept per participant (restricted maximum likelihood).

    Returns
    -------
    result
        Of statsmodels: OLS with HC3 covariance and t tests, or MixedLM.

    References
    ----------
    MacKinnon & White, J Econometrics 29:305, 1985, doi:10.1016/0304-4076(85)90158-7.
    """
    if participants is None:
        return sm.OLS(values, made.matrix).fit(cov_type="HC3", use_t=True)
    scale = float(np.std(values)) or 1.0  # the optimiser's tolerances are absolute, susceptibilities are small
    with warnings.catch_warnings():  # a random intercept of no variance, or its slow search, is told in the table
        warnings.simplefilter("ignore")
        return Mixed(sm.MixedLM(values / scale, made.matrix, groups=participants).fit(reml=True), scale)


class Mixed:
    """A mixed model of values that were divided by ``scale``: its fixed effects, tested by Wald's test.

    ``between`` is the share of the remaining variance that lies between participants, ``converged`` what the optimiser says.
    """

    def __init__(self, result, scale: float):
        self._result, self._scale = result, scale
        self.fixed = result.fe_params.size
        self.params = np.asarray(result.fe_params) * scale
        self.converged = bool(result.converged)
        between, within = float(np.asarray(result.cov_re)[0, 0]), float(result.scale)
        self.between = between / (between + within)

    def _covariance(self) -> np.ndarray:
        return np.asarray(self._result.cov_params())[: self.fixed, : self.fixed]

    def effect(self, row: np.ndarray) -> tuple[float, float, float, float, float]:
        """Estimate, standard error, limits and p of a combination."""
        estimate = float(row @ self.params)
        error = float(np.sqrt(row @ self._covariance() @ row)) * self._scale
        half = norm.ppf(0.975) * error
        return estimate, error, estimate - half, estimate + half, float(2 * norm.sf(abs(estimate / error)))

    def joint(self, rows: np.ndarray) -> tuple[float, float, float]:
        """Wald chi-square over its degrees of freedom, the degrees, p."""
        between = rows @ np.asarray(self._result.fe_params)
        statistic = float(between @ np.linalg.solve(rows @ self._covariance() @ rows.T, between))
        return statistic / len(rows), float(len(rows)), float(chi2.sf(statistic, len(rows)))


def effect(result, row: np.ndarray) -> tuple[float, float, float, float, float]:
    """Estimate, standard error, limits of the 95 % interval and p of a combination of coefficients."""
    if isinstance(result, Mixed):
        return result.effect(row)
    test = result.t_test(row)
    low, high = np.asarray(test.conf_int())[0]
    return float(test.effect[0]), float(test.sd[0, 0]), float(low), float(high), float(test.pvalue)


def joint(result, rows: np.ndarray) -> tuple[float, float, float]:
    """F, its numerator's degrees of freedom and p of a joint test (HC3; Wald for a mixed model)."""
    if isinstance(result, Mixed):
        return result.joint(rows)
    test = result.f_test(rows)
    return float(np.squeeze(test.fvalue)), float(test.df_num), float(test.pvalue)


def partial_eta_squared(values: np.ndarray, made: Design, rows: np.ndarray) -> float:
    """Share of the variance, not explained by the other terms, that a term explains: ``SS / (SS + SS_residual)``."""
    test = sm.OLS(values, made.matrix).fit().f_test(rows)
    part = float(np.squeeze(test.fvalue)) * float(test.df_num)
    return part / (part + float(test.df_denom))


def adjust(p: Sequence[float], fdr: float) -> tuple[np.ndarray, np.ndarray]:
    """Benjamini-Hochberg q values over the regions, and which are significant; NaN stays out.

    References
    ----------
    Benjamini & Hochberg, J R Stat Soc B 57:289, 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.

    Examples
    --------
    >>> q, found = adjust([0.01, float("nan"), 0.04, 0.03], 0.05)
    >>> q.round(3).tolist(), found.tolist()
    ([0.03, nan, 0.04, 0.04], [True, False, True, True])
    """
    p = np.asarray(p, float)
    known = np.isfinite(p)
    q, found = np.full(p.shape, np.nan), np.zeros(p.shape, bool)
    if known.any():
        found[known], q[known] = multipletests(p[known], alpha=fdr, method="fdr_bh")[:2]
    return q, found
