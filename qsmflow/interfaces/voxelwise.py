"""The maps of a cohort in template space: mean and spread, and a test of every voxel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from qsmflow.bids.layout import parse_name
from qsmflow.bids.outputs import TEMPLATE, atomic, product_path
from qsmflow.errors import DatasetError, UsageError
from qsmflow.group.comparison import FEWEST
from qsmflow.group.linear import design
from qsmflow.group.model import Voxelwise
from qsmflow.group.study import Study
from qsmflow.group.tables import write_table
from qsmflow.group.voxelwise import Moments, Voxels, permutation_test, smooth
from qsmflow.interfaces import images
from qsmflow.interfaces.images import Grid
from qsmflow.reports import figures

#: Corrected p below which a voxel is shown, as minus the decimal logarithm.
_SIGNIFICANT = -np.log10(0.05)


def find_maps(study: Study, results_dir: Path) -> dict[str, list[Path]]:
    """The maps in template space of everybody in a study, by row of its data; of repeated sessions the first.

    Raises
    ------
    UsageError
        If the study is not of susceptibility.
    DatasetError
        If somebody has none, or the analysis has no effect that can be tested.
    """
    if not study.model.measure.startswith("chi_"):
        why = f"--voxelwise compares maps of susceptibility, and the model's measure is {study.model.measure}"
        raise UsageError(f"{why}; leave one of them away")
    people = _first(study)
    _effects(study, people)
    paths = {row: [_map_path(results_dir, scan) for scan in study.data.scans[row]] for row in people.index}
    absent = [path.name for group in paths.values() for path in group if not path.is_file()]
    if absent:
        raise DatasetError(
            f"--voxelwise needs maps in template space, and {len(absent)} are missing in {results_dir} ({absent[0]}); run the "
            f"participant level with --output-spaces GRE {TEMPLATE}, or leave these participants out with --participant-label"
        )
    return paths


def compare_voxels(study: Study, paths: Mapping[str, list[Path]], output_dir: Path, *, say: Callable[[str], None]) -> Voxels:
    """Mean map, spread and permutation tests of a study.

    Parameters
    ----------
    study : Study
        Its rows, covariates and settings are used.
    paths : mapping of str to list of Path
        See :func:`find_maps`; several maps of one row are averaged.
    output_dir : Path
        Where the results go.
    say : callable
        Told every step.

    Returns
    -------
    Voxels

    Raises
    ------
    DatasetError
        If the maps are not on one grid, or have no voxel in common.

    Notes
    -----
    One map is in memory at a time; what stays are mean and spread (1 mm) and the smoothed maps inside the brain on the grid of
    the test (2 mm by default, about a megabyte each).
    """
    prefix, number = f"{output_dir}/group_{study.model.name}", len(paths)
    fine = images.read_grid(next(iter(paths.values()))[0])
    brain, maps, grid, moments = _read(paths, fine, study.model.voxelwise, say)
    _save(Path(f"{prefix}_mean.nii.gz"), moments.mean, fine)
    _save(Path(f"{prefix}_sd.nii.gz"), moments.sd, fine)
    pictures, rows = [_mean_picture(moments, fine, number)], []
    for name, tested, others in _effects(study, _first(study)):
        say(f"voxelwise: {name}, {study.model.voxelwise.permutations} permutations in {int(brain.sum())} voxels")
        volumes, hits, limit = _test(study, maps, tested, others, brain, grid)
        for key, volume in volumes.items():
            _save(Path(f"{prefix}_{name}_{key}.nii.gz"), volume, grid)
        t = volumes["t"][brain]
        row = {"effect": name, "n": number, "voxels": int(brain.sum()), "t_min": t.min(), "t_max": t.max(), "t_limit": limit}
        rows.append(row | {"significant": hits})
        pictures.append(_effect_picture(name, volumes, grid, hits, limit))
    write_table(Path(f"{prefix}_voxelwise.tsv"), pd.DataFrame(rows), {})
    notices = ("voxelwise: of repeated sessions the first was used",) if study.data.repeated else ()
    return Voxels(tuple(pictures), pd.DataFrame(rows), notices, _methods(study, number))


def _first(study: Study) -> pd.DataFrame:
    """The people of a study, everybody once."""
    return study.data.people[~study.data.people["participant_id"].duplicated()]


def _test(
    study: Study, maps: np.ndarray, tested: np.ndarray, others: np.ndarray, brain: np.ndarray, grid: Grid
) -> tuple[dict[str, np.ndarray], int, float]:
    """Volumes of one effect, the number of significant voxels, and the t that they take."""
    settings = study.model.voxelwise
    found, limit = permutation_test(
        maps, tested, others, permutations=settings.permutations, seed=study.model.seed, masker=_masker(brain, grid, settings),
        tfce=settings.tfce,
    )  # fmt: skip
    volumes = {key: _volume(values, brain) for key, values in found.items()}
    sure = volumes["logp_tfce" if settings.tfce else "logp"] > _SIGNIFICANT
    return volumes | {"t_thresholded": np.where(sure, volumes["t"], 0)}, int(sure.sum()), limit


def _methods(study: Study, number: int) -> str:
    settings = study.model.voxelwise
    text = (
        f"Maps of {number} participants in template space were smoothed (Gaussian, {settings.fwhm:g} mm full width at half "
        f"maximum, within the mask), sampled every {settings.resolution} mm and tested voxel by voxel with the same covariates "
        f"by {settings.permutations} permutations of the residuals [@freedman1983] with nilearn [@abraham2014], corrected for "
        "the whole map by the largest statistic."
    )
    return text + (" Clusters were enhanced without a threshold [@smith2009]." if settings.tfce else "")


def _effects(study: Study, people: pd.DataFrame) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Effects to test, each with the columns that the maps are adjusted for."""
    data, model = study.data, study.model
    if model.analysis == "case-control":
        made = design(people, numeric=data.numeric, factors=data.factors, group=model.group, reference=study.reference)
        wanted = [name for name in made.names if name.startswith(f"{model.group}[")]
    elif model.analysis == "ageing":
        made, wanted = design(people, numeric=data.numeric, factors=data.factors), [model.age]
    else:
        raise DatasetError(f"--voxelwise tests groups or age; the analysis '{model.analysis}' has neither")
    if made.deficient or len(people) < made.matrix.shape[1] + FEWEST:
        raise DatasetError(f"--voxelwise: {len(people)} participants are too few for {', '.join(made.names)}")
    effects = []
    for name in wanted:
        place = made.names.index(name)
        others = [i for i in range(1, len(made.names)) if i != place]
        label = "".join(letter for letter in name.replace("[", "-") if letter.isalnum() or letter == "-")
        effects.append((label, made.matrix[:, place], made.matrix[:, others]))
    return effects


