"""Writes docs/methods.md from the table of methods: ``python docs/make_methods.py`` (``--stdout`` prints it instead)."""

import sys
from pathlib import Path

from qsmflow import registry
from qsmflow.cli.methods import option
from qsmflow.reports.boilerplate import bibliography

INTRODUCTION = """# Methods

<!-- Made by docs/make_methods.py from the table of methods; a change belongs there. -->

A recipe names one method per stage (for masks, [an expression](phase.md#masks) of several). On the command line every stage has
an option of its name and every parameter one of its own:

```bash
qsmflow STUDY OUT participant --background resharp --resharp-radius 5
```

The same as a file for `--recipe`, on top of the defaults of `consensus`:

```toml
name = "mine"
background = "resharp"

[parameters.resharp]
radius = 5.0
```

Every value used, defaults too, is written to the sidecars, to the methods text of the report and to `logs`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(_stage(stage) for stage in registry.STAGES.values())])


def _stage(stage: registry.Stage) -> str:
    title = stage.title[0].upper() + stage.title[1:]
    rows = [registry.find(stage.name, name) for name in registry.names(stage.name)]
    overview = "".join(f"| [`{row.name}`](#{row.name}) | {_cell(row.summary)} |\n" for row in rows)
    optional = f'\nThis stage can be left out (`{stage.name} = "none"`).\n' if stage.optional else ""
    heading = f"## {title}\n{optional}\n| method | what it does |\n| --- | --- |\n{overview}"
    return "\n".join([heading, *(_method(row) for row in rows)])


def _method(row: registry.Algorithm) -> str:
    mark = ["Experimental: not everything could be checked against a publication.", ""] if row.experimental else []
    lines = [f"### {row.name}", "", row.summary, "", *mark]
    if row.parameters:
        lines += ["| parameter | option | default | what it is |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{p.name}` | `{option(row.name, p.name)}` | {_value(p)} | {_cell(p.help)} |" for p in row.parameters.values()
        ]
        lines.append("")
    lines += [f"In the methods text: “{row.describe()}”", ""]
    lines += [f"- {bibliography()[key].text} <{bibliography()[key].url}>" for key in row.citations]
    return "\n".join([*lines, ""])


def _value(parameter: registry.Parameter) -> str:
    others = [f"`{choice}`" for choice in parameter.choices or () if choice != parameter.default]
    return f"`{parameter.default}`" + (f" (or {', '.join(others)})" if others else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if "--stdout" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        Path(__file__).with_name("methods.md").write_text(page())
