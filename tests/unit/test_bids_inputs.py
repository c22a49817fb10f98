"""Reading a dataset: labels, filters, T1w, links, real data."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from qsmflow.bids import inputs
from qsmflow.bids.headers import read_header
from qsmflow.bids.inputs import Problem, needs_phase, read_dataset
from qsmflow.bids.layout import Layout
from qsmflow.bids.problems import Unusable
from qsmflow.config import Execution, Recipe
from qsmflow.errors import UsageError


@pytest.fixture
def small(tmp_path):
    """Three participants with two echoes each, the last with a T1w."""
    root = tmp_path / "data set"
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    (root / "MEGRE.json").write_text('{"MagneticFieldStrength": 3}')
    image = nb.Nifti1Image(np.zeros((4, 4, 4), dtype=np.int16), np.eye(4))
    for label in ("01", "02", "10"):
        folder = root / f"sub-{label}" / "anat"
        folder.mkdir(parents=True)
        for echo in (1, 2):
            for part in ("mag", "phase"):
                nb.save(image, folder / f"sub-{label}_echo-{echo}_part-{part}_MEGRE.nii.gz")
            sidecar = {"EchoTime": 0.005 * echo, "Units": "rad"}
            (folder / f"sub-{label}_echo-{echo}_MEGRE.json").write_text(json.dumps(sidecar))
    nb.save(image, root / "sub-10" / "anat" / "sub-10_T1w.nii.gz")
    return root


def read(root, **options):
    return read_dataset(Execution(Path(root), Path(root) / "out", Path(root) / "work", **options), Recipe())


def names(dataset):
    return [a.name for a in dataset.acquisitions]


def test_everything_is_read(small):
    dataset = read(small)
    assert dataset.problems == ()
    assert names(dataset) == ["sub-01", "sub-02", "sub-10"]
    assert [a.t1w is not None for a in dataset.acquisitions] == [False, False, True]
    assert all(Path(path).is_file() for a in dataset.acquisitions for path in a.sources)
    assert dataset == read(small)


@pytest.mark.parametrize("label", ["10", "sub-10"])
def test_participants_are_chosen_with_or_without_prefix(small, label):
    assert names(read(small, participant_label=(label,))) == ["sub-10"]


def test_only_chosen_participants_are_indexed(small):
    with Layout(small, ("10",)) as layout:
        assert {image.entities["sub"] for image in layout.images("megre")} == {"10"}
    with Layout(small, ("1",)) as layout:
        assert layout.images("megre") == []


def test_unknown_participant_is_named_with_the_known_ones(small):
    with pytest.raises(UsageError, match="not in the dataset: sub-03, sub-x; it has: 01, 02, 10"):
        read(small, participant_label=("sub-03", "01", "x"))


def test_unknown_session_is_named(small):
    with pytest.raises(UsageError, match="ses-a; it has: none"):
        read(small, session_label=("a",))


def test_missing_folder(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"megree": {}}, "did you mean 'megre'"),
        ({"megre": {"acquisitions": "x"}}, "did you mean 'acquisition'"),
        ({"t1w": "MPRAGE"}, "must be an object"),
    ],
)
def test_filters_that_mean_nothing(small, filters, words):
    with pytest.raises(UsageError, match=words):
        read(small, bids_filters=filters)


def test_filter_on_echoes_and_t1w(small):
    dataset = read(small, bids_filters={"megre": {"echo": 1, "subject": ["02", "10"]}, "t1w": {"acquisition": "mprage"}})
    assert names(dataset) == ["sub-02", "sub-10"]
    assert all(a.echo_times == (0.005,) and a.t1w is None for a in dataset.acquisitions)


def test_relative_and_linked_roots_give_the_same(small, monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(small)
    monkeypatch.chdir(small / "sub-01")
    assert read("..").acquisitions == read(small).acquisitions == read(tmp_path / "link").acquisitions


def test_derivatives_and_other_folders_are_not_read(small):
    for folder in ("derivatives/old", "sourcedata", "out"):
        shutil.copytree(small / "sub-01", small / folder / "sub-77")
    shutil.copytree(small / "sub-01" / "anat", small / "sub-01" / "func")
    assert names(read(small)) == ["sub-01", "sub-02", "sub-10"]


def test_link_without_content_is_a_problem(small):
    path = small / "sub-02/anat/sub-02_echo-2_part-phase_MEGRE.nii.gz"
    path.unlink()
    path.symlink_to("../../.git/annex/objects/gone")
    dataset = read(small)
    assert names(dataset) == ["sub-01", "sub-10"]
    assert [str(p) for p in dataset.problems] == [
        "sub-02/anat/sub-02_echo-2_part-phase_MEGRE.nii.gz: is a link to a file that is not here;"
        " fetch its content first (e.g. 'datalad get')"
    ]


def test_one_broken_inherited_sidecar_is_one_problem(small):
    (small / "MEGRE.json").write_text("[1, 2]")
    dataset = read(small)
    assert names(dataset) == []
    assert [problem.path for problem in dataset.problems] == ["MEGRE.json"]


def test_special_sidecar_overrides_the_general_one_beside_it(small):
    (small / "MEGRE.json").write_text('{"MagneticFieldStrength": 3, "Manufacturer": "general"}')
    (small / "echo-1_MEGRE.json").write_text('{"Manufacturer": "special"}')
    assert read(small).acquisitions[0].metadata["Manufacturer"] == "special"
    (small / "sub-01/sub-01_MEGRE.json").write_text('{"Manufacturer": "near"}')
    assert read(small).acquisitions[0].metadata["Manufacturer"] == "near"


def test_description_that_is_not_json(small):
    (small / "dataset_description.json").write_text("{")
    (problem,) = read(small).problems
    assert "not valid JSON" in problem.what


def test_all_problems_come_at_once(small):
    (small / "sub-01/anat/sub-01_echo-1_MEGRE.json").write_text('{"EchoTime": 5, "Units": "rad"}')
    (small / "sub-02/anat/sub-02_echo-2_part-mag_MEGRE.nii.gz").write_bytes(b"")
    dataset = read(small)
    assert names(dataset) == ["sub-10"]
    assert [problem.path.rpartition("/")[2] for problem in dataset.problems] == [
        "sub-01_echo-1_part-mag_MEGRE.nii.gz",
        "sub-01_echo-1_part-phase_MEGRE.nii.gz",
        "sub-02_echo-2_part-mag_MEGRE.nii.gz",
    ]


def test_t1w_rule(small):
    folder = small / "sub-10" / "anat"
    source = folder / "sub-10_T1w.nii.gz"
    for name in ("acq-b_rec-norm", "acq-b_run-1", "acq-b_run-2", "acq-a"):
        shutil.copy(source, folder / f"sub-10_{name}_T1w.nii.gz")

    def chosen():
        acquisition = read(small, participant_label=("10",)).acquisitions[0]
        return Path(acquisition.t1w).name, [n for n in acquisition.notices if "T1w" in n]

    assert chosen() == ("sub-10_T1w.nii.gz", ["T1w: sub-10_T1w.nii.gz was chosen out of 5"])
    source.unlink()
    assert chosen()[0] == "sub-10_acq-b_run-2_T1w.nii.gz"
    (folder / "sub-10_acq-b_run-2_T1w.nii.gz").unlink()
    assert chosen()[0] == "sub-10_acq-b_run-1_T1w.nii.gz"


def test_t1w_of_the_session_before_others(small):
    folder = small / "sub-10"
    for session in ("a", "b"):
        new = folder / f"ses-{session}" / "anat"
        new.mkdir(parents=True)
        for path in (folder / "anat").iterdir():
            shutil.copy(path, new / path.name.replace("sub-10", f"sub-10_ses-{session}"))
    shutil.rmtree(folder / "anat")
    assert [Path(a.t1w).name for a in read(small, participant_label=("10",)).acquisitions] == [
        "sub-10_ses-a_T1w.nii.gz",
        "sub-10_ses-b_T1w.nii.gz",
    ]
    (folder / "ses-b/anat/sub-10_ses-b_T1w.nii.gz").unlink()
    (acquisition,) = read(small, participant_label=("10",), session_label=("b",)).acquisitions
    assert Path(acquisition.t1w).name == "sub-10_ses-a_T1w.nii.gz"


def test_gzip_of_several_members_is_whole(tmp_path):
    """The size at the end of such a file is that of its last member only."""
    whole = nb.Nifti1Image(np.zeros((8, 8, 8), dtype=np.int16), np.eye(4)).to_bytes()
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(whole[:700]) + gzip.compress(whole[700:]))
    assert read_header(str(path), "x").shape == (8, 8, 8)
    path.write_bytes(gzip.compress(whole[:700]) + gzip.compress(whole[700:-1]))
    with pytest.raises(Unusable) as caught:
        read_header(str(path), "x")
    assert caught.value.problem.what == "is cut short: 1375 bytes where its header promises 1376"


def test_outputs_decide_whether_phase_is_needed():
    assert needs_phase(Recipe())
    assert not needs_phase(Recipe(outputs=("r2star", "rois")))
    assert needs_phase(Recipe(outputs=("r2star", "swi")))
    assert not needs_phase(Recipe(outputs=("r2star", "swi"), swi="none"))


@pytest.mark.parametrize(
    ("part", "outputs", "what"),
    [("mag", ("qsm", "swi"), ""), ("mag", ("swi",), "without magnitude"), ("mag", ("r2star",), "without magnitude"),
     ("phase", ("r2star",), ""), ("phase", ("r2star", "swi"), "no phase image")],
)  # fmt: skip
def test_what_is_missing_is_told_for_the_outputs_that_need_it(small, part, outputs, what):
    for path in small.glob(f"sub-01/anat/*_part-{part}_*"):
        path.unlink()
    execution = Execution(small, small / "out", small / "work", participant_label=("01",))
    problems = read_dataset(execution, Recipe(outputs=outputs)).problems
    assert [what in problem.what for problem in problems] == [True] * bool(what)


def test_problem_reads_as_file_what_remedy():
    assert str(Problem("a.nii", "is bad", "mend it")) == "a.nii: is bad; mend it"
    assert inputs.Problem is Problem


@pytest.mark.parametrize(
    ("data", "times", "b0"), [("head", (0.004, 0.012, 0.020, 0.028), 3.0), ("invivo", (0.004, 0.008, 0.012), 7.0)]
)
def test_real_datasets(shared, data, times, b0):
    dataset = read(shared / "data" / data)
    assert dataset.problems == ()
    (acquisition,) = dataset.acquisitions
    assert acquisition.echo_times == pytest.approx(times)
    assert acquisition.b0 == b0
    assert len(acquisition.magnitude) == len(acquisition.phase) == len(times)
    assert (acquisition.t1w is not None) == (data == "head")
