"""Dipole inversion."""

from __future__ import annotations

from nipype.interfaces.base import File, TraitedSpec, traits

from qsmflow import registry
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _InvertFieldInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("inversion"), mandatory=True, desc="method of inversion")
    local_field = File(exists=True, desc="local field, ppm (X, Y, Z)")
    total_field = File(exists=True, desc="total field, ppm (X, Y, Z), for methods that start from it")
    mask = File(exists=True, mandatory=True, desc="where the field is valid (X, Y, Z)")
    field_error = File(exists=True, desc="standard deviation of the field, ppm (X, Y, Z)")
    magnitude = File(exists=True, desc="magnitude of all echoes (X, Y, Z, E)")
    r2star = File(exists=True, desc="R2*, 1/s (X, Y, Z)")
    chi_prior = File(exists=True, desc="expected susceptibility, ppm (X, Y, Z)")
    b0 = traits.Float(desc="main field strength, T")
    echo_times = traits.List(traits.Float, desc="echo times, s")


class _InvertFieldOutputSpec(TraitedSpec):
    chi = File(exists=True, desc="susceptibility, ppm (X, Y, Z)")


class InvertField(StageInterface):
    """Compute the susceptibility from the local field or, in a single step, from the total field."""

    stage = "inversion"
    input_spec = _InvertFieldInputSpec
    output_spec = _InvertFieldOutputSpec
