"""Combination of simulated coils with known offsets."""

from __future__ import annotations

import numpy as np
import pytest

from qsmflow.algorithms import combination, simulation
from qsmflow.algorithms.unwrap.romeo import residues
from qsmflow.algorithms.unwrap.wrapping import wrap

SHAPE, VOXEL, B0 = (36, 32, 28), (4.0, 4.0, 4.0), 3.0
TIMES = (0.004, 0.009, 0.016)

#: Methods that match the coils everywhere, for any echo times.
METHODS = ("mcpc3ds_coils", "mcpc3d", "vrc", "composer", "roemer")


@pytest.fixture(scope="module")
def head():
    """Field (ppm), where there is signal, and the complex image of one perfect coil, three echoes."""
    inside = simulation.sphere(SHAPE, voxel_size=VOXEL, radius=50) > 0.5
    ball = {"radius": 14.0, "centre": (20, 16, 14), "chi": 1.5}
    field = simulation.sphere_field(SHAPE, voxel_size=VOXEL, b0_dir=(0, 0, 1), **ball)
    field += 0.5 * simulation.smooth_variation(SHAPE, seed=9)
    density = (1000 * inside * (1 + 0.3 * simulation.smooth_variation(SHAPE, seed=8))).astype(np.float32)
    return field, inside, simulation.signal(field, 25 * inside, density, echo_times=TIMES, b0=B0)


@pytest.fixture(scope="module")
def sensitivities():
    return simulation.coil_sensitivities(SHAPE, voxel_size=VOXEL, coils=8, seed=3, variation=4.0)


@pytest.fixture(scope="module")
def signal(head, sensitivities):
    """Eight coils with noise (SNR about 60 in each)."""
    rng = np.random.default_rng(7)
    clean = head[2][..., None] * sensitivities[..., None, :]
    return (clean + rng.normal(0, 5, clean.shape) + 1j * rng.normal(0, 5, clean.shape)).astype(np.complex64)


@pytest.fixture(scope="module")
def references(head, sensitivities):
    """A coil that sees everything alike, and the array at echo time 0."""
    density = np.abs(head[2][..., 0]).astype(np.complex64)
    return {"roemer": head[2][..., :1], "composer": density[..., None] * sensitivities}


def combined(name, signal, references, **settings):
    method = getattr(combination, name)
    arrays = [references[name]] if name in references else []
    times = {"echo_times": settings.pop("times", TIMES)} if name in ("mcpc3ds_coils", "mcpc3d", "aspire") else {}
    return method(signal, *arrays, voxel_size=VOXEL, **times, **settings)


def common_offset(phase, field, inside, echo=0):
    """What the combined phase has beside that of the field, rad."""
    truth = np.angle(simulation.signal(field, 0 * field, 1 + 0 * field, echo_times=TIMES[echo : echo + 1], b0=B0))[..., 0]
    return wrap(phase[..., echo] - truth) * inside


@pytest.mark.parametrize("name", METHODS)
def test_coils_match(head, signal, references, name):
    """All coils agree, and what is left beside the field is the same in all echoes and has no step."""
    field, inside, _ = head
    phase, magnitude, matching = combined(name, signal, references)
    assert phase.dtype == magnitude.dtype == matching.dtype == np.float32
    # The noise alone costs 0.3 %; a coil that is off by 0.1 rad, 0.5 %.
    assert matching[inside].mean() > 99
    first, last = (common_offset(phase, field, inside, echo) for echo in (0, 2))
    assert np.abs(wrap(first - last)[inside]).std() < 0.03
    steps = [wrap(np.diff(first, axis=axis)) for axis in range(3)]
    pairs = [np.logical_and(*(np.take(inside, range(a, a + inside.shape[x] - 1), x) for a in (0, 1))) for x in range(3)]
    assert max(np.percentile(np.abs(step[pair]), 99) for step, pair in zip(steps, pairs, strict=True)) < 0.2
    assert residues(phase[..., 0], inside).sum() == 0


