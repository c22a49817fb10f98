"""Field mapping, linear and complex, against known fields and noise."""

from __future__ import annotations

import nibabel as nb
import numpy as np
import pytest
from scipy import ndimage

from qsmflow.algorithms.coils import mcpc3ds
from qsmflow.algorithms.field import complex_fit, weighted_least_squares
from qsmflow.algorithms.units import rad_to_ppm
from qsmflow.algorithms.unwrap.romeo import romeo

TIMES = np.array([0.004, 0.009, 0.015, 0.024])
B0 = 3.0
SHAPE = (12, 11, 10)
RATE = 802.5664  # rad/s per ppm at 3 T
METHODS = (weighted_least_squares, complex_fit)


def noisy(rng, shape, sigma, field=0.3, offset=0.0, times=TIMES, r2star=30.0):
    """Unwrapped phase and magnitude of one field (ppm) with complex noise."""
    clean = np.exp(-r2star * times + 1j * (offset + RATE * field * times))
    data = clean + sigma * (rng.normal(size=(*shape, times.size)) + 1j * rng.normal(size=(*shape, times.size)))
    phase = np.angle(data / clean * np.abs(clean)) + offset + RATE * field * times
    return phase.astype(np.float32), np.abs(data).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("intercept", [False, True])
def test_exact_on_linear_phase(method, rng, intercept):
    true = rng.uniform(-2, 2, SHAPE)
    phase = (RATE * true[..., None] * TIMES + (0.7 if intercept else 0)).astype(np.float32)
    magnitude = rng.uniform(1, 2, phase.shape).astype(np.float32)
    field, error, residual = method(phase, magnitude, np.ones(SHAPE, bool), echo_times=TIMES, b0=B0, intercept=intercept)
    assert np.abs(field - true).max() < 1e-5
    assert residual.max() < 1e-4
    assert 0 < error.max() < 1e-5


def test_an_offset_biases_the_fit_without_intercept():
    phase = np.broadcast_to(RATE * 0.1 * TIMES + 0.5, (*SHAPE, 4)).astype(np.float32)
    every = np.ones(SHAPE, bool)
    through, free = (
        weighted_least_squares(phase, np.ones_like(phase), every, echo_times=TIMES, b0=B0, intercept=value)[0].mean()
        for value in (False, True)
    )
    assert free == pytest.approx(0.1, rel=1e-5)
    assert through - 0.1 == pytest.approx(0.5 * TIMES.sum() / (TIMES**2).sum() / RATE, rel=1e-4)


