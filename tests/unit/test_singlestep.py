"""Single-step inversions: operators and their adjoints, blindness for the background, known sources, and the stopping rules."""

import inspect

import numpy as np
import pytest

from qsmflow import registry
from qsmflow.algorithms import fourier, operators, simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.singlestep import second_order, sharp, tgv

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
    """A loose tolerance stops at the first look: after two iterations, or 50 of those that cost little."""
    mask, _, field = head
    first = tgv._LOOK if name == "tgv" else 1
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


@pytest.fixture
def problem():
    mask = np.zeros((11, 12, 10), bool)
    mask[3:8, 3:9, 3:7] = True
    mask[5, 5, 7] = True
    return tgv._problem(random(*mask.shape), mask, mask.astype(np.float32), SIZE, TILTED)


def test_primal_dual_operators_are_adjoint(problem):
    """From zero, with unit steps and no bounds, the two halves of an iteration are the operator and minus its adjoint."""
    shape, one, none = problem.mask.shape, np.float32(1), np.float32(1e9)
    x, y = tgv._start(shape), tgv._start(shape)
    for array, where in ((x.chi_bar, problem.domain), (x.v_bar, problem.domain), (x.psi_bar, problem.mask)):
        array[where] = random(*array[where].shape)
    fixed = (problem.size, problem.offsets, problem.weights)
    still = np.zeros(shape, np.float32)
    tgv._dual_step(
        x.chi_bar, x.v_bar, x.psi_bar, problem.domain, problem.inner, still, *fixed, (one,) * 3, (none, none), x.p, x.q, x.eta
    )
    # Duals with the support that the operator has: any image of it.
    other = tgv._start(shape)
    for array, where in ((other.chi_bar, problem.domain), (other.v_bar, problem.domain), (other.psi_bar, problem.mask)):
        array[where] = random(*array[where].shape)
    tgv._dual_step(
        other.chi_bar, other.v_bar, other.psi_bar, problem.domain, problem.inner, still, *fixed, (one,) * 3, (none, none),
        y.p, y.q, y.eta,
    )  # fmt: skip
    tgv._primal_step(
        y.p, y.q, y.eta, problem.domain, problem.mask, still, *fixed, (one,) * 3,
        y.chi, y.v, y.psi, y.chi_bar, y.v_bar, y.psi_bar,
    )  # fmt: skip
    twice = np.array([1, 1, 1, 2, 2, 2])
    forward = dot(x.p, y.p) + dot(x.q, twice * y.q) + dot(x.eta, y.eta)
    backward = -dot(x.chi_bar, y.chi) - dot(x.v_bar, y.v) - dot(x.psi_bar, y.psi)
    assert forward == pytest.approx(backward, rel=1e-4)
    assert abs(forward) > 1


def test_dipole_stencil_on_polynomials():
    """``lap/3 - (b.grad)^2`` of a quadratic is a constant that is known."""
    i, j, k = np.meshgrid(*([-1, 0, 1],) * 3, indexing="ij")
    x, y, z = i * SIZE[0], j * SIZE[1], k * SIZE[2]
    stencil = tgv.dipole_stencil(SIZE, TILTED)
    assert (stencil * (y * z)).sum() == pytest.approx(-2 * 0.6 * 0.8)
    assert (stencil * z**2).sum() == pytest.approx(2 / 3 - 2 * 0.64)
    assert (stencil * x**2).sum() == pytest.approx(2 / 3)
    assert (stencil * (3 + x - y)).sum() == pytest.approx(0, abs=1e-12)


def test_constraint_and_residual_settle(head):
    """The constraint is met better and better, and the susceptibility settles."""
    mask, _, field = head
    padded = tgv._problem(np.pad(field, 2), np.pad(mask, 2), np.pad(mask, 2).astype(np.float32), SIZE, TILTED)
    state, left = tgv._start(padded.mask.shape), []
    for _ in range(4):
        for _ in range(100):
            tgv._iterate(padded, state, 1e-4, 3.0)
        misfit = np.zeros_like(state.eta)
        tgv._dual_step(
            state.chi, state.v, state.psi, padded.domain, padded.inner, padded.laplacian, padded.size, padded.offsets,
            padded.weights, (np.float32(0), np.float32(0), np.float32(1)), (np.float32(1), np.float32(1)),
            np.zeros_like(state.p), np.zeros_like(state.q), misfit,
        )  # fmt: skip
        left.append(np.linalg.norm(misfit))
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.1 * np.linalg.norm(padded.laplacian)


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
