"""Studies of simulated people: do the intervals hold the truth, is nothing found where nothing is, what does it cost?

    python benchmarks/study.py [--parts intervals cost voxelwise] [--seeds 50] [--people 40]

Writes Markdown. The cohorts are those of the tests (`tests/group/conftest.py`), written to disk and read by the group level:
eight regions, ages of 20 to 80 years, half of the people patients with 0.03 ppm more in the substantia nigra. With two scans,
two years apart, the models are mixed ones. For cost and voxelwise the command itself runs, in a process of its own with one
thread (Linux and macOS); its processor time is told in units of that of the first row. Maps for voxelwise are the template's
nuclei, of known susceptibility, on its grid of 1 mm, with differences between people, a registration that is off by half a
millimetre, masks of different extent and smooth noise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "group"))
from conftest import Truth, write_cohort

from qsmflow.bids.outputs import TEMPLATE
from qsmflow.group.collect import collect
from qsmflow.group.model import load_study
from qsmflow.group.study import run_study
from qsmflow.interfaces.threads import thread_environment

PARTS = ("intervals", "cost", "voxelwise")

#: Susceptibility of the maps' nuclei, ppm; other regions of the atlas have 0.03.
_NUCLEI = {"Pu": 0.05, "Ca": 0.04, "GPe": 0.13, "GPi": 0.12, "SNc_PBP_VTA": 0.1, "SNr": 0.13, "RN": 0.1, "STH": 0.09}

#: Kilobytes in a unit of ``ru_maxrss``.
_UNIT = 1 if sys.platform != "darwin" else 1 / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--seeds", type=int, default=50, help="cohorts of each kind")
    parser.add_argument("--people", type=int, default=40, help="participants of a cohort")
    args = parser.parse_args()
    if "intervals" in args.parts:
        intervals(args.seeds, args.people)
    if "cost" in args.parts:
        cost((50, 200))
    if "voxelwise" in args.parts:
        voxelwise((12, args.people))


def intervals(seeds: int, people: int) -> None:
    """How often the truth lies in its 95 % interval, and how often a null cohort has a significant region."""
    print(f"{seeds} cohorts of {people} people; worst region and mean of all regions\n")
    print("| scans of a person | age slope in its interval | group shift in its interval | nothing found in a null cohort |")
    print("| --- | --- | --- | --- |")
    for sessions in (1, 2):
        hits, clean = Counter(), 0
        for seed in range(seeds):
            hits.update(key for key, inside in _checked(people, seed, sessions) if inside)
            clean += _nothing_found(people, seed, sessions)
        cells = []
        for what in ("slope", "shift"):
            shares = np.array([count for (_, kind), count in hits.items() if kind == what]) / seeds
            cells.append(f"{shares.min():.1%}, {shares.mean():.1%}")
        print(f"| {sessions} | {' | '.join(cells)} | {clean / seeds:.1%} |", flush=True)


def _checked(people: int, seed: int, sessions: int) -> Iterator[tuple[tuple[str, str], bool]]:
    """Every region's slope and shift, and whether its interval holds the truth."""
    with tempfile.TemporaryDirectory() as folder:
        truth = write_cohort(Path(folder) / "made", people, seed, sessions=sessions)
        cohort = collect(truth.bids, truth.out)
        ages = run_study(cohort, replace(load_study("ageing"), bootstrap=0)).tables["ageing"]
        for row in ages.itertuples():
            yield (row.region, "slope"), row.slope_low <= truth.slope[row.region] <= row.slope_high
        for row in run_study(cohort, load_study("case-control")).tables["differences"].itertuples():
            yield (row.region, "shift"), row.low <= truth.shift[row.region] <= row.high


