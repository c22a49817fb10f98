"""Unwrapping along the most reliable edges first, without a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from qsmflow.algorithms.unwrap.echoes import unwrap_each
from qsmflow.algorithms.unwrap.edges import strides
from qsmflow.algorithms.unwrap.growth import label_parts, settle
from qsmflow.algorithms.unwrap.wrapping import TWO_PI, wrapped

#: Steps to one of each pair of opposite neighbours among the 26.
_DIRECTIONS = np.array([(x, y, z) for x in (0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) > (0, 0, 0)])


def bestpath(phase: np.ndarray, mask: np.ndarray, *, echo_times: Sequence[float]) -> np.ndarray:
    """Unwrap every echo in space by joining voxels along the most reliable edges first, from the phase alone.

    Parameters
    ----------
    phase : ndarray
        Wrapped phase without an echo-independent offset, (X, Y, Z, E), rad.
    mask : ndarray of bool
        Where to unwrap, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s.

    Returns
    -------
    ndarray
        Unwrapped phase, (X, Y, Z, E), rad, float32; 0 outside the mask.

    Notes
    -----
    A voxel's reliability is ``1 / D``, where ``D^2`` sums the squares of the wrapped second differences
    ``wrap(phi_- - phi) - wrap(phi - phi_+)`` over the 13 directions to its 26 neighbours; a voxel that lacks one of them, at
    the mask's edge, has reliability 0. Edges between face neighbours are sorted by the sum of their voxels' reliability and
    taken in descending order. Each joins the groups of its two voxels, the smaller of which is shifted by the whole turns that
    make the edge continuous. Many groups grow at once; there is no seed, and no magnitude is used.

    The turns of every connected part and echo are settled as in :func:`qsmflow.algorithms.unwrap.romeo.romeo`, with all voxels
    weighted equally: those of the first echo by the field that best explains the other echoes, those of the others by the
    median of ``phi - phi_near TE / TE_near`` against the neighbouring echo. Echoes are unwrapped independently of each other,
    so that an offset that varies in space shifts them by common turns at most.

    Examples
    --------
    >>> field = np.broadcast_to(np.linspace(-600, 600, 40)[:, None, None], (40, 3, 3))
    >>> true = (field[..., None] * np.array([0.004, 0.012])).astype(np.float32)
    >>> wrapped_phase = true - 2 * np.pi * np.rint(true / (2 * np.pi))
    >>> bool(np.allclose(bestpath(wrapped_phase, np.ones(field.shape, bool), echo_times=(0.004, 0.012)), true, atol=1e-5))
    True

    References
    ----------
    Abdul-Rahman HS, Gdeisat MA, Burton DR, Lalor MJ, Lilley F, Moore CJ. Fast and robust three-dimensional best path phase
    unwrapping algorithm. Appl Opt 2007;46:6623-6635. doi:10.1364/AO.46.006623
    """
    mask = np.ascontiguousarray(mask, dtype=bool)
    labels, count = parts = label_parts(mask)

    def spatial(e: int) -> np.ndarray:
        volume = np.ascontiguousarray(phase[..., e], dtype=np.float32)
        reliable = _reliability(volume, mask, _DIRECTIONS).reshape(-1)
        edges = np.empty(3 * np.count_nonzero(mask), np.int32 if 3 * mask.size < 2**31 else np.int64)
        edges, costs = _edges(reliable, mask.reshape(-1), mask.shape, strides(mask.shape), edges)
        del reliable
        edges = edges[np.argsort(costs, kind="stable")]
        del costs
        turns = _join(volume.reshape(-1), edges, strides(mask.shape))
        turns[labels == 0] = 0
        settle(volume.reshape(-1), turns, labels, count)
        return turns

    return unwrap_each(phase, np.broadcast_to(np.float32(1), phase.shape), spatial, parts, 0, echo_times)


@njit(cache=True)
def _reliability(phase, mask, directions):
    """Inverse root of the sum of squared second differences; 0 where a neighbour is missing."""
    nx, ny, nz = phase.shape
    result = np.zeros(phase.shape, np.float32)
    for x in range(1, nx - 1):
        for y in range(1, ny - 1):
            for z in range(1, nz - 1):
                inside, total, here = mask[x, y, z], 0.0, float(phase[x, y, z])
                for k in range(13):
                    i, j, m = directions[k]
                    inside = inside and mask[x - i, y - j, z - m] and mask[x + i, y + j, z + m]
                    if not inside:
                        break
                    before = wrapped(float(phase[x - i, y - j, z - m]) - here)
                    after = wrapped(here - float(phase[x + i, y + j, z + m]))
                    total += (before - after) ** 2
                if inside:
                    result[x, y, z] = 1 / np.sqrt(max(total, 1e-12))
    return result


@njit(cache=True)
def _edges(reliability, mask, shape, steps, edges):
    """Edges inside the mask (three times the voxel plus the axis) and the negative sum of their voxels' reliability."""
    nx, ny, nz = shape
    size = 0
    costs = np.empty(edges.size, np.float32)
    for i in range(mask.size):
        if not mask[i]:
            continue
        room = (i // steps[0] < nx - 1, (i // nz) % ny < ny - 1, i % nz < nz - 1)
        for axis in range(3):
            if room[axis] and mask[i + steps[axis]]:
                edges[size] = 3 * i + axis
                costs[size] = -(reliability[i] + reliability[i + steps[axis]])
                size += 1
    return edges[:size], costs[:size]


@njit(cache=True)
def _root(parent, offset, voxel):
    """The voxel that stands for a voxel's group, and the turns relative to it; the path to it becomes one step."""
    root, total = voxel, 0
    while parent[root] != root:
        total += offset[root]
        root = parent[root]
    rest = total
    while parent[voxel] != root:
        above, step = parent[voxel], offset[voxel]
        parent[voxel], offset[voxel] = root, rest
        rest -= step
        voxel = above
    return root, total


@njit(cache=True)
def _join(phase, edges, steps):
    """Turns of every voxel relative to its group's root after joining along all edges in order."""
    parent = np.arange(phase.size).astype(edges.dtype)
    offset = np.zeros(phase.size, np.int32)
    size = np.ones(phase.size, np.int32)
    for edge in edges:
        i, j = edge // 3, edge // 3 + steps[edge % 3]
        (one, turns_i), (two, turns_j) = _root(parent, offset, i), _root(parent, offset, j)
        if one == two:
            continue
        lacking = int(np.rint((float(phase[i]) - float(phase[j])) / TWO_PI)) + turns_i - turns_j
        if size[one] < size[two]:
            one, two, lacking = two, one, -lacking
        parent[two], offset[two] = one, lacking
        size[one] += size[two]
    for i in range(phase.size):
        _root(parent, offset, i)  # after which every offset is relative to the root
    return offset
