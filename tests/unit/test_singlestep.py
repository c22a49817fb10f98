"""Single-step inversions: operators and their adjoints, blindness for the background, known sources, and the stopping rules."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage as ndi
from scipy.optimize import minimize

from qsmflow import registry
from qsmflow.algorithms import fourier, operators, simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.inversion import admm
from qsmflow.algorithms.singlestep import second_order, sharp, tgv
from qsmflow.algorithms.singlestep.qsip import qsip

METHODS = ("sstv", "sstgv", "tgv")
SHAPE, SIZE, TILTED = (26, 28, 24), (2.0, 2.0, 2.5), (0.0, 0.6, 0.8)
RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def dot(a, b):
    return float(np.sum(a.astype(np.float64) * b))


@pytest.fixture(scope="module")
def head():
    """Mask, truth, and total field with a background that is a thousand times the signal's noise."""
    mask = simulation.sphere(SHAPE, radius=23.0, voxel_size=SIZE) > 0.5
    chi = simulation.sphere(SHAPE, radius=7.0, centre=(10, 15, 12), chi=0.1, voxel_size=SIZE)
    chi -= simulation.sphere(SHAPE, radius=6.0, centre=(17, 11, 10), chi=0.08, voxel_size=SIZE)
    local = forward_field(chi, voxel_size=SIZE, b0_dir=TILTED)
    return mask, chi, ((local + background(SHAPE)) * mask).astype(np.float32)


def background(shape):
    """Harmonic polynomials, several ppm."""
    x, y, z = (np.arange(n, dtype=np.float64).reshape(s) * h / 20 for n, h, s in zip(
        shape, SIZE, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True))  # fmt: skip
    return (0.5 + x - 0.7 * y + x * z + 0.5 * (2 * z**2 - x**2 - y**2)).astype(np.float32)


def solve(name, field, mask, b0_dir=TILTED, error=None, **parameters):
    arrays = {"total_field": field, "mask": mask, "field_error": np.ones(mask.shape, np.float32) if error is None else error}
    context = {"voxel_size": SIZE, "b0_dir": b0_dir}
    return registry.apply("inversion", name, arrays=arrays, context=context, parameters=parameters)["chi"]


@pytest.mark.parametrize("name", METHODS)
def test_background_makes_no_susceptibility(name, head):
    mask, chi, _ = head
    assert abs(solve(name, background(SHAPE) * mask, mask)).max() < 0.01 * chi.max()


@pytest.mark.parametrize("name", METHODS)
def test_sources_come_back_to_the_edge(name, head):
    """Tilted field, anisotropic voxels, background; the outermost voxels are as good as the others."""
    mask, chi, field = head
    found = solve(name, field, mask)
    error = np.where(mask, found - found[mask].mean() - (chi - chi[mask].mean()), 0)
    assert np.linalg.norm(error) < 0.25 * np.linalg.norm((chi - chi[mask].mean())[mask])
    eroded = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
    rim = mask & ~eroded
    assert found[rim].all()
    assert np.sqrt(np.square(error[rim]).mean()) < 0.01
    inside = chi > 0.099
    assert found[inside].mean() - found[rim].mean() == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("name", METHODS)
