"""Studies of separated sources: the columns that ``--separation`` adds to region tables, through the command line."""

import numpy as np
import pandas as pd
import pytest

from qsmflow.cli.run import main

#: Change of the diamagnetic susceptibility in the caudate of patients, ppm.
DIAMAGNETIC = -0.02


@pytest.fixture(scope="module")
def sources(cohort_on_disk, tmp_path_factory):
    """A cohort whose patients have more iron in the nigra (0.03 ppm), and in the caudate more that is diamagnetic."""
    truth = cohort_on_disk(tmp_path_factory.mktemp("sources"), 20, seed=4)
    for number, (who, group) in enumerate(zip(truth.people["participant_id"], truth.people["group"], strict=True)):
        path = truth.out / who / "anat" / f"{who}_atlas-CIT168_stats.tsv"
        table, rng = pd.read_csv(path, sep="\t"), np.random.default_rng([4, number])
        table["para_mean"] = table["chi_mean"] + 0.01
        more = DIAMAGNETIC * (group == "PD") * table["name"].str.startswith("Ca_")
        table["dia_mean"] = -0.03 + more + rng.normal(0, 0.004) + rng.normal(0, 0.002, len(table))
        table["chi_mean"] = table["para_mean"] + table["dia_mean"]
        table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    return truth


def study(sources, name, **settings):
    """Run a model file; its page and a function that reads its tables."""
    model = sources.bids.parent / f"{name}.yml"
    model.write_text("\n".join(f"{key}: {value}" for key, value in settings.items()))
    assert main([str(sources.bids), str(sources.out), "group", "--model", str(model)]) == 0
    page = (sources.out / f"group_{name}.html").read_text()
    return page, lambda table: pd.read_csv(sources.out / f"group_{name}_{table}.tsv", sep="\t").set_index("region")


@pytest.mark.parametrize(
    ("measure", "hits", "shift", "words"),
    [("para_mean", {"SNc", "SNr"}, 0.03, "paramagnetic"), ("dia_mean", {"Ca"}, DIAMAGNETIC, "diamagnetic")],
)
def test_each_kind_of_sources_has_its_own_effect(sources, measure, hits, shift, words):
    page, read = study(sources, measure.replace("_", ""), analysis="case-control", measure=measure, covariates="[age, sex]")
    found = read("differences")
    assert set(found.index[found["q"] < 0.05]) == hits
    for region in hits:
        assert found.loc[region, "low"] < shift < found.loc[region, "high"]
    assert f"Mean of susceptibility of the {words} sources, ppm" in page
    assert f"({measure}) of 8 regions" in page
    # What is known of iron in Parkinson's disease says nothing about diamagnetic sources.
    expected = (sources.out / f"group_{measure.replace('_', '')}_expected.tsv").is_file()
    assert expected == (measure == "para_mean")


@pytest.mark.parametrize(("measure", "iron"), [("para_mean", True), ("dia_mean", False)])
def test_iron_by_age_stands_beside_paramagnetic_sources_only(sources, measure, iron):
    page, read = study(sources, f"age{measure[:3]}", analysis="ageing", measure=measure, covariates="['sex?']", bootstrap=0)
    assert (read("ageing")["status"] == "fitted").all()
    assert ("iron" in read("curves")) == iron
    assert ("Hallgren" in page) == iron


def test_the_wide_table_has_them(sources):
    assert main([str(sources.bids), str(sources.out), "group"]) == 0
    wide = pd.read_csv(sources.out / "group_rois_wide.tsv", sep="\t").set_index("participant_id")
    own = pd.read_csv(sources.out / "sub-003" / "anat" / "sub-003_atlas-CIT168_stats.tsv", sep="\t").set_index("name")
    assert wide.loc["sub-003", "Ca_L_dia_mean"] == pytest.approx(own.loc["Ca_L", "dia_mean"], rel=1e-5)
    assert wide.loc["sub-003", "SNr_R_para_mean"] == pytest.approx(own.loc["SNr_R", "para_mean"], rel=1e-5)


def test_voxelwise_maps_are_not_taken_for_those_of_sources(sources, capsys):
    model = sources.bids.parent / "voxels.yml"
    model.write_text("analysis: case-control\nmeasure: dia_mean\n")
    assert main([str(sources.bids), str(sources.out), "group", "--model", str(model), "--voxelwise"]) == 2
    assert "the model's measure is dia_mean" in capsys.readouterr().err
