"""Writes docs/api.md from the docstrings of the package: ``python docs/make_api.py`` (``--stdout`` prints it instead)."""

import ast
import re
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "qsmflow"

INTRODUCTION = """# API

<!-- Made by docs/make_api.py from the docstrings; a change belongs there. -->

The modules of `qsmflow` that can be used without a BIDS dataset: `algorithms` (arrays in, arrays out), and what names methods
and holds their settings. [The methods page](methods.md) lists the methods with their options and papers. Maps are float32
arrays on one grid. `help(function)` shows more: equations, references and examples.

A susceptibility map from a total field (ppm) and a mask, for instance, both arrays that you have:

```python
from qsmflow.algorithms.background.vsharp import vsharp
from qsmflow.algorithms.inversion.direct import tkd

geometry = {"voxel_size": (1.0, 1.0, 1.0), "b0_dir": (0.0, 0.0, 1.0)}
local_field, inner = vsharp(total_field, mask, voxel_size=geometry["voxel_size"])
chi = tkd(local_field, inner, **geometry)
```
"""


def page() -> str:
    """The whole page."""
    paths = [*sorted((SOURCE / "algorithms").rglob("*.py")), SOURCE / "config.py", SOURCE / "registry.py"]
    return "\n".join([INTRODUCTION, *filter(None, map(_module, paths))])


def _module(path: Path) -> str:
    tree = ast.parse(path.read_text())
    entries = [_entry(node) for node in tree.body if _public(node)]
    if not entries:
        return ""
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    return "\n".join([f"## {name}", "", _prose(ast.get_docstring(tree).split("\n\n")[0]), "", *entries])


def _public(node: ast.AST) -> bool:
    """Classes, and functions whose docstring has sections: what has one line only is a step of its neighbours."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return False
    return isinstance(node, ast.ClassDef) or bool(_docstring(node)[1])


def _entry(node: ast.FunctionDef | ast.ClassDef) -> str:
    """A function with its parameters, or a class with its fields and methods."""
    text, sections = _docstring(node)
    if isinstance(node, ast.FunctionDef):
        head = f"{node.name}({_arguments(node)})"
        lists = [_list(title, sections[title]) for title in ("Parameters", "Returns", "Raises") if title in sections]
    else:
        fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
        head = "\n".join([f"class {node.name}", *(f"    {field}" for field in fields)])
        public = [item for item in node.body if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]
        methods = [f"- `{item.name}`: {_docstring(item)[0]}" for item in public]
        lists = ["\n".join([*methods, ""])] if methods else []
    return "\n".join([f"### {node.name}", "", "```python", head, "```", "", text, "", *lists])


def _arguments(node: ast.FunctionDef) -> str:
    """Names and defaults; types are in the list of parameters."""
    arguments = node.args
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
        argument.annotation = None
    return ast.unparse(arguments)


def _docstring(node: ast.FunctionDef | ast.ClassDef) -> tuple[str, dict[str, str]]:
    """The text before the first section, and the sections by title; empty where there is no docstring."""
    head, *rest = re.split(r"^(\w[\w ]*)\n-{3,}\n", ast.get_docstring(node) or "", flags=re.MULTILINE)
    return _prose(head), dict(zip(rest[::2], rest[1::2], strict=True))


def _list(title: str, section: str) -> str:
    """A numpydoc list: the entries are its lines without indent, what they mean is indented."""
    lines = [f"{title}:", ""]
    for entry in re.split(r"\n(?=\S)", section.strip()):
        head, _, meaning = entry.partition("\n")
        name, colon, kind = head.partition(" : ")
        label = f"`{name}` ({_plain(kind)})" if colon else f"`{name}`"
        lines.append(f"- {label}: {_prose(meaning)}")
    return "\n".join([*lines, ""])


def _prose(text: str) -> str:
    """Text of a docstring in one line, its roles as code."""
    return _plain(re.sub(r":\w+:`~?([^`]+)`|``([^`]+)``", lambda found: f"`{found[1] or found[2]}`", " ".join(text.split())))


def _plain(text: str) -> str:
    """Signs that Markdown would read as its own, outside of code."""
    parts = text.split("`")
    return "`".join(re.sub(r"([*_<\[\]])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


if __name__ == "__main__":
    if "--stdout" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        Path(__file__).with_name("api.md").write_text(page())
