"""Cohorts of region tables whose truth is known."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

#: Value at the mean age, slope per year, shift of patients, all ppm; standard deviation between people 0.012.
REGIONS = {
    "Ca": (0.05, 3e-4, 0.0),
    "Pu": (0.06, 6e-4, 0.0),
    "GPe": (0.14, 0.0, 0.0),
    "GPi": (0.12, 0.0, 0.0),
    "SNc": (0.10, 2e-4, 0.03),
    "SNr": (0.11, 2e-4, 0.03),
    "RN": (0.10, 4e-4, 0.0),
    "STH": (0.09, 1e-4, 0.0),
}
SPREAD = 0.012


@dataclass
class Truth:
    """A cohort on disk and what it was made from."""

    bids: Path
    out: Path
    people: pd.DataFrame
    slope: dict = field(default_factory=dict)
    shift: dict = field(default_factory=dict)


def people(number, seed, sites=()):
    """Participants: ages evenly from 20 to 80 in both groups, sexes and sites at random."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"participant_id": [f"sub-{n + 1:03}" for n in range(number)]})
    table["age"] = np.round(np.linspace(20, 80, number), 1)
    table["sex"] = rng.permutation(["F", "M"] * number)[:number]
    table["group"] = np.where(np.arange(number) % 2, "PD", "HC")
    if sites:
        table["site"] = rng.permutation(list(sites) * number)[:number]
    return table


def values(table, seed, *, null=False):
    """Region by region, values of both sides of every person: (people, 2)."""
    rng = np.random.default_rng(1000 + seed)
    result = {}
    for name, (level, slope, shift) in REGIONS.items():
        own = rng.normal(0, SPREAD, len(table))
        if not null:
            own = own + slope * (table["age"] - 50) + shift * (table["group"] == "PD")
        result[name] = level + np.asarray(own)[:, None] + rng.normal(0, 0.002, (len(table), 2))
    return result


def write_region_table(path, pairs):
    """A region table as the participant level writes it; ``pairs`` holds (name, side, chi)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = ["index", "name", "hemisphere", "n_voxels", "volume_mm3"]
    head += [f"{m}_{s}" for m in ("chi", "chi_brain", "r2star") for s in ("mean", "sd", "median", "trimmed_mean", "p05", "p95")]
    lines = ["\t".join(head)]
    for index, (name, side, chi) in enumerate(pairs, 1):
        maps = (chi, chi - 0.01, 20 + 100 * chi)
        numbers = [v for m in maps for v in (m, 0.01, m, m, m - 0.02, m + 0.02)]
        shown = ["n/a" if np.isnan(v) else f"{v:.6g}" for v in numbers]
        label = name if side == "n/a" else f"{name}_{side}"
        lines.append("\t".join([str(index), label, side, "100", "800", *shown]))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def cohort_on_disk():
    """Write a cohort: ``cohort_on_disk(folder, number, seed=0, null=False, sites=())``."""

    def write(folder, number, seed=0, null=False, sites=()):
        bids, out = folder / "bids", folder / "out"
        bids.mkdir(parents=True)
        table = people(number, seed, sites)
        table.to_csv(bids / "participants.tsv", sep="\t", index=False)
        (bids / "dataset_description.json").write_text('{"Name": "simulated", "BIDSVersion": "1.10.0"}')
        found = values(table, seed, null=null)
        for row, who in enumerate(table["participant_id"]):
            pairs = [(name, side, found[name][row, s]) for s, side in enumerate("LR") for name in REGIONS]
            write_region_table(out / who / "anat" / f"{who}_atlas-CIT168_stats.tsv", pairs)
            rng = np.random.default_rng([seed, row])
            metrics = {
                "coverage": 0.9 + 0.05 * rng.random(),
                "snr_echo1": 40 + 5 * rng.random(),
                "new_metric": rng.random(),
                "none": None,
            }
            path = out / who / "anat" / f"{who}_desc-qc_stats.json"
            path.write_text(json.dumps({"metrics": metrics, "warnings": []}))
        slopes = {name: 0.0 if null else row[1] for name, row in REGIONS.items()}
        shifts = {name: 0.0 if null else row[2] for name, row in REGIONS.items()}
        return Truth(bids, out, table, slopes, shifts)

    return write


@pytest.fixture(scope="session")
def simulation():
    """What this file simulates, for tests that need more than a cohort on disk."""
    return SimpleNamespace(REGIONS=REGIONS, people=people, values=values, write_region_table=write_region_table)
