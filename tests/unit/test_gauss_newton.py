"""MEDI, MEDI+0 and total field inversion: their objective, their parts and spheres of known susceptibility."""

import numpy as np
import pytest

from qsmflow.algorithms import solvers
from qsmflow.algorithms.dipole import dipole_kernel, forward_field
from qsmflow.algorithms.inversion.gauss_newton import Fit, morphology_edges
from qsmflow.algorithms.inversion.medi import medi, medi0
from qsmflow.algorithms.inversion.tv import tv
from qsmflow.algorithms.singlestep.tfi import tfi

SIZE = 32
GRID = np.stack(np.meshgrid(*3 * [np.arange(SIZE) - (SIZE - 1) / 2], indexing="ij"))
R = np.sqrt((GRID**2).sum(axis=0))
BALL = (R < 5).astype(np.float32)
MASK = R < 14
EVEN = np.ones(R.shape, np.float32)
TILTED = (0, np.sin(np.deg2rad(35)), np.cos(np.deg2rad(35)))
CONTEXT = {"voxel_size": (1, 1, 1), "b0_dir": TILTED, "b0": 3.0, "echo_times": (0.004, 0.008, 0.012)}
FLAT = EVEN[..., None]
FIELD = forward_field(BALL, voxel_size=(1, 1, 1), b0_dir=TILTED)
ONES = (np.float32(1),) * 3


def contrast(chi):
    return chi[R < 3].mean() - chi[(R > 8) & (R < 13)].mean()


def small_fit(radians, **options):
    """A problem with random field, weights and edges on an anisotropic grid, and a point to look at it from."""
    rng = np.random.default_rng(0)
    shape, size = (12, 10, 8), (1.0, 1.5, 2.0)
    measured, chi = rng.normal(size=(2, *shape)).astype(np.float32)
    squared = rng.random(shape).astype(np.float32)
    edges = (rng.random((3, *shape)) > 0.3).astype(np.uint8)
    kernel = dipole_kernel(shape, voxel_size=size, b0_dir=TILTED)
    inverse_size = tuple(np.float32(1 / h) for h in size)
    return Fit(measured, squared, kernel, edges, inverse_size, 0.005, radians, **options), chi


@pytest.mark.parametrize("radians", [0.0, 3.0])
@pytest.mark.parametrize("uniform", [(), range(200, 300)])
def test_gradient_is_the_derivative_of_the_objective(radians, uniform):
    fit, chi = small_fit(radians, uniform=np.array(uniform, int), uniform_weight=0.5)
    direction = np.random.default_rng(1).normal(size=chi.shape).astype(np.float32)
    step = 2e-3  # of the gradients, few lie so near the kink of the norm that the difference sees it
    numeric = (fit.objective(chi + np.float32(step) * direction) - fit.objective(chi - np.float32(step) * direction)) / (
        2 * step
    )
    assert numeric == pytest.approx(solvers.dot(fit.gradient(chi), direction), rel=2e-3)


def test_curvature_is_symmetric_and_that_of_the_linear_objective():
    """Linear data: gradient(x) at fixed diffusivity is curvature(x) minus a constant."""
    fit, chi = small_fit(0.0, uniform=np.arange(50), uniform_weight=0.5)
    at_chi = fit.gradient(chi)
    other = np.random.default_rng(2).normal(size=chi.shape).astype(np.float32)
    assert solvers.dot(fit.curvature(chi), other) == pytest.approx(solvers.dot(fit.curvature(other), chi), rel=1e-3)
    constant = fit._forward(fit.squared * fit.measured)
    assert np.abs(fit.curvature(chi) - constant - at_chi).max() < 1e-4 * np.abs(at_chi).max()


def test_nonlinear_term_ignores_whole_turns():
    fit, chi = small_fit(3.0)
    before = fit.gradient(chi)
    fit.measured += np.float32(2 * np.pi / 3.0)
    assert np.abs(fit.gradient(chi) - before).max() < 1e-4 * np.abs(before).max()


def test_gauss_newton_stops_at_its_tolerance():
    """More steps than the tolerance asks for change nothing; a finer tolerance takes more and ends lower."""
    fit, _ = small_fit(0.0)
    loose = fit.solve(iterations=20, cg_iterations=20, tolerance=0.05, name="medi")
    assert np.array_equal(loose, fit.solve(iterations=30, cg_iterations=20, tolerance=0.05, name="medi"))
    fine = fit.solve(iterations=30, cg_iterations=20, tolerance=1e-3, name="medi")
    assert fit.objective(fine) < fit.objective(loose) < fit.objective(np.zeros_like(loose))
    assert np.linalg.norm(fit.gradient(fine)) < 0.05 * np.linalg.norm(fit.gradient(np.zeros_like(fine)))


@pytest.mark.parametrize("data", ["nonlinear", "linear"])
@pytest.mark.parametrize(("magnitude", "error"), [(FLAT, 0.04), (1 + BALL[..., None], 0.02)], ids=["flat", "edges"])
def test_medi_sphere(data, magnitude, error):
    chi = medi(FIELD, MASK, EVEN, magnitude, data=data, **CONTEXT)
    assert contrast(chi) == pytest.approx(1, abs=error)
    assert not chi[~MASK].any()
    assert np.abs(medi(-FIELD, MASK, EVEN, magnitude, data=data, **CONTEXT) + chi).max() < 1e-4
    turned = CONTEXT | {"b0_dir": tuple(-b for b in TILTED)}
    assert np.array_equal(medi(FIELD, MASK, EVEN, magnitude, data=data, **turned), chi)


