"""The same people twice: intraclass correlation, Bland and Altman's limits, within-subject variation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution
from statsmodels.regression.linear_model import OLS

from qsmflow.errors import DatasetError
from qsmflow.group.prepare import Data

#: Fewest participants with two sessions.
FEWEST = 3


@dataclass(frozen=True)
class Agreement:
    """Intraclass correlations with their 95 % intervals: ``consistency`` is ICC(3,1), ``agreement`` ICC(2,1)."""

    consistency: tuple[float, float, float]
    agreement: tuple[float, float, float]
    within_sd: float


def intraclass(values: np.ndarray) -> Agreement:
    """Intraclass correlations of single measurements.

    Parameters
    ----------
    values : ndarray, (participants, sessions)
        Without gaps; two of each at least.

    Returns
    -------
    Agreement

    Notes
    -----
    From the mean squares of the two-way analysis of variance, P between participants, S between sessions and E the rest:
    ``ICC(3,1) = (P - E) / (P + (k - 1) E)``; ``ICC(2,1) = (P - E) / (P + (k - 1) E + k (S - E) / n)``, which counts a shift
    between sessions as disagreement. Intervals by the F distribution. ``within_sd`` is ``sqrt(E)``.

    References
    ----------
    Shrout & Fleiss, Psychol Bull 86:420, 1979, doi:10.1037/0033-2909.86.2.420.

    Examples
    --------
    The ratings of Shrout and Fleiss:

    >>> ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    >>> found = intraclass(np.array(ratings, float))
    >>> round(found.consistency[0], 2), round(found.agreement[0], 2)
    (0.71, 0.29)
    """
    n, k = values.shape
    between, sessions, rest = _mean_squares(values)
    within = float(np.sqrt(rest))
    if rest <= 0:
        return Agreement((1.0, 1.0, 1.0), (1.0, 1.0, 1.0) if sessions <= 0 else (np.nan,) * 3, within)
    degrees = (n - 1, (n - 1) * (k - 1))
    ratio = between / rest
    bounds = [ratio / f_distribution.ppf(0.975, *degrees), ratio * f_distribution.ppf(0.975, *degrees[::-1])]
    consistency = (ratio - 1) / (ratio + k - 1), *((bound - 1) / (bound + k - 1) for bound in bounds)
    icc = (between - rest) / (between + (k - 1) * rest + k * (sessions - rest) / n)
    return Agreement(
        tuple(map(float, consistency)), (float(icc), *_agreement_limits(icc, between, sessions, rest, n, k)), within
    )


def _agreement_limits(icc: float, between: float, sessions: float, rest: float, n: int, k: int) -> tuple[float, float]:
    """Limits of ICC(2,1) by Satterthwaite's degrees of freedom."""
    part = k * icc * sessions / rest + n * (1 + (k - 1) * icc) - k * icc
    degrees = (k - 1) * (n - 1) * part**2 / (
        (n - 1) * k**2 * icc**2 * (sessions / rest) ** 2 + (n * (1 + (k - 1) * icc) - k * icc) ** 2
    )  # fmt: skip
    upper = f_distribution.ppf(0.975, n - 1, degrees)
    lower = f_distribution.ppf(0.975, degrees, n - 1)
    spread = k * sessions + (k * n - k - n) * rest
    low = n * (between - upper * rest) / (upper * spread + n * between)
    high = n * (lower * between - rest) / (spread + n * lower * between)
    return float(low), float(high)


def _mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Mean squares between participants, between sessions, and of the rest."""
    n, k = values.shape
    participants, sessions = np.kron(np.eye(n), np.ones((k, 1))), np.tile(np.eye(k), (n, 1))
    y = values.ravel()
    total = float(np.sum((y - y.mean()) ** 2))
    without = {name: float(OLS(y, columns).fit().ssr) for name, columns in (("p", participants), ("s", sessions))}
    between, shift = total - without["p"], total - without["s"]
    return between / (n - 1), shift / (k - 1), (total - between - shift) / ((n - 1) * (k - 1))


def limits_of_agreement(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Bland and Altman's bias and limits of ``second - first``, each with its 95 % interval.

    References
    ----------
    Bland & Altman, Stat Methods Med Res 8:135, 1999, doi:10.1177/096228029900800204.

    Examples
    --------
    >>> found = limits_of_agreement(np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.5, 3.8]))
    >>> round(found["bias"], 3), round(found["loa_high"] - found["loa_low"], 3)
    (0.6, 0.679)
    """
    change = second - first
    n, bias, spread = len(change), float(change.mean()), float(change.std(ddof=1))
    quantile = float(t_distribution.ppf(0.975, n - 1))
    error, outer = spread / np.sqrt(n), spread * np.sqrt(1 / n + 1.96**2 / (2 * (n - 1)))
    row = {"bias": bias, "bias_low": bias - quantile * error, "bias_high": bias + quantile * error, "sd_change": spread}
    for name, place in (("loa_low", bias - 1.96 * spread), ("loa_high", bias + 1.96 * spread)):
        row |= {name: place, f"{name}_from": place - quantile * outer, f"{name}_to": place + quantile * outer}
    return {key: float(value) for key, value in row.items()}


def compare_sessions(data: Data, table: str) -> dict[str, pd.DataFrame]:
    """Compare the sessions of every participant, in the order of their labels.

    Parameters
    ----------
    data : Data
    table : str
        Where the sessions come from, for messages.

    Returns
    -------
    dict of DataFrame
        ``reliability`` one row per region, ``pairs`` one per participant and region: first and second session.

    Raises
    ------
    DatasetError
        If fewer than three participants have two sessions.

    Notes
    -----
    The first two sessions of everybody who has them. ``cov_percent`` is the within-subject standard deviation over the mean.
    """
    sizes = data.people["participant_id"].value_counts()
    twice = sorted(sizes.index[sizes >= 2])
    if len(twice) < FEWEST:
        raise DatasetError(
            f"{table}: {len(twice)} participants have two sessions with region tables; test-retest needs at least {FEWEST} "
            "(the labels ses- tell sessions apart; runs of one session are averaged)"
        )
    rows, pairs = [], []
    order = data.people.sort_values("session_id").groupby("participant_id").head(2)
    scans = {who: list(order.index[order["participant_id"] == who]) for who in twice}
    for region in data.values:
        found = [(who, *data.values[region].loc[scans[who]]) for who in twice]
        known = [(who, a, b) for who, a, b in found if np.isfinite(a) and np.isfinite(b)]
        label = {"region": region, "structure": data.names[region], "n": len(known)}
        if len(known) < FEWEST:
            rows.append({**label, "status": f"fewer than {FEWEST} participants have both values"})
            continue
        values = np.array([(a, b) for _, a, b in known])
        icc, mean = intraclass(values), float(values.mean())
        row = {**label, "status": "compared", "mean": mean}
        for name, (estimate, low, high) in (("icc_consistency", icc.consistency), ("icc_agreement", icc.agreement)):
            row |= {name: estimate, f"{name}_low": low, f"{name}_high": high}
        row |= {"within_sd": icc.within_sd, "cov_percent": 100 * icc.within_sd / abs(mean) if mean else np.nan}
        rows.append(row | {"repeatability": 1.96 * np.sqrt(2) * icc.within_sd, **limits_of_agreement(*values.T)})
        pairs += [{"participant_id": who, "region": region, "first": a, "second": b} for who, a, b in known]
    return {"reliability": pd.DataFrame(rows), "pairs": pd.DataFrame(pairs)}
