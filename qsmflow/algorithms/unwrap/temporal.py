"""Unwrapping along the echoes, voxel by voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from qsmflow.algorithms.unwrap.wrapping import TWO_PI, wrapped


def temporal(phase: np.ndarray, mask: np.ndarray, *, echo_times: Sequence[float]) -> np.ndarray:
    """Unwrap phase along the echoes, each voxel on its own (Itoh).

    Parameters
    ----------
    phase : ndarray
        Wrapped phase, (X, Y, Z, E), rad.
    mask : ndarray of bool
        Where to unwrap, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s; they need not be equally spaced.

    Returns
    -------
    ndarray
        Unwrapped phase, (X, Y, Z, E), rad, float32; 0 outside the mask.

    Raises
    ------
    ValueError
        If there are fewer than two echoes.

    Notes
    -----
    The slope starts from the two neighbouring echoes with the shortest spacing ``dTE`` and must be less than ``pi / dTE`` there
    (100 Hz at 5 ms); beyond it the field is wrong by a multiple of ``1 / dTE`` Hz. The other echoes follow outwards: each is
    predicted by the line through the echoes unwrapped so far (least squares) and gets the whole turns nearest to it. Turns
    common to all echoes are chosen so that the line comes within half a turn of 0 at echo time 0. Voxels know nothing of each
    other, so that errors are isolated and nothing is special at the mask's edge.

    Examples
    --------
    >>> times = np.array([0.004, 0.009, 0.016, 0.024])
    >>> true = np.broadcast_to(500 * times, (2, 2, 2, 4)).astype(np.float32)
    >>> unwrapped = temporal(true - 2 * np.pi * np.rint(true / (2 * np.pi)), np.ones((2, 2, 2), bool), echo_times=times)
    >>> bool(np.allclose(unwrapped, true, atol=1e-5))
    True

    References
    ----------
    Itoh K. Analysis of the phase unwrapping algorithm. Appl Opt 1982;21:2470. doi:10.1364/AO.21.002470
    """
    if phase.shape[3] < 2:
        raise ValueError("temporal unwrapping needs at least two echoes")
    mask = np.asarray(mask, dtype=bool)
    times = np.asarray(echo_times, dtype=np.float64)
    result = np.zeros(phase.shape, np.float32)
    result[mask] = _unwrap(np.ascontiguousarray(phase[mask], dtype=np.float32), times, _order(times))
    return result


def _order(times: np.ndarray) -> np.ndarray:
    """Echoes in the order of unwrapping: the closest pair, then always the nearer neighbour of those already done."""
    low = int(np.argmin(np.diff(times)))
    high = low + 1
    order = [low, high]
    while len(order) < len(times):
        down = times[low] - times[low - 1] if low > 0 else np.inf
        up = times[high + 1] - times[high] if high + 1 < len(times) else np.inf
        if up <= down:
            high += 1
            order.append(high)
        else:
            low -= 1
            order.append(low)
    return np.array(order)


@njit(cache=True)
def _unwrap(phase, times, order):
    result = np.empty(phase.shape, np.float32)
    line = np.empty(phase.shape[1])
    for v in range(phase.shape[0]):
        a, b = order[0], order[1]
        line[a] = phase[v, a]
        line[b] = line[a] + wrapped(float(phase[v, b]) - float(phase[v, a]))
        for k in range(2, order.size + 1):
            # Line through the k echoes done so far, in the order of unwrapping.
            time0, phase0, spread, moment = 0.0, 0.0, 0.0, 0.0
            for e in order[:k]:
                time0 += times[e] / k
                phase0 += line[e] / k
            for e in order[:k]:
                spread += (times[e] - time0) ** 2
                moment += (times[e] - time0) * (line[e] - phase0)
            slope = moment / spread
            if k < order.size:
                e = order[k]
                predicted = phase0 + slope * (times[e] - time0)
                line[e] = phase[v, e] + TWO_PI * np.rint((predicted - phase[v, e]) / TWO_PI)
        common = TWO_PI * np.rint((phase0 - slope * time0) / TWO_PI)
        for e in range(times.size):
            result[v, e] = line[e] - common
    return result
