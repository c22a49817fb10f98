"""DECOMPOSE-QSM: voxels of three pools whose parameters are known."""

import numba
import numpy as np
import pytest

from qsmflow.algorithms.separation import decompose as module
from qsmflow.algorithms.separation.decompose import decompose

TIMES = np.linspace(0.005, 0.030, 6)

# Written out here, at 3 T: radians per second and ppm of 2/3 gamma B0, and of 2 pi gamma B0 / (9 sqrt 3).
TURNING = 2 / 3 * 267.5222 * 3.0
DEPHASING = 2 * np.pi * 267.5222 * 3.0 / (9 * np.sqrt(3))


def signals(para, dia, r0, fractions, times=TIMES):
    """Complex signal (V, E) of pools of ``para`` >= 0, ``dia`` <= 0 and 0 ppm."""
    para, dia, r0 = (np.asarray(x, float)[..., None] for x in (para, dia, r0))
    c_para, c_dia, c_neutral = (np.asarray(c, float)[..., None] for c in np.moveaxis(np.asarray(fractions, float), -1, 0))
    common = np.exp(-r0 * times)
    return common * (
        c_para * np.exp((-DEPHASING * para + 1j * TURNING * para) * times)
        + c_dia * np.exp((DEPHASING * dia + 1j * TURNING * dia) * times)
        + c_neutral
    )


def separate(signal, times=TIMES, **parameters):
    """PCS and DCS (V,) of complex signals (V, E)."""
    chi = np.unwrap(np.angle(signal), axis=1) / (TURNING * times)
    volume = (len(signal), 1, 1, len(times))
    options = {"b0": 3.0, "echo_times": times, **parameters}
    para, dia, _ = decompose(chi.reshape(volume), np.abs(signal).reshape(volume), np.ones(volume[:3], bool), **options)
    return para.ravel(), dia.ravel()


def draw(voxels, seed=0):
    """Random pools, none of them so small that the others hide it."""
    rng = np.random.default_rng(seed)
    para, dia = rng.uniform(0.03, 0.3, voxels), -rng.uniform(0.03, 0.3, voxels)
    fractions = rng.uniform(0.15, 0.5, (voxels, 3))
    return para, dia, rng.uniform(5, 40, voxels), fractions / fractions.sum(axis=1, keepdims=True)


def noisy(signal, snr, seed=0):
    rng = np.random.default_rng(seed)
    return signal + (rng.normal(size=signal.shape) + 1j * rng.normal(size=signal.shape)) / snr


@pytest.mark.parametrize("starts", [2, 3])
def test_recovers_all_six_parameters(starts):
    para, dia, r0, fractions = draw(125)
    signal = signals(para, dia, r0, fractions)
    chi = np.angle(signal) / (TURNING * TIMES)
    rows = module._signal(chi, 7 * np.abs(signal), TIMES, 3.0)
    found_chi, found_r0, found_fractions = module._pools(rows, TIMES, 3.0, 0.5, 100.0, starts, 40)
    np.testing.assert_allclose(found_chi, np.stack([para, -dia], axis=1), atol=1e-3)
    np.testing.assert_allclose(found_r0, r0, rtol=1e-3)
    np.testing.assert_allclose(found_fractions, fractions, atol=1e-3)


def test_composites_are_those_of_the_definition():
    """The phase of each pool with neutral signal, unwrapped in fine steps from time 0, over that of 1 ppm."""
    para, dia, r0, fractions = draw(100, seed=1)
    para[:50] *= 2  # up to 0.6 ppm: more than one turn
    fractions[25:50] = 0.9, 0.06, 0.04  # and the signal of the paramagnetic pool outlasts the turn
    fine = np.arange(6001) * 5e-6
    at = np.round(TIMES / 5e-6).astype(int)
    expected = []
    for pools in ((para, 0 * dia), (0 * para, dia)):
        phase = np.unwrap(np.angle(signals(*pools, 0 * r0, fractions, fine)), axis=1)
        expected.append(phase[:, at].sum(axis=1) / (TURNING * TIMES.sum()))
    assert (np.abs(expected[0]) * TURNING * TIMES.sum() > np.pi * len(TIMES)).any()
    found = separate(signals(para, dia, r0, fractions), max_chi=0.7, starts=4)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("chi", [0.02, 0.1, 0.4])
def test_one_pool_gives_its_susceptibility(chi):
    """At 0.4 ppm the phase passes pi at the third echo."""
    para, dia = separate(signals([chi, 0], [0, -chi], [20, 20], [[1, 0, 0], [0, 1, 0]]))
    np.testing.assert_allclose(para, [chi, 0], atol=1e-5)
    np.testing.assert_allclose(dia, [0, -chi], atol=1e-5)


