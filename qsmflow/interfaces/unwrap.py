"""Phase unwrapping, and the reliability of phase."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from qsmflow import registry
from qsmflow.algorithms.unwrap.romeo import quality_map
from qsmflow.interfaces import images
from qsmflow.interfaces.base import StageInputSpec, StageInterface


class _UnwrapPhaseInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("unwrap"), mandatory=True, desc="method of unwrapping")
    phase = File(exists=True, mandatory=True, desc="wrapped phase of all echoes, rad (X, Y, Z, E)")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")
    mask = File(exists=True, mandatory=True, desc="where to unwrap (X, Y, Z)")
    echo_times = traits.List(traits.Float, mandatory=True, desc="echo times, s")


class _UnwrapPhaseOutputSpec(TraitedSpec):
    phase = File(exists=True, desc="unwrapped phase of all echoes, rad (X, Y, Z, E)")


class UnwrapPhase(StageInterface):
    """Unwrap the phase of all echoes."""

    stage = "unwrap"
    input_spec = _UnwrapPhaseInputSpec
    output_spec = _UnwrapPhaseOutputSpec


class _CheckPhaseInputSpec(StageInputSpec):
    algorithm = traits.Enum(*registry.names("check"), mandatory=True, desc="method of checking")
    phase = File(exists=True, mandatory=True, desc="unwrapped phase of all echoes, rad (X, Y, Z, E)")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")
    mask = File(exists=True, mandatory=True, desc="where the phase was unwrapped (X, Y, Z)")
    echo_times = traits.List(traits.Float, mandatory=True, desc="echo times, s")


class _CheckPhaseOutputSpec(TraitedSpec):
    phase = File(exists=True, desc="unwrapped phase of all echoes, rad (X, Y, Z, E)")
    before = traits.Float(desc="score of the phase that was given; passed up to 1")
    after = traits.Float(desc="score of the phase that is returned")
    used = traits.Str(desc="method that replaced the phase")
    notices = traits.List(traits.Str, desc="what a user should know")


class CheckPhase(StageInterface):
    """Check the unwrapped phase, and unwrap it by another method where it fails."""

    stage = "check"
    input_spec = _CheckPhaseInputSpec
    output_spec = _CheckPhaseOutputSpec

    def _run_interface(self, runtime):
        runtime = super()._run_interface(runtime)
        before, after, used = (self._results[name] for name in ("before", "after", "used"))
        notices = []
        if before > 1:
            done = f"it was unwrapped again by {used} (score {after:.2g})" if used else "no other method did better"
            notices = [
                f"the unwrapped phase failed its check (score {before:.2g}, at most 1): {done}; look at the unwrapped phase"
            ]
        self._results["notices"] = notices
        return runtime


class _RatePhaseInputSpec(BaseInterfaceInputSpec):
    phase = File(exists=True, mandatory=True, desc="wrapped phase of all echoes, rad (X, Y, Z, E)")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")
    echo_times = traits.List(traits.Float, mandatory=True, desc="echo times, s")


class _RatePhaseOutputSpec(TraitedSpec):
    quality = File(exists=True, desc="ROMEO quality, 0 to 1 (X, Y, Z)")


class RatePhase(SimpleInterface):
    """Rate how much each voxel's phase can be trusted, over the whole field of view."""

    input_spec = _RatePhaseInputSpec
    output_spec = _RatePhaseOutputSpec

    def _run_interface(self, runtime):
        phase, magnitude = images.read(self.inputs.phase), images.read(self.inputs.magnitude)
        everywhere = np.ones(phase.shape[:3], bool)
        quality = quality_map(phase, magnitude, everywhere, echo_times=self.inputs.echo_times)
        self._results["quality"] = images.write(Path(runtime.cwd) / "quality.nii", quality, images.read_grid(self.inputs.phase))
        return runtime
