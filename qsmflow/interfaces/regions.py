"""Values of the maps in the regions of an atlas."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from qsmflow.algorithms.regions import STATISTICS, region_statistics, region_voxels
from qsmflow.bids.atlas import read_atlas, region_indices
from qsmflow.bids.regions import COLUMNS, column_meaning
from qsmflow.interfaces import images
from qsmflow.reports.quality import plausible


class _TabulateRegionsInputSpec(BaseInterfaceInputSpec):
    atlas = traits.Str(mandatory=True, desc="name or path of the atlas, for the names of its regions")
    labels = File(exists=True, mandatory=True, desc="segmentation in the space of the maps (X, Y, Z)")
    chi = File(exists=True, mandatory=True, desc="referenced susceptibility, ppm (X, Y, Z)")
    mask = File(exists=True, mandatory=True, desc="where the susceptibility is known (X, Y, Z)")
    r2star = File(exists=True, desc="R2*, 1/s (X, Y, Z)")
    chi_para = File(exists=True, desc="susceptibility of paramagnetic sources, ppm (X, Y, Z)")
    chi_dia = File(exists=True, desc="susceptibility of diamagnetic sources, ppm (X, Y, Z)")


class _TabulateRegionsOutputSpec(TraitedSpec):
    table = File(exists=True, desc="one row per region")
    dictionary = traits.Dict(desc="what the columns mean")
    names = File(exists=True, desc="index and name of the regions")


class TabulateRegions(SimpleInterface):
    """Write the table of region values; voxels without a susceptibility are left out, regions without a voxel are kept."""

    input_spec = _TabulateRegionsInputSpec
    output_spec = _TabulateRegionsOutputSpec

    def _run_interface(self, runtime):
        folder, grid = Path(runtime.cwd), images.read_grid(self.inputs.chi)
        labels = images.read(self.inputs.labels, np.int32)
        mask, chi = images.read(self.inputs.mask, bool), images.read(self.inputs.chi)
        maps = {"chi": chi.ravel(), "chi_brain": chi.ravel() - chi[mask].mean(dtype=np.float64)}
        for key, name in (("r2star", "r2star"), ("para", "chi_para"), ("dia", "chi_dia")):
            if isdefined(path := getattr(self.inputs, name)):
                maps[key] = images.read(path).ravel()
        regions = read_atlas(self.inputs.atlas).regions
        rows = []
        for index, voxels in region_voxels(labels, mask, list(regions)).items():
            name, hemisphere = regions.get(index, (f"region{index}", "n/a"))
            row = {"index": index, "name": name, "hemisphere": hemisphere, "n_voxels": voxels.size}
            row["volume_mm3"] = voxels.size * math.prod(grid.voxel_size)
            for key, values in maps.items():
                row |= {f"{key}_{statistic}": value for statistic, value in region_statistics(values[voxels]).items()}
            rows.append({key: _cell(value) for key, value in row.items()})
        columns = [*COLUMNS, *(f"{key}_{statistic}" for key in maps for statistic in STATISTICS)]
        self._results["table"] = _write_table(folder / "regions.tsv", columns, rows)
        self._results["names"] = _write_table(folder / "names.tsv", ["index", "name"], rows)
        self._results["dictionary"] = {column: {"Description": column_meaning(column)} for column in columns}
        return runtime


def _write_table(path: Path, columns: list[str], rows: list[dict]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else f"{value:.6g}"
    return value


class _PickRegionInputSpec(BaseInterfaceInputSpec):
    region = traits.Str(desc="name or index of a region, several with '+'")
    region_file = File(exists=True, desc="a mask instead")
    atlas = traits.Str(mandatory=True, desc="name or path of the atlas, for the names of its regions")
    labels = File(exists=True, desc="segmentation in the space of the maps (X, Y, Z)")
    like = File(exists=True, mandatory=True, desc="image on the wanted grid")


class _PickRegionOutputSpec(TraitedSpec):
    mask = File(exists=True, desc="the region (X, Y, Z)")


class PickRegion(SimpleInterface):
    """Make a mask of the region that serves as reference."""

    input_spec = _PickRegionInputSpec
    output_spec = _PickRegionOutputSpec

    def _run_interface(self, runtime):
        grid, path = images.read_grid(self.inputs.like), self.inputs.region_file
        if isdefined(path):
            if not images.read_grid(path).matches(grid):
                raise ValueError(f"{path}: the reference region must lie on the grid of the gradient-echo images")
            mask = images.read(path, bool)
        else:
            indices = region_indices(self.inputs.region, read_atlas(self.inputs.atlas))
            mask = np.isin(images.read(self.inputs.labels, np.int32), indices)
        self._results["mask"] = images.write(Path(runtime.cwd) / "region.nii", mask, grid)
        return runtime


class _ExpectRegionsInputSpec(BaseInterfaceInputSpec):
    atlas = traits.Str(mandatory=True, desc="name or path of the atlas, for the names of its regions")
    labels = File(exists=True, mandatory=True, desc="segmentation in the space of the gradient-echo images (X, Y, Z)")


class _ExpectRegionsOutputSpec(TraitedSpec):
    chi_prior = File(exists=True, desc="expected susceptibility, ppm (X, Y, Z)")


class ExpectRegions(SimpleInterface):
    """Give every region the middle of its plausible range, and 0 to all other tissue.

    A change of the ranges changes what an inversion with this prior gives: raise the ``version`` of its row then.
    """

    input_spec = _ExpectRegionsInputSpec
    output_spec = _ExpectRegionsOutputSpec

    def _run_interface(self, runtime):
        labels, grid = images.read(self.inputs.labels, np.int32), images.read_grid(self.inputs.labels)
        expected = expected_chi(labels, self.inputs.atlas)
        self._results["chi_prior"] = images.write(Path(runtime.cwd) / "chi_prior.nii", expected, grid)
        return runtime


def expected_chi(labels: np.ndarray, atlas: str) -> np.ndarray:
    """The middle of the plausible range in every region of an atlas (name or path), ppm, 0 elsewhere; float32."""
    expected = np.zeros(labels.shape, np.float32)
    for index, (name, _) in read_atlas(atlas).regions.items():
        if known := plausible(name):
            expected[labels == index] = known.middle
    return expected
