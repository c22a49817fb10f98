"""The command around the graph: what is skipped, what is told, and the exit code. The graph itself is a stand-in."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qsmflow.bids import completion, inputs
from qsmflow.bids.problems import Problem
from qsmflow.bids.series import Volume
from qsmflow.cli import run
from qsmflow.config import Recipe
from qsmflow.errors import DatasetError
from qsmflow.reports import page
from qsmflow.workflows import base, plan, plugin, running
from qsmflow.workflows.failures import Failure


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two acquisitions; ``world`` says what the stand-ins find and do, and keeps what was asked of them."""
    monkeypatch.chdir(tmp_path)
    Path("bids").mkdir()
    acquisitions = []
    for sub in ("01", "02"):
        file = tmp_path / "bids" / f"sub-{sub}_MEGRE.nii.gz"
        file.write_text(sub)
        volumes = (Volume(str(file), None),)
        acquisitions.append(inputs.Acquisition({"sub": sub}, "MEGRE", (0.01,), magnitude=volumes, notices=("one echo",)))
    world = SimpleNamespace(acquisitions=acquisitions, problems=(), failing=(), ran=[], pages=[], page_error=None)

    def run_workflow(workflow, execution, names, *, say):
        world.ran.append(tuple(names))
        failures = [Failure(name, "inversion (tv)", "n", "killed by signal 9", Path("crash.txt")) for name in world.failing]
        return running.Outcome(tuple(failures), frozenset(world.failing), 65.0)

    def build_subject_page(output_dir, subject):
        if world.page_error:
            raise world.page_error
        world.pages.append(subject)
        (output_dir / f"sub-{subject}.html").write_text("page")

    def plan_acquisition(acquisition, recipe, execution):
        return SimpleNamespace(acquisition=acquisition, recipe=recipe, atlas=None, given={}, notices=("no atlas",))

    dataset = lambda execution, recipe: inputs.Dataset(tmp_path, tuple(world.acquisitions), world.problems)  # noqa: E731
    monkeypatch.setattr(inputs, "read_dataset", dataset)
    monkeypatch.setattr(plan, "plan_acquisition", plan_acquisition)
    monkeypatch.setattr(base, "init_qsmflow_wf", lambda acquisitions, recipe, execution: None)
    monkeypatch.setattr(plugin, "start_server", lambda **settings: None)
    monkeypatch.setattr(running, "run_workflow", run_workflow)
    monkeypatch.setattr(page, "build_subject_page", build_subject_page)
    return world


def qsmflow(*words):
    return run.main(["bids", "out", "participant", "--skip-bids-validation", *words])


def test_all_done_then_all_skipped(world, capsys):
    assert qsmflow() == 0
    text = capsys.readouterr().out
    assert "sub-01: not done yet" in text
    assert "sub-01: notice: one echo" in text
    assert "sub-01: notice: no atlas" in text
    assert "2 of 2 acquisitions finished; 1 min 5 s" in text
    assert (world.ran, world.pages) == ([("sub-01", "sub-02")], ["01", "02"])

    assert qsmflow() == 0
    text = capsys.readouterr().out
    assert "sub-02: finished before, skipped" in text
    assert "2 of 2 acquisitions finished, 2 of them before" in text
    assert len(world.ran) == 1
    assert len(world.pages) == 2

    Path("out/sub-02.html").unlink()  # a lost page is made again, without a run
    assert qsmflow() == 0
    assert (len(world.ran), world.pages[2:]) == (1, ["02"])


def test_failed_acquisition_is_told_and_not_stamped(world, capsys):
    world.failing = ("sub-02",)
    assert qsmflow() == 1
    captured = capsys.readouterr()
    assert "failed: sub-02 inversion (tv): killed by signal 9\n  crash file: crash.txt\n  what to do: " in captured.err
    assert "not finished: sub-02" in captured.err
    assert "1 of 2 acquisitions finished" in captured.out
    assert world.pages == ["01", "02"]  # the page of a failed subject says so
    world.failing = ()
    assert qsmflow() == 0
    assert world.ran[1] == ("sub-02",)


def test_problems_are_listed_first_and_the_rest_runs(world, capsys):
    world.problems = (Problem("sub-03/anat/x.nii.gz", "has no EchoTime", "add it"), Problem("sub-04", "is empty", "fill it"))
    assert qsmflow() == 3
    assert "problem: sub-04: is empty; fill it" in capsys.readouterr().err
    text = next(Path("out/logs").glob("qsmflow_*.log")).read_text()
    assert text.index("problem: sub-03/anat/x.nii.gz: has no EchoTime; add it") < text.index("sub-01: not done yet")
    assert world.ran == [("sub-01", "sub-02")]
    world.failing = ("sub-01",)
    assert qsmflow("--inversion", "tkd") == 1  # a failure counts more than a problem


def orientations(world, tmp_path, labels=("1", "2")):
    """Runs of one subject with magnitude and phase."""
    world.acquisitions = []
    for run_label in labels:
        file = tmp_path / "bids" / f"sub-01_run-{run_label}_MEGRE.nii.gz"
        file.write_text(run_label)
        volumes = {"magnitude": (Volume(str(file), None),), "phase": (Volume(str(file), None),)}
        world.acquisitions.append(inputs.Acquisition({"sub": "01", "run": run_label}, "MEGRE", (0.01,), **volumes))


