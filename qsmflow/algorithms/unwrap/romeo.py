"""ROMEO: path-following unwrapping of several echoes, its quality map, and phase residues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numba import njit

from qsmflow.algorithms.unwrap import edges
from qsmflow.algorithms.unwrap.echoes import add_turns, agreeing_turns, flat, outwards, unwrap_each
from qsmflow.algorithms.unwrap.growth import label_parts, regrow, unwrap_volume
from qsmflow.algorithms.unwrap.wrapping import TWO_PI, wrapped


def romeo(
    phase: np.ndarray,
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    mode: Literal["template", "individual"] = "template",
    weights: Literal["romeo2", "romeo3", "romeo4", "romeo6"] = "romeo3",
    template: int = 1,
    seeds: int = 1,
    uncertain: float = 0.5,
    addition: float = 0.0,
) -> np.ndarray:
    """Unwrap phase by growing a region along the most reliable edges (ROMEO).

    Parameters
    ----------
    phase : ndarray
        Wrapped phase without an echo-independent offset, (X, Y, Z, E), rad.
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where to unwrap, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s.
    mode : {"template", "individual"}
        Unwrap the template echo in space and the others by extrapolation in time from it ("template"), or every echo in space
        ("individual").
    weights : {"romeo2", "romeo3", "romeo4", "romeo6"}
        Edge weights: phase and magnitude coherence (romeo2), and gradient coherence between two echoes (romeo3), and phase
        linearity (romeo4), and two weights of the magnitude itself (romeo6).
    template : int
        Number of the echo that is unwrapped first and to which the others are aligned (1 is the first echo).
    seeds : int
        Greatest number of seeds in each connected part of the mask, 1 to 255. A new one is opened where all paths become
        unreliable; regions are merged by the vote of all edges between them, not by one.
    uncertain : float
        In template mode, voxels of the other echoes whose quality after unwrapping in time is not above this value (0 to 1) are
        unwrapped again in space, from those that are; 0 leaves them.
    addition : float
        Largest step that is expected to continue from one voxel to the next, rad (0 to pi); above 0, gradients of more than pi
        per voxel can be followed where they grow gradually.

    Returns
    -------
    ndarray
        Unwrapped phase, (X, Y, Z, E), rad, float32; 0 outside the mask.

    Raises
    ------
    ValueError
        If there is no echo with the number ``template``, or ``seeds``, ``uncertain`` or ``addition`` is out of its range.

    Notes
    -----
    An edge between two voxels has the weight ``W = prod(0.1 + 0.9 w_k)`` over the weights in use, quantised to 255 bins. From
    a seed, the voxel across the best edge of the queue is unwrapped next: ``2 pi round((phi_new - phi_old) / 2 pi)`` is
    subtracted, so that the result is the input plus whole turns in every voxel. With a single echo, phase linearity takes the
    place of gradient coherence. Only edges with both ends in the mask are used; nothing is special at its edge.

    With several seeds, a new one is opened where the best edge of the queue is worse than half way from the last seed's edges
    to the worst bin. Neighbouring regions then differ by the mean turns over all edges between them, weighted with
    ``255 - bin`` and rounded. In template mode, an echo is rated after unwrapping in time by :func:`quality_map` of the halved
    phase against the halved neighbour in time, in which a missing turn is a step of pi. Voxels of ``uncertain`` quality or less
    are grown again from the others' borders, which repairs single voxels but no region that is coherent in itself.

    Region growing leaves the turns of every disconnected part of the mask open. They are settled part by part: the template
    echo gets the turns nearest to a median of 0, or others (up to 4) if the field ``phi / TE`` that they imply agrees clearly
    better with the wrapped phase of the other echoes. Each other echo then follows ``phi TE_e / TE_ref`` of its neighbour,
    voxel by voxel ("template") or in the median of the part ("individual"). All echoes must therefore be free of an
    echo-independent offset.

    Examples
    --------
    A linear field, whose phase at the second echo spans several turns:

    >>> field = np.broadcast_to(np.linspace(-600, 600, 40)[:, None, None], (40, 3, 3))
    >>> true = (field[..., None] * np.array([0.004, 0.012])).astype(np.float32)
    >>> inside = np.ones(field.shape, bool)
    >>> unwrapped = romeo(true - 2 * np.pi * np.rint(true / (2 * np.pi)), np.ones_like(true), inside, echo_times=(0.004, 0.012))
    >>> bool(np.allclose(unwrapped, true, atol=1e-5))
    True

    References
    ----------
    Dymerska B, Eckstein K, Bachrata B, et al. Phase unwrapping with a rapid opensource minimum spanning tree algorithm (ROMEO).
    Magn Reson Med 2021;85:2294-2308. doi:10.1002/mrm.28563
    """
    echoes = phase.shape[3]
    if not 1 <= template <= echoes:
        raise ValueError(f"template echo {template} is not one of the {echoes} echoes")
    ranges = (("seeds", seeds, 1, 255), ("uncertain", uncertain, 0, 1), ("addition", addition, 0, math.pi))
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high:.6g}, not {value}")
    mask = np.ascontiguousarray(mask, dtype=bool)
    parts, start = label_parts(mask), template - 1

    def against(e: int) -> dict[str, object]:
        pair = 1 if e == 0 else e - 1
        return {"second": phase[..., pair], "ratio": echo_times[e] / echo_times[pair]} if echoes > 1 else {}

    def spatial(e: int) -> np.ndarray:
        options = {"weights": weights, "seeds": seeds, "addition": addition}
        return unwrap_volume(phase[..., e], magnitude[..., e], mask, parts, **options, **against(e))

    def certain(half: np.ndarray, second: np.ndarray, size: np.ndarray, ratio: float) -> np.ndarray:
        bins = edges.edge_bins(half, size, mask, weights="romeo3", second=second, ratio=ratio)
        return (edges.voxel_quality(bins, steps) > uncertain) & (labels > 0)

    if mode == "individual":
        return unwrap_each(phase, magnitude, spatial, parts, start, echo_times)
    labels, steps, result = parts[0], edges.strides(mask.shape), np.zeros(phase.shape, np.float32)
    turns = spatial(start)
    turns += agreeing_turns(phase, magnitude, turns, parts, start, echo_times)[labels]
    add_turns(result, phase, start, turns, labels)
    for e, near in outwards(start, echoes):
        ratio = echo_times[e] / echo_times[near]
        turns = np.rint((flat(result, near) * ratio - flat(phase, e)) / TWO_PI).astype(np.int32)
        add_turns(result, phase, e, turns, labels)
        if uncertain > 0:
            # Halved, a step of one turn between neighbours is a step of pi: the least coherent one.
            kept = certain(result[..., e] / 2, result[..., near] / 2, magnitude[..., e], ratio)
            bins = edges.edge_bins(phase[..., e], magnitude[..., e], mask, weights=weights, **against(e))
            add_turns(result, phase, e, regrow(flat(phase, e), turns, bins, kept, steps), labels)
            del bins  # not to be held while the next echo is rated
    return result


def quality_map(phase: np.ndarray, magnitude: np.ndarray, mask: np.ndarray, *, echo_times: Sequence[float]) -> np.ndarray:
    """Reliability of the phase in every voxel: the mean ROMEO weight of its edges.

    Parameters
    ----------
    phase : ndarray
        Wrapped phase, (X, Y, Z, E), rad.
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Voxels to consider, (X, Y, Z); all true for a map of the whole field of view.
    echo_times : sequence of float
        Echo times, ascending, s.

    Returns
    -------
    ndarray
        Quality from 0 (noise) to 1, (X, Y, Z), float32; 0 outside the mask.

    Notes
    -----
    The mean of ``prod(0.1 + 0.9 w_k)``, quantised to steps of 1/254, over the edges of the voxel, from the first echo with
    phase coherence, gradient coherence to the second echo (phase linearity where there is none) and magnitude coherence. It is
    taken over the edges that exist, up to six, so that voxels at the edge of the mask or of the field of view do not read low;
    a voxel without neighbours has 0.

    Examples
    --------
    >>> flat = np.ones((4, 4, 4, 2), np.float32)
    >>> float(quality_map(flat, flat, flat[..., 0] > 0, echo_times=(0.005, 0.010)).min())
    1.0

    References
    ----------
    Dymerska B, Eckstein K, Bachrata B, et al. Phase unwrapping with a rapid opensource minimum spanning tree algorithm (ROMEO).
    Magn Reson Med 2021;85:2294-2308. doi:10.1002/mrm.28563
    """
    pair = {"second": phase[..., 1], "ratio": echo_times[0] / echo_times[1]} if phase.shape[3] > 1 else {}
    bins = edges.edge_bins(phase[..., 0], magnitude[..., 0], mask, weights="romeo3", **pair)
    return edges.voxel_quality(bins, edges.strides(mask.shape)).reshape(mask.shape)


def residues(phase: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Phase residues: 2 x 2 loops around which the wrapped phase steps do not add up to 0.

    Parameters
    ----------
    phase : ndarray
        Wrapped phase of one echo, (X, Y, Z), rad.
    mask : ndarray of bool
        Only loops with all four voxels in the mask are looked at, (X, Y, Z).

    Returns
    -------
    ndarray of uint8
        Number of residues, 0 to 3, among the three loops that start at each voxel towards higher indices; its sum is the count.

    Notes
    -----
    Where a residue is, the unwrapped phase depends on the path. Residues form lines, which close or end outside the mask.

    Examples
    --------
    A phase vortex around the third axis has one residue in every slice:

    >>> x, y, _ = np.meshgrid(np.arange(4) - 1.5, np.arange(4) - 1.5, np.arange(3), indexing="ij")
    >>> int(residues(np.arctan2(y, x), np.ones(x.shape, bool)).sum())
    3
    """
    flat = np.ascontiguousarray(phase, dtype=np.float32).reshape(-1)
    return _residues(flat, np.ascontiguousarray(mask, dtype=bool).reshape(-1), phase.shape).reshape(phase.shape)


@njit(cache=True)
def _residues(phase, mask, shape):
    nx, ny, nz = shape
    strides = (ny * nz, nz, 1)
    count = np.zeros(phase.size, np.uint8)
    for x in range(nx):
        for y in range(ny):
            for z in range(nz):
                i = (x * ny + y) * nz + z
                room = (x + 1 < nx, y + 1 < ny, z + 1 < nz)
                for axis in range(3):
                    a, b = (axis + 1) % 3, (axis + 2) % 3
                    if not (room[a] and room[b]):
                        continue
                    corners = (i, i + strides[a], i + strides[a] + strides[b], i + strides[b])
                    loop, inside = 0.0, True
                    for k in range(4):
                        inside &= mask[corners[k]]
                        loop += wrapped(float(phase[corners[(k + 1) % 4]]) - float(phase[corners[k]]))
                    if inside and abs(loop) > 1:
                        count[i] += 1
    return count
