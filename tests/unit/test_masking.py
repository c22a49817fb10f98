"""Masks from magnitude and phase, and the morphology under them: analytic shapes, anisotropic voxels, flipped axes."""

from __future__ import annotations

import numpy as np
import pytest

from qsmflow.algorithms import masking, morphology

ISO, FLAT = (1.0, 1.0, 1.0), (0.8, 1.0, 3.0)


def ellipsoid(shape, semi, voxel_size=ISO, centre=None):
    """Voxels within semi-axes in mm around the middle of the grid."""
    middle = [(n - 1) / 2 for n in shape] if centre is None else centre
    axes = [((np.arange(n) - c) * h / a) ** 2 for n, c, h, a in zip(shape, middle, voxel_size, semi, strict=True)]
    return axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :] <= 1


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def noisy(rng, mask, snr):
    """Magnitude of an object at an SNR, Rayleigh noise in air; two echoes."""
    signal = snr * mask[..., None] * np.array([1.0, 0.6])
    noise = rng.normal(size=signal.shape) + 1j * rng.normal(size=signal.shape)
    return np.abs(signal + noise).astype(np.float32)


@pytest.mark.parametrize(("shape", "voxel_size"), [((76, 80, 72), ISO), ((92, 80, 28), FLAT)])
@pytest.mark.parametrize(("method", "settings"), [(masking.threshold, {"factor": 1.0, "smooth": 1.0}), (masking.robust, {})])
def test_an_ellipsoid_in_noise(rng, method, settings, shape, voxel_size):
    true = ellipsoid(shape, (30, 32, 29), voxel_size)
    found = method(noisy(rng, true, 20), voxel_size=voxel_size, **settings)
    assert found.dtype == bool
    assert dice(found, true) > 0.98


def test_robust_survives_what_fools_one_threshold(rng):
    """A coil that shades tissue down to a fifth, and a bright spot."""
    true = ellipsoid((48, 56, 44), (18, 20, 17))
    magnitude = noisy(rng, true, 100)
    magnitude *= np.linspace(0.3, 1.5, 48, dtype=np.float32)[:, None, None, None]
    magnitude[24:27, 28:31, 20:23] *= 20
    found = dice(masking.robust(magnitude, voxel_size=ISO), true)
    assert found > 0.97
    assert dice(masking.threshold(magnitude, voxel_size=ISO, factor=1.0), true) < found - 0.02


def test_robust_without_air_keeps_all(rng):
    """Where the darkest voxels are tissue, their mean is not taken for noise."""
    magnitude = rng.uniform(60, 100, (20, 20, 20, 1)).astype(np.float32)
    assert masking.robust(magnitude, voxel_size=ISO)[3:-3, 3:-3, 3:-3].all()
    with pytest.raises(ValueError, match="constant"):
        masking.robust(np.ones((5, 5, 5, 1), np.float32), voxel_size=ISO)


def test_robust_fills_holes_and_keeps_channels(rng):
    true = ellipsoid((48, 56, 44), (18, 20, 17))
    dark = true & ~ellipsoid((48, 56, 44), (5, 5, 5))
    open_ = true.copy()
    open_[20:28, 24:32, 22:] = False
    assert masking.robust(noisy(rng, dark, 40), voxel_size=ISO)[24, 28, 22]
    assert not masking.robust(noisy(rng, open_, 40), voxel_size=ISO)[24, 28, 30]


def test_quality_keeps_smooth_phase_and_rejects_noise():
    quality = np.full((20, 20, 20), 0.8, np.float32)
    quality[:, :, 10:] = 0.15
    found = masking.from_quality(quality, voxel_size=FLAT)
    assert found[..., :9].all()
    assert not found[..., 11:].any()


@pytest.mark.parametrize("operation", [morphology.dilate, morphology.erode, morphology.close, morphology.open_])
def test_morphology_is_in_millimetres(operation):
    """A ball in space stays a ball: its volume changes as the radius does, on both grids."""
    radius, by = 9.0, 3.0
    expected = {morphology.dilate: radius + by, morphology.erode: radius - by}.get(operation, radius)
    for voxel_size in (ISO, (0.5, 1.0, 2.0)):
        shape = tuple(int(30 / h) | 1 for h in voxel_size)
        result = operation(ellipsoid(shape, (radius,) * 3, voxel_size), by, voxel_size)
        volume = result.sum() * np.prod(voxel_size)
        assert (3 * volume / (4 * np.pi)) ** (1 / 3) == pytest.approx(expected, abs=0.35)


def test_erosion_undoes_dilation_at_least(rng):
    mask = rng.random((20, 22, 18)) < 0.05
    for voxel_size in (ISO, FLAT):
        assert (morphology.close(mask, 2.5, voxel_size) | ~mask).all()
        assert (~morphology.open_(~mask, 1.0, voxel_size) | ~mask).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flipping_an_axis_flips_the_result(rng, axis):
    """Of everything but the choice between components of equal size."""
    true = ellipsoid((33, 36, 30), (12, 13, 11), centre=(15, 19, 14))
    magnitude, quality = noisy(rng, true, 15), rng.random((33, 36, 30)).astype(np.float32)
    operations = [
        lambda a: morphology.dilate(a[2], 2.0, FLAT),
        lambda a: morphology.erode(a[2], 2.0, FLAT),
        lambda a: morphology.close(a[2], 3.0, FLAT),
        lambda a: morphology.open_(a[2], 2.0, FLAT),
        lambda a: morphology.fill(a[2], 100),
        lambda a: masking.threshold(a[0], voxel_size=FLAT),
        lambda a: masking.robust(a[0], voxel_size=FLAT),
        lambda a: masking.from_quality(a[1], voxel_size=FLAT, threshold=0.5),
        lambda a: masking.combine([a[2]], voxel_size=FLAT),
    ]
    arrays = magnitude, quality, true & (quality > 0.1)
    for operation in operations:
        straight = operation(arrays)
        turned = operation([np.ascontiguousarray(np.flip(a, axis)) for a in arrays])
        # float32 filters may round an edge voxel the other way
        assert (np.flip(turned, axis) != straight).sum() <= 2


def test_holes_are_filled_by_size_and_channels_stay_open():
    mask = np.ones((9, 9, 9), bool)
    mask[4, 4, 4], mask[1, 1, 0:5], mask[6:8, 6, 6] = False, False, False
    assert not (morphology.fill(mask, 1) ^ mask)[1, 1].any()
    assert morphology.fill(mask, 1)[4, 4, 4]
    assert not morphology.fill(mask, 1)[6, 6, 6]
    assert morphology.fill(mask, 2)[6, 6, 6]
