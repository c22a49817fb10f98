"""Automatic choice of the weight of a penalty: L-curve of misfit against penalty, known noise, or even k-space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

_LOGGER = logging.getLogger("qsmflow")

#: Weights that are tried, as multiples of the given one, largest first.
_FACTORS = np.logspace(1, -1, 11)


def curvature(misfit: np.ndarray, penalty: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Curvature of the curve ``(log misfit, log penalty)`` over the logarithm of the weight; positive at the corner of an L.

    Examples
    --------
    A circle of radius 2 has the curvature 1/2:

    >>> angle = np.linspace(0, 1, 101)
    >>> curve = curvature(np.exp(2 * np.cos(angle)), np.exp(2 * np.sin(angle)), np.exp(angle))
    >>> round(float(curve[50]), 3)
    0.5
    """
    t = np.log(weights)
    x, y = (np.gradient(np.log(np.maximum(values, 1e-300)), t) for values in (misfit, penalty))
    bend = x * np.gradient(y, t) - y * np.gradient(x, t)
    return bend / np.maximum(x * x + y * y, 1e-12) ** 1.5


def largest_curvature(misfit: np.ndarray, penalty: np.ndarray, weights: np.ndarray) -> int:
    """Index of the corner of the L-curve; the two points at each end, whose curvature is one-sided, do not count."""
    return 2 + int(np.argmax(curvature(misfit, penalty, weights)[2:-2]))


def zero_curvature(misfit: np.ndarray, penalty: np.ndarray, weights: np.ndarray) -> int | None:
    """Index of the first point below the corner, in falling weights, whose curvature is not positive; None without one."""
    bend = curvature(misfit, penalty, weights)
    for index in range(largest_curvature(misfit, penalty, weights), len(weights) - 2):
        if bend[index] <= 0:
            return index
    return None


def straight_weight(weight: float, evaluate: Callable[[float], tuple[float, float]], name: str) -> float:
    """The weight near a given one where the L-curve has no curvature.

    Parameters
    ----------
    weight : float
        Centre of the search, which spans a tenth to ten times of it.
    evaluate : callable
        Gives misfit and penalty of the minimum at a weight; called for falling weights, so that it can go on from the last.
    name : str
        Who asks, for the log.

    Returns
    -------
    float
        The chosen weight; the given one, with a note, where the curve does not bend as it should.

    Notes
    -----
    With variational penalties the corner, where the curvature is largest, smooths too much; the inflection at a smaller
    weight is close to the best.

    References
    ----------
    Milovic et al., MRM 85:480, 2021, doi:10.1002/mrm.28435.
    """
    weights = weight * _FACTORS
    misfit, penalty = np.array([evaluate(float(w)) for w in weights]).T
    index = zero_curvature(misfit, penalty, weights)
    if index is None:
        _LOGGER.warning("%s: the L-curve has no inflection, the weight stays %.2g", name, weight)
        return weight
    _LOGGER.info("%s: weight %.2g chosen by the L-curve", name, weights[index])
    return float(weights[index])


def balanced_weight(weight: float, evaluate: Callable[[float], float], name: str) -> float:
    """The weight near a given one where a quantity that grows with it is zero.

    Parameters
    ----------
    weight : float
        Centre of the search, which spans a tenth to ten times of it.
    evaluate : callable
        Gives the quantity at a weight; called for falling weights, until it is no longer positive.
    name : str
        Who asks, for the log.

    Returns
    -------
    float
        The chosen weight, interpolated on a logarithmic scale; the given one, with a note, where the quantity does not
        change its sign.

    Examples
    --------
    >>> round(balanced_weight(1.0, lambda w: np.log(w / 3.0), "example"), 6)
    3.0
    """
    before = None
    for trial in weight * _FACTORS:
        value = evaluate(float(trial))
        if value <= 0:
            break
        before = float(trial), value
    if before is None or value > 0:
        _LOGGER.warning("%s: no weight within a tenth and ten times %.2g is balanced, it stays", name, weight)
        return weight
    share = before[1] / (before[1] - value)
    chosen = float(np.exp((1 - share) * np.log(before[0]) + share * np.log(trial)))
    _LOGGER.info("%s: weight %.2g chosen", name, chosen)
    return chosen


def zones(kernel: np.ndarray, square: np.ndarray, voxel_size: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Two zones of k-space at high frequencies, one near the cone of the dipole and one far from it.

    Parameters
    ----------
    kernel : ndarray
        Half spectrum of the dipole.
    square : ndarray
        Square of the spatial frequency, 1/mm^2.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.

    Returns
    -------
    tuple of ndarray of bool
        ``0.1 < D <= 0.2`` and ``0.22 < D <= 0.32``, within 0.65 to 0.95 of the smallest Nyquist frequency.

    References
    ----------
    Milovic et al., MRM 85:480, 2021, doi:10.1002/mrm.28435.
    """
    radius = np.sqrt(square) * 2 * max(voxel_size)
    band = (radius >= 0.65) & (radius <= 0.95)
    return band & (kernel > 0.1) & (kernel <= 0.2), band & (kernel > 0.22) & (kernel <= 0.32)
