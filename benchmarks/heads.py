"""A simulated head with its truth, and the array work of a recipe on it without a graph."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage as ndi

from qsmflow import registry
from qsmflow.algorithms import masking
from qsmflow.algorithms.scaling import phase_to_radians
from qsmflow.algorithms.units import hz_per_ppm
from qsmflow.algorithms.unwrap.romeo import quality_map
from qsmflow.config import Recipe
from qsmflow.interfaces import images
from qsmflow.interfaces.regions import expected_chi

ROOT = Path(__file__).resolve().parents[1]

#: What the truth of a head holds: pattern of the file, and whether its values are labels.
_TRUTH = {
    "chi": ("_Chimap", False),
    "brain": ("_desc-brain_mask", True),
    "tissue": ("_desc-tissue_dseg", True),
    "nuclei": ("_*168_dseg", True),
    "total_field": ("_desc-total_fieldmap", False),
    "local_field": ("_desc-local_fieldmap", False),
    "r2star": ("_R2starmap", False),
}

#: Heads whose images do not lie where their truth lies, by the dataset's name: the images were made on this grid of 1 mm whose
#: k-space was then cropped, the truth by averaging or picking the grid's values around the centres of the voxels.
_CROPPED = {"Simulated heads with known susceptibility": (193, 229, 193)}


@dataclass(frozen=True)
class Head:
    """Raw echoes and truth; ``stored`` is the truth as it is stored, ``aligned`` the truth where the images are."""

    name: str
    grid: images.Grid
    echo_times: tuple[float, ...]
    b0: float
    phase: np.ndarray
    magnitude: np.ndarray
    stored: dict[str, np.ndarray]
    aligned: dict[str, np.ndarray]

    @property
    def context(self) -> dict[str, object]:
        """What methods may ask about the acquisition."""
        size, direction = self.grid.voxel_size, self.grid.b0_dir
        return {"voxel_size": size, "b0_dir": direction, "b0": self.b0, "echo_times": self.echo_times}

    @property
    def misplaced(self) -> bool:
        """Whether images and stored truth lie on different grids."""
        return self.aligned is not self.stored


def default_dataset() -> Path:
    """The head beside the repository, or else the example study."""
    head = ROOT.parent / "shared/data/head"
    return head if head.is_dir() else ROOT / "bids_examples/study"


def argument_parser(doc: str) -> argparse.ArgumentParser:
    """A command's parser that knows the dataset and the subject; ``doc`` is the command's docstring."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("dataset", type=Path, nargs="?", default=default_dataset(), help="dataset with derivatives/truth")
    parser.add_argument("--sub", default="01", help="label of the subject")
    return parser


def load(dataset: Path, label: str = "01") -> Head:
    """Read one subject of a simulated dataset that carries its truth."""
    anat = dataset / f"sub-{label}/anat"
    phases = sorted(anat.glob("*_part-phase_MEGRE.nii.gz"))
    if not phases:
        raise SystemExit(f"{dataset}: no sub-{label}/anat/*_part-phase_MEGRE.nii.gz")
    grid = images.read_grid(phases[0])
    raw = np.stack([images.read(path) for path in phases], axis=-1)
    magnitude = np.stack([images.read(str(path).replace("part-phase", "part-mag")) for path in phases], axis=-1)
    common = dataset / "MEGRE.json"
    shared = json.loads(common.read_text()) if common.exists() else {}
    sidecars = [shared | json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text()) for path in phases]
    b0 = float(sidecars[0]["MagneticFieldStrength"])
    stored = _read_truth(dataset / "derivatives/truth", label, grid, b0)
    fine = _CROPPED.get(json.loads((dataset / "dataset_description.json").read_text())["Name"])
    aligned = stored
    if fine:
        aligned = {name: _move(volume, stored["brain"], fine, grid, _TRUTH[name][1]) for name, volume in stored.items()}
    return Head(
        name=dataset.name,
        grid=grid,
        echo_times=tuple(float(sidecar["EchoTime"]) for sidecar in sidecars),
        b0=b0,
        phase=phase_to_radians(raw, units=sidecars[0].get("Units", "arbitrary"))[0],
        magnitude=magnitude,
        stored=stored,
        aligned=aligned,
    )