def test_without_edges_medi_is_total_variation():
    rng = np.random.default_rng(3)
    field = (FIELD + 0.02 * rng.normal(size=R.shape)).astype(np.float32)
    settings = {"lambda_": 2e-3, "tolerance": 1e-4}
    made = medi(field, MASK, EVEN, FLAT, edges=0.0, data="linear", iterations=30, cg_iterations=30, **settings, **CONTEXT)
    total = tv(field, MASK, EVEN, voxel_size=(1, 1, 1), b0_dir=TILTED, iterations=300, isotropic=False, **settings)
    inner = R < 11
    difference = (made - total)[inner]
    assert (difference - difference.mean()).std() < 0.05 * total[inner].std()


def test_edges_of_the_magnitude_sharpen():
    """With strong smoothing the sphere loses contrast, less so where the magnitude shows its edge."""
    settings = {"lambda_": 1e-2, "iterations": 8} | CONTEXT
    flat, seen = (contrast(medi(FIELD, MASK, EVEN, m, **settings)) for m in (FLAT, 1 + BALL[..., None]))
    assert flat < 0.75
    assert seen > flat + 0.1


def test_morphology_edges_take_the_largest_gradients():
    rng = np.random.default_rng(4)
    magnitude = rng.random((20, 18, 16, 2)).astype(np.float32)
    inside = np.ones(magnitude.shape[:3], bool)
    edges = morphology_edges(magnitude, inside, inverse_size=ONES, fraction=0.3)
    assert (edges == 0).mean() == pytest.approx(0.3, abs=0.001)
    thick = morphology_edges(magnitude, inside, inverse_size=(np.float32(1), np.float32(1), np.float32(0.25)), fraction=0.3)
    assert (thick[2] == 0).mean() < 0.05 < (edges[2] == 0).mean()


def test_merit_stands_a_wrong_voxel():
    spoiled = FIELD.copy()
    spoiled[20, 16, 15] += 0.4
    clean, plain, merit = (
        medi(field, MASK, EVEN, FLAT, data="linear", merit=m, **CONTEXT)
        for field, m in ((FIELD, 0.0), (spoiled, 0.0), (spoiled, 6.0))
    )
    errors = [np.linalg.norm((chi - clean)[MASK]) for chi in (plain, merit)]
    assert errors[1] < 0.5 * errors[0]


def test_spheres_filter_model_and_field_alike():
    """A harmonic field leaves no trace, and the sphere, most of which the filter takes out of the field, is still there."""
    ramp = (0.05 * GRID[0] + 0.02 * GRID[1]).astype(np.float32)
    settings = {"smv_radius": 3.0, "data": "linear", "iterations": 6} | CONTEXT
    chi, with_ramp = (medi(f, MASK, EVEN, 1 + BALL[..., None], **settings) for f in (FIELD, FIELD + ramp))
    assert contrast(chi) > 0.78
    assert np.abs(with_ramp - chi)[R < 10].max() < 1e-4
    with pytest.raises(ValueError, match="mask"):
        medi(FIELD, MASK, EVEN, FLAT, smv_radius=20.0, **CONTEXT)


def test_medi0_makes_the_fluid_uniform_and_zero():
    """Noise in the fluid is smoothed away, and its mean is the zero of the map."""
    rng = np.random.default_rng(5)
    field = (FIELD + 0.05 * rng.normal(size=R.shape)).astype(np.float32)
    r2star = np.where(R < 4, 1, 20).astype(np.float32)
    seen = 1 + BALL[..., None]
    made = {w: medi0(field, MASK, EVEN, seen, r2star, fluid_weight=w, fluid_radius=10.0, **CONTEXT) for w in (0.0, 1.0)}
    fluid = R < 4
    assert made[1.0][fluid].std() < 0.1 * made[0.0][fluid].std()
    assert all(abs(chi[fluid].mean()) < 1e-5 for chi in made.values())
    assert contrast(made[1.0]) == pytest.approx(contrast(made[0.0]), abs=0.08)
    with pytest.raises(ValueError, match="fluid"):
        medi0(field, MASK, EVEN, FLAT, 20 * EVEN, **CONTEXT)


OUTSIDE = (3.0 * (np.sqrt(((GRID - np.array([0, 0, 15]).reshape(3, 1, 1, 1)) ** 2).sum(axis=0)) < 2.5)).astype(np.float32)
INNER = R < 12
BACKGROUND = forward_field(OUTSIDE, voxel_size=(1, 1, 1), b0_dir=TILTED, space="image")
SMALL = (R < 4).astype(np.float32)
SEEN = 1 + SMALL[..., None]


@pytest.mark.parametrize("data", ["linear", "nonlinear"])
def test_tfi_gives_nothing_for_sources_outside(data):
    chi = tfi(BACKGROUND, INNER, EVEN, SEEN, data=data, iterations=5, margin=8.0, **CONTEXT)
    assert np.abs(chi[R < 10]).max() < 0.01 * np.abs(BACKGROUND[INNER]).max()


def test_tfi_tells_inside_from_outside():
    """What is found inside hardly depends on what is outside."""
    field = forward_field(SMALL, voxel_size=(1, 1, 1), b0_dir=TILTED)
    alone, both, turned = (
        tfi(f, INNER, EVEN, SEEN, projection=10, margin=8.0, **CONTEXT)
        for f in (field, field + BACKGROUND, -field - BACKGROUND)
    )
    difference = both[R < 2.5].mean() - both[(R > 6) & (R < 11)].mean()
    assert 0.75 < difference < 1.02
    assert np.linalg.norm((both - alone)[R < 10]) < 0.1 * np.linalg.norm(alone[R < 10])
    assert np.abs(turned + both).max() < 1e-3
