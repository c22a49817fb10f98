"""Registration with ANTs: one thread and one seed, so that the same images always give the same transforms."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from qsmflow.algorithms.morphology import dilate
from qsmflow.algorithms.multiorientation import continued
from qsmflow.interfaces import images

_SEED = 1
#: Around the regions of interest that a second, finer stage takes in, mm.
_FOCUS_MARGIN = 15.0

#: How far from the brain's mask a rigid registration still compares, mm.
_RIM = 4.0

#: Voxel size down to which whole heads and brains are matched, mm; finer ones add much time and little precision.
_COARSE = 2.0

#: Linear registration from 6 mm down to ``_COARSE``: iterations, factors and smoothing (voxels) of its levels.
_LINEAR = {"aff_iterations": (2100, 1200, 1200), "aff_shrink_factors": (3, 2, 1), "aff_smoothing_sigmas": (2, 1, 0)}


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
        found = ants.registration(
            _read(self.inputs.template), _coarse(head), type_of_transform="Affine", outprefix=str(folder / "affine_")
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
    focus = File(exists=True, desc="labels on the fixed image: a last stage refines the match around them")
    kind = traits.Enum("Rigid", "SyN", mandatory=True, desc="transform: six parameters, or affine and symmetric diffeomorphism")


class _RegisterOutputSpec(TraitedSpec):
    forward = traits.List(File(exists=True), desc="transforms that bring the moving image to the fixed one")
    forward_flags = traits.List(traits.Bool, desc="which of ``forward`` are to be inverted: none")
    inverse = traits.List(File(exists=True), desc="transforms that bring the fixed image to the moving one")
    inverse_flags = traits.List(traits.Bool, desc="which of ``inverse`` are affine matrices to be inverted")
    similarity = traits.Float(desc="mutual information of the two in the fixed brain (higher is better)")


class Register(SimpleInterface):
    """Register one brain to another with mutual information; around the ``focus``, with local correlation after it."""

    input_spec = _RegisterInputSpec
    output_spec = _RegisterOutputSpec

    def _run_interface(self, runtime):
        ants, folder = _ants(), Path(runtime.cwd)
        moving, fixed, metric_mask = self._images()
        found = _registered(moving, fixed, metric_mask, folder, type_of_transform=self.inputs.kind)
        forward, inverse = found["fwdtransforms"], found["invtransforms"]
        warped = ants.apply_transforms(fixed, moving, forward)
        if isdefined(self.inputs.focus):
            fine = _refine(fixed, warped, self.inputs.focus, folder)
            # ANTs applies the last transform of a list first
            forward, inverse = [fine["fwdtransforms"][0], *forward], [*inverse, fine["invtransforms"][-1]]
        self._results["forward"], self._results["inverse"] = forward, inverse
        self._results["forward_flags"] = [False] * len(forward)
        self._results["inverse_flags"] = [path.endswith(".mat") for path in inverse]
        self._results["similarity"] = -float(ants.image_similarity(fixed, warped, "MattesMutualInformation"))
        return runtime

    def _images(self):
        """The moving and the fixed image, and where to compare them (None: everywhere).

        A rigid transform compares whole heads around the brain, because the edges of two brain masks need not agree; a
        deformation needs brains alone, because the template has no more.
        """
        inputs = self.inputs
        moving = _brain(inputs.moving, None if inputs.kind == "Rigid" else inputs.moving_mask)
        if not isdefined(inputs.fixed_mask):
            return moving, _read(inputs.fixed), None
        fixed = _brain(inputs.fixed, None if inputs.kind == "Rigid" else inputs.fixed_mask)
        return moving, fixed, _near(images.read(inputs.fixed_mask, bool), images.read_grid(inputs.fixed_mask))


class Motion(NamedTuple):
    """How a head lies in one image, seen from another.

    ``matrix`` takes points of the fixed image to the moving one (RAS, mm); ``shift`` (mm) is the way of the mask's centre and
    ``turn`` (degrees) the angle; ``gain`` (nat) is what the mutual information wins over that of the images as they lie.
    """

    matrix: np.ndarray
    shift: float
    turn: float
    gain: float


def head_motion(
    moving: np.ndarray, moving_grid: images.Grid, fixed: np.ndarray, fixed_grid: images.Grid, mask: np.ndarray, folder: Path
) -> Motion:
    """Find the motion of a head between two images by a rigid registration that starts from where the headers put them.

    Parameters
    ----------
    moving, fixed : ndarray
        Magnitudes, (X, Y, Z).
    moving_grid, fixed_grid : Grid
        Their grids.
    mask : ndarray of bool
        The head in the fixed image.
    folder : Path
        Where ANTs may write.

    Returns
    -------
    Motion
        From the fixed to the moving image.
    """
    ants = _ants()
    fixed, moving, near = _image(fixed, fixed_grid), _image(moving, moving_grid), _near(mask, fixed_grid)
    found = _registered(moving, fixed, near, folder, type_of_transform="Rigid", initial_transform="Identity")["fwdtransforms"]
    coarse = _coarse(fixed)

    def similarity(transforms: list[str]) -> float:
        moved = ants.apply_transforms(coarse, moving, transforms)
        return -float(ants.image_similarity(coarse, moved, "MattesMutualInformation", fixed_mask=near))

    matrix = _matrix(ants.read_transform(found[0]))
    centre = fixed_grid.affine @ [*np.argwhere(mask).mean(axis=0), 1]
    return Motion(
        matrix,
        shift=float(np.linalg.norm(matrix @ centre - centre)),
        turn=float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))),
        gain=similarity(found) - similarity([]),
    )


def _registered(moving, fixed, near, folder: Path, **settings) -> dict:
    """Register ``moving`` to the coarse ``fixed``, compared in ``near`` (None: everywhere)."""
    return _ants().registration(
        _coarse(fixed),
        moving,
        mask=near,
        reg_iterations=(40, 20),
        outprefix=str(folder / "transform_"),
        **_LINEAR,
        **settings,
    )


def _near(mask: np.ndarray, grid: images.Grid):
    """The mask and a rim around it, on the coarse grid."""
    return _coarse(_image(dilate(mask, _RIM, grid.voxel_size).astype(np.float32), grid))


def _coarse(image):
    """The image on voxels of at least ``_COARSE``."""
    return _ants().resample_image(image, [max(_COARSE, h) for h in image.spacing])


def _refine(fixed, warped, focus: str, folder: Path) -> dict:
    """Deform ``warped`` to ``fixed`` around the labels of ``focus``, by local correlation."""
    grid = images.read_grid(focus)
    where = np.argwhere(images.read(focus, bool))
    margin = np.ceil(_FOCUS_MARGIN / np.array(grid.voxel_size)).astype(int)
    low = np.maximum(where.min(axis=0) - margin, 0)
    high = np.minimum(where.max(axis=0) + margin + 1, grid.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ low
    part = images.Grid(tuple(int(n) for n in high - low), affine)
    return _ants().registration(
        _image(fixed.numpy()[box], part),
        _image(warped.numpy()[box], part),
        type_of_transform="SyNOnly",
        syn_metric="CC",
        syn_sampling=2,
        reg_iterations=(40, 2),
        outprefix=str(folder / "focus_"),
    )


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


class _AlignOrientationInputSpec(BaseInterfaceInputSpec):
    local_field = File(exists=True, mandatory=True, desc="local field, ppm (X, Y, Z)")
    mask = File(exists=True, mandatory=True, desc="where it is valid")
    field_error = File(exists=True, mandatory=True, desc="its standard deviation, ppm")
    reference = File(exists=True, mandatory=True, desc="image with the wanted grid")
    transforms = traits.List(File(exists=True), desc="rigid transform to the reference (none: it is the reference itself)")


class _AlignOrientationOutputSpec(TraitedSpec):
    local_field = File(exists=True, desc="local field on the wanted grid, ppm")
    mask = File(exists=True, desc="where it is valid")
    field_error = File(exists=True, desc="its standard deviation, ppm")
    b0_dir = traits.List(traits.Float, desc="direction of the main field in voxel axes of the wanted grid")


class AlignOrientation(SimpleInterface):
    """Bring the local field of a turned head to another one's grid, and turn the direction of the main field with it.

    The field is real and unwrapped, so that splines may pass through it (through wrapped phase they may not); beyond the mask
    it is continued, so that its edge makes no ringing.
    """

    input_spec = _AlignOrientationInputSpec
    output_spec = _AlignOrientationOutputSpec

    def _run_interface(self, runtime):
        inputs, folder = self.inputs, Path(runtime.cwd)
        grid = images.read_grid(inputs.reference)
        if not isdefined(inputs.transforms):
            self._results |= {name: getattr(inputs, name) for name in ("local_field", "mask", "field_error")}
            self._results["b0_dir"] = list(grid.b0_dir)
            return runtime
        ants, mask, here = _ants(), images.read(inputs.mask, bool), images.read_grid(inputs.mask)
        fixed = _image(np.zeros(grid.shape, np.float32), grid)

        def moved(volume, interpolator):
            return ants.apply_transforms(fixed, _image(volume, here), inputs.transforms, interpolator=interpolator).numpy()

        inside = moved(mask.astype(np.float32), "linear") >= 0.5
        for name, interpolator in (("local_field", "bSpline"), ("field_error", "linear")):
            volume = np.where(inside, moved(continued(images.read(getattr(inputs, name)), mask), interpolator), 0)
            self._results[name] = images.write(folder / f"{name}.nii", volume, grid)
        self._results["mask"] = images.write(folder / "mask.nii", inside, grid)
        self._results["b0_dir"] = _turned_field(ants.read_transform(inputs.transforms[0]), grid)
        return runtime


def _turned_field(transform, grid: images.Grid) -> list[float]:
    """The scanner's z axis, carried with the head, in voxel axes of ``grid``.

    The transform takes points of the fixed image to the moving one, ``x -> R x + t``. In the head's position of the fixed image
    the field that the moving one lay in has the direction ``R^T z``.
    """
    direction = _matrix(transform)[:3, :3].T @ (0, 0, 1)
    direction = (grid.affine[:3, :3] / grid.voxel_size).T @ direction
    return [float(b) for b in direction / np.linalg.norm(direction)]


def _matrix(transform) -> np.ndarray:
    """A rigid transform of ANTs, from points of the fixed image to the moving one, as a matrix in NIfTI's axes."""
    matrix = np.eye(4)
    matrix[:3, 3] = transform.apply_to_point((0.0, 0.0, 0.0))
    points = [transform.apply_to_point(tuple(axis)) for axis in np.eye(3)]
    matrix[:3, :3] = np.transpose(points) - matrix[:3, 3:]
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's axes to NIfTI's
    return flip @ matrix @ flip


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