def _nothing_found(people: int, seed: int, sessions: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        truth = write_cohort(Path(folder) / "made", people, seed, null=True, sessions=sessions)
        study = run_study(collect(truth.bids, truth.out), load_study("case-control"))
        return bool((study.tables["differences"]["q"] >= study.model.fdr).all())


def cost(sizes: tuple[int, ...]) -> None:
    """Processor time and peak memory of the command, from tables to page."""
    print("\n| people | sessions | study | time | peak, MB |")
    print("| --- | --- | --- | --- | --- |")
    first = 0.0
    for people in sizes:
        for sessions in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                truth = write_cohort(Path(folder) / "made", people, sessions=sessions)
                for study in ("case-control", "ageing"):
                    took, peak = _run(truth, "--study", study)
                    first = first or took
                    print(f"| {people} | {sessions} | {study} | {took / first:.1f} | {peak:.0f} |", flush=True)


def voxelwise(sizes: tuple[int, ...]) -> None:
    """Maps in template space, tested voxel by voxel: significant voxels in the nigra and elsewhere, time and memory."""
    print("\nWith `--voxelwise`, 1000 permutations, maps of 1 mm tested at 2 mm\n")
    print("| people | voxels | t needed | significant in the nigra | of | within 4 mm of it | elsewhere | time | peak, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    folder = resources.files("qsmflow.data") / "atlas"
    labels = nb.load(folder / f"tpl-{TEMPLATE}_res-01_atlas-CIT168_dseg.nii.gz")
    brain = np.asarray(nb.load(folder / f"tpl-{TEMPLATE}_res-01_desc-brain_mask.nii.gz").dataobj) > 0
    rows = [line.split("\t") for line in (folder / f"tpl-{TEMPLATE}_atlas-CIT168_dseg.tsv").read_text().splitlines()[1:]]
    regions = {int(row[0]): row[1][:-2] for row in rows}
    numbers = np.asarray(labels.dataobj).astype(int)
    nigra = np.isin(numbers, [index for index, name in regions.items() if name.startswith("SN")])
    near = ndimage.binary_dilation(nigra, iterations=4)[::2, ::2, ::2]
    nigra = nigra[::2, ::2, ::2]
    first = 0.0
    for people in sizes:
        with tempfile.TemporaryDirectory() as place:
            truth = write_cohort(Path(place) / "made", people)
            for row in truth.people.itertuples():
                chi = _map(numbers, regions, brain, 0.03 * (row.group == "PD"), seed=row.Index)
                name = f"{row.participant_id}_space-{TEMPLATE}_res-1_Chimap.nii.gz"
                nb.save(nb.Nifti1Image(chi, labels.affine), truth.out / row.participant_id / "anat" / name)
            took, peak = _run(truth, "--study", "case-control", "--voxelwise")
            table = pd.read_csv(truth.out / "group_case-control_voxelwise.tsv", sep="\t").iloc[0]
            sure = nb.load(truth.out / "group_case-control_group-PD_t_thresholded.nii.gz").get_fdata() != 0
            counts = [(sure & where).sum() for where in (nigra, near & ~nigra, ~near)]
            first = first or took
            cells = [people, table["voxels"], f"{table['t_limit']:.1f}", counts[0], nigra.sum(), *counts[1:]]
            print(f"| {' | '.join(map(str, cells))} | {took / first:.1f} | {peak:.0f} |", flush=True)


def _map(numbers: np.ndarray, regions: dict[int, str], brain: np.ndarray, shift: float, *, seed: int) -> np.ndarray:
    """The map of one person, ppm."""
    rng = np.random.default_rng(seed)
    values = np.zeros(numbers.max() + 1, np.float32)
    for index, name in regions.items():
        values[index] = _NUCLEI.get(name, 0.03) + rng.normal(0, 0.006) + shift * name.startswith("SN")
    noise = ndimage.gaussian_filter(rng.normal(size=numbers.shape).astype(np.float32), 1.2)
    chi = ndimage.shift(ndimage.gaussian_filter(values[numbers], 0.7), rng.normal(0, 0.5, 3), order=1)
    known = ndimage.binary_erosion(brain, iterations=int(rng.integers(2, 5)))
    return np.where(known, chi + noise * (0.015 / noise.std()), 0).astype(np.float32)


def _run(truth: Truth, *words: str) -> tuple[float, float]:
    """Processor time (s) and peak memory (MB) of the group level."""
    command = [sys.executable, "-m", "qsmflow", truth.bids, truth.out, "group", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | thread_environment(1))
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"group {' '.join(words)} failed")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * _UNIT / 1024


if __name__ == "__main__":
    main()
