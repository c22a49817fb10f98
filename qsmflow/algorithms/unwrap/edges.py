"""ROMEO's edge weights: how far the phase step between two neighbouring voxels can be trusted.

Volumes are flattened in C order. An edge has the voxel it starts from and an axis; its other end is one voxel further along
that axis. Edges whose two ends are not both in the mask do not exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import njit

from qsmflow.algorithms.unwrap.wrapping import wrapped

#: The named sets of weights (1 phase coherence, 2 gradient coherence, 3 phase linearity, 4 magnitude coherence, 5 weight of the
#: smaller magnitude, 6 weight of the larger magnitude).
SETS = {"romeo2": (1, 4), "romeo3": (1, 2, 4), "romeo4": (1, 2, 3, 4), "romeo6": (1, 2, 3, 4, 5, 6)}


def active_weights(name: str, paired: bool) -> tuple[bool, ...]:
    """Which of the six weights a named set uses.

    Gradient coherence (2) compares two echoes; where there is only one (``paired`` false), phase linearity (3) replaces it.

    Examples
    --------
    >>> active_weights("romeo3", paired=False)
    (True, False, True, True, False, False)
    """
    used = {3 if k == 2 and not paired else k for k in SETS[name]}
    return tuple(k in used for k in range(1, 7))


def strides(shape: Sequence[int]) -> tuple[int, int, int]:
    """Steps to the next voxel along each axis of a volume flattened in C order."""
    return shape[1] * shape[2], shape[2], 1


def edge_bins(
    phase: np.ndarray,
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    weights: str,
    second: np.ndarray | None = None,
    ratio: float = 1.0,
) -> np.ndarray:
    """Weights of all edges of a volume, quantised; parameters as in :func:`qsmflow.algorithms.unwrap.growth.unwrap_volume`.

    Returns
    -------
    ndarray of uint8
        Bins from 1 (most reliable) to 255, 0 where there is no edge; (3, voxels), by axis and by the voxel an edge starts from.

    Examples
    --------
    >>> flat = np.ones((2, 1, 1), np.float32)
    >>> edge_bins(flat, flat, flat > 0, weights="romeo2").tolist()
    [[1, 0], [0, 0], [0, 0]]
    """
    volumes = (phase, phase if second is None else second, magnitude)
    flat = [np.ascontiguousarray(volume, dtype=np.float32).reshape(-1) for volume in volumes]
    inside = np.ascontiguousarray(mask, dtype=bool).reshape(-1)
    # Weights 5 and 6 call the 95 % quantile of the magnitude large: inside the mask, whatever surrounds it.
    large = float(np.quantile(flat[2][inside], 0.95)) if inside.any() else 0.0
    return _edge_bins(*flat, inside, mask.shape, float(ratio), large, active_weights(weights, paired=second is not None))


@njit(cache=True)
def _weight(phase, second, magnitude, ratio, large, used, before, i, j, after):
    """Product of the weights in use of the edge i-j; ``before`` and ``after`` continue it (-1: outside the volume)."""
    step = wrapped(float(phase[i]) - float(phase[j]))
    weight = 1.0
    if used[0]:
        weight *= 0.1 + 0.9 * (1 - abs(step) / math.pi)
    if used[1]:
        weight *= 0.1 + 0.9 * max(0.0, 1 - abs(step - ratio * wrapped(float(second[i]) - float(second[j]))))
    if used[2]:
        linearity = 0.9
        if before >= 0 and after >= 0:
            first = wrapped(float(phase[before]) - 2 * float(phase[i]) + float(phase[j]))
            last = wrapped(float(phase[i]) - 2 * float(phase[j]) + float(phase[after]))
            linearity = max(0.0, 1 - abs(first) / 2) * max(0.0, 1 - abs(last) / 2)
        weight *= 0.1 + 0.9 * linearity
    small, big = min(magnitude[i], magnitude[j]), max(magnitude[i], magnitude[j])
    if used[3]:
        weight *= 0.1 + 0.9 * ((small / big) ** 2 if big > 0 else 0.0)
    if used[4]:
        weight *= 0.1 + 0.9 * (0.5 + 0.5 * min(1.0, small / (0.5 * large) if large > 0 else 0.0))
    if used[5]:
        weight *= 0.1 + 0.9 * (0.5 + 0.5 * min(1.0, 0.5 * large / big if big > 0 else 1.0))
    # A comparison with NaN is false: an edge at a voxel without a number is the worst, not undefined.
    return weight if weight >= 0 else 0.0


@njit(cache=True)
def _edge_bins(phase, second, magnitude, mask, shape, ratio, large, used):
    nx, ny, nz = shape
    steps = (ny * nz, nz, 1)
    bins = np.zeros((3, nx * ny * nz), np.uint8)
    for x in range(nx):
        for y in range(ny):
            for z in range(nz):
                i = (x * ny + y) * nz + z
                if not mask[i]:
                    continue
                for axis in range(3):
                    place, length = (x, y, z)[axis], (nx, ny, nz)[axis]
                    stride = steps[axis]
                    if place + 1 == length or not mask[i + stride]:
                        continue
                    before = i - stride if place > 0 else -1
                    after = i + 2 * stride if place + 2 < length else -1
                    weight = _weight(phase, second, magnitude, ratio, large, used, before, i, i + stride, after)
                    bins[axis, i] = max(1, np.int64(np.rint((1 - weight) * 255)))
    return bins


@njit(cache=True)
def voxel_quality(bins, steps):
    """Mean weight of the edges of every voxel, float32 from 0 (bin 255) to 1 (bin 1); 0 for a voxel without an edge."""
    quality = np.zeros(bins.shape[1], np.float32)
    count = np.zeros(bins.shape[1], np.uint8)
    for axis in range(3):
        for i in range(bins.shape[1]):
            if bins[axis, i] > 0:
                for end in (i, i + steps[axis]):
                    quality[end] += (255 - bins[axis, i]) / 254
                    count[end] += 1
    for i in range(quality.size):
        if count[i] > 0:
            quality[i] /= count[i]
    return quality
