"""Inversions against spheres, against their own equations, and against each other."""

import numpy as np
import pytest

from qsmflow.algorithms import operators
from qsmflow.algorithms.dipole import dipole_kernel, forward_field
from qsmflow.algorithms.inversion.direct import tikhonov, tkd, tsvd
from qsmflow.algorithms.inversion.tv import tv

SIZE = 36
AXIS = np.arange(SIZE) - (SIZE - 1) / 2
R = np.sqrt(sum((AXIS**2).reshape(s) for s in [(-1, 1, 1), (1, -1, 1), (1, 1, -1)]))
BALL = (R < 5).astype(np.float32)
MASK = R < 16
TILTED = (0, np.sin(np.deg2rad(35)), np.cos(np.deg2rad(35)))
METHODS = {
    "tkd": lambda f, **c: tkd(f, MASK, **c),
    "tsvd": lambda f, **c: tsvd(f, MASK, **c),
    "tikhonov": lambda f, **c: tikhonov(f, MASK, **c),
    "gradient": lambda f, **c: tikhonov(f, MASK, penalty="gradient", **c),
    "tv": lambda f, **c: tv(f, MASK, np.ones_like(f), **c),
}


def field_of(chi, b0_dir=(0, 0, 1), voxel_size=(1, 1, 1)):
    return forward_field(chi, voxel_size=voxel_size, b0_dir=b0_dir)


def contrast(chi):
    return chi[R < 3].mean() - chi[(R > 8) & (R < 15)].mean()


@pytest.mark.parametrize("b0_dir", [(0, 0, 1), TILTED])
@pytest.mark.parametrize(
    ("method", "low", "high"),
    [("tkd", 0.8, 1.0), ("tsvd", 0.7, 0.95), ("tikhonov", 0.65, 0.85), ("gradient", 0.7, 1.05), ("tv", 0.97, 1.03)],
)
def test_sphere(method, low, high, b0_dir):
    chi = METHODS[method](field_of(BALL, b0_dir), voxel_size=(1, 1, 1), b0_dir=b0_dir)
    assert low < contrast(chi) < high
    assert not chi[~MASK].any()


@pytest.mark.parametrize("method", METHODS)
def test_sign_scale_and_direction(method):
    field, context = field_of(BALL, TILTED), {"voxel_size": (1, 1, 1), "b0_dir": TILTED}
    chi = METHODS[method](field, **context)
    assert np.abs(METHODS[method](-field, **context) + chi).max() < 1e-4
    assert np.array_equal(METHODS[method](field, voxel_size=(1, 1, 1), b0_dir=tuple(-b for b in TILTED)), chi)
    if method != "tv":
        assert np.abs(METHODS[method](3 * field, **context) - 3 * chi).max() < 1e-4


@pytest.mark.parametrize(("threshold", "bias"), [(0.05, 0.9568), (0.1, 0.9131), (0.15, 0.8686), (0.2, 0.8227), (0.25, 0.7744)])
def test_tkd_bias_is_the_mean_of_the_kernel_ratio(threshold, bias):
    """``correct`` divides by the mean of D/D_t over all directions (reference values by quadrature)."""
    field, context = field_of(BALL), {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1), "threshold": threshold}
    plain, corrected = tkd(field, MASK, **context), tkd(field, MASK, correct=True, **context)
    assert contrast(plain) / contrast(corrected) == pytest.approx(bias, abs=1e-3)


@pytest.mark.parametrize(("threshold", "bias"), [(0.05, 0.9135), (0.1, 0.8250), (0.15, 0.7332), (0.2, 0.6350), (0.25, 0.5249)])
def test_tsvd_bias_is_the_share_of_directions_that_are_kept(threshold, bias):
    field, context = field_of(BALL), {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1), "threshold": threshold}
    plain, corrected = tsvd(field, MASK, **context), tsvd(field, MASK, correct=True, **context)
    assert contrast(plain) / contrast(corrected) == pytest.approx(bias, abs=1e-3)


