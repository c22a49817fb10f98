"""The interface of the toy workflow (a module of its own, which the processes of nodes can import quickly)."""

import os
import signal
import time
from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, InputMultiPath, SimpleInterface, TraitedSpec, traits


class StepInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiPath(File(exists=True), desc="files with one number each")
    value = traits.Int(0, usedefault=True, desc="added to their sum")
    algorithm = traits.Str("tv", usedefault=True, desc="shown in progress lines")
    action = traits.Str("", usedefault=True, nohash=True, desc="what else happens")
    counts = traits.Str("", usedefault=True, nohash=True, desc="folder of a file per node, with a line per execution")


class StepOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the sum")


class Step(SimpleInterface):
    """Sum of the inputs plus a value."""

    input_spec, output_spec = StepInputSpec, StepOutputSpec

    def _run_interface(self, runtime):
        start = time.time()
        action, _, argument = self.inputs.action.partition(" ")
        print(f"{action or 'nothing'} asked for")
        if action == "sleep":
            time.sleep(float(argument))
        elif action == "kill":
            os.kill(os.getpid(), signal.Signals[argument])
        elif action == "raise":
            raise ValueError(argument)
        elif action == "threads":
            _write_threads(Path(argument))
        total = sum(int(Path(path).read_text()) for path in self.inputs.in_files or ())
        out = Path(runtime.cwd, "sum.txt")
        out.write_text(str(total + self.inputs.value))
        if self.inputs.counts:
            parts = Path(runtime.cwd).parts[-2:]
            with Path(self.inputs.counts, ".".join(parts)).open("a") as file:
                file.write(f"{start} {time.time()}\n")
        self._results["out_file"] = str(out)
        return runtime


def _write_threads(path):
    import numba
    import scipy.fft

    seen = (scipy.fft.get_workers(), numba.get_num_threads(), os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"])
    path.write_text(" ".join(map(str, (*seen, os.environ["OPENBLAS_NUM_THREADS"]))))
