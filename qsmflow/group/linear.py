"""Linear models of one region: the design, the fit (ordinary or mixed) and its tests, on statsmodels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import statsmodels.api as sm
from statsmodels.stats.multitest import multipletests

#: Searches for the variance between participants; the second, which needs no gradient, is for when the first stops short of a
#: variance of 0.
_SEARCHES = ["bfgs", "powell"]


class NotFittedError(Exception):
    """The model cannot be fitted to these values; the message says why, in the words of a table's status."""


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


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted region: ``result`` of statsmodels; ``between``, the share of the variance beyond the model that lies between
    participants, where some were scanned repeatedly."""

    result: object
    between: float | None = None

    def effect(self, row: np.ndarray) -> tuple[float, float, float, float, float]:
        """Estimate, standard error, limits of the 95 % interval and p of a combination of coefficients."""
        test = self.result.t_test(row)
        low, high = np.asarray(test.conf_int())[0]
        return float(test.effect[0]), float(test.sd[0, 0]), float(low), float(high), float(test.pvalue)

    def joint(self, rows: np.ndarray) -> tuple[float, float, float]:
        """F, the degrees of freedom of its numerator and p of a joint test."""
        test = self.result.f_test(rows)
        return float(np.squeeze(test.fvalue)), float(test.df_num), float(test.pvalue)


def fit(values: np.ndarray, made: Design, participants: np.ndarray) -> Fit:
    """Fit one region.

    Parameters
    ----------
    values : ndarray, (scans,)
        No missing ones.
    made : Design
        For these scans.
    participants : ndarray, (scans,)
        Who was scanned.

    Returns
    -------
    Fit

    Raises
    ------
    NotFittedError
        If the values leave nothing to estimate an error from, or the mixed model fails or does not converge.

    Notes
    -----
    With one scan per participant: least squares with HC3 errors. Otherwise a linear mixed model with a random intercept per
    participant: the variances by restricted maximum likelihood, given which the coefficients are those of generalised least
    squares; its t and F tests have as many degrees of freedom as there are participants more than coefficients. That is right
    for what differs between participants and careful about what changes within them.

    References
    ----------
    MacKinnon & White, J Econometrics 29:305, 1985, doi:10.1016/0304-4076(85)90158-7.
    """
    plain = sm.OLS(values, made.matrix)
    if plain.fit().ssr <= 1e-20 * float(values @ values):
        raise NotFittedError("the values do not vary beyond the model")
    number = len(set(participants))
    if number == len(participants):
        return Fit(plain.fit(cov_type="HC3", use_t=True))
    if number <= made.matrix.shape[1]:
        raise NotFittedError("too few participants for the covariates")
    ratio = _variance_ratio(values / np.std(values), made, participants)
    together = participants[:, None] == participants[None, :]
    result = sm.GLS(values, made.matrix, sigma=np.eye(len(values)) + ratio * together).fit()
    result._results.df_resid_inference = number - made.matrix.shape[1]  # where statsmodels keeps it for clustered errors
    return Fit(result, ratio / (1 + ratio))


def _variance_ratio(values: np.ndarray, made: Design, participants: np.ndarray) -> float:
    """Variance between participants over that within them; ``values`` of unit spread, as the tolerances are absolute."""
    with warnings.catch_warnings():  # of a variance of 0, and of a search that another one follows
        warnings.simplefilter("ignore")
        try:
            result = sm.MixedLM(values, made.matrix, groups=participants).fit(reml=True, method=_SEARCHES)
        except (np.linalg.LinAlgError, ValueError) as error:
            raise NotFittedError(f"the mixed model failed: {' '.join(str(error).split()).rstrip('.').lower()}") from error
    ratio = float(np.asarray(result.cov_re_unscaled)[0, 0])
    if not result.converged or not np.isfinite(ratio):
        raise NotFittedError("the mixed model did not converge")
    if ratio > 1e8:
        raise NotFittedError("the mixed model is singular: the values of a participant do not vary beyond it")
    return ratio


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
