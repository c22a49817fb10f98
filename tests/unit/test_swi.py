"""Susceptibility-weighted imaging: the textbook's table, the filters on phase that is known, and veins that come out dark."""

import numpy as np
import pytest
from scipy import ndimage

from qsmflow.algorithms import simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.swi.magnitude import minimum_projection, sensitivity, softplus
from qsmflow.algorithms.swi.phase import high_pass, homodyne, phase_mask
from qsmflow.algorithms.swi.weighting import clearswi, smwi, swi, tswi
from qsmflow.algorithms.units import GAMMA_BAR
from qsmflow.algorithms.unwrap.wrapping import wrap

SHAPE = (40, 44, 24)
FULL = np.ones(SHAPE, bool)
SLAB = {"voxel_size": (1.0, 1.0, 2.0), "b0_dir": (0.0, 0.0, 1.0)}
SCAN = {**SLAB, "b0": 3.0, "echo_times": (0.01, 0.02, 0.03)}
X, Y, Z = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij")


@pytest.mark.parametrize(
    ("phase", "powers"),
    [(0, (1, 1, 1, 1)), (0.25, (0.75, 0.5625, 0.4219, 0.3164)), (0.5, (0.5, 0.25, 0.125, 0.0625)), (1, (0, 0, 0, 0))],
)
def test_the_textbook_table(phase, powers):
    """Phase of veins in units of pi, and the powers 1 to 4 of the phase mask."""
    here = np.full((1, 1, 1), np.pi * phase, np.float32)
    for power, value in enumerate(powers, 1):
        for shape, sign in (("negative", 1), ("positive", -1), ("triangular", 1), ("triangular", -1)):
            got = phase_mask(sign * here, here >= 0, shape=shape, power=power)
            assert got[0, 0, 0] == pytest.approx(value, abs=5e-5), shape


@pytest.mark.parametrize("shape", ["negative", "positive", "triangular", "sigmoid"])
def test_phase_masks_are_weights(shape):
    """Between 0 and 1, falling with the phase that is darkened, and hardly touching phase 0."""
    phase = np.linspace(-np.pi, np.pi, 201, dtype=np.float32).reshape(-1, 1, 1)
    weight = phase_mask(phase, np.ones(phase.shape, bool), shape=shape, power=4.0).ravel()
    assert weight.min() >= 0
    assert weight.max() <= 1
    assert weight[100] == pytest.approx(0.5 * (1 + np.tanh(1)) if shape == "sigmoid" else 1, abs=1e-3)
    dark, bright = (weight[:101][::-1], weight[100:]) if shape == "positive" else (weight[100:], weight[:101][::-1])
    assert (np.diff(dark) <= 0).all()
    assert dark[-1] < (0.6 if shape == "sigmoid" else 1e-6)
    if shape in ("negative", "positive"):
        assert (bright == 1).all()


def test_sigmoid_follows_the_scale_of_the_phase():
    phase = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    weight = phase_mask(phase, FULL, shape="sigmoid", power=4.0)
    centre = 2.5 * np.median(phase[phase > 0])
    assert np.allclose(weight, (1 + np.tanh(1 - phase / centre)) / 2, atol=1e-6)
    assert np.allclose(phase_mask(7 * phase, FULL, shape="sigmoid", power=4.0), weight, atol=1e-6)


def test_homodyne_takes_away_constant_and_slow_linear_phase():
    ramp = 2 * np.pi * (3 * X / SHAPE[0] - 2 * Y / SHAPE[1]) + 0.7 * Z
    assert np.abs(homodyne(np.ones(SHAPE), wrap(ramp), FULL, **SLAB, wavelength=7.0)).max() < 1e-4
    fast = 2 * np.pi * 8 * X / SHAPE[0]  # 5 mm: out of the window, and nothing is left to compare with
    assert np.abs(homodyne(np.ones(SHAPE), wrap(fast), FULL, **SLAB, wavelength=7.0)).max() > 1


