"""Quality-guided region growing over one volume, and the whole turns between its disconnected parts.

The edge queue is a set of 255 stacks, one per bin of edge weight, so that unwrapping costs O(voxels). Turns are counted as
integers: the unwrapped phase is the wrapped one plus whole turns, exactly. Everything here runs in one thread.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy import ndimage

from qsmflow.algorithms.unwrap import edges
from qsmflow.algorithms.unwrap.merging import merge_turns
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
    seeds: int = 1,
    addition: float = 0.0,
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
    seeds : int
        Greatest number of seeds in a connected part; regions that grew from several are merged along their borders.
    addition : float
        Largest step that is continued from the voxel before when the next one is unwrapped, rad.

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
    wave, steps = np.ascontiguousarray(phase, dtype=np.float32).reshape(-1), edges.strides(mask.shape)
    candidates, starts = _candidates(labels, bins, count, seeds)
    turns, region, regions = _grow(wave, bins, candidates, starts, _empty_stack(bins), steps, seeds, addition)
    if regions > count:
        turns += merge_turns(wave, turns, bins, region, regions, steps)[region]
    settle(wave, turns, labels, count)
    return turns


def regrow(phase: np.ndarray, turns: np.ndarray, bins: np.ndarray, kept: np.ndarray, steps: tuple[int, int, int]) -> np.ndarray:
    """Turns of one volume in which the voxels that were not ``kept`` are unwrapped in space from those that were.

    Parameters
    ----------
    phase, turns, kept : ndarray
        Wrapped phase (rad, float32), turns (int32, used up) and whether they are certain (bool), flat in C order.
    bins : ndarray of uint8
        What :func:`qsmflow.algorithms.unwrap.edges.edge_bins` gives for the phase.
    steps : tuple of int
        What :func:`qsmflow.algorithms.unwrap.edges.strides` gives for the volume's shape.

    Returns
    -------
    ndarray of int32
        Where nothing certain is connected, the turns as they were.

    Examples
    --------
    >>> phase, inside = np.zeros((4, 1, 1), np.float32), np.ones((4, 1, 1), bool)
    >>> bins = edges.edge_bins(phase, phase + 1, inside, weights="romeo2")
    >>> regrow(phase.ravel(), np.array([0, 0, 1, 1], np.int32), bins, np.array([1, 1, 0, 0], bool), (1, 1, 1)).tolist()
    [0, 0, 0, 0]
    """
    return _regrow(phase, turns, bins, kept, _empty_stack(bins), steps)


def _empty_stack(bins: np.ndarray) -> np.ndarray:
    """Room for every edge once."""
    return np.empty(np.count_nonzero(bins), np.int32 if bins.size < 2**31 else np.int64)


def _candidates(labels: np.ndarray, bins: np.ndarray, count: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels that may become seeds, by part and within it the best first, and where each part's begin."""
    if seeds == 1:
        return _best_seeds(labels, bins, count), np.arange(count + 1)
    inside = np.flatnonzero(labels)
    parts = labels[inside]
    order = np.lexsort((_seed_costs(inside, bins), parts))
    return inside[order], np.searchsorted(parts[order], np.arange(1, count + 2))


def settle(
    phase: np.ndarray, turns: np.ndarray, labels: np.ndarray, count: int, near: np.ndarray | None = None, ratio: float = 0.0
) -> None:
    """Take from the turns of every part those by which its median lies above ``ratio`` times ``near``; flat, in place."""
    _settle(phase, turns, labels, count, phase if near is None else near, np.float32(ratio))


@njit(cache=True)
def _settle(phase, turns, labels, count, near, ratio):
    histogram = np.zeros((count + 1, 2 * _LIMIT + 1), np.int32)
    for i in range(labels.size):
        if labels[i] > 0:
            above = int(np.rint((phase[i] + TWO_PI * turns[i] - near[i] * ratio) / TWO_PI))
            histogram[labels[i], min(max(above, -_LIMIT), _LIMIT) + _LIMIT] += 1
    medians = np.zeros(count + 1, np.int32)
    for part in range(1, count + 1):
        half, running = histogram[part].sum() / 2, 0
        for k in range(2 * _LIMIT + 1):
            running += histogram[part, k]
            if running >= half:
                medians[part] = k - _LIMIT
                break
    for i in range(labels.size):
        turns[i] -= medians[labels[i]]


@njit(cache=True)
def _seed_cost(voxel, bins):
    """Sum of the bins of the three forward edges (a missing edge counts as the least reliable)."""
    cost = 0
    for axis in range(3):
        cost += bins[axis, voxel] if bins[axis, voxel] > 0 else 255
    return cost


@njit(cache=True)
def _seed_costs(voxels, bins):
    costs = np.empty(voxels.size, np.int16)
    for k in range(voxels.size):
        costs[k] = _seed_cost(voxels[k], bins)
    return costs


