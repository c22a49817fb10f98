"""Registration with ANTs: one thread and one seed, so that the same images always give the same transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from qsmflow.interfaces import images

_SEED = 1
#: Voxel size at which a head is aligned with the template's for brain extraction, mm.
_COARSE = 2.0


class _BrainPriorInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="whole head (the first volume of a 4D file)")
    template = File(exists=True, mandatory=True, desc="whole-head template")
    template_mask = File(exists=True, mandatory=True, desc="brain mask of the template")


class _BrainPriorOutputSpec(TraitedSpec):
    prior = File(exists=True, desc="the template's brain mask in the space of the image, 0 to 1")
    mask = File(exists=True, desc="where it is at least 0.5")


class BrainPrior(SimpleInterface):
    """Find the brain by an affine registration of the head to a template."""

    input_spec = _BrainPriorInputSpec
    output_spec = _BrainPriorOutputSpec

    def _run_interface(self, runtime):
        ants, folder = _ants(), Path(runtime.cwd)
        grid = images.read_grid(self.inputs.in_file)
        head = _image(_first(self.inputs.in_file), grid)
        coarse = ants.resample_image(head, [max(_COARSE, h) for h in grid.voxel_size])
        found = ants.registration(
            _read(self.inputs.template), coarse, type_of_transform="Affine", outprefix=str(folder / "affine_")
        )
        mask = ants.apply_transforms(
            head, _read(self.inputs.template_mask), found["fwdtransforms"], whichtoinvert=[True], interpolator="linear"
        )
        prior = mask.numpy()
        self._results["prior"] = images.write(folder / "prior.nii", prior, grid)
        self._results["mask"] = images.write(folder / "mask.nii", prior >= 0.5, grid)
        return runtime


class _RegisterInputSpec(BaseInterfaceInputSpec):
    moving = File(exists=True, mandatory=True, desc="image to be moved (the first volume of a 4D file)")
    moving_mask = File(exists=True, mandatory=True, desc="its brain")
    fixed = File(exists=True, mandatory=True, desc="image to be matched")
    fixed_mask = File(exists=True, desc="its brain (none: the image is a brain already)")
    kind = traits.Enum("Rigid", "SyN", mandatory=True, desc="transform: six parameters, or affine and symmetric diffeomorphism")


class _RegisterOutputSpec(TraitedSpec):
    forward = traits.List(File(exists=True), desc="transforms that bring the moving image to the fixed one")
    forward_flags = traits.List(traits.Bool, desc="which of ``forward`` are to be inverted: none")
    inverse = traits.List(File(exists=True), desc="transforms that bring the fixed image to the moving one")
    inverse_flags = traits.List(traits.Bool, desc="which of ``inverse`` are affine matrices to be inverted")
    similarity = traits.Float(desc="mutual information of the two in the fixed brain (higher is better)")


class Register(SimpleInterface):
    """Register one brain to another with mutual information."""

    input_spec = _RegisterInputSpec
    output_spec = _RegisterOutputSpec

    def _run_interface(self, runtime):
        ants = _ants()
        moving = _brain(self.inputs.moving, self.inputs.moving_mask)
        fixed = _brain(self.inputs.fixed, self.inputs.fixed_mask if isdefined(self.inputs.fixed_mask) else None)
        found = ants.registration(
            fixed, moving, type_of_transform=self.inputs.kind, outprefix=str(Path(runtime.cwd) / "transform_")
        )
        self._results["forward"] = found["fwdtransforms"]
        self._results["forward_flags"] = [False] * len(found["fwdtransforms"])
        self._results["inverse"] = found["invtransforms"]
        self._results["inverse_flags"] = [path.endswith(".mat") for path in found["invtransforms"]]
        warped = found["warpedmovout"]
        self._results["similarity"] = -float(ants.image_similarity(fixed, warped, "MattesMutualInformation"))
        return runtime


class _WarpInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="image to be resampled")
    reference = File(exists=True, mandatory=True, desc="image with the wanted grid")
    transforms = traits.List(File(exists=True), mandatory=True, desc="as ANTs takes them: the last is applied first")
    flags = traits.List(traits.Bool, mandatory=True, desc="which transforms are to be inverted")
    labels = traits.Bool(mandatory=True, desc="whether the image holds labels (kept whole) or values (interpolated linearly)")


class _WarpOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the resampled image")


class Warp(SimpleInterface):
    """Resample an image once through a chain of transforms."""

    input_spec = _WarpInputSpec
    output_spec = _WarpOutputSpec

    def _run_interface(self, runtime):
        ants = _ants()
        grid = images.read_grid(self.inputs.reference)
        warped = ants.apply_transforms(
            _image(np.zeros(grid.shape, np.float32), grid),
            _read(self.inputs.in_file),
            self.inputs.transforms,
            whichtoinvert=self.inputs.flags,
            interpolator="genericLabel" if self.inputs.labels else "linear",
        ).numpy()
        warped = np.rint(warped).astype(np.int32) if self.inputs.labels else warped
        self._results["out_file"] = images.write(Path(runtime.cwd) / "warped.nii", warped, grid)
        return runtime


def _ants():
    """ANTs, imported only where it is used (it takes seconds), set to be repeatable."""
    import ants

    ants.config.set_ants_deterministic(on=True, seed_value=_SEED)
    return ants


def _first(path: str) -> np.ndarray:
    data = images.read(path)
    return data[..., 0] if data.ndim == 4 else data


def _image(data: np.ndarray, grid: images.Grid):
    """An ANTs image: NIfTI's axes to the right and anterior become ITK's to the left and posterior."""
    flip = np.diag([-1.0, -1.0, 1.0])
    return _ants().from_numpy(
        data,
        origin=(flip @ grid.affine[:3, 3]).tolist(),
        spacing=list(grid.voxel_size),
        direction=flip @ grid.affine[:3, :3] / grid.voxel_size,
    )


def _read(path: str):
    return _image(_first(path), images.read_grid(path))


def _brain(path: str, mask: str | None):
    data, grid = _first(path), images.read_grid(path)
    if mask is not None:
        data = data * images.read(mask, bool)
    return _image(data, grid)
