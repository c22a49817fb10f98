"""From files of an acquisition to magnitude and phase."""

from __future__ import annotations

import math
import subprocess
import sys

import nibabel as nb
import numpy as np
import pytest

from qsmflow.algorithms.scaling import undo_chopping, wrap
from qsmflow.bids.inputs import read_dataset
from qsmflow.config import Execution, Recipe
from qsmflow.interfaces import images
from qsmflow.interfaces.inputs import LoadAcquisition

SHAPE = (16, 15, 14)
C, S = math.cos(math.radians(30)), math.sin(math.radians(30))
AFFINE = np.array([[-1.0, 0, 0, 8], [0, 1.2 * C, -1.5 * S, -9], [0, 1.2 * S, 1.5 * C, -8], [0, 0, 0, 1]])
TIMES = (0.004, 0.010, 0.018)


@pytest.fixture
def signal():
    """Magnitude (8 to 1000) and phase (-pi to pi) of three echoes."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    frequency = 60 * np.exp(-3 * (x**2 + y**2 + z**2)) + 30 * x - 40 * z
    magnitude = 1000 * np.exp(-2 * (x**2 + y**2 + z**2))
    phase = np.stack([wrap(2 * math.pi * frequency * time + 0.5 * y) for time in TIMES], axis=-1)
    phase[0, 0, 0], phase[1, 0, 0] = -math.pi, math.pi * (1 - 1e-3)
    return np.stack([magnitude * math.exp(-20 * time) for time in TIMES], axis=-1), phase


@pytest.fixture
def save(tmp_path):
    """Save an array, one file per echo, and give the volumes as the interface takes them."""

    def save(name, data, dtype=np.float32, slope=None, intercept=None):
        volumes = []
        for echo in range(data.shape[-1]):
            image = nb.Nifti1Image(data[..., echo].astype(dtype), AFFINE)
            image.header.set_slope_inter(slope, intercept)
            path = tmp_path / f"{name}{echo}.nii.gz"
            nb.save(image, path)
            volumes.append((str(path), None))
        return volumes

    return save


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Run the interface; give magnitude, phase (or None) and the report."""

    def load(**inputs):
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        outputs = LoadAcquisition(**inputs).run().outputs
        phase = images.read(outputs.phase) if isinstance(outputs.phase, str) else None
        return images.read(outputs.magnitude), phase, outputs.report

    return load


def distance(one, two):
    return float(np.abs(wrap(np.asarray(one, dtype=np.float64) - two)).max())


def test_siemens_integers(signal, save, load):
    magnitude, phase = signal
    stored = np.round((phase / math.pi + 1) * 2048).clip(0, 4095)
    got_magnitude, got_phase, report = load(
        magnitude=save("m", magnitude), phase=save("p", stored, dtype=np.int16, slope=2, intercept=-4096)
    )
    assert got_magnitude.dtype == got_phase.dtype == np.float32
    np.testing.assert_allclose(got_magnitude, magnitude, rtol=1e-6)
    assert distance(got_phase, phase) < math.pi / 2048
    assert report == {
        "phase_range": [-4096.0, 4094.0],
        "scaling": "Siemens, -4096 to 4096",
        "chopped_axes": [],
        "invalid_voxels": 0,
        "has_magnitude": True,
        "notices": [],
        "warnings": [],
    }


def test_grid_is_kept(signal, save, load, tmp_path):
    magnitude, phase = signal
    load(magnitude=save("m", magnitude), phase=save("p", phase), phase_units="rad")
    for name in ("magnitude", "phase"):
        grid = images.read_grid(tmp_path / "run0" / f"{name}.nii")
        np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-6)
        np.testing.assert_allclose(grid.b0_dir, (0, S, C), atol=1e-6)


