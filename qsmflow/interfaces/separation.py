"""Separation of paramagnetic and diamagnetic sources."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, traits

from qsmflow import registry
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _SeparateSourcesInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("separation"), mandatory=True, desc="method of separation")
    chi = File(exists=True, mandatory=True, desc="susceptibility, ppm (X, Y, Z)")
    mask = File(exists=True, mandatory=True, desc="where it is known (X, Y, Z)")
    local_field = File(exists=True, desc="local field, ppm (X, Y, Z)")
    field_error = File(exists=True, desc="its standard deviation, ppm (X, Y, Z)")
    r2star = File(exists=True, desc="R2*, 1/s (X, Y, Z)")
    r2 = File(exists=True, desc="R2, 1/s (X, Y, Z); none: not measured")
    b0 = traits.Float(mandatory=True, desc="main field strength, T")


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
        return {"r2": np.zeros(arrays["chi"].shape, np.float32)} | arrays  # 0: not measured
