"""Scaling of stored phase to radians."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qsmflow.algorithms import scaling

SHAPE = (12, 10, 9, 3)


@pytest.fixture
def truth(rng):
    """Phase that fills -pi to pi, with both ends, rad."""
    phase = rng.uniform(-math.pi, math.pi, SHAPE)
    phase[0, 0, 0], phase[-1, -1, -1] = -math.pi, math.pi * (1 - 1e-4)
    return phase


def distance(one, two):
    """Largest difference modulo whole turns."""
    return float(np.abs(scaling.wrap(np.asarray(one, dtype=np.float64) - two)).max())


STORED = {
    "siemens signed": (lambda p: np.round(p / math.pi * 4096).clip(-4096, 4095), "-4096 to 4096"),
    "siemens slope 2": (lambda p: 2 * np.round((p / math.pi + 1) * 2048).clip(0, 4095) - 4096, "-4096 to 4096"),
    "siemens unsigned": (lambda p: np.round((p / math.pi + 1) * 2048).clip(0, 4095), "0 to 4096"),
    "philips": (lambda p: np.round(p * 1000), "times 1000"),
    "12 bit": (lambda p: np.round(p / math.pi * 2048).clip(-2048, 2047), "-2048 to 2048"),
    "radians": (lambda p: p, "-pi to pi"),
    "radians from 0": (lambda p: np.mod(p, 2 * math.pi), "0 to 2 pi"),
    "degrees": (np.degrees, "degrees, -180"),
    "degrees from 0": (lambda p: np.mod(np.degrees(p), 360), "degrees, 0"),
}


@pytest.mark.parametrize("form", STORED)
def test_known_ranges_give_the_phase_back(truth, form):
    store, words = STORED[form]
    stored = store(truth).astype(np.float32)
    before = stored.copy()
    phase, how, warning = scaling.phase_to_radians(stored, units="arbitrary")
    assert words in how
    assert warning is None
    assert phase.dtype == np.float32
    assert np.abs(phase).max() <= math.pi * (1 + 1e-6)
    assert distance(phase, truth) < 2 * math.pi / 4096
    np.testing.assert_array_equal(stored, before)


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_other_dtypes_are_scaled_the_same(truth, dtype):
    stored = np.round(truth / math.pi * 4096).clip(-4096, 4095)
    as_float = scaling.phase_to_radians(stored.astype(np.float32), units="arbitrary")[0]
    np.testing.assert_array_equal(scaling.phase_to_radians(stored.astype(dtype), units="arbitrary")[0], as_float)


def test_one_scale_for_all_echoes(truth):
    """The first echo alone spans half the range; scaling it by its own range would double its phase."""
    truth[..., 0] /= 2
    phase = scaling.phase_to_radians(np.round(truth / math.pi * 4096).astype(np.float32), units="arbitrary")[0]
    assert distance(phase, truth) < 1e-3


def test_unknown_range_is_one_turn_with_a_warning(truth):
    phase, how, warning = scaling.phase_to_radians((truth * 0.0011695).astype(np.float32), units="arbitrary")
    assert "taken as one turn" in how
    assert "no known scanner" in warning
    assert distance(phase, truth) < 1e-3


def test_nearly_symmetrical_unknown_range_keeps_zero():
    scale = scaling.phase_scale(-0.0036744, 0.0036700, units="arbitrary")
    assert scale.zero == 0
    assert scale.factor == pytest.approx(math.pi / 0.0036744)


def test_asymmetrical_unknown_range_is_centred():
    scale = scaling.phase_scale(0, 65535, units="arbitrary")
    assert scale.zero == 32767.5
    np.testing.assert_allclose(scale.apply(np.array([0, 32767.5, 65535])), [-math.pi, 0, math.pi], atol=1e-5)


def test_partly_filled_known_range_is_not_recognised():
    assert scaling.phase_scale(-3500, 3500, units="arbitrary").warning
    assert not scaling.phase_scale(-3800, 3800, units="arbitrary").warning


def test_declared_radians_stay_bit_by_bit(truth):
    stored = truth.astype(np.float32)
    phase, how, warning = scaling.phase_to_radians(stored, units="rad")
    np.testing.assert_array_equal(phase, stored)
    assert how == "radians, as declared"
    assert warning is None


def test_declared_radians_are_wrapped_if_they_were_unwrapped(truth):
    unwrapped = truth + 2 * math.pi * np.arange(SHAPE[2])[:, None]
    phase, _, warning = scaling.phase_to_radians(unwrapped.astype(np.float32), units="rad")
    assert warning is None
    assert np.abs(phase).max() <= math.pi * (1 + 1e-6)
    assert distance(phase, truth) < 1e-4


@pytest.mark.parametrize("factor", [4096 / math.pi, 0.001])
def test_declared_radians_that_are_not_are_doubted(truth, factor):
    assert "declared as rad" in scaling.phase_to_radians(truth * factor, units="rad")[2]


@pytest.mark.parametrize("units", ["rad", "arbitrary"])
def test_not_finite_becomes_zero_and_leaves_the_range_alone(truth, units):
    stored = truth.astype(np.float32)
    stored[1, 2, 3] = [np.nan, np.inf, -np.inf]
    phase = scaling.phase_to_radians(stored, units=units)[0]
    np.testing.assert_array_equal(phase[1, 2, 3], 0)
    phase[1, 2, 3] = truth[1, 2, 3]
    assert distance(phase, truth) < 1e-6


@pytest.mark.parametrize("stored", [np.zeros(SHAPE), np.full(SHAPE, np.nan)])
def test_phase_without_scale_is_refused(stored):
    with pytest.raises(ValueError, match="constant"):
        scaling.phase_to_radians(stored, units="arbitrary")


def test_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="'Hz'"):
        scaling.phase_scale(0, 1, units="Hz")


@pytest.mark.parametrize("levels", [16, 256, 512])
def test_few_levels_are_counted(rng, levels):
    phase = 2 * math.pi / levels * rng.integers(-levels // 2, levels // 2, (30, 30, 30))
    assert scaling.few_levels(phase.astype(np.float32)) == levels


def test_fine_levels_and_tiny_images_are_not_judged(rng):
    fine = 2 * math.pi / 4096 * rng.integers(-2048, 2048, (40, 40, 40))
    assert scaling.few_levels(fine.astype(np.float32)) is None
    assert scaling.few_levels(np.linspace(-3, 3, 64).reshape(4, 4, 4)) is None
    assert scaling.few_levels(np.zeros((4, 4, 4))) is None


def test_complex_to_polar_round_trip(rng):
    real, imag = rng.normal(size=(2, 5, 6, 7)).astype(np.float32)
    real[0, 0, 0], imag[1, 1, 1] = np.nan, np.inf
    magnitude, phase = scaling.complex_to_polar(real, imag)
    good = np.isfinite(real) & np.isfinite(imag)
    np.testing.assert_allclose(magnitude[good] * np.exp(1j * phase[good]), real[good] + 1j * imag[good], rtol=1e-5, atol=1e-6)
    assert magnitude[~good].tolist() == phase[~good].tolist() == [0, 0]


def smooth_phase(shape=(20, 22, 16)):
    """A field with gradients up to 1 rad per voxel, and a ball as magnitude in noise-free air."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    phase = 4 * np.exp(-4 * ((x - 0.3) ** 2 + y**2 + z**2)) + 2 * x + 3 * z
    return scaling.wrap(phase.astype(np.float32)), (x**2 + y**2 + z**2 < 0.8).astype(np.float32)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (0, 2)])