def test_orientations_are_run_together_and_told(world, tmp_path, capsys):
    """One changed orientation, or a map that is gone, takes the others with it."""
    orientations(world, tmp_path)
    combined = Path("out/sub-01/anat/sub-01_desc-cosmos_Chimap.nii.gz")
    combined.parent.mkdir(parents=True)
    combined.write_text("map")
    told = {
        "Orientations": [{"TiltDegrees": 0.0}, {"TiltDegrees": 12.5}],
        "ConditionNumber": "infinite",
        "PoorlyConditioned": True,
        "Quality": {"cosmos_fit": 0.62, "brain_sd": 0.05, "rim_chi": None},
    }
    combined.with_name("sub-01_desc-cosmos_Chimap.json").write_text(json.dumps(told))
    assert qsmflow("--cosmos", "run") == 0
    text = "".join(capsys.readouterr())
    assert "sub-01: COSMOS of 2 orientations at 0, 12.5 degrees, condition number infinite" in text
    assert "sub-01: warning: COSMOS is poorly conditioned" in text
    assert "sub-01: warning: COSMOS: unexplained part of all local fields is 0.62 (expected: at most 0.5)" in text
    assert text.count("warning: COSMOS") == 2
    assert qsmflow("--cosmos", "run") == 0
    Path("bids/sub-01_run-2_MEGRE.nii.gz").write_text("other")
    assert qsmflow("--cosmos", "run") == 0
    combined.unlink()
    assert qsmflow("--cosmos", "run") == 0
    assert world.ran == [("sub-01_run-1", "sub-01_run-2")] * 3
    assert "sub-01_run-1: its orientations have to be combined" in "".join(capsys.readouterr())


def test_a_head_without_orientations_is_told(world, tmp_path, capsys):
    orientations(world, tmp_path, labels=("1",))
    assert qsmflow("--cosmos", "run") == 3
    assert "no subject has acquisitions that differ only in run-" in "".join(capsys.readouterr())
    orientations(world, tmp_path)
    single = world.acquisitions[0]
    world.acquisitions.append(replace(single, entities={"sub": "02", "run": "1"}))
    assert qsmflow("--cosmos", "run") == 0
    assert "sub-02_run-1: notice: no part of a COSMOS map" in "".join(capsys.readouterr())


def test_nothing_usable_stops_at_once(world, capsys):
    world.acquisitions = []
    world.problems = (Problem("bids", "holds nothing", "fill it"),)
    assert qsmflow() == 3
    text = capsys.readouterr().err
    assert "problem: bids: holds nothing; fill it" in text
    assert "qsmflow: error: nothing in" in text
    assert world.ran == []


def test_usage_error_goes_to_stderr(world, capsys):
    assert qsmflow("--inversion", "tvv") == 2
    captured = capsys.readouterr()
    assert captured.err == "qsmflow: error: argument --inversion: dipole inversion: no method 'tvv'; did you mean 'tv'?\n"
    assert captured.out == ""


def test_stopped_run_says_how_to_go_on(world, capsys, monkeypatch):
    def stopped(*words, **settings):
        raise KeyboardInterrupt("SIGTERM")

    monkeypatch.setattr(running, "run_workflow", stopped)
    assert qsmflow() == 130
    assert "stopped by SIGTERM; the same command goes on where it was" in capsys.readouterr().err
    assert completion.reason_to_run(
        SimpleNamespace(bids_dir=Path("bids"), output_dir=Path("out")), world.acquisitions[0], Recipe.load("consensus")
    ) == "not done yet"  # fmt: skip


def test_broken_page_stops_nothing_but_counts(world, capsys):
    world.page_error = OSError("no space")
    assert qsmflow() == 1
    captured = capsys.readouterr()
    assert "sub-01: its page could not be made: no space" in captured.err
    assert "sub-02: its page could not be made: no space" in captured.err
    assert "2 of 2 acquisitions finished" in captured.out
    assert "OSError: no space" in next(Path("out/logs").glob("qsmflow_*.log")).read_text()  # with its traceback


def test_log_and_toml_of_a_run(world):
    qsmflow("--whqsm-lambda", "0.002", "--nprocs", "1")
    (log,) = Path("out/logs").glob("qsmflow_*.log")
    assert "2 of 2 acquisitions finished" in log.read_text()
    told = tomllib.loads(log.with_suffix(".toml").read_text())
    assert told["parameters"]["whqsm"]["lambda_"] == 0.002
    assert told["execution"]["nprocs"] == 1
    # What a run leaves is a recipe, and gives the same numbers.
    assert Recipe.load(str(log.with_suffix(".toml"))).hash == told["run"]["recipe_hash"]


def test_reports_only_reads_nothing_but_the_results(world, capsys, monkeypatch):
    monkeypatch.setattr(inputs, "read_dataset", None)
    assert qsmflow("--reports-only") == 3
    assert "no results in" in capsys.readouterr().err
    for label in ("01", "02"):
        Path(f"out/sub-{label}").mkdir(parents=True)
    assert qsmflow("--reports-only") == 0
    assert world.pages == ["01", "02"]
    assert qsmflow("--reports-only", "--participant-label", "02", "09") == 3
    assert world.pages[2:] == ["02"]
    assert "sub-09: has no results" in capsys.readouterr().err


def test_dataset_error_has_its_own_code():
    assert DatasetError("x").exit_code == 3
