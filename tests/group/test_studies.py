"""Whole studies on tables: what was put in is found, nothing is found where nothing is, nothing is dropped in silence."""

import json
import resource
import time

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from qsmflow.cli.run import main
from qsmflow.group.collect import collect
from qsmflow.group.linear import adjust, design, fit
from qsmflow.group.model import load_study, read_model
from qsmflow.group.study import run_study
from qsmflow.group.tables import outliers

SEEDS = 200


def effects(simulation, seed, *, null=False):
    """Age slope and group difference of every region of 40 people: estimate, error, limits, p."""
    table = simulation.people(40, seed)
    made = design(table, numeric=["age"], factors=["sex"], group="group", reference="HC")
    for name, sides in simulation.values(table, seed, null=null).items():
        fitted = fit(sides.mean(axis=1), made, table["participant_id"].to_numpy())
        yield name, fitted.effect(made.columns("age")[0]), fitted.effect(made.columns("group")[0])


@pytest.mark.slow
def test_known_slopes_and_shifts_are_found(simulation):
    """The truth of every region lies in its 95 % interval in at least 90 % of the seeds, and in 95 % altogether."""
    hits = dict.fromkeys(((name, what) for name in simulation.REGIONS for what in ("slope", "shift")), 0)
    for seed in range(SEEDS):
        for name, slope, shift in effects(simulation, seed):
            _, true_slope, true_shift = simulation.REGIONS[name]
            hits[name, "slope"] += slope[2] <= true_slope <= slope[3]
            hits[name, "shift"] += shift[2] <= true_shift <= shift[3]
    assert min(hits.values()) >= 0.9 * SEEDS, hits
    assert np.mean(list(hits.values())) / SEEDS == pytest.approx(0.95, abs=0.015)


@pytest.mark.slow
def test_nothing_is_found_where_nothing_is(simulation):
    """At a false discovery rate of 0.05, some region of a null cohort is significant in 5 % of the seeds, not in more."""
    clean = 0
    for seed in range(SEEDS):
        p = [shift[4] for _, _, shift in effects(simulation, seed, null=True)]
        clean += not adjust(p, 0.05)[1].any()
    assert clean >= 0.94 * SEEDS, clean


def test_the_first_steps_do_not_change_the_numbers(cohort_on_disk, tmp_path):
    """From files to the estimate: the same as a formula on the means of both sides."""
    truth = cohort_on_disk(tmp_path, 24, seed=3)
    study = run_study(collect(truth.bids, truth.out), load_study("case-control"))
    rows = []
    for who in truth.people["participant_id"]:
        table = pd.read_csv(truth.out / who / "anat" / f"{who}_atlas-CIT168_stats.tsv", sep="\t")
        rows.append(table[table["name"].isin(["SNc_L", "SNc_R"])]["chi_mean"].mean())
    fitted = smf.ols("y ~ C(group) + age + C(sex)", truth.people.assign(y=rows)).fit(cov_type="HC3", use_t=True)
    row = study.tables["differences"].set_index("region").loc["SNc"]
    assert row["difference"] == pytest.approx(fitted.params["C(group)[T.PD]"])
    assert row["p"] == pytest.approx(fitted.pvalues["C(group)[T.PD]"])
    assert study.tables["expected"]["found"].tolist() == ["higher", "higher"]
    assert row["low"] < truth.shift["SNc"] < row["high"]


def test_sides_apart_measures_and_selection(cohort_on_disk, tmp_path):
    truth = cohort_on_disk(tmp_path, 20)
    text = """
        {name: x, analysis: case-control, hemispheres: separate, measure: r2star_mean, regions: [SNr_R],
         covariates: [age, "sex?"], select: {sex: [F]}, exclude: [sub-002]}
    """
    study = run_study(collect(truth.bids, truth.out), read_model(text, "here"))
    assert list(study.data.values) == ["SNr_R"]
    assert study.data.names["SNr_R"].endswith(", right")
    assert (study.data.people["sex"] == "F").all()
    assert "sub-002" not in study.data.people.index
    assert study.data.values.iloc[0, 0] > 10  # 20 + 100 chi, 1/s
    reasons = {reason for _, reason in study.data.left_out}
    assert reasons == {"excluded by the model", "sex is not F"}


