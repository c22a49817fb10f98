"""Around a run: work folders, locks, caches with holes, reasons and remedies."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qsmflow.config import Execution, Recipe
from qsmflow.errors import QsmflowError
from qsmflow.workflows import running
from qsmflow.workflows.failures import Failure, acquisition_workflow_name, last_line


@pytest.fixture
def execution(tmp_path):
    return Execution(bids_dir=tmp_path / "bids", output_dir=tmp_path / "out", work_dir=tmp_path / "work")


def test_work_folder_belongs_to_input_and_output(execution, tmp_path):
    folder = running.work_folder(execution)
    assert folder.parent == tmp_path / "work"
    assert folder == running.work_folder(replace(execution, nprocs=4))
    assert folder != running.work_folder(replace(execution, output_dir=tmp_path / "out2"))
    assert folder != running.work_folder(replace(execution, bids_dir=tmp_path / "bids2"))


def test_acquisition_names_come_back_from_the_graph():
    class Node:
        fullname = f"qsmflow_wf.{acquisition_workflow_name('sub-01_ses-a_acq-x_run-1')}.inversion_wf.inversion"

    assert running.acquisition_of(Node) == "sub-01_ses-a_acq-x_run-1"
    Node.fullname = "qsmflow_wf.t1w_sub_01_T1w.register"
    assert running.acquisition_of(Node) == ""


def test_modules_of_a_recipe():
    modules = running.preload_modules(Recipe(inversion="tkd", background="vsharp"))
    needed = {"qsmflow.algorithms.inversion.direct", "qsmflow.algorithms.background.vsharp", "qsmflow.workflows.base"}
    assert needed <= set(modules)
    assert "qsmflow.algorithms.inversion.tv" not in modules


def test_two_runs_of_one_acquisition_do_not_meet(tmp_path):
    """Another process is refused the same acquisition, and gets another one; when the first ends, nothing is locked."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom qsmflow.workflows.running import _lock\n"
        f"with _lock(Path({str(tmp_path)!r}), sys.argv[1:]):\n    print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, "sub-01", "sub-02"], **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(QsmflowError, match="sub-02 is being processed by another qsmflow"),
            running._lock(tmp_path, ["sub-02"]),
        ):
            pass
        with running._lock(tmp_path, ["sub-03"]):
            pass
        other.kill()
    with running._lock(tmp_path, ["sub-01", "sub-02"]):
        pass


def test_paths_in_outputs_are_found_at_any_depth():
    value = {"a": ["/x/1", ("/x/2", None)], "b": 3, "c": "word", "d": {"e": "/x/3"}}
    assert list(running._paths(value)) == ["/x/1", "/x/2", "/x/3"]


def test_torn_result_is_not_whole(tmp_path):
    (tmp_path / "result_x.pklz").write_bytes(b"\x1f\x8b torn")
    assert not running._is_whole(tmp_path / "result_x.pklz")


def test_sigterm_stops_like_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), running.stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("killed by signal 9 (SIGKILL; out of memory?)", "more memory"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch.", "more memory"),
        ("MemoryError", "more memory"),
        ("killed by signal 11 (SIGSEGV)", "developers"),
        ("OSError: [Errno 28] No space left on device: 'x'", "disk space"),
        ("PermissionError: [Errno 13] Permission denied: 'x'", "writable"),
        ("ValueError: sizes differ", "read the crash file"),
    ],
)
def test_every_reason_has_a_remedy(reason, remedy):
    failure = Failure("sub-01", "inversion (tv)", "qsmflow_wf.x", reason, Path("logs/crash_x.txt"))
    assert remedy in failure.remedy
    assert str(failure).splitlines()[0] == f"sub-01 inversion (tv): {reason}"


def test_last_line_of_a_chained_and_indented_traceback():
    text = """Traceback (most recent call last):
  File "nodes.py", line 1, in run
nipype.pipeline.engine.nodes.NodeExecutionError: Exception raised while executing Node x.

Traceback:
\tTraceback (most recent call last):
\t  File "x.py", line 3
\tqsmflow.errors.UsageError: no region 'thalamos'

"""
    assert last_line(text) == "UsageError: no region 'thalamos'"
    assert last_line("") == "no reason given"
