"""What can be wrong with a study: every message names the file and says what to do, with the exit code of its kind."""

import pytest

from qsmflow.cli.run import main
from qsmflow.errors import EXIT_DATASET, EXIT_USAGE


def people(truth, change):
    table = change(truth.people.astype(object))
    table.to_csv(truth.bids / "participants.tsv", sep="\t", index=False)


def model(truth, text):
    path = truth.bids.parent / "mine.yml"
    path.write_text(text)
    return ("--model", str(path))


def sessions(truth):
    """The first participant was scanned twice."""
    first = truth.out / "sub-001"
    table = (first / "anat" / "sub-001_atlas-CIT168_stats.tsv").read_text()
    for ses in ("ses-1", "ses-2"):
        path = first / ses / "anat" / f"sub-001_{ses}_atlas-CIT168_stats.tsv"
        path.parent.mkdir(parents=True)
        path.write_text(table)
    for path in (first / "anat").glob("*"):
        path.unlink()


CASE = ("--study", "case-control")

#: What is done to a good cohort of twelve, the options, the exit code, parts of the message.
MISTAKES = {
    "no participants.tsv": (
        lambda t: (t.bids / "participants.tsv").unlink(), (), EXIT_DATASET,
        ["there is no", "participants.tsv", "write"],
    ),
    "no region tables": (
        lambda t: [path.unlink() for path in t.out.rglob("*_stats.tsv")], (), EXIT_DATASET,
        ["no region tables", "run the participant level first"],
    ),
    "duplicate participants": (
        lambda t: people(t, lambda p: p.replace("sub-002", "sub-001")), (), EXIT_DATASET,
        ["participants.tsv", "sub-001", "one row per participant"],
    ),
    "commas for tabs": (
        lambda t: (t.bids / "participants.tsv").write_text("participant_id,age\nsub-001,30\n"), (), EXIT_DATASET,
        ["participants.tsv", "'participant_id'", "tabs"],
    ),
    "an age in words": (
        lambda t: people(t, lambda p: p.replace({"age": {p.loc[3, "age"]: "89+"}})), CASE, EXIT_DATASET,
        ["participants.tsv", "'age'", "sub-004 ('89+')", "n/a"],
    ),
    "an empty list": (
        lambda t: (t.bids / "participants.tsv").write_text(""), (), EXIT_DATASET,
        ["participants.tsv cannot be read as a table", "write", "participant_id"],
    ),
    "other labels": (
        lambda t: people(t, lambda p: p.assign(participant_id=[f"x{n}" for n in range(12)])), (), EXIT_DATASET,
        ["participants.tsv lists nobody", "sub-x0", "sub-001", "write the labels alike"],
    ),
    "no age of anybody": (
        lambda t: people(t, lambda p: p.assign(age="n/a")), CASE, EXIT_DATASET,
        ["participants.tsv", "none of the 12 scans", "age is missing in 12"],
    ),
    "one age": (
        lambda t: people(t, lambda p: p.assign(age=50)), ("--study", "ageing"), EXIT_DATASET,
        ["participants.tsv", "'age' is the same (50)", "several ages"],
    ),
    "one group": (
        lambda t: people(t, lambda p: p.assign(group="HC")), CASE, EXIT_DATASET,
        ["participants.tsv", "one group only", "HC: 12", "'group:' in a model file"],
    ),
    "three participants": (
        lambda t: people(t, lambda p: p.head(3)), ("--study", "ageing"), EXIT_DATASET,
        ["participants.tsv", "3 scans are too few", "more participants or fewer covariates"],
    ),
    "three participants in two groups": (
        lambda t: people(t, lambda p: p.head(3)), CASE, EXIT_DATASET,
        ["groups are too small", "HC: 2, PD: 1", "select: {group:"],
    ),
    "groups of unknown names": (
        lambda t: people(t, lambda p: p.replace("HC", "A")), CASE, EXIT_DATASET, ["which group", "A: 6, PD: 6", "reference:"],
    ),
    "a constant covariate": (
        lambda t: [people(t, lambda p: p.assign(iq=100))],
        "{analysis: case-control, covariates: [iq]}", EXIT_DATASET, ["'iq' is the same (100) for all 12", "take it out"],
    ),
    "a covariate that is the group": (
        lambda t: [people(t, lambda p: p.assign(scanner=p["group"]))],
        "{analysis: case-control, covariates: [scanner]}", EXIT_DATASET, ["cannot be told apart", "scanner"],
    ),
    "a site with one scan": (
        lambda t: [people(t, lambda p: p.assign(site=["b", *["a"] * 11]))],
        "{analysis: case-control, covariates: [site]}", EXIT_DATASET, ["cannot be told apart", "site[b]"],
    ),
    "an unknown column": (
        lambda t: None, "{analysis: case-control, covariates: [agee]}", EXIT_USAGE,
        ["needs the column 'agee'", "participants.tsv", "did you mean 'age'?"],
    ),
    "an unknown measure": (
        lambda t: None, "{analysis: ageing, measure: chi_maen}", EXIT_USAGE, ["'chi_maen'", "did you mean 'chi_mean'?"],
    ),
    "an unknown region": (
        lambda t: None, "{analysis: ageing, regions: [SNcc]}", EXIT_USAGE, ["'SNcc'", "did you mean 'SNc'?"],
    ),
    "an unknown setting": (
        lambda t: None, "{analysis: ageing, covariate: [sex]}", EXIT_USAGE,
        ["mine.yml", "'covariate'", "did you mean 'covariates'?"],
    ),
    "an unknown analysis": (lambda t: None, "{analysis: aging}", EXIT_USAGE, ["mine.yml", "'aging'", "did you mean 'ageing'?"]),
    "broken YAML": (lambda t: None, "{analysis: [", EXIT_USAGE, ["mine.yml", "not valid YAML"]),
    "a site for harmonisation is missing": (
        lambda t: None, "{analysis: ageing, harmonise: combat}", EXIT_USAGE, ["harmonise: combat", "needs 'site:'"],
    ),
    "an unknown study": (lambda t: None, ("--study", "case-controls"), EXIT_USAGE, ["did you mean 'case-control'?"]),
    "an unknown option": (lambda t: None, ("--studdy", "ageing"), EXIT_USAGE, ["--studdy", "did you mean '--study'?"]),
    "sessions without their file": (
        sessions, CASE, EXIT_DATASET, ["sub-001 has several sessions", "sub-001_sessions.tsv", "session: LABEL"],
    ),
    "one session for test-retest": (
        lambda t: None, ("--study", "test-retest"), EXIT_DATASET, ["0 participants have two sessions"],
    ),
    "a phantom without concentrations": (
        lambda t: None, ("--study", "phantom"), EXIT_DATASET, ["phantom.tsv", "name", "concentration"],
    ),
    "voxels without maps": (
        lambda t: None, (*CASE, "--voxelwise"), EXIT_DATASET, ["template space", "sub-001", "--output-spaces"],
    ),
    "voxels without a study": (lambda t: None, ("--voxelwise",), EXIT_USAGE, ["--voxelwise needs --study or --model"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, cohort_on_disk, tmp_path, capsys):
    truth = cohort_on_disk(tmp_path, 12)
    change, options, code, parts = MISTAKES[mistake]
    change(truth)
    words = model(truth, options) if isinstance(options, str) else options
    assert main([str(truth.bids), str(truth.out), "group", *words]) == code
    assert not list(truth.out.glob("group*")), "something was written"
    told = capsys.readouterr().err
    assert told.startswith("qsmflow: error: ")
    assert "Traceback" not in told
    for part in parts:
        assert part in told, told


def test_help_and_levels(capsys):
    with pytest.raises(SystemExit) as left:
        main(["a", "b", "group", "--help"])
    assert left.value.code == 0
    assert "--study" in capsys.readouterr().out
    assert main(["a", "b", "groupp"]) == EXIT_USAGE
    assert "did you mean 'group'?" in capsys.readouterr().err
