"""Pictures, quality table and the subject's page."""

import html.parser
import io
import json
import re
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
from PIL import Image

from qsmflow.reports import figures, gallery, page, quality, spread
from qsmflow.reports.figures import Row, montage, nice, view_of

SHAPE = (20, 24, 18)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def stored(volume: np.ndarray, affine: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """An RAS volume as a scanner would have stored it along other axes."""
    turn = nb.orientations.ornt_transform(nb.orientations.io_orientation(affine), nb.orientations.axcodes2ornt(axes))
    return nb.orientations.apply_orientation(volume, turn), affine @ nb.orientations.inv_ornt_aff(turn, volume.shape)


@pytest.fixture
def affine():
    return np.array([[2.0, 0, 0, -19], [0, 2, 0, -23], [0, 0, 3, -26], [0, 0, 0, 1]])


@pytest.fixture
def head():
    """A box with a bright corner at the patient's right, front and top."""
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    image = np.zeros(SHAPE, np.float32)
    image[mask] = 0.2
    image[12:, 14:, 10:] = 1.0
    return image * mask, mask


@pytest.mark.parametrize("axes", ["RAS", "LAS", "ASR", "LPI", "PIR"])
def test_a_picture_does_not_depend_on_how_the_volume_is_stored(head, affine, axes):
    image, mask = head
    expected = montage(view_of(mask, affine), figures.three_planes(view_of(mask, affine), image, window=(0, 1), unit="u"))
    turned, new_affine = stored(image, affine, axes)
    view = view_of(stored(mask, affine, axes)[0], new_affine)
    assert montage(view, figures.three_planes(view, turned, window=(0, 1), unit="u")) == expected


def test_the_right_of_the_patient_is_at_the_left(head, affine):
    image, mask = head
    view = view_of(mask, affine)
    axial = figures._cut(view.take(image), "axial", view.take(image).shape[2] - 5)
    rows, columns = np.nonzero(axial > 0.5)
    assert columns.mean() < axial.shape[1] / 2  # right of the patient
    assert rows.mean() > axial.shape[0] / 2  # front: up, because the origin is at the bottom
    sagittal = figures._cut(view.take(image), "sagittal", view.take(image).shape[0] - 5)
    rows, columns = np.nonzero(sagittal > 0.5)
    assert columns.mean() < sagittal.shape[1] / 2  # front
    assert rows.mean() > sagittal.shape[0] / 2  # top
    assert figures._SIDES == {"sagittal": ("A", "P"), "coronal": ("R", "L"), "axial": ("R", "L")}


def test_pictures_keep_the_proportions_of_the_voxels(head, affine):
    image, mask = head
    view = view_of(mask, affine, margin=0)
    assert view.size("axial") == pytest.approx((16 * 2, 20 * 2))
    assert view.size("coronal") == pytest.approx((16 * 2, 14 * 3))
    assert view.size("sagittal") == pytest.approx((20 * 2, 14 * 3))
    shown = pixels(montage(view, [Row(image, "coronal", (0, 1), "u")], tiles=2))
    # The tiles are the part of the row that is not the picture's background.
    inside = (shown != shown[2, 2]).any(axis=2)
    inside[:, : figures._LEFT] = inside[:, figures._WIDTH - figures._RIGHT :] = False
    height = inside.any(axis=1).sum()
    widths = np.flatnonzero(np.diff(inside.any(axis=0).astype(int)))
    assert (widths[1] - widths[0]) / height == pytest.approx(32 / 42, rel=0.03)


def test_cuts_lie_inside_the_mask_and_know_their_place(head, affine):
    _, mask = head
    view = view_of(mask, affine, margin=4)
    positions = view.positions("axial", 5)
    assert positions == sorted(set(positions))
    inside = view.take(mask)
    assert all(inside[:, :, p].any() for p in positions)
    p = positions[0]
    assert view.millimetres("axial", p) == pytest.approx(affine[2, 3] + 3 * (view.box[2].start + p))


def test_focus_puts_the_cuts_on_the_regions(head, affine):
    _, mask = head
    focus = np.zeros(SHAPE, bool)
    focus[8:10, 8:10, 12:14] = True
    view = view_of(mask, affine, focus=focus)
    assert {view.box[2].start + p for p in view.positions("axial", 2)} == {12, 13}


def test_bytes_depend_on_the_arrays_alone(head, affine):
    import matplotlib

    image, mask = head
    view = view_of(mask, affine)
    rows = figures.three_planes(view, image, window=(0, 1), unit="u", mask=mask, outlines=[(mask, {1: figures.FIRST})])
    first = montage(view, rows, legend={"mask": figures.FIRST})
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "image.cmap": "jet", "savefig.dpi": 10}):
        assert montage(view, rows, legend={"mask": figures.FIRST}) == first
    assert montage(view, figures.three_planes(view, image + 0.1, window=(0, 1), unit="u", mask=mask)) != first
    assert not re.search(rb"tEXt|tIME|Software", first)


