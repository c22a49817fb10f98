"""Direct inversions: one division in k-space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from qsmflow.algorithms import fourier
from qsmflow.algorithms.dipole import dipole_kernel
from qsmflow.algorithms.inversion.tuning import largest_curvature
from qsmflow.algorithms.operators import gradient_power


def tkd(
    local_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    threshold: float = 0.15,
    correct: bool = False,
) -> np.ndarray:
    """Susceptibility by thresholded k-space division.

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid; the field counts as 0 outside.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    threshold : float
        Smallest magnitude of the dipole kernel that is divided by.
    correct : bool
        Divide by the mean of ``D / D_t`` over all directions, which undoes the underestimation in large regions (and
        raises noise alike).

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    ``chi = F^-1(F(f) / D_t)`` with ``D_t = D`` where ``|D| > threshold`` and ``sign(D) * threshold`` elsewhere.

    References
    ----------
    Shmueli et al., MRM 62:1510, 2009, doi:10.1002/mrm.22135.
    Schweser et al., MRM 69:1582, 2013, doi:10.1002/mrm.24405.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-24:24, -24:24, -24:24])
    >>> field = forward_field((r2 < 36).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> chi = tkd(field, np.ones(field.shape, bool), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1), correct=True)
    >>> bool(abs(chi[r2 < 16].mean() - 1) < 0.1)
    True
    """

    def inverse(kernel, shape, field):
        limited = np.where(np.abs(kernel) > threshold, kernel, np.where(kernel < 0, -threshold, threshold)).astype(np.float32)
        return 1 / (limited * np.float32(_mean_ratio(threshold) if correct else 1))

    return _divide(local_field, mask, voxel_size, b0_dir, inverse)


def tsvd(
    local_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    threshold: float = 0.1,
    correct: bool = False,
) -> np.ndarray:
    """Susceptibility by truncated division in k-space (truncated singular value decomposition).

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid; the field counts as 0 outside.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    threshold : float
        Smallest magnitude of the dipole kernel that is divided by; what lies below becomes 0.
    correct : bool
        Divide by the share of directions that are kept, which undoes the underestimation in large regions (and raises noise
        alike).

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    ``chi = F^-1(F(f) / D)`` where ``|D| > threshold`` and 0 elsewhere: the magnitudes of D are the singular values of the
    convolution. :func:`tkd` keeps the rest at the threshold instead.

    References
    ----------
    Wharton et al., MRM 63:1292, 2010, doi:10.1002/mrm.22334.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-24:24, -24:24, -24:24])
    >>> field = forward_field((r2 < 36).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> chi = tsvd(field, np.ones(field.shape, bool), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1), correct=True)
    >>> bool(abs(chi[r2 < 16].mean() - 1) < 0.1)
    True
    """

    def inverse(kernel, shape, field):
        kept = np.abs(kernel) > threshold
        share = np.float32(_kept_share(threshold) if correct else 1)
        return np.divide(1, kernel * share, out=np.zeros_like(kernel), where=kept)

    return _divide(local_field, mask, voxel_size, b0_dir, inverse)


def tikhonov(
    local_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    lambda_: float = 0.01,
    penalty: Literal["identity", "gradient"] = "identity",
    tune: Literal["none", "lcurve"] = "none",
) -> np.ndarray:
    """Susceptibility by closed-form inversion with an L2 penalty.

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid; the field counts as 0 outside.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    lambda_ : float
        Weight of the penalty (mm^2 for the gradient).
    penalty : {"identity", "gradient"}
        What is kept small: the susceptibility itself or its gradient.
    tune : {"none", "lcurve"}
        Take ``lambda_`` as it is, or the weight between 1/100 and 100 times it at the corner of the L-curve.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    ``chi = F^-1(D F(f) / (D^2 + lambda G))``, G = 1 or the spectrum of the negative Laplacian. The L-curve is that of
    ``log ||D chi - f||`` and ``log ||sqrt(G) chi||`` over the weight; its corner has the largest curvature.

    References
    ----------
    Hansen & O'Leary, SIAM J Sci Comput 14:1487, 1993, doi:10.1137/0914086 (L-curve).
    Bilgic et al., JMRI 40:181, 2014, doi:10.1002/jmri.24365.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-24:24, -24:24, -24:24])
    >>> field = forward_field((r2 < 36).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> chi = tikhonov(field, np.ones(field.shape, bool), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1), lambda_=1e-3)
    >>> bool(0.8 < chi[r2 < 16].mean() < 1)
    True
    """

    def inverse(kernel, shape, field):
        power = gradient_power(shape, voxel_size) if penalty == "gradient" else np.float32(1)
        weight = lambda_ if tune == "none" else _corner(lambda_, kernel, power, field, shape[-1])
        denominator = kernel**2 + np.float32(weight) * power
        return np.divide(kernel, denominator, out=np.zeros_like(kernel), where=denominator > 0)

    return _divide(local_field, mask, voxel_size, b0_dir, inverse)


def _mean_ratio(threshold: float) -> float:
    """Mean of ``D / D_t`` over all directions (the cosine of a random direction is uniform)."""
    cosine = (np.arange(100_000) + 0.5) / 100_000
    return float(np.minimum(np.abs(1 / 3 - cosine**2) / threshold, 1).mean())


def _kept_share(threshold: float) -> float:
    """Share of directions with ``|D| > threshold``."""
    cosine = (np.arange(100_000) + 0.5) / 100_000
    return float((np.abs(1 / 3 - cosine**2) > threshold).mean())


def _corner(lambda_: float, kernel: np.ndarray, power: np.ndarray, field: np.ndarray, last: int) -> float:
    """Weight at the corner of the L-curve of ``D F(f) / (D^2 + lambda G)``.

    Misfit and penalty depend on a frequency only through ``G / D^2``: the energy of the field over that ratio is summed up
    once and serves all weights.
    """
    energy = field.real**2 + field.imag**2
    energy[..., 1 : (last + 1) // 2] *= 2  # the half that is not stored
    ratio = np.log(np.maximum(power, 1e-12)) - 2 * np.log(np.maximum(np.abs(kernel), 1e-6))
    energy[0, 0, 0] = 0
    sums, edges = np.histogram(ratio, bins=1000, weights=energy.astype(np.float64))
    ratio = np.exp((edges[1:] + edges[:-1]) / 2)
    weights = lambda_ * np.logspace(-2, 2, 81)
    filtered = 1 / (1 + weights[:, None] * ratio)
    misfit = (sums * (1 - filtered) ** 2).sum(axis=1)
    penalty = (sums * ratio * filtered**2).sum(axis=1)
    return float(weights[largest_curvature(misfit, penalty, weights)])


def _divide(local_field, mask, voxel_size, b0_dir, inverse):
    """``M F^-1(inverse(D) F(M f))`` without the mean; ``inverse`` is told D, the padded shape and the field's spectrum."""
    shape = fourier.padded_shape(mask.shape)
    field = fourier.rfftn(np.where(mask, local_field, 0).astype(np.float32), shape)
    field *= inverse(dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir), shape, field)
    field[0, 0, 0] = 0
    return np.where(mask, fourier.irfftn(field, shape, mask.shape), np.float32(0))