@pytest.mark.parametrize("name", ["homodyne", "gaussian"])
def test_filters_do_not_see_turns_nor_global_phase(name):
    phase = (wrap(scan()[1])).astype(np.float32)
    magnitude, mask = np.ones_like(phase), ball()
    turns = 2 * np.pi * np.random.default_rng(0).integers(-1, 2, phase.shape).astype(np.float32)
    plain, turned, shifted = (swi(magnitude, p, mask, **SCAN, filter=name)[2] for p in (phase, phase + turns, phase + 1.0))
    assert np.abs(plain - turned).max() < 2e-3
    assert np.abs(plain - shifted).max() < 2e-3
    assert plain[mask].min() < 0.9


def test_high_pass_follows_the_edge_of_the_mask():
    """A constant is taken away up to the last voxel, and what lies outside plays no part."""
    phase = np.where(ball(), 2.0, 50.0).astype(np.float32)
    assert np.abs(high_pass(phase, ball(), voxel_size=(1, 1, 2), sigma=4.0)).max() < 1e-5


def ball():
    return simulation.sphere(SHAPE, voxel_size=SLAB["voxel_size"], radius=18.0) > 0.5


def scan():
    """Magnitude, true phase and susceptibility of a head with a vein along the field that ends, and a shim not perfect."""
    chi = np.where((np.hypot(X - 20, Y - 22) < 1.6) & (Z <= 12), 0.3, 0).astype(np.float32)
    field = forward_field(chi, **SLAB) + 0.004 * X + 0.002 * Y
    phase = 2 * np.pi * GAMMA_BAR * SCAN["b0"] * field[..., None] * np.array(SCAN["echo_times"], np.float32)
    magnitude = 100 * np.exp(-25 * np.array(SCAN["echo_times"], np.float32)) * np.ones((*SHAPE, 1), np.float32)
    return magnitude, phase.astype(np.float32), chi


