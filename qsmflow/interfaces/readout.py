"""Differences between odd and even echoes."""

from __future__ import annotations

from nipype.interfaces.base import File, TraitedSpec, traits

from qsmflow import registry
from qsmflow.interfaces import images
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _CorrectReadoutInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("readout"), mandatory=True, desc="method of readout correction")
    phase = File(exists=True, mandatory=True, desc="wrapped phase of all echoes, rad (X, Y, Z, E)")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")
    mask = File(exists=True, mandatory=True, desc="where the phase is used (X, Y, Z)")
    echo_times = traits.List(traits.Float, mandatory=True, desc="echo times, s")


class _CorrectReadoutOutputSpec(TraitedSpec):
    phase = File(exists=True, desc="wrapped phase as if all echoes were read out in one direction, rad (X, Y, Z, E)")
    asymmetry = File(exists=True, desc="what was taken from the even echoes, rad (X, Y, Z)")
    asymmetry_size = traits.Float(desc="root mean square of the difference that was found, rad")
    echo_polarity = traits.Enum("", "bipolar", desc="where it shows")
    notices = traits.List(traits.Str, desc="what was found and done, in words")


class CorrectReadout(StageInterface):
    """Find out whether odd and even echoes differ as in a bipolar readout, and correct it."""

    stage = "readout"
    input_spec = _CorrectReadoutInputSpec
    output_spec = _CorrectReadoutOutputSpec

    def _run_interface(self, runtime):
        runtime = super()._run_interface(runtime)
        size = self._results["asymmetry_size"]
        corrected = images.read(self._results["asymmetry"]).any()
        self._results["echo_polarity"] = "bipolar" if corrected else ""
        done = "corrected (bipolar readout)" if corrected else "not corrected, because it is below the threshold"
        self._results["notices"] = [f"the phase of odd and even echoes differs by {size:.3f} rad (root mean square): {done}"]
        return runtime