def test_a_reference_region_that_differs_is_told(cohort_on_disk, tmp_path):
    truth = cohort_on_disk(tmp_path, 20)
    for row, who in enumerate(truth.people["participant_id"]):
        path = truth.out / who / "anat" / f"{who}_desc-qc_stats.json"
        path.write_text(json.dumps({"metrics": {"reference_mean": 0.01 * (row % 2) + 0.001 * (row % 5)}}))
    cohort = collect(truth.bids, truth.out)
    assert any("reference region differs" in told for told in run_study(cohort, load_study("case-control")).notices)
    brain = read_model("{name: x, analysis: case-control, measure: chi_brain_mean}", "here")
    assert not any("reference region" in told for told in run_study(cohort, brain).notices)


def test_what_is_missing_is_told(cohort_on_disk, tmp_path):
    truth = cohort_on_disk(tmp_path, 20)
    table = truth.people.astype(object)
    table.loc[3, "age"] = "n/a"
    table.loc[20] = ["sub-999", 50, "F", "HC"]
    table.drop(index=5).to_csv(truth.bids / "participants.tsv", sep="\t", index=False)
    broken = truth.out / "sub-001" / "anat" / "sub-001_atlas-CIT168_stats.tsv"
    lines = broken.read_text().splitlines()
    cells = lines[1].split("\t")
    lines[1] = "\t".join([*cells[:5], *["n/a"] * (len(cells) - 5)])
    broken.write_text("\n".join(lines) + "\n")
    (truth.out / "sub-002" / "anat" / "sub-002_desc-qc_stats.json").unlink()
    cohort = collect(truth.bids, truth.out)
    study = run_study(cohort, load_study("case-control"))
    told = "\n".join([*cohort.notices, *study.notices])
    for part in (
        "sub-999: in participants.tsv, but without a region table", "sub-006: with region tables, but not in",
        "sub-002: quality metrics", "not used (no age in participants.tsv): sub-004", "1 values of one side only",
        "left out of these regions only: Ca 1 of 18",
    ):  # fmt: skip
        assert part in told, told
    rows = study.tables["ancova"].set_index("region")["n"]
    assert (rows["Ca"], rows["Pu"]) == (17, 18)


def test_sites_are_harmonised(cohort_on_disk, tmp_path):
    truth = cohort_on_disk(tmp_path, 40, sites=("a", "b"))
    for who, site in zip(truth.people["participant_id"], truth.people["site"], strict=True):
        path = truth.out / who / "anat" / f"{who}_atlas-CIT168_stats.tsv"
        table = pd.read_csv(path, sep="\t")
        table["chi_mean"] += 0.05 * (site == "b")
        table.to_csv(path, sep="\t", index=False)
    cohort = collect(truth.bids, truth.out)
    text = "{name: x, analysis: case-control, covariates: [age, sex], site: site, harmonise: combat}"
    clean = run_study(cohort, read_model(text, "here")).data
    by_site = clean.values.groupby(clean.people["site"]).mean()
    assert np.abs(by_site.loc["a"] - by_site.loc["b"]).max() < 0.012
    found = run_study(cohort, read_model(text, "here")).tables["differences"].set_index("region")
    assert found.loc["SNc", "low"] < truth.shift["SNc"] < found.loc["SNc", "high"]
    assert found.loc["SNc", "q"] < 0.001


def test_sessions_runs_and_agreement(simulation, tmp_path):
    """Two sessions, the second with two runs: the runs are averaged, the sessions compared."""
    bids, out, rng = tmp_path / "bids", tmp_path / "out", np.random.default_rng(0)
    bids.mkdir()
    table = simulation.people(12, 0)
    table.to_csv(bids / "participants.tsv", sep="\t", index=False)
    for who in table["participant_id"]:
        own = rng.normal(0.1, 0.02)
        for name in (f"{who}_ses-1", f"{who}_ses-2_run-1", f"{who}_ses-2_run-2"):
            pairs = [("SNr", side, own + rng.normal(0, 0.004)) for side in "LR"]
            simulation.write_region_table(out / who / name.split("_")[1] / "anat" / f"{name}_atlas-X_stats.tsv", pairs)
    study = run_study(collect(bids, out), load_study("test-retest"))
    row = study.tables["reliability"].iloc[0]
    assert row["n"] == 12
    # 0.004 / sqrt(2) of the mean of both sides, once more averaged in the second session
    assert row["within_sd"] == pytest.approx(0.004 * np.sqrt((1 / 2 + 1 / 4) / 2), rel=0.4)
    assert row["icc_consistency"] > 0.95
    assert any("averaged for 12 of 24" in notice for notice in study.notices)
    # Groups with repeated sessions want an age per session.
    assert main([str(bids), str(out), "group", "--study", "case-control"]) == 3
    for who, age in zip(table["participant_id"], table["age"], strict=True):
        (bids / who).mkdir()
        (bids / who / f"{who}_sessions.tsv").write_text(f"session_id\tage\nses-1\t{age}\nses-2\t{age + 2}\n")
    cohort = collect(bids, out)
    assert cohort.scans["age"].astype(float).iloc[1] == table["age"].iloc[0] + 2
    assert "between_participants" in run_study(cohort, load_study("case-control")).tables["ancova"]


