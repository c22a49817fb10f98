"""A trained network that improves on two physical inversions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources

import numba
import numpy as np

from qsmflow.algorithms import fourier, morphology, solvers
from qsmflow.algorithms.dipole import dipole_kernel
from qsmflow.algorithms.inversion.fansi import whqsm
from qsmflow.algorithms.weights import error_weights

#: What the network was trained with: expected size of the susceptibility (ppm) and iterations of the linear map.
_EXPECTED, _ITERATIONS = 0.1, 20

#: The network halves its grid three times, and a voxel of its output depends on what is at most this far away.
_MULTIPLE, _REACH = 8, 72

#: Largest number of voxels to evaluate at once.
_VOXELS = 9_000_000


def unet(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
) -> np.ndarray:
    """Susceptibility by a trained network that starts from two physical inversions.

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm. Its size matters: it tells the network how far to trust the maps.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    b0 : float
        Main field strength, T.
    echo_times : sequence of float
        Echo times, s (for :func:`~qsmflow.algorithms.inversion.fansi.whqsm`).

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Raises
    ------
    ValueError
        If the field error is not positive anywhere in the mask.

    Notes
    -----
    ``chi = x + (N(y, x, f, e) - N(-y, -x, -f, e)) / 2`` with WH-QSM x at its defaults, the linear map y that minimises
    ``||W (D y - f)||^2 + (e_0 / s)^2 ||y||^2`` (W as in WH-QSM, e_0 the tenth percentile of the field error, s = 0.1 ppm; 20
    conjugate-gradient steps), field f and field error e. N is a U-Net of residual blocks on blocks of two voxels an edge: three
    levels of 48, 64 and 96 channels, without biases, so that it has no unit. Main field direction and voxel size enter through
    x and y alone. The axis nearest to the main field comes last. Large volumes are taken in slabs that overlap by more than the
    network sees. Outside the mask it is given zeros.

    N was trained on simulated brains, shapes and noise alone, never on a measured image. A network completes what noise has
    hidden by what it was trained on: it can smooth away, or make up, what it has never seen.

    References
    ----------
    Ronneberger et al., MICCAI, LNCS 9351:234, 2015, doi:10.1007/978-3-319-24574-4_28 (U-Net).
    Zhang et al., IEEE Trans Pattern Anal Mach Intell 44:6360, 2022, doi:10.1109/TPAMI.2021.3088914 (residual, no biases).
    Jin et al., IEEE Trans Image Process 26:4509, 2017, doi:10.1109/TIP.2017.2713099 (correcting a direct inversion).
    Bollmann et al., NeuroImage 195:373, 2019, doi:10.1016/j.neuroimage.2019.03.060 (training on simulated shapes).

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1)}
    >>> field = forward_field(np.float32(0.1) * (r2 < 64), **context)
    >>> error = np.full_like(field, 1e-3)
    >>> chi = unet(field, r2 < 196, error, **context, b0=3.0, echo_times=(0.02,))
    >>> bool(abs(chi[r2 < 36].mean() - chi[(r2 > 100) & (r2 < 196)].mean() - 0.1) < 0.015)
    True
    """
    context = {"voxel_size": voxel_size, "b0_dir": b0_dir, "b0": b0, "echo_times": echo_times}
    maps = prepare_maps(local_field, mask, field_error, **context)
    axis = int(np.argmax(np.abs(b0_dir)))
    turned = np.moveaxis(maps, axis + 1, -1)
    correction = evaluate(turned)
    turned = np.concatenate([-turned[:3], turned[3:]])
    correction = (correction - evaluate(turned)) / 2
    return np.where(mask, maps[1] + np.moveaxis(correction, -1, axis), 0).astype(np.float32)


def evaluate(maps: np.ndarray) -> np.ndarray:
    """What the network adds to WH-QSM.

    Parameters
    ----------
    maps : ndarray, (4, X, Y, Z)
        From :func:`prepare_maps`, the axis nearest to the main field last; brought to multiples of eight voxels here.

    Returns
    -------
    ndarray, (X, Y, Z)
        ppm, 0 more than a few voxels outside the mask.

    Examples
    --------
    >>> bool(evaluate(np.zeros((4, 9, 8, 8), np.float32)).any())
    False
    """
    result = np.zeros(maps.shape[1:], np.float32)
    if not maps[3].any():
        return result
    box = morphology.bounding_box(maps[3] > 0)
    inner = maps[(slice(None), *box)]
    inner = np.pad(inner, [(0, 0), *((_MULTIPLE, _MULTIPLE + -n % _MULTIPLE) for n in inner.shape[1:])])
    added = np.concatenate(list(_slabs(inner)), axis=int(np.argmax(inner.shape[1:])))
    result[box] = added[tuple(slice(_MULTIPLE, _MULTIPLE + b.stop - b.start) for b in box)]
    return result


def _slabs(maps: np.ndarray) -> Iterator[np.ndarray]:
    """The network's output, slab by slab along the longest axis."""
    session = _session(numba.get_num_threads())
    length, axis = max(maps.shape[1:]), int(np.argmax(maps.shape[1:]))
    most = _VOXELS * length // maps[0].size  # planes at once
    step = length if most >= length else max(_MULTIPLE, (most - 2 * _REACH) // _MULTIPLE * _MULTIPLE)
    for start in range(0, length, step):
        low, high = max(0, start - _REACH), min(length, start + step + _REACH)
        part = np.take(maps, range(low, high), axis=axis + 1)[None]
        (output,) = session.run(None, {"maps": part})
        yield np.take(output[0, 0], range(start - low, min(start + step, length) - low), axis=axis)


@cache
def _session(threads: int):
    """The network, loaded once for each number of threads."""
    import onnxruntime  # takes a third of a second, which other methods need not wait for

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = False  # gives memory back between runs
    model = resources.files("qsmflow.data").joinpath("network", "unet.onnx").read_bytes()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def prepare_maps(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
) -> np.ndarray:
    """What the network is given.

    Parameters
    ----------
    local_field, mask, field_error, voxel_size, b0_dir, b0, echo_times
        As in :func:`unet`.

    Returns
    -------
    ndarray, (4, X, Y, Z)
        Linear map and WH-QSM (ppm, of mean 0 in the mask), local field and field error (ppm); all 0 outside the mask.

    Examples
    --------
    >>> r2 = sum(np.square(a) for a in np.ogrid[-8:8, -8:8, -8:8])
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1), "b0": 3.0, "echo_times": (0.02,)}
    >>> prepare_maps(np.zeros(r2.shape, np.float32), r2 < 50, np.ones(r2.shape, np.float32), **context).shape
    (4, 16, 16, 16)
    """
    grid = {"voxel_size": voxel_size, "b0_dir": b0_dir}
    linear = _linear_map(local_field, mask, field_error, **grid)
    smooth = whqsm(local_field, mask, field_error, **grid, b0=b0, echo_times=echo_times)
    centred = [volume - volume[mask].mean(dtype=np.float64) for volume in (linear, smooth)]
    return np.stack([np.where(mask, volume, 0) for volume in (*centred, local_field, field_error)]).astype(np.float32)


def _linear_map(
    field: np.ndarray, mask: np.ndarray, field_error: np.ndarray, *, voxel_size: Sequence[float], b0_dir: Sequence[float]
) -> np.ndarray:
    """``min_x ||W (D x - f)||^2 + (e / s)^2 ||x||^2`` with the smallest errors e and the expected size s, not to its end."""
    shape = fourier.padded_shape(field.shape)
    kernel = dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir)
    squared = error_weights(field_error, mask) ** 2
    prior = np.float32((np.percentile(field_error[mask], 10) / _EXPECTED) ** 2)

    def normal(x: np.ndarray) -> np.ndarray:
        made = fourier.convolve_onto(x, kernel, shape, field.shape)
        made *= squared
        result = fourier.convolve_onto(made, kernel, shape)
        result += prior * x
        return result

    right = fourier.convolve_onto(squared * field, kernel, shape)
    solution = solvers.conjugate_gradients(normal, right, iterations=_ITERATIONS, tolerance=1e-3)
    return solution[tuple(slice(n) for n in field.shape)]