def test_a_picture_needs_no_pyplot(head, affine):
    import subprocess
    import sys

    code = "import sys, qsmflow.reports.gallery; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_outside_of_the_mask_is_black_and_the_window_holds(head, affine):
    image, mask = head
    view = view_of(mask, affine, margin=10)
    shown = pixels(montage(view, [Row(image, "axial", (0.0, 0.4), "u", mask=mask)], tiles=2))
    greys = shown[(shown[..., 0] == shown[..., 1]) & (shown[..., 1] == shown[..., 2])][:, 0]
    assert {0, 255} <= set(np.unique(greys))
    assert (np.abs(greys - 128) < 3).sum() > 1000  # 0.2 in a window up to 0.4


@pytest.mark.parametrize("shape", [(5, 40, 40), (40, 5, 12), (1, 8, 8), (60, 8, 9)])
def test_odd_fields_of_view_can_be_drawn(shape, affine):
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    mask = np.ones(shape, bool)
    view = view_of(mask, affine)
    shown = pixels(montage(view, figures.three_planes(view, image, window=(-1, 1), unit="u", mask=mask)))
    assert shown.shape[1] == figures._WIDTH
    assert shown.shape[0] < 4000


def test_nice_numbers_are_at_or_above():
    for value in (1e-4, 0.0023, 0.15, 0.99, 1, 1.01, 47, 3e5):
        assert value <= nice(value) < 2.1 * value
    assert figures.symmetric_window(np.array([-4.0, 0.1]), np.array([True, True]), 100) == (-5.0, 5.0)
    assert figures.positive_window(np.zeros(3), np.ones(3, bool)) == (0.0, 1.0)
    assert figures.symmetric_window(np.zeros(3), np.zeros(3, bool)) == (-1.0, 1.0)


REGIONS = [
    {"name": "Pu_L", "structure": "Putamen", "hemisphere": "L", "mean": 0.05, "p05": 0.01, "p95": 0.1, "range": (0.03, 0.11)},
    {"name": "Pu_R", "structure": "Putamen", "hemisphere": "R", "mean": 0.12, "p05": 0.02, "p95": 0.2, "range": (0.03, 0.11)},
    {"name": "X", "structure": "X", "hemisphere": "", "mean": -0.3, "p05": -0.4, "p95": -0.2, "range": None},
]


def test_regions_plot_shows_every_region():
    shown = pixels(figures.regions_plot(REGIONS))
    for colour in (figures.SECOND, figures.FIRST, figures.TEXT):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(shown - rgb).max(axis=2) < 4).sum() > 40
    assert figures.regions_plot(REGIONS[:2]) != figures.regions_plot(REGIONS)


