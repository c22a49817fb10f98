"""The phase of a susceptibility-weighted image: slow phase taken away, and the weight that the rest gives.

Phase is positive for paramagnetic sources throughout, as everywhere here; much of the literature has it the other way round,
and the names of the phase masks are the literature's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.fft

from qsmflow.algorithms.swi.magnitude import mean_inside

Shape = Literal["negative", "positive", "triangular", "sigmoid"]


def homodyne(
    magnitude: np.ndarray,
    phase: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    wavelength: float,
) -> np.ndarray:
    """Phase of an image relative to that of its low-passed self.

    Parameters
    ----------
    magnitude, phase : ndarray, (X, Y, Z)
        Magnitude, any unit; wrapped phase, rad.
    mask : ndarray of bool, (X, Y, Z)
        Voxels that count.
    voxel_size, b0_dir : sequence of float, (3,)
        Voxel size, mm; unit vector of the main field in voxel axes.
    wavelength : float
        Shortest wavelength that the low-pass lets through, mm.

    Returns
    -------
    ndarray, (X, Y, Z)
        Filtered phase, rad, in (-pi, pi]; 0 outside the mask.

    Notes
    -----
    ``angle(I / LP(I))`` with a Hann window over the spatial frequencies of each slice, 0 from ``1 / wavelength`` on. A window
    of N points in k-space, as scanners name it, is one of ``2 FOV / N``: 7 mm are 64 points of a field of view of 224 mm. Any
    phase that is one frequency inside the window, constant and linear phase above all, comes out as 0. Slices are taken as
    periodic, and at the edge of the mask only one side counts: both may leave a rim there.

    Examples
    --------
    >>> x = 2 * np.pi * np.arange(32, dtype=np.float32)[:, None, None] / 32 * np.ones((1, 32, 2), np.float32)
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1), "wavelength": 7.0}
    >>> bool(abs(homodyne(np.ones_like(x), x, np.ones(x.shape, bool), **context)).max() < 1e-5)
    True
    """
    if not wavelength > 0:
        raise ValueError(f"the wavelength of the homodyne filter must be above 0, not {wavelength:g} mm")
    image = np.where(mask, magnitude * np.exp(1j * phase.astype(np.complex64)), 0).astype(np.complex64)
    axes = [axis for axis in range(3) if axis != int(np.argmax(np.abs(b0_dir)))]
    sizes = [scipy.fft.next_fast_len(mask.shape[axis]) for axis in axes]
    square = np.zeros((1, 1, 1))
    for axis, size in zip(axes, sizes, strict=True):
        k = np.fft.fftfreq(size, voxel_size[axis])
        square = square + np.square(k).reshape([-1 if a == axis else 1 for a in range(3)])
    window = 0.5 * (1 + np.cos(np.pi * np.minimum(np.sqrt(square) * wavelength, 1)))
    low = scipy.fft.ifftn(scipy.fft.fftn(image, s=sizes, axes=axes) * window.astype(np.float32), axes=axes)
    low = low[tuple(slice(n) for n in mask.shape)]
    return np.where(mask, np.angle(image * low.conj()), 0).astype(np.float32)


def high_pass(phase: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], sigma: float) -> np.ndarray:
    """Phase less its Gaussian mean over the mask.

    Parameters
    ----------
    phase : ndarray, (X, Y, Z)
        Unwrapped phase, rad.
    mask : ndarray of bool, (X, Y, Z)
        Voxels that count.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    sigma : float
        Standard deviation of the Gaussian, mm.

    Returns
    -------
    ndarray, (X, Y, Z)
        Filtered phase, rad, float32; 0 outside the mask.

    Examples
    --------
    >>> full = np.ones((6, 6, 6), bool)
    >>> bool(abs(high_pass(np.full(full.shape, 2.0), full, voxel_size=(1, 1, 1), sigma=2.0)).max() < 1e-6)
    True
    """
    mean = mean_inside(phase, mask, [sigma / h for h in voxel_size])
    return np.where(mask, phase - mean, 0).astype(np.float32)


def phase_mask(phase: np.ndarray, mask: np.ndarray, *, shape: Shape, power: float) -> np.ndarray:
    """The weight that a filtered phase gives.

    Parameters
    ----------
    phase : ndarray, (X, Y, Z)
        Filtered phase, rad; positive for paramagnetic sources.
    mask : ndarray of bool, (X, Y, Z)
        Voxels that count.
    shape : {"negative", "positive", "triangular", "sigmoid"}
        Which phase is darkened; the names take paramagnetic phase as negative, as the literature does.
    power : float
        The power n; for the sigmoid its steepness s.

    Returns
    -------
    ndarray, (X, Y, Z)
        Weight, 0 to 1, float32; 0 outside the mask.

    Notes
    -----
    With phi the phase here: negative ``1 - phi / pi`` for phi > 0, positive ``1 + phi / pi`` for phi < 0, 1 otherwise;
    triangular ``1 - |phi| / pi``; all never below 0, and to the power n. Sigmoid: ``(1 + tanh(1 - phi / c)) / 2`` with c the
    median of the positive phase times ``10 / s``, which is 0.88 at phi = 0, and adapts to the phase that there is; 1 everywhere
    where no phase is positive.

    Examples
    --------
    >>> veins = np.pi * np.array([0, 0.25, 0.5, 1])
    >>> phase_mask(veins, np.ones(4, bool), shape="negative", power=2).tolist()
    [1.0, 0.5625, 0.25, 0.0]
    """
    if not power > 0:
        raise ValueError(f"the power of the phase mask must be above 0, not {power:g}")
    if shape == "sigmoid":
        rising = phase[mask & (phase > 0)]
        # What float32 leaves of a constant is no phase.
        centre = float(np.median(rising)) * 10 / power if rising.size and rising.max() > 1e-5 else math.inf
        weight = (1 + np.tanh(1 - phase / centre)) / 2 if centre < math.inf else np.ones(mask.shape)
    else:
        slope = {"negative": np.maximum(phase, 0), "positive": np.maximum(-phase, 0), "triangular": np.abs(phase)}[shape]
        weight = np.clip(1 - slope / math.pi, 0, 1) ** power
    return np.where(mask, weight, 0).astype(np.float32)
