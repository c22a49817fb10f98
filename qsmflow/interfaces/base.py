"""What all stage interfaces share: read the arrays a method asks for, call it through the table, write what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, isdefined, traits

from qsmflow import registry
from qsmflow.interfaces import images

_BOOLEAN = ("mask", "region")


class StageInputSpec(BaseInterfaceInputSpec):
    """Inputs of every stage interface; ``version`` is there for the cache, which hashes inputs and not code."""

    parameters = traits.Dict(traits.Str, traits.Any, mandatory=True, desc="parameters of the method, defaults merged")
    version = traits.Int(mandatory=True, desc="version of the method's numbers")


class StageInterface(SimpleInterface):
    """A stage whose methods are found in the registry.

    Inputs named like the stage's arrays are image files, ``b0`` and ``echo_times`` are context; voxel size and field direction
    come from the header of the first image that is read. Outputs named like the stage's results are image files in the working
    directory, or numbers.
    """

    stage: str

    def _run_interface(self, runtime):
        row = registry.find(self.stage, self.inputs.algorithm)
        files = {name: getattr(self.inputs, name) for name in row.arrays if isdefined(getattr(self.inputs, name))}
        arrays = self._arrays(files)
        grid = images.read_grid(next(iter(files.values())))
        results = registry.apply(
            self.stage, row.name, arrays=arrays, context=self._context(grid), parameters=self.inputs.parameters
        )
        for name, value in results.items():
            if isinstance(value, np.ndarray):
                value = images.write(Path(runtime.cwd) / f"{name}.nii", value, grid)
            self._results[name] = value
        return runtime

    def _arrays(self, files: Mapping[str, str]) -> dict[str, np.ndarray]:
        """What the files of the method's arrays hold."""
        return {name: images.read(path, bool if name in _BOOLEAN else np.float32) for name, path in files.items()}

    def _context(self, grid: images.Grid) -> dict[str, object]:
        context = {"voxel_size": grid.voxel_size, "b0_dir": grid.b0_dir}
        for name in ("b0", "echo_times"):
            value = self.inputs.trait_get().get(name)
            if value is not None and isdefined(value):
                context[name] = value
        return context
