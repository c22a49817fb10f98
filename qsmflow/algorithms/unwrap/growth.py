"""Quality-guided region growing over one volume, and the whole turns between its disconnected parts.

The edge queue is a set of 255 stacks, one per bin of edge weight, so that unwrapping costs O(voxels). Turns are counted as
integers: the unwrapped phase is the wrapped one plus whole turns, exactly.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy import ndimage

from qsmflow.algorithms.unwrap import edges
from qsmflow.algorithms.unwrap.wrapping import TWO_PI

#: Turns are counted up to this number when medians are taken; a field that needs more does not occur.
_LIMIT = 64


def label_parts(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Parts of the mask that are connected by faces: labels (flat int32, 0 outside) and their number."""
    labels, count = ndimage.label(mask)
    return labels.reshape(-1), int(count)


def unwrap_volume(
    phase: np.ndarray,
    magnitude: np.ndarray,
    mask: np.ndarray,
    parts: tuple[np.ndarray, int],
    *,
    weights: str,
    second: np.ndarray | None = None,
    ratio: float = 1.0,
) -> np.ndarray:
    """Whole turns that unwrap one volume in space, centred on 0 in every connected part.

    Parameters
    ----------
    phase : ndarray
        Wrapped phase, (X, Y, Z), rad.
    magnitude : ndarray
        Magnitude, (X, Y, Z), arbitrary units.
    mask : ndarray of bool
        Where to unwrap, (X, Y, Z).
    parts : tuple
        What :func:`label_parts` gives for the mask.
    weights : str
        Name of a set of weights in :data:`qsmflow.algorithms.unwrap.edges.SETS`.
    second : ndarray, optional
        Phase of a second echo for gradient coherence, (X, Y, Z), rad.
    ratio : float
        Echo time of ``phase`` over that of ``second``.

    Returns
    -------
    ndarray of int32
        Turns to add to the phase, flat in C order; 0 outside the mask. The median of the unwrapped phase of every part is
        within half a turn of 0.

    Examples
    --------
    >>> ramp = np.broadcast_to(np.arange(-6.0, 7.0)[:, None, None], (13, 2, 2)).astype(np.float32)
    >>> inside = np.ones(ramp.shape, bool)
    >>> wrapped = ramp - 2 * np.pi * np.rint(ramp / (2 * np.pi))
    >>> turns = unwrap_volume(wrapped, inside.astype(np.float32), inside, label_parts(inside), weights="romeo2")
    >>> bool(np.allclose(wrapped + 2 * np.pi * turns.reshape(ramp.shape), ramp, atol=1e-5))
    True
    """
    labels, count = parts
    bins = edges.edge_bins(phase, magnitude, mask, weights=weights, second=second, ratio=ratio)
    wave = np.ascontiguousarray(phase, dtype=np.float32).reshape(-1)
    stack = np.empty(np.count_nonzero(bins), np.int32 if bins.size < 2**31 else np.int64)
    turns = _grow(wave, bins, _best_seeds(labels, bins, count), stack, edges.strides(mask.shape))
    return turns - shifts(wave, turns, labels, count)


def shifts(
    phase: np.ndarray, turns: np.ndarray, labels: np.ndarray, count: int, predicted: np.ndarray | float = 0.0
) -> np.ndarray:
    """For every voxel, the turns by which its part lies above the prediction: the part's median (flat arrays)."""
    high = np.rint((phase + TWO_PI * turns - predicted) / TWO_PI).astype(np.int32)
    return _part_medians(high, labels, count)[labels]


@njit(cache=True)
def _part_medians(values, labels, count):
    """Median of the integers in every part; entry 0 (outside) is 0."""
    histogram = np.zeros((count + 1, 2 * _LIMIT + 1), np.int32)
    for i in range(labels.size):
        if labels[i] > 0:
            histogram[labels[i], min(max(values[i], -_LIMIT), _LIMIT) + _LIMIT] += 1
    medians = np.zeros(count + 1, np.int32)
    for part in range(1, count + 1):
        half, running = histogram[part].sum() / 2, 0
        for k in range(2 * _LIMIT + 1):
            running += histogram[part, k]
            if running >= half:
                medians[part] = k - _LIMIT
                break
    return medians


@njit(cache=True)
def _best_seeds(labels, bins, count):
    """In every part the voxel with the most reliable three forward edges (a missing edge counts as the least reliable)."""
    seeds = np.full(count, -1, np.int64)
    best = np.full(count, 3 * 255 + 1, np.int64)
    for i in range(labels.size):
        part = labels[i] - 1
        if part >= 0:
            cost = 0
            for axis in range(3):
                cost += bins[axis, i] if bins[axis, i] > 0 else 255
            if cost < best[part]:
                best[part] = cost
                seeds[part] = i
    return seeds


@njit(cache=True)
def _push(voxel, bins, visited, steps, stack, tops, lowest):
    """Queue the edges from a voxel to neighbours not yet visited; returns the lowest bin that may hold an edge."""
    for axis in range(3):
        step = steps[axis]
        forward = bins[axis, voxel]
        if forward > 0 and not visited[voxel + step]:
            stack[tops[forward]] = 3 * voxel + axis
            tops[forward] += 1
            lowest = min(lowest, int(forward))
        if voxel >= step:
            backward = bins[axis, voxel - step]
            if backward > 0 and not visited[voxel - step]:
                stack[tops[backward]] = 3 * (voxel - step) + axis
                tops[backward] += 1
                lowest = min(lowest, int(backward))
    return lowest


@njit(cache=True)
def _grow(phase, bins, seeds, stack, steps):
    """Turns of every voxel, growing from each seed along the most reliable edge first."""
    starts = np.zeros(257, np.int64)
    for axis in range(3):
        for i in range(phase.size):
            starts[int(bins[axis, i]) + 1] += 1
    starts[1] = 0
    starts = np.cumsum(starts)
    tops = starts[:256].copy()
    visited = np.zeros(phase.size, np.bool_)
    turns = np.zeros(phase.size, np.int32)
    for seed in seeds:
        visited[seed] = True
        lowest = _push(seed, bins, visited, steps, stack, tops, 256)
        while lowest < 256:
            if tops[lowest] == starts[lowest]:
                lowest += 1
                continue
            tops[lowest] -= 1
            edge = int(stack[tops[lowest]])
            old, new = edge // 3, edge // 3 + steps[edge % 3]
            if visited[old] and visited[new]:
                continue
            if visited[new]:
                old, new = new, old
            turns[new] = turns[old] + int(np.rint((float(phase[old]) - float(phase[new])) / TWO_PI))
            visited[new] = True
            lowest = _push(new, bins, visited, steps, stack, tops, lowest)
    return turns