def _map_path(results_dir: Path, scan: str) -> Path:
    return product_path(results_dir, parse_name(f"{scan}_Chimap")[0], "chi_template")


def _read(
    paths: Mapping[str, list[Path]], fine: Grid, settings: Voxelwise, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray, Grid, Moments]:
    """Where every map is known (on the grid of the test), the smoothed maps there, that grid, and the moments at 1 mm."""
    step = max(1, round(settings.resolution / fine.voxel_size[0]))
    template, moments, stored = _template_mask(fine), Moments(), []
    coarse = template[::step, ::step, ::step]
    known_by_all = coarse.copy()
    for number, (row, group) in enumerate(paths.items(), 1):
        grids = [images.read_grid(path) for path in group]
        if not all(grid.matches(fine) for grid in grids):
            raise DatasetError(f"{group[0]}: not on the grid of the other maps; run this participant again")
        parts = [images.read(path) for path in group]
        chi, known = np.mean(parts, axis=0, dtype=np.float32), np.all([part != 0 for part in parts], axis=0)
        moments.add(chi, known)
        reliable = known & template
        soft = smooth(chi, reliable, fwhm=settings.fwhm, voxel_size=fine.voxel_size)[::step, ::step, ::step]
        known_by_all &= reliable[::step, ::step, ::step]
        stored.append(soft[coarse])
        if number % 10 == 0 or number == len(paths):
            say(f"voxelwise: {number} of {len(paths)} maps read ({row})")
    inside = known_by_all[coarse]
    if not inside.any():
        raise DatasetError("--voxelwise: there is no voxel that all maps have; look at the registration of the participants")
    maps = np.stack([values[inside] for values in stored])
    affine = fine.affine @ np.diag([step, step, step, 1.0])
    return known_by_all, maps, Grid(coarse.shape, affine), moments


def _template_mask(fine: Grid) -> np.ndarray:
    name = f"atlas/tpl-{TEMPLATE}_res-01_desc-brain_mask.nii.gz"
    with resources.as_file(resources.files("qsmflow.data") / name) as path:
        if images.read_grid(path).matches(fine):
            return images.read(path, bool)
    return np.ones(fine.shape, bool)


def _masker(brain: np.ndarray, grid: Grid, settings: Voxelwise):
    """Where the voxels lie, for the clusters of TFCE."""
    if not settings.tfce:
        return None
    from nibabel import Nifti1Image
    from nilearn.maskers import NiftiMasker

    return NiftiMasker(Nifti1Image(brain.astype(np.uint8), grid.affine)).fit()


def _volume(values: np.ndarray, brain: np.ndarray) -> np.ndarray:
    volume = np.zeros(brain.shape, np.float32)
    volume[brain] = values
    return volume


def _save(path: Path, volume: np.ndarray, grid: Grid) -> None:
    with atomic(path) as temporary:
        images.write(temporary, volume.astype(np.float32), grid)


def _mean_picture(moments: Moments, grid: Grid, number: int) -> tuple[str, str, bytes]:
    known = moments.count > number / 2
    view = figures.view_of(known, grid.affine)
    mean, sd = np.where(known, moments.mean, 0).astype(np.float32), np.where(known, moments.sd, 0).astype(np.float32)
    rows = [figures.Row(mean, "axial", (-0.1, 0.15), "ppm", label="mean", mask=known)]
    rows.append(
        figures.Row(sd, "axial", figures.positive_window(sd, known, 98), "ppm", label="sd", mask=known, colours="viridis")
    )
    caption = f"Mean and standard deviation of {number} participants in template space, where more than half have a value."
    return "Mean map", caption, figures.montage(view, rows)


def _effect_picture(
    name: str, volumes: Mapping[str, np.ndarray], grid: Grid, hits: int, needed: float
) -> tuple[str, str, bytes]:
    """The t map with the significant voxels outlined, over what was tested."""
    tested = volumes["t"] != 0
    view = figures.view_of(tested, grid.affine)
    limit = figures.nice(float(np.percentile(np.abs(volumes["t"][tested]), 99.8)))
    outline = [((volumes["t_thresholded"] != 0).astype(np.int16), {1: "#1b222c"})]
    rows = figures.three_planes(
        view, volumes["t"], window=(-limit, limit), unit="t", colours="RdBu_r", mask=tested, outlines=outline
    )  # fmt: skip
    volume = hits * float(np.prod(grid.voxel_size)) / 1000
    caption = (
        f"Effect of {name} in every voxel, t value; outlined: p < 0.05, corrected for the whole map by permutation ({hits} "
        f"voxels, {volume:.1f} ml). Without enhancement of clusters it takes a t beyond ±{needed:.1f}."
    )
    return f"Effect of {name}", caption, figures.montage(view, rows)
