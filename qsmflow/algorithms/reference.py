"""What zero means: susceptibility is known only up to a constant, which a reference region fixes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms import morphology


def brain(chi: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, float]:
    """Susceptibility relative to the mean of the whole mask.

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the susceptibility is known.

    Returns
    -------
    chi : ndarray, (X, Y, Z)
        Referenced susceptibility, ppm, 0 outside the mask.
    shift : float
        What was subtracted, ppm.

    Notes
    -----
    Robust, but it depends on the extent of the mask and on large lesions.

    References
    ----------
    QSM Consensus Organization Committee, MRM 91:1834, 2024, doi:10.1002/mrm.30006.

    Examples
    --------
    >>> brain(np.array([[[1.0, 3.0, 9.0]]], np.float32), np.array([[[True, True, False]]]))[0]
    array([[[-1.,  1.,  0.]]], dtype=float32)
    """
    return _subtract(chi, mask, mask, "brain mask")


def region(chi: np.ndarray, mask: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, float]:
    """Susceptibility relative to the mean of a chosen region.

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the susceptibility is known.
    region : ndarray of bool, (X, Y, Z)
        The reference region; its part inside the mask counts.

    Returns
    -------
    chi : ndarray, (X, Y, Z)
        Referenced susceptibility, ppm, 0 outside the mask.
    shift : float
        What was subtracted, ppm.

    Raises
    ------
    ValueError
        If the region and the mask do not overlap.

    Notes
    -----
    A region at the mask's edge carries the errors of background removal into the whole map.

    References
    ----------
    QSM Consensus Organization Committee, MRM 91:1834, 2024, doi:10.1002/mrm.30006.

    Examples
    --------
    >>> region(np.array([[[1.0, 3.0]]], np.float32), np.ones((1, 1, 2), bool), np.array([[[True, False]]]))[1]
    1.0
    """
    return _subtract(chi, mask, region & mask, "reference region")


def csf(
    chi: np.ndarray,
    mask: np.ndarray,
    r2star: np.ndarray,
    *,
    voxel_size: Sequence[float],
    max_r2star: float = 5.0,
    radius: float = 30.0,
) -> tuple[np.ndarray, float]:
    """Susceptibility relative to the fluid of the ventricles.

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the susceptibility is known.
    r2star : ndarray, (X, Y, Z)
        R2*, 1/s.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    max_r2star : float
        Fluid has an R2* below this value, 1/s.
    radius : float
        Only fluid within this distance of the brain's centre counts, mm.

    Returns
    -------
    chi : ndarray, (X, Y, Z)
        Referenced susceptibility, ppm, 0 outside the mask.
    shift : float
        What was subtracted, ppm.

    Raises
    ------
    ValueError
        If no fluid is found.

    See Also
    --------
    ventricles : how the fluid is found.

    References
    ----------
    Straub et al., MRM 78:204, 2017, doi:10.1002/mrm.26353.
    Liu et al., MRM 79:2795, 2018, doi:10.1002/mrm.26946.

    Examples
    --------
    >>> chi, r2star = np.full((20, 20, 20), 0.1, np.float32), np.full((20, 20, 20), 20, np.float32)
    >>> chi[8:12, 8:12, 8:12], r2star[8:12, 8:12, 8:12] = 0.4, 1
    >>> round(csf(chi, np.ones(chi.shape, bool), r2star, voxel_size=(1, 1, 1), radius=10.0)[1], 3)
    0.4
    """
    fluid = ventricles(r2star, mask, voxel_size=voxel_size, max_r2star=max_r2star, radius=radius)
    return _subtract(chi, mask, fluid, "ventricular fluid (low R2* near the brain's centre)")


def ventricles(
    r2star: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], max_r2star: float, radius: float
) -> np.ndarray:
    """Fluid of the ventricles: low R2* near the centre of the mask, its three largest components.

    Parameters
    ----------
    r2star : ndarray, (X, Y, Z)
        R2*, 1/s.
    mask : ndarray of bool, (X, Y, Z)
        The brain.
    voxel_size, max_r2star, radius
        As for :func:`csf`.

    Returns
    -------
    ndarray of bool, (X, Y, Z)
    """
    if not mask.any():
        return np.zeros_like(mask)
    grid = np.indices(mask.shape, dtype=np.float32)
    distance = sum(((axis - axis[mask].mean()) * h) ** 2 for axis, h in zip(grid, voxel_size, strict=True)) ** 0.5
    candidates = mask & (r2star < max_r2star) & (distance < radius)
    fluid = np.zeros_like(mask)
    for _ in range(3):
        component = morphology.largest(candidates & ~fluid)
        fluid |= component
    return fluid


def _subtract(chi: np.ndarray, mask: np.ndarray, where: np.ndarray, what: str) -> tuple[np.ndarray, float]:
    if not where.any():
        raise ValueError(f"no voxel of the {what} lies inside the mask; choose another reference")
    shift = float(chi[where].mean(dtype=np.float64))
    return np.where(mask, chi - np.float32(shift), 0).astype(np.float32), shift
