"""Weighted dipole fits with edge-preserving smoothness, by Gauss-Newton steps with lagged diffusivity.

What MEDI and its kin share: they differ in the field they take, in the kernel, in where the susceptibility may live, and in
what is known about it beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from qsmflow.algorithms import fourier, operators, solvers

#: Gradients below this many ppm/mm are smoothed quadratically, so that the norm has a derivative at 0.
SMOOTHING = 1e-3

#: Conjugate gradients within one step stop when the residual has fallen by this factor; the next step goes on anyway.
_CG_TOLERANCE = 0.01


@dataclass
class Fit:
    """Fit of a susceptibility to a field on a padded grid.

    ``min 1/2 ||W (e^{ik D chi} - e^{ik f})||^2 / k^2 + lambda ||M_G grad chi||_1 + mu/2 ||P chi||^2``

    Attributes
    ----------
    measured : ndarray, (X, Y, Z)
        The field f, ppm.
    squared : ndarray, (X, Y, Z)
        Squared data weights W; 0 where nothing is known. :meth:`solve` with ``merit`` replaces them.
    kernel : ndarray
        Half spectrum of D.
    edges : ndarray of uint8, (3, X, Y, Z)
        M_G, 0 where the gradient may jump.
    inverse_size : tuple of float
        Inverse voxel size, 1/mm.
    lambda_ : float
        Weight of the smoothness, ppm mm.
    radians : float
        k, rad/ppm; 0 takes the limit, the linear data term ``1/2 ||W (D chi - f)||^2``.
    uniform : ndarray of int, (N,)
        Flat indices of voxels where chi is known to be all the same; P is 0 elsewhere and subtracts the mean there.
    uniform_weight : float
        mu.

    Notes
    -----
    Divided by ``k^2`` the nonlinear term is in ppm^2 like the linear one, so that one lambda serves every field strength, echo
    time and voxel size.
    """

    measured: np.ndarray
    squared: np.ndarray
    kernel: np.ndarray
    edges: np.ndarray
    inverse_size: tuple[np.float32, ...]
    lambda_: float
    radians: float = 0.0
    uniform: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    uniform_weight: float = 0.0
    _diffusivity: np.ndarray = field(init=False, repr=False)
    _extent: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self):
        self._diffusivity = np.empty(self.edges.shape, np.float32)
        # Beyond it nothing is known, and fields need not be transformed.
        self._extent = tuple(int(indices.max()) + 1 for indices in np.nonzero(self.squared))

    def objective(self, chi: np.ndarray) -> float:
        """Value of the (smoothed) objective."""
        misfit = (self._forward(chi) - self.measured).astype(np.float64)
        if self.radians:
            misfit = 2 * np.sin(self.radians * misfit / 2) / self.radians  # |e^{ia} - e^{ib}| = 2 |sin((a - b) / 2)|
        gradient = np.empty(self.edges.shape, np.float32)
        operators.gradient(chi, self.inverse_size, gradient)
        smooth = (self.edges * np.sqrt(gradient.astype(np.float64) ** 2 + SMOOTHING**2)).sum()
        value = 0.5 * (self.squared * misfit**2).sum() + self.lambda_ * smooth
        if self.uniform.size:
            value += 0.5 * self.uniform_weight * self.uniform.size * chi.ravel()[self.uniform].var(dtype=np.float64)
        return float(value)

    def gradient(self, chi: np.ndarray, *, linear: bool = False) -> np.ndarray:
        """Derivative of the objective (with the linear data term, if asked for); sets the diffusivity to that of ``chi``."""
        seen = tuple(slice(n) for n in self._extent)
        misfit = fourier.convolve_onto(chi, self.kernel, chi.shape, self._extent)
        misfit -= self.measured[seen]
        if self.radians and not linear:
            misfit *= np.float32(self.radians)
            np.sin(misfit, out=misfit)
            misfit /= np.float32(self.radians)
        misfit *= self.squared[seen]
        operators.lagged_diffusivity(chi, self.edges, self.inverse_size, np.float32(SMOOTHING), self._diffusivity)
        return self._penalise(fourier.convolve_onto(misfit, self.kernel, chi.shape), chi)

    def curvature(self, step: np.ndarray) -> np.ndarray:
        """Gauss-Newton approximation of the second derivative, where :meth:`gradient` was last taken, times ``step``."""
        forward = fourier.convolve_onto(step, self.kernel, step.shape, self._extent)
        forward *= self.squared[tuple(slice(n) for n in self._extent)]
        return self._penalise(fourier.convolve_onto(forward, self.kernel, step.shape), step)

    def solve(
        self,
        *,
        iterations: int,
        cg_iterations: int,
        tolerance: float,
        name: str,
        merit: float = 0.0,
        preconditioner: Callable[[np.ndarray], np.ndarray] | None = None,
        start: np.ndarray | None = None,
    ) -> np.ndarray:
        """The susceptibility after Gauss-Newton steps from ``start`` (or 0), ppm, on the padded grid.

        Stops when a step is smaller than ``tolerance`` times the susceptibility where there are data, and logs for the method
        ``name`` how it ended. The first step takes the linear data term, because the field comes unwrapped: it leads to where
        the nonlinear term has no other minimum nearby.
        """
        chi = np.zeros(self.measured.shape, np.float32) if start is None else start.copy()
        trusted = self.squared
        known = trusted > 0
        iteration, reached = -1, np.inf
        for iteration in range(iterations):
            downhill = self.gradient(chi, linear=iteration == 0)
            np.negative(downhill, out=downhill)
            step = solvers.conjugate_gradients(
                self.curvature, downhill, iterations=cg_iterations, tolerance=_CG_TOLERANCE, preconditioner=preconditioner
            )
            chi += step
            size = np.linalg.norm(chi[known].astype(np.float64))
            reached = np.linalg.norm(step[known].astype(np.float64)) / size if size else 0.0
            if reached <= tolerance:
                break
            if merit:
                self.squared = self._without_outliers(chi, trusted, merit)
        solvers.note_end(name, iteration + 1, reached, tolerance)
        return chi

    def _forward(self, chi: np.ndarray) -> np.ndarray:
        """``D chi``; D is its own adjoint."""
        return fourier.convolve(chi, self.kernel, chi.shape)

    def _penalise(self, out: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Add the penalties' part of the derivative to ``out``."""
        operators.diffuse(x, self._diffusivity, self.inverse_size, np.float32(self.lambda_), out)
        if self.uniform.size:
            values = x.ravel()[self.uniform]
            out.ravel()[self.uniform] += np.float32(self.uniform_weight) * (values - np.float32(values.mean(dtype=np.float64)))
        return out

    def _without_outliers(self, chi: np.ndarray, trusted: np.ndarray, merit: float) -> np.ndarray:
        """MERIT: squared weights with the noise of voxels whose residual r is above m standard deviations s times (r / ms)^2.

        Residuals are taken with the first weights, so that a voxel comes back when it was only not fitted yet.
        """
        misfit = self._forward(chi) - self.measured
        if self.radians:
            misfit = 2 * np.sin(np.float32(self.radians / 2) * misfit) / np.float32(self.radians)
        residual = np.abs(misfit) * np.sqrt(trusted)
        excess = residual / np.float32(merit * residual[trusted > 0].std(dtype=np.float64) or 1)
        return trusted / np.maximum(excess, 1) ** 4


