"""Background field removal."""

from __future__ import annotations

from nipype.interfaces.base import File, TraitedSpec, traits

from qsmflow import registry
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _RemoveBackgroundInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("background"), mandatory=True, desc="method of background removal")
    total_field = File(exists=True, mandatory=True, desc="total field, ppm (X, Y, Z)")
    mask = File(exists=True, mandatory=True, desc="where the total field is known (X, Y, Z)")
    field_error = File(exists=True, desc="standard deviation of the total field, ppm (X, Y, Z)")


class _RemoveBackgroundOutputSpec(TraitedSpec):
    local_field = File(exists=True, desc="local field, ppm (X, Y, Z)")
    mask = File(exists=True, desc="where the local field is valid (X, Y, Z)")


class RemoveBackground(StageInterface):
    """Remove the field of sources outside the mask."""

    stage = "background"
    input_spec = _RemoveBackgroundInputSpec
    output_spec = _RemoveBackgroundOutputSpec
