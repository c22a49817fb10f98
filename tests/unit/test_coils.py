"""Phase-offset removal against known offsets."""

from __future__ import annotations

import numpy as np
import pytest

from qsmflow.algorithms.coils import mcpc3ds
from qsmflow.algorithms.unwrap.wrapping import wrap

VOXEL = (1.0, 1.5, 2.5)
SHAPE = (24, 18, 14)


def coordinates(shape=SHAPE):
    """Coordinates from -1 to 1 along the three axes."""
    return np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")


def ball(shape=SHAPE, radius=0.95):
    return sum(c**2 for c in coordinates(shape)) < radius**2


def signal(times, offset, rate):
    """Wrapped phase and magnitude of a field (rad/s) with an offset (rad)."""
    phase = wrap(offset[..., None] + rate[..., None] * np.asarray(times)).astype(np.float32)
    return phase, np.ones_like(phase)


@pytest.fixture
def offset():
    x, y, z = coordinates()
    return 0.5 + 1.2 * x - 0.8 * y * z + 0.9 * z**2


@pytest.fixture
def rate():
    """A field whose phase difference between the first two echoes spans several turns."""
    x, y, z = coordinates()
    return 900 * x + 500 * y**2 - 300 * z


@pytest.mark.parametrize("times", [(0.004, 0.012, 0.020), (0.005, 0.010, 0.017), (0.006, 0.010, 0.014)])
def test_unsmoothed_offset_is_exact(times, offset, rate):
    mask = ball()
    rate = rate - np.median(rate[mask])
    phase, magnitude = signal(times, offset, rate)
    corrected, found = mcpc3ds(phase, magnitude, mask, echo_times=times, voxel_size=VOXEL, sigma=0.0)
    assert np.abs(wrap(found - offset)[mask]).max() < 1e-4
    assert np.abs(wrap(corrected - rate[..., None] * np.asarray(times))[mask]).max() < 1e-4


def test_smoothing_is_in_millimetres_and_has_no_edge(offset, rate):
    """A single deviating voxel spreads as far along thick voxels as along thin ones; a constant stays a constant."""
    times, mask = (0.005, 0.010), np.ones((32, 32, 16), bool)
    flat = np.zeros(mask.shape)
    phase, magnitude = signal(times, flat, flat)
    phase[16, 16, 8, :] = 0.5
    _, found = mcpc3ds(phase, magnitude, mask, echo_times=times, voxel_size=(1.0, 1.0, 2.0), sigma=2.0)
    line, thick = found[:, 16, 8], found[16, 16, :]
    widths = [np.sqrt(np.sum(v * (np.arange(v.size) - v.argmax()) ** 2) / v.sum()) * h for v, h in ((line, 1.0), (thick, 2.0))]
    assert widths == pytest.approx([2.0, 2.0], rel=0.02)
    phase, magnitude = signal(times, flat + 2.0, flat)
    _, constant = mcpc3ds(phase, magnitude, ball(mask.shape), echo_times=times, voxel_size=(1.0, 1.0, 2.0), sigma=8.0)
    assert np.abs(constant[ball(mask.shape)] - 2.0).max() < 1e-5


def test_smoothing_averages_noise(rng, offset, rate):
    times, mask = (0.004, 0.012), ball()
    phase, magnitude = signal(times, np.zeros(SHAPE), np.zeros(SHAPE))
    phase = wrap(phase + rng.normal(0, 0.1, phase.shape)).astype(np.float32)
    rough = mcpc3ds(phase, magnitude, mask, echo_times=times, voxel_size=VOXEL, sigma=0.0)[1]
    smooth = mcpc3ds(phase, magnitude, mask, echo_times=times, voxel_size=VOXEL, sigma=5.0)[1]
    assert rough[mask].std() == pytest.approx(0.1 * np.hypot(1.5, 0.5), rel=0.05)
    assert smooth[mask].std() < 0.15 * rough[mask].std()


def test_phase_difference_is_unwrapped_only_where_needed(offset):
    """With TE2 = 2 TE1 not even a phase difference that cannot be unwrapped (a vortex) disturbs the offset."""
    x, y, _ = coordinates()
    times, mask = (0.005, 0.010), ball()
    vortex = np.arctan2(y, x) / 0.005
    phase, magnitude = signal(times, offset, vortex)
    _, found = mcpc3ds(phase, magnitude, mask, echo_times=times, voxel_size=VOXEL, sigma=0.0)
    assert np.abs(wrap(found - offset)[mask]).max() < 1e-4


def test_disconnected_parts_agree():
    """Two parts whose fields differ by less than the range of the phase difference get the same offset."""
    times = (0.004, 0.012)
    mask = np.zeros((20, 8, 8), bool)
    mask[1:9], mask[11:19] = True, True
    rate = np.zeros(mask.shape)
    rate[:10], rate[10:] = -250.0, 250.0
    phase, magnitude = signal(times, np.full(mask.shape, 0.7), rate)
    _, found = mcpc3ds(phase, magnitude, mask, echo_times=times, voxel_size=VOXEL)
    assert np.abs(found[mask] - 0.7).max() < 1e-4


def test_contract(offset, rate):
    times, mask = (0.004, 0.012, 0.020), ball()
    phase, magnitude = signal(times, offset, rate)
    copies = phase.copy(), magnitude.copy(), mask.copy()
    corrected, found = mcpc3ds(phase, magnitude, mask, echo_times=times, voxel_size=VOXEL)
    assert corrected.dtype == found.dtype == np.float32
    assert corrected.shape == phase.shape
    assert not corrected[~mask].any()
    assert not found[~mask].any()
    for before, after in zip(copies, (phase, magnitude, mask), strict=True):
        np.testing.assert_array_equal(before, after)
    fortran = mcpc3ds(np.asfortranarray(phase), magnitude, np.asfortranarray(mask), echo_times=times, voxel_size=VOXEL)
    np.testing.assert_array_equal(fortran[0], corrected)
    with pytest.raises(ValueError, match="two echoes"):
        mcpc3ds(phase[..., :1], magnitude[..., :1], mask, echo_times=times[:1], voxel_size=VOXEL)