@pytest.fixture
def material(head, affine, rng):
    image, mask = head
    labels = np.zeros(SHAPE, np.int32)
    labels[6:9, 8:12, 8:11], labels[11:14, 8:12, 8:11] = 1, 101
    noise = rng.standard_normal(SHAPE).astype(np.float32)
    phase = np.stack([noise, 3 * noise], axis=-1)
    arrays = {
        "magnitude": image * 100, "wrapped": np.angle(np.exp(1j * phase)), "unwrapped": phase, "brain": mask, "mask": mask,
        "quality": image, "total_field": noise * mask, "local_field": noise * mask, "field_error": np.abs(noise) * mask,
        "residual": image, "chi": noise * mask / 10, "r2star": 30 * image, "labels": labels,
        "matching": 90 + 10 * image, "chi_para": image / 10, "chi_dia": -image / 20,
        "swi": image, "minip": image, "phase_mask": 0.5 * mask,
    }  # fmt: skip
    return gallery.Material(arrays, affine, 3.0, 4, "the whole brain", REGIONS, 14.0, {1: "Putamen", 101: "Putamen"})


def test_gallery_draws_everything_there_is(material):
    drawn = list(gallery.draw(material))
    assert [d.name for d in drawn] == [p.name for p in gallery.PICTURES]
    assert len({d.name for d in drawn}) == len(drawn)
    assert [d.sidecar["order"] for d in drawn] == sorted(d.sidecar["order"] for d in drawn)
    for d in drawn:
        assert set(d.sidecar) == {"title", "caption", "section", "order"}
        assert d.sidecar["section"] in page._PICTURES
        assert "{" not in d.sidecar["caption"]
        assert "Good:" in d.sidecar["caption"]
        assert pixels(d.png).shape[1] == figures._WIDTH
    assert "slabs of 14 mm" in next(d.sidecar["caption"] for d in drawn if d.name == "desc-weighted_T2starw")
    captions = {d.name: d.sidecar["caption"] for d in drawn}
    assert "10.1002/hbm.25569" in captions["desc-regions_stats"]
    hz, ppm = re.search(r"±(\S+) Hz are ±(\S+) ppm at 3 T", captions["desc-total_fieldmap"]).groups()
    assert float(hz) / float(ppm) == pytest.approx(127.732, rel=0.06)


@pytest.mark.parametrize(
    "missing",
    ["chi", "r2star", "labels", "quality", "unwrapped", "brain", "residual", "field_error", "minip", "chi_dia"],
)
def test_gallery_leaves_out_what_cannot_be_drawn(material, missing):
    arrays = {name: array for name, array in material.arrays.items() if name != missing}
    left = gallery.possible(gallery.Material(arrays, material.affine, 3.0, 4, regions=REGIONS))
    assert left == [p for p in gallery.PICTURES if missing not in p.needs]
    for picture in left:
        if missing in ("brain", "labels") and picture.section in ("masks", "regions"):
            assert picture.draw(gallery.Material(arrays, material.affine, 3.0, 4, regions=REGIONS))[0]


def test_gallery_needs_something_to_see(material):
    arrays = {**material.arrays, "labels": np.zeros(SHAPE, np.int32)}
    left = {p.name for p in gallery.possible(gallery.Material(arrays, material.affine, None, 4))}
    assert not left & {"desc-atlas_dseg", "desc-regions_stats", "desc-total_fieldmap"}


def test_gallery_without_phase_has_masks_and_relaxation(material):
    arrays = {name: material.arrays[name] for name in ("magnitude", "mask", "r2star")}
    drawn = list(gallery.draw(gallery.Material(arrays, material.affine, None, 3)))
    assert [d.name for d in drawn] == ["desc-map_R2starmap", "desc-outline_mask"]


def test_one_echo_is_drawn_once(material):
    arrays = {**material.arrays, **{name: material.arrays[name][..., :1] for name in ("wrapped", "unwrapped")}}
    two = pixels(gallery._phase(material)[0]).shape[0]
    assert pixels(gallery._phase(gallery.Material(arrays, material.affine, 3.0, 1))[0]).shape[0] < 0.6 * two


def test_every_metric_says_what_it_is():
    keys = [row.key for row in quality.METRICS]
    assert len(set(keys)) == len(keys)
    for row in quality.METRICS:
        assert row.title
        assert row.meaning.endswith(".")
        assert row.good
        assert (row.low, row.high) != (None, None)
        assert row.remedy or not row.alone
    assert quality.metric("unheard") is None
    assert quality.metric("residues_echo12").key == "residues_*"


