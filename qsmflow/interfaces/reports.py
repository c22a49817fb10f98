"""Results of one acquisition become pictures, quality metrics and methods text."""

from __future__ import annotations

import csv
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiPath,
    OutputMultiPath,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

import qsmflow
from qsmflow.algorithms import metrics
from qsmflow.algorithms.unwrap import check
from qsmflow.bids.outputs import copy_file, json_text, output_path
from qsmflow.config import Recipe
from qsmflow.interfaces import images
from qsmflow.reports import boilerplate, gallery, quality
from qsmflow.reports.boilerplate import REGISTRATIONS
from qsmflow.reports.gallery import COSMOS

#: Nuclei whose plausible susceptibility starts here or above count as iron-rich, ppm.
_IRON_RICH = 0.05

#: References that are no region, in the words of the captions.
_REFERENCES = {"brain": "the whole brain", "none": "an unknown constant"}

#: Images of three axes that are read as they are (those of type bool as masks).
_VOLUMES = {
    "mask": bool, "brain_mask": bool, "reference_region": bool, "quality": np.float32, "total_field": np.float32,
    "local_field": np.float32, "field_error": np.float32, "residual": np.float32, "chi": np.float32, "r2star": np.float32,
    "swi": np.float32, "minip": np.float32, "phase_mask": np.float32, "labels": np.int32, "matching": np.float32,
    "chi_para": np.float32, "chi_dia": np.float32,
}  # fmt: skip


class AcquisitionReportInputSpec(BaseInterfaceInputSpec):
    name = traits.Str(mandatory=True, desc="the acquisition's entities as its file names begin")
    magnitude = File(exists=True, mandatory=True, desc="magnitude of all echoes (X, Y, Z, E)")
    mask = File(exists=True, mandatory=True, desc="where susceptibility is given (without phase: the brain)")
    phase = File(exists=True, desc="wrapped phase of all echoes, rad")
    unwrapped = File(exists=True, desc="unwrapped phase of all echoes, rad")
    brain_mask = File(exists=True, desc="the brain, before unreliable voxels and the rim were given up")
    quality = File(exists=True, desc="phase quality, 0 to 1")
    matching = File(exists=True, desc="matching quality of the receive coils, %")
    total_field = File(exists=True, desc="total field, ppm")
    local_field = File(exists=True, desc="local field, ppm")
    field_error = File(exists=True, desc="standard deviation of the total field, ppm")
    residual = File(exists=True, desc="misfit over the echoes, rad")
    chi = File(exists=True, desc="susceptibility, ppm")
    chi_para = File(exists=True, desc="susceptibility of paramagnetic sources, ppm")
    chi_dia = File(exists=True, desc="susceptibility of diamagnetic sources, ppm")
    r2star = File(exists=True, desc="R2*, 1/s")
    swi = File(exists=True, desc="susceptibility-weighted image")
    minip = File(exists=True, desc="minimum intensity projection of it")
    phase_mask = File(exists=True, desc="its weight, 0 to 1")
    labels = File(exists=True, desc="atlas labels in the space of the images")
    label_table = File(exists=True, desc="TSV with the index and name of every label")
    regions = File(exists=True, desc="TSV with the values of every region")
    reference_region = File(exists=True, desc="the reference region, where it is not the whole brain")
    echo_times = traits.List(traits.Float, mandatory=True, minlen=1, desc="echo times, s")
    b0 = traits.Union(None, traits.Float, usedefault=True, desc="main field strength, T; None without phase")
    metadata = traits.Dict(usedefault=True, desc="sidecar of the first echo, in the words of BIDS")
    sources = traits.List(traits.Str, usedefault=True, desc="BIDS URIs of the images")
    notices = traits.List(traits.Str, usedefault=True, desc="what was found when the dataset was read")
    mask_notices = traits.List(traits.Str, usedefault=True, desc="what was found when the mask was made")
    readout_notices = traits.List(traits.Str, usedefault=True, desc="what was found when odd and even echoes were compared")
    unwrapping_notices = traits.List(traits.Str, usedefault=True, desc="what was found when the unwrapped phase was checked")
    pass_notices = traits.List(traits.Str, usedefault=True, desc="what was found when two passes were merged")
    loaded = traits.Dict(usedefault=True, desc="report of LoadAcquisition; its notices and warnings are taken over")
    warnings = traits.List(traits.Dict(traits.Str, traits.Str), usedefault=True, desc="more warnings: what, remedy")
    recipe = traits.Str(mandatory=True, desc="the recipe as TOML")
    skipped = traits.Dict(traits.Str, traits.Str, usedefault=True, desc="stages that did not run, with the reason")
    registration_template = traits.Float(desc="similarity of the image registered to the template and the template")
    registration_t1w = traits.Float(desc="similarity of the magnitude and the T1-weighted image")
    registration = traits.Enum("", *REGISTRATIONS, usedefault=True, desc="how the atlas came to the images")
    phase_reversed = traits.Bool(False, usedefault=True, desc="whether the sign of the phase was reversed")
    echo_polarity = traits.Enum("", "monopolar", "bipolar", usedefault=True, desc="where it is known")


