"""How well a value tells two groups apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata


@dataclass(frozen=True)
class Roc:
    """Area under the curve with its DeLong interval, and the cut-off of the largest ``sensitivity + specificity - 1``."""

    auc: float
    error: float
    low: float
    high: float
    cutoff: float
    sensitivity: float
    specificity: float


def roc(positive: np.ndarray, negative: np.ndarray) -> Roc:
    """Receiver operating characteristic of a value that is higher in the positive group.

    Parameters
    ----------
    positive, negative : ndarray
        Values of the two groups, at least two each.

    Returns
    -------
    Roc
        ``auc`` below 0.5: the value is lower in the positive group; the cut-off then is for ``below``.

    Notes
    -----
    ``AUC = P(positive > negative)``, ties count half. Its variance is that of the placements of each group in the other
    (DeLong), from midranks. The interval is cut at 0 and 1; it has no width where the groups do not overlap, which says that
    the sample is too small to tell how well they are apart. The cut-off is chosen on the same data and therefore optimistic.

    References
    ----------
    DeLong, DeLong & Clarke-Pearson, Biometrics 44:837, 1988, doi:10.2307/2531595.

    Examples
    --------
    >>> roc(np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0, 3.5])).auc.__round__(4)
    0.8889
    """
    placements = _placements(positive, negative)
    auc = float(placements[0].mean())
    error = float(np.sqrt(sum(part.var(ddof=1) / part.size for part in placements)))
    half = float(norm.ppf(0.975)) * error
    sign = 1.0 if auc >= 0.5 else -1.0
    cuts = np.unique(np.concatenate([positive, negative]))
    hit = (sign * positive[:, None] >= sign * cuts).mean(axis=0)
    right = (sign * negative[:, None] < sign * cuts).mean(axis=0)
    best = int(np.argmax(hit + right))
    return Roc(auc, error, max(0.0, auc - half), min(1.0, auc + half), float(cuts[best]), float(hit[best]), float(right[best]))


def roc_curve(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    cuts = np.concatenate([[np.inf], np.unique(np.concatenate([positive, negative]))[::-1]])
    return (negative[:, None] >= cuts).mean(axis=0), (positive[:, None] >= cuts).mean(axis=0)


def _placements(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the other group that each value beats, in the direction of the positive group."""
    m, n = positive.size, negative.size
    ranks = rankdata(np.concatenate([positive, negative]))
    return (ranks[:m] - rankdata(positive)) / n, 1 - (ranks[m:] - rankdata(negative)) / m
