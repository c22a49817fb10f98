"""One process per node: results, failures with names, limits, and nothing left behind."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from qsmflow.errors import UsageError
from qsmflow.workflows.batch import load_plugin
from qsmflow.workflows.plugin import start_server
from qsmflow.workflows.running import run_workflow

TOY = Path(__file__).with_name("toy.py")
sys.path.insert(0, str(TOY.parent))  # the processes of nodes, too, have to find the module

from toy import make_execution, make_shared_workflow, make_workflow, result  # noqa: E402

BOTH = ("sub-01", "sub-02_ses-a")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "counts").mkdir()
    return tmp_path


def run(folder, actions=None, names=BOTH, settings=None, **node_options):
    lines = []
    execution = make_execution(folder, **(settings or {}))
    workflow = make_workflow(names, folder / "counts", actions, **node_options)
    return run_workflow(workflow, execution, names, say=lines.append), lines, execution


def executions(folder):
    """How often each node was executed."""
    return {path.name: len(path.read_text().splitlines()) for path in (folder / "counts").iterdir()}


def test_results_and_progress(folder):
    outcome, lines, execution = run(folder)
    assert (outcome.failures, outcome.unfinished) == ((), frozenset())
    assert (result(execution, "sub-01"), result(execution, "sub-02_ses-a")) == (3, 6)
    assert [line.split()[0] for line in lines] == [f"{n}/6" for n in range(1, 7)]
    assert any(line.split(" ", 1)[1] == "sub-02_ses-a inversion (tv) 0 s" for line in lines)
    table = (execution.output_dir / "logs/sub-01_timing.tsv").read_text().splitlines()
    assert table[0] == "node\tseconds\tstatus"
    assert [row.split("\t")[0::2] for row in table[1:]] == [["load", "done"], ["field", "done"], ["inversion", "done"]]


def test_a_process_finds_its_imports_done():
    """What a node's process has to call was imported by the server; otherwise every node would import it, and Nipype, anew."""
    start_server()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    words = "import sys; sender.send('qsmflow.workflows.plugin' in sys.modules)"
    process = multiprocessing.get_context("forkserver").Process(target=exec, args=(words, {"sender": sender}))
    process.start()
    assert receiver.recv()
    process.join()


def test_step_that_serves_several_acquisitions(folder):
    lines = []
    execution = make_execution(folder)
    outcome = run_workflow(make_shared_workflow(BOTH), execution, BOTH, say=lines.append)
    assert outcome.failures == ()
    assert lines[0] == "1/7 t1w_sub_01_T1w register (tv) 0 s"
    assert (result(execution, "sub-01"), result(execution, "sub-02_ses-a")) == (13, 16)
    for name in BOTH:
        assert "t1w_sub_01_T1w.register\t" in (execution.output_dir / f"logs/{name}_timing.tsv").read_text()

    execution = make_execution(folder / "again")
    outcome = run_workflow(make_shared_workflow(BOTH, "raise x"), execution, BOTH, say=lines.append)
    (failure,) = outcome.failures
    assert (failure.acquisition, str(failure).splitlines()[0]) == ("", "register (tv): ValueError: x")
    assert outcome.unfinished == set(BOTH)


def test_second_run_uses_what_is_there(folder):
    run(folder)
    outcome, lines, execution = run(folder)
    assert set(executions(folder).values()) == {1}
    assert outcome.failures == ()
    assert all(line.endswith("(from an earlier run)") for line in lines)
    assert "field\t0.00\tcached" in (execution.output_dir / "logs/sub-01_timing.tsv").read_text()


@pytest.mark.parametrize(
    ("action", "reason", "remedy"),
    [
        ("kill SIGKILL", "killed by signal 9 (SIGKILL; out of memory?)", "--mem"),
        ("kill SIGSEGV", "killed by signal 11 (SIGSEGV)", "developers"),
        ("raise no such echo", "ValueError: no such echo", "crash file"),
    ],
)
def test_failure_has_a_name_and_the_others_go_on(folder, action, reason, remedy):
    outcome, lines, execution = run(folder, {"sub-01 field": action})
    (failure,) = outcome.failures
    assert (failure.acquisition, failure.stage, failure.reason) == ("sub-01", "field (tv)", reason)
    assert remedy in failure.remedy
    assert outcome.unfinished == {"sub-01"}
    assert result(execution, "sub-02_ses-a") == 6
    assert len(lines) == 5  # the step after the failed one is not run
    assert [line for line in lines if "sub-01 field (tv) FAILED: " + reason in line]
    assert failure.crash_file == execution.output_dir / "logs/crash_acq_sub_01_field.txt"
    text = failure.crash_file.read_text()
    assert f"reason:      {reason}\n" in text
    assert f"{action.split()[0]} asked for" in text  # what the node printed
    assert "toy_nodes.py" in text or "SIGKILL" in action  # where it happened; nothing can be said after SIGKILL
    assert "field\t" in (execution.output_dir / "logs/sub-01_timing.tsv").read_text()


def test_failed_node_runs_again_and_its_crash_file_goes(folder):
    before, _, _ = run(folder, {"sub-01 field": "raise x"})
    outcome, _, execution = run(folder)
    assert outcome.failures == ()
    assert not before.failures[0].crash_file.exists()
    assert result(execution, "sub-01") == 3
    assert executions(folder)["acq_sub_01.load"] == 1


def test_stop_on_first_crash(folder):
    actions = {"sub-01 load": "raise x", "sub-02_ses-a load": "sleep 30"}
    start = time.time()
    outcome, _, _ = run(folder, actions, settings={"stop_on_first_crash": True})
    assert time.time() - start < 15
    assert len(outcome.failures) == 1
    assert outcome.unfinished == set(BOTH)


