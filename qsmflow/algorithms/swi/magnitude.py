"""The magnitude of a susceptibility-weighted image: even intensity, contrast, minimum intensity projection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

#: Passes of the search for tissue of even intensity, and what counts as such relative to its surroundings.
_PASSES, _EVEN = 3, (0.9, 1.3)


def root_sum_of_squares(magnitude: np.ndarray) -> np.ndarray:
    """The magnitudes of all echoes in one image.

    Parameters
    ----------
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes.

    Returns
    -------
    ndarray, (X, Y, Z)
        Root of the sum of squares over the echoes, float32.

    Examples
    --------
    >>> float(root_sum_of_squares(np.full((1, 1, 1, 4), 3.0))[0, 0, 0])
    6.0
    """
    magnitude = magnitude.astype(np.float32, copy=False)
    return np.sqrt(np.einsum("ijke,ijke->ijk", magnitude, magnitude))


def softplus(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Magnitude with its dark end pressed together.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Magnitude.
    mask : ndarray of bool, (X, Y, Z)
        Voxels that count.

    Returns
    -------
    ndarray, (X, Y, Z)
        ``[log(1 + exp(f (x - o))) - log(1 + exp(-f o))] / f`` with ``o`` half of the 80 % quantile in the mask and
        ``f = 2 / o``; 0 stays 0, and far above ``o`` the slope is 1.

    Examples
    --------
    >>> softplus(np.array([0.0, 0.5, 1.0, 1.0, 1.0, 2.0]), np.array([False, False, True, True, True, False])).round(4)
    array([0.    , 0.1416, 0.5   , 0.5   , 0.5   , 1.4689], dtype=float32)
    """
    offset = float(np.quantile(image[mask], 0.8)) / 2 if mask.any() else 0.0
    if not offset > 0:
        return np.zeros(image.shape, np.float32)
    f = 2 / offset
    return ((np.logaddexp(0, f * (image - offset)) - np.logaddexp(0, -f * offset)) / f).astype(np.float32)


def sensitivity(magnitude: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], sigma: float) -> np.ndarray:
    """Slow shading of a magnitude, as receive coils leave it.

    Parameters
    ----------
    magnitude : ndarray, (X, Y, Z)
        Magnitude of tissue, any unit.
    mask : ndarray of bool, (X, Y, Z)
        Voxels that count.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    sigma : float
        Standard deviation of the smoothing, mm.

    Returns
    -------
    ndarray, (X, Y, Z)
        The shading, in the unit of the magnitude, float32; 0 outside the mask.

    Notes
    -----
    Gaussian mean over the voxels of the mask whose magnitude is 0.9 to 1.3 times the estimate so far, three times over: veins,
    nuclei and fluid drop out, so that their own contrast stays.

    Examples
    --------
    >>> full = np.ones((8, 8, 8), bool)
    >>> bool(np.allclose(sensitivity(np.full(full.shape, 3.0), full, voxel_size=(1, 1, 1), sigma=2.0), 3))
    True
    """
    widths = [sigma / h for h in voxel_size]
    estimate = mean_inside(magnitude, mask, widths)
    for _ in range(_PASSES):
        even = mask & (magnitude > _EVEN[0] * estimate) & (magnitude < _EVEN[1] * estimate)
        estimate = np.where(mask, mean_inside(magnitude, even, widths, otherwise=estimate), 0).astype(np.float32)
    return estimate


def minimum_projection(
    image: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], b0_dir: Sequence[float], thickness: float
) -> np.ndarray:
    """Minimum over a slab around every slice.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        What is projected.
    mask : ndarray of bool, (X, Y, Z)
        Voxels that count.
    voxel_size, b0_dir : sequence of float, (3,)
        Voxel size, mm; unit vector of the main field in voxel axes; the slab extends along the axis nearest to it.
    thickness : float
        Thickness of the slab, mm; the nearest odd number of slices is used.

    Returns
    -------
    ndarray, (X, Y, Z)
        As many slices as the image has, each in the middle of its slab, float32; the slab ends at the mask and at the ends of
        the image. 0 outside the mask.

    Examples
    --------
    >>> image = np.arange(5, dtype=np.float32).reshape(1, 1, 5)
    >>> minimum_projection(image, image >= 1, voxel_size=(1, 1, 2), b0_dir=(0, 0, 1), thickness=6.0).ravel().tolist()
    [0.0, 1.0, 1.0, 2.0, 3.0]
    """
    axis = int(np.argmax(np.abs(b0_dir)))
    slices = 2 * max(0, round((thickness / voxel_size[axis] - 1) / 2)) + 1
    # Zeros outside the mask must not win.
    filled = np.where(mask, image, np.inf).astype(np.float32)
    return np.where(mask, ndimage.minimum_filter1d(filled, slices, axis=axis, mode="nearest"), 0).astype(np.float32)


def mean_inside(
    values: np.ndarray, inside: np.ndarray, sigma: Sequence[float], otherwise: np.ndarray | float = 0.0
) -> np.ndarray:
    """Gaussian mean over some voxels.

    Parameters
    ----------
    values : ndarray, (X, Y, Z)
        What is averaged.
    inside : ndarray of bool, (X, Y, Z)
        The voxels that count; no others have a part, wherever they lie.
    sigma : sequence of float, (3,)
        Standard deviation of the Gaussian along each axis, voxels.
    otherwise : ndarray or float
        The result where no voxel that counts is within reach.

    Returns
    -------
    ndarray, (X, Y, Z)

    Examples
    --------
    >>> values = np.array([2.0, 2.0, 50.0]).reshape(3, 1, 1)
    >>> mean_inside(values, values < 10, (1.0, 0.0, 0.0)).ravel().tolist()
    [2.0, 2.0, 2.0]
    """
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma, mode="constant")
    total = ndimage.gaussian_filter(np.where(inside, values, 0).astype(np.float32), sigma, mode="constant")
    return np.where(weight > 1e-3, total / np.maximum(weight, 1e-3), otherwise)
