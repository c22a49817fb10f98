"""What counts as finished, and what breaks the stamp."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import qsmflow
from qsmflow.bids.completion import outputs, reason_to_run, stamp
from qsmflow.bids.inputs import Acquisition
from qsmflow.bids.series import Volume
from qsmflow.config import Execution, Recipe


@pytest.fixture
def execution(tmp_path):
    return Execution(bids_dir=tmp_path / "bids", output_dir=tmp_path / "out", work_dir=tmp_path / "work")


def touch(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def acquisition(execution):
    anat = execution.bids_dir / "sub-01/anat"
    files = [str(touch(anat / f"sub-01_echo-{n}_part-mag_MEGRE.nii.gz", f"echo {n}")) for n in (1, 2)]
    t1w = str(touch(anat / "sub-01_T1w.nii.gz", "t1w"))
    for name in ("anat/sub-01_Chimap.nii.gz", "anat/sub-01_Chimap.json", "figures/sub-01_desc-a_Chimap.png"):
        touch(execution.output_dir / "sub-01" / name, name)
    volumes = tuple(Volume(file, None) for file in files)
    return Acquisition({"sub": "01"}, "MEGRE", (0.004, 0.012), magnitude=volumes, b0=3.0, t1w=t1w, notices=("a word",))


def test_finished_after_the_stamp(execution, acquisition):
    assert reason_to_run(execution, acquisition, Recipe()) == "not done yet"
    path = stamp(execution, acquisition, Recipe())
    assert path == execution.output_dir / "logs/sub-01_complete.json"
    assert reason_to_run(execution, acquisition, Recipe()) == ""
    told = json.loads(path.read_text())
    assert [entry["path"] for entry in told["inputs"]] == [
        "sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz",
        "sub-01/anat/sub-01_echo-2_part-mag_MEGRE.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
    ]
    assert told["outputs"]["sub-01/anat/sub-01_Chimap.nii.gz"] == len("anat/sub-01_Chimap.nii.gz")
    assert len(told["outputs"]) == 3


def test_what_does_not_matter(execution, acquisition):
    stamp(execution, acquisition, Recipe())
    os.utime(acquisition.t1w, (1, 1))  # a new time for the old content
    assert reason_to_run(execution, replace(acquisition, notices=()), replace(Recipe(), name="other")) == ""


def test_moved_dataset_is_the_same(execution, acquisition, tmp_path):
    stamp(execution, acquisition, Recipe())
    (tmp_path / "bids").rename(tmp_path / "moved")
    there = {key: str(getattr(acquisition, key)).replace("/bids/", "/moved/") for key in ("t1w",)}
    volumes = tuple(Volume(v.path.replace("/bids/", "/moved/"), v.index) for v in acquisition.magnitude)
    moved = replace(acquisition, magnitude=volumes, **there)
    assert reason_to_run(replace(execution, bids_dir=tmp_path / "moved"), moved, Recipe()) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e, a: Path(a.t1w).write_text("new"), "changed since: sub-01/anat/sub-01_T1w.nii.gz"),
        (lambda e, a: Path(a.sources[0]).unlink(), "changed since: sub-01/anat/sub-01_echo-1"),
        (
            lambda e, a: (e.output_dir / "sub-01/anat/sub-01_Chimap.nii.gz").unlink(),
            "outputs changed or gone: sub-01/anat/sub-01_Ch",
        ),
        (lambda e, a: touch(e.output_dir / "sub-01/anat/sub-01_Chimap.json", "cut"), "outputs changed or gone"),
        (lambda e, a: (e.output_dir / "logs/sub-01_complete.json").unlink(), "not done yet"),
        (lambda e, a: touch(e.output_dir / "logs/sub-01_complete.json", "{"), "is not readable"),
        (lambda e, a: touch(e.output_dir / "logs/sub-01_complete.json", "[]"), "is not readable"),
    ],
)
def test_changed_files(execution, acquisition, change, reason):
    stamp(execution, acquisition, Recipe())
    change(execution, acquisition)
    assert reason_to_run(execution, acquisition, Recipe()).startswith(reason) or reason in ("is not readable",)
    assert reason in reason_to_run(execution, acquisition, Recipe())


@pytest.mark.parametrize(
    "change", [{"b0": 7.0}, {"echo_times": (0.005, 0.012)}, {"t1w": None}, {"metadata": {"FlipAngle": 15}}], ids=str
)
def test_changed_metadata(execution, acquisition, change):
    stamp(execution, acquisition, Recipe())
    assert reason_to_run(execution, replace(acquisition, **change), Recipe()) == "files or metadata of the dataset changed"


def test_changed_recipe_version_and_given_files(execution, acquisition, monkeypatch, tmp_path):
    stamp(execution, acquisition, Recipe())
    assert reason_to_run(execution, acquisition, Recipe(inversion="tkd")).startswith("the recipe changed")
    mask = str(touch(tmp_path / "masks/sub-01_desc-brain_mask.nii.gz"))
    assert reason_to_run(execution, acquisition, Recipe(), [mask]) == "files or metadata of the dataset changed"
    monkeypatch.setattr(qsmflow, "__version__", "99")
    assert reason_to_run(execution, acquisition, Recipe()).endswith("this is 99")


def test_outputs_of_one_acquisition_only(tmp_path):
    """Names begin alike; what tells acquisitions apart is compared whole, and field maps carry rec- inside acq-."""
    mine = [
        "anat/sub-01_rec-norm_Chimap.nii.gz",
        "anat/sub-01_rec-norm_echo-1_part-phase_desc-unwrapped_MEGRE.nii.gz",
        "anat/sub-01_rec-norm_atlas-CIT168_stats.tsv",
        "figures/sub-01_rec-norm_desc-outline_mask.png",
        "fmap/sub-01_acq-recnorm_desc-total_fieldmap.nii.gz",
    ]
    others = [
        "anat/sub-01_Chimap.nii.gz",
        "anat/sub-01_rec-norm_run-2_Chimap.nii.gz",
        "anat/sub-01_acq-x_rec-norm_Chimap.nii.gz",
        "anat/.123.sub-01_rec-norm_Chimap.nii.gz",
        "fmap/sub-01_desc-total_fieldmap.nii.gz",
    ]
    for name in (*mine, *others):
        touch(tmp_path / "sub-01" / name)
    found = outputs(tmp_path, Acquisition({"sub": "01", "rec": "norm"}, "MEGRE", (0.01,)))
    assert [path.relative_to(tmp_path / "sub-01").as_posix() for path in found] == sorted(mine)
