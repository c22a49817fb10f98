"""Susceptibility-weighted imaging."""

from __future__ import annotations

from nipype.interfaces.base import File, TraitedSpec, traits

from qsmflow import registry
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _WeightMagnitudeInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("swi"), mandatory=True, desc="method of weighting")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")
    mask = File(exists=True, mandatory=True, desc="where the images are wanted (X, Y, Z)")
    phase = File(exists=True, desc="wrapped phase of all echoes, rad (X, Y, Z, E)")
    chi = File(exists=True, desc="susceptibility, ppm (X, Y, Z)")
    echo_times = traits.List(traits.Float, mandatory=True, desc="echo times, s")
    b0 = traits.Float(mandatory=True, desc="main field strength, T")


class _WeightMagnitudeOutputSpec(TraitedSpec):
    swi = File(exists=True, desc="weighted magnitude (X, Y, Z)")
    minip = File(exists=True, desc="minimum intensity projection of it (X, Y, Z)")
    phase_mask = File(exists=True, desc="the weight, 0 to 1 (X, Y, Z)")


class WeightMagnitude(StageInterface):
    """Weight the magnitude with phase or susceptibility."""

    stage = "swi"
    input_spec = _WeightMagnitudeInputSpec
    output_spec = _WeightMagnitudeOutputSpec