def test_every_form_gives_the_same(signal, save, load, tmp_path):
    """Separate files, 4D files, real and imaginary parts."""
    magnitude, phase = signal
    apart = load(magnitude=save("m", magnitude), phase=save("p", phase), phase_units="rad")
    for name, data in (("m4", magnitude), ("p4", phase)):
        nb.save(nb.Nifti1Image(data.astype(np.float32), AFFINE), tmp_path / f"{name}.nii.gz")
    together = load(
        magnitude=[(str(tmp_path / "m4.nii.gz"), echo) for echo in range(3)],
        phase=[(str(tmp_path / "p4.nii.gz"), echo) for echo in range(3)],
        phase_units="rad",
    )
    np.testing.assert_array_equal(together[0], apart[0])
    np.testing.assert_array_equal(together[1], apart[1])
    assert together[2] == apart[2]
    cartesian = load(real=save("r", magnitude * np.cos(phase)), imag=save("i", magnitude * np.sin(phase)))
    np.testing.assert_allclose(cartesian[0], magnitude, rtol=1e-5)
    assert distance(cartesian[1], phase) < 1e-5
    assert cartesian[2]["scaling"] == "radians, as declared"


def test_order_of_volumes_is_the_order_of_echoes(signal, save, load):
    magnitude, phase = signal
    volumes = {"magnitude": save("m", magnitude), "phase": save("p", phase)}
    backwards = load(**{part: files[::-1] for part, files in volumes.items()}, phase_units="rad")
    np.testing.assert_allclose(backwards[0][..., ::-1], magnitude, rtol=1e-6)


@pytest.mark.parametrize(("sign", "factor"), [("auto", 1), ("+", 1), ("-", -1)])
def test_sign(signal, save, load, sign, factor):
    magnitude, phase = signal
    got = load(magnitude=save("m", magnitude), phase=save("p", phase), phase_units="rad", phase_sign=sign)[1]
    assert distance(got, factor * phase) < 1e-6


def test_no_magnitude_gives_ones(signal, save, load):
    magnitude, phase, report = load(phase=save("p", signal[1]), phase_units="rad")
    np.testing.assert_array_equal(magnitude, np.ones(signal[0].shape))
    assert not report["has_magnitude"]
    assert report["notices"] == []  # reading the dataset has told it already
    assert distance(phase, signal[1]) < 1e-6


def test_no_phase_gives_magnitude_only(signal, save, load):
    magnitude, phase, report = load(magnitude=save("m", signal[0]))
    np.testing.assert_allclose(magnitude, signal[0], rtol=1e-6)
    assert phase is None
    assert report["scaling"] is None


@pytest.mark.parametrize("form", ["polar", "cartesian"])
def test_invalid_voxels_are_zero_in_all_echoes(signal, save, load, form):
    magnitude, phase = signal
    real, imag = magnitude * np.cos(phase), magnitude * np.sin(phase)
    if form == "polar":
        phase[3, 4, 5, 1], magnitude[6, 7, 8, 0] = np.nan, np.inf
        inputs = {"magnitude": save("m", magnitude), "phase": save("p", phase), "phase_units": "rad"}
    else:
        real[3, 4, 5, 1], imag[6, 7, 8, 0] = np.nan, np.inf
        inputs = {"real": save("r", real), "imag": save("i", imag)}
    got_magnitude, got_phase, report = load(**inputs)
    assert np.isfinite(got_magnitude).all()
    assert np.isfinite(got_phase).all()
    zero = np.argwhere((got_magnitude == 0).all(axis=-1)).tolist()
    assert zero == [[3, 4, 5], [6, 7, 8]]
    assert np.count_nonzero(got_magnitude == 0) == 6
    assert report["invalid_voxels"] == 2
    assert report["notices"] == ["2 voxels (0.06%) hold NaN or infinities and were set to 0"]


def test_chopping_is_undone_and_reported(signal, save, load):
    magnitude, phase = signal
    chopped = save("p", undo_chopping(phase, (2,)))
    _, got, report = load(magnitude=save("m", magnitude), phase=chopped, phase_units="rad")
    assert distance(got, phase) < 1e-5
    assert report["chopped_axes"] == [2]
    assert "along voxel axis k" in report["notices"][0]