class AcquisitionReportOutputSpec(TraitedSpec):
    figures = OutputMultiPath(File(exists=True), desc="pictures (PNG) and what to write beside them (JSON of the same name)")
    quality_file = File(exists=True, desc="metrics, notices, warnings, inputs, methods and the reporting table (JSON)")


class AcquisitionReport(SimpleInterface):
    """Draw the pictures of an acquisition, measure its quality and write its methods text; what is not given is left out."""

    input_spec = AcquisitionReportInputSpec
    output_spec = AcquisitionReportOutputSpec

    def _run_interface(self, runtime):
        folder, work = Path(runtime.cwd), _Results(self.inputs)
        self._results["figures"] = _write(gallery.draw(work.material()), folder, self.inputs.name)
        path = folder / f"{self.inputs.name}_desc-qc_stats.json"
        path.write_text(json_text(work.summary()), encoding="utf-8")
        self._results["quality_file"] = str(path)
        return runtime


class OrientationsReportInputSpec(BaseInterfaceInputSpec):
    name = traits.Str(mandatory=True, desc="entities that all orientations share, as the files begin")
    chi = File(exists=True, mandatory=True, desc="susceptibility from several orientations, ppm")
    mask = File(exists=True, mandatory=True, desc="where it is known")
    reference = traits.Str(mandatory=True, desc="what it is relative to, in the recipe's words")


class OrientationsReportOutputSpec(TraitedSpec):
    figures = OutputMultiPath(File(exists=True), desc="pictures (PNG) and what to write beside them (JSON of the same name)")


class OrientationsReport(SimpleInterface):
    """Draw the susceptibility that several orientations gave together."""

    input_spec = OrientationsReportInputSpec
    output_spec = OrientationsReportOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        arrays = {"chi": images.read(inputs.chi), "mask": images.read(inputs.mask, bool)}
        affine = images.read_grid(inputs.chi).affine
        material = gallery.Material(arrays, affine, None, 0, _REFERENCES.get(inputs.reference, "the reference region"))
        drawn = gallery.draw(material, gallery.ORIENTATION_PICTURES)
        self._results["figures"] = _write(drawn, Path(runtime.cwd), inputs.name)
        return runtime


class SaveFiguresInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiPath(File(exists=True), mandatory=True, desc="all pictures of an acquisition and their JSON files")
    output_dir = traits.Str(mandatory=True, desc="root of the output tree")
    entities = traits.Dict(traits.Str, traits.Str, mandatory=True, desc="entities of the acquisition")
    family = traits.Enum("", COSMOS, usedefault=True, desc="how the desc- of all pictures begins")


class SaveFiguresOutputSpec(TraitedSpec):
    out_files = OutputMultiPath(File(exists=True), desc="the files under their final names")


class SaveFigures(SimpleInterface):
    """Save the pictures of an acquisition, and take away those of an earlier run that this one did not make."""

    input_spec = SaveFiguresInputSpec
    output_spec = SaveFiguresOutputSpec
    _always_run = True

    def _run_interface(self, runtime):
        sample = output_path(self.inputs.output_dir, self.inputs.entities, "x", ".png", datatype="figures", desc="x")
        prefix = sample.name.removesuffix("desc-x_x.png")
        files = [sample.with_name(Path(path).name) for path in self.inputs.in_files]
        family = self.inputs.family
        for old in sample.parent.glob(f"{prefix}desc-{family}*") if sample.parent.is_dir() else ():
            # An acquisition may have the name of what several orientations share; each keeps its own pictures.
            own = family or not old.name.startswith(f"{prefix}desc-{COSMOS}")
            if own and old not in files:
                old.unlink()
        for source, path in zip(self.inputs.in_files, files, strict=True):
            copy_file(source, path)
        self._results["out_files"] = [str(path) for path in files]
        return runtime