METHODS = {
    **{
        name: lambda m, p, c, mask, name=name, **k: swi(m, p, mask, **SCAN, filter=name, **k)
        for name in ("homodyne", "gaussian", "vsharp")
    },
    "clearswi": lambda m, p, c, mask, **k: clearswi(m, p, mask, **SCAN, **k),
    "tswi": lambda m, p, c, mask, **k: tswi(m, c, mask, **SCAN, **k),
    "smwi": lambda m, p, c, mask, **k: smwi(m, c, mask, **SLAB, **k),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_vein_is_dark(method):
    """Darker than its surroundings in the image, and over the slab in the projection; calcium masks leave it alone."""
    magnitude, phase, chi = scan()
    mask = ball()
    vein, around = mask & (chi > 0), mask & (chi == 0)
    image, projected, weight = METHODS[method](magnitude, wrap(phase), chi, mask)
    assert np.median(image[vein]) < 0.75 * np.median(image[around])
    assert (projected[mask] <= image[mask]).all()
    above = mask & (Z == 15) & (X == 20) & (Y == 22)  # 6 mm above its end
    assert projected[above] < 0.75 * image[above]
    assert weight[mask].max() <= 1
    other = {"shape": "positive"} if method in ("homodyne", "gaussian", "vsharp", "clearswi") else {"source": "diamagnetic"}
    assert np.median(METHODS[method](magnitude, wrap(phase), chi, mask, **other)[2][vein]) > 0.95


@pytest.mark.parametrize(
    ("b0", "echo", "used"), [(3.0, 0, 1), (1.5, 0, 2), (7.0, 0, 0), (3.0, 3, 2)], ids=["3T", "1.5T", "7T", "third"]
)
def test_the_echo_that_suits_the_field_is_used(b0, echo, used):
    magnitude = np.ones((*SHAPE, 3), np.float32) * np.array([1, 2, 3], np.float32)
    image, _, _ = swi(magnitude, 0 * magnitude, FULL, **{**SCAN, "b0": b0}, echo=echo)
    assert np.allclose(image, used + 1)


def test_an_echo_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no echo 4 among 3"):
        swi(np.ones((*SHAPE, 3)), np.zeros((*SHAPE, 3)), FULL, **SCAN, echo=4)


def test_clearswi_is_what_its_parts_make():
    """Echo times weigh the echoes, so that phase that grows with them gives the field, and uneven intensity is evened."""
    magnitude, phase, _ = scan()
    mask = ball()
    linear = {"shape": "negative", "power": 1.0}
    weight = clearswi(magnitude, wrap(phase), mask, **SCAN, **linear)[2]
    expected = phase_mask(high_pass(phase[..., 1], mask, voxel_size=(1, 1, 2), sigma=4.0), mask, **linear)
    assert np.abs(weight - expected)[mask].max() < 0.02
    shaded = magnitude * (1.5 + np.sin(X[..., None] / 25))
    kept, evened = (clearswi(shaded, wrap(phase), mask, **SCAN, **linear, evenness=e)[0] for e in (0.0, 7.0))
    spread = [np.subtract(*np.percentile(image[mask], (90, 10))) / np.median(image[mask]) for image in (kept, evened)]
    assert spread[1] < 0.5 * spread[0]


def test_softplus_values():
    """Reference values for an 80 % quantile of 1; large values neither overflow nor bend."""
    image = np.array([0, 0.5, 1, 2, 1e4] + [1] * 20, np.float32)
    inside = np.r_[np.zeros(5, bool), np.ones(20, bool)]
    assert np.allclose(softplus(image, inside)[:4], [0, 0.1416, 0.5, 1.4689], atol=5e-5)
    assert softplus(image, inside)[4] == pytest.approx(1e4 - 0.5, rel=1e-4)


def test_sensitivity_is_found_beside_dark_and_bright_structures():
    shading = 2 + np.sin(X / 30)
    image = np.where(np.hypot(X - 20, Y - 22) < 3, 0.3, 1) * np.where(np.hypot(X - 30, Y - 30) < 3, 2, 1) * shading
    field = sensitivity(image.astype(np.float32), FULL, voxel_size=(1, 1, 2), sigma=7.0)
    assert np.abs(field / shading - 1).max() < 0.12


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("thickness", "slices"), [(14.0, 7), (2.0, 1), (0.5, 1), (9.0, 5), (500.0, 251)])
def test_projection_is_a_running_minimum(axis, thickness, slices):
    """Along the axis nearest to the field, over a slab given in mm, with as many slices as before."""
    image = np.random.default_rng(axis).random(SHAPE, dtype=np.float32)
    size, b0_dir = [1.0, 1.0, 1.0], [0.1, -0.1, 0.1]
    size[axis], b0_dir[axis] = 2.0, -0.98
    projected = minimum_projection(image, FULL, voxel_size=size, b0_dir=b0_dir, thickness=thickness)
    assert np.array_equal(projected, ndimage.minimum_filter1d(image, slices, axis=axis, mode="nearest"))


def test_the_outside_does_not_darken_the_projection():
    image = np.where(ball(), 5.0, 0.0).astype(np.float32)
    projected = minimum_projection(image, ball(), **SLAB, thickness=14.0)
    assert np.array_equal(projected, image)


def test_susceptibility_masks():
    """Values of the papers: half way at 0.225 ppm, one sixteenth at half the threshold; signs and limits."""
    one, context = np.ones((1, 1, 1), bool), {**SLAB, "b0": 3.0, "echo_times": (0.02,)}
    for chi, source, value in [
        (0.225, "paramagnetic", 0.25), (-0.225, "diamagnetic", 0.25), (-0.1, "paramagnetic", 1), (0.6, "paramagnetic", 0),
    ]:  # fmt: skip
        here = np.full((1, 1, 1), chi, np.float32)
        assert tswi(one[..., None], here, one, **context, source=source)[2] == pytest.approx(value, abs=1e-6)
    assert smwi(np.full((1, 1, 1, 4), 3.0), np.full((1, 1, 1), 0.5), one, **SLAB)[0] == pytest.approx(6 * 0.0625)
    with pytest.raises(ValueError, match=r"0\.5 to 0\.45"):
        tswi(one[..., None], here, one, **context, low=0.5)
    with pytest.raises(ValueError, match="threshold"):
        smwi(one[..., None], here, one, **SLAB, threshold=0.0)


def test_homodyne_refuses_no_window():
    with pytest.raises(ValueError, match="wavelength"):
        homodyne(np.ones(SHAPE), np.zeros(SHAPE), FULL, **SLAB, wavelength=0.0)