def test_exponential_decay_at_one_frequency_is_not_separated():
    """Without a change over the echoes, the sign decides, however fast the decay; R2' of two balanced sources goes unseen."""
    chi = np.array([0.05, -0.03, 0.0])[:, None]
    para, dia = separate(np.exp((-45 + 1j * TURNING * chi) * TIMES))
    np.testing.assert_allclose(para, [0.05, 0, 0], atol=1e-5)
    np.testing.assert_allclose(dia, [0, -0.03, 0], atol=1e-5)


def test_absent_sources_give_zero():
    para, dia, r0, fractions = draw(50, seed=2)
    only_para, none_dia = separate(signals(para, 0 * dia, r0, fractions))
    none_para, only_dia = separate(signals(0 * para, dia, r0, fractions))
    assert np.abs(none_dia).max() < 1e-5
    assert none_para.max() < 1e-5
    assert only_para.min() > 2e-3
    assert only_dia.max() < -2e-3


def test_mirrored_signals_swap_the_components():
    """The complex conjugate is the signal of sources of the opposite sign."""
    signal = noisy(signals(*draw(60)), 200)
    para, dia = separate(signal)
    mirrored_para, mirrored_dia = separate(signal.conj())
    np.testing.assert_allclose(mirrored_para, -dia, atol=1e-4)
    np.testing.assert_allclose(mirrored_dia, -para, atol=1e-4)


def test_scale_of_the_signal_does_not_matter():
    signal = noisy(signals(*draw(60)), 100)
    for factor in (1e-6, 4096):
        np.testing.assert_allclose(separate(factor * signal), separate(signal), atol=1e-6)


def test_field_strength_enters_as_phase_and_decay_do():
    """The same pools at 7 T with echoes 3/7 as long and R0 7/3 as high give the same."""
    para, dia, r0, fractions = draw(20)
    signal = signals(para, dia, r0, fractions)
    chi = (np.angle(signal) / (TURNING * TIMES)).reshape(20, 1, 1, 6)
    mask = np.ones((20, 1, 1), bool)
    para, dia, _ = decompose(chi, np.abs(signal).reshape(chi.shape), mask, b0=7.0, echo_times=TIMES * 3 / 7, max_r0=200.0)
    np.testing.assert_allclose(np.ravel((para, dia)), np.ravel(separate(signal)), atol=1e-5)


def test_composites_depend_on_the_echo_times():
    """A pool that dephases fades: PCS falls with longer echo times, towards C+ chi+ with shorter ones."""
    pools = ([0.15], [-0.1], [15], [[0.3, 0.3, 0.4]])
    short, long = (separate(signals(*pools, times), times) for times in (TIMES / 20, TIMES))
    np.testing.assert_allclose(short, [[0.3 * 0.15], [-0.3 * 0.1]], rtol=0.06)
    assert long[0] < 0.6 * short[0]
    assert long[1] > 0.8 * short[1]


def test_strong_source_in_mixed_voxel_fades():
    """A fifth of the water at 0.3 ppm has dephased before it can turn the phase of the voxel: PCS is less than at 0.1 ppm."""
    para, _ = separate(signals([0.1, 0.3], [0, 0], [20, 20], [[0.2, 0, 0.8]] * 2))
    assert 0.1 * 0.2 > para[0] > 1.5 * para[1] > 0


@pytest.mark.parametrize(
    ("sources", "fractions"),
    [([(0.03, -0.03), (0.06, -0.03), (0.03, -0.06)], [(0.35, 0.35, 0.3)] * 3),
     ([(0.08, -0.08)] * 3, [(0.2, 0.2, 0.6), (0.4, 0.2, 0.4), (0.2, 0.4, 0.4)])],
)  # fmt: skip
def test_follows_both_sources_in_noise(sources, fractions):
    """Medians over 1500 voxels at an SNR of 100: stronger or more of a source moves its component, and hardly the other."""
    found = []
    for (para, dia), pools in zip(sources, fractions, strict=True):
        voxels = np.repeat(signals([para], [dia], [18], [pools]), 1500, axis=0)
        found.append(np.median(separate(noisy(voxels, 100)), axis=1))
    base, iron, myelin = found
    assert iron[0] > base[0] + 0.003
    assert myelin[1] < base[1] - 0.003
    assert abs(iron[1] - base[1]) < 0.4 * (iron[0] - base[0])
    assert abs(myelin[0] - base[0]) < 0.4 * (base[1] - myelin[1])


