"""Weighted lines over the echoes of one voxel, for compiled loops."""

from __future__ import annotations

from numba import njit


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
