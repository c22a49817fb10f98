"""The example cohort: the README's command, and what it finds against the truth of the simulation."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from qsmflow.cli.run import main
from qsmflow.cli.validator import validate
from qsmflow.group.collect import collect, region_key
from qsmflow.group.model import load_study
from qsmflow.group.study import run_study


@pytest.fixture(scope="module")
def cohort(repository):
    return repository / "bids_examples" / "cohort"


@pytest.fixture(scope="module")
def out(cohort, tmp_path_factory, repository):
    """Where the README's command wrote."""
    folder = tmp_path_factory.mktemp("cohort")
    line = next(line for line in (repository / "README.md").read_text().splitlines() if " group " in line and "cohort" in line)
    words = [word.replace("bids_examples/cohort", str(cohort)) for word in line.split()[1:]]
    words[1] = str(folder / words[1])
    assert main(words) == 0
    return folder / "out_cohort"


@pytest.fixture(scope="module")
def truth(cohort):
    """True mean of both sides, by participant and region."""
    table = pd.read_csv(cohort / "derivatives" / "truth" / "truth.tsv", sep="\t")
    table["region"] = table["name"].map(region_key)
    return table.groupby(["participant_id", "region"])["chi_brain"].mean().unstack()


@pytest.fixture(scope="module")
def effects(cohort, truth):
    """Age slope and shift of the patients in the true values, by region: what the studies' model finds in them."""
    people = pd.read_csv(cohort / "participants.tsv", sep="\t").set_index("participant_id")
    fits = {
        region: smf.ols("chi ~ C(group, Treatment('control')) + age + sex", people.assign(chi=truth[region])).fit().params
        for region in truth
    }
    return pd.DataFrame({r: {"slope": p["age"], "shift": p.filter(like="PD").item()} for r, p in fits.items()}).T


def test_the_shift_of_the_patients_is_found(out, effects):
    """In both parts of the substantia nigra and nowhere else; in every region as large as in what the images were made from."""
    table = pd.read_csv(out / "group_case-control_differences.tsv", sep="\t").set_index("region")
    assert set(table.index[table["q"] < 0.05]) == {"SNr", "SNc_PBP_VTA"}
    true = effects["shift"][table.index]  # 0.025 and 0.023 in these two: people differ, and other tissue is in the region
    assert len(table) == 14
    assert ((table["low"] < true) & (true < table["high"])).all()
    error = (table["difference"] - true).abs()
    assert error.max() < 0.01  # 0.007, in the habenula of 5 voxels; 0.0016 on average
    assert error[["SNr", "SNc_PBP_VTA"]].max() < 0.005


def test_the_slopes_of_age_are_found(cohort, effects):
    """Over 30 years within 0.01 ppm of those of the true values, in their order."""
    collected = collect(cohort, cohort / "derivatives" / "qsmflow")
    table = run_study(collected, replace(load_study("ageing"), bootstrap=0)).tables["ageing"].set_index("region")
    true = effects["slope"][table.index]
    assert len(table) == 14
    assert ((table["slope_low"] < true) & (true < table["slope_high"])).all()
    assert (30 * (table["slope"] - true)).abs().max() < 0.01  # 0.005; 0.0013 on average
    assert table["slope"].corr(true, method="spearman") > 0.95
    assert (table["slope"][table["slope_q"] < 0.05] > 0).all()


def test_the_values_follow_the_truth(out, truth):
    """In the right order, between regions and between people, and within 0.01 ppm where regions are more than a few voxels."""
    table = pd.read_csv(out / "group_rois.tsv", sep="\t")
    table["region"] = table["name"].map(region_key)
    measured = table.groupby(["participant_id", "region"])["chi_brain_mean"].mean().unstack()[truth.columns]
    assert measured.mean().corr(truth.mean(), method="spearman") > 0.98
    assert np.corrcoef(measured.mean(), truth.mean())[0, 1] > 0.95
    for region in ("Pu", "Ca", "SNr"):
        assert np.corrcoef(measured[region], truth[region])[0, 1] > 0.75, region
    assert (measured - truth).abs().mean().median() < 0.01  # 0.007
    assert (measured["SNr"] - truth["SNr"]).abs().mean() < 0.005  # a nucleus of 25 voxels; 0.004, at most 0.013


def test_the_datasets_are_valid(cohort, out):
    for root in (cohort, cohort / "derivatives" / "qsmflow", cohort / "derivatives" / "truth", out):
        assert validate(root) == [], root


def test_the_example_is_small(cohort):
    assert sum(path.stat().st_size for path in cohort.rglob("*")) < 12e6
