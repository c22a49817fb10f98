"""Masks: where there is tissue, where it is brain, and where its phase can be trusted.

A mask is what an expression of methods gives (``template & quality``), cleaned by :func:`combine`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage as ndi

from qsmflow.algorithms import morphology


def from_template(
    prior: np.ndarray, *, voxel_size: Sequence[float], probability: float = 0.5, close: float = 3.0
) -> np.ndarray:
    """Brain mask from a template's mask that was brought into the space of the images.

    Parameters
    ----------
    prior : ndarray, (X, Y, Z)
        The template's brain mask, interpolated linearly, in [0, 1].
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    probability : float
        Voxels at or above this value are brain.
    close : float
        Radius of the closing that follows, mm.

    Returns
    -------
    ndarray of bool, (X, Y, Z)

    Notes
    -----
    The registration is affine; errors of a few millimetres remain at the brain's surface, hence the intersection with
    phase quality.

    References
    ----------
    Avants et al., NeuroImage 54:2033, 2011, doi:10.1016/j.neuroimage.2010.09.025.

    Examples
    --------
    >>> prior = np.zeros((9, 9, 9)); prior[2:7, 2:7, 2:7] = 0.8; prior[4, 4, 4] = 0
    >>> int(from_template(prior, voxel_size=(1, 1, 1), close=1.0).sum())
    125
    """
    return morphology.close(prior >= probability, close, voxel_size)


def threshold(magnitude: np.ndarray, *, voxel_size: Sequence[float], factor: float = 0.6, smooth: float = 2.0) -> np.ndarray:
    """Everything that gives signal, by Otsu's threshold.

    Parameters
    ----------
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes, arbitrary unit; the first echo is used, where dropouts are smallest.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    factor : float
        Multiplies Otsu's threshold; below 1 keeps shaded tissue.
    smooth : float
        Standard deviation of the Gaussian that precedes the threshold, mm.

    Returns
    -------
    ndarray of bool, (X, Y, Z)
        Largest component, cleaned of structures thinner than ``smooth``.

    Raises
    ------
    ValueError
        If the magnitude is constant.

    Notes
    -----
    Otsu's threshold maximises the variance between the two classes over 256 bins. Skull, scalp and neck stay in.

    References
    ----------
    Otsu, IEEE Trans Syst Man Cybern 9:62, 1979, doi:10.1109/TSMC.1979.4310076.

    Examples
    --------
    >>> image = np.ones((16, 16, 16, 1), np.float32); image[4:12, 4:12, 4:12] = 100
    >>> int(threshold(image, voxel_size=(1, 1, 1), factor=1.0, smooth=0.1).sum())
    512
    """
    first = ndi.gaussian_filter(magnitude[..., 0], [smooth / h for h in voxel_size])
    signal = first > factor * otsu(first)
    return morphology.largest(morphology.open_(signal, smooth, voxel_size))


def robust(
    magnitude: np.ndarray,
    *,
    voxel_size: Sequence[float],
    factor: float = 5.0,
    share: float = 0.2,
    box: float = 5.0,
) -> np.ndarray:
    """Everything that gives signal, by a threshold between the noise and the bright tissue that survives uneven coils.

    Parameters
    ----------
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes, arbitrary unit; the first echo is used, where dropouts are smallest.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    factor : float
        Signal is above this many times the noise.
    share : float
        Signal is above this share of the bright tissue.
    box : float
        Width of the box in which a majority decides, mm; the final smoothing takes 3/5 of it.

    Returns
    -------
    ndarray of bool, (X, Y, Z)

    Raises
    ------
    ValueError
        If the magnitude is constant.

    Notes
    -----
    Bright is the mean between the 80 and the 99 % quantile of the finite magnitudes, noise the mean below the 15 % quantile, or
    below the 5 % quantile where the first exceeds a tenth of bright (then there is hardly any air), or else 0. The threshold is
    the larger of ``factor`` times noise and ``share`` times bright. Voxels with more than 40 % of their box above it are kept,
    holes of up to a twentieth of the volume are filled, and two box means, kept above 60 %, smooth the edge. Boxes have an odd
    number of voxels along each axis. Skull, scalp and neck stay in.

    References
    ----------
    Eckstein et al., NeuroImage 237:118175, 2021, doi:10.1016/j.neuroimage.2021.118175.

    Examples
    --------
    >>> image = np.ones((20, 20, 20, 1), np.float32); image[4:16, 4:16, 4:16] = 100
    >>> int(robust(image, voxel_size=(1, 1, 1), box=1.0).sum())
    1728
    """
    first = magnitude[..., 0]
    values = first[np.isfinite(first)]
    if values.size == 0 or values.min() == values.max():
        raise ValueError("the magnitude is constant: no threshold separates tissue from air; check the magnitude files")
    low, less, high, top = np.quantile(values, (0.05, 0.15, 0.8, 0.99))
    bright = values[(values >= high) & (values <= top)].mean(dtype=np.float64)
    darkest = (values[values <= limit].mean(dtype=np.float64) for limit in (less, low))
    noise = next((value for value in darkest if value <= bright / 10), 0.0)
    signal = first > max(factor * noise, share * bright)
    mask = _box_mean(signal, box, voxel_size) > 0.4
    mask = morphology.fill(mask, mask.size // 20)
    for _ in range(2):
        mask = _box_mean(mask, 0.6 * box, voxel_size) > 0.6
    return mask


def _box_mean(mask: np.ndarray, width: float, voxel_size: Sequence[float]) -> np.ndarray:
    """Share of the mask in a box around every voxel; the nearest odd number of voxels along each axis."""
    size = [2 * max(0, round((width / h - 1) / 2)) + 1 for h in voxel_size]
    return ndi.uniform_filter(mask.astype(np.float32), size, mode="constant")


def from_quality(quality: np.ndarray, *, voxel_size: Sequence[float], threshold: float = 0.4, fill: float = 2.0) -> np.ndarray:
    """Voxels whose phase can be trusted.

    Parameters
    ----------
    quality : ndarray, (X, Y, Z)
        ROMEO quality map, in [0, 1].
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    threshold : float
        Lowest quality that is kept.
    fill : float
        Holes and gaps narrower than twice this radius are closed, mm.

    Returns
    -------
    ndarray of bool, (X, Y, Z)

    Notes
    -----
    The quality is averaged over 3^3 voxels first, so that single voxels of a vein do not count as unreliable.

    References
    ----------
    Dymerska et al., MRM 85:2294, 2021, doi:10.1002/mrm.28563.
    Stewart et al., MRM 87:1289, 2022, doi:10.1002/mrm.29048.

    Examples
    --------
    >>> quality = np.zeros((12, 12, 12), np.float32); quality[:, :, 4:] = 0.9
    >>> int(from_quality(quality, voxel_size=(1, 1, 1), fill=0.0).all(axis=(0, 1)).argmax())
    4
    """
    return morphology.close(ndi.uniform_filter(quality, 3) >= threshold, fill, voxel_size)


def combine(masks: Sequence[np.ndarray], *, voxel_size: Sequence[float], bridge: float = 2.0) -> np.ndarray:
    """Intersection of masks without loose parts.

    Parameters
    ----------
    masks : sequence of ndarray of bool, (X, Y, Z)
        What to intersect.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    bridge : float
        Parts that hang together with the main one by bridges thinner than twice this radius are removed, mm.

    Returns
    -------
    ndarray of bool, (X, Y, Z)

    Examples
    --------
    >>> mask = np.zeros((20, 9, 9), bool); mask[1:9, 1:8, 1:8] = True; mask[9:19, 4, 4] = True
    >>> int(combine([mask], voxel_size=(1, 1, 1), bridge=1.0).any(axis=(1, 2)).sum())  # one voxel of it is left
    9
    """
    mask = np.logical_and.reduce(masks)
    core = morphology.largest(morphology.erode(mask, bridge, voxel_size))
    if not core.any():
        return morphology.largest(mask)
    return ndi.binary_fill_holes(morphology.dilate(core, 1.5 * bridge, voxel_size) & mask)


def otsu(image: np.ndarray) -> float:
    """Otsu's threshold over 256 bins of the finite values.

    Examples
    --------
    >>> 1 < otsu(np.array([1.0] * 50 + [10.0] * 30)) < 10
    True
    """
    values = image[np.isfinite(image)]
    if values.size == 0 or values.min() == values.max():
        raise ValueError("the magnitude is constant: no threshold separates tissue from air; check the magnitude files")
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), counts.sum()
    moment = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * below - moment * total) ** 2 / (below * (total - below).astype(float))
    between[~np.isfinite(between)] = 0
    # values within the winning bin belong to the lower class; between empty bins the middle of the gap is taken
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)
