"""What will be done with one acquisition: its recipe after what the images allow, and the reasons for what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from qsmflow import registry
from qsmflow.bids.atlas import Atlas, read_atlas, region_indices
from qsmflow.bids.inputs import Acquisition
from qsmflow.bids.outputs import TEMPLATE, output_path, product_path
from qsmflow.config import Execution, Recipe
from qsmflow.expression import parse
from qsmflow.interfaces.images import Grid, read_grid
from qsmflow.reports.boilerplate import COMBINED
from qsmflow.reports.quality import plausible

#: A field of view whose second-longest side is below this is a patch of a head: no brain extraction, no atlas, mm.
_HEAD = 120.0

#: Why there is no background removal before an inversion of the total field.
SINGLE_STEP = "the inversion starts from the total field"

#: Ready-made maps that ``--derivatives`` may hold, by product.
_GIVEN = ("brain_mask", "total_field", "local_field", "labels", "r2")

#: Stages between the phase and the total field, and from there to the susceptibility.
_TO_FIELD = ("readout", "offset", "unwrap", "check", "field")
_TO_CHI = (*_TO_FIELD, "background", "inversion", "reference")


class Method(NamedTuple):
    """A method with everything that its node's cache depends on."""

    name: str
    parameters: dict[str, object]
    version: int


@dataclass(frozen=True)
class Plan:
    """How one acquisition will be processed.

    ``recipe`` is the one given after its adaptation to the images. ``skipped`` tells for each stage that will not run why;
    ``regions`` how the atlas comes to the images (``t1w``, ``magnitude``, ``native`` or empty). ``given`` holds ready-made
    files by product.
    """

    acquisition: Acquisition
    recipe: Recipe
    grid: Grid
    atlas: Atlas | None = None
    regions: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def runs(self, stage: str) -> bool:
        """Whether a stage will run."""
        return stage not in self.skipped

    def method(self, stage: str) -> Method:
        """The method of a stage (masks: see :meth:`mask_methods`)."""
        return _method(self.recipe, stage, getattr(self.recipe, stage))

    @property
    def mask_methods(self) -> list[Method]:
        """The masking methods that are combined."""
        return [_method(self.recipe, "mask", name) for name in self.recipe.mask_methods]

    @property
    def has_phase(self) -> bool:
        """Whether phase is read."""
        return bool(self.acquisition.phase or self.acquisition.real)

    @property
    def warped_spaces(self) -> tuple[str, ...]:
        """Spaces beside its own that the susceptibility is resampled to."""
        return tuple(space for space in self.recipe.output_spaces if space != "GRE")

    @property
    def voxels(self) -> int:
        """Number of voxels of one volume."""
        x, y, z = self.grid.shape
        return x * y * z


def plan_acquisition(acquisition: Acquisition, recipe: Recipe, execution: Execution) -> Plan:
    """Adapt a recipe to an acquisition.

    Parameters
    ----------
    acquisition : Acquisition
        What there is; only headers are read.
    recipe : Recipe
        What is wanted.
    execution : Execution
        ``derivatives`` may hold ready-made maps, named as qsmflow names its own.

    Returns
    -------
    Plan
        Every adaptation is told in ``notices``.
    """
    grid = read_grid(acquisition.sources[0])
    given = _find_given(acquisition, execution)
    unused = given.pop("local_field", "") if recipe.single_step else ""
    reasons = _misplaced_rate(given, recipe, grid)
    skipped, notices = {}, [*reasons, *(f"taken ready-made: {Path(path).name}" for path in given.values())]
    if unused:
        notices.append(f"not taken: {Path(unused).name}, because {recipe.inversion} starts from the total field")
    magnitude = bool(acquisition.magnitude or acquisition.real)
    whole = sorted(n * h for n, h in zip(grid.shape, grid.voxel_size, strict=True))[1] >= _HEAD

    has_phase = bool(acquisition.phase or acquisition.real)
    if "brain_mask" not in given:
        recipe, reasons = _mask(recipe, whole=whole, magnitude=magnitude, phase=has_phase)
        notices += reasons

    if "phase" in registry.find("relaxometry", recipe.relaxometry).arrays and not has_phase:
        notices.append(f"no {recipe.relaxometry}, because there is no phase; relaxometry: nonlinear")
        kept = {name: values for name, values in recipe.parameters.items() if name != recipe.relaxometry}
        recipe = replace(recipe, relaxometry="nonlinear", parameters=kept)
    recipe, reasons = _coils(recipe, acquisition)
    notices += reasons
    skipped |= _skipped_stages(acquisition, recipe, given, magnitude)
    if "needs" in skipped.get("inversion", ""):
        notices.append(f"no susceptibility, because {skipped['inversion']}")
    if "brain_mask" in given and not recipe.mask_file:
        skipped["mask"] = "the mask was given"
    atlas, regions = None, ""
    prior = recipe.takes_prior and "inversion" not in skipped
    if {"rois", "qsm"} <= set(recipe.outputs) or prior:
        atlas = read_atlas(recipe.atlas)
        regions, reason = _regions(acquisition, atlas, grid, given, whole and magnitude)
        if prior and not (regions and any(plausible(name) for name, _ in atlas.regions.values())):
            why = f"{recipe.inversion} needs regions of known susceptibility, and there are none: "
            why += reason or f"the names of atlas {atlas.name} are not known"
            after = [*["swi"] * recipe.weights_chi, *["separation"] * (recipe.separation != "none")]
            skipped |= dict.fromkeys((*_TO_CHI, *after), why)
            notices.append(f"no susceptibility, because {why}")
        if not regions:
            atlas = None
            notices.append(f"no regions: {reason}")
    warped = "qsm" in recipe.outputs and "inversion" not in skipped
    kept, reasons = _spaces(acquisition, recipe, regions, whole and magnitude and warped)
    recipe, notices = replace(recipe, output_spaces=kept), notices + reasons
    if recipe.reference == "csf" and "inversion" not in skipped and "relaxometry" in skipped:
        skipped["reference"] = f"it needs R2*, but there is {skipped['relaxometry']}"
        notices.append(f"no csf reference, because {skipped['reference']}: values are relative to an unknown constant")
    wanted = recipe.reference_region and not recipe.reference_region.endswith((".nii", ".nii.gz"))
    if wanted:
        region_indices(recipe.reference_region, read_atlas(recipe.atlas))  # a wrong name is told before anything runs
    if recipe.reference == "region" and wanted and not regions:
        skipped["reference"] = "there are no regions"
        notices.append(f"no reference region '{recipe.reference_region}': values are relative to an unknown constant")
    if recipe.two_pass and recipe.separates("chi_echoes") and "separation" not in skipped:
        notices.append(f"{recipe.separation} inverts every echo in one pass: two passes are for the susceptibility map alone")
    return Plan(acquisition, recipe, grid, atlas, regions, skipped, given, tuple(notices))


