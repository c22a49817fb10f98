"""The example cohort: the README's command, and what it finds against the truth of the simulation."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from qsmflow.cli.run import main
from qsmflow.cli.validator import validate
from qsmflow.group.collect import region_key


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


def test_the_shift_of_the_patients_is_found(cohort, out, truth):
    """In both parts of the substantia nigra and nowhere else, as large as it is in what the images were made from."""
    table = pd.read_csv(out / "group_case-control_differences.tsv", sep="\t").set_index("region")
    assert set(table.index[table["q"] < 0.05]) == {"SNr", "SNc_PBP_VTA"}
    people = pd.read_csv(cohort / "participants.tsv", sep="\t").set_index("participant_id")
    for region in ("SNr", "SNc_PBP_VTA"):
        made = smf.ols("chi ~ C(group, Treatment('control')) + age + sex", people.assign(chi=truth[region])).fit()
        true = made.params.filter(like="PD").item()  # 0.025 and 0.023: people differ, and other tissue is in the region
        assert table.loc[region, "low"] < true < table.loc[region, "high"]
        assert abs(table.loc[region, "difference"] - true) < 0.005


def test_the_values_follow_the_truth(out, truth):
    """In the right order, between regions and between people, and within 0.01 ppm where regions are more than a few voxels."""
    table = pd.read_csv(out / "group_rois.tsv", sep="\t")
    table["region"] = table["name"].map(region_key)
    measured = table.groupby(["participant_id", "region"])["chi_brain_mean"].mean().unstack()[truth.columns]
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
