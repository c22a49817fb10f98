"""The magnitude of all echoes in one image."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec

from qsmflow.algorithms.swi.magnitude import root_sum_of_squares
from qsmflow.interfaces import images


class _CombineMagnitudeInputSpec(BaseInterfaceInputSpec):
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")


class _CombineMagnitudeOutputSpec(TraitedSpec):
    combined = File(exists=True, desc="root of the sum of squares (X, Y, Z)")


class CombineMagnitude(SimpleInterface):
    """Combine the magnitudes by the root of their sum of squares."""

    input_spec = _CombineMagnitudeInputSpec
    output_spec = _CombineMagnitudeOutputSpec

    def _run_interface(self, runtime):
        magnitude = images.read(self.inputs.magnitude)
        combined = root_sum_of_squares(magnitude)
        path = Path(runtime.cwd) / "combined.nii"
        self._results["combined"] = images.write(path, combined, images.read_grid(self.inputs.magnitude))
        return runtime
