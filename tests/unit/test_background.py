"""Background removal: harmonic fields go, local fields stay, whatever the voxels and the direction of the main field."""

import numpy as np
import pytest

from qsmflow import registry
from qsmflow.algorithms import fourier, solvers
from qsmflow.algorithms.background import lbv as laplace
from qsmflow.algorithms.background import smv
from qsmflow.algorithms.background.ismv import ismv
from qsmflow.algorithms.background.lbv import lbv
from qsmflow.algorithms.background.pdf import outer_sources, pdf
from qsmflow.algorithms.background.resharp import resharp
from qsmflow.algorithms.background.vsharp import sharp, smv_filter, vsharp
from qsmflow.algorithms.dipole import dipole_kernel, forward_field
from qsmflow.algorithms.morphology import erode

TILTED = (0, np.sin(np.deg2rad(35)), np.cos(np.deg2rad(35)))
CASES = [((1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (48, 48, 48)), ((1.0, 1.0, 3.0), TILTED, (48, 48, 20))]
METHODS = registry.names("background")
HARMONICS = {
    "x": lambda x, y, z: x,
    "z": lambda x, y, z: z,
    "xy": lambda x, y, z: x * y,
    "x2-y2": lambda x, y, z: x**2 - y**2,
    "2z2-x2-y2": lambda x, y, z: 2 * z**2 - x**2 - y**2,
    "xyz": lambda x, y, z: x * y * z,
}


def grid(shape, voxel_size):
    return np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * h for n, h in zip(shape, voxel_size, strict=True)], indexing="ij")


def ball(shape, voxel_size, radius, centre=(0, 0, 0)):
    return sum((a - c) ** 2 for a, c in zip(grid(shape, voxel_size), centre, strict=True)) < radius**2


def run(method, field, mask, voxel_size, b0_dir, **parameters):
    arrays = {"total_field": field, "mask": mask, "field_error": np.ones_like(field)}
    context = {"voxel_size": voxel_size, "b0_dir": b0_dir}
    made = registry.apply("background", method, arrays=arrays, context=context, parameters=parameters)
    return made["local_field"], made["mask"]


#: How much of a harmonic polynomial each method may leave, standard deviations. Methods that fit sources outside stop early.
LEFT = {"pdf": 0.06, "harperella": 0.10, "iharperella": 0.06}


