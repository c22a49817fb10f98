"""Two passes: one inversion of the reliable voxels alone, one of the whole mask, and their merging."""

from __future__ import annotations

import numpy as np
from scipy import ndimage as ndi

from qsmflow.algorithms import morphology

#: Width of the rim along the seam in which the two passes are compared, voxels.
_RIM = 2


def reliable(mask: np.ndarray, quality: np.ndarray, *, threshold: float) -> np.ndarray:
    """The part of a mask whose phase can be trusted, with the holes that the rest leaves.

    Parameters
    ----------
    mask : ndarray of bool, (X, Y, Z)
        The mask, its holes filled.
    quality : ndarray, (X, Y, Z)
        ROMEO quality map, in [0, 1].
    threshold : float
        Lowest quality that is kept.

    Returns
    -------
    ndarray of bool, (X, Y, Z)
        Its largest component.

    Raises
    ------
    ValueError
        If no voxel is reliable.

    Notes
    -----
    The quality is averaged over 3^3 voxels first, as in :func:`qsmflow.algorithms.masking.from_quality`, whose closing is what
    this mask goes without.

    References
    ----------
    Stewart et al., MRM 87:1289, 2022, doi:10.1002/mrm.29048.

    Examples
    --------
    >>> quality = np.full((9, 9, 9), 0.9, np.float32); quality[3:6, 3:6, 3:6] = 0
    >>> int((~reliable(np.ones((9, 9, 9), bool), quality, threshold=0.4)).sum())  # centre and faces of the cube
    7
    """
    kept = morphology.largest(mask & (ndi.uniform_filter(quality, 3) >= threshold))
    if not kept.any():
        raise ValueError(f"no voxel of the mask has a phase quality of {threshold:g}; lower it, or leave the two passes out")
    return kept


def merge(
    first: np.ndarray, first_mask: np.ndarray, second: np.ndarray, second_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """One susceptibility map from two passes: the first where it is known, else the second.

    Parameters
    ----------
    first, first_mask : ndarray, (X, Y, Z)
        Susceptibility from the reliable voxels, ppm, and where it is known.
    second, second_mask : ndarray, (X, Y, Z)
        Susceptibility from the whole mask, ppm, and where it is known.

    Returns
    -------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm, float32, 0 outside the mask.
    mask : ndarray of bool, (X, Y, Z)
        Where one of them is known.
    offset : float
        What was added to the second, ppm.

    Notes
    -----
    Each map has an unknown constant. The second is shifted by the median difference of the two in the rim: voxels of the first
    within two voxels of those that only the second knows. One constant serves all seams: one per hole would take the contrast
    of small holes away. Nothing is shifted where the first knows every voxel.

    References
    ----------
    Stewart et al., MRM 87:1289, 2022, doi:10.1002/mrm.29048.

    Examples
    --------
    >>> one, two = np.array([[[1.0, 0.0, 1.0, 1.0]]]), np.array([[[3.0, 9.0, 3.0, 3.0]]])
    >>> merge(one, one > 0, two, two > 0)[0]
    array([[[1., 7., 1., 1.]]], dtype=float32)
    """
    rest = second_mask & ~first_mask
    rim = ndi.binary_dilation(rest, iterations=_RIM) & first_mask & second_mask
    offset = float(np.median(first[rim] - second[rim])) if rim.any() else 0.0
    chi = np.where(first_mask, first, np.where(rest, second + np.float32(offset), 0)).astype(np.float32)
    return chi, first_mask | second_mask, offset
