"""Options for every parameter of every method, and the help on them: all from the registry."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterator

from qsmflow import registry
from qsmflow.errors import UsageError, nearest

#: How types are called in the help.
_TYPES = {int: "INTEGER", float: "NUMBER", str: "TEXT"}

#: How a stage's methods are chosen on the command line.
CHOICES = {stage: f"--{stage}" for stage in registry.STAGES}


def option(method: str, parameter: str) -> str:
    """The option of a method's parameter.

    Examples
    --------
    >>> option("tv", "lambda_"), option("vsharp", "max_radius")
    ('--tv-lambda', '--vsharp-max-radius')
    """
    return f"--{method}-{parameter.rstrip('_')}".replace("_", "-")


def options() -> Iterator[tuple[str, str, registry.Parameter]]:
    """(option, method, parameter) of every method; imports all of them."""
    for row in registry.ALGORITHMS:
        for parameter in row.parameters.values():
            yield option(row.name, parameter.name), row.name, parameter


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all methods; their values end up in ``parameters``, a list of (option, method, name, value)."""
    for text, method, parameter in options():
        parser.add_argument(
            *((text, f"--no-{text[2:]}") if parameter.type is bool else (text,)),
            action=_Store,
            dest="parameters",
            method=method,
            parameter=parameter,
            nargs=0 if parameter.type is bool else None,
            default=[],
            help=argparse.SUPPRESS,
        )


class _Store(argparse.Action):
    """Check one parameter and append it to the list."""

    def __init__(self, *args: object, method: str, parameter: registry.Parameter, **kwargs: object):
        super().__init__(*args, **kwargs)
        self.method, self.parameter = method, parameter

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        kind = self.parameter.type
        value = not option_string.startswith("--no-") if kind is bool else values
        try:
            value = self.parameter.check(value, self.method)
        except UsageError:
            known = self.parameter.choices
            wanted = f"a choice{nearest(value, known)}" if known else {int: "a whole number", float: "a number"}[kind]
            raise UsageError(f"{option_string}: '{value}' is not {wanted}") from None
        namespace.parameters = [*namespace.parameters, (option_string, self.method, self.parameter.name, value)]


class HelpMethods(argparse.Action):
    """``--help-methods [STAGE|METHOD]``: print the help on methods, and leave."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        print(text(values))
        parser.exit()


def text(only: str | None = None) -> str:
    """The methods and their parameters; ``only`` names a stage or a method.

    Raises
    ------
    UsageError
        If ``only`` is neither; the message gives the nearest name.
    """
    known = {*registry.STAGES, *(row.name for row in registry.ALGORITHMS)}
    if only is not None and only not in known:
        raise UsageError(f"--help-methods: no stage or method '{only}'{nearest(only, known)}")
    width = min(shutil.get_terminal_size().columns, 110) - 2
    parts = []
    for stage in registry.STAGES.values():
        rows = [row for row in registry.ALGORITHMS if row.stage == stage.name and only in (None, stage.name, row.name)]
        if rows:
            # A masking expression joins several methods; everywhere else one is chosen.
            usage = "'NAME & (NAME | NAME) - NAME'" if stage.name == "mask" else "NAME"
            skip = "; 'none' leaves it out" if stage.optional else ""
            parts.append(f"{stage.title[0].upper()}{stage.title[1:]} ({CHOICES[stage.name]} {usage}{skip})")
            parts += [_method(row, width) for row in rows]
    return "\n\n".join(parts)


def _method(row: registry.Algorithm, width: int) -> str:
    mark = " (experimental)" if row.experimental else ""
    lines = [_wrapped(f"{row.name}{mark}: {row.summary}", width, "  ", "      ")]
    for parameter in row.parameters.values():
        name = option(row.name, parameter.name)
        if parameter.type is bool:
            head, default = f"{name}, --no-{name[2:]}", "yes" if parameter.default else "no"
        else:
            head = f"{name} {'|'.join(parameter.choices) if parameter.choices else _TYPES[parameter.type]}"
            default = f"{parameter.default:g}" if isinstance(parameter.default, float) else str(parameter.default)
        lines.append(f"      {head}\n" + _wrapped(f"{parameter.help} (default: {default})", width, " " * 10, " " * 10))
    return "\n".join(lines)


def _wrapped(words: str, width: int, first: str, later: str) -> str:
    return textwrap.fill(words.replace("``", ""), width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
