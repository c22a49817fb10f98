"""The command line: every option arrives, every mistake is named, and help costs nothing."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qsmflow import registry
from qsmflow.cli import checks, machine, methods, parser, validator
from qsmflow.cli.parser import parse
from qsmflow.config import OUTPUTS, SPACES, Recipe
from qsmflow.errors import UsageError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a dataset and some files, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("bids", "masks"):
        Path(folder).mkdir()
    Path("m.nii.gz").write_bytes(b"mask")
    Path("filter.json").write_text('{"megre": {"run": 2}}')
    Path("slurm.yml").write_text("plugin: SLURMGraph\nplugin_args: {sbatch_args: --time=60}\n")
    Path("both.toml").write_text('inversion = "sstv"\nbackground = "pdf"\n')
    Path("own.toml").write_text('inversion = "tkd"\n[parameters.tkd]\nthreshold = 0.2\n')
    return tmp_path


def read(*words, out="out"):
    return parse(["bids", out, "participant", *words])


def failing(*words, **settings):
    with pytest.raises(UsageError) as caught:
        read(*words, **settings)
    return str(caught.value)


#: Option, its words, what must come of it. Every option of the parser has a row (see the test below).
ROWS = [
    ("--participant-label", "sub-01 02", lambda r, e, m: e.participant_label == ("01", "02")),
    ("--session-label", "ses-a b", lambda r, e, m: e.session_label == ("a", "b")),
    ("--bids-filter-file", "filter.json", lambda r, e, m: e.bids_filters == {"megre": {"run": 2}}),
    ("--derivatives", "masks x=masks", lambda r, e, m: e.derivatives == (Path("masks").resolve(),) * 2),
    ("--skip-bids-validation", "", lambda r, e, m: e.skip_bids_validation),
    ("--recipe", "fast", lambda r, e, m: r == Recipe.load("fast")),
    ("--coils", "vrc", lambda r, e, m: r.coils == "vrc"),
    ("--readout", "none", lambda r, e, m: r.readout == "none"),
    ("--offset", "none", lambda r, e, m: r.offset == "none"),
    ("--unwrap", "laplacian", lambda r, e, m: r.unwrap == "laplacian"),
    ("--check", "none", lambda r, e, m: r.check == "none"),
    ("--field", "complexfield", lambda r, e, m: r.field == "complexfield"),
    ("--relaxometry", "arlo", lambda r, e, m: r.relaxometry == "arlo"),
    ("--mask", "threshold&quality", lambda r, e, m: r.mask_methods == ("threshold", "quality")),
    ("--background", "resharp", lambda r, e, m: r.background == "resharp"),
    ("--inversion", "tikhonov", lambda r, e, m: r.inversion == "tikhonov"),
    ("--reference", "csf", lambda r, e, m: r.reference == "csf"),
    ("--reference-region", "thalamus", lambda r, e, m: (r.reference, r.reference_region) == ("region", "thalamus")),
    ("--separation", "chisep", lambda r, e, m: r.separation == "chisep"),
    ("--swi", "clearswi", lambda r, e, m: r.swi == "clearswi" and "swi" in r.outputs),
    ("--atlas", "m.nii.gz", lambda r, e, m: r.atlas == str(Path("m.nii.gz").resolve())),
    ("--outputs", "qsm,r2star", lambda r, e, m: r.outputs == ("qsm", "r2star")),
    ("--output-spaces", "GRE T1w", lambda r, e, m: r.output_spaces == ("GRE", "T1w")),
    ("--cosmos", "run", lambda r, e, m: r.cosmos == "run"),
    ("--two-pass", "", lambda r, e, m: r.two_pass),
    ("--b0", "7", lambda r, e, m: r.b0 == 7),
    ("--phase-sign", "-", lambda r, e, m: r.phase_sign == "-"),
    ("--work-dir", "w", lambda r, e, m: e.work_dir == Path("w").resolve()),
    ("--nprocs", "3", lambda r, e, m: (e.nprocs, e.omp_nthreads) == (3, 2)),
    ("--omp-nthreads", "5", lambda r, e, m: e.omp_nthreads == 5),
    ("--mem", "1500M", lambda r, e, m: e.mem_gb == 1500 / 1024),
    ("--use-plugin", "slurm.yml", lambda r, e, m: e.plugin_file == Path("slurm.yml")),
    ("--stop-on-first-crash", "", lambda r, e, m: e.stop_on_first_crash),
    ("--write-graph", "", lambda r, e, m: e.write_graph),
    ("--verbose", "", lambda r, e, m: e.verbose),
    ("--dry-run", "", lambda r, e, m: m == "dry-run"),
    ("--boilerplate", "", lambda r, e, m: m == "boilerplate"),
    ("--reports-only", "", lambda r, e, m: m == "reports-only"),
]
LEAVING = {"--help", "--help-methods", "--version"}


@pytest.mark.parametrize(("option", "words", "arrived"), ROWS, ids=[row[0] for row in ROWS])
@pytest.mark.usefixtures("place")
def test_every_option_arrives(option, words, arrived, monkeypatch):
    monkeypatch.setattr(checks, "graph_tool", lambda: None)
    assert not arrived(*read())
    assert arrived(*read(option, *words.split()))


def test_every_option_has_a_row():
    known = {name for name in parser._build()._option_string_actions if name.startswith("--")}
    assert known == {row[0] for row in ROWS} | LEAVING


@pytest.mark.usefixtures("place")
def test_plain_command_line():
    recipe, execution, mode = read()
    assert (recipe, mode) == (Recipe.load("consensus"), "run")
    assert execution.output_dir == Path("out").resolve()
    assert execution.work_dir == Path("work").resolve()
    assert execution.nprocs == machine.processors()
    assert 0 < execution.mem_gb < 2**20


def every_parameter():
    for option, method, parameter in methods.options():
        value = not parameter.default if parameter.type is bool else next(iter(parameter.choices or ()), None)
        if parameter.type in (int, float):
            value = parameter.type(parameter.default + 2)
        if value == parameter.default:
            value = parameter.choices[1]
        yield pytest.param(option, method, parameter, value, id=option)


@pytest.mark.parametrize(("option", "method", "parameter", "value"), list(every_parameter()))
@pytest.mark.usefixtures("place")
def test_every_parameter_arrives(option, method, parameter, value):
    stage = next(row.stage for row in registry.ALGORITHMS if row.name == method)
    words = [option if value else f"--no-{option[2:]}"] if parameter.type is bool else [option, str(value)]
    recipe, _, _ = read(methods.CHOICES[stage], method, *words)
    assert recipe.values(stage, method) == {**registry.find(stage, method).merged(), parameter.name: value}
    assert recipe.hash != read(methods.CHOICES[stage], method)[0].hash


@pytest.mark.usefixtures("place")
def test_underscores_and_equals_signs():
    recipe, execution, _ = read("--participant_label=01", "--whqsm_lambda=0.002")
    assert execution.participant_label == ("01",)
    assert recipe.parameters == {"whqsm": {"lambda_": 0.002}}


@pytest.mark.usefixtures("place")
def test_recipe_file_and_changes():
    recipe, _, _ = read("--recipe", "own.toml")
    assert (recipe.name, recipe.inversion, recipe.parameters) == ("own", "tkd", {"tkd": {"threshold": 0.2}})
    # The file's parameters of a method that is not used any more go without a word.
    assert read("--recipe", "own.toml", "--inversion", "tv")[0].parameters == {}
    both = read("--recipe", "own.toml", "--tkd-correct")[0]
    assert both.parameters == {"tkd": {"threshold": 0.2, "correct": True}}
    assert both.name == "own, modified"
    assert read("--inversion", "whqsm")[0].name == "consensus"  # the same numbers, the same name


@pytest.mark.usefixtures("place")
def test_single_step_leaves_the_background_method_out():
    recipe = read("--inversion", "sstv")[0]
    assert "background" not in dict(recipe.methods)
    assert "background" not in recipe.to_toml()
    assert recipe.hash == replace(recipe, background="ismv").hash
    # What a single-step run leaves in its logs can be changed back to two steps.
    Path("left.toml").write_text(recipe.to_toml())
    assert dict(read("--recipe", "left.toml", "--inversion", "tv")[0].methods)["background"] == "pdf"


@pytest.mark.usefixtures("place")
def test_naming_a_method_of_weighting_asks_for_the_image():
    assert read()[0].outputs == ("qsm", "r2star", "rois")
    assert read("--swi", "tswi")[0].outputs == ("qsm", "r2star", "rois", "swi")
    assert read("--swi-power", "3")[0].outputs == ("qsm", "r2star", "rois", "swi")
    assert read("--outputs", "r2star", "--swi", "tswi")[0].outputs == ("r2star", "swi")
    assert read("--outputs", "r2star", "--swi", "none")[0].outputs == ("r2star",)


@pytest.mark.usefixtures("place")
def test_region_and_reference():
    Path("region.toml").write_text('reference = "region"\nreference_region = "thalamus"\n')
    assert read("--recipe", "region.toml", "--reference", "brain")[0].reference_region == ""
    assert "needs '--reference region'" in failing("--reference", "brain", "--reference-region", "thalamus")
    assert "needs a region" in failing("--reference", "region")


@pytest.mark.usefixtures("place")
def test_hash_knows_the_content_of_a_mask_not_its_place():
    first = read("--mask", "m.nii.gz")[0].hash
    Path("masks/n.nii.gz").write_bytes(b"mask")
    assert read("--mask", "masks/n.nii.gz")[0].hash == first
    Path("masks/n.nii.gz").write_bytes(b"another")
    assert read("--mask", "masks/n.nii.gz")[0].hash != first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--inversoin tv", "no option --inversoin; did you mean '--inversion'?"),
        ("--tv-lamda 1", "no option --tv-lamda; did you mean '--tv-lambda'?"),
        ("--zzzzzzzz", "no option --zzzzzzzz; qsmflow --help lists them"),
        ("--inversion tvv", "no method 'tvv'; did you mean 'tv'?"),
        ("--inversion none", "no method 'none'"),
        ("--mask quality&treshold", "no method 'treshold'; did you mean 'threshold'?"),
        ("--mask nowhere.nii", "--mask: there is no file nowhere.nii"),
        ("--recipe consensu", "no recipe 'consensu'; did you mean 'consensus'?"),
        ("--recipe absent.toml", "absent.toml cannot be read"),
        ("--outputs qsn", "no output 'qsn'; did you mean 'qsm'?"),
        ("--output-spaces t1w", "did you mean 'T1w'?"),
        ("--tkd-threshold 0.2", "--tkd-threshold: dipole inversion is done by whqsm here; add --inversion tkd"),
        ("--inversion sstv --background pdf", "--background pdf: sstv starts from the total field"),
        ("--inversion sstv --pdf-iterations 9", "--pdf-iterations: sstv starts from the total field"),
        ("--recipe both.toml", "both.toml: background = 'pdf' is given, but sstv starts from the total field"),
        ("--tv-iterations 1.5", "--tv-iterations: '1.5' is not a whole number"),
        ("--tv-lambda much", "--tv-lambda: 'much' is not a number"),
        ("--romeo-mode templat", "--romeo-mode: 'templat' is not a choice; did you mean 'template'?"),
        ("--nprocs 0", "--nprocs: 0 is too few"),
        ("--nprocs two", "'two' is not a whole number"),
        ("--omp-nthreads -1", "--omp-nthreads: -1 is too few"),
        ("--mem lots", "--mem: 'lots' is not an amount of memory"),
        ("--mem 0", "--mem: '0' is not an amount of memory"),
        ("--b0 strong", "'strong' is not a number"),
        ("--cosmos runs", "cannot be told apart by 'runs'; did you mean 'run'?"),
        ("--cosmos acq --inversion sstv", "cosmos combines local fields, but sstv starts from the total field"),
        ("--two-pass --outputs r2star", "two passes are for the susceptibility, but the outputs leave it out"),
        ("--cosmos acq --outputs r2star", "the outputs leave out qsm"),
        ("--b0 3000", "B0 must be given in tesla"),
        ("--phase-sign minus", "phase sign must be 'auto', '+' or '-'"),
        ("--bids-filter-file m.nii.gz", "is not valid JSON"),
        ("--bids-filter-file absent.json", "absent.json cannot be read: No such file"),
        ("--use-plugin own.toml", "must say 'plugin: NAME'"),
        ("--use-plugin absent.yml", "absent.yml cannot be read"),
        ("--derivatives absent", "--derivatives: there is no folder absent"),
        ("--work-dir bids/work", "lies in the dataset"),
        ("--work-dir out/work", "lies in OUTPUT_DIR"),
        ("--work-dir m.nii.gz", "--work-dir: "),
        ("--dry-run --boilerplate", "not allowed with"),
        ("more", "unrecognized arguments: more"),
    ],
)
@pytest.mark.usefixtures("place")
def test_mistake_is_named(words, message):
    assert message in failing(*words.split())


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("bids", "is the dataset itself"),
        (".", "holds the dataset"),
        ("bids/results", "would mix results with raw data"),
        ("bids/derivatives", "would mix results with raw data"),
        ("m.nii.gz", "is a file"),
        ("raw", "holds a raw dataset"),
    ],
)
@pytest.mark.usefixtures("place")
def test_harmful_output_folder(out, message):
    Path("raw").mkdir()
    Path("raw/dataset_description.json").write_text('{"Name": "x"}')
    assert message in failing(out=out)


@pytest.mark.usefixtures("place")
def test_good_output_folders():
    Path("old").mkdir()
    Path("old/dataset_description.json").write_text('{"Name": "x", "DatasetType": "derivative"}')
    for out in ("old", "bids/derivatives/qsmflow", "new/deep"):
        assert read(out=out)[1].output_dir == Path(out).resolve()
    assert not Path("new").exists()  # checking makes nothing


@pytest.mark.usefixtures("place")
def test_positional_arguments():
    for words, message in (
        (["bids", "out", "groupp"], "no level of analysis 'groupp'; did you mean 'group'?"),
        (["absent", "out", "participant"], "BIDS_DIR: there is no folder absent"),
        (["bids", "out"], "required: participant"),
        (["--participant-label", "01", "bids", "out", "participant"], "options that take several values go last"),
    ):
        with pytest.raises(UsageError, match=message):
            parse(words)


@pytest.mark.usefixtures("place")
def test_filter_must_hold_objects():
    Path("filter.json").write_text('{"run": 2}')
    assert "must hold objects by query" in failing("--bids-filter-file", "filter.json")


def leave(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_names_everything_a_person_can_choose(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = leave(capsys, "--help")
    usage = "usage: qsmflow BIDS_DIR OUTPUT_DIR participant [options]\n       qsmflow BIDS_DIR OUTPUT_DIR group [options]\n"
    assert text.startswith(usage)
    for name in (*(row[0] for row in ROWS), *LEAVING, *OUTPUTS, *SPACES, *(row.name for row in registry.ALGORITHMS)):
        assert name in text
    assert max(map(len, text.splitlines())) <= 116


def test_help_on_methods_names_every_parameter(capsys):
    text = leave(capsys, "--help-methods")
    for option, _, parameter in methods.options():
        assert f"      {option}" in text
        assert parameter.help.replace("``", "")[:25] in " ".join(text.split())
    assert "--tkd-threshold" not in leave(capsys, "--help-methods", "background")
    assert leave(capsys, "--help-methods", "tv").count("\n\n") == 1
    with pytest.raises(UsageError, match="did you mean 'inversion'"):
        parse(["--help-methods", "invertion"])


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["--inversion", "x"], ["a", "b", "participant"]])
def test_nothing_heavy_is_imported_for_help_and_mistakes(words):
    code = (
        "import sys\nfrom qsmflow.cli.run import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'scipy', 'numba', 'nipype', 'nibabel', 'bids', 'ants', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- the machine -----------------------------------------------------------------------------------------------------------


def test_limits_of_a_control_group(tmp_path, monkeypatch):
    """A container that may use 2.5 processors and 8 GB, inside a slice that may use 4 GB."""
    inner = tmp_path / "slice" / "job"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("250000 100000\n")
    (inner / "memory.max").write_text(f"{8 * 1024**3}\n")
    (tmp_path / "slice/memory.max").write_text(f"{4 * 1024**3}\n")
    (tmp_path / "slice/cpu.max").write_text("max 100000\n")
    group = tmp_path / "cgroup"
    group.write_text("0::/slice/job\n")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_GROUP", group)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 2**20 if "PAGES" in name else 4096 * 16)
    assert machine.processors() == 2
    assert machine.memory_gb() == 3.6


# --- the BIDS validator ----------------------------------------------------------------------------------------------------


def fake_validator(monkeypatch, folder, output, code=16):
    program = folder / validator.PROGRAM
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_validator_errors_are_one_line_per_kind(tmp_path, monkeypatch):
    issues = [
        {"code": "A", "severity": "error", "location": "/sub-01/anat/x.nii.gz"},
        {"code": "A", "severity": "error", "location": "/sub-02/anat/x.nii.gz"},
        {"code": "B", "severity": "warning", "location": "/README"},
    ]
    fake_validator(monkeypatch, tmp_path, json.dumps({"issues": {"issues": issues}}))
    assert validator.validate(tmp_path) == ["BIDS validator: A: sub-01/anat/x.nii.gz and 1 more"]


def test_validator_that_fails_is_told(tmp_path, monkeypatch):
    fake_validator(monkeypatch, tmp_path, "no JSON", code=1)
    assert validator.validate(tmp_path) == ["the BIDS validator failed (exit code 1): no message"]


def test_validator_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(validator.shutil, "which", lambda *args, **settings: None)
    (line,) = validator.validate(tmp_path)
    assert "pip install bids-validator-deno" in line