def test_odd_and_blind_for_the_sign_of_the_main_field(name, head):
    mask, _, field = head
    found = solve(name, field, mask, iterations=20)
    np.testing.assert_allclose(solve(name, -field, mask, iterations=20), -found, atol=1e-5)
    opposite = tuple(-b for b in TILTED)
    np.testing.assert_allclose(solve(name, field, mask, b0_dir=opposite, iterations=20), found, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_weights_keep_bad_voxels_out(name, head):
    mask, chi, field = head
    noise = np.zeros(SHAPE, np.float32)
    noise[12:15, 8:11, 14:16] = 0.3 * RNG.normal(size=(3, 3, 2))
    error = np.where(noise != 0, 100, 1).astype(np.float32)
    away = mask & (noise == 0)
    clean = solve(name, field, mask)
    told, untold = (solve(name, field + noise, mask, error=error, weighted=weighted) for weighted in (True, False))
    assert np.linalg.norm((told - clean)[away]) < 0.5 * np.linalg.norm((untold - clean)[away])
    assert abs(chi).max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_stops_when_little_changes(name, head):
    """A loose tolerance stops at the first susceptibility that is not 0: tgv's splits get the field in its first iteration."""
    mask, _, field = head
    first = 2 if name == "tgv" else 1
    loose = solve(name, field, mask, tolerance=1e9)
    np.testing.assert_array_equal(loose, solve(name, field, mask, iterations=first, tolerance=0.0))
    assert abs(loose - solve(name, field, mask)).max() > 1e-3


def test_symmetrised_gradient_and_its_adjoint():
    size = tuple(np.float32(1 / h) for h in SIZE)
    v, t = random(3, 7, 6, 5), random(6, 7, 6, 5)
    gradient, divergence = np.empty_like(t), np.empty_like(v)
    second_order.symmetrised_gradient(v, size, gradient)
    second_order.tensor_divergence(t, size, divergence)
    twice = np.array([1, 1, 1, 2, 2, 2]).reshape(6, 1, 1, 1)
    assert dot(gradient, twice * t) == pytest.approx(dot(v, divergence), rel=1e-5)


def test_joint_step_solves_the_normal_equations():
    """Put back into the equations, formed with the operators in image space, the solution gives the right-hand sides."""
    shape, first, second = (8, 6, 10), np.float32(0.02), np.float32(0.05)
    size = tuple(np.float32(1 / h) for h in SIZE)
    data = (0.1 + RNG.random((8, 6, 6))).astype(np.float32)
    right_x, right_v = random(*shape), random(3, *shape)
    right_x -= right_x.mean()
    right_v -= right_v.mean(axis=(1, 2, 3), keepdims=True)
    x, v = fourier.rfftn(right_x, shape), np.stack([fourier.rfftn(part, shape) for part in right_v])
    second_order.solve_jointly(x, v, second_order.difference_symbols(shape, SIZE), data, first, second)
    fitted = fourier.irfftn(data * x, shape)
    x, v = fourier.irfftn(x, shape), np.stack([fourier.irfftn(part, shape) for part in v])
    misfit, pulled, tensor, stiff = np.empty_like(v), np.empty_like(x), np.empty((6, *shape), np.float32), np.empty_like(v)
    operators.gradient(x, size, misfit)
    misfit -= v
    operators.divergence(misfit, size, pulled)
    second_order.symmetrised_gradient(v, size, tensor)
    second_order.tensor_divergence(tensor, size, stiff)
    np.testing.assert_allclose(fitted + first * pulled, right_x, atol=2e-4)
    np.testing.assert_allclose(-first * misfit + second * stiff, right_v, atol=2e-4)


def test_parabola_lies_above_the_data_term(head):
    """The curvature bounds the data term's from above, as far as power iterations can tell."""
    mask, _, field = head
    data = sharp._spheres(field, mask, None, SIZE, TILTED, 12.0, 1.5)
    still = sharp._Data(np.zeros_like(data.filtered), data.squared, data.sphere, data.kernels, data.curvature)
    root = np.sqrt(data.curvature)
    inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 1e-4)
    x = random(*data.shape)
    for _ in range(30):
        spectrum = fourier.rfftn(x / np.linalg.norm(x), data.shape) * inverse
        x = fourier.irfftn((data.curvature * spectrum - still.step(spectrum)) * inverse, data.shape)
    assert 0.5 < np.linalg.norm(x) < 1.0