@pytest.mark.parametrize(("voxel_size", "b0_dir", "shape"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_harmonic_polynomials_vanish(method, voxel_size, b0_dir, shape):
    mask = ball(shape, voxel_size, 20)
    deep = erode(mask, 5, voxel_size)
    axes = [a / 20 for a in grid(shape, voxel_size)]
    polynomials = [polynomial(*axes) for polynomial in HARMONICS.values()]
    field = sum(p / np.std(p[mask]) for p in polynomials).astype(np.float32)
    local, valid = run(method, field, mask, voxel_size, b0_dir)
    assert valid.sum() > 0.2 * mask.sum()
    where = valid & deep if method in LEFT else valid
    for polynomial in polynomials:  # the methods are linear, but a sum could hide one of its parts
        left = (
            np.vdot(local[where], polynomial[where]) / np.vdot(polynomial[where], polynomial[where]) * np.std(polynomial[mask])
        )
        assert abs(left) < LEFT.get(method, 0.01)
    assert np.std(local[where]) < LEFT.get(method, 0.01) * np.std(field[where])


def external_field(shape, voxel_size, b0_dir, radius=3.0, chi=9.0, centre=(4, 0, 23)):
    """Field of a sphere outside the mask in closed form: exactly harmonic, whatever the voxels."""
    offsets = np.stack([a - c for a, c in zip(grid(shape, voxel_size), centre, strict=True)])
    r = np.sqrt((offsets**2).sum(0))
    cosine = np.tensordot(b0_dir, offsets, 1) / r
    return (chi / 3 * (radius / r) ** 3 * (3 * cosine**2 - 1)).astype(np.float32)


@pytest.mark.parametrize(("voxel_size", "b0_dir", "shape"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_external_source_vanishes(method, voxel_size, b0_dir, shape):
    mask = ball(shape, voxel_size, 16)
    outer = external_field(shape, voxel_size, b0_dir)
    local, valid = run(method, outer * mask, mask, voxel_size, b0_dir)
    deep = erode(mask, 5, voxel_size) & valid
    assert np.std(local[deep]) < 0.05 * np.std(outer[deep])


#: Share of the norm of a field from within that each method may lose more than 5 mm from the edge of a small mask. Nothing
#: undoes the filter of `smv`; V-SHARP and SHARP truncate low frequencies; the others take part of the field near the edge.
LOSS = {
    "vsharp": 0.35, "sharp": 0.12, "smv": 0.75, "resharp": 0.1, "ismv": 0.12, "lbv": 0.2, "pdf": 0.2, "harperella": 0.6,
    "iharperella": 0.25,
}  # fmt: skip


@pytest.mark.parametrize(("voxel_size", "b0_dir", "shape"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_internal_source_stays(method, voxel_size, b0_dir, shape):
    mask = ball(shape, voxel_size, 16)
    inner = forward_field(0.2 * ball(shape, voxel_size, 4).astype(np.float32), voxel_size=voxel_size, b0_dir=b0_dir)
    local, valid = run(method, inner * mask, mask, voxel_size, b0_dir)
    near = erode(mask, 5, voxel_size) & valid
    assert np.linalg.norm(local[near] - inner[near]) < LOSS[method] * np.linalg.norm(inner[near])


@pytest.mark.parametrize("method", ["harperella", "iharperella"])
def test_the_outermost_layer_does_not_count(method):
    """Its voxels hold a part of what lies outside; the Laplacian there would pass for sources inside."""
    voxel_size, b0_dir, shape = CASES[0]
    mask = ball(shape, voxel_size, 16)
    inner = forward_field(0.2 * ball(shape, voxel_size, 4).astype(np.float32), voxel_size=voxel_size, b0_dir=b0_dir)
    edge = mask & ~erode(mask, 1, voxel_size)
    spoilt = inner + 0.1 * edge * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    deep = erode(mask, 5, voxel_size)
    for peel, least, most in ((1, 0, 0.01), (0, 0.1, np.inf)):
        clean, other = (run(method, f * mask, mask, voxel_size, b0_dir, peel=peel)[0][deep] for f in (inner, spoilt))
        assert least <= np.linalg.norm(other - clean) / np.linalg.norm(clean) <= most


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_makes_no_difference(method):
    voxel_size, b0_dir, shape = CASES[0]
    mask = ball(shape, voxel_size, 16)
    field = forward_field(ball(shape, voxel_size, 4).astype(np.float32), voxel_size=voxel_size, b0_dir=b0_dir)
    one, other = (run(method, field + c, mask, voxel_size, b0_dir)[0] for c in (0, 5))
    # float32 holds the sum with less precision than the field alone
    assert np.abs(one - other).max() < 0.02 * np.abs(one).max()


@pytest.mark.parametrize("method", ["vsharp", "sharp", "smv", "resharp", "ismv", "lbv", "harperella"])
def test_mask_without_room_is_refused(method):
    with pytest.raises(ValueError, match="larger mask"):
        run(method, np.zeros((8, 8, 8), np.float32), ball((8, 8, 8), (1, 1, 1), 1.2), (1, 1, 1), (0, 0, 1))


@pytest.mark.parametrize("method", METHODS)
def test_the_empty_part_of_the_grid_does_not_matter(method):
    """Methods work on the mask's bounding box."""
    voxel_size, b0_dir, shape = CASES[0]
    mask = ball(shape, voxel_size, 14)
    field = forward_field(ball(shape, voxel_size, 4).astype(np.float32), voxel_size=voxel_size, b0_dir=b0_dir) * mask
    wide = [np.pad(a, ((5, 0), (0, 9), (3, 4))) for a in (field, mask)]
    for near, far in zip(run(method, field, mask, voxel_size, b0_dir), run(method, *wide, voxel_size, b0_dir), strict=True):
        assert np.array_equal(near, far[5:, :-9, 3:-4])


def test_sharp_is_a_truncated_deconvolution():
    voxel_size, b0_dir = CASES[0][:2]
    mask = np.ones((30, 32, 36), bool)
    field = forward_field(ball(mask.shape, voxel_size, 4).astype(np.float32), voxel_size=voxel_size, b0_dir=b0_dir)
    made, valid = sharp(field, mask, voxel_size=voxel_size, radius=5, threshold=0.05)
    kernel = 1 - smv.sphere_spectrum(5, voxel_size, mask.shape)
    kept = np.abs(kernel) >= 0.05
    filtered = np.fft.irfftn(kernel * np.fft.rfftn(field - field.mean()), s=mask.shape, axes=(0, 1, 2)) * valid
    inverse = np.where(kept, 1 / np.where(kept, kernel, 1), 0)
    wanted = np.fft.irfftn(inverse * np.fft.rfftn(filtered), s=mask.shape, axes=(0, 1, 2)) * valid
    assert np.abs(made - wanted).max() < 1e-4 * np.abs(wanted).max()
    only, same = smv_filter(field, mask, voxel_size=voxel_size, radius=5)
    assert np.array_equal(valid, same)
    assert np.abs(only - filtered).max() < 1e-4 * np.abs(filtered).max()
    single, _ = vsharp(field, mask, voxel_size=voxel_size, max_radius=5, min_radius=5)
    assert np.abs(single - made).max() < 1e-6


@pytest.mark.parametrize(("voxel_size", "shape"), [(case[0], case[2]) for case in CASES])
def test_ismv_error_falls_with_every_iteration(voxel_size, shape):
    """Towards the harmonic continuation of the rim."""
    mask = ball(shape, voxel_size, 12)
    field = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    made = [ismv(field, mask, voxel_size=voxel_size, iterations=n, tolerance=0.0)[0] for n in (1, 2, 3, 5, 9, 17, 300)]
    errors = [np.linalg.norm(local - made[-1]) for local in made]
    assert np.all(np.diff(errors) < 0)


@pytest.mark.parametrize(("voxel_size", "b0_dir", "shape"), CASES)
def test_lbv_keeps_the_maximum_principle_and_the_boundary(voxel_size, b0_dir, shape):
    """The background has its extremes at the boundary, and no Laplacian inside."""
    mask = ball(shape, voxel_size, 16)
    field = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    local, valid = lbv(field, mask, voxel_size=voxel_size, peel=0, tolerance=1e-6)
    background = (field - local) * mask
    edge = mask & ~valid
    assert edge.any()
    assert not local[edge].any()
    assert background[valid].max() <= background[edge].max() + 1e-4
    assert background[valid].min() >= background[edge].min() - 1e-4
    left, before = np.zeros((2, *shape), np.float32)
    weights = tuple(np.float32(1 / h**2) for h in voxel_size)
    laplace.negative_laplacian(background, valid, weights, left)
    laplace.negative_laplacian(field, valid, weights, before)
    assert np.linalg.norm(left) < 1e-4 * np.linalg.norm(before)


def test_lbv_peels_noise_away():
    """A wrong layer of voxels at the surface spoils the result, unless it is taken off."""
    voxel_size, b0_dir, shape = CASES[0]
    mask = ball(shape, voxel_size, 18)
    surface = mask & ~erode(mask, 1.2, voxel_size)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * surface
    field = external_field(shape, voxel_size, b0_dir)
    deep = erode(mask, 5, voxel_size)
    spoilt, clean = (np.std(lbv(field + noise, mask, voxel_size=voxel_size, peel=n)[0][deep]) for n in (0, 2))
    assert clean < 0.05 * spoilt


def test_the_laplacian_is_its_own_adjoint():
    rng = np.random.default_rng(0)
    inside = ball((12, 14, 10), (1, 1, 3), 5)
    x, y = (rng.standard_normal(inside.shape).astype(np.float32) * inside for _ in range(2))
    made = np.zeros((2, *inside.shape), np.float32)
    for source, target in zip((x, y), made, strict=True):
        laplace.negative_laplacian(source, inside, (np.float32(1), np.float32(1), np.float32(1 / 9)), target)
    assert np.isclose(solvers.dot(made[0], y), solvers.dot(x, made[1]), rtol=1e-5)
    assert solvers.dot(made[0], x) > 0


@pytest.mark.parametrize(("voxel_size", "b0_dir", "shape"), CASES)
def test_convolutions_are_their_own_adjoint(voxel_size, b0_dir, shape):
    """With a sphere and with a dipole, on a grid larger than the volumes."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, *shape)).astype(np.float32)
    wide = fourier.padded_shape(shape, 6)
    kernels = (
        smv.sphere_spectrum(4, voxel_size, wide),
        dipole_kernel(wide, voxel_size=voxel_size, b0_dir=b0_dir, space="image"),
    )
    for kernel in kernels:
        one, other = solvers.dot(fourier.convolve(x, kernel, wide), y), solvers.dot(x, fourier.convolve(y, kernel, wide))
        assert np.isclose(one, other, rtol=1e-4, atol=1e-3 * np.linalg.norm(x))


def test_inner_product_of_half_spectra():
    rng = np.random.default_rng(0)
    for shape in ((6, 5, 8), (6, 5, 7)):
        x, y = rng.standard_normal((2, *shape)).astype(np.float32)
        spectra = (fourier.rfftn(volume, shape) for volume in (x, y))
        assert np.isclose(fourier.inner(*spectra, shape[-1]) / x.size, solvers.dot(x, y), rtol=1e-4)


def test_outer_sources_stay_outside_and_satisfy_their_normal_equations():
    """The residual's field at every place where a source may be falls to nothing."""
    voxel_size, b0_dir, shape = CASES[1]
    mask = ball(shape, voxel_size, 10)
    kernel = dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir, space="image")
    field = external_field(shape, voxel_size, b0_dir, centre=(3, 0, 16)) * mask
    squared = mask.astype(np.float32)
    gradients = []
    for n in (2, 10, 60):
        sources = outer_sources(field, squared, mask, kernel, shape, iterations=n, tolerance=0)
        assert not sources[mask].any()
        residual = squared * (field - fourier.convolve(sources, kernel, shape))
        gradients.append(np.linalg.norm(fourier.convolve(residual, kernel, shape)[~mask]))
    assert gradients[0] > gradients[1] > gradients[2]
    assert gradients[2] < 0.01 * gradients[0]


@pytest.mark.parametrize("prior", ["energy", "dipole"])
def test_resharp_converges(prior):
    """More iterations come nearer to where still more lead."""
    voxel_size, b0_dir, shape = CASES[1]
    mask = ball(shape, voxel_size, 16)
    field = forward_field(ball(shape, voxel_size, 4).astype(np.float32), voxel_size=voxel_size, b0_dir=b0_dir)
    settings = {"voxel_size": voxel_size, "b0_dir": b0_dir, "prior": prior, "lambda_": 1e-3, "tolerance": 0.0}
    rough, fine, finer = (resharp(field, mask, iterations=n, **settings)[0] for n in (2, 60, 120))
    assert np.linalg.norm(fine - finer) < 0.02 * np.linalg.norm(finer)
    assert np.linalg.norm(rough - finer) > np.linalg.norm(fine - finer)


def test_resharp_with_a_dipole_prior_doubts_fields_at_the_cone():
    """Of white noise, less is left where a dipole makes no field than elsewhere; energy alone treats both alike."""
    voxel_size, b0_dir, shape = CASES[1]
    mask = np.ones(shape, bool)
    noise = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    cone = np.abs(dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir)) < 0.05
    share = {}
    for prior in ("energy", "dipole"):
        local, _ = resharp(noise, mask, voxel_size=voxel_size, b0_dir=b0_dir, prior=prior, lambda_=0.1)
        power = np.abs(fourier.rfftn(local, shape)) ** 2
        share[prior] = power[cone].mean() / power[~cone].mean()
    assert share["energy"] > 0.7
    assert share["dipole"] < 0.5 * share["energy"]


def test_pdf_listens_to_the_field_error():
    """Voxels with a wrong field spoil an unweighted fit and do not spoil a weighted one."""
    voxel_size, b0_dir, shape = CASES[0]
    mask = ball(shape, voxel_size, 16)
    outer = external_field(shape, voxel_size, b0_dir)
    wrong = ball(shape, voxel_size, 3, (0, -11, 0))
    error = np.where(wrong, 100.0, 1.0).astype(np.float32)
    field = (outer + 2 * wrong).astype(np.float32)
    residual = {}
    for weighted in (True, False):
        local, _ = pdf(field, mask, error, voxel_size=voxel_size, b0_dir=b0_dir, weighted=weighted)
        residual[weighted] = np.std(local[mask & ~wrong])
    assert residual[True] < 0.5 * residual[False]


def test_sphere_is_smooth_in_its_radius_and_has_unit_sum():
    for voxel_size in ((1, 1, 1), (0.5, 0.5, 2), (1, 1, 3)):
        sums = [smv.sphere(r, voxel_size).sum() for r in (0.5, 1.0, 2.3, 6.0)]
        assert np.allclose(sums, 1)


def test_fits_leaves_out_every_voxel_whose_sphere_leaves_the_mask():
    mask = ball((24, 24, 12), (1, 1, 2), 9)
    inside = smv.fits(smv.distance_inside(mask, (1, 1, 2)), 3, (1, 1, 2))
    share = np.fft.irfftn(
        smv.sphere_spectrum(3, (1, 1, 2), mask.shape) * np.fft.rfftn(mask.astype(float)), s=mask.shape, axes=(0, 1, 2)
    )
    assert inside.any()
    assert share[inside].min() > 1 - 1e-4


def test_conjugate_gradients_stop_at_the_tolerance():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(30, 30))
    matrix, right = half @ half.T + 30 * np.eye(30), rng.normal(size=30)
    exact = np.linalg.solve(matrix, right)
    diagonal = 1 / np.diag(matrix)
    for preconditioner in (None, lambda r: diagonal * r):
        solved = solvers.conjugate_gradients(
            lambda x: matrix @ x, right, iterations=100, tolerance=1e-8, preconditioner=preconditioner
        )
        assert np.allclose(solved, exact, rtol=1e-5)
    assert not np.allclose(
        solvers.conjugate_gradients(lambda x: matrix @ x, right, iterations=1, tolerance=0), exact, rtol=1e-3
    )
