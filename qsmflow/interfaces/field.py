"""Field mapping, and ready-made field maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from qsmflow import registry
from qsmflow.algorithms.field import spatial_noise
from qsmflow.algorithms.units import hz_per_ppm
from qsmflow.interfaces import images
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _MapFieldInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("field"), mandatory=True, desc="method of field mapping")
    phase = File(exists=True, mandatory=True, desc="unwrapped phase of all echoes, rad (X, Y, Z, E)")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")
    mask = File(exists=True, mandatory=True, desc="where the field is wanted (X, Y, Z)")
    echo_times = traits.List(traits.Float, mandatory=True, desc="echo times, s")
    b0 = traits.Float(mandatory=True, desc="main field strength, T")


class _MapFieldOutputSpec(TraitedSpec):
    total_field = File(exists=True, desc="total field, ppm (X, Y, Z)")
    field_error = File(exists=True, desc="standard deviation of the total field, ppm (X, Y, Z)")
    residual = File(exists=True, desc="what the fit leaves, rad (X, Y, Z)")


class MapField(StageInterface):
    """Combine the echoes to one map of the total field."""

    stage = "field"
    input_spec = _MapFieldInputSpec
    output_spec = _MapFieldOutputSpec


class _TakeFieldInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="field map, Hz (X, Y, Z)")
    like = File(exists=True, mandatory=True, desc="image on the wanted grid")
    mask = File(exists=True, mandatory=True, desc="where the field is wanted (X, Y, Z)")
    b0 = traits.Float(mandatory=True, desc="main field strength, T")


class _TakeFieldOutputSpec(TraitedSpec):
    field = File(exists=True, desc="the field, ppm (X, Y, Z)")
    field_error = File(exists=True, desc="the same error everywhere, ppm (X, Y, Z)")


class TakeField(SimpleInterface):
    """Take a ready-made field map; its error counts as uniform, and is that of its finest structure."""

    input_spec = _TakeFieldInputSpec
    output_spec = _TakeFieldOutputSpec

    def _run_interface(self, runtime):
        path, grid = self.inputs.in_file, images.read_grid(self.inputs.like)
        if not images.read_grid(path).matches(grid):
            raise ValueError(f"{path}: the field map must lie on the grid of the gradient-echo images")
        field = np.nan_to_num(images.read(path), posinf=0, neginf=0) / np.float32(hz_per_ppm(b0=self.inputs.b0))
        self._results["field"] = images.write(Path(runtime.cwd) / "field.nii", field, grid)
        noise = spatial_noise(field, images.read(self.inputs.mask, bool)) or 1.0  # a flat field tells nothing
        error = np.full_like(field, noise)
        self._results["field_error"] = images.write(Path(runtime.cwd) / "field_error.nii", error, grid)
        return runtime
