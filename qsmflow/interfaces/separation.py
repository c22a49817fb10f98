"""Separation of paramagnetic and diamagnetic sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, InputMultiPath, SimpleInterface, TraitedSpec, traits

from qsmflow import registry
from qsmflow.algorithms.units import rad_to_ppm
from qsmflow.interfaces import images
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _SeparateSourcesInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("separation"), mandatory=True, desc="method of separation")
    chi = File(exists=True, desc="susceptibility, ppm (X, Y, Z)")
    chi_echoes = File(exists=True, desc="susceptibility from each echo alone, ppm (X, Y, Z, E)")
    magnitude = File(exists=True, desc="magnitude of all echoes (X, Y, Z, E)")
    mask = File(exists=True, mandatory=True, desc="where it is known (X, Y, Z)")
    local_field = File(exists=True, desc="local field, ppm (X, Y, Z)")
    field_error = File(exists=True, desc="its standard deviation, ppm (X, Y, Z)")
    r2star = File(exists=True, desc="R2*, 1/s (X, Y, Z)")
    r2 = File(exists=True, desc="R2, 1/s (X, Y, Z); none: not measured")
    b0 = traits.Float(mandatory=True, desc="main field strength, T")
    echo_times = traits.List(traits.Float, mandatory=True, desc="echo times, s")


class _SeparateSourcesOutputSpec(TraitedSpec):
    chi_para = File(exists=True, desc="susceptibility of paramagnetic sources, ppm, at least 0 (X, Y, Z)")
    chi_dia = File(exists=True, desc="susceptibility of diamagnetic sources, ppm, at most 0 (X, Y, Z)")
    rate = traits.Float(desc="rate of tissue without sources, median, 1/s")


class SeparateSources(StageInterface):
    """Tell paramagnetic and diamagnetic sources apart."""

    stage = "separation"
    input_spec = _SeparateSourcesInputSpec
    output_spec = _SeparateSourcesOutputSpec

    def _arrays(self, files: Mapping[str, str]) -> dict[str, np.ndarray]:
        arrays = super()._arrays(files)
        return {"r2": np.zeros(arrays["mask"].shape, np.float32)} | arrays  # 0: not measured


class _EchoFieldInputSpec(BaseInterfaceInputSpec):
    unwrapped = File(exists=True, mandatory=True, desc="unwrapped phase of all echoes without offset, rad (X, Y, Z, E)")
    echo = traits.Int(mandatory=True, desc="which echo, from 0")
    echo_time = traits.Float(mandatory=True, desc="its time, s")
    b0 = traits.Float(mandatory=True, desc="main field strength, T")


class _EchoFieldOutputSpec(TraitedSpec):
    total_field = File(exists=True, desc="total field, ppm (X, Y, Z)")


class EchoField(SimpleInterface):
    """The total field that one echo tells."""

    input_spec = _EchoFieldInputSpec
    output_spec = _EchoFieldOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        phase = images.read(inputs.unwrapped, volume=inputs.echo)
        field = rad_to_ppm(phase / np.float32(inputs.echo_time), b0=inputs.b0)
        path = Path(runtime.cwd) / "total_field.nii"
        self._results["total_field"] = images.write(path, field, images.read_grid(inputs.unwrapped))
        return runtime


class _StackEchoesInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiPath(File(exists=True), mandatory=True, desc="one volume per echo (X, Y, Z)")


class _StackEchoesOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="all of them (X, Y, Z, E)")


class StackEchoes(SimpleInterface):
    """Put the volumes of the echoes into one file."""

    input_spec = _StackEchoesInputSpec
    output_spec = _StackEchoesOutputSpec

    def _run_interface(self, runtime):
        volumes = np.stack([images.read(path) for path in self.inputs.in_files], axis=-1)
        grid = images.read_grid(self.inputs.in_files[0])
        self._results["out_file"] = images.write(Path(runtime.cwd) / "echoes.nii", volumes, grid)
        return runtime