def test_noise_alone_gives_little():
    """A neutral voxel at an SNR of 50: a few ppb in both, as noise of either sign is taken for a source."""
    para, dia = separate(noisy(np.repeat(signals([0], [0], [15], [[0, 0, 1]]), 1000, axis=0), 50))
    assert 0.001 < para.mean() < 0.008
    assert -0.001 > dia.mean() > -0.008


def test_noise_costs_no_more_than_the_truth():
    """The fit is at least as close to noisy data as the parameters that made them, but for one voxel in a hundred."""
    signal = signals(*draw(300, seed=3))
    data = noisy(signal, 50)
    rows = np.concatenate([data.real, data.imag], axis=1)
    upper = np.array([DEPHASING * 0.5, DEPHASING * 0.5, 100.0])
    starts = np.array([(DEPHASING * p, DEPHASING * d, 15.0) for p in (0.03, 0.2) for d in (0.03, 0.2)])
    rates, weights = module._fit(rows, TIMES, starts, upper, 40)
    assert (rates >= 0).all()
    assert (rates <= upper).all()
    assert (weights >= 0).all()
    fitted = signals(rates[:, 0] / DEPHASING, -rates[:, 1] / DEPHASING, rates[:, 2], weights)
    excess = (np.abs(data - fitted) ** 2).sum(axis=1) / (np.abs(data - signal) ** 2).sum(axis=1)
    assert np.mean(excess > 1) < 0.01
    assert np.mean(excess) == pytest.approx(0.5, abs=0.1)  # 12 numbers, six parameters


def test_every_voxel_stands_alone_on_any_number_of_threads():
    signal = noisy(signals(*draw(80)), 50)
    order = np.random.default_rng(0).permutation(len(signal))
    para, dia = separate(signal)
    shuffled = separate(signal[order])
    assert np.array_equal(shuffled, [para[order], dia[order]])
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        assert np.array_equal(separate(signal), [para, dia])
    finally:
        numba.set_num_threads(before)


def test_hopeless_voxels_are_zero_and_nothing_is_changed():
    signal = signals(*draw(6)).astype(np.complex64)
    chi = (np.angle(signal) / (TURNING * TIMES)).astype(np.float32).reshape(6, 1, 1, 6)
    magnitude = np.abs(signal).reshape(chi.shape)
    magnitude[0], magnitude[1, ..., 2], chi[2, ..., 1] = 0, np.inf, np.nan
    mask = np.array([1, 1, 1, 1, 0, 1], bool).reshape(6, 1, 1)
    before = chi.copy(), magnitude.copy()
    para, dia, _ = decompose(chi, magnitude, mask, b0=3.0, echo_times=TIMES)
    assert para.dtype == dia.dtype == np.float32
    assert para.shape == dia.shape == mask.shape
    for component in (para, -dia):
        assert np.array_equal(component.ravel() > 0, [False, False, False, True, False, True])
    np.testing.assert_array_equal(chi, before[0])
    np.testing.assert_array_equal(magnitude, before[1])


@pytest.mark.parametrize(
    "parameters", [{"max_chi": 0.005}, {"max_chi": 1000.0}, {"max_r0": 1.0}, {"starts": 1}, {"iterations": 0}]
)
def test_stays_finite_and_signed_with_any_parameters(parameters):
    para, dia = separate(noisy(signals(*draw(30)), 20), **parameters)
    assert np.isfinite(para).all()
    assert np.isfinite(dia).all()
    assert para.min() >= 0 >= dia.max()
    limit = parameters.get("max_chi", 0.5)
    assert max(para.max(), -dia.min()) <= limit * (1 + 1e-6)


def test_an_empty_mask_gives_zeros():
    volume = np.ones((2, 2, 2, 4))
    para, dia, _ = decompose(volume, volume, np.zeros((2, 2, 2), bool), b0=3.0, echo_times=TIMES[:4])
    assert not para.any()
    assert not dia.any()


@pytest.mark.parametrize(
    ("echoes", "times", "parameters", "message"),
    [
        (3, TIMES[:3], {}, "at least four echoes, not 3; choose"),
        (5, TIMES, {}, "do not fit together"),
        (6, TIMES, {"max_chi": 0.0}, "max_chi must be above 0, not 0"),
        (6, TIMES, {"max_r0": -1.0}, "max_r0 must be above 0, not -1"),
        (6, TIMES, {"starts": 0}, "starts must be above 0, not 0"),
    ],
)
def test_bad_input(echoes, times, parameters, message):
    volume = np.ones((2, 2, 2, echoes))
    with pytest.raises(ValueError, match=message):
        decompose(volume, volume, np.ones((2, 2, 2), bool), b0=3.0, echo_times=times, **parameters)