def _write(pictures: Iterable[gallery.Drawn], folder: Path, name: str) -> list[str]:
    """Write pictures and their sidecars; the paths of both."""
    files = []
    for drawn in pictures:
        path = folder / f"{name}_{drawn.name}.png"
        path.write_bytes(drawn.png)
        path.with_suffix(".json").write_text(json_text(drawn.sidecar), encoding="utf-8")
        files += [str(path), str(path.with_suffix(".json"))]
    return files


class _Results:
    """What a run made of one acquisition, as arrays and numbers."""

    def __init__(self, inputs: AcquisitionReportInputSpec):
        self.inputs = inputs
        self.recipe = Recipe.from_mapping(tomllib.loads(inputs.recipe), "recipe")
        self.grid = images.read_grid(inputs.magnitude)
        self.echo_times = [float(te) for te in inputs.echo_times]
        self.arrays = {
            name: images.read(path, dtype) for name, dtype in _VOLUMES.items() if isdefined(path := getattr(inputs, name))
        }
        table = _rows(inputs.label_table) if isdefined(inputs.label_table) else []
        self.label_names = {int(row["index"]): row["name"] for row in table}
        self.regions = _regions(inputs.regions) if isdefined(inputs.regions) else []

    def material(self) -> gallery.Material:
        """What the pictures are made of."""
        names = {"brain_mask": "brain"}
        arrays = {names.get(name, name): array for name, array in self.arrays.items() if name != "reference_region"}
        arrays["magnitude"] = self._echo("magnitude", 0)
        last = len(self.echo_times) - 1
        for name, source in (("wrapped", "phase"), ("unwrapped", "unwrapped")):
            if isdefined(getattr(self.inputs, source)):
                arrays[name] = np.stack([self._echo(source, echo) for echo in sorted({0, last})], axis=-1)
        return gallery.Material(
            arrays,
            self.grid.affine,
            self.inputs.b0,
            len(self.echo_times),
            _REFERENCES.get(self.recipe.reference, "the reference region"),
            self.regions,
            self.recipe.values("swi", self.recipe.swi)["thickness"] if "minip" in arrays else 0.0,
            {index: quality.structure(name) for index, name in self.label_names.items()},
        )

    def metrics(self) -> dict[str, float | None]:
        """All metrics that can be formed; None where one came out as no number."""
        have, mask = self.arrays, self.arrays["mask"]
        size, context = self.grid.voxel_size, {"voxel_size": self.grid.voxel_size, "b0_dir": self.grid.b0_dir}
        values: dict[str, float] = {}
        for echo in range(len(self.echo_times)):
            magnitude = self._echo("magnitude", echo)[..., np.newaxis]
            values[f"snr_echo{echo + 1}"] = float(metrics.snr(magnitude, mask)[0])
        if isdefined(self.inputs.phase):
            for echo in range(len(self.echo_times)):
                values[f"residues_echo{echo + 1}"] = metrics.residues(self._echo("phase", echo), mask)
        if "matching" in have:
            values["coil_matching"] = float(have["matching"][mask].mean(dtype=np.float64)) if mask.any() else math.nan
        if isdefined(self.inputs.unwrapped):
            echoes = [(self._echo("unwrapped", e), self._echo("magnitude", e)) for e in range(len(self.echo_times))]
            values["unwrapping_walls"] = max(check.wall_area(*echo, mask) for echo in echoes)
            if len(echoes) > 2:
                volumes = (np.stack(stack, axis=-1) for stack in zip(*echoes, strict=True))
                values["unwrapping_bent"] = check.bent_share(*volumes, mask, echo_times=self.echo_times)
        if "residual" in have:
            values["fit_residual"] = metrics.fit_residual(have["residual"], mask)
        if "total_field" in have:
            low, high = metrics.field_range(have["total_field"], mask)
            values["field_range"] = high - low
        values["mask_volume"] = metrics.volume(mask, voxel_size=size)
        if "brain_mask" in have:
            values["coverage"] = metrics.coverage(mask, have["brain_mask"])
        if "local_field" in have:
            values["rim_local"] = metrics.rim_energy(have["local_field"], mask, voxel_size=size)
        if "chi" in have:
            values |= self._chi_metrics(have["chi"], mask, context)
        values |= quality.region_metrics(self.regions) | quality.polarity(values)
        for key in ("registration_template", "registration_t1w"):
            if isdefined(getattr(self.inputs, key)):
                values[key] = getattr(self.inputs, key)
        return quality.rounded(values)

    def summary(self) -> dict[str, object]:
        """Everything that the page, the table of metrics and the methods text need."""
        inputs, recipe = self.inputs, self.recipe
        values = self.metrics()
        told = {"version": qsmflow.__version__, "b0": inputs.b0, "echo_times": self.echo_times, "skipped": inputs.skipped}
        text, citations = boilerplate.methods_text(
            recipe, **told, registration=inputs.registration, phase_reversed=inputs.phase_reversed
        )
        table = boilerplate.reporting_table(
            recipe,
            **told,
            voxel_size=self.grid.voxel_size,
            shape=self.grid.shape,
            acquisition=inputs.metadata,
            reference=self._reference(),
            echo_polarity=inputs.echo_polarity,
        )
        return {
            "acquisition": inputs.name,
            "version": qsmflow.__version__,
            "metrics": values,
            "notices": [
                *inputs.notices,
                *inputs.loaded.get("notices", []),
                *inputs.mask_notices,
                *inputs.readout_notices,
                *inputs.unwrapping_notices,
                *inputs.pass_notices,
            ],
            "warnings": [
                *inputs.loaded.get("warnings", []),
                *inputs.warnings,
                *quality.warnings(values),
                *[quality.PRIOR] * (recipe.takes_prior and "chi" in self.arrays),
            ],
            "inputs": {
                "echo_times": self.echo_times,
                "b0": inputs.b0,
                "voxel_size": [round(v, 6) for v in self.grid.voxel_size],
                "b0_dir": [round(v, 6) for v in self.grid.b0_dir],
                "shape": list(self.grid.shape),
                "sources": list(inputs.sources),
                "metadata": inputs.metadata,
            },
            "methods": {"text": text, "citations": list(citations)},
            "recipe": {"name": recipe.name, "hash": recipe.hash, "toml": inputs.recipe},
            "reporting_table": table,
        }

    def _chi_metrics(self, chi: np.ndarray, mask: np.ndarray, context: Mapping) -> dict[str, float]:
        have, size = self.arrays, self.grid.voxel_size
        values = {
            "brain_sd": metrics.reference(chi, mask, mask)[1],
            "rim_chi": metrics.rim_energy(chi, mask, voxel_size=size),
            "streaks": metrics.streaks(chi, mask, **context),
        }
        if "local_field" in have:
            values["forward_fit"] = metrics.forward_fit(chi, have["local_field"], mask, **context)
        if self.recipe.reference not in ("brain", "none"):
            values["reference_mean"], values["reference_sd"] = self._reference()
        values["tail_asymmetry"] = metrics.tail_asymmetry(chi, mask, voxel_size=size)
        if "r2star" in have:
            values["iron_contrast"] = metrics.iron_contrast(chi, have["r2star"], mask, voxel_size=size)
        nuclei = self._nuclei()
        if nuclei is not None:
            values["nuclei_contrast"] = metrics.nuclei_contrast(chi, nuclei, mask, voxel_size=size)
        return values

    def _reference(self) -> tuple[float, float] | None:
        """Mean and spread of the reference region relative to the whole brain, ppm; NaN for what is not known."""
        if "chi" not in self.arrays or self.recipe.reference == "none":
            return None
        chi, mask = self.arrays["chi"], self.arrays["mask"]
        region = mask if self.recipe.reference == "brain" else self.arrays.get("reference_region")
        if region is not None:
            return metrics.reference(chi, region, mask)
        # The region's own mean is the zero of the map.
        return -float(np.mean(chi[mask], dtype=np.float64)), math.nan

    def _nuclei(self) -> np.ndarray | None:
        """Iron-rich nuclei, where the atlas names some."""
        if "labels" not in self.arrays:
            return None
        ranges = {index: quality.plausible(name) for index, name in self.label_names.items()}
        rich = [index for index, row in ranges.items() if row and row.low >= _IRON_RICH]
        return np.isin(self.arrays["labels"], rich) if rich else None

    def _echo(self, name: str, echo: int) -> np.ndarray:
        return images.read(getattr(self.inputs, name), volume=echo)


def _regions(path: str) -> list[dict[str, object]]:
    """Values of the regions relative to the whole brain, with the ranges that are known."""
    result = []
    for row in _rows(path):
        mean = _number(row["chi_brain_mean"])
        if math.isfinite(mean):
            known = quality.plausible(row["name"])
            result.append(
                {
                    "name": row["name"],
                    "structure": quality.structure(row["name"]),
                    "hemisphere": row["hemisphere"].replace("n/a", ""),
                    "mean": mean,
                    "p05": _number(row["chi_brain_p05"]),
                    "p95": _number(row["chi_brain_p95"]),
                    "range": (known.low, known.high) if known else None,
                }
            )
    return result


def _rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _number(text: str) -> float:
    """A cell of a BIDS table; ``n/a`` is no number."""
    return math.nan if text in ("", "n/a") else float(text)
