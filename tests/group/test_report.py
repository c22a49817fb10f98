"""The files of the group level: the page, the tables with their dictionaries, the output tree as a BIDS dataset."""

import json
import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest

from qsmflow.cli.run import main
from qsmflow.cli.validator import validate


@pytest.fixture(scope="module")
def made(cohort_on_disk, tmp_path_factory):
    """A cohort whose tables, groups and ages were reported."""
    truth = cohort_on_disk(tmp_path_factory.mktemp("report"), 14, seed=2)
    path = truth.out / "sub-003" / "anat" / "sub-003_desc-qc_stats.json"
    path.write_text(json.dumps({"metrics": {"coverage": 0.2, "snr_echo1": 42.0, "new_metric": 0.5}}))
    (truth.out / "sub-003.html").write_text("<html></html>")
    for words in ((), ("--study", "case-control"), ("--study", "ageing")):
        assert main([str(truth.bids), str(truth.out), "group", *words]) == 0
    return truth


class _Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id"))
        self.found += [(tag, key, values[key]) for key in ("src", "href", "srcset", "data") if values.get(key)]


PAGES = ("group", "group_case-control", "group_ageing")


@pytest.mark.parametrize("page", PAGES)
def test_the_page_asks_nobody_for_anything(made, page):
    text = (made.out / f"{page}.html").read_text()
    links = _Links(text)
    for tag, key, target in links.found:
        if tag != "a":
            assert target.startswith("data:"), (tag, key, target[:80])
        elif target.startswith("#"):
            assert target[1:] in links.ids, target
        elif not target.startswith(("https://doi.org/", "data:")):
            assert (made.out / target).is_file(), target
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import", text)


def test_outliers_lead_to_the_page_of_their_subject(made):
    text = (made.out / "group.html").read_text()
    assert '<a href="sub-003.html">sub-003</a>' in text


def test_an_outlier_whose_page_is_not_there_is_no_link(made, tmp_path):
    shutil.copytree(made.out, tmp_path / "out", ignore=shutil.ignore_patterns("*.html"))
    assert main([str(made.bids), str(tmp_path / "out"), "group"]) == 0
    text = (tmp_path / "out" / "group.html").read_text()
    assert "<td>sub-003</td>" in text
    assert "sub-003.html" not in text


def test_findings_are_on_the_page(made):
    text = (made.out / "group_case-control.html").read_text()
    row = pd.read_csv(made.out / "group_case-control_differences.tsv", sep="\t").set_index("region").loc["SNc"]
    assert f"Substantia nigra {row['difference']:+.4f}" in text
    assert "Benjamini" in text  # its reference
    assert "Hallgren" in (made.out / "group_ageing.html").read_text()


def test_every_column_is_explained(made):
    tables = sorted(made.out.glob("group_*.tsv"))
    assert [path.name for path in tables] == [
        "group_ageing_adjusted.tsv", "group_ageing_ageing.tsv", "group_ageing_curves.tsv", "group_case-control_ancova.tsv",
        "group_case-control_differences.tsv", "group_case-control_expected.tsv", "group_case-control_means.tsv", "group_qc.tsv",
        "group_rois.tsv", "group_rois_wide.tsv",
    ]  # fmt: skip
    for path in tables:
        table = pd.read_csv(path, sep="\t")
        dictionary = json.loads(path.with_suffix(".json").read_text())
        assert list(dictionary) == list(table.columns)
        for column, entry in dictionary.items():
            assert entry["Description"] != column, f"{path.name}: {column}"


def test_the_collected_tables(made):
    long, wide, quality = (pd.read_csv(made.out / f"group_{name}.tsv", sep="\t") for name in ("rois", "rois_wide", "qc"))
    assert (len(long), len(wide), len(quality)) == (14 * 16, 14, 14)
    own = pd.read_csv(made.out / "sub-005" / "anat" / "sub-005_atlas-CIT168_stats.tsv", sep="\t").set_index("name")
    mine = long[long["participant_id"] == "sub-005"].set_index("name")
    assert mine["chi_p95"].to_dict() == own["chi_p95"].to_dict()
    row = wide.set_index("participant_id").loc["sub-005"]
    assert row["GPe_R_chi_mean"] == own.loc["GPe_R", "chi_mean"]
    assert row["age"] == made.people.set_index("participant_id").loc["sub-005", "age"]
    assert quality.loc[2, "coverage"] == 0.2
    assert {"new_metric", "snr_echo1", "group"} <= set(quality)


def test_the_tree_is_a_valid_dataset(made):
    assert validate(made.out) == []


def test_the_same_again(made):
    names = [path for path in sorted(made.out.glob("group*")) if path.suffix != ".log"]
    before = {path: path.read_bytes() for path in names}
    assert main([str(made.bids), str(made.out), "group", "--study", "case-control"]) == 0
    assert {path: path.read_bytes() for path in names} == before


def test_results_elsewhere(made, tmp_path):
    """With ``--derivatives`` the results are read there, and nothing is written to them."""
    before = sorted(made.out.rglob("*"))
    assert main([str(made.bids), str(tmp_path / "new"), "group", "-d", str(made.out), "--study", "ageing"]) == 0
    assert sorted(made.out.rglob("*")) == before
    assert "sub-003.html" in (tmp_path / "new" / "group_ageing.html").read_text()
    assert validate(tmp_path / "new") == []