def _mask(recipe: Recipe, *, whole: bool, magnitude: bool, phase: bool) -> tuple[Recipe, list[str]]:
    """The recipe with masking methods that the images allow, and notices for the others."""
    expression, reasons = recipe.mask_expression, []
    if expression is None:
        return recipe, []
    if "template" in expression.names and magnitude and not whole:
        expression = expression.renamed("template", "threshold")
        reasons.append("no brain extraction, because the field of view holds only part of a head")
    for name in recipe.mask_methods if not magnitude else ():
        if {"magnitude", "prior"} & set(registry.find("mask", name).arrays):
            expression = expression and expression.without(name)
            what = "brain extraction" if name == "template" else f"mask by {name}"
            reasons.append(f"no {what}, because there is no magnitude")
    if "quality" in recipe.mask_methods and not phase:
        expression = expression and expression.without("quality")
        reasons.append("no mask from the quality of the phase, because there is none")
    if not reasons:
        return recipe, []
    expression = expression or parse("threshold" if magnitude else "quality")
    dropped = set(recipe.mask_methods) - set(expression.names)
    kept = {name: values for name, values in recipe.parameters.items() if name not in dropped}
    mask = str(expression)
    return replace(recipe, mask=mask, parameters=kept), [f"{'; '.join(reasons)}; mask: {mask}"]


def _coils(recipe: Recipe, acquisition: Acquisition) -> tuple[Recipe, list[str]]:
    """The recipe with a method of coil combination that the number of echoes allows."""
    if acquisition.coils == 1 or len(acquisition.echo_times) > 1:
        return recipe, []
    if "echo_times" not in registry.find("coils", recipe.coils).context:
        return recipe, []
    kept = {name: values for name, values in recipe.parameters.items() if name != recipe.coils}
    reason = f"the coils are combined by vrc, because {recipe.coils} needs two echoes"
    return replace(recipe, coils="vrc", parameters=kept), [reason]


