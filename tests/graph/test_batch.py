"""Clusters: the run waits for its jobs, knows which failed and why, and takes them back when it is stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qsmflow.workflows import batch
from qsmflow.workflows.running import run_workflow

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from toy import make_execution, make_workflow, result  # noqa: E402

NAMES = ("sub-01", "sub-02")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A scheduler of scripts; gives the folder of its jobs."""
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_slurm.py"} {name} "$@"\n')
        program.chmod(0o755)
    state = tmp_path / "jobs"
    state.mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    monkeypatch.setattr(batch, "POLL", 0.1)
    monkeypatch.setattr(batch, "VISIBLE", 1.0)
    return state


def run(folder, plugin="SLURMGraph", actions=None, names=NAMES, arguments="", **settings):
    path = folder / "plugin.yml"
    path.write_text(f"plugin: {plugin}\nplugin_args: {{sbatch_args: '{arguments}'}}\n")
    (folder / "counts").mkdir(exist_ok=True)
    lines = []
    execution = make_execution(folder, plugin_file=path, **settings)
    workflow = make_workflow(names, folder / "counts", actions, n_procs=2, mem_gb=1.5)
    return run_workflow(workflow, execution, names, say=lines.append), lines, execution


@pytest.fixture
def jobs_find_toys(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    # What the plugin sets for its jobs must not leak into other tests.
    for key in batch.thread_environment(1) | {"LOGNAME": ""}:
        monkeypatch.setenv(key, os.environ.get(key, ""))
        monkeypatch.delenv(key)


def options(state):
    return [json.loads((folder / "job.json").read_text()) for folder in sorted(state.iterdir())]


@pytest.mark.usefixtures("jobs_find_toys")
def test_run_waits_for_its_jobs(fake, tmp_path):
    outcome, lines, execution = run(tmp_path, names=NAMES[:1], omp_nthreads=2)
    assert outcome.failures == ()
    assert result(execution, "sub-01") == 3
    assert [line.split(" ", 2)[2] for line in lines] == ["load (tv) 0 s", "field (tv) 0 s", "inversion (tv) 0 s"]
    for job in options(fake):
        assert {"--mem=2560M", "--cpus-per-task=2", "--kill-on-invalid-dep=yes"} <= set(job)


@pytest.mark.usefixtures("jobs_find_toys")
def test_arguments_of_the_user_win(fake, tmp_path):
    run(tmp_path, names=NAMES[:1], arguments="--mem=4G -c 1")
    assert not {word for job in options(fake) for word in job if word.startswith(("--cpus", "--mem=2"))}


@pytest.mark.usefixtures("jobs_find_toys")
def test_failures_have_names_and_the_others_go_on(fake, tmp_path):
    actions = {"sub-01 field": "raise no such echo", "sub-02 field": "kill SIGKILL"}
    outcome, lines, execution = run(tmp_path, actions=actions)
    told = {failure.acquisition: failure for failure in outcome.failures}
    assert told["sub-01"].reason == "ValueError: no such echo"
    assert told["sub-02"].reason == "killed by signal 9 in its job (out of memory?)"
    assert outcome.unfinished == {"sub-01", "sub-02"}
    assert len(lines) == 4
    crashes = sorted(path.name for path in (execution.output_dir / "logs").glob("*crash*"))
    assert crashes == ["crash_acq_sub_01_field.txt", "crash_acq_sub_02_field.txt"]
    assert "toy_nodes.py" in told["sub-01"].crash_file.read_text()

    outcome, lines, _ = run(tmp_path)
    assert outcome.failures == ()
    assert [line.endswith("earlier run)") for line in lines].count(True) == 2
    assert not list((execution.output_dir / "logs").glob("*crash*"))


@pytest.mark.usefixtures("jobs_find_toys")
def test_stop_on_first_crash_takes_the_other_jobs_back(fake, tmp_path):
    actions = {"sub-01 load": "raise x", "sub-02 load": "sleep 60"}
    outcome, _, _ = run(tmp_path, actions=actions, stop_on_first_crash=True)
    assert [failure.acquisition for failure in outcome.failures] == ["sub-01"]
    codes = sorted((folder / "exit").read_text() for folder in fake.iterdir())
    assert codes.count("cancelled") == 3
    assert "0" not in codes


@pytest.mark.usefixtures("jobs_find_toys", "fake")
def test_scheduler_that_is_gone_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "PATIENCE", 2)
    program = tmp_path / "bin" / "squeue"
    program.write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
    with pytest.raises(batch.QsmflowError, match="squeue failed 2 times in a row: no controller"):
        run(tmp_path, names=NAMES[:1])


@pytest.mark.slow
@pytest.mark.usefixtures("jobs_find_toys")
@pytest.mark.parametrize("plugin", ["SLURMGraph", "SLURM"])
def test_on_a_real_slurm(plugin, tmp_path):
    if "SLURM_CONF" not in os.environ or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("no Slurm here (SLURM_CONF names one)")
    actions = {"sub-01 field": "raise no such echo", "sub-02 load": "kill SIGKILL"}
    outcome, _, _ = run(tmp_path, plugin, actions, arguments="--time=5 --mem=700M -c 1")
    reasons = {failure.acquisition: failure.reason for failure in outcome.failures}
    assert reasons == {
        "sub-01": "ValueError: no such echo",
        "sub-02": "killed by signal 9 in its job (out of memory?)",
    }
    outcome, _, execution = run(tmp_path, plugin, arguments="--time=5 --mem=700M -c 1")
    assert outcome.failures == ()
    assert (result(execution, "sub-01"), result(execution, "sub-02")) == (3, 6)