def test_limits_flag_on_the_right_side_only():
    assert quality.warnings({"coverage": 0.76, "streaks": 1.9, "reference_sd": None, "unheard": 1e9}) == []
    low, high = quality.warnings({"coverage": 0.74, "streaks": 2.1})
    assert low["what"].startswith("coverage is 0.74")
    assert high["remedy"] == quality.metric("streaks").remedy
    (echo,) = quality.warnings({"snr_echo1": 30, "snr_echo2": 2})
    assert "of echo 2 is 2" in echo["what"]
    assert [bool(quality.warnings({"reference_mean": v})) for v in (-0.1, 0.0, 0.1)] == [True, False, True]


@pytest.mark.parametrize(
    ("values", "inverted"),
    [((0.3, 0.05, 0.1), False), ((-0.3, -0.05, -0.1), True), ((-0.3, 0.05, 0.1), False), ((-0.3, -0.05, 0.1), True),
     ((-0.3, None, None), True), ((-0.3, 0.05, None), False), ((None, None, None), False)],
)  # fmt: skip
def test_polarity_is_decided_by_the_majority(values, inverted):
    metrics = dict(zip(("tail_asymmetry", "iron_contrast", "nuclei_contrast"), values, strict=True))
    found = quality.warnings(metrics)
    assert [w["what"].startswith("susceptibility looks inverted") for w in found] == [True] * inverted
    assert not inverted or "--phase-sign" in found[0]["remedy"]


def test_plausible_ranges_are_those_of_the_table():
    text = (quality.resources.files("qsmflow.data") / "plausible_chi.tsv").read_text().splitlines()[1:]
    for line in text:
        structure, names, low, high = line.split("\t")
        assert float(low) < float(high)
        for name in names.split(","):
            for spelled in (name, f"{name}_L", f"Right-{name}"):
                assert quality.plausible(spelled) == quality.Plausible(structure, float(low), float(high))
    assert quality.plausible("Cuneus") is None
    assert quality.Plausible("x", 0.1, 0.2).holds(0.081)
    assert not quality.Plausible("x", 0.1, 0.2).holds(0.079)


def test_the_packaged_atlas_has_ranges_for_its_nuclei():
    table = (quality.resources.files("qsmflow.data") / "atlas/tpl-MNI152NLin2009cAsym_atlas-CIT168_dseg.tsv").read_text()
    names = [line.split("\t")[1] for line in table.splitlines()[1:]]
    known = {quality._stem(name) for name in names if quality.plausible(name)}
    assert known == {"pu", "ca", "gpe", "gpi", "sncpbpvta", "snr", "rn", "sth"}
    assert quality.structure("SNc_PBP_VTA_L") == "Substantia nigra pars compacta"


def test_region_metrics():
    assert quality.region_metrics(REGIONS) == pytest.approx({"regions_plausible": 1.0, "left_right": 0.07})
    moved = [{**region, "mean": region["mean"] + 0.05} for region in REGIONS]
    assert quality.region_metrics(moved)["regions_plausible"] == 0.5
    assert quality.region_metrics(REGIONS[2:]) == {}
    assert quality.region_metrics([]) == {}


def test_polarity_is_the_mean_of_the_signs():
    assert quality.polarity({"tail_asymmetry": -0.3, "iron_contrast": float("nan"), "nuclei_contrast": 0.1}) == {"polarity": 0}
    assert quality.polarity({"tail_asymmetry": -0.3, "nuclei_contrast": -1e-6}) == {"polarity": -1}
    assert quality.polarity({"streaks": 1.0, "iron_contrast": None}) == {}


def test_every_metric_is_defined_in_the_documents():
    """docs/quality.md has a row with key, unit, direction and limits of every metric, and no other rows."""
    lines = (Path(__file__).parents[2] / "docs/quality.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert [row[:4] for row in rows] == [
        [f"`{metric.key.replace('*', 'echo<n>')}`", metric.unit or "1", metric.good, metric.limit] for metric in quality.METRICS
    ]