@pytest.mark.parametrize(("settings", "options"), [({"nprocs": 2}, {"n_procs": 2}), ({"mem_gb": 4}, {"mem_gb": 3})])
def test_nodes_wait_for_processors_and_memory(folder, settings, options):
    actions = dict.fromkeys((f"{name} load" for name in BOTH), "sleep 0.3")
    run(folder, actions, settings=settings, **options)
    spans = sorted(tuple(map(float, path.read_text().split())) for path in (folder / "counts").iterdir())
    assert all(one[1] <= two[0] for one, two in pairwise(spans))


def test_nodes_run_at_the_same_time_when_they_fit(folder):
    run(folder, dict.fromkeys((f"{name} load" for name in BOTH), "sleep 0.6"))
    one, two = (tuple(map(float, path.read_text().split())) for path in sorted((folder / "counts").glob("*.load")))
    assert max(one[0], two[0]) < min(one[1], two[1])


def test_node_larger_than_the_machine_is_tried(folder):
    outcome, _, _ = run(folder, settings={"mem_gb": 1}, mem_gb=100, n_procs=64)
    assert outcome.failures == ()


def test_threads_of_a_node(folder):
    actions = {"sub-01 load": f"threads {folder / 'seen'}"}
    outcome, _, _ = run(folder, actions, settings={"omp_nthreads": 2}, n_procs=1)
    assert outcome.failures == ()
    assert (folder / "seen").read_text() == "1 1 1 1"


def test_deleted_intermediate_file_is_made_again(folder):
    _, _, execution = run(folder)
    (gone,) = execution.work_dir.glob("*/qsmflow_wf/acq_sub_01/field/sum.txt")
    gone.unlink()
    outcome, lines, _ = run(folder)
    assert outcome.failures == ()
    assert "acq_sub_01.field" in lines[0]
    assert gone.read_text() == "2"
    assert executions(folder) == {name: 2 if name == "acq_sub_01.field" else 1 for name in executions(folder)}


# --- a run as a program of its own, ended from outside ---------------------------------------------------------------------


def start_toy(folder, *slow):
    mark = uuid.uuid4().hex
    command = [sys.executable, TOY, folder, *slow]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    # What runs in the background of a script is born deaf to Ctrl-C, and so are its children.
    options["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env={**os.environ, "TOY_MARK": mark}, **options), mark


def living(mark):
    """Processes of a toy run that are alive (a zombie shows no environment)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if f"TOY_MARK={mark}".encode() in content:
            found.append(int(path.parent.name))
    return found


def wait_until(condition, seconds=20.0):
    until = time.time() + seconds
    while not condition():
        assert time.time() < until, "it did not happen"
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_run_leaves_nobody_and_resumes(folder, number):
    process, mark = start_toy(folder, "sub-02", "field")
    work = folder / "work"
    wait_until(lambda: list(work.glob("*/qsmflow_wf/acq_sub_02/field/*_unfinished.json")))
    wait_until(lambda: list(work.glob("*/qsmflow_wf/acq_sub_01/inversion/_0x" + "?" * 32 + ".json")))
    assert len(living(mark)) >= 3  # the run, the fork server, the slow node
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # Ctrl-C goes to the group
    process.communicate(timeout=20)
    assert process.returncode != 0
    wait_until(lambda: not living(mark), 5)

    process, mark = start_toy(folder)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert len(re.findall(r"^\d/6 .*earlier run\)$", output, re.M)) == 4
    execution = make_execution(folder)
    assert (result(execution, "sub-01"), result(execution, "sub-02")) == (3, 6)
    assert set(executions(folder).values()) == {1}
    assert not living(mark)


# --- plugins of Nipype -----------------------------------------------------------------------------------------------------


def plugin_file(folder, text):
    path = folder / "plugin.yml"
    path.write_text(text)
    return path


def test_linear_plugin_of_nipype(folder):
    settings = {"plugin_file": plugin_file(folder, "plugin: Linear")}
    outcome, lines, execution = run(folder, {"sub-01 field": "raise no such echo"}, settings=settings)
    (failure,) = outcome.failures
    assert (failure.stage, failure.reason) == ("field (tv)", "ValueError: no such echo")
    assert "no such echo" in failure.crash_file.read_text()
    assert outcome.unfinished == {"sub-01"}
    assert result(execution, "sub-02_ses-a") == 6
    assert len(lines) == 5


def test_multiproc_is_replaced_and_its_limits_kept(folder):
    path = plugin_file(folder, "plugin: MultiProc\nplugin_args: {n_procs: 3, memory_gb: 7, raise_insufficient: false}")
    plugin = load_plugin(path, {"observer": None, "crash_dir": folder}, {"n_procs": 1, "memory_gb": None, "omp_nthreads": 1})
    assert (type(plugin).__name__, plugin.procs, plugin.memory_gb) == ("NodeProcessPlugin", 3, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plugin: SLURMGrap", "did you mean 'SLURMGraph'"),
        ("plugin: SGEGraph", "use SGE"),
        ("plugins: SLURM", "must say 'plugin: NAME'"),
        ("plugin: SLURM\nplugin_arg: {}", "did you mean 'plugin_args'"),
        ("plugin: [", "not valid YAML"),
    ],
)
def test_unusable_plugin_file(folder, text, message):
    with pytest.raises(UsageError, match=message.replace("(", "\\(")):
        load_plugin(plugin_file(folder, text), {"observer": None, "crash_dir": folder}, {"omp_nthreads": 1})