def morphology_edges(magnitude: np.ndarray, mask: np.ndarray, *, inverse_size: tuple, fraction: float) -> np.ndarray:
    """M_G: where the susceptibility should not jump, because the magnitude does not.

    Parameters
    ----------
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes; they are combined by the root of the sum of squares.
    mask : ndarray of bool, (X, Y, Z)
        The magnitude counts as 0 outside, so that the mask's border is an edge.
    inverse_size : tuple of float32
        Inverse voxel size, 1/mm.
    fraction : float
        Share of the gradient's components in the mask that are taken for edges, the largest ones.

    Returns
    -------
    ndarray of uint8, (3, X, Y, Z)
        0 at edges, 1 elsewhere; component by component, as :func:`qsmflow.algorithms.operators.gradient`.

    Examples
    --------
    >>> step = np.ones((6, 4, 4, 1), np.float32)
    >>> step[3:] = 2
    >>> inside = np.ones((6, 4, 4), bool)
    >>> edges = morphology_edges(step, inside, inverse_size=(np.float32(1),) * 3, fraction=0.2)
    >>> edges[0, :, 0, 0], int(edges[1:].min())
    (array([1, 1, 0, 1, 1, 0], dtype=uint8), 1)
    """
    combined = np.sqrt(np.einsum("...e,...e->...", magnitude, magnitude)) * mask
    slopes = np.empty((3, *mask.shape), np.float32)
    operators.gradient(combined, inverse_size, slopes)
    np.abs(slopes, out=slopes)
    threshold = np.quantile(slopes[:, mask], 1 - fraction)
    return (slopes <= threshold).astype(np.uint8)
