"""Combination of several orientations of one head."""

from __future__ import annotations

import math
from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from qsmflow.algorithms.multiorientation import conditioning, cosmos
from qsmflow.interfaces import images


class _CombineOrientationsInputSpec(BaseInterfaceInputSpec):
    local_fields = traits.List(File(exists=True), mandatory=True, desc="local field of each orientation, ppm, on one grid")
    masks = traits.List(File(exists=True), mandatory=True, desc="where each is valid")
    field_errors = traits.List(File(exists=True), mandatory=True, desc="standard deviation of each, ppm")
    directions = traits.List(traits.List(traits.Float), mandatory=True, desc="main field in voxel axes of the grid, for each")
    names = traits.List(traits.Str, mandatory=True, desc="names of the orientations")
    similarities = traits.List(traits.Float, desc="match of each but the first with the first after registration, nat")


class _CombineOrientationsOutputSpec(TraitedSpec):
    chi = File(exists=True, desc="susceptibility, ppm")
    mask = File(exists=True, desc="where it is known")
    measured = traits.Dict(desc="orientations and their conditioning, for the sidecar")


class CombineOrientations(SimpleInterface):
    """Compute one susceptibility map from the local fields of several orientations (COSMOS)."""

    input_spec = _CombineOrientationsInputSpec
    output_spec = _CombineOrientationsOutputSpec

    def _run_interface(self, runtime):
        inputs, folder = self.inputs, Path(runtime.cwd)
        grid = images.read_grid(inputs.local_fields[0])
        found = conditioning(inputs.directions)
        chi, mask = cosmos(
            [images.read(path) for path in inputs.local_fields],
            [images.read(path, bool) for path in inputs.masks],
            inputs.directions,
            [images.read(path) for path in inputs.field_errors],
            voxel_size=grid.voxel_size,
        )
        self._results["chi"] = images.write(folder / "chi.nii", chi, grid)
        self._results["mask"] = images.write(folder / "mask.nii", mask, grid)
        first = inputs.directions[0]
        positions = [
            {"Name": name, "B0Direction": [round(b, 5) for b in direction], "TiltDegrees": round(_angle(first, direction), 2)}
            for name, direction in zip(inputs.names, inputs.directions, strict=True)
        ]
        if isdefined(inputs.similarities):
            for position, similarity in zip(positions[1:], inputs.similarities, strict=True):
                position["RegistrationSimilarity"] = round(similarity, 4)
        self._results["measured"] = {
            "Orientations": positions,
            "SmallestCombinedKernel": round(found.minimum, 4),
            "ConditionNumber": round(found.condition, 2) if math.isfinite(found.condition) else "infinite",
            "PoorlyConditioned": found.poor,
        }
        return runtime


def _angle(a: list[float], b: list[float]) -> float:
    """Angle between two axes, degrees."""
    return math.degrees(math.acos(min(1.0, abs(sum(x * y for x, y in zip(a, b, strict=True))))))
