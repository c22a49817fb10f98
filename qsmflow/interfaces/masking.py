"""Masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from qsmflow import registry
from qsmflow.algorithms import masking
from qsmflow.expression import parse
from qsmflow.interfaces import images

#: A human brain has at least this volume; smaller masks of a whole head are reported, ml.
_SMALL = 500.0


class _MakeMaskInputSpec(BaseInterfaceInputSpec):
    methods = traits.List(
        traits.Tuple(traits.Enum(*registry.names("mask")), traits.Dict(traits.Str, traits.Any), traits.Int),
        mandatory=True,
        desc="(method, parameters, version) of every mask that the expression names",
    )
    expression = traits.Str(mandatory=True, desc="how the masks are combined, such as '(template | robust) & quality'")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")
    quality = File(exists=True, desc="ROMEO quality, 0 to 1 (X, Y, Z)")
    prior = File(exists=True, desc="brain mask of the template in this space, 0 to 1 (X, Y, Z)")


class _MaskOutputSpec(TraitedSpec):
    mask = File(exists=True, desc="the mask (X, Y, Z)")
    brain = File(exists=True, desc="the same before voxels of unreliable phase were taken out (X, Y, Z)")
    notices = traits.List(traits.Str, desc="what a user should know")


class MakeMask(SimpleInterface):
    """Combine the masks of one or several methods."""

    input_spec = _MakeMaskInputSpec
    output_spec = _MaskOutputSpec

    def _run_interface(self, runtime):
        grid = images.read_grid(self.inputs.magnitude)
        names = ("magnitude", "quality", "prior")
        arrays = {n: images.read(getattr(self.inputs, n)) for n in names if isdefined(getattr(self.inputs, n))}
        context = {"voxel_size": grid.voxel_size}
        masks = {
            name: registry.apply("mask", name, arrays=arrays, context=context, parameters=parameters)["mask"]
            for name, parameters, _ in self.inputs.methods
        }
        tissue = arrays["magnitude"][..., 0] > 0
        expression = parse(self.inputs.expression)
        mask = masking.combine([expression.evaluate(masks), tissue], **context)
        anatomical = expression.without("quality")
        brain = masking.combine([anatomical.evaluate(masks), tissue], **context) if anatomical else mask
        if not mask.any():
            raise ValueError(f"{expression}: the mask is empty; give one with --mask, or name another method")
        self._results |= _described(mask, brain, grid, Path(runtime.cwd), [])
        return runtime


class _CheckMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="ready-made mask, on the grid of the images")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")


class CheckMask(SimpleInterface):
    """Take a user's mask: same grid, not empty, and over tissue."""

    input_spec = _CheckMaskInputSpec
    output_spec = _MaskOutputSpec

    def _run_interface(self, runtime):
        grid, own = images.read_grid(self.inputs.magnitude), images.read_grid(self.inputs.in_file)
        if not own.matches(grid):
            raise ValueError(
                f"{self.inputs.in_file}: shape {own.shape} or affine differs from those of the images ({grid.shape});"
                " resample the mask to the gradient-echo images"
            )
        mask = images.read(self.inputs.in_file, bool)
        if not mask.any():
            raise ValueError(f"{self.inputs.in_file}: the mask is empty")
        first = images.read(self.inputs.magnitude)[..., 0]
        overlap = (first[mask] > 0.5 * masking.otsu(first)).mean() if np.ptp(first) else 1.0
        notices = [f"the mask was given: {Path(self.inputs.in_file).name}"]
        if overlap < 0.8:
            notices.append(f"only {overlap:.0%} of the given mask lies on tissue; check that it belongs to these images")
        self._results |= _described(mask, mask, grid, Path(runtime.cwd), notices)
        return runtime


def _described(mask: np.ndarray, brain: np.ndarray, grid: images.Grid, folder: Path, notices: list[str]) -> dict[str, object]:
    """The outputs of a masking node; a small mask in a field of view that holds a whole head is told."""
    volume = float(mask.sum() * np.prod(grid.voxel_size) / 1000)
    head = np.prod(np.multiply(grid.shape, grid.voxel_size)) / 1000 > 4 * _SMALL
    if head and volume < _SMALL:
        notices = [*notices, f"the mask has only {volume:.0f} ml; look at its outline"]
    return {
        "mask": images.write(folder / "mask.nii", mask, grid),
        "brain": images.write(folder / "brain.nii", brain, grid),
        "notices": notices,
    }
