"""Whole turns of the echoes relative to each other, for methods that unwrap in space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numba import njit

from qsmflow.algorithms.unwrap.growth import settle
from qsmflow.algorithms.unwrap.wrapping import TWO_PI

#: The turns tried for a disconnected part, nearest first, and the share of the greatest possible agreement that must be gained.
_TURNS = (0, 1, -1, 2, -2, 3, -3, 4, -4)
_GAIN = 0.1


def flat(volumes: np.ndarray, e: int) -> np.ndarray:
    """One echo, flat in C order, float32."""
    return np.ascontiguousarray(volumes[..., e], dtype=np.float32).reshape(-1)


def outwards(start: int, echoes: int) -> Iterator[tuple[int, int]]:
    """(echo, finished neighbour) pairs in time, from the echo after ``start`` to the last, then from that before it down.

    Examples
    --------
    >>> list(outwards(1, 4))
    [(2, 1), (3, 2), (0, 1)]
    """
    yield from ((e, e - 1) for e in range(start + 1, echoes))
    yield from ((e, e + 1) for e in range(start - 1, -1, -1))


def add_turns(result: np.ndarray, phase: np.ndarray, e: int, turns: np.ndarray, labels: np.ndarray) -> None:
    """Write one echo plus whole turns to ``result``, (X, Y, Z, E) in C order, 0 outside the parts."""
    _add_turns(result.reshape(-1, result.shape[3]), flat(phase, e), e, turns, labels)


@njit(cache=True)
def _add_turns(result, wave, e, turns, labels):
    for i in range(wave.size):
        result[i, e] = wave[i] + TWO_PI * turns[i] if labels[i] > 0 else 0.0


def unwrap_each(
    phase: np.ndarray,
    weight: np.ndarray,
    spatial: Callable[[int], np.ndarray],
    parts: tuple[np.ndarray, int],
    start: int,
    echo_times: Sequence[float],
) -> np.ndarray:
    """Unwrap every echo in space and settle the turns of every part of the mask.

    Parameters
    ----------
    phase, weight : ndarray
        Wrapped phase and its weights (magnitudes), (X, Y, Z, E).
    spatial : callable
        Gives the turns that unwrap an echo in space, flat, by its index; they are changed.
    parts : tuple
        What :func:`qsmflow.algorithms.unwrap.growth.label_parts` gives.
    start : int
        Index of the echo to which the others are aligned.
    echo_times : sequence of float
        Echo times, s.

    Returns
    -------
    ndarray
        Unwrapped phase, (X, Y, Z, E), rad, float32; 0 outside the parts.
    """
    labels, count = parts
    result = np.zeros(phase.shape, np.float32)
    turns = spatial(start)
    turns += agreeing_turns(phase, weight, turns, parts, start, echo_times)[labels]
    add_turns(result, phase, start, turns, labels)
    for e, near in outwards(start, phase.shape[3]):
        turns = spatial(e)
        settle(flat(phase, e), turns, labels, count, flat(result, near), echo_times[e] / echo_times[near])
        add_turns(result, phase, e, turns, labels)
    return result


def agreeing_turns(
    phase: np.ndarray,
    weight: np.ndarray,
    turns: np.ndarray,
    parts: tuple[np.ndarray, int],
    start: int,
    echo_times: Sequence[float],
) -> np.ndarray:
    """Turns to add to every part of an unwrapped echo so that its field explains the other echoes.

    Parameters
    ----------
    phase, weight : ndarray
        Wrapped phase and its weights (magnitudes), (X, Y, Z, E).
    turns : ndarray of int32
        Turns of the echo ``start``, flat.
    parts : tuple
        What :func:`qsmflow.algorithms.unwrap.growth.label_parts` gives.
    start : int
        Index of the unwrapped echo.
    echo_times : sequence of float
        Echo times, s.

    Returns
    -------
    ndarray of int32
        By part; entry 0 (outside) is 0.
    """
    labels, count = parts
    added = np.zeros(count + 1, np.int32)
    gain = np.zeros((len(_TURNS), count + 1))
    reach = np.zeros(count + 1)
    wave, size = flat(phase, start), flat(weight, start)
    for e in range(phase.shape[3]):
        if e == start:
            continue
        ratio = echo_times[e] / echo_times[start]
        total, possible = _agreement(flat(phase, e), wave, turns, flat(weight, e), size, labels, count, ratio)
        gain += [np.real(total * np.exp(-1j * TWO_PI * n * ratio)) for n in _TURNS]
        reach += possible
    best = gain[0].copy()
    for n, value in zip(_TURNS, gain, strict=True):
        better = value > best + _GAIN * reach
        added[better], best[better] = n, value[better]
    return added


@njit(cache=True)
def _agreement(wave, template, turns, size, template_size, labels, count, ratio):
    """Per part, the sum over its voxels of the phase factors by which an echo differs from the template's prediction."""
    total = np.zeros(count + 1, np.complex128)
    possible = np.zeros(count + 1)
    for i in range(labels.size):
        if labels[i] > 0:
            weight = float(size[i]) * float(template_size[i])
            angle = float(wave[i]) - (float(template[i]) + TWO_PI * turns[i]) * ratio
            total[labels[i]] += weight * complex(np.cos(angle), np.sin(angle))
            possible[labels[i]] += weight
    return total, possible