HOSTILE = '<script>alert("x")</script> & {{ 7 * 7 }} {out_dir}'


def write_acquisition(out, name, *, warnings=(), notice="a notice", figures_of=("narrow_Chimap", "outline_mask")):
    """The files that a run leaves for one acquisition."""
    subject, *rest = name.split("_")
    session = next((part for part in rest if part.startswith("ses-")), "")
    anat, folder = out / subject / session / "anat", out / subject / "figures"
    anat.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "acquisition": name, "version": "0.1.0", 
        "metrics": {"snr_echo1": 31.2, "snr_echo2": 4.0, "coverage": 0.9, "streaks": None},
        "notices": [notice], "warnings": [dict(w) for w in warnings],
        "inputs": {"echo_times": [0.004, 0.012], "b0": 3.0, "voxel_size": [1, 1, 2], "b0_dir": [0, 0, 1], "shape": [8, 9, 10],
                   "sources": ["bids:raw:x.nii.gz"], "metadata": {}},
        "methods": {"text": f"Done well [@bilgic2024; @sun2014]. {HOSTILE}\n\nAnd again [@sun2014].\n",
                    "citations": ["bilgic2024", "sun2014"]},
        "recipe": {"name": "consensus", "hash": "abc", "toml": 'name = "consensus"\n'},
        "reporting_table": [["Scanner", HOSTILE]],
    }  # fmt: skip
    (anat / f"{name}_desc-qc_stats.json").write_text(json.dumps(content))
    (anat / f"{name}_atlas-CIT168_stats.tsv").write_text("index\tname\tchi_mean\n1\tPu_L\t-0.0512345\n")
    for order, desc in enumerate(figures_of):
        section = {"Chimap": "chi", "mask": "masks"}[desc.rpartition("_")[2]]
        Image.new("RGB", (40, 30), (10 * order, 0, 0)).save(folder / f"{name}_desc-{desc}.png")
        sidecar = {"title": f"picture {desc}", "caption": "Good: yes.", "section": section, "order": order}
        (folder / f"{name}_desc-{desc}.json").write_text(json.dumps(sidecar))
    (out / "logs").mkdir(exist_ok=True)
    (out / "logs" / f"{name}_timing.tsv").write_text("node\tseconds\tstatus\nload\t1.50\tdone\nchain.tv\t3.00\tcached\n")


