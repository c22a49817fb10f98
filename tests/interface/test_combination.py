"""From files of single coils to combined echoes."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from qsmflow import registry
from qsmflow.algorithms import simulation
from qsmflow.algorithms.scaling import undo_chopping, wrap
from qsmflow.interfaces import images
from qsmflow.interfaces.combination import CombineCoils
from qsmflow.interfaces.readout import CorrectReadout

SHAPE, COILS, TIMES = (20, 18, 16), 5, (0.005, 0.011, 0.018)
C, S = math.cos(math.radians(30)), math.sin(math.radians(30))
AFFINE = np.array([[-4.0, 0, 0, 40], [0, 4 * C, -5 * S, -30], [0, 4 * S, 5 * C, -40], [0, 0, 0, 1]])
VOXEL = (4.0, 4.0, 5.0)


@pytest.fixture(scope="module")
def signal():
    """Complex images of an ellipsoid in five coils, (X, Y, Z, E, C), at least a little noise everywhere."""
    inside = simulation.sphere(SHAPE, voxel_size=VOXEL, radius=32) > 0.5
    field = 0.3 * simulation.smooth_variation(SHAPE, seed=1)
    image = simulation.signal(field, 20 * inside, 800.0 * inside, echo_times=TIMES, b0=3.0)
    array = simulation.coil_sensitivities(SHAPE, voxel_size=VOXEL, coils=COILS, seed=2, variation=2.0)
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(2, *SHAPE, len(TIMES), COILS))
    return (image[..., None] * array[..., None, :] + noise[0] + 1j * noise[1]).astype(np.complex64), field, inside


@pytest.fixture
def save(tmp_path):
    def save(name, data, affine=AFFINE, **scaling):
        image = nb.Nifti1Image(data, affine)
        image.header.set_slope_inter(scaling.get("slope"), scaling.get("intercept"))
        nb.save(image, tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def combine(tmp_path, monkeypatch):
    """Run the interface: phase, magnitude, matching and report."""

    def combine(algorithm="mcpc3ds-coils", coils=COILS, **inputs):
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        settings = {"algorithm": algorithm, "parameters": registry.find("coils", algorithm).merged(), "version": 1}
        outputs = CombineCoils(**settings, coils=coils, echo_times=list(TIMES), **inputs).run().outputs
        assert sorted(path.name for path in folder.iterdir()) == ["magnitude.nii", "matching.nii", "phase.nii"]
        return *(images.read(getattr(outputs, name)) for name in ("phase", "magnitude", "matching")), outputs.report

    return combine


def per_echo(save, part, data, **scaling):
    """A file per echo, coils along its fourth axis; the volumes as the interface takes them."""
    paths = [save(f"{part}{echo}.nii.gz", data[..., echo, :], **scaling) for echo in range(len(TIMES))]
    return [(path, coil) for path in paths for coil in range(COILS)]


def polar(save, data, **scaling):
    return {
        "magnitude": per_echo(save, "m", np.abs(data)), "phase": per_echo(save, "p", np.angle(data), **scaling),
        "phase_units": "rad",
    }  # fmt: skip


def test_files_become_what_the_algorithm_makes_of_the_arrays(signal, save, combine):
    data, field, inside = signal
    phase, magnitude, matching, report = combine(**polar(save, data))
    wanted = registry.find("coils", "mcpc3ds-coils").call(data, echo_times=TIMES, voxel_size=VOXEL)
    assert np.abs(wrap(phase - wanted[0])[inside]).max() < 1e-3
    np.testing.assert_allclose(magnitude[inside], wanted[1][inside], rtol=1e-4)
    np.testing.assert_allclose(matching, wanted[2], atol=0.05)
    assert matching[inside].mean() > 99
    assert report["scaling"] == "radians, as declared"
    assert report["notices"] == report["warnings"] == []
    truth = 2 * np.pi * 127.732 * field * (TIMES[2] - TIMES[1])
    found = wrap(phase[..., 2] - phase[..., 1] - truth)
    assert np.abs(found[inside]).max() < 0.1
    np.testing.assert_allclose(images.read_grid(Path.cwd() / "phase.nii").affine, AFFINE, atol=1e-5)


def test_every_form_gives_the_same(signal, save, combine):
    """Per echo and coil, per echo, all in one, compressed or not, real and imaginary parts."""
    data, _, inside = signal
    first = combine(**polar(save, data))
    single, whole = {"phase_units": "rad"}, {"phase_units": "rad"}
    for part, values in (("magnitude", np.abs(data)), ("phase", np.angle(data))):
        single[part] = [
            (save(f"{part}{e}{c}.nii.gz", values[..., e, c]), None) for e in range(len(TIMES)) for c in range(COILS)
        ]
        path = save(f"{part}.nii", values)
        whole[part] = [(path, e + len(TIMES) * c) for e in range(len(TIMES)) for c in range(COILS)]
    packed = {key: value for key, value in whole.items() if key == "phase_units"}
    for part, values in (("magnitude", np.abs(data)), ("phase", np.angle(data))):
        packed[part] = [(save(f"{part}5.nii.gz", values), index) for _, index in whole[part]]
    for other in (single, whole, packed):
        for one, two in zip(first[:3], combine(**other)[:3], strict=True):
            np.testing.assert_array_equal(one, two)
    cartesian = {"real": per_echo(save, "r", data.real), "imag": per_echo(save, "i", data.imag)}
    phase, magnitude, _, report = combine(**cartesian)
    assert np.abs(wrap(phase - first[0])[inside]).max() < 1e-3
    np.testing.assert_allclose(magnitude[inside], first[1][inside], rtol=1e-3)
    assert report["scaling"] == "radians, as declared"


def test_integers_sign_and_chopping(signal, save, combine):
    """Siemens integers of all coils share one scale; chopped slices are found in the coil that sees most."""
    data, _, inside = signal
    wanted = combine(**polar(save, data))[0]
    chopped = undo_chopping(np.angle(data).reshape(*SHAPE, -1), (2,)).reshape(data.shape)
    stored = np.round((chopped / math.pi + 1) * 2048).clip(0, 4095).astype(np.int16)
    inputs = {"magnitude": per_echo(save, "m", np.abs(data)), "phase": per_echo(save, "s", stored, slope=2, intercept=-4096)}
    phase, _, _, report = combine(**inputs, phase_sign="-")
    assert np.sqrt(np.mean(wrap(phase + wanted)[inside] ** 2)) < 0.01
    assert report["scaling"] == "Siemens, -4096 to 4096"
    assert report["chopped_axes"] == [2]
    assert "chopping" in report["notices"][0]


def test_invalid_voxels_of_one_coil(signal, save, combine):
    data = signal[0].copy()
    data[9, 8, 7, 1, 2] = np.nan
    phase, magnitude, _, report = combine(**polar(save, data))
    assert np.isfinite(phase).all()
    assert not magnitude[9, 8, 7].any()
    assert magnitude[9, 8, 8].all()
    assert report["invalid_voxels"] == 1


@pytest.mark.parametrize("algorithm", ["roemer", "composer"])
def test_reference_scan_on_another_grid(signal, save, combine, algorithm):
    """A reference of half the resolution is brought to the grid of the images by the two headers."""
    data, _, inside = signal
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])
    coarse[:3, 3] = 0.5
    image = data[..., 0, :] if algorithm == "composer" else data[..., 0, :].sum(axis=3, keepdims=True)
    image = image.reshape(10, 2, 9, 2, 8, 2, -1).mean(axis=(1, 3, 5))
    count = image.shape[3]
    parts = {}
    for part, values in (("magnitude", np.abs(image)), ("phase", np.angle(image))):
        path = save(f"reference_{part}.nii.gz", values.astype(np.float32), AFFINE @ coarse)
        parts[f"reference_{part}"] = [(path, coil) for coil in range(count)]
    _, _, matching, _ = combine(algorithm, **polar(save, data), **parts, reference_units="rad")
    core = simulation.sphere(SHAPE, voxel_size=VOXEL, radius=26) > 0.5
    assert matching[core & inside].mean() > 98


def test_what_cannot_be_combined(signal, save, combine):
    data = signal[0]
    with pytest.raises(ValueError, match="roemer needs reference"):
        combine("roemer", **polar(save, data))
    with pytest.raises(ValueError, match="4 coils cannot be combined"):
        combine(coils=4, **polar(save, data))
    with pytest.raises(ValueError, match="magnitude and phase"):
        combine(phase=per_echo(save, "p", np.angle(data)))


@pytest.mark.parametrize(("slope", "words"), [(0.05, "corrected (bipolar readout)"), (0.0, "not corrected")])
def test_readout_is_told_either_way(signal, save, tmp_path, monkeypatch, slope, words):
    _, field, inside = signal
    times = np.array([0.005, 0.010, 0.015, 0.020])
    phase = 800 * field[..., None] * times
    phase[..., 1::2] += slope * np.arange(-10, 10)[:, None, None, None]
    files = {
        "phase": save("phase.nii", wrap(phase).astype(np.float32)),
        "magnitude": save("magnitude.nii", np.ones(phase.shape, np.float32)), "mask": save("mask.nii", inside.astype(np.uint8)),
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    parameters = registry.find("readout", "bipolar").merged()
    node = CorrectReadout(algorithm="bipolar", parameters=parameters, version=1, echo_times=list(times), **files)
    outputs = node.run().outputs
    (notice,) = outputs.notices
    assert words in notice
    assert outputs.echo_polarity == ("bipolar" if slope else "")
    assert f"{outputs.asymmetry_size:.3f} rad" in notice
    clean = wrap(800 * field[..., None] * times)
    assert np.abs(wrap(images.read(outputs.phase) - clean)[inside]).max() < 1e-3
