"""Background removal: harmonic fields go, local fields stay, whatever the voxels and the direction of the main field."""

import numpy as np
import pytest

from qsmflow.algorithms import solvers
from qsmflow.algorithms.background import smv
from qsmflow.algorithms.background.pdf import pdf
from qsmflow.algorithms.background.resharp import resharp
from qsmflow.algorithms.background.vsharp import vsharp
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.morphology import erode

TILTED = (0, np.sin(np.deg2rad(35)), np.cos(np.deg2rad(35)))
CASES = [((1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (48, 48, 48)), ((1.0, 1.0, 3.0), TILTED, (48, 48, 20))]
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


def run(method, field, mask, voxel_size, b0_dir):
    if method == "pdf":
        return pdf(field, mask, np.ones_like(field), voxel_size=voxel_size, b0_dir=b0_dir)
    return {"vsharp": vsharp, "resharp": resharp}[method](field, mask, voxel_size=voxel_size)


@pytest.mark.parametrize(("voxel_size", "b0_dir", "shape"), CASES)
@pytest.mark.parametrize("name", HARMONICS)
@pytest.mark.parametrize("method", ["vsharp", "resharp"])
def test_harmonic_polynomials_vanish(method, name, voxel_size, b0_dir, shape):
    field = HARMONICS[name](*(a / 20 for a in grid(shape, voxel_size))).astype(np.float32)
    mask = ball(shape, voxel_size, 20)
    local, valid = run(method, field, mask, voxel_size, b0_dir)
    assert valid.sum() > 0.2 * mask.sum()
    assert np.std(local[valid]) < 0.01 * np.std(field[valid])


def external_field(shape, voxel_size, b0_dir, radius=3.0, chi=9.0, centre=(4, 0, 23)):
    """Field of a sphere outside the mask in closed form: exactly harmonic, whatever the voxels."""
    offsets = np.stack([a - c for a, c in zip(grid(shape, voxel_size), centre, strict=True)])
    r = np.sqrt((offsets**2).sum(0))
    cosine = np.tensordot(b0_dir, offsets, 1) / r
    return (chi / 3 * (radius / r) ** 3 * (3 * cosine**2 - 1)).astype(np.float32)


@pytest.mark.parametrize(("voxel_size", "b0_dir", "shape"), CASES)
@pytest.mark.parametrize("method", ["vsharp", "resharp", "pdf"])
def test_external_source_vanishes(method, voxel_size, b0_dir, shape):
    mask = ball(shape, voxel_size, 16)
    outer = external_field(shape, voxel_size, b0_dir)
    local, valid = run(method, outer * mask, mask, voxel_size, b0_dir)
    deep = erode(mask, 5, voxel_size) & valid
    assert np.std(local[deep]) < 0.05 * np.std(outer[deep])


@pytest.mark.parametrize(("voxel_size", "b0_dir", "shape"), CASES)
@pytest.mark.parametrize(("method", "loss"), [("vsharp", 0.35), ("resharp", 0.05), ("pdf", 0.2)])
def test_internal_source_stays(method, loss, voxel_size, b0_dir, shape):
    """In a mask this small V-SHARP truncates much of its low frequencies, and PDF takes part of the field near the edge."""
    mask = ball(shape, voxel_size, 16)
    inner = forward_field(0.2 * ball(shape, voxel_size, 4).astype(np.float32), voxel_size=voxel_size, b0_dir=b0_dir)
    local, valid = run(method, inner * mask, mask, voxel_size, b0_dir)
    near = erode(mask, 5, voxel_size) & valid
    assert np.linalg.norm(local[near] - inner[near]) < loss * np.linalg.norm(inner[near])


@pytest.mark.parametrize("method", ["vsharp", "resharp", "pdf"])
def test_a_constant_makes_no_difference(method):
    voxel_size, b0_dir, shape = CASES[0]
    mask = ball(shape, voxel_size, 16)
    field = forward_field(ball(shape, voxel_size, 4).astype(np.float32), voxel_size=voxel_size, b0_dir=b0_dir)
    one, other = (run(method, field + c, mask, voxel_size, b0_dir)[0] for c in (0, 5))
    # float32 holds the sum with less precision than the field alone
    assert np.abs(one - other).max() < 0.02 * np.abs(one).max()


@pytest.mark.parametrize("method", ["vsharp", "resharp"])
def test_mask_without_room_for_a_sphere_is_refused(method):
    with pytest.raises(ValueError, match="larger mask"):
        run(method, np.zeros((8, 8, 8), np.float32), ball((8, 8, 8), (1, 1, 1), 1.2), (1, 1, 1), (0, 0, 1))


def test_vsharp_with_one_radius_is_sharp():
    voxel_size, b0_dir, shape = CASES[0]
    mask = ball(shape, voxel_size, 16)
    field = forward_field(ball(shape, voxel_size, 4).astype(np.float32), voxel_size=voxel_size, b0_dir=b0_dir)
    single, valid = vsharp(field, mask, voxel_size=voxel_size, max_radius=5, min_radius=5)
    kernel = 1 - smv.sphere_spectrum(5, voxel_size, shape)
    kept = np.abs(kernel) >= 0.05
    filtered = np.fft.irfftn(kernel * np.fft.rfftn((field - field[mask].mean()) * mask), s=shape, axes=(0, 1, 2)) * valid
    inverse = np.where(kept, 1 / np.where(kept, kernel, 1), 0)
    sharp = np.fft.irfftn(inverse * np.fft.rfftn(filtered), s=shape, axes=(0, 1, 2)) * valid
    assert np.abs(single - sharp).max() < 1e-4 * np.abs(sharp).max()


def test_resharp_solves_its_normal_equations():
    """At convergence x = (H^T H + lambda)^-1 H^T H f, here compared with a dense-free check of the residual."""
    voxel_size, b0_dir, shape = CASES[0]
    mask = ball(shape, voxel_size, 16)
    field = forward_field(ball(shape, voxel_size, 4).astype(np.float32), voxel_size=voxel_size, b0_dir=b0_dir)
    rough, _ = resharp(field, mask, voxel_size=voxel_size, iterations=3)
    fine, _ = resharp(field, mask, voxel_size=voxel_size, iterations=200, tolerance=1e-5)
    finer, _ = resharp(field, mask, voxel_size=voxel_size, iterations=400, tolerance=1e-6)
    assert np.linalg.norm(fine - finer) < 0.01 * np.linalg.norm(finer)
    assert np.linalg.norm(rough - finer) > np.linalg.norm(fine - finer)


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