class Outline(html.parser.HTMLParser):
    """Tags, ids, link targets and text of a page; unbalanced tags are an error."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.stack, self.ids, self.links, self.loads, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.stack.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "a":
            self.links.append(attrs["href"])
        else:
            self.loads += [
                value for key, value in attrs.items() if key in ("src", "href", "data", "srcset", "action") and value
            ]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("script", "style"):
            self.text.append(data)


def build(out, subject="01"):
    text = page.build_subject_page(out, subject).read_text(encoding="utf-8")
    return text, Outline(text)


def test_page_holds_everything_of_an_acquisition(tmp_path):
    write_acquisition(tmp_path, "sub-01")
    text, outline = build(tmp_path)
    shown = " ".join(outline.text)
    for expected in ("No flags", "picture narrow_Chimap", "picture outline_mask", "−0.05123", "31, 4", "A notice", "3 T",
                     "Recommended implementation", "https://doi.org/10.1002/mrm.24765", "load", "cached", 'name = "consensus"',
                     "bids:raw:x.nii.gz", "n/a"):  # fmt: skip
        assert expected in shown, expected
    assert text.count("data:image/webp;base64,") == 2
    assert {"chi", "masks", "quality", "inputs", "reporting", "methods", "provenance", "regions"} <= set(outline.ids)
    assert "fields" not in outline.ids


def test_page_asks_the_net_for_nothing(tmp_path):
    write_acquisition(tmp_path, "sub-01")
    text, outline = build(tmp_path)
    assert all(load.startswith("data:") for load in outline.loads)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket", text)
    assert "default-src 'none'" in text


def test_links_lead_somewhere_and_ids_are_unique(tmp_path):
    for name in ("sub-01_ses-a_acq-x", "sub-01_ses-a", "sub-01_ses-b"):
        write_acquisition(tmp_path, name, warnings=[{"what": "w", "remedy": "r"}])
    _, outline = build(tmp_path)
    assert len(outline.ids) == len(set(outline.ids))
    inner = [link[1:] for link in outline.links if link.startswith("#")]
    assert set(inner) <= set(outline.ids)
    assert {"sub-01_ses-a_acq-x", "sub-01_ses-a", "sub-01_ses-b", "sub-01_ses-b-chi"} <= set(outline.ids)
    assert len(outline.loads) == 1 + 3 * 2  # the icon, and two pictures each


def test_page_escapes_all_text(tmp_path):
    write_acquisition(tmp_path, "sub-01", notice=HOSTILE, warnings=[{"what": HOSTILE, "remedy": HOSTILE}])
    (tmp_path / "logs/crash_x.txt").write_text(f"acquisition: sub-01\nstep:        {HOSTILE}\nreason:      {HOSTILE}\n")
    text, outline = build(tmp_path)
    assert text.count("<script>") == 1
    assert " ".join(outline.text).count('<script>alert("x")</script> & {{ 7 * 7 }} {out_dir}') >= 6


def test_windows_of_one_map_share_a_place(tmp_path):
    """One switch per map that is shown in several windows, with as many positions as the style knows; others stand below."""
    windows = [picture for picture in gallery.PICTURES if picture.section == "chi"]
    style = (page._TEMPLATES / "page.css").read_text()
    assert len(re.findall(r"figure:nth-of-type\(\d\)", style)) == len(windows) == 3
    write_acquisition(tmp_path, "sub-01")
    assert "<input" not in build(tmp_path)[0]
    for name in ("sub-01_ses-a", "sub-01_ses-b"):
        write_acquisition(tmp_path, name, figures_of=("narrow_Chimap", "wide_Chimap", "outline_mask"))
    text, _ = build(tmp_path)
    assert text.count('type="radio"') == 4
    assert text.count(" checked>") == 2
    assert len(set(re.findall(r'name="([^"]*-shown)"', text))) == 2


def test_numbers_of_citations_follow_the_text(tmp_path):
    write_acquisition(tmp_path, "sub-01")
    text, _ = build(tmp_path)
    assert 'Done well [<a href="#ref-bilgic2024">1</a>, <a href="#ref-sun2014">2</a>].' in text
    assert 'And again [<a href="#ref-sun2014">2</a>].' in text


def test_verdict(tmp_path):
    write_acquisition(tmp_path, "sub-01")
    assert 'class="verdict good"' in build(tmp_path)[0]
    write_acquisition(tmp_path, "sub-01", warnings=[{"what": "odd", "remedy": "look"}])
    text, outline = build(tmp_path)
    assert 'class="verdict look"' in text
    assert "1 flag to look at" in " ".join(outline.text)


def write_group(out, **columns):
    """The group's table, with six acquisitions of which one is the page's own."""
    names = [f"sub-{n:02d}" for n in (1, 2, 3, 4, 5, 6)]
    rows = [["acquisition", *columns], *([name, *(values[i] for values in columns.values())] for i, name in enumerate(names))]
    (out / "group_qc.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))


def test_page_shows_where_an_acquisition_stands(tmp_path):
    write_acquisition(tmp_path, "sub-01")
    alone, _ = build(tmp_path)
    assert "<svg" not in alone
    write_group(
        tmp_path,
        coverage=["0.1", "0.95", "0.96", "0.97", "0.98", "0.99"],
        snr_echo1=["1", "20", "30", "40", "n/a", "n/a"],
        snr_echo2=["1", "2", "3", "5", "6", "7"],
        age=["33"] * 6,
    )
    text, outline = build(tmp_path)
    shown = " ".join(outline.text)
    assert "5 others, median 0.97; below all" in shown  # 0.90; the older value of its own in the table does not count
    assert "5 others, median 5; above 2" in shown
    assert "3 others" not in shown  # too few to compare with
    assert text.count("<svg") == 2
    assert "group_qc.tsv" in shown


def test_places_on_a_strip():
    group = {f"sub-{n}": {"x": float(n)} for n in range(5)}
    found = spread.strip("x", 6.0, "sub-9", group, 1)
    assert (found.dots[0], found.mine, found.middle) == (4.0, 96.0, pytest.approx(34.7))
    same = {name: {"x": 2.0} for name in group}
    assert spread.strip("x", 2.0, "sub-9", same, 1).words.endswith("all the same")
    assert spread.strip("x", 0.0, "sub-9", group, 1).words.endswith("as low as the lowest")
    assert spread.strip("x", None, "sub-9", group, 1) is None
    assert spread.strip("y", 1.0, "sub-9", group, 1) is None
    assert spread.strip("x", 1.0, "sub-0", dict(list(group.items())[:4]), 1) is None


def test_failed_acquisitions_are_on_the_page_of_their_subject_only(tmp_path):
    write_acquisition(tmp_path, "sub-01")
    write_acquisition(tmp_path, "sub-011")
    logs = tmp_path / "logs"
    (logs / "sub-01_run-2_timing.tsv").write_text("node\tseconds\tstatus\ninversion\t0.00\tfailed\n")
    crash = "node: q.x\nacquisition: {}\nstep: inversion (tv)\nreason: out of memory\nwhat to do: buy some\n\nInputs:\n"
    (logs / "crash_a.txt").write_text(crash.format("sub-01_run-2"))
    (logs / "crash_b.txt").write_text(crash.format("sub-02"))
    (logs / "crash_t1w_sub-01_T1w.txt").write_text(crash.format("") + "  t1w = '/data/sub-01/anat/sub-01_T1w.nii.gz'\n")
    text, outline = build(tmp_path)
    shown = " ".join(outline.text)
    assert 'class="verdict bad"' in text
    assert "2 steps failed; 1 acquisition without results" in shown
    for expected in (
        "sub-01_run-2, inversion (tv)",
        "out of memory",
        "buy some",
        "logs/crash_a.txt",
        "crash_t1w_sub-01_T1w.txt",
    ):
        assert expected in shown, expected
    assert "crash_b.txt" not in shown
    other, _ = build(tmp_path, "sub-011")
    assert 'class="verdict good"' in other
    assert "crash_" not in other


def test_page_of_a_subject_without_results(tmp_path):
    (tmp_path / "sub-01").mkdir()
    text, _ = build(tmp_path)
    assert "Nothing was processed" in text
    assert 'class="verdict bad"' in text


def test_page_is_the_same_every_time_and_appears_whole(tmp_path, monkeypatch):
    write_acquisition(tmp_path / "a", "sub-01")
    write_acquisition(tmp_path / "b", "sub-01")
    first, _ = build(tmp_path / "a")
    assert build(tmp_path / "b")[0] == first
    assert [path.name for path in (tmp_path / "a").iterdir() if path.is_file()] == ["sub-01.html"]
    (tmp_path / "a/sub-01/anat/sub-01_desc-qc_stats.json").write_text("{")
    with pytest.raises(json.JSONDecodeError):
        page.build_subject_page(tmp_path / "a", "01")
    assert (tmp_path / "a/sub-01.html").read_text(encoding="utf-8") == first
    monkeypatch.chdir(tmp_path)
    assert page.build_subject_page(page.Path("b"), "01").read_text(encoding="utf-8") == first


def test_pictures_belong_to_one_acquisition(tmp_path):
    write_acquisition(tmp_path, "sub-01")
    write_acquisition(tmp_path, "sub-01_acq-x", figures_of=("outline_mask",))
    text, outline = build(tmp_path)
    assert text.count("data:image/webp") == 3
    assert "sub-01_acq-x-masks" in outline.ids
    assert "sub-01_acq-x-chi" not in outline.ids