def test_unknown_range_warns_with_a_remedy(signal, save, load):
    magnitude, phase = signal
    _, got, report = load(magnitude=save("m", magnitude), phase=save("p", phase * 0.00117))
    assert distance(got, phase) < 5e-3
    (warning,) = report["warnings"]
    assert "no known scanner" in warning["what"]
    assert "Units 'rad'" in warning["remedy"]


def test_coarse_phase_is_noticed(signal, save, load):
    step = 2 * math.pi / 64
    rounded = np.round(signal[1] / step) * step
    report = load(magnitude=save("m", signal[0]), phase=save("p", rounded), phase_units="rad")[2]
    assert report["notices"] == ["the phase was rounded to 64 levels per turn"]


def test_same_input_same_bytes(signal, save, load, tmp_path):
    inputs = {"magnitude": save("m", signal[0]), "phase": save("p", signal[1]), "phase_units": "rad"}
    load(**inputs)
    load(**inputs)
    for name in ("magnitude.nii", "phase.nii"):
        assert (tmp_path / "run0" / name).read_bytes() == (tmp_path / "run1" / name).read_bytes()


def test_hash_follows_the_content_of_the_files(signal, save):
    """Otherwise a changed input would be taken for one that is done."""
    node = LoadAcquisition(magnitude=save("m", signal[0]))
    before = node.inputs.get_hashval(hash_method="content")[1]
    assert LoadAcquisition(magnitude=save("m", signal[0])).inputs.get_hashval(hash_method="content")[1] == before
    assert LoadAcquisition(magnitude=save("m", 2 * signal[0])).inputs.get_hashval(hash_method="content")[1] != before


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "same number of echoes"),
        ({"magnitude": 3, "phase": 2}, "same number of echoes"),
        ({"real": 3}, "same number of echoes"),
    ],
)
def test_incomplete_inputs_are_refused(signal, save, load, parts, words):
    volumes = {part: save(part, signal[0])[:count] for part, count in parts.items()}
    with pytest.raises(ValueError, match=words):
        load(**volumes)


def test_other_shape_is_refused_by_name(signal, save, load, tmp_path):
    volumes = save("m", signal[0])
    nb.save(nb.Nifti1Image(np.zeros((1, 15, 14), dtype=np.float32), AFFINE), tmp_path / "m2.nii.gz")
    with pytest.raises(ValueError, match=r"m2\.nii\.gz: a volume of shape \(1, 15, 14\)"):
        load(magnitude=volumes)


def test_nipype_is_told_not_to_phone_home():
    code = "import os, qsmflow.interfaces.inputs; assert os.environ['NO_ET'] == '1'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("data", "scaling", "warned"), [("head", "Siemens, -4096 to 4096", False), ("invivo", "range of all echoes", True)]
)
def test_real_acquisitions(shared, load, data, scaling, warned):
    (acquisition,) = read_dataset(Execution(shared / "data" / data, shared, shared), Recipe()).acquisitions
    volumes = {part: [(v.path, v.index) for v in getattr(acquisition, part)] for part in ("magnitude", "phase")}
    magnitude, phase, report = load(**volumes, phase_units=acquisition.phase_units)
    assert magnitude.shape == phase.shape
    assert scaling in report["scaling"]
    assert bool(report["warnings"]) == warned
    assert report["chopped_axes"] == []
    assert abs(phase.min() + math.pi) < 1e-2
    assert abs(phase.max() - math.pi) < 1e-2


def test_real_phase_with_nan(shared, load):
    path = str(shared / "data" / "invivo" / "phase_with_nan.nii")
    magnitude, phase, report = load(phase=[(path, 0), (path, 1)])
    stored = nb.load(path).get_fdata()
    invalid = ~np.isfinite(stored).all(axis=-1)
    assert report["invalid_voxels"] == invalid.sum() > 0
    np.testing.assert_array_equal(magnitude[..., 0] == 0, invalid)
    assert np.isfinite(phase).all()