def test_chopping_is_found_and_undone(rng, axes):
    clean, magnitude = smooth_phase()
    phase = scaling.undo_chopping(clean, axes)
    air = magnitude == 0
    phase[air] = rng.uniform(-math.pi, math.pi, air.sum())
    assert scaling.chopped_axes(phase, magnitude + 0.05 * air) == axes
    restored = scaling.undo_chopping(phase, axes)
    assert distance(restored[~air], clean[~air]) < 1e-5


def test_steep_field_is_not_chopping():
    """A gradient of pi per slice in a third of the slices is a field, not chopping."""
    clean, magnitude = smooth_phase()
    steep = np.cumsum(np.where(np.arange(16) < 6, 0.95 * math.pi, 0.3))
    assert scaling.chopped_axes(scaling.wrap((clean + steep).astype(np.float32)), magnitude) == ()


def test_empty_magnitude_is_not_chopped():
    clean, magnitude = smooth_phase()
    assert scaling.chopped_axes(clean, 0 * magnitude) == ()


def test_real_heads_are_not_chopped(shared):
    import nibabel as nb

    for data, axes in (("head", ()), ("invivo", ())):
        folder = shared / "data" / data / "sub-01" / "anat"
        stored = nb.load(folder / "sub-01_echo-1_part-phase_MEGRE.nii.gz").get_fdata(dtype=np.float32)
        magnitude = nb.load(folder / "sub-01_echo-1_part-mag_MEGRE.nii.gz").get_fdata(dtype=np.float32)
        phase = scaling.phase_to_radians(stored, units="arbitrary")[0]
        assert scaling.chopped_axes(phase, magnitude) == axes
        assert scaling.chopped_axes(scaling.undo_chopping(phase, (2,)), magnitude) == (2,)
