"""Relaxometry."""

from __future__ import annotations

from nipype.interfaces.base import File, TraitedSpec, traits

from qsmflow import registry
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _MapRelaxationInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("relaxometry"), mandatory=True, desc="method of relaxometry")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")
    phase = File(exists=True, desc="wrapped phase of all echoes, for methods that use it, rad (X, Y, Z, E)")
    mask = File(exists=True, mandatory=True, desc="where the maps are wanted (X, Y, Z)")
    echo_times = traits.List(traits.Float, mandatory=True, desc="echo times, s")


class _MapRelaxationOutputSpec(TraitedSpec):
    r2star = File(exists=True, desc="R2*, 1/s (X, Y, Z)")
    t2star = File(exists=True, desc="T2*, s (X, Y, Z)")
    s0 = File(exists=True, desc="signal at echo time 0, unit of the magnitude (X, Y, Z)")


class MapRelaxation(StageInterface):
    """Map R2*, T2* and S0 from the decay over the echoes."""

    stage = "relaxometry"
    input_spec = _MapRelaxationInputSpec
    output_spec = _MapRelaxationOutputSpec