def _read_truth(folder: Path, label: str, grid: images.Grid, b0: float) -> dict[str, np.ndarray]:
    """The truth on the grid of the images; fields in ppm, whatever unit the dataset keeps them in."""
    truth = {}
    for name, (pattern, _) in _TRUTH.items():
        (path,) = (folder / f"sub-{label}").rglob(f"sub-{label}{pattern}.nii.gz")
        if not images.read_grid(path).matches(grid):
            raise SystemExit(f"{path}: not on the grid of the images")
        volume = images.read(path)
        truth[name] = volume > 0 if name == "brain" else np.rint(volume).astype(int) if _TRUTH[name][1] else volume
    sidecar = folder / "fieldmap.json"
    if sidecar.exists() and json.loads(sidecar.read_text()).get("Units") == "Hz":
        for name in ("total_field", "local_field"):
            truth[name] = truth[name] / np.float32(hz_per_ppm(b0=b0))
    return truth


def _move(volume: np.ndarray, brain: np.ndarray, fine: tuple[int, ...], grid: images.Grid, labels: bool) -> np.ndarray:
    """The truth at the places of the images.

    Voxel ``i`` of an image whose k-space was cropped from ``N`` to ``n`` lies at ``i N / n`` mm of the fine grid, the centre
    of voxel ``i`` of size ``h`` that starts at the grid's edge at ``i h + (h - 1) / 2`` mm. Maps that are 0 outside the brain
    are continued with the value of the nearest voxel inside, so that its edge does not blur.
    """
    size = np.array(grid.voxel_size)
    matrix, offset = np.diag(np.divide(fine, grid.shape) / size), -(size - 1) / 2 / size
    if labels:
        return ndi.affine_transform(volume.astype(np.int16), matrix, offset, order=0, mode="nearest").astype(volume.dtype)
    if not volume[~brain].any():
        nearest = ndi.distance_transform_edt(~brain, sampling=size, return_distances=False, return_indices=True)
        volume = volume[tuple(nearest)]
        brain = ndi.affine_transform(brain.astype(np.int16), matrix, offset, order=0, mode="nearest") > 0
        return ndi.affine_transform(volume, matrix, offset, order=3, mode="nearest") * brain
    return ndi.affine_transform(volume, matrix, offset, order=3, mode="nearest")


def run(recipe: Recipe, head: Head, apply: Callable | None = None) -> dict[str, object]:
    """The array work of a recipe from raw echoes; the true brain mask stands for the registered one.

    ``apply`` (default :func:`apply_step`) is called like :func:`qsmflow.registry.apply`, once per step, also for the steps
    that are no methods of a stage: ``("quality", "map")`` and ``("mask", "combine")``. Returns all arrays by name.
    """
    have = {"phase": head.phase, "magnitude": head.magnitude, "prior": head.aligned["brain"].astype(np.float32)}
    have["chi_prior"] = expected_chi(head.aligned["nuclei"], "CIT168")

    def step(stage, name, **arrays):
        parameters = recipe.values(stage, name) if (stage, name) in recipe.methods else {}
        return (apply or apply_step)(stage, name, arrays={**have, **arrays}, context=head.context, parameters=parameters)

    have |= step("quality", "map")
    masks = {name: step("mask", name)["mask"] for name in recipe.mask_methods}
    tissue = head.magnitude[..., 0] > 0
    anatomical = recipe.mask_expression.without("quality")
    brain = step("mask", "combine", masks=[*([anatomical.evaluate(masks)] if anatomical else []), tissue])["mask"]
    have["mask"] = step("mask", "combine", masks=[recipe.mask_expression.evaluate(masks), tissue])["mask"]
    have["field_mask"] = have["mask"]  # background removal may shrink the other
    have |= step("relaxometry", recipe.relaxometry, mask=brain)
    for stage in ("readout", "offset", "unwrap", "check", "field", "background", "inversion", "reference"):
        if (stage, getattr(recipe, stage)) in recipe.methods:
            have |= step(stage, getattr(recipe, stage))
    return have


def apply_step(stage: str, name: str, *, arrays: dict, context: dict, parameters: dict) -> dict[str, object]:
    """:func:`qsmflow.registry.apply` for the steps of :func:`run`."""
    if (stage, name) == ("quality", "map"):
        everywhere = np.ones(arrays["phase"].shape[:3], bool)
        quality = quality_map(arrays["phase"], arrays["magnitude"], everywhere, echo_times=context["echo_times"])
        return {"quality": quality}
    if (stage, name) == ("mask", "combine"):
        return {"mask": masking.combine(arrays["masks"], voxel_size=context["voxel_size"])}
    return registry.apply(stage, name, arrays=arrays, context=context, parameters=parameters)
