"""Whether an unwrapped phase can be right, and another method where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numba import njit

from qsmflow.algorithms.lines import weighted_line
from qsmflow.algorithms.unwrap.bestpath import bestpath
from qsmflow.algorithms.unwrap.laplacian import laplacian
from qsmflow.algorithms.unwrap.romeo import romeo
from qsmflow.algorithms.unwrap.wrapping import wrap, wrapped

#: Jumps between neighbours that a good path makes for every residue, in pure noise.
_PER_RESIDUE = 1.25


def consistency(
    phase: np.ndarray,
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    voxel_size: Sequence[float],
    walls: float = 0.25,
    bent: float = 0.05,
    fallback: Literal["best", "romeo", "bestpath", "laplacian"] = "best",
) -> tuple[np.ndarray, float, float, str]:
    """Check unwrapped phase for walls of jumps and for echoes that contradict each other; unwrap it again if it fails.

    Parameters
    ----------
    phase : ndarray
        Unwrapped phase, (X, Y, Z, E), rad.
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where the phase was unwrapped, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s.
    voxel_size : sequence of float
        Voxel size, mm.
    walls : float
        Largest area of jumps that is accepted in any echo, in units of the mask's cross-section (see Notes).
    bent : float
        Largest share of voxels that is accepted in which an echo lies more than pi off the line through the echoes.
    fallback : {"best", "romeo", "bestpath", "laplacian"}
        The method that unwraps again where the check fails (ROMEO echo by echo), "best" tries both romeo and bestpath. The
        result that does best in the same check is taken, be it the first one.

    Returns
    -------
    phase : ndarray
        The phase as it was, or unwrapped by the other method, (X, Y, Z, E), rad, float32; 0 outside the mask.
    before, after : float
        Score of the phase that was given, and of the one returned: the larger of both measures relative to what is accepted.
        Up to 1 the check is passed.
    used : str
        The method that replaced the phase, or nothing.

    Notes
    -----
    Steps of more than pi between neighbours are unavoidable between phase residues; in pure noise a good path makes up to five
    for every four. Their number beyond that, divided by ``N^(2/3)`` for a mask of ``N`` voxels, is the area of walls between
    regions that are whole turns apart (:func:`wall_area`). An echo that is off the line by more than pi has wrong turns, or
    does not follow a line (:func:`bent_share`). Voxels count with the square of their magnitude, up to its median, so that air
    and dark rims do not matter. A Laplacian result has no jumps and is smooth where the phase is not: it passes without being
    right everywhere.

    Examples
    --------
    Wrapped phase fails and is unwrapped:

    >>> true = np.broadcast_to(np.linspace(-1500, 1500, 60)[:, None, None], (60, 4, 4))[..., None] * np.array([0.004, 0.008])
    >>> inside, magnitude = np.ones((60, 4, 4), bool), np.ones(true.shape, np.float32)
    >>> context = {"echo_times": (0.004, 0.008), "voxel_size": (1, 1, 1)}
    >>> unwrapped, before, after, used = consistency(wrap(true).astype(np.float32), magnitude, inside, **context)
    >>> before > 1, after, used, bool(np.allclose(unwrapped, true, atol=1e-5))
    (True, 0.0, 'romeo', True)

    References
    ----------
    Abdul-Rahman HS, Gdeisat MA, Burton DR, Lalor MJ, Lilley F, Moore CJ. Fast and robust three-dimensional best path phase
    unwrapping algorithm. Appl Opt 2007;46:6623-6635. doi:10.1364/AO.46.006623
    Dymerska B, Eckstein K, Bachrata B, et al. Phase unwrapping with a rapid opensource minimum spanning tree algorithm (ROMEO).
    Magn Reson Med 2021;85:2294-2308. doi:10.1002/mrm.28563
    """
    mask = np.ascontiguousarray(mask, dtype=bool)

    def score(unwrapped: np.ndarray) -> float:
        area = max(wall_area(unwrapped[..., e], magnitude[..., e], mask) for e in range(phase.shape[3]))
        share = bent_share(unwrapped, magnitude, mask, echo_times=echo_times)
        return max(area / walls, share / bent)

    methods = {
        "romeo": lambda again: romeo(again, magnitude, mask, echo_times=echo_times, mode="individual"),
        "bestpath": lambda again: bestpath(again, mask, echo_times=echo_times),
        "laplacian": lambda again: laplacian(again, mask, voxel_size=voxel_size),
    }
    given = np.where(mask[..., None], phase, 0).astype(np.float32, copy=False)
    before = score(given)
    best = given, before, ""
    if before > 1:
        for name in ("romeo", "bestpath") if fallback == "best" else (fallback,):
            other = methods[name](wrap(given))
            value = score(other)
            if value < best[1]:
                best = other, value, name
    return best[0], before, *best[1:]


def wall_area(phase: np.ndarray, magnitude: np.ndarray, mask: np.ndarray) -> float:
    """Area of jumps in unwrapped phase beyond what its residues make unavoidable, relative to the mask's cross-section.

    Parameters
    ----------
    phase : ndarray
        Unwrapped phase of one echo, (X, Y, Z), rad.
    magnitude : ndarray
        Its magnitude, (X, Y, Z), arbitrary units.
    mask : ndarray of bool
        Where the phase was unwrapped, (X, Y, Z).

    Returns
    -------
    float
        0 for smooth phase; about 1 for one wall through the middle. An empty mask has 0.

    Notes
    -----
    ``(jumps - 1.25 residues) / N^(2/3)``, at least 0, with the number of face neighbours more than pi apart and of 2 x 2 loops
    with a residue; both count with ``min(1, m^2 / median(m)^2)``, where ``m`` is the smallest magnitude that takes part.

    Examples
    --------
    >>> phase = np.zeros((8, 8, 8), np.float32)
    >>> phase[4:] = 2 * np.pi
    >>> round(wall_area(phase, np.ones_like(phase), phase > -1), 6)
    1.0
    """
    if not mask.any():
        return 0.0
    volumes = (np.ascontiguousarray(volume, dtype=np.float32) for volume in (phase, _weight(magnitude, mask)))
    jumps, residues = _count(*volumes, np.ascontiguousarray(mask, dtype=bool))
    return max(0.0, jumps - _PER_RESIDUE * residues) / float(np.count_nonzero(mask)) ** (2 / 3)


def bent_share(phase: np.ndarray, magnitude: np.ndarray, mask: np.ndarray, *, echo_times: Sequence[float]) -> float:
    """Share of voxels in which an echo lies more than pi off the line through all echoes.

    Parameters
    ----------
    phase : ndarray
        Unwrapped phase, (X, Y, Z, E), rad.
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where the phase was unwrapped, (X, Y, Z).
    echo_times : sequence of float
        Echo times, s.

    Returns
    -------
    float
        From 0 to 1; voxels count as in :func:`wall_area`, by the first echo. Fewer than three echoes always lie on a line.

    Notes
    -----
    The line has an intercept and is fitted with the weights ``m^2``.

    Examples
    --------
    >>> phase = np.broadcast_to([0.1, 0.2, 0.3, 0.4], (2, 2, 2, 4)).copy()
    >>> phase[0, 0, 0, 1] += 2 * np.pi
    >>> bent_share(phase, np.ones_like(phase), phase[..., 0] > 0, echo_times=(0.005, 0.010, 0.015, 0.020))
    0.125
    """
    if len(echo_times) < 3 or not mask.any():
        return 0.0
    angles, signal = (np.ascontiguousarray(volumes[mask], dtype=np.float32) for volumes in (phase, magnitude))
    weight = _weight(magnitude[..., 0], mask)[mask].astype(np.float64)
    total = weight.sum()
    off = _off_the_line(angles, signal, np.asarray(echo_times, dtype=np.float64))
    return float(weight[off].sum() / total) if total > 0 else 0.0


def _weight(magnitude: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What a voxel counts: the squared magnitude relative to that of the median, at most 1."""
    middle = max(float(np.median(magnitude[mask])), float(np.finfo(np.float32).tiny))
    return np.minimum(1, np.asarray(magnitude, np.float32) / np.float32(middle)) ** 2


