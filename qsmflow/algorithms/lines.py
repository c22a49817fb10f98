"""Weighted lines over the echoes of one voxel, for compiled loops."""

from __future__ import annotations

from numba import njit
from scipy.special import gammaincinv


def median_square(freedom: int) -> float:
    """Median of the summed squares of ``freedom`` standard normal numbers: that of chi-squared.

    ``scipy.stats`` has it too, but is slow to import, in every process of a run.

    Examples
    --------
    >>> round(median_square(1), 4), round(median_square(3), 4)
    (0.4549, 2.366)
    """
    return float(2 * gammaincinv(freedom / 2, 0.5))


@njit(cache=True)
def weighted_line(values, weight, times, intercept):
    """Weighted least-squares line: centre of time and of values (both 0 without an intercept), slope, spread of time.

    Where no slope can be told, slope and spread are 0.
    """
    total, time0, value0 = weight.sum(), 0.0, 0.0
    if total == 0:
        return 0.0, 0.0, 0.0, 0.0
    if intercept:
        for e in range(times.size):
            time0 += weight[e] * times[e] / total
            value0 += weight[e] * values[e] / total
    spread, moment = 0.0, 0.0
    for e in range(times.size):
        spread += weight[e] * (times[e] - time0) ** 2
        moment += weight[e] * (times[e] - time0) * (values[e] - value0)
    if spread <= 1e-12 * total * times[-1] ** 2:
        return time0, value0, 0.0, 0.0
    return time0, value0, moment / spread, spread