@pytest.mark.parametrize("penalty", ["identity", "gradient"])
def test_tikhonov_solves_its_normal_equations(penalty):
    rng = np.random.default_rng(0)
    field = rng.normal(size=(20, 18, 16)).astype(np.float32)
    size, b0_dir = (1.0, 1.2, 2.0), TILTED
    chi = tikhonov(field, np.ones(field.shape, bool), voxel_size=size, b0_dir=b0_dir, lambda_=0.02, penalty=penalty)
    kernel = dipole_kernel(field.shape, voxel_size=size, b0_dir=b0_dir).astype(float)
    power = operators.gradient_power(field.shape, size) if penalty == "gradient" else 1.0
    left, right = (kernel**2 + 0.02 * power) * np.fft.rfftn(chi), kernel * np.fft.rfftn(field)
    left[0, 0, 0] = right[0, 0, 0] = 0
    assert np.abs(left - right).max() < 1e-4 * np.abs(right).max()


def objective(chi, field, mask, lambda_):
    """Value of the TV objective on the grid of ``chi`` (padded, so that wrap-around plays no part)."""
    out = np.empty((3, *chi.shape), np.float32)
    operators.gradient(chi, (np.float32(1),) * 3, out)
    return 0.5 * ((field - field_of(chi))[mask] ** 2).sum() + lambda_ * np.abs(out).sum()


def test_tv_lowers_its_objective():
    rng = np.random.default_rng(2)
    field = (field_of(BALL) + 0.01 * rng.normal(size=BALL.shape)).astype(np.float32)
    context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1), "lambda_": 5e-4}
    values = [
        objective(tv(field, MASK, np.ones_like(field), iterations=n, tolerance=0.0, **context), field, MASK, 5e-4)
        for n in (5, 20, 80)
    ]
    assert values[2] < values[1] < values[0]
    assert values[2] < objective(tkd(field, MASK, voxel_size=(1, 1, 1), b0_dir=(0, 0, 1)), field, MASK, 5e-4)
    assert values[2] < objective(np.zeros_like(field), field, MASK, 5e-4)


def test_tv_with_little_regularisation_fits_the_field():
    field = field_of(BALL, TILTED)
    chi = tv(
        field, MASK, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=TILTED, lambda_=1e-6, iterations=200, tolerance=1e-4
    )
    inner = R < 12
    assert np.linalg.norm((field_of(chi, TILTED) - field)[inner]) < 0.05 * np.linalg.norm(field[inner])


def test_tv_does_not_depend_on_how_finely_an_object_is_sampled():
    """The same sphere on voxels of 1 and of 2 mm: gradients are per mm, so that one weight serves both."""
    axis = 2 * (np.arange(18) - 8.5)
    r = np.sqrt(sum((axis**2).reshape(s) for s in [(-1, 1, 1), (1, -1, 1), (1, 1, -1)]))
    coarse_ball = BALL.reshape(18, 2, 18, 2, 18, 2).mean(axis=(1, 3, 5))
    options = {"b0_dir": (0, 0, 1), "lambda_": 2e-3, "iterations": 200, "tolerance": 1e-4}
    fine = tv(field_of(BALL), MASK, np.ones_like(BALL), voxel_size=(1, 1, 1), **options)
    coarse_field = field_of(coarse_ball, voxel_size=(2, 2, 2))
    coarse = tv(coarse_field, r < 16, np.ones_like(coarse_field), voxel_size=(2, 2, 2), **options)
    coarse_contrast = coarse[r < 3].mean() - coarse[(r > 8) & (r < 15)].mean()
    assert contrast(fine) < 0.99
    assert coarse_contrast == pytest.approx(contrast(fine), abs=0.05)