def test_objective_falls(head):
    mask, _, field = head
    data = sharp._spheres(field, mask, None, SIZE, TILTED, 12.0, 1.5)
    values = []
    for iterations in (2, 5, 20, 80):
        chi = sharp_map(field, mask, iterations)
        spectrum = fourier.rfftn(chi, data.shape)
        misfit = 0.0
        for number, kernel in enumerate(data.kernels, 1):
            difference = (fourier.irfftn(kernel * spectrum, data.shape) - data.filtered)[data.sphere == number]
            misfit += 0.5 * dot(difference, difference)
        gradient = np.empty((3, *data.shape), np.float32)
        operators.gradient(chi, tuple(np.float32(1 / h) for h in SIZE), gradient)
        values.append(misfit + 1e-4 * float(np.abs(gradient).sum()))
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.2 * 0.5 * dot(data.filtered, data.filtered)


def sharp_map(field, mask, iterations):
    """The susceptibility on the padded grid, where it is free outside the mask."""
    caught = {}

    class Caught(sharp._Data):
        def cropped(self, chi, mask):
            caught["chi"] = chi
            return super().cropped(chi, mask)

    original = sharp._spheres
    sharp._spheres = lambda *arguments: Caught(**vars(original(*arguments)))
    try:
        sharp.sstv(field, mask, np.ones_like(field), voxel_size=SIZE, b0_dir=TILTED, iterations=iterations, tolerance=0.0)
    finally:
        sharp._spheres = original
    return caught["chi"]


def test_penalty_of_the_split_laplacian_does_not_move_the_minimum(head, monkeypatch):
    mask, _, field = head
    found = []
    for penalty in (0.25, 1.0):
        monkeypatch.setattr(tgv, "_PENALTY", penalty)
        found.append(solve("tgv", field, mask, tolerance=0.0, iterations=200))
    assert np.linalg.norm(found[1] - found[0]) < 0.03 * np.linalg.norm(found[0])


def test_peeled_layers_are_not_used(head):
    """A wrong field in the outermost two layers moves nothing, and their susceptibility is continued from inside."""
    mask, _, field = head
    wrong = field + np.where(mask & ~ndi.binary_erosion(mask, iterations=2), random(*SHAPE), 0)
    np.testing.assert_array_equal(solve("tgv", wrong, mask, iterations=20), solve("tgv", field, mask, iterations=20))


def test_thin_masks_are_refused():
    thin = np.zeros(SHAPE, bool)
    thin[:, :, 5] = True
    for name in METHODS:
        with pytest.raises(ValueError, match="mask"):
            solve(name, np.ones(SHAPE, np.float32), thin)


def test_both_generalised_variations_have_the_same_defaults():
    """So that weights carry over from one method to the other."""
    defaults = [inspect.signature(function).parameters for function in (sharp.sstgv, tgv.tgv)]
    assert defaults[0]["lambda_"].default == defaults[1]["lambda_"].default
    assert defaults[0]["ratio"].default == defaults[1]["ratio"].default


def test_prior_that_is_the_truth_comes_back(head):
    """Tilted field, anisotropic voxels; the background has no part in it."""
    mask, chi, _ = head
    field = forward_field(chi, voxel_size=SIZE, b0_dir=TILTED, space="image") + background(SHAPE)
    found = qsip_map(field, mask, chi, tolerance=1e-5, iterations=1000)
    assert abs(found - (chi - chi[mask].mean()))[mask].max() < 0.01 * chi.max()


def test_a_prior_decides_what_the_data_do_not(head):
    """The more, the larger the weight: a large one gives the prior back. Without one, a background makes nothing."""
    mask, chi, field = head
    inside = chi > 0.099

    def spread(weight):
        none, full = (qsip_map(field, mask, prior, lambda_=weight)[inside].mean() for prior in (0 * chi, chi))
        return full - none

    assert 0 < spread(1e-4) < 0.01  # 0.006
    assert spread(1e-2) > 0.08  # 0.088
    heavy = qsip_map(field, mask, chi, lambda_=100.0)
    np.testing.assert_allclose(heavy, (chi - chi[mask].mean()) * mask, atol=1e-5)
    assert abs(qsip_map(background(SHAPE), mask, 0 * chi)).max() < 0.01 * chi.max()
    full, flipped = qsip_map(field, mask, chi), qsip_map(-field, mask, -chi, b0_dir=tuple(-b for b in TILTED))
    np.testing.assert_allclose(flipped, -full, atol=1e-4)


