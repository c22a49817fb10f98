"""Combination of several orientations of one head."""

from __future__ import annotations

import math
from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from qsmflow.algorithms import metrics
from qsmflow.algorithms.multiorientation import conditioning, cosmos, unexplained
from qsmflow.interfaces import images
from qsmflow.reports import quality


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
    measured = traits.Dict(desc="orientations, their conditioning and the quality of the map, for the sidecar")


class CombineOrientations(SimpleInterface):
    """Compute one susceptibility map from the local fields of several orientations (COSMOS), and how far it can be trusted."""

    input_spec = _CombineOrientationsInputSpec
    output_spec = _CombineOrientationsOutputSpec

    def _run_interface(self, runtime):
        inputs, folder = self.inputs, Path(runtime.cwd)
        grid = images.read_grid(inputs.local_fields[0])
        found = conditioning(inputs.directions)
        fields = [images.read(path) for path in inputs.local_fields]
        masks = [images.read(path, bool) for path in inputs.masks]
        errors = [images.read(path) for path in inputs.field_errors]
        chi, mask = cosmos(fields, masks, inputs.directions, errors, voxel_size=grid.voxel_size)
        self._results["chi"] = images.write(folder / "chi.nii", chi, grid)
        self._results["mask"] = images.write(folder / "mask.nii", mask, grid)
        shares = unexplained(chi, mask, fields, masks, inputs.directions, voxel_size=grid.voxel_size)
        values = {
            "cosmos_fit": math.sqrt(sum(share**2 for share in shares) / len(shares)),
            "brain_sd": metrics.reference(chi, mask, mask)[1],
            "rim_chi": metrics.rim_energy(chi, mask, voxel_size=grid.voxel_size),
        }
        self._results["measured"] = {
            "Orientations": self._positions(shares),
            "SmallestCombinedKernel": round(found.minimum, 4),
            "ConditionNumber": round(found.condition, 2) if math.isfinite(found.condition) else "infinite",
            "PoorlyConditioned": found.poor,
            "Quality": quality.rounded(values),
        }
        return runtime

    def _positions(self, shares: list[float]) -> list[dict[str, object]]:
        """What the sidecar tells of every orientation, given the part of its field that the map does not explain."""
        inputs = self.inputs
        positions = [
            {
                "Name": name,
                "B0Direction": [round(b, 5) for b in direction],
                "TiltDegrees": round(_angle(inputs.directions[0], direction), 2),
                "UnexplainedField": round(share, 4) if math.isfinite(share) else None,
            }
            for name, direction, share in zip(inputs.names, inputs.directions, shares, strict=True)
        ]
        if isdefined(inputs.similarities):
            for position, similarity in zip(positions[1:], inputs.similarities, strict=True):
                position["RegistrationSimilarity"] = round(similarity, 4)
        return positions


def _angle(a: list[float], b: list[float]) -> float:
    """Angle between two axes, degrees."""
    return math.degrees(math.acos(min(1.0, abs(sum(x * y for x, y in zip(a, b, strict=True))))))
