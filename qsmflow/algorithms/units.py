"""Constants and conversions: the field is converted once, from phase in radians to ppm of the main field."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Proton gyromagnetic ratio over 2 pi, MHz/T (CODATA 2018, shielded proton in water is 26 ppm lower).
GAMMA_BAR = 42.577478


def hz_per_ppm(*, b0: float) -> float:
    """Frequency shift of one ppm of the main field, Hz.

    Parameters
    ----------
    b0 : float
        Main field strength, T.

    Returns
    -------
    float
        ``GAMMA_BAR * b0``.

    Examples
    --------
    >>> round(hz_per_ppm(b0=3.0), 3)
    127.732
    """
    return GAMMA_BAR * b0


def rad_to_ppm(rate: np.ndarray, *, b0: float) -> np.ndarray:
    """Field in ppm of the main field from a phase rate.

    Parameters
    ----------
    rate : ndarray
        Phase accumulated per second, rad/s.
    b0 : float
        Main field strength, T.

    Returns
    -------
    ndarray
        ``rate / (2 pi * GAMMA_BAR * b0)``, ppm, in the dtype of ``rate``.

    Notes
    -----
    Phase convention: ``phase = 2 pi * gamma_bar * delta_B * TE``, so that a paramagnetic source ends up positive.

    Examples
    --------
    A phase of pi after 3.914 ms at 3 T is 1 ppm:

    >>> round(float(rad_to_ppm(np.pi / 3.914e-3, b0=3.0)), 3)
    1.0
    """
    return rate / (2 * math.pi * hz_per_ppm(b0=b0))


def radians_per_ppm(*, b0: float, echo_times: Sequence[float]) -> float:
    """Phase that one ppm of field makes at the effective echo time, the mean of all, rad.

    Inversions that compare phases and not fields (``exp(i phase)``) multiply the field by this number. The mean echo time is
    where the signal of an acquisition stands for the whole; at higher field it is chosen shorter, so that the product
    hardly depends on the scanner.

    Parameters
    ----------
    b0 : float
        Main field strength, T.
    echo_times : sequence of float
        Echo times, s.

    Returns
    -------
    float
        ``2 pi GAMMA_BAR b0 mean(echo_times)``.

    Examples
    --------
    >>> round(radians_per_ppm(b0=3.0, echo_times=(0.01, 0.03)), 2)
    16.05
    """
    return 2 * math.pi * hz_per_ppm(b0=b0) * sum(echo_times) / len(echo_times)
