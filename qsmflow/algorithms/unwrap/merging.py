"""Whole turns between regions that grew from different seeds, by the vote of all edges along their borders."""

from __future__ import annotations

import numpy as np
from numba import njit

from qsmflow.algorithms.unwrap.wrapping import TWO_PI


def merge_turns(
    phase: np.ndarray, turns: np.ndarray, bins: np.ndarray, region: np.ndarray, regions: int, steps: tuple[int, int, int]
) -> np.ndarray:
    """Turns to add to every region so that neighbours fit together.

    Parameters
    ----------
    phase, turns : ndarray
        Wrapped phase (rad, float32) and turns within the regions (int32), flat in C order.
    bins : ndarray of uint8
        What :func:`qsmflow.algorithms.unwrap.edges.edge_bins` gives.
    region : ndarray of int32
        Number of the region of every voxel, flat; 0 outside.
    regions : int
        Number of regions.
    steps : tuple of int
        What :func:`qsmflow.algorithms.unwrap.edges.strides` gives for the volume's shape.

    Returns
    -------
    ndarray of int32
        By region; entry 0 (outside) is 0.

    Notes
    -----
    Two regions differ by the mean, rounded, of the turns across the edges between them, weighted with ``255 - bin``. The pair
    with the greatest sum of weights is joined first.

    Examples
    --------
    >>> bins = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    >>> turns, region = np.array([0, 0, 3, 3], np.int32), np.array([1, 1, 2, 2], np.int32)
    >>> merge_turns(np.zeros(4, np.float32), turns, bins, region, 2, (1, 4, 4)).tolist()
    [0, 0, -3]
    """
    low, high, jump, weight = _border(phase, turns, bins, region, steps)
    pairs, index = np.unique(low.astype(np.int64) * (regions + 1) + high, return_inverse=True)
    total = np.bincount(index, weight, pairs.size)
    mean = np.bincount(index, weight * jump, pairs.size) / np.maximum(total, 1)
    group, added = np.arange(regions + 1), np.zeros(regions + 1, np.int32)
    for k in np.argsort(-total, kind="stable"):
        one, two = divmod(int(pairs[k]), regions + 1)
        if group[one] != group[two]:
            joined = group == group[two]
            added[joined] += int(np.rint(mean[k])) + added[one] - added[two]
            group[joined] = group[one]
    return added


@njit(cache=True)
def _border(phase, turns, bins, region, steps):
    """Edges between regions: the lower and the higher number, the turns that the higher lacks, the weight."""
    size = 0
    for axis in range(3):
        for i in range(phase.size):
            if bins[axis, i] > 0 and region[i] != region[i + steps[axis]]:
                size += 1
    low, high, jump = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
    weight = np.empty(size)
    k = 0
    for axis in range(3):
        for i in range(phase.size):
            if bins[axis, i] > 0 and region[i] != region[i + steps[axis]]:
                a, b = i, i + steps[axis]
                if region[a] > region[b]:
                    a, b = b, a
                low[k], high[k], weight[k] = region[a], region[b], 255 - bins[axis, i]
                jump[k] = int(np.rint((float(phase[a]) - float(phase[b])) / TWO_PI)) + turns[a] - turns[b]
                k += 1
    return low, high, jump, weight
