"""Real float32 Fourier transforms on padded grids.

The number of threads is the caller's business (``scipy.fft.set_workers``); results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft
from numba import njit, prange

AXES = (0, 1, 2)


def padded_shape(shape: Sequence[int], margin: Sequence[int] | int = 0) -> tuple[int, ...]:
    """The smallest shape with fast real transforms that holds ``shape`` plus ``margin`` voxels along each axis.

    Parameters
    ----------
    shape : sequence of int
        Shape of the volume.
    margin : int or sequence of int
        Voxels to add along each axis, at least.

    Returns
    -------
    tuple of int

    Examples
    --------
    >>> padded_shape((129, 153, 129))
    (135, 160, 135)
    >>> padded_shape((129, 153, 129), 20)
    (150, 180, 150)
    """
    margins = (margin,) * len(shape) if isinstance(margin, int) else margin
    return tuple(scipy.fft.next_fast_len(int(n + m), real=True) for n, m in zip(shape, margins, strict=True))


def rfftn(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Real-to-complex transform of a volume, zero padded at the end to ``shape`` (complex64, last axis halved).

    Axis by axis, so that lines of zeros are not transformed.
    """
    part = scipy.fft.rfft(volume, shape[2], axis=2)
    part = scipy.fft.fft(part, shape[1], axis=1, overwrite_x=True)
    return scipy.fft.fft(part, shape[0], axis=0, overwrite_x=True)


def irfftn(
    spectrum: np.ndarray, shape: Sequence[int], crop: Sequence[int] | None = None, *, overwrite: bool = False
) -> np.ndarray:
    """Inverse of :func:`rfftn` on the grid ``shape``, cropped to ``crop``; ``spectrum`` is left alone unless ``overwrite``.

    Axis by axis, so that lines outside ``crop`` are not transformed further, and in place.
    """
    nx, ny, nz = shape if crop is None else crop
    part = scipy.fft.ifft(spectrum, axis=0, overwrite_x=overwrite)[:nx]
    part = scipy.fft.ifft(part, axis=1, overwrite_x=True)[:, :ny]
    return scipy.fft.irfft(part, shape[2], axis=2)[:, :, :nz]


def convolve(volume: np.ndarray, spectrum: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Circular convolution on the grid ``shape`` of a zero-padded volume with a kernel given by its half spectrum; cropped."""
    return convolve_onto(volume, spectrum, shape, volume.shape)


def convolve_onto(
    volume: np.ndarray, spectrum: np.ndarray, shape: Sequence[int], crop: Sequence[int] | None = None
) -> np.ndarray:
    """The same, given on another part of the grid: cropped to ``crop``, or all of it."""
    product = rfftn(volume, shape)
    _multiply(product, spectrum)
    return irfftn(product, shape, crop, overwrite=True)


@njit(parallel=True, cache=True)
def _multiply(product, spectrum):
    """``product *= spectrum``, which NumPy does three times slower for a real ``spectrum``."""
    nx, ny, nz = product.shape
    for i in prange(nx):
        for j in range(ny):
            for k in range(nz):
                product[i, j, k] *= spectrum[i, j, k]


def frequencies(shape: Sequence[int], voxel_size: Sequence[float], half: bool = True) -> list[np.ndarray]:
    """Spatial frequencies of a grid along each axis, cycles/mm, shaped for broadcasting; the last axis halved."""
    result = []
    for axis, (n, h) in enumerate(zip(shape, voxel_size, strict=True)):
        k = np.fft.rfftfreq(n, h) if half and axis == len(shape) - 1 else np.fft.fftfreq(n, h)
        result.append(k.reshape([-1 if a == axis else 1 for a in range(len(shape))]))
    return result


def power(spectrum: np.ndarray, last: int) -> float:
    """Sum of squares over the whole spectrum whose last axis (length ``last``) is stored halved; float64."""
    return inner(spectrum, spectrum, last)


def inner(a: np.ndarray, b: np.ndarray, last: int) -> float:
    """Inner product of two real volumes, times their size, from their half spectra (last axis of length ``last``); float64."""
    twice = np.full(a.shape[-1], 2.0)
    twice[0] = 1.0
    if last % 2 == 0:
        twice[-1] = 1.0
    sums = np.einsum("ijk,ijk->k", a.real, b.real, dtype=np.float64)
    sums += np.einsum("ijk,ijk->k", a.imag, b.imag, dtype=np.float64)
    return float(sums @ twice)