def test_a_region_without_a_result_is_told_in_table_page_and_log(simulation, tmp_path, capsys):
    """A region whose values are the same in both sessions: its mixed model is singular, the others stand."""
    bids, out, rng = tmp_path / "bids", tmp_path / "out", np.random.default_rng(0)
    table = simulation.people(12, 0)
    for who, age in zip(table["participant_id"], table["age"], strict=True):
        (bids / who).mkdir(parents=True)
        (bids / who / f"{who}_sessions.tsv").write_text(f"session_id\tage\nses-1\t{age}\nses-2\t{age + 2}\n")
        own = rng.normal(0.1, 0.02, 2)
        for name in (f"{who}_ses-1", f"{who}_ses-2"):
            chi = {"RN": own[0], "SNr": own[1] + rng.normal(0, 0.004)}
            pairs = [(region, side, value) for region, value in chi.items() for side in "LR"]
            simulation.write_region_table(out / who / name.split("_")[1] / "anat" / f"{name}_atlas-X_stats.tsv", pairs)
    table.to_csv(bids / "participants.tsv", sep="\t", index=False)
    for study, name in (("case-control", "ancova"), ("ageing", "ageing")):
        assert main([str(bids), str(out), "group", "--study", study]) == 0
        lines = (out / f"group_{study}_{name}.tsv").read_text().splitlines()
        rows = {line.split("\t")[0]: line.split("\t") for line in lines}
        assert rows["RN"][3].startswith("the mixed model is singular")
        assert set(rows["RN"][4:]) == {"n/a"}
        assert rows["SNr"][3] == "fitted"
        told = "no result (the mixed model is singular: the values of a participant do not vary beyond it): RN"
        assert f"notice: {told}" in capsys.readouterr().out
        assert told in max((out / "logs").iterdir(), key=lambda path: path.stat().st_mtime).read_text()
        page = (out / f"group_{study}.html").read_text()
        assert told[1:] in page
        assert "<td>the mixed model is singular: the values of a participant do not vary beyond it</td><td>n/a</td>" in page


def test_a_phantom(simulation, tmp_path):
    bids, out = tmp_path / "bids", tmp_path / "out"
    bids.mkdir()
    (bids / "participants.tsv").write_text("participant_id\nsub-gd\n")
    (bids / "phantom.tsv").write_text("name\tconcentration\n" + "".join(f"vial{n}\t{n / 2}\n" for n in range(6)))
    rng = np.random.default_rng(0)
    pairs = [(f"vial{n}", "n/a", 0.31 * n / 2 - 0.02 + rng.normal(0, 0.002)) for n in range(6)] + [("agar", "n/a", 0.0)]
    simulation.write_region_table(out / "sub-gd" / "anat" / "sub-gd_atlas-vials_stats.tsv", pairs)
    study = run_study(collect(bids, out), load_study("phantom"))
    row = study.tables["calibration"].iloc[0]
    assert row["slope_low"] < 0.31 < row["slope_high"]
    assert row["intercept_low"] < -0.02 < row["intercept_high"]
    assert (row["n"], row["slope"]) == (6, pytest.approx(0.31, abs=0.004))
    assert row["ratio"] == pytest.approx(0.31 / 0.338, rel=0.02)


def test_outliers(cohort_on_disk, tmp_path):
    truth = cohort_on_disk(tmp_path, 20)
    path = truth.out / "sub-007" / "anat" / "sub-007_desc-qc_stats.json"
    path.write_text(json.dumps({"metrics": {"coverage": 0.1, "snr_echo1": 42.0, "new_metric": 0.5}}))
    row = outliers(collect(truth.bids, truth.out)).iloc[0]
    assert (row["acquisition"], row["what"]) == ("sub-007", "coverage")
    assert row["z"] < -10


@pytest.mark.slow
def test_two_hundred_participants(cohort_on_disk, tmp_path):
    """Tables to report in less than two minutes, with flat memory."""
    truth = cohort_on_disk(tmp_path, 200)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for study in ("case-control", "ageing"):
        assert main([str(truth.bids), str(truth.out), "group", "--study", study]) == 0
    assert time.process_time() - start < 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # kilobytes
