"""R2*, T2* and S0 against known decays, noise and loss of signal."""

from __future__ import annotations

import nibabel as nb
import numpy as np
import pytest
from scipy import ndimage, optimize

from qsmflow.algorithms import decay as kernels
from qsmflow.algorithms.relaxometry import arlo, complex_decay, loglinear, nonlinear, numart2s


def resting(magnitude, mask, **settings):
    """The complex fit of magnitudes whose phase stands still."""
    return complex_decay(magnitude, np.full(magnitude.shape, 0.3, np.float32), mask, **settings)


def floored(magnitude, mask, **settings):
    """The nonlinear fit with the noise floor in its model."""
    return nonlinear(magnitude, mask, floor="model", **settings)


METHODS = (arlo, nonlinear, floored, loglinear, numart2s, resting)
TIMES = np.array([0.005, 0.010, 0.015, 0.020, 0.025])


def decay(r2star, times=TIMES, s0=100.0):
    """Noiseless magnitudes, (X, Y, Z, E)."""
    return (s0 * np.exp(-np.asarray(r2star, float)[..., None] * times)).astype(np.float32)


def rician(rng, r2star, snr, times, shape):
    """Magnitudes with an S0 of ``snr`` and complex noise of unit standard deviation."""
    clean = snr * np.exp(-r2star * times)
    return np.abs(clean + rng.normal(size=(*shape, times.size)) + 1j * rng.normal(size=(*shape, times.size))).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_exact_without_noise(method, rng):
    true = rng.uniform(3, 60, (9, 8, 7))
    every = np.ones(true.shape, bool)
    r2star, t2star, s0 = method(decay(true), every, echo_times=TIMES, fwhm=0.0)
    # Simpson's rule alone is off by (R2* dTE)^4 / 180.
    np.testing.assert_allclose(r2star, true, rtol=2e-4)
    np.testing.assert_allclose(t2star, 1 / r2star, rtol=1e-6)
    np.testing.assert_allclose(s0, 100, rtol=5e-4)


@pytest.mark.parametrize(("spacing", "ratio"), [(0.5, 0.9997), (1.0, 0.995), (2.0, 0.944)])
def test_arlo_truncation(spacing, ratio):
    rate = np.full((2, 2, 2), spacing / 0.005)
    found = arlo(decay(rate, s0=1e4), np.ones((2, 2, 2), bool), echo_times=TIMES, fwhm=0.0)[0]
    np.testing.assert_allclose(found / rate, ratio, atol=1e-3)


