"""TGV-QSM: the Laplacian of the total field and second-order total generalised variation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage as ndi

from qsmflow.algorithms.background.lbv import lbv
from qsmflow.algorithms.inversion import misfit
from qsmflow.algorithms.inversion.admm import GeneralisedVariation, HarmonicResidual, minimise, prepare

#: Penalty of the split Laplacian in units of the voxel size to the fourth. It sets how fast ADMM converges, not where to: a
#: larger one takes up the smooth harmonic fields later, a smaller one the rough ones.
_PENALTY = 0.5


def tgv(
    total_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    lambda_: float = 1e-4,
    ratio: float = 3.0,
    peel: int = 2,
    iterations: int = 200,
    tolerance: float = 1e-3,
    weighted: bool = True,
) -> np.ndarray:
    """Susceptibility from the Laplacian of the total field with total generalised variation (TGV-QSM).

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter).
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    lambda_ : float
        Weight of the first order, ppm mm.
    ratio : float
        Weight of the second order as a multiple of ``lambda_`` times 1 mm.
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
        Susceptibility, ppm, 0 outside the mask; without meaning in the peeled layers (Notes).

    Raises
    ------
    ValueError
        If nothing of the mask is left inside the peeled layers.

    Notes
    -----
    ``min 1/2 ||W psi||^2 + lambda ||grad chi - v||_1 + ratio lambda ||sym grad v||_1`` under ``lap psi = lap (D chi - f)``
    wherever all six neighbours are in the peeled mask: the background is harmonic and has no part in it, and psi is what is
    left of the field after the harmonic field that fits best. The susceptibility is free outside the mask, and no voxel of the
    mask is left out; but in the peeled layers nothing except the penalty acts, and the map is a nearly constant continuation
    that says nothing of its own. Its mean over the mask is set to 0.

    As ``psi = D chi + h - f`` with a field h whose Laplacian is 0 there, the constraint is split off like the misfit: an
    iteration of ADMM is one division in k-space for chi and h and one step voxel by voxel for each split. The division takes
    the low frequencies at once, which steps in image space reach last. What lbv takes for background is subtracted before,
    which changes h and nothing else.

    References
    ----------
    Langkammer et al., NeuroImage 111:622, 2015, doi:10.1016/j.neuroimage.2015.02.041.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field(0.1 * (r2 < 25), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> field += np.linspace(0, 3, 32, dtype=np.float32)  # background
    >>> chi = tgv(field, r2 < 196, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(abs(chi[r2 < 16].mean() - chi[(r2 > 49) & (r2 < 144)].mean() - 0.1) < 0.015)
    True
    """
    local, inside = lbv(total_field, mask, voxel_size=voxel_size, peel=peel)
    used = ndi.binary_dilation(inside)
    grid, field, weight = prepare(local, used, field_error, weighted, voxel_size, b0_dir)
    weight *= weight
    penalty = _PENALTY * math.prod(voxel_size) ** (4 / 3)
    data = HarmonicResidual(grid, field, weight, misfit.squares, inside, penalty=penalty, beta=math.inf)
    gradient = GeneralisedVariation(grid, lambda_, ratio)
    chi = minimise(grid, data, gradient, mask=mask, iterations=iterations, tolerance=tolerance, name="tgv")
    chi = grid.crop(chi, mask)
    return np.where(mask, chi - np.float32(chi[mask].mean(dtype=np.float64)), np.float32(0))
