"""Odd and even echoes that differ, and such that do not."""

from __future__ import annotations

import numpy as np
import pytest

from qsmflow.algorithms.field import weighted_least_squares
from qsmflow.algorithms.readout import bipolar
from qsmflow.algorithms.unwrap.romeo import romeo
from qsmflow.algorithms.unwrap.wrapping import wrap

SHAPE, VOXEL = (40, 30, 24), (2.0, 2.0, 2.5)
EVEN, UNEVEN = (0.004, 0.009, 0.014, 0.019), (0.004, 0.009, 0.0145, 0.021)


def coordinates():
    return np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")


@pytest.fixture
def scan():
    """Mask, phase offset (rad), field (rad/s); several turns in the last echo."""
    x, y, z = coordinates()
    mask = (x / 19) ** 2 + (y / 14) ** 2 + (z / 11) ** 2 < 1
    offset = 0.6 + 0.03 * y + 0.002 * z**2
    field = 12 * x - 0.8 * y * z + 250 * np.exp(-((x - 5) ** 2 + y**2 + z**2) / 20)
    return mask, offset, field - np.median(field[mask])


def signal(scan, times, difference=0.0, noise=0.0, seed=0):
    """Wrapped phase and magnitude with ``difference`` in the even echoes."""
    mask, offset, field = scan
    phase = offset[..., None] + field[..., None] * np.asarray(times)
    phase[..., 1::2] += np.broadcast_to(difference, SHAPE)[..., None]
    size = 100 * np.exp(-30 * np.asarray(times)) * mask[..., None]
    rng = np.random.default_rng(seed)
    data = size * np.exp(1j * phase) + noise * (rng.standard_normal(phase.shape) + 1j * rng.standard_normal(phase.shape))
    return np.angle(data).astype(np.float32), np.abs(data).astype(np.float32)


@pytest.mark.parametrize("times", [EVEN, EVEN[:3], UNEVEN, (*EVEN, 0.024)], ids=["4", "3", "uneven", "5"])
def test_a_gradient_delay_is_removed(scan, times):
    """Linear along the readout: gone to less than 0.001 rad, and odd echoes are not touched."""
    mask = scan[0]
    x, _, _ = coordinates()
    constant = 0.0 if times is UNEVEN else 0.3  # which uneven echoes cannot tell from a constant field
    phase, magnitude = signal(scan, times, 0.02 * x + constant)
    clean, _ = signal(scan, times)
    corrected, asymmetry, size = bipolar(phase, magnitude, mask, echo_times=times, voxel_size=VOXEL)
    assert np.abs(wrap(corrected - clean)[mask]).max() < 1e-3
    assert np.abs(asymmetry - 0.02 * x - constant)[mask].max() < 1e-3
    assert size == pytest.approx(np.sqrt(np.mean((0.02 * x + constant)[mask] ** 2)), abs=1e-3)
    np.testing.assert_array_equal(corrected[..., ::2][mask], phase[..., ::2][mask])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_steep_delay_along_any_axis(scan, axis):
    """More than a turn over the head."""
    mask, steep = scan[0], 0.25 * coordinates()[axis]
    phase, magnitude = signal(scan, EVEN, steep)
    corrected, _, _ = bipolar(phase, magnitude, mask, echo_times=EVEN, voxel_size=VOXEL)
    assert np.abs(wrap(corrected - signal(scan, EVEN)[0])[mask]).max() < 1e-3


def test_a_smooth_difference_is_removed_as_far_as_it_is_smooth(scan):
    mask = scan[0]
    x, y, z = coordinates()
    smooth = 0.01 * x + 0.4 * np.cos(y / 15) * np.cos(z / 15)
    phase, magnitude = signal(scan, EVEN, smooth)
    corrected, _, _ = bipolar(phase, magnitude, mask, echo_times=EVEN, voxel_size=VOXEL, sigma=4.0)
    left = wrap(corrected - signal(scan, EVEN)[0])[..., 1][mask]
    assert left.std() < 0.25 * smooth[mask].std()


@pytest.mark.parametrize("times", [EVEN, EVEN[:3], UNEVEN], ids=["4", "3", "uneven"])
@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_monopolar_echoes_stay_as_they_are(scan, times, noise):
    mask = scan[0]
    phase, magnitude = signal(scan, times, noise=noise)
    corrected, asymmetry, size = bipolar(phase, magnitude, mask, echo_times=times, voxel_size=VOXEL)
    assert size < 0.02
    assert not asymmetry.any()
    np.testing.assert_array_equal(corrected, np.where(mask[..., None], phase, 0))


def test_phase_that_bends_over_the_echoes_is_no_difference(scan):
    """Curvature, as of several water pools, is the same around odd and even echoes; three echoes cannot tell."""
    mask = scan[0]
    phase, magnitude = signal(scan, EVEN)
    bent = wrap(phase + 0.3 * np.array([0, 1, 4, 9]) / 2).astype(np.float32)
    assert bipolar(bent, magnitude, mask, echo_times=EVEN, voxel_size=VOXEL)[2] < 1e-3
    assert bipolar(bent[..., :3], magnitude[..., :3], mask, echo_times=EVEN[:3], voxel_size=VOXEL)[2] > 0.1


def test_threshold(scan):
    mask = scan[0]
    phase, magnitude = signal(scan, EVEN, 0.05)
    for threshold, done in ((0.049, True), (0.051, False), (0.0, True)):
        _, asymmetry, size = bipolar(phase, magnitude, mask, echo_times=EVEN, voxel_size=VOXEL, threshold=threshold)
        assert asymmetry.any() == done
        assert size == pytest.approx(0.05, abs=1e-4)


def test_field_is_that_of_monopolar_echoes(scan):
    """Through unwrapping and fit: the field of the corrected echoes is that of echoes without a delay."""
    mask = scan[0]
    x, _, _ = coordinates()

    def total_field(phase, magnitude):
        unwrapped = romeo(phase, magnitude, mask, echo_times=EVEN)
        return weighted_least_squares(unwrapped, magnitude, mask, echo_times=EVEN, b0=3.0, intercept=True)[0][mask]

    truth = total_field(*signal(scan, EVEN))
    noise = np.std(total_field(*signal(scan, EVEN, noise=1.0)) - truth)
    phase, magnitude = signal(scan, EVEN, 0.05 * x, noise=1.0)
    corrected = bipolar(phase, magnitude, mask, echo_times=EVEN, voxel_size=VOXEL)[0]
    assert np.std(total_field(corrected, magnitude) - truth) == pytest.approx(noise, rel=0.05)
    assert np.std(total_field(phase, magnitude) - truth) > 3 * noise


def test_two_echoes_are_refused(scan):
    phase, magnitude = signal(scan, EVEN[:2])
    with pytest.raises(ValueError, match="three echoes"):
        bipolar(phase, magnitude, scan[0], echo_times=EVEN[:2], voxel_size=VOXEL)
