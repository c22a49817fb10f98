"""How fast sources of both signs dephase the signal, and the closed form that separates them with it."""

from __future__ import annotations

import numpy as np


def source_rate(
    r2star: np.ndarray, r2: np.ndarray, chi: np.ndarray, mask: np.ndarray, *, relaxivity: float, baseline: float
) -> tuple[np.ndarray, float]:
    """R2', the part of R2* that susceptibility sources make.

    Parameters
    ----------
    r2star : ndarray, (X, Y, Z)
        R2*, 1/s.
    r2 : ndarray, (X, Y, Z)
        R2, 1/s; 0 where it was not measured.
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where R2' is wanted.
    relaxivity : float
        R2' of one ppm, 1/s.
    baseline : float
        R2 where it was not measured, 1/s; 0 takes the median of ``r2star - relaxivity |chi|`` there.

    Returns
    -------
    rate : ndarray, (X, Y, Z)
        ``max(r2star - r2, 0)``, 1/s, 0 outside the mask.
    rest : float
        Median in the mask of the R2 that was taken off, 1/s.

    Notes
    -----
    The median is right where most voxels hold sources of one sign only. Where sources of both signs meet, R2* is larger than
    their sum tells, so that the baseline comes out too high rather than too low.

    Examples
    --------
    >>> chi = np.array([0.0, 0.1, -0.05, 0.0])
    >>> rate, rest = source_rate(12 + 270 * abs(chi), 0 * chi, chi, chi > -1, relaxivity=270, baseline=0)
    >>> rate.round(1).tolist(), round(rest, 1)
    ([0.0, 27.0, 13.5, 0.0], 12.0)
    """
    unknown = mask & (r2 <= 0)
    if not baseline and unknown.any():
        baseline = max(float(np.median(r2star[unknown] - relaxivity * np.abs(chi[unknown]))), 0.0)
    rest = np.where(unknown, np.float32(baseline), r2)
    rate = np.where(mask, np.maximum(r2star - rest, 0), 0).astype(np.float32)
    return rate, float(np.median(rest[mask])) if mask.any() else 0.0


def r2starqsm(
    chi: np.ndarray,
    mask: np.ndarray,
    r2star: np.ndarray,
    r2: np.ndarray,
    *,
    b0: float,
    relaxivity: float = 91.3,
    baseline: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Paramagnetic and diamagnetic susceptibility of every voxel from its susceptibility and its R2* (R2*QSM).

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm; its zero should be tissue or fluid without sources.
    mask : ndarray of bool, (X, Y, Z)
        Where both maps are valid.
    r2star : ndarray, (X, Y, Z)
        R2*, 1/s.
    r2 : ndarray, (X, Y, Z)
        R2, 1/s; 0 where it was not measured.
    b0 : float
        Main field strength, T.
    relaxivity : float
        Rate that sources of one ppm add, of either sign, 1/s per ppm and tesla.
    baseline : float
        Rate of tissue without sources where R2 was not measured, 1/s; 0 takes the median of what the susceptibility leaves.

    Returns
    -------
    chi_para : ndarray, (X, Y, Z)
        Susceptibility of the paramagnetic sources, ppm, at least 0; 0 outside the mask.
    chi_dia : ndarray, (X, Y, Z)
        That of the diamagnetic ones, ppm, at most 0; 0 outside the mask.
    rate : float
        Rate of tissue without sources that was taken off (its median), 1/s.

    Notes
    -----
    Two equations for two unknowns in every voxel: sources of both signs add up in the rate and cancel in the susceptibility,

    ``chi_para + chi_dia = chi`` and ``chi_para - chi_dia = (R2* - R2) / (relaxivity B0)``,

    solved by least squares under ``chi_para >= 0 >= chi_dia``: where the rate is too small for the susceptibility, one of them
    is 0 and the other halfway between both equations. Without a map of R2, one value (:func:`source_rate`) serves for all
    tissue: oedema and fibres across the field then pass for sources. The default is 274 1/s per ppm at 3 T; static
    dephasing by spheres would make it 323.

    References
    ----------
    Dimov et al., J Neuroimaging 32:852, 2022, doi:10.1111/jon.13014.
    Dimov et al., Tomography 8:1544, 2022, doi:10.3390/tomography8030127.

    Examples
    --------
    >>> chi, whole = np.array([[[0.03, -0.02, 0.1]]]), np.ones((1, 1, 3), bool)
    >>> rate = 12 + 3 * 91.3 * np.array([[[0.07, 0.02, 0.1]]])
    >>> para, dia, _ = r2starqsm(chi, whole, rate, 0 * chi, b0=3.0, baseline=12.0)
    >>> print(para.round(4)[0, 0], abs(dia).round(4)[0, 0])
    [0.05 0.   0.1 ] [0.02 0.02 0.  ]
    """
    scale = relaxivity * b0
    rate, rest = source_rate(r2star, r2, chi, mask, relaxivity=scale, baseline=baseline)
    both = rate / np.float32(scale)
    para, dia = np.maximum(both + chi, 0) / 2, np.minimum(chi - both, 0) / 2
    return *(np.where(mask, found, 0).astype(np.float32) for found in (para, dia)), rest