def test_tv_listens_to_the_field_error():
    field = field_of(BALL)
    wrong = (
        np.sqrt(
            sum((a**2).reshape(s) for a, s in zip([AXIS - 10, AXIS, AXIS], [(-1, 1, 1), (1, -1, 1), (1, 1, -1)], strict=True))
        )
        < 2
    )
    spoiled = np.where(wrong, 3.0, field).astype(np.float32)
    error = np.where(wrong, 50.0, 1.0).astype(np.float32)
    context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1)}
    clean = tv(field, MASK, np.ones_like(field), **context)
    far = MASK & (R < 7)
    deviation = [np.abs(tv(spoiled, MASK, error, weighted=w, **context) - clean)[far].mean() for w in (True, False)]
    assert deviation[0] < 0.2 * deviation[1]


def test_gradient_and_divergence_are_adjoint_and_match_their_spectrum():
    rng = np.random.default_rng(3)
    shape, inverse = (9, 10, 11), tuple(np.float32(v) for v in (1.0, 0.5, 2.0))
    x, v = rng.normal(size=shape).astype(np.float32), rng.normal(size=(3, *shape)).astype(np.float32)
    gradient, back = np.empty_like(v), np.empty_like(x)
    operators.gradient(x, inverse, gradient)
    operators.divergence(v, inverse, back)
    assert np.vdot(gradient, v) == pytest.approx(np.vdot(x, back), rel=1e-4)
    operators.divergence(gradient, inverse, back)
    spectral = np.fft.irfftn(np.fft.rfftn(x) * operators.gradient_power(shape, (1, 2, 0.5)), s=shape, axes=(0, 1, 2))
    assert np.abs(back - spectral).max() < 1e-4 * np.abs(spectral).max()


@pytest.mark.parametrize("isotropic", [False, True])
def test_shrinkage_splits_the_gradient(isotropic):
    """shifted = grad x + dual without relaxation, the dual stays within the threshold, and what pulls is the split minus it."""
    rng = np.random.default_rng(4)
    shape, size, threshold = (6, 7, 8), tuple(np.float32(v) for v in (1.0, 0.5, 2.0)), np.float32(0.5)

    def clip(vectors):
        length = np.linalg.norm(vectors, axis=0) if isotropic else np.abs(vectors)
        return vectors * threshold / np.maximum(length, threshold)

    x, shifted = rng.normal(size=shape).astype(np.float32), rng.normal(size=(3, *shape)).astype(np.float32)
    gradient, before = np.empty((3, *shape), np.float32), shifted.copy()
    operators.gradient(x, size, gradient)
    operators.shrink_gradient(x, size, threshold, isotropic, np.float32(1.6), shifted)
    split = before - clip(before)
    assert np.allclose(shifted, 1.6 * gradient - 0.6 * split + clip(before), atol=1e-5)
    pulled, expected = np.empty(shape, np.float32), np.empty(shape, np.float32)
    operators.split_divergence(shifted, size, threshold, isotropic, pulled)
    operators.divergence((shifted - 2 * clip(shifted)).astype(np.float32), size, expected)
    assert np.allclose(pulled, expected, atol=1e-5)


def test_symmetric_gradient_and_its_divergence_are_adjoint():
    """With the off-diagonal components, which stand for two each, counted twice; a constant and a rotation have no strain."""
    rng = np.random.default_rng(5)
    shape, inverse = (9, 10, 11), tuple(np.float32(v) for v in (1.0, 0.5, 2.0))
    v, u = rng.normal(size=(3, *shape)).astype(np.float32), rng.normal(size=(6, *shape)).astype(np.float32)
    strain, back = np.empty_like(u), np.zeros_like(v)
    operators.symmetric_gradient(v, inverse, strain)
    operators.symmetric_divergence(u, inverse, np.float32(1), back)
    twice = np.array([1, 1, 1, 2, 2, 2]).reshape(6, 1, 1, 1)
    assert (twice * strain * u).sum() == pytest.approx(np.vdot(v, back), rel=1e-4)
    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float32) / i for n, i in zip(shape, inverse, strict=True)), indexing="ij")
    rotation = np.stack([z - y, x, -x])
    operators.symmetric_gradient(rotation, inverse, strain)
    assert np.abs(strain[:, 1:, 1:, 1:]).max() < 1e-5
    assert np.abs(strain).max() > 1