@njit(cache=True)
def _count(phase, weight, mask):
    """Weighted number of jumps between face neighbours and of residues."""
    nx, ny, nz = phase.shape
    jumps, residues = 0.0, 0.0
    for x in range(nx):
        for y in range(ny):
            for z in range(nz):
                if not mask[x, y, z]:
                    continue
                here, own = float(phase[x, y, z]), weight[x, y, z]
                for axis in range(3):
                    i, j, k = x + (axis == 0), y + (axis == 1), z + (axis == 2)
                    if i == nx or j == ny or k == nz or not mask[i, j, k]:
                        continue
                    if abs(float(phase[i, j, k]) - here) > np.pi:
                        jumps += min(own, weight[i, j, k])
                    # The loop through this edge and the next axis.
                    other = (axis + 1) % 3
                    a, b, c = (other == 0), (other == 1), (other == 2)
                    if i + a == nx or j + b == ny or k + c == nz:
                        continue
                    if not (mask[i + a, j + b, k + c] and mask[x + a, y + b, z + c]):
                        continue
                    first, far, last = (
                        float(phase[i, j, k]),
                        float(phase[i + a, j + b, k + c]),
                        float(phase[x + a, y + b, z + c]),
                    )
                    loop = wrapped(first - here) + wrapped(far - first) + wrapped(last - far) + wrapped(here - last)
                    if abs(loop) > 1:
                        least = min(own, weight[i, j, k], weight[i + a, j + b, k + c], weight[x + a, y + b, z + c])
                        residues += least
    return jumps, residues


@njit(cache=True)
def _off_the_line(phase, magnitude, times):
    """Whether any echo of a voxel is more than pi off the weighted line; False where there is no line."""
    off = np.zeros(len(phase), np.bool_)
    weight = np.zeros(times.size)
    for v in range(len(phase)):
        for e in range(times.size):
            weight[e] = float(magnitude[v, e]) ** 2
        time0, phase0, slope, spread = weighted_line(phase[v], weight, times, True)
        if spread == 0:
            continue
        for e in range(times.size):
            if abs(phase[v, e] - phase0 - slope * (times[e] - time0)) > np.pi:
                off[v] = True
    return off