def test_mcpc3ds_removes_the_offset(head, signal, references):
    """MCPC-3D-S leaves the field alone, except for whole turns of the phase difference times m."""
    field, inside, _ = head
    offset = common_offset(combined("mcpc3ds_coils", signal, references)[0], field, inside)
    assert np.abs(wrap(offset - np.angle(np.exp(1j * offset[inside]).mean()))[inside]).mean() < 0.05


@pytest.mark.parametrize("name", ["mcpc3ds_coils", "mcpc3d"])
@pytest.mark.parametrize("times", [(0.004, 0.009, 0.016), (0.005, 0.010, 0.015)])
def test_unsmoothed_offsets_are_exact(head, sensitivities, name, times):
    """Without noise and smoothing every coil gives the phase of the field, up to one constant."""
    field, inside, _ = head
    image = simulation.signal(field, 0 * field, 1000.0 * inside, echo_times=times, b0=B0)
    phase, _, matching = combined(name, image[..., None] * sensitivities[..., None, :], {}, sigma=0.0, times=times)
    seen = simulation.sphere(SHAPE, voxel_size=VOXEL, radius=44) > 0.5
    assert matching[seen].min() > 99.999
    left = wrap(phase[..., 1] - np.angle(image[..., 1]))[seen]
    centre = np.angle(np.exp(1j * left).mean())
    assert np.abs(wrap(left - centre)).max() < 1e-3


@pytest.mark.parametrize("name", [*METHODS, "mcpcc"])
def test_a_constant_in_any_coil_changes_nothing(head, signal, references, name):
    constants = np.exp(1j * np.array([0.0, 2.5, 0, -1, 0, 0, 3, 0.3])).astype(np.complex64)
    before = combined(name, signal, references)
    after = combined(name, signal * constants, {**references, "composer": references["composer"] * constants})
    inside = head[1]
    difference = wrap(after[0] - before[0])[inside]
    # Where the phase is compared in a place, a constant may be left that all coils share.
    assert np.abs(wrap(difference - np.angle(np.exp(1j * difference).mean()))).max() < 2e-3
    np.testing.assert_allclose(after[1][inside], before[1][inside], rtol=1e-3)
    np.testing.assert_allclose(after[2][inside], before[2][inside], atol=0.05)


def test_roemer_is_exact_with_the_true_image(head, sensitivities):
    _, inside, image = head
    reference = image[..., :1]
    phase, magnitude, _ = combination.roemer(
        image[..., None] * sensitivities[..., None, :], reference, voxel_size=VOXEL, sigma=0.0
    )
    np.testing.assert_allclose(magnitude[inside], np.abs(image)[inside], rtol=1e-4)
    assert np.abs(wrap(phase - np.angle(image))[inside]).max() < 1e-4


def test_roemer_with_a_smooth_sensitivity_is_near_the_true_image(head, signal, references):
    image = head[2]
    _, magnitude, _ = combined("roemer", signal, references)
    core = simulation.sphere(SHAPE, voxel_size=VOXEL, radius=40) > 0.5
    assert np.abs(magnitude / np.abs(image).clip(1) - 1)[core].mean() < 0.03