@njit(cache=True)
def _best_seeds(labels, bins, count):
    """In every part the voxel with the most reliable three forward edges."""
    seeds = np.full(count, -1, np.int64)
    best = np.full(count, 3 * 255 + 1, np.int64)
    for i in range(labels.size):
        part = labels[i] - 1
        if part >= 0:
            cost = _seed_cost(i, bins)
            if cost < best[part]:
                best[part] = cost
                seeds[part] = i
    return seeds


@njit(cache=True)
def _first_free(bins):
    """For every bin, where its stack begins; one entry more for the end."""
    starts = np.zeros(257, np.int64)
    for axis in range(3):
        for i in range(bins.shape[1]):
            starts[int(bins[axis, i]) + 1] += 1
    starts[1] = 0
    return np.cumsum(starts)


@njit(cache=True)
def _push(voxel, bins, region, steps, stack, tops, lowest):
    """Queue the edges from a voxel to neighbours not yet visited; returns the lowest bin that may hold an edge."""
    for axis in range(3):
        step = steps[axis]
        forward = bins[axis, voxel]
        if forward > 0 and region[voxel + step] == 0:
            stack[tops[forward]] = 3 * voxel + axis
            tops[forward] += 1
            lowest = min(lowest, int(forward))
        if voxel >= step:
            backward = bins[axis, voxel - step]
            if backward > 0 and region[voxel - step] == 0:
                stack[tops[backward]] = 3 * (voxel - step) + axis
                tops[backward] += 1
                lowest = min(lowest, int(backward))
    return lowest


@njit(cache=True)
def _continued(phase, turns, bins, region, old, new, axis, addition):
    """Step from the voxel behind ``old`` to it, as far as it is known and at most ``addition``, rad."""
    behind = 2 * old - new
    first = min(behind, old)
    if first < 0 or bins[axis, first] == 0 or region[behind] != region[old]:
        return 0.0
    step = float(phase[old]) - float(phase[behind]) + TWO_PI * (turns[old] - turns[behind])
    return min(max(step, -addition), addition)


@njit(cache=True)
def _spread(phase, turns, bins, region, stack, starts, tops, steps, lowest, limit, addition):
    """Unwrap along the best edge of the queue until it is empty or its best bin exceeds ``limit``; returns that bin."""
    while True:
        while lowest < 256 and tops[lowest] == starts[lowest]:
            lowest += 1
        if lowest > limit:
            return lowest
        tops[lowest] -= 1
        edge = int(stack[tops[lowest]])
        axis = edge % 3
        old, new = edge // 3, edge // 3 + steps[axis]
        if region[old] > 0 and region[new] > 0:
            continue
        if region[new] > 0:
            old, new = new, old
        ahead = float(phase[old]) - float(phase[new])
        if addition > 0:
            ahead += _continued(phase, turns, bins, region, old, new, axis, addition)
        turns[new] = turns[old] + int(np.rint(ahead / TWO_PI))
        region[new] = region[old]
        lowest = _push(new, bins, region, steps, stack, tops, lowest)


@njit(cache=True)
def _grow(phase, bins, candidates, parts, stack, steps, seeds, addition):
    """Turns of every voxel, growing from each seed along the most reliable edge first; the seed's number for every voxel.

    In a part with more seeds to come, the next is opened where the best edge of the queue is worse than half way from the
    last seed's edges to the worst bin, as long as the new seed's edges are better.
    """
    starts = _first_free(bins)
    tops = starts[:256].copy()
    region = np.zeros(phase.size, np.int32)
    turns = np.zeros(phase.size, np.int32)
    regions = 0
    for part in range(parts.size - 1):
        opened, lowest, k = 0, 256, parts[part]
        while True:
            limit = 255
            while opened < seeds and k < parts[part + 1] and region[candidates[k]] > 0:
                k += 1
            if opened < seeds and k < parts[part + 1]:
                cost = _seed_cost(candidates[k], bins) / 3
                if opened == 0 or cost < lowest:
                    regions += 1
                    opened += 1
                    region[candidates[k]] = regions
                    lowest = _push(candidates[k], bins, region, steps, stack, tops, lowest)
                    if opened < seeds:
                        limit = int(256 - (256 - cost) / 2)
                else:
                    opened = seeds
            lowest = _spread(phase, turns, bins, region, stack, starts, tops, steps, lowest, limit, addition)
            if lowest == 256:
                break
    return turns, region, regions


@njit(cache=True)
def _regrow(phase, turns, bins, kept, stack, steps):
    starts = _first_free(bins)
    tops = starts[:256].copy()
    region = kept.astype(np.int32)
    lowest = 256
    for i in range(phase.size):
        if kept[i]:
            lowest = _push(i, bins, region, steps, stack, tops, lowest)
    _spread(phase, turns, bins, region, stack, starts, tops, steps, lowest, 255, 0.0)
    return turns
