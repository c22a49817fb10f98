"""QSIP: the Laplacian of the total field, with the susceptibility that an atlas expects as prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage as ndi

from qsmflow.algorithms.background.lbv import lbv
from qsmflow.algorithms.inversion import misfit
from qsmflow.algorithms.inversion.admm import HarmonicResidual, Variation, minimise, prepare

#: Penalty of the split Laplacian in units of the voxel size to the fourth, as for tgv: how fast ADMM converges, not where to.
_PENALTY = 0.5


def qsip(
    total_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    chi_prior: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    lambda_: float = 1e-4,
    peel: int = 2,
    iterations: int = 200,
    tolerance: float = 5e-3,
    weighted: bool = True,
) -> np.ndarray:
    """Susceptibility by inversion of a perturbation model (QSIP) with a prior from an atlas.

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter).
    chi_prior : ndarray, (X, Y, Z)
        Expected susceptibility, ppm, relative to most of the brain.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    lambda_ : float
        Weight of the total variation of the difference from the prior, ppm mm.
    peel : int
        Layers of voxels at the mask's edge whose field is not used: it changes so fast there that differences between voxels
        make sources of a background that has none.
    iterations : int
        Largest number of ADMM iterations.
    tolerance : float
        Stop when the susceptibility in the mask changes by less than this fraction of its norm.
    weighted : bool
        Weight voxels with the inverse of their field error instead of equally.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask, its mean over the mask 0; without meaning in the peeled layers (Notes).

    Raises
    ------
    ValueError
        If nothing of the mask is left inside the peeled layers.

    Notes
    -----
    ``min 1/2 ||W psi||^2 + lambda ||grad(chi - chi_prior)||_1`` under ``lap psi = lap(d * chi - f)`` wherever all six
    neighbours are in the peeled mask, with the dipole d sampled in image space, W the inverse field error and psi the least
    of the fields that fit: least squares of the Laplacian, weighted with the inverse covariance that the noise of the field
    gives it. A harmonic background drops out. The susceptibility outside the mask is estimated as well, from what the voxels
    inside see of it, and not reported; there and in the peeled layers little but the penalty acts. A region keeps the edge that
    the prior expects unless the data pay for another one.

    Of the published method, the model in image space, the Laplacian and a prior from an atlas are taken over from descriptions
    of it; the paper itself was not read, and its norms, atlas and solver may differ. Total variation of the deviation, which is
    that of :func:`qsmflow.algorithms.inversion.tv.tv`, and the weighting are choices made here. An iteration is that of
    :func:`qsmflow.algorithms.singlestep.tgv.tgv`.

    References
    ----------
    Poynton et al., IEEE Trans Med Imaging 34:339, 2015, doi:10.1109/TMI.2014.2358552.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> truth = 0.1 * (r2 < 25).astype(np.float32)
    >>> field = forward_field(truth, voxel_size=(1, 1, 1), b0_dir=(0, 0, 1), space="image")
    >>> field += np.linspace(0, 3, 32, dtype=np.float32)  # background
    >>> head, context = r2 < 196, {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1)}
    >>> chi = qsip(field, head, np.ones_like(field), truth, **context)
    >>> bool(abs(chi[head] - truth[head] + truth[head].mean()).max() < 2e-3)
    True
    """
    local, inside = lbv(total_field, mask, voxel_size=voxel_size, peel=peel)
    used = ndi.binary_dilation(inside)
    grid, field, weight = prepare(local, used, field_error, weighted, voxel_size, b0_dir)
    grid = replace(grid, space="image")
    weight *= weight
    penalty = _PENALTY * math.prod(voxel_size) ** (4 / 3)
    prior = grid.pad(np.where(mask, chi_prior, 0))
    field -= np.where(weight > 0, grid.forward(prior), 0)
    data = HarmonicResidual(grid, field, weight, misfit.squares, inside, penalty=penalty, beta=math.inf)
    options = {"mask": mask, "iterations": iterations, "tolerance": tolerance, "name": "qsip"}
    chi = grid.crop(prior + minimise(grid, data, Variation(grid, lambda_), **options), mask)
    return np.where(mask, chi - np.float32(chi[mask].mean(dtype=np.float64)), np.float32(0))
