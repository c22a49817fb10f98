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
#: Standard deviation between the scans of a person, ppm.
CHANGE = 0.004


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


def write_cohort(folder, number, seed=0, null=False, sites=(), sessions=1):
    """Write a dataset and its results; with two sessions (``CHANGE`` between the scans of a person) two years apart."""
    bids, out = folder / "bids", folder / "out"
    bids.mkdir(parents=True)
    table = people(number, seed, sites)
    table.to_csv(bids / "participants.tsv", sep="\t", index=False)
    (bids / "dataset_description.json").write_text('{"Name": "simulated", "BIDSVersion": "1.10.0"}')
    found = values(table, seed, null=null)
    for row, who in enumerate(table["participant_id"]):
        rng = np.random.default_rng([seed, row])
        for session in range(sessions):
            label = f"{who}_ses-{session + 1}" if sessions > 1 else who
            place = out / who / "/".join(label.split("_")[1:]) / "anat"
            pairs = []
            for name in REGIONS:
                later = 0.0 if null else 2 * session * REGIONS[name][1]
                change = later + (rng.normal(0, CHANGE) if sessions > 1 else 0.0)
                pairs += [(name, side, found[name][row, s] + change) for s, side in enumerate("LR")]
            write_region_table(place / f"{label}_atlas-CIT168_stats.tsv", pairs)
            metrics = {
                "coverage": 0.9 + 0.05 * rng.random(),
                "snr_echo1": 40 + 5 * rng.random(),
                "new_metric": rng.random(),
                "none": None,
            }
            (place / f"{label}_desc-qc_stats.json").write_text(json.dumps({"metrics": metrics, "warnings": []}))
        if sessions > 1:
            lines = [f"ses-{n + 1}\t{table['age'][row] + 2 * n}" for n in range(sessions)]
            (bids / who).mkdir()
            (bids / who / f"{who}_sessions.tsv").write_text("session_id\tage\n" + "\n".join(lines) + "\n")
    slopes = {name: 0.0 if null else row[1] for name, row in REGIONS.items()}
    shifts = {name: 0.0 if null else row[2] for name, row in REGIONS.items()}
    return Truth(bids, out, table, slopes, shifts)


@pytest.fixture(scope="session")
def cohort_on_disk():
    """Write a cohort: :func:`write_cohort`."""
    return write_cohort


@pytest.fixture(scope="session")
def simulation():
    """What this file simulates, for tests that need more than a cohort on disk."""
    return SimpleNamespace(REGIONS=REGIONS, people=people, values=values, write_region_table=write_region_table)