def test_mcpcc_fails_away_from_its_place(head, signal, references):
    """Offsets that vary in space need more than one number per coil; constant ones do not."""
    _, inside, image = head
    constant = np.exp(1j * np.arange(8.0)).astype(np.complex64)
    assert combined("mcpcc", image[..., None] * constant, {})[2][inside].min() > 99.99
    matching = combined("mcpcc", signal, references)[2]
    place = [n // 2 for n in SHAPE]
    near = simulation.sphere(SHAPE, voxel_size=VOXEL, radius=12, centre=place) > 0.5
    rim = inside & (simulation.sphere(SHAPE, voxel_size=VOXEL, radius=44) < 0.5)
    assert matching[near].mean() > 97
    assert matching[rim].mean() < matching[near].mean() - 5
    assert matching[rim].mean() < combined("vrc", signal, references)[2][rim].mean() - 5


@pytest.mark.parametrize("shift", [0.0, 0.78, 1.2])
def test_mcpc3d_gives_all_coils_the_same_turns(head, sensitivities, shift):
    """Also where the mean phase difference of the echoes is half a turn (0.78 ppm): a turn more in one coil would be seen."""
    field, inside, _ = head
    image = simulation.signal(field + shift, 0 * field, 1000.0 * inside, echo_times=TIMES[:2], b0=B0)
    noise = np.random.default_rng(1).normal(0, 10, (2, *image.shape, 8))
    noisy = image[..., None] * sensitivities[..., None, :] + noise[0] + 1j * noise[1]
    _, _, matching = combination.mcpc3d(noisy.astype(np.complex64), echo_times=TIMES[:2], voxel_size=VOXEL)
    assert matching[inside].mean() > 98.5


def test_aspire_takes_the_echoes_that_fit(head, sensitivities):
    """The same result as with MCPC-3D-S where TE2 = 2 TE1, and another pair of echoes where that is not so."""
    field, inside, _ = head

    def matching(times, name):
        image = simulation.signal(field, 0 * field, 1000.0 * inside, echo_times=times, b0=B0)
        return combined(name, image[..., None] * sensitivities[..., None, :], {}, times=times)

    seen = simulation.sphere(SHAPE, voxel_size=VOXEL, radius=44) > 0.5
    one, other = (matching((0.005, 0.010, 0.015), name) for name in ("aspire", "mcpc3ds_coils"))
    assert np.abs(wrap(one[0] - other[0])[seen]).max() < 0.02
    assert combination.aspire_echoes((0.003, 0.008, 0.016)) == (1, 2, 1)
    assert matching((0.003, 0.008, 0.016), "aspire")[2][inside].mean() > 99
    with pytest.raises(ValueError, match=r"not 4, 9, 16 ms"):
        combination.aspire_echoes(TIMES)


def test_slope_over_echo_times_is_that_of_the_field(head, signal, references):
    """Whatever offset is left, phase differences between echoes are those of the field."""
    _, inside, image = head
    wanted = np.angle(image[..., 2] * image[..., 1].conj())
    for name in (*METHODS, "mcpcc"):
        phase = combined(name, signal, references)[0]
        found = wrap(phase[..., 2] - phase[..., 1])
        tolerance = 0.1 if name == "mcpcc" else 0.03  # where coils cancel, noise rules
        assert np.sqrt(np.mean(wrap(found - wanted)[inside] ** 2)) < tolerance, name


def test_one_coil_at_a_time(signal, references):
    """No method asks for more of a signal than its shape and single volumes."""

    class Stored:
        def __init__(self, images):
            self.images, self.shape, self.asked = images, images.shape, []

        def __getitem__(self, key):
            assert key[0] is Ellipsis
            assert all(isinstance(index, int) for index in key[1:])
            return self.images[key]

    for name in (*METHODS, "mcpcc"):
        stored = {key: Stored(value) for key, value in references.items()}
        np.testing.assert_array_equal(combined(name, Stored(signal), stored)[0], combined(name, signal, references)[0])


@pytest.mark.parametrize(
    ("name", "shape", "reference", "words"),
    [
        ("mcpc3ds_coils", (4, 4, 4, 1, 2), None, "two echoes"),
        ("mcpc3d", (4, 4, 4, 1, 2), None, "two echoes"),
        ("vrc", (4, 4, 4, 1, 2), None, "no coil has any signal"),
        ("roemer", (4, 4, 4, 1, 2), (4, 4, 4, 2), "one coil"),
        ("composer", (4, 4, 4, 1, 2), (4, 4, 4, 3), "3 coils, the acquisition 2"),
    ],
)
def test_what_cannot_be_combined(name, shape, reference, words):
    references = {name: np.zeros(reference, np.complex64)} if reference else {}
    with pytest.raises(ValueError, match=words):
        combined(name, np.zeros(shape, np.complex64), references)