def qsip_problem(shape, size, weight):
    """Mask, field, prior, grid, and the objective: from the deviation on the padded grid to its value and derivative.

    The misfit of the Laplacian, with the covariance that white noise in the field gives it, comes from dense matrices.
    """
    mask = np.ones(shape, bool)
    mask[0, 0], mask[-1, :, -1] = False, False
    field, prior = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    prior *= np.float32(0.5) * mask
    grid = replace(admm.Grid(shape, size, TILTED), space="image")
    inside = ndi.binary_erosion(mask)
    used = np.flatnonzero(grid.pad(ndi.binary_dilation(inside)))
    unit = np.eye(np.prod(grid.shape), dtype=np.float32).reshape(-1, *grid.shape)
    second = np.stack([fourier.irfftn(operators.gradient_power(grid.shape, size) * fourier.rfftn(e, grid.shape), grid.shape)
                       for e in unit]).reshape(len(unit), -1).astype(float)  # fmt: skip
    laplace = -second[np.flatnonzero(grid.pad(inside))]
    dipole = np.stack([grid.forward(e) for e in unit]).reshape(len(unit), -1).astype(float).T
    known, model = laplace[:, used], laplace @ dipole
    right = known @ grid.pad(field).ravel()[used] - model @ grid.pad(prior).ravel()
    whitened = np.linalg.solve(known @ known.T, model), np.linalg.solve(known @ known.T, right)

    def objective(deviation, smooth=1e-4):
        left, volume = model @ deviation - right, deviation.reshape(grid.shape)
        steps = [(np.roll(volume, -1, axis) - volume) / h for axis, h in enumerate(size)]
        length = np.sqrt(sum(step**2 for step in steps) + smooth**2)
        rough = sum((np.roll(step / length, 1, axis) - step / length) / size[axis] for axis, step in enumerate(steps))
        value = 0.5 * left @ (whitened[0] @ deviation - whitened[1]) + weight * length.sum()
        return value, whitened[0].T @ left + weight * rough.ravel()

    return mask, field, prior, grid, objective


@pytest.mark.parametrize(("weight", "bar"), [(0.05, 0.03), (0.005, 0.25)])
def test_qsip_is_at_the_minimum(weight, bar):
    """Against a general solver on all unknowns of a small grid of anisotropic voxels.

    With the smaller weight the Laplacian alone decides nearly; many maps fit it almost alike, and both solvers settle slowly.
    """
    shape, size = (7, 8, 6), (6.0, 5.0, 7.0)
    mask, field, prior, grid, objective = qsip_problem(shape, size, weight)
    steps = {"maxiter": 5000, "maxfun": 9000}
    best = minimize(objective, np.zeros(np.prod(grid.shape)), jac=True, method="L-BFGS-B", options=steps)
    found = qsip_map(field, mask, prior, voxel_size=size, lambda_=weight, peel=0, iterations=2000, tolerance=1e-6)
    moved = grid.crop(best.x.reshape(grid.shape), mask)[mask]
    error = (found - prior)[mask] + prior[mask].mean() - (moved - moved.mean())
    assert np.linalg.norm(error) < bar * np.linalg.norm(moved - moved.mean())


def qsip_map(field, mask, prior, *, voxel_size=SIZE, b0_dir=TILTED, **parameters):
    error = np.ones(mask.shape, np.float32)
    return qsip(field, mask, error, prior, voxel_size=voxel_size, b0_dir=b0_dir, **parameters)
