"""Every hard case of ``bids_examples/hard_cases``: what is read, what is refused, what is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from qsmflow.bids.inputs import read_dataset
from qsmflow.config import Execution, Recipe

CASES = Path(__file__).resolve().parents[2] / "bids_examples" / "hard_cases"
RUNS = [
    pytest.param(case, run, id=f"{case}-{number}")
    for case, runs in json.loads((CASES / "cases.json").read_text()).items()
    for number, run in enumerate(runs)
]


def read(root: Path, options=None):
    """The dataset as read with options of the recipe or of the execution."""
    options = dict(options or {})
    of_recipe = ("outputs", "b0", "coils")
    recipe = Recipe(**{key: tuple(v) if key == "outputs" else v for key, v in options.items() if key in of_recipe})
    execution = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items() if key not in of_recipe}
    return read_dataset(Execution(root, root / "out", root / "work", **execution), recipe)


@pytest.mark.parametrize(("case", "run"), RUNS)
def test_case(case, run):
    dataset = read(CASES / case, run["options"])
    assert [a.name for a in dataset.acquisitions] == run["acquisitions"]
    told = [str(problem) for problem in dataset.problems]
    assert len(told) == len(run["problems"]), told
    for path, *words in run["problems"]:
        assert any(path in problem.path and all(w in str(problem) for w in words) for problem in dataset.problems), told
    assert all(problem.what and problem.remedy for problem in dataset.problems)
    for acquisition in dataset.acquisitions:
        expected = [words for name, words in run["notices"] if name == acquisition.name]
        told = [notice for notice in acquisition.notices if notice != "no T1w image of this subject"]
        assert len(told) == len(expected), told
        assert all(any(words in notice for notice in told) for words in expected), told


def test_stored_cases_are_what_the_script_makes(tmp_path):
    subprocess.run([sys.executable, CASES.parent / "make_hard_cases.py", tmp_path / "new"], check=True)
    made = {path.relative_to(tmp_path / "new"): path for path in (tmp_path / "new").rglob("*") if path.is_file()}
    stored = {path.relative_to(CASES): path for path in CASES.rglob("*") if path.is_file()}
    assert made.keys() == stored.keys()
    assert sum(path.stat().st_size for path in stored.values()) < 1_000_000
    for key, path in made.items():
        if path.suffix != ".gz":  # compressed bytes depend on the version of zlib
            assert path.read_bytes() == stored[key].read_bytes(), key


def one(case: str, **options):
    (acquisition,) = read(CASES / case, options).acquisitions
    return acquisition


def files(volumes):
    return [Path(volume.path).name for volume in volumes]


def test_sorting_keeps_magnitude_and_phase_together():
    acquisition = one("te-unsorted")
    assert acquisition.echo_times == (0.005, 0.010, 0.015)
    assert files(acquisition.magnitude) == [f"sub-01_echo-{n}_part-mag_MEGRE.nii" for n in (2, 3, 1)]
    assert files(acquisition.phase) == [f"sub-01_echo-{n}_part-phase_MEGRE.nii" for n in (2, 3, 1)]
    assert acquisition.metadata["EchoTime"] == 0.005


def test_4d_files_are_echoes_by_index():
    acquisition = one("form-4d")
    assert acquisition.echo_times == (0.005, 0.010, 0.015)
    assert [volume.index for volume in acquisition.phase] == [0, 1, 2]
    assert files(acquisition.magnitude) == ["sub-01_part-mag_MEGRE.nii"] * 3
    assert acquisition.phase_units == "rad"
    assert len(acquisition.sources) == 2


def test_coils_come_after_echoes():
    """All coils of the first echo, then all of the second, however they are stored."""
    assert [volume.index for volume in one("coils-5d").phase] == [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]
    per_echo = one("coils-5d-per-echo")
    assert (per_echo.coils, per_echo.echo_times) == (8, (0.005, 0.010))
    assert [volume.index for volume in per_echo.phase] == [*range(8), *range(8)]
    named = one("coils-named")
    names = [f"sub-01_coil-{coil}_echo-{echo}_part-phase_MEGRE.nii" for echo in (1, 2) for coil in ("01", "02", "03")]
    assert files(named.phase) == names
    assert named.entities == {"sub": "01"}


def test_coil_reference_belongs_to_the_sources():
    acquisition = one("coils-reference", coils="roemer", bids_filters={"megre": {"acquisition": None}})
    assert acquisition.reference.coils == 1
    assert files(acquisition.reference.phase) == ["sub-01_acq-coilref_echo-1_part-phase_MEGRE.nii"]
    assert [Path(path).name for path in acquisition.sources][-1] == "sub-01_acq-coilref_echo-1_part-phase_MEGRE.nii"
    assert one("coils-reference", bids_filters={"megre": {"acquisition": None}}).reference is None


def test_inheritance_reaches_from_root_to_file():
    acquisition = one("form-inheritance")
    assert acquisition.echo_times == (0.005, 0.010, 0.015)
    assert acquisition.b0 == 7.0
    assert acquisition.phase_units == "rad"
    assert acquisition.metadata["Manufacturer"] == "Siemens"


def test_real_and_imaginary_parts():
    acquisition = one("form-real-imag")
    assert len(acquisition.real) == len(acquisition.imag) == 3
    assert acquisition.magnitude == acquisition.phase == ()
    assert acquisition.phase_units == "rad"


def test_phase_is_preferred_to_real_and_imaginary():
    acquisition = one("form-all-parts")
    assert len(acquisition.magnitude) == len(acquisition.phase) == 3
    assert acquisition.real == acquisition.imag == ()


def test_unusable_phase_is_left_out_where_none_is_needed():
    acquisition = one("filtered-phase", outputs=["r2star"])
    assert len(acquisition.magnitude) == 3
    assert acquisition.phase == ()


def test_field_strength():
    assert one("form-4d").b0 == 3.0
    assert one("field-missing", b0=2.9).b0 == 2.9
    assert one("field-missing", outputs=["r2star"]).b0 is None
    assert one("field-frequency").b0 == pytest.approx(123.25 / 42.577478, abs=1e-5)


def test_sessions_runs_and_t1w():
    dataset = read(CASES / "form-sessions")
    assert [dict(a.entities) for a in dataset.acquisitions] == [
        {"sub": "01", "ses": "a", "acq": "x", "run": "1"},
        {"sub": "01", "ses": "a", "acq": "x", "run": "2"},
        {"sub": "01", "ses": "b"},
    ]
    assert all(Path(a.t1w).name == "sub-01_ses-a_acq-mprage_run-2_T1w.nii" for a in dataset.acquisitions)


def test_grid_comes_from_any_storage_order():
    """The skeleton of orientations has shapes and affines that the checks must let through as they are."""
    dataset = read(CASES / "header-orientations")
    directions = {}
    for acquisition in dataset.acquisitions:
        affine = nb.load(acquisition.phase[0].path).affine
        directions[acquisition.entities["acq"]] = affine[2, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(directions["las"], [0, 0, 1])
    np.testing.assert_allclose(directions["sagittal"], [0, 1, 0])
    np.testing.assert_allclose(directions["coronal"], [0, -1, 0])
    np.testing.assert_allclose(directions["oblique"], [0, 0.5, np.sqrt(0.75)], atol=1e-6)
