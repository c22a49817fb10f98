"""The house rules hold: layers, declared dependencies, documents that agree with the code."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest

import qsmflow

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

#: Names under which distributions are imported, where they differ from the name on the package index.
IMPORT_NAMES = {"antspyx": "ants", "pillow": "PIL", "pybids": "bids", "pyyaml": "yaml", "tomli-w": "tomli_w"}

VIOLATIONS = {
    "an algorithm that reads files": ("algorithms/units.py", "import nibabel", "Algorithms know no file"),
    "an algorithm that sees the system": ("algorithms/units.py", "import os", "Algorithms know no file"),
    "an algorithm that sees the time": ("algorithms/units.py", "from time import time", "Algorithms know no file"),
    "an import that points up": ("algorithms/units.py", "from qsmflow import config", "Imports only point down"),
    "names that know pipelines": ("bids/outputs.py", "from qsmflow.workflows import base", "Imports only point down"),
    "a workflow that touches arrays": ("workflows/batch.py", "import numpy as np", "Workflows know no arrays"),
    "a room without a place": ("attic.py", "", "Imports only point down"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package that may be damaged."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "qsmflow", folder / "qsmflow", ignore=shutil.ignore_patterns("__pycache__", "*.nii.gz"))
    return folder


def lint(folder: Path) -> subprocess.CompletedProcess:
    command = shutil.which("lint-imports", path=sysconfig.get_path("scripts"))
    return subprocess.run([command, "--no-logo", "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_the_layers_hold(house):
    result = lint(house)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_planted_violation_is_found(house, violation):
    name, line, contract = VIOLATIONS[violation]
    path = house / "qsmflow" / name
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n")
    try:
        result = lint(house)
    finally:
        path.write_text(before) if before is not None else path.unlink()
    assert result.returncode == 1, result.stdout
    assert re.search(rf"{contract}.* BROKEN", result.stdout), result.stdout


def imported() -> set[str]:
    """Top-level names that the package imports, wherever in a module."""
    names = set()
    for path in (ROOT / "qsmflow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"qsmflow"}


def test_imports_and_declared_dependencies_are_the_same():
    declared = {re.split(r"[<>=!~\[]", entry)[0] for entry in PROJECT["project"]["dependencies"]}
    assert imported() == {IMPORT_NAMES.get(name, name) for name in declared}


def test_every_dependency_is_explained():
    text = (ROOT / "docs/dependencies.md").read_text()
    for entry in [*PROJECT["project"]["dependencies"], *chain(*PROJECT["project"]["optional-dependencies"].values())]:
        name = re.split(r"[<>=!~\[]", entry)[0]
        assert name == "qsmflow" or f"| {name} |" in text, f"docs/dependencies.md does not say what {name} is for"


def test_one_version():
    assert qsmflow.__version__ == PROJECT["project"]["version"] == metadata.version("qsmflow")
    assert f"\nversion: {qsmflow.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {qsmflow.__version__} " in (ROOT / "CHANGES.md").read_text()


def test_the_commands_of_the_readme_are_what_is_checked():
    """.ci/run takes the README's test command; it needs exactly one."""
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if "bin/pytest" in line]
    assert lines == ["python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest"]


def test_links_to_the_rooms():
    for name in ("interfaces", "workflows"):
        assert (ROOT / name).readlink() == Path("qsmflow") / name


def test_local_links_of_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CHANGES.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_outputs_is_complete():
    """docs/outputs.md lists every product by its name and unit."""
    from qsmflow.bids.outputs import PRODUCTS, product_path

    text = (ROOT / "docs/outputs.md").read_text()
    for name, row in PRODUCTS.items():
        extra = {"atlas": "CIT168"} if row.suffix in ("dseg", "stats") and "desc" not in row.entities else {}
        extra |= {"echo": "1"} if row.suffix == "MEGRE" else {}
        label = "X" + product_path("out", {"sub": "01"}, name, **extra).name.removeprefix("sub-01")
        assert re.search(rf"\| `{re.escape(label)}` \| *{re.escape(row.units)} *\|", text), f"{label} ({row.units})"


def test_the_table_of_quality_metrics_is_complete():
    """docs/quality.md lists every metric with its unit and its limits."""
    from qsmflow.reports.quality import METRICS

    text = (ROOT / "docs/quality.md").read_text()
    for row in METRICS:
        name = re.escape(row.key.replace("*", "echo<n>"))
        found = re.search(rf"^\| `{name}` \| ([^|]*) \| [^|]* \| ([^|]*) \|", text, flags=re.MULTILINE)
        assert found, row.key
        limits = [f"{limit:g}" for limit in (row.low, row.high) if limit is not None]
        assert (found[1], re.findall(r"-?[\d.]+", found[2])) == (row.unit or "1", limits), row.key


def test_the_options_in_the_documents_exist():
    """An option in README.md and docs is one of qsmflow, or of a program that is named here."""
    foreign = {
        "array", "cpus-per-task", "partition", "time", "cleanenv", "init", "rm",  # Slurm and containers
        "coarser", "count", "first", "inputs", "methods", "no-recipe", "noise", "parts", "pictures",  # benchmarks
        "seeds", "stage", "threads",
        "strict", "site-dir",  # mkdocs
    }  # fmt: skip
    helps = (["--help"], ["--help-methods"], ["group", "--help"])
    words = [sys.executable, "-m", "qsmflow"]
    text = "".join(subprocess.run([*words, *more], capture_output=True, text=True, check=True).stdout for more in helps)
    known = set(re.findall(r"--([a-z0-9][\w-]*)", text)) | foreign
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        used = set(re.findall(r"(?<![\w-])--([a-z0-9][\w-]*)", page.read_text()))
        assert used <= known, f"{page.name}: {', '.join(sorted(used - known))}"


@pytest.mark.parametrize("name", ["methods", "api"])
def test_the_pages_made_from_the_code_are_up_to_date(name):
    """docs/methods.md is what docs/make_methods.py makes, docs/api.md what docs/make_api.py makes."""
    script = ROOT / f"docs/make_{name}.py"
    made = subprocess.run([sys.executable, script, "--stdout"], capture_output=True, text=True, check=True)
    assert made.stdout == (ROOT / f"docs/{name}.md").read_text(), f"run docs/make_{name}.py"


def test_every_page_is_in_the_navigation():
    """A page that mkdocs.yml does not list would fail the build of the site; this says so without building."""
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")} | {"index.md", "changes.md"}
