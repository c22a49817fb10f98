"""Referencing."""

from __future__ import annotations

from nipype.interfaces.base import File, TraitedSpec, traits

from qsmflow import registry
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _ReferenceInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("reference"), mandatory=True, desc="choice of the reference")
    chi = File(exists=True, mandatory=True, desc="susceptibility, ppm (X, Y, Z)")
    mask = File(exists=True, mandatory=True, desc="where the susceptibility is known (X, Y, Z)")
    r2star = File(exists=True, desc="R2*, 1/s (X, Y, Z)")
    region = File(exists=True, desc="reference region (X, Y, Z)")


class _ReferenceOutputSpec(TraitedSpec):
    chi = File(exists=True, desc="referenced susceptibility, ppm (X, Y, Z)")
    shift = traits.Float(desc="what was subtracted, ppm")


class Reference(StageInterface):
    """Set the zero of the susceptibility."""

    stage = "reference"
    input_spec = _ReferenceInputSpec
    output_spec = _ReferenceOutputSpec
