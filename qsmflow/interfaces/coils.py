"""Phase offsets of the receive coils."""

from __future__ import annotations

from nipype.interfaces.base import File, TraitedSpec, traits

from qsmflow import registry
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _RemoveOffsetInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("offset"), mandatory=True, desc="method of offset removal")
    phase = File(exists=True, mandatory=True, desc="wrapped phase of all echoes, rad (X, Y, Z, E)")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")
    mask = File(exists=True, mandatory=True, desc="where the phase is used (X, Y, Z)")
    echo_times = traits.List(traits.Float, mandatory=True, desc="echo times, s")


class _RemoveOffsetOutputSpec(TraitedSpec):
    phase = File(exists=True, desc="wrapped phase without offset, rad (X, Y, Z, E)")
    offset = File(exists=True, desc="the offset, rad (X, Y, Z)")


class RemoveOffset(StageInterface):
    """Remove the part of the phase that does not depend on the echo time."""

    stage = "offset"
    input_spec = _RemoveOffsetInputSpec
    output_spec = _RemoveOffsetOutputSpec
