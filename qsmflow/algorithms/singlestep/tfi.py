"""TFI: total field inversion, sources inside and outside the mask at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from qsmflow.algorithms import fourier, solvers
from qsmflow.algorithms.dipole import dipole_kernel
from qsmflow.algorithms.inversion.gauss_newton import Fit, morphology_edges
from qsmflow.algorithms.units import radians_per_ppm
from qsmflow.algorithms.weights import error_weights

_PROJECTION_TOLERANCE = 1e-3


def tfi(
    total_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    magnitude: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
    data: Literal["linear", "nonlinear"] = "linear",
    lambda_: float = 2e-4,
    edges: float = 0.3,
    outside: float = 3.0,
    projection: int = 30,
    margin: float = 40.0,
    iterations: int = 30,
    cg_iterations: int = 10,
    tolerance: float = 1e-2,
) -> np.ndarray:
    """Susceptibility by total field inversion, without background removal.

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter).
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    b0 : float
        Main field strength, T (for the nonlinear data term).
    echo_times : sequence of float
        Echo times, s (for the nonlinear data term).
    data : {"linear", "nonlinear"}
        Compare the fields themselves, or the complex signals that go with them. The nonlinear term has other minima wherever
        the background is not yet fitted to within half a turn.
    lambda_ : float
        Weight of the smoothness inside the mask, ppm mm.
    edges : float
        Share of the magnitude's gradient components in the mask that are taken for edges, where the susceptibility may jump.
    outside : float
        How much more freely the susceptibility moves outside the mask than inside, the preconditioner P there.
    projection : int
        Conjugate-gradient iterations for sources outside the mask alone, from which the joint fit starts; 0 for none.
    margin : float
        Width of the border around the grid that may hold sources and keeps periodic copies apart, mm.
    iterations : int
        Largest number of Gauss-Newton steps.
    cg_iterations : int
        Largest number of conjugate-gradient iterations in each step.
    tolerance : float
        Stop when a step is smaller than this fraction of the susceptibility.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    ``min_y 1/2 ||W (D P y - f)||^2 + lambda ||M_G grad(P y)||_1``, ``chi = P y``: P is 1 inside the mask and ``outside``
    elsewhere, W the inverse field error and 0 outside the mask, M_G is 0 at the edges of the magnitude and everywhere outside.
    D is sampled by its Green's function, as for the projection onto dipole fields. Because the iteration in y is the one
    in chi preconditioned with ``P^2``, and every step of it is stopped early, P decides what is explained by sources outside.
    Starting from the projection onto dipole fields leaves the joint fit with what that got wrong: sources near the mask's edge.
    Every voxel of the mask keeps a value.

    References
    ----------
    Liu Z et al., MRM 78:303, 2017, doi:10.1002/mrm.26331.

    Examples
    --------
    Sources outside leave nothing inside:

    >>> from qsmflow.algorithms.dipole import forward_field
    >>> x, y, z = np.ogrid[-16:16, -16:16, -16:16]
    >>> source = ((x - 13) ** 2 + y**2 + z**2 < 5).astype(np.float32)
    >>> field, inside = forward_field(source, voxel_size=(1, 1, 1), b0_dir=(0, 0, 1)), x**2 + y**2 + z**2 < 81
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1), "b0": 3, "echo_times": (0.005, 0.01)}
    >>> chi = tfi(field, inside, np.ones_like(field), np.ones((*field.shape, 1), np.float32), margin=8.0, **context)
    >>> bool(abs(chi).max() < 0.05 * abs(field[inside]).max())
    True
    """
    radians = radians_per_ppm(b0=b0, echo_times=echo_times) if data == "nonlinear" else 0.0
    shape = fourier.padded_shape(mask.shape, [int(np.ceil(margin / h)) for h in voxel_size])
    corner = tuple(slice(n) for n in mask.shape)
    measured, squared, elsewhere = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.ones(shape, np.float32)
    squared[corner] = error_weights(field_error, mask) ** 2
    measured[corner] = np.where(mask, total_field - np.average(total_field[mask], weights=squared[corner][mask]), 0)
    elsewhere[corner] = ~mask
    kernel = dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir, space="image")
    inverse_size = tuple(np.float32(1 / h) for h in voxel_size)
    jumps = np.zeros((3, *shape), np.uint8)
    jumps[:, *corner] = mask * morphology_edges(magnitude, mask, inverse_size=inverse_size, fraction=edges)
    fit = Fit(measured, squared, kernel, jumps, inverse_size, lambda_, radians)
    scale = np.where(elsewhere, np.float32(outside**2), np.float32(1))
    start = _project(measured, squared, kernel, elsewhere, projection) if projection else None
    chi = fit.solve(
        iterations=iterations, cg_iterations=cg_iterations, tolerance=tolerance, name="tfi",
        preconditioner=lambda r: scale * r, start=start,
    )  # fmt: skip
    return np.where(mask, chi[corner], np.float32(0))


def _project(measured, squared, kernel, elsewhere, iterations):
    """Sources outside the mask that explain most of the field."""

    def adjoint(residual):
        return elsewhere * fourier.convolve(squared * residual, kernel, residual.shape)

    return solvers.conjugate_gradients(
        lambda x: adjoint(fourier.convolve(x, kernel, x.shape)), adjoint(measured),
        iterations=iterations, tolerance=_PROJECTION_TOLERANCE,
    )  # fmt: skip