def _skipped_stages(acquisition: Acquisition, recipe: Recipe, given: Mapping[str, str], magnitude: bool) -> dict[str, str]:
    skipped = {}
    if not recipe.needs_chi:
        skipped = dict.fromkeys(_TO_CHI, "not asked for")
    elif not (acquisition.phase or acquisition.real):
        skipped = dict.fromkeys(_TO_CHI, "no phase")
    else:
        echoes = len(acquisition.echo_times)
        if recipe.readout == "none":
            skipped["readout"] = "not asked for"
        elif echoes < 3:
            skipped["readout"] = "one echo" if echoes == 1 else "two echoes"
        if recipe.offset == "none":
            skipped["offset"] = "not asked for"
        elif len(acquisition.echo_times) < 2:
            skipped["offset"] = "one echo"
        skipped |= {stage: "not asked for" for stage in ("check", "reference") if getattr(recipe, stage) == "none"}
        if "local_field" in given:
            skipped |= dict.fromkeys((*_TO_FIELD, "background"), "the local field was given")
        elif "total_field" in given:
            skipped |= dict.fromkeys(_TO_FIELD, "the total field was given")
        if recipe.single_step:
            skipped["background"] = SINGLE_STEP
    if acquisition.coils == 1:
        skipped["coils"] = COMBINED
    needed = registry.find("inversion", recipe.inversion).arrays if "inversion" not in skipped else ()
    if not magnitude:
        skipped["relaxometry"] = "no magnitude"
    elif len(acquisition.echo_times) < 2:
        skipped["relaxometry"] = "one echo"
    elif not recipe.needs_r2star and "r2star" not in needed:
        skipped["relaxometry"] = "not asked for"
    if "magnitude" in needed and not magnitude:
        skipped |= dict.fromkeys(_TO_CHI, f"{recipe.inversion} needs the magnitude, and there is none")
    elif "r2star" in needed and "relaxometry" in skipped:
        skipped |= dict.fromkeys(_TO_CHI, f"{recipe.inversion} needs R2*, but there is {skipped['relaxometry']}")
    if "swi" not in recipe.outputs or recipe.swi == "none":
        skipped["swi"] = "not asked for"
    elif not (acquisition.phase or acquisition.real):
        skipped["swi"] = "no phase"
    elif not magnitude:
        skipped["swi"] = "no magnitude"
    if recipe.separation == "none":
        skipped["separation"] = "not asked for"
    else:
        arrays = registry.find("separation", recipe.separation).arrays
        if "inversion" in skipped:
            skipped["separation"] = skipped["inversion"]
        elif "r2star" in arrays and "relaxometry" in skipped:
            skipped["separation"] = f"it needs R2*, but there is {skipped['relaxometry']}"
        elif "chi_echoes" in arrays and "field" in skipped:
            skipped["separation"] = f"it needs the phase of every echo, but {skipped['field']}"
        elif "chi_echoes" in arrays and (len(acquisition.echo_times) < 4 or not magnitude):
            skipped["separation"] = "it needs magnitude and phase of four echoes"
    return skipped


def _regions(acquisition: Acquisition, atlas: Atlas, grid: Grid, given: Mapping[str, str], head: bool) -> tuple[str, str]:
    """How the atlas comes to the images, or an empty string and why it does not."""
    if "labels" in given:
        return "native", ""
    if atlas.space == "GRE":
        fits = read_grid(atlas.labels).matches(grid)
        return ("native", "") if fits else ("", f"{atlas.labels} does not lie on the grid of the images")
    if not head:
        return "", "the field of view holds only part of a head, or there is no magnitude to register"
    if acquisition.t1w:
        return "t1w", ""
    if atlas.space == "T1w":
        return "", "the atlas is in the space of a T1-weighted image, and there is none"
    return "magnitude", ""


def _spaces(acquisition: Acquisition, recipe: Recipe, regions: str, head: bool) -> tuple[tuple[str, ...], list[str]]:
    """The output spaces that the images allow, and notices for the others."""
    kept, reasons = [], []
    for space in recipe.output_spaces:
        possible = {"T1w": head and acquisition.t1w, TEMPLATE: head and regions in ("t1w", "magnitude")}
        if possible.get(space, True):
            kept.append(space)
        elif "rois" in recipe.outputs:
            reasons.append(f"nothing is resampled to space {space}, because there is no registration to it")
    return tuple(kept), reasons


def _find_given(acquisition: Acquisition, execution: Execution) -> dict[str, str]:
    found = {}
    for product in _GIVEN:
        for folder in execution.derivatives:
            if product == "r2":
                paths = [output_path(folder, acquisition.entities, "R2map", ".nii.gz", datatype="anat")]
            elif product == "labels":
                pattern = product_path(folder, acquisition.entities, product, atlas="X")
                paths = sorted(pattern.parent.glob(pattern.name.replace("atlas-X", "atlas-*")))
            else:
                paths = [product_path(folder, acquisition.entities, product)]
            existing = [path for path in paths if path.is_file()]
            if existing:
                found[product] = str(existing[0])
                break
    return found


def _misplaced_rate(given: dict[str, str], recipe: Recipe, grid: Grid) -> list[str]:
    """Take a map of R2 out of ``given`` that serves nothing or lies elsewhere; why, for the latter."""
    if "r2" not in given:
        return []
    if recipe.separation == "none":
        del given["r2"]
    elif not read_grid(given["r2"]).matches(grid):
        return [f"not taken: {Path(given.pop('r2')).name}, because it does not lie on the grid of the images"]
    return []


def _method(recipe: Recipe, stage: str, name: str) -> Method:
    return Method(name, recipe.values(stage, name), registry.find(stage, name).version)