@pytest.mark.parametrize(("method", "tolerance"), [(arlo, 5e-3), *((method, 1e-4) for method in METHODS if method is not arlo)])
def test_unequal_spacing(method, tolerance, rng):
    times = np.array([0.003, 0.006, 0.012, 0.020, 0.024])
    true = rng.uniform(5, 60, (6, 6, 6))
    found = method(decay(true, times), np.ones((6, 6, 6), bool), echo_times=times, fwhm=0.0)[0]
    np.testing.assert_allclose(found, true, rtol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_two_echoes_have_a_closed_form(method, rng):
    magnitude = rng.uniform(50, 60, (5, 5, 5, 2)).astype(np.float32)
    magnitude[..., 1] *= 0.8
    times = np.array([0.004, 0.011])
    r2star, _, s0 = method(magnitude, np.ones((5, 5, 5), bool), echo_times=times, fwhm=0.0)
    expected = np.log(magnitude[..., 0] / magnitude[..., 1]) / 0.007
    np.testing.assert_allclose(r2star, expected, rtol=1e-4)
    np.testing.assert_allclose(s0 * np.exp(-expected * 0.004), magnitude[..., 0], rtol=1e-4)


def test_bias_of_the_noise_floor(rng):
    """R2* = 80 1/s at an SNR of 30 with echoes from 4 to 40 ms, every voxel on its own and the noise level known."""
    times = np.arange(1, 11) * 0.004
    signal = rician(rng, 80, 30, times, (60, 60, 20)).reshape(-1, 10)
    every = np.full(len(signal), 10)
    below = signal < 3
    first = np.maximum(2, np.where(below.any(1), below.argmax(1), 10))
    subtracted = np.sqrt(np.maximum(signal**2 - 2, 0))
    start = kernels.newton(subtracted, every, times, 20)
    found = {
        "plain": kernels.newton(signal, every, times, 20),
        "cut where a noisy echo is below three deviations": kernels.newton(signal, first, times, 20),
        "subtracted": start,
        "model": kernels.with_floor(signal, every, times, start, 2.0, 20),
        "arlo": kernels.arlo(signal, every, times),
        "loglinear": kernels.loglinear(signal, every, times),
    }
    expected = {"plain": 0.974, "subtracted": 1.026, "model": 1.018, "arlo": 0.982, "loglinear": 0.924}
    ratios = {name: rates.mean() / 80 for name, rates in found.items()}
    for name, ratio in expected.items():
        assert ratios[name] == pytest.approx(ratio, abs=0.01), name
    # Neither method cuts noisy echoes: it keeps those that noise has raised.
    assert ratios["cut where a noisy echo is below three deviations"] < ratios["subtracted"] - 0.02


@pytest.mark.parametrize("method", [arlo, nonlinear, loglinear, numart2s])
def test_the_floor_can_be_left_in(method, rng):
    times, every = np.arange(1, 11) * 0.004, np.ones((30, 30, 10), bool)
    magnitude = rician(rng, 80, 30, times, every.shape)
    kept, removed = (method(magnitude, every, echo_times=times, floor=floor)[0].mean() for floor in ("none", "subtract"))
    assert kept < 0.995 * removed


@pytest.mark.parametrize("spacing", [0.1, 0.5, 1.0])
def test_numart2s_error_of_the_trapezoidal_rule(spacing):
    """Without correction (2 / h) tanh(R h / 2), for any number of echoes; with it, the rate itself."""
    every, rate = np.ones((2, 2, 2), bool), spacing / 0.005
    for echoes in (2, 3, 5):
        settings = {"echo_times": TIMES[:echoes], "fwhm": 0.0, "dropout": 0.0}
        magnitude = decay(np.full((2, 2, 2), rate), TIMES[:echoes], s0=1e4)
        plain, corrected = (numart2s(magnitude, every, **settings, correct=c)[0] for c in (False, True))
        np.testing.assert_allclose(plain, 2 / 0.005 * np.tanh(spacing / 2), rtol=2e-5)
        np.testing.assert_allclose(corrected, rate, rtol=2e-5)


def test_complex_decay_has_no_floor_and_does_not_mind_wraps(rng):
    """At an SNR of 8, with a field that wraps between echoes and an offset, and echoes that are not equally spaced."""
    times, shape = np.array([0.003, 0.007, 0.012, 0.018, 0.025, 0.033, 0.042]), (30, 30, 20)
    rate = rng.uniform(-700, 700, shape)[..., None] * times + 1.3
    noise = rng.normal(size=(*shape, 7)) + 1j * rng.normal(size=(*shape, 7))
    data = 8 * np.exp(-60 * times + 1j * rate) + noise
    magnitude, phase = np.abs(data).astype(np.float32), np.angle(data).astype(np.float32)
    every, settings = np.ones(shape, bool), {"echo_times": times, "dropout": 0.0}
    turned = complex_decay(magnitude, phase, every, **settings, fwhm=2.0)[0].mean()
    plain = nonlinear(magnitude, every, **settings, fwhm=2.0, floor="none")[0].mean()
    assert plain < 52
    assert turned == pytest.approx(60, rel=0.06)
    strong = 30 * np.exp(-80 * times + 1j * rate) + noise
    magnitude, phase = np.abs(strong).astype(np.float32), np.angle(strong).astype(np.float32)
    assert complex_decay(magnitude, phase, every, echo_times=times)[0].mean() == pytest.approx(80, rel=0.01)


def test_complex_decay_does_not_take_a_bend_of_the_phase_for_decay(rng):
    times, shape = np.array([0.004, 0.012, 0.020, 0.028]), (12, 12, 10)
    data = 100 * np.exp(-20 * times + 1j * (0.3 + 200 * times + 3000 * times**2))
    data = data + rng.normal(size=(*shape, 4)) + 1j * rng.normal(size=(*shape, 4))
    magnitude, phase = np.abs(data).astype(np.float32), np.angle(data).astype(np.float32)
    settings = {"echo_times": times, "dropout": 0.0}
    kept, lost = (complex_decay(magnitude, phase, np.ones(shape, bool), **settings, bend=b)[0].mean() for b in (4.0, 0.0))
    assert kept == pytest.approx(20, rel=0.01)
    assert lost > 20.8


def test_complex_decay_of_single_voxels_is_the_joint_least_squares_fit(rng):
    """The misfit of the complex signal is that of a general optimiser over all four parameters."""
    times, every = np.array([0.004, 0.009, 0.015, 0.024]), np.ones((3, 2, 2), bool)
    truth = 20 * np.exp(-40 * times + 1j * (0.4 + 300 * times))
    data = (truth + rng.normal(size=(12, 4)) + 1j * rng.normal(size=(12, 4))).astype(np.complex64)
    magnitude, phase = np.abs(data), np.angle(data)
    settings = {"echo_times": times, "fwhm": 0.0, "dropout": 0.0, "iterations": 50}
    found = complex_decay(magnitude.reshape(3, 2, 2, 4), phase.reshape(3, 2, 2, 4), every, **settings)[0].reshape(-1)

    def misfit(parameters, signal):
        s0, rate, offset, slope = parameters
        error = signal - s0 * np.exp(-rate * times + 1j * (offset + slope * times))
        return np.concatenate([error.real, error.imag])

    for signal, rate in zip(data, found, strict=True):
        best = optimize.least_squares(misfit, (20, 40, 0.4, 300), args=(signal,), x_scale=(1, 1, 0.1, 10), xtol=1e-12)
        assert rate == pytest.approx(best.x[1], rel=2e-3)


@pytest.mark.parametrize("method", METHODS[:-1])
def test_noise_floor_is_removed(method, rng):
    times, every = np.arange(1, 11) * 0.004, np.ones((40, 40, 20), bool)
    magnitude = rician(rng, 80, 30, times, every.shape)
    found = method(magnitude, every, echo_times=times)[0]
    assert found.mean() == pytest.approx(80, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_small_bias_at_usual_noise(method, rng):
    every = np.ones((30, 30, 30), bool)
    magnitude = rician(rng, 25, 50, TIMES, every.shape)
    voxelwise = method(magnitude, every, echo_times=TIMES, fwhm=0.0)[0]
    assert voxelwise.mean() == pytest.approx(25, rel=0.01)
    pooled = method(magnitude, every, echo_times=TIMES, fwhm=3.0)[0]
    assert pooled.std() < 0.5 * voxelwise.std()


@pytest.mark.parametrize("method", METHODS)
def test_lost_signal_ends_the_decay(method, rng):
    """A macroscopic gradient extinguishes the last two echoes of some voxels."""
    every = np.ones((20, 20, 20), bool)
    magnitude = rician(rng, 20, 100, TIMES, every.shape)
    magnitude[5:12, 5:12, 5:12, 3] *= 0.6
    magnitude[5:12, 5:12, 5:12, 4] *= 0.2
    inner = (slice(7, 10),) * 3
    kept, cut = (method(magnitude, every, echo_times=TIMES, fwhm=2.0, dropout=d)[0][inner].mean() for d in (0.0, 4.0))
    assert kept > 30
    assert cut == pytest.approx(20, abs=2)


@pytest.mark.parametrize("method", METHODS)
def test_pooling_has_its_width_and_stays_inside_the_mask(method):
    """Half of a bright voxel (its power; its signal once demodulated) arrives half a width away, none from outside the mask."""
    times, shape = TIMES[:2], (21, 21, 11)
    rate = np.full(shape, 20.0)
    magnitude = decay(rate, times, s0=1.0)
    magnitude[10, 10, 5] *= 100
    every = np.ones(shape, bool)
    order = 1 if method is resting else 2
    s0 = method(magnitude, every, echo_times=times, fwhm=4.0)[2].astype(float) ** order - 1
    assert s0[12, 10, 5] / s0[10, 10, 5] == pytest.approx(0.5, rel=0.02)
    assert s0[10, 10, 7] / s0[10, 10, 5] == pytest.approx(0.5, rel=0.02)
    mask = every.copy()
    mask[10, 10, 5] = False
    np.testing.assert_allclose(method(magnitude, mask, echo_times=times, fwhm=4.0)[2][mask], 1, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_bounds_and_voxels_without_signal(method):
    magnitude = decay(np.full((4, 4, 4), 30.0))
    magnitude[0] = 0
    magnitude[1] = 7
    magnitude[2, ..., 1:] = 0
    results = method(magnitude, np.ones((4, 4, 4), bool), echo_times=TIMES, fwhm=0.0)
    assert all(np.isfinite(volume).all() for volume in results)
    assert not any(volume[0].any() for volume in results)
    np.testing.assert_allclose(results[0][1], 0.1, rtol=1e-6)
    assert results[0].max() <= 1000


def test_newton_steps_matter(rng):
    magnitude = rician(rng, 60, 20, TIMES, (6, 6, 6))
    every = np.ones((6, 6, 6), bool)
    one, two, many, more = (nonlinear(magnitude, every, echo_times=TIMES, iterations=n)[0] for n in (1, 2, 20, 40))
    assert np.abs(one - many).max() > 10 * np.abs(two - many).max()
    np.testing.assert_array_equal(many, more)


@pytest.mark.parametrize("method", METHODS)
def test_contract(method, rng):
    magnitude = rician(rng, 25, 50, TIMES, (12, 11, 10))
    mask = np.zeros((12, 11, 10), bool)
    mask[1:5, 2:9, 3:8], mask[7:11, 2:9, 3:8] = True, True
    copies = magnitude.copy(), mask.copy()
    results = method(magnitude, mask, echo_times=TIMES)
    for volume in results:
        assert volume.dtype == np.float32
        assert volume.shape == mask.shape
        assert not volume[~mask].any()
        assert volume[mask].all()
    for before, after in zip(copies, (magnitude, mask), strict=True):
        np.testing.assert_array_equal(before, after)
    other = method(np.asfortranarray(magnitude), np.asfortranarray(mask), echo_times=TIMES)
    np.testing.assert_array_equal(other[0], results[0])
    empty = method(magnitude, mask & False, echo_times=TIMES)
    assert not any(volume.any() for volume in empty)
    with pytest.raises(ValueError, match="two echoes"):
        method(magnitude[..., :1], mask, echo_times=TIMES[:1])


@pytest.mark.parametrize("method", METHODS)
def test_simulated_head(method, shared):
    folder, name = shared / "data" / "head", "sub-01"
    truth = folder / "derivatives" / "truth" / name / "anat"
    magnitude = np.stack(
        [
            nb.load(folder / name / "anat" / f"{name}_echo-{e}_part-mag_MEGRE.nii.gz").get_fdata(dtype=np.float32)
            for e in range(1, 5)
        ],
        -1,
    )
    brain = nb.load(truth / f"{name}_desc-brain_mask.nii.gz").get_fdata() > 0
    reference = nb.load(truth / f"{name}_R2starmap.nii.gz").get_fdata()
    found = method(magnitude, brain, echo_times=(0.004, 0.012, 0.020, 0.028))[0]
    keep = ndimage.binary_erosion(brain, iterations=3) & (reference < 80)
    assert np.linalg.norm((found - reference)[keep]) / np.linalg.norm(reference[keep]) < 0.12
