"""The dipole kernel against what is known in closed form."""

import numpy as np
import pytest

from qsmflow.algorithms import fourier
from qsmflow.algorithms.dipole import dipole_kernel, forward_field

OBLIQUE = (0.3, -0.5, np.sqrt(1 - 0.34))


def sphere(size, radius, centre=None, subsamples=4):
    """Volume fraction of a sphere in each voxel."""
    centre = (size / 2,) * 3 if centre is None else centre
    axis = (np.arange(size * subsamples) + 0.5) / subsamples
    r2 = sum(((axis - c) ** 2).reshape(s) for c, s in zip(centre, [(-1, 1, 1), (1, -1, 1), (1, 1, -1)], strict=True))
    return (r2 < radius**2).reshape((size, subsamples) * 3).mean(axis=(1, 3, 5)).astype(np.float32)


def test_kernel_range_and_moments():
    kernel = dipole_kernel((48, 48, 48), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1), half=False)
    assert kernel[0, 0, 5] == pytest.approx(-2 / 3)
    assert kernel[3, 4, 0] == pytest.approx(1 / 3)
    # over directions D has mean 0 and mean square 4/45; the cube's corners add directions unevenly, hence a ball
    k2 = sum(np.fft.fftfreq(48).reshape(s) ** 2 for s in [(-1, 1, 1), (1, -1, 1), (1, 1, -1)])
    ball = (k2 > 0.01) & (k2 < 0.2)
    assert kernel[ball].mean() == pytest.approx(0, abs=2e-3)
    assert (kernel[ball] ** 2).mean() == pytest.approx(4 / 45, rel=0.01)


@pytest.mark.parametrize("space", ["kspace", "image"])
@pytest.mark.parametrize("shape", [(16, 15, 14), (15, 16, 12)])
def test_real_and_complex_transforms_agree_and_the_operator_is_its_own_adjoint(shape, space):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, *shape))
    options = {"voxel_size": (1, 1.5, 2), "b0_dir": OBLIQUE, "space": space}
    half, full = (dipole_kernel(shape, half=h, **options).astype(float) for h in (True, False))

    def apply(v):
        return np.fft.irfftn(np.fft.rfftn(v) * half, s=shape, axes=(0, 1, 2))

    assert np.abs(apply(x) - np.fft.ifftn(np.fft.fftn(x) * full)).max() < 1e-6 * np.abs(x).max()
    assert np.vdot(apply(x), y) == pytest.approx(np.vdot(x, apply(y)), rel=1e-6)


def test_direction_sign_does_not_matter():
    kernels = [dipole_kernel((12, 13, 14), voxel_size=(1, 2, 1), b0_dir=np.multiply(s, OBLIQUE)) for s in (1, -1)]
    assert np.array_equal(*kernels)


@pytest.mark.parametrize("b0_dir", [(0, 0, 1), (0, np.sin(0.6), np.cos(0.6))])
def test_field_of_a_sphere(b0_dir):
    radius, size = 6, 48
    field = forward_field(sphere(size, radius), voxel_size=(1, 1, 1), b0_dir=b0_dir)
    axis = np.arange(size) + 0.5 - size / 2
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    r = np.sqrt((grid**2).sum(0))
    cosine = np.tensordot(b0_dir, grid, 1) / r
    expected = (radius / r) ** 3 * (3 * cosine**2 - 1) / 3
    shell = (r > radius + 2) & (r < 2 * radius)
    error = np.sqrt(((field - expected)[shell] ** 2).mean() / (expected[shell] ** 2).mean())
    assert error < 0.04
    assert np.abs(field[r < radius - 2]).max() < 0.04


def test_field_is_linear_and_moves_with_its_source():
    ball = sphere(32, 4)
    options = {"voxel_size": (1, 1, 1), "b0_dir": OBLIQUE}
    field = forward_field(ball, **options)
    assert np.allclose(forward_field(3 * ball, **options), 3 * field, atol=1e-6)
    moved = forward_field(np.roll(ball, (2, -3, 1), (0, 1, 2)), **options)
    assert np.allclose(moved[6:-6, 6:-6, 6:-6], np.roll(field, (2, -3, 1), (0, 1, 2))[6:-6, 6:-6, 6:-6], atol=1e-4)


def test_background_outside_the_grid_makes_no_field():
    chi = np.full((16, 16, 16), 9.4, np.float32)
    assert np.abs(forward_field(chi, voxel_size=(1, 1, 1), b0_dir=(0, 0, 1), background=9.4)).max() < 1e-5


def test_both_kernels_agree_at_low_frequencies():
    shape = (32, 32, 32)
    kspace, image = (dipole_kernel(shape, voxel_size=(1, 1, 1), b0_dir=(0, 0, 1), space=s) for s in ("kspace", "image"))
    k = fourier.frequencies(shape, (1, 1, 1))
    low = (sum(a**2 for a in k) < 0.15**2) & (sum(a**2 for a in k) > 0.08**2)
    assert np.abs(kspace - image)[low].max() < 0.07
