"""Two passes of background removal and inversion: the mask of the first, and the merging of both."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from qsmflow.algorithms import passes
from qsmflow.interfaces import images


class _FindReliableInputSpec(BaseInterfaceInputSpec):
    mask = File(exists=True, mandatory=True, desc="the mask, its holes filled (X, Y, Z)")
    quality = File(exists=True, mandatory=True, desc="ROMEO quality, 0 to 1 (X, Y, Z)")
    threshold = traits.Float(mandatory=True, desc="lowest quality that is kept")


class _FindReliableOutputSpec(TraitedSpec):
    mask = File(exists=True, desc="voxels of reliable phase (X, Y, Z)")


class FindReliable(SimpleInterface):
    """Find the part of a mask whose phase can be trusted."""

    input_spec = _FindReliableInputSpec
    output_spec = _FindReliableOutputSpec

    def _run_interface(self, runtime):
        mask, quality = images.read(self.inputs.mask, bool), images.read(self.inputs.quality)
        kept = passes.reliable(mask, quality, threshold=self.inputs.threshold)
        self._results["mask"] = images.write(Path(runtime.cwd) / "mask.nii", kept, images.read_grid(self.inputs.mask))
        return runtime


class _MergePassesInputSpec(BaseInterfaceInputSpec):
    first = File(exists=True, mandatory=True, desc="susceptibility from the reliable voxels, ppm (X, Y, Z)")
    first_mask = File(exists=True, mandatory=True, desc="where it is known (X, Y, Z)")
    second = File(exists=True, mandatory=True, desc="susceptibility from the whole mask, ppm (X, Y, Z)")
    second_mask = File(exists=True, mandatory=True, desc="where it is known (X, Y, Z)")


class _MergePassesOutputSpec(TraitedSpec):
    chi = File(exists=True, desc="susceptibility, ppm (X, Y, Z)")
    mask = File(exists=True, desc="where it is known (X, Y, Z)")
    measured = traits.Dict(desc="share of the second pass and its shift, for the sidecar")
    notices = traits.List(traits.Str, desc="what a user should know")


class MergePasses(SimpleInterface):
    """Take the first pass where it is known, else the second."""

    input_spec = _MergePassesInputSpec
    output_spec = _MergePassesOutputSpec

    def _run_interface(self, runtime):
        inputs, folder = self.inputs, Path(runtime.cwd)
        grid, first_mask = images.read_grid(inputs.first), images.read(inputs.first_mask, bool)
        chi, mask, offset = passes.merge(
            images.read(inputs.first), first_mask, images.read(inputs.second), images.read(inputs.second_mask, bool)
        )
        share = 1 - float(first_mask.sum() / mask.sum())
        self._results["chi"] = images.write(folder / "chi.nii", chi, grid)
        self._results["mask"] = images.write(folder / "mask.nii", mask, grid)
        self._results["measured"] = {"SecondPassShare": round(share, 4), "SecondPassShift": round(offset, 5)}
        self._results["notices"] = [
            f"two passes: {share:.1%} of the susceptibility is from the second, shifted by {offset:+.4f} ppm"
        ]
        return runtime