def test_through_the_origin_is_the_weighted_average_of_rates(rng):
    phase, magnitude = noisy(rng, SHAPE, 0.02)
    field = weighted_least_squares(phase, magnitude, np.ones(SHAPE, bool), echo_times=TIMES, b0=B0)[0]
    weight = magnitude.astype(float) ** 2 * TIMES**2
    average = (weight * phase / TIMES).sum(-1) / weight.sum(-1)
    np.testing.assert_allclose(field, rad_to_ppm(average, b0=B0), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("intercept", [False, True])
def test_error_is_the_standard_deviation_of_the_field(method, rng, intercept):
    phase, magnitude = noisy(rng, (30, 30, 30), 0.02, offset=0.4 if intercept else 0.0)
    every = np.ones((30, 30, 30), bool)
    field, error, residual = method(phase, magnitude, every, echo_times=TIMES, b0=B0, intercept=intercept)
    assert np.median(error) == pytest.approx(field.std(), rel=0.03)
    assert np.sqrt(np.mean(residual**2)) == pytest.approx(0.02 * np.sqrt((3 - intercept) / np.exp(-60 * TIMES).sum()), rel=0.05)
    scaled = method(phase, 1000 * magnitude, every, echo_times=TIMES, b0=B0, intercept=intercept)
    np.testing.assert_allclose(scaled[0], field, atol=1e-6)
    np.testing.assert_allclose(scaled[1], error, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("echoes", "intercept"), [(1, False), (1, True), (2, True)])
def test_without_degrees_of_freedom_the_noise_comes_from_the_neighbours(method, rng, echoes, intercept):
    times = TIMES[:echoes]
    phase, magnitude = noisy(rng, (30, 30, 30), 0.02, times=times)
    field, error, _ = method(phase, magnitude, np.ones((30, 30, 30), bool), echo_times=times, b0=B0, intercept=intercept)
    assert field.mean() == pytest.approx(0.3, abs=0.003)
    assert np.median(error) == pytest.approx(field.std(), rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_echoes_below_the_noise_floor_do_not_count(method, rng):
    phase, magnitude = noisy(rng, SHAPE, 0.01)
    every = np.ones(SHAPE, bool)
    wild = phase.copy()
    magnitude[:3, ..., 3] = 0.02
    wild[:3, ..., 3] += 20
    reference = method(phase, magnitude, every, echo_times=TIMES, b0=B0)[0]
    field = method(wild, magnitude, every, echo_times=TIMES, b0=B0)[0]
    np.testing.assert_allclose(field, reference, atol=1e-5)
    magnitude[0, ..., 1:] = 0.02
    alone = method(phase, magnitude, every, echo_times=TIMES, b0=B0)[0]
    np.testing.assert_allclose(alone[0], rad_to_ppm(phase[0, ..., 0] / TIMES[0], b0=B0), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_voxels_without_signal_are_finite_and_least_reliable(method, rng):
    phase, magnitude = noisy(rng, SHAPE, 0.01)
    magnitude[0, 0, 0] = 0
    results = method(phase, magnitude, np.ones(SHAPE, bool), echo_times=TIMES, b0=B0)
    assert all(np.isfinite(volume).all() for volume in results)
    assert results[1][0, 0, 0] == results[1].max() > 0


@pytest.mark.parametrize("method", METHODS)
def test_contract(method, rng):
    phase, magnitude = noisy(rng, SHAPE, 0.01)
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 2:9, 3:8], mask[7:10, 2:9, 3:8] = True, True
    copies = phase.copy(), magnitude.copy(), mask.copy()
    results = method(phase, magnitude, mask, echo_times=TIMES, b0=B0)
    for volume in results:
        assert volume.dtype == np.float32
        assert volume.shape == SHAPE
        assert not volume[~mask].any()
        assert volume[mask].all()
    for before, after in zip(copies, (phase, magnitude, mask), strict=True):
        np.testing.assert_array_equal(before, after)
    other = method(np.asfortranarray(phase), magnitude, np.asfortranarray(mask), echo_times=TIMES, b0=B0)
    np.testing.assert_array_equal(other[0], results[0])
    empty = method(phase, magnitude, mask & False, echo_times=TIMES, b0=B0)
    assert not any(volume.any() for volume in empty)


@pytest.mark.parametrize("method", METHODS)
def test_simulated_head(method, shared):
    """Offset removal, unwrapping and fit with their defaults; the images lie a third of a voxel off the truth, worth 6.5 %."""
    folder, name, times = shared / "data" / "head", "sub-01", (0.004, 0.012, 0.020, 0.028)
    truth = folder / "derivatives" / "truth" / name / "anat"
    phase, magnitude = (
        np.stack(
            [nb.load(folder / name / "anat" / f"{name}_echo-{e}_part-{part}_MEGRE.nii.gz").get_fdata() for e in range(1, 5)], -1
        ).astype(np.float32)
        for part in ("phase", "mag")
    )
    mask = nb.load(truth / f"{name}_desc-brain_mask.nii.gz").get_fdata() > 0
    corrected, _ = mcpc3ds(phase * np.float32(np.pi / 4096), magnitude, mask, echo_times=times, voxel_size=(1.5, 1.5, 1.5))
    unwrapped = romeo(corrected, magnitude, mask, echo_times=times)
    turns = (unwrapped - corrected)[mask] / (2 * np.pi)
    assert np.abs(turns - np.rint(turns)).max() < 1e-4
    field = method(unwrapped, magnitude, mask, echo_times=times, b0=B0)[0]
    inside = ndimage.binary_erosion(mask, iterations=3)
    found, true = (
        volume[inside] - volume[inside].mean()
        for volume in (field, nb.load(truth / f"{name}_desc-total_fieldmap.nii.gz").get_fdata())
    )
    assert np.linalg.norm(found - true) / np.linalg.norm(true) < 0.08


@pytest.mark.parametrize("method", METHODS)
def test_echoes_after_a_bend_of_the_phase_are_left_out_and_raise_the_error(method, rng):
    """Half of the voxels lose signal and phase from the third of four echoes on, as near a sinus; noise elsewhere."""
    times = np.array([0.005, 0.010, 0.015, 0.020])
    rate = 200.0  # rad/s
    magnitude = np.broadcast_to(100 * np.exp(-20 * times), (20, 20, 10, 4)).copy()
    phase = rate * times + 0.01 * rng.normal(size=magnitude.shape)
    bent = np.zeros((20, 20, 10), bool)
    bent[:10, :4] = True
    phase[bent, 2:] -= [1.5, 2.5]
    magnitude[bent, 2:] *= [0.5, 0.4]
    inside = np.ones(bent.shape, bool)
    field, error, residual = method(phase.astype(np.float32), magnitude.astype(np.float32), inside, echo_times=times, b0=3.0)
    expected = rad_to_ppm(rate, b0=3.0)
    assert np.abs(field[bent] - expected).max() < 0.02 * expected
    assert np.abs(field[~bent] - expected).max() < 0.02 * expected
    assert error[bent].min() > 1.5 * np.median(error[~bent])
    assert residual[bent].max() < 0.2


@pytest.mark.parametrize("intercept", [False, True])
def test_wrong_turns_in_an_echo_do_no_harm_to_the_complex_fit(rng, intercept):
    phase, magnitude = noisy(rng, SHAPE, 0.02, offset=0.4 if intercept else 0.0)
    wrong = phase.copy()
    wrong[..., 2 + intercept :] += 2 * np.pi * rng.integers(-3, 4, wrong[..., 2 + intercept :].shape)
    every, settings = np.ones(SHAPE, bool), {"echo_times": TIMES, "b0": B0, "intercept": intercept}
    found, expected = (complex_fit(p.astype(np.float32), magnitude, every, **settings)[0] for p in (wrong, phase))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(weighted_least_squares(wrong, magnitude, every, **settings)[0] - expected).max() > 0.1


def test_the_complex_fit_keeps_the_branch_of_the_unwrapped_phase():
    """Beyond 1 / (2 dTE) the wrapped signal alone would give another field; the number of the turn is in the phase."""
    times = np.array([0.005, 0.010, 0.015])
    true = 3.1 * 2 * np.pi / 0.005  # more than three turns from echo to echo
    phase = np.broadcast_to(true * times, (3, 3, 3, 3)).astype(np.float32)
    field = complex_fit(phase, np.ones_like(phase), np.ones((3, 3, 3), bool), echo_times=times, b0=B0)[0]
    np.testing.assert_allclose(field, rad_to_ppm(true, b0=B0), rtol=1e-5)


def test_the_complex_fit_minimises_the_complex_misfit(rng):
    """Of every voxel but the few whose misfit makes it leave out echoes."""
    phase, magnitude = noisy(rng, SHAPE, 0.05)
    field = complex_fit(phase, magnitude, np.ones(SHAPE, bool), echo_times=TIMES, b0=B0)[0].astype(float)

    def cost(rate):
        return (magnitude**2 * (1 - np.cos(phase - rate[..., None] * TIMES))).sum(-1)

    for step in (-0.3, 0.3):
        assert (cost(RATE * field + step) > cost(RATE * field)).mean() > 0.995


def test_the_fits_agree_where_there_is_little_noise(rng):
    phase, magnitude = noisy(rng, SHAPE, 0.005)
    every = np.ones(SHAPE, bool)
    line, turning = (method(phase, magnitude, every, echo_times=TIMES, b0=B0) for method in METHODS)
    assert np.abs(line[0] - turning[0]).max() < 0.02 * np.median(line[1])
    np.testing.assert_allclose(line[1], turning[1], rtol=1e-3)


def test_the_error_map_weights_to_unit_variance(rng):
    """Field over its error, where signal and noise vary from voxel to voxel, and whatever unit the magnitude has."""
    shape, scale = (30, 30, 20), np.linspace(0.5, 3, 30)[:, None, None, None]
    clean = scale * np.exp(-30 * TIMES + 1j * RATE * 0.3 * TIMES)
    data = clean + 0.02 * (rng.normal(size=(*shape, 4)) + 1j * rng.normal(size=(*shape, 4)))
    phase = np.angle(data * np.exp(-1j * RATE * 0.3 * TIMES)) + RATE * 0.3 * TIMES
    for method in METHODS:
        field, error, _ = method(
            phase.astype(np.float32), (700 * np.abs(data)).astype(np.float32), np.ones(shape, bool), echo_times=TIMES, b0=B0
        )
        deviations = (field - 0.3) / error
        for part in (deviations[:10], deviations[10:20], deviations[20:]):
            assert part.std() == pytest.approx(1, rel=0.05)
