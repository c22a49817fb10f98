"""Wrapping of phase into one turn."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

TWO_PI = 2 * math.pi


def wrap(phase: np.ndarray) -> np.ndarray:
    """Phase reduced to [-pi, pi] by whole turns; dtype and shape are kept.

    Parameters
    ----------
    phase : ndarray
        Phase of any shape, rad.

    Returns
    -------
    ndarray
        ``phase - 2 pi round(phase / 2 pi)``, rad.

    Examples
    --------
    >>> wrap(np.array([0.0, 3.5, -7.0])).round(4).tolist()
    [0.0, -2.7832, -0.7168]
    """
    return phase - TWO_PI * np.rint(phase / TWO_PI)


@njit(cache=True)
def wrapped(phase):
    """One phase reduced to [-pi, pi], for compiled loops."""
    return phase - TWO_PI * np.rint(phase / TWO_PI)
