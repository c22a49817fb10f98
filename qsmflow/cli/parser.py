"""From a command line to a :class:`Recipe` (what changes numbers), an :class:`Execution` (what does not) and a mode."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import qsmflow
from qsmflow import registry
from qsmflow.cli import checks, methods
from qsmflow.config import DEFAULT_OUTPUTS, ORIENTATION_ENTITIES, OUTPUTS, RECIPES, SPACES, Execution, Recipe
from qsmflow.errors import UsageError, nearest

_LEVELS = ("participant", "group")

_USAGE = """\
qsmflow BIDS_DIR OUTPUT_DIR participant [options]
       qsmflow BIDS_DIR OUTPUT_DIR group [options]"""

_DESCRIPTION = """\
Quantitative susceptibility mapping from multi-echo gradient-echo images in BIDS.

participant: susceptibility, R2*, regional values and a page to look at for every subject. Its options are below.
group:       tables, statistics and a report of the study, from what the participant level left in OUTPUT_DIR. Its
             options: qsmflow BIDS_DIR OUTPUT_DIR group --help"""

_EPILOG = """\
Every parameter of every method is an option too, such as --tv-lambda or --vsharp-max-radius:
'qsmflow --help-methods' lists them all, 'qsmflow --help-methods tv' those of one method or stage.

Exit codes: 0 everything done, 1 a step failed, 2 wrong usage, 3 data that cannot be used.
A run that was stopped, by whatever, goes on where it was when the same command is given again."""


class Parser(argparse.ArgumentParser):
    """Errors are ours to print."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            message += (
                "\nusage: qsmflow BIDS_DIR OUTPUT_DIR participant|group [options] (options that take several values go last)"
            )
        raise UsageError(message)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """``-w, --work-dir PATH`` and ``LABEL ...`` where argparse would repeat itself."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=min(shutil.get_terminal_size().columns, 110))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return f"{action.metavar} ..." if action.nargs == "+" else super()._format_args(action, default_metavar)


def parse(arguments: Sequence[str]) -> tuple[Recipe, Execution, str]:
    """Read a command line.

    Parameters
    ----------
    arguments : sequence of str
        Without the name of the program.

    Returns
    -------
    recipe : Recipe
    execution : Execution
    mode : str
        ``"run"``, ``"dry-run"``, ``"boilerplate"`` or ``"reports-only"``.

    Raises
    ------
    UsageError
        If anything cannot be used as it is; the message says what and, for names, gives the nearest known one.
    SystemExit
        After ``--help``, ``--help-methods`` and ``--version``.
    """
    words = [dashed(word) for word in arguments]
    parser = _build()
    # Methods are imported (and take a second) only for someone who sets one of their parameters.
    if _unknown(parser, words):
        methods.add_options(parser)
    for word in _unknown(parser, words):
        known = [name for name in parser._option_string_actions if name.startswith("--")]
        close = nearest(word, known)
        raise UsageError(f"no option {word}{close if 'did you mean' in close else '; qsmflow --help lists them'}")
    options = parser.parse_args(words)
    execution = checks.execution(options)
    return _recipe(options), execution, options.mode


def dashed(word: str) -> str:
    """An option with dashes for underscores: BIDS Apps know ``--participant_label`` as well."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _unknown(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Words that look like options and are none (argparse has no public list of what it knows)."""
    names = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
    return [name for name in names if name not in parser._option_string_actions]


def _build() -> argparse.ArgumentParser:
    parser = Parser(
        prog="qsmflow", usage=_USAGE, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=Formatter,
        allow_abbrev=False, add_help=False,
    )  # fmt: skip
    parser.set_defaults(mode="run", parameters=[])
    where = parser.add_argument_group("from where, to where")
    where.add_argument("bids_dir", metavar="BIDS_DIR", type=Path, help="root of the BIDS dataset")
    where.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path, help="where results go; made when it does not exist")
    where.add_argument("level", metavar="participant|group", type=_level, help="the level of analysis: subjects, or the study")
    _add_selection(parser.add_argument_group("what to process"))
    _add_recipe(parser.add_argument_group("how to compute (this changes numbers)"))
    _add_running(parser.add_argument_group("how to run (this does not)"))
    _add_instead(parser.add_argument_group("instead of a run"))
    return parser


def _add_selection(group: argparse._ArgumentGroup) -> None:
    several = {"nargs": "+", "action": "extend", "default": []}
    group.add_argument("--participant-label", metavar="LABEL", **several, help="only these subjects, with or without sub-")
    group.add_argument("--session-label", metavar="LABEL", **several, help="only these sessions, with or without ses-")
    group.add_argument(
        "--bids-filter-file", metavar="FILE", type=Path,
        help='JSON that narrows queries, as in fMRIPrep: {"megre": {"acquisition": "x"}, "t1w": {"run": 2}}',
    )  # fmt: skip
    group.add_argument(
        "-d", "--derivatives", metavar="[NAME=]PATH", **several, help="results of other pipelines, used instead of computing"
    )
    group.add_argument(
        "--skip-bids-validation", action="store_true",
        help="do not call the BIDS validator (it is called where bids-validator-deno is installed; its errors stop nothing)",
    )  # fmt: skip


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--recipe", metavar="NAME|FILE", default="consensus",
        help=f"{' or '.join(RECIPES)}, or a TOML file of your own (default: consensus); the options below change it",
    )  # fmt: skip
    for stage in registry.STAGES.values():
        known = ", ".join((*registry.names(stage.name), *(("none",) if stage.optional else ())))
        if stage.name == "mask":
            words = f"{stage.title}: a file, or methods joined by & (and), | (or), - (without), ! (not): {known}"
            group.add_argument("--mask", metavar="FILE|NAMES", help=words)
        else:
            kind = _method(stage.name)
            group.add_argument(methods.CHOICES[stage.name], metavar="NAME", type=kind, help=f"{stage.title}: {known}")
    group.add_argument(
        "--reference-region", metavar="REGION", help="zero of the susceptibility: a region of the atlas, or a mask file"
    )
    group.add_argument("--atlas", metavar="NAME|FILE", help="CIT168, or a segmentation or mask in template, T1w or GRE space")
    several = {"nargs": "+", "action": "extend", "metavar": "NAME"}
    listed = "; ".join(f"{key} ({words})" for key, words in OUTPUTS.items())
    group.add_argument("--outputs", **several, help=f"some of {listed} (default: {', '.join(DEFAULT_OUTPUTS)})")
    listed = "; ".join(f"{key} ({words})" for key, words in SPACES.items())
    group.add_argument("--output-spaces", **several, help=f"some of {listed} (default: GRE and template)")
    listed = " or ".join(ORIENTATION_ENTITIES)
    words = f"also combine the orientations of a head: a subject's acquisitions that differ in one entity only, {listed}"
    group.add_argument("--cosmos", metavar="ENTITY", help=words)
    words = "invert twice, reliable phase alone and the whole mask, and merge (strong sources leave fewer streaks)"
    group.add_argument("--two-pass", action="store_const", const=True, help=words)
    group.add_argument("--b0", metavar="TESLA", type=_number, help="field strength, where the sidecars lack it or are wrong")
    group.add_argument("--phase-sign", metavar="auto|+|-", help="phase grows (+) or falls (-) in a stronger field")


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-w", "--work-dir", metavar="PATH", type=Path, default=Path("work"),
        help="where intermediate files go and a rerun finds them (default: ./work)",
    )  # fmt: skip
    group.add_argument("--nprocs", metavar="N", type=_whole, help="processors in use at once (default: all)")
    group.add_argument("--omp-nthreads", metavar="N", type=_whole, help="threads of a step (default: nprocs - 1, at most 8)")
    group.add_argument("--mem", metavar="GB", help="memory that steps may plan with, such as 16 or 16G (default: 90 %% of all)")
    group.add_argument(
        "--use-plugin", metavar="FILE", type=Path, help="YAML with plugin and plugin_args of Nipype, such as SLURMGraph"
    )
    group.add_argument("--stop-on-first-crash", action="store_true", help="do not go on with other steps and subjects")
    group.add_argument("--write-graph", action="store_true", help="also draw the graph, as OUTPUT_DIR/logs/graph.svg")
    group.add_argument("-v", "--verbose", action="store_true", help="also show what goes to the log file")


def _add_instead(group: argparse._ArgumentGroup) -> None:
    only = group.add_mutually_exclusive_group()
    for mode, words in (
        ("dry-run", "tell what would be done for each acquisition"),
        ("boilerplate", "print the methods text with its references"),
        ("reports-only", "make the subjects' pages again from what is in OUTPUT_DIR"),
    ):
        only.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, help=words)
    group.add_argument("-h", "--help", action="help", help="show this and leave")
    words = "list methods and their parameters, and leave"
    group.add_argument("--help-methods", metavar="NAME", nargs="?", action=methods.HelpMethods, help=words)
    version = f"qsmflow {qsmflow.__version__}"
    group.add_argument("--version", action="version", version=version, help="show the version and leave")


def _level(text: str) -> str:
    if text not in _LEVELS:
        raise argparse.ArgumentTypeError(f"no level of analysis '{text}'{nearest(text, _LEVELS)}")
    return text


def _method(stage: str):
    """A type that knows the methods of a stage."""

    def check(text: str) -> str:
        if not (text == "none" and registry.STAGES[stage].optional):
            try:
                registry.find(stage, text)
            except UsageError as error:
                raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


def _recipe(options: argparse.Namespace) -> Recipe:
    """The named recipe with the changes of the command line."""
    base = Recipe.load(options.recipe)
    stages = [name for name in registry.STAGES if name not in ("mask", "reference")]
    changes = {key: getattr(options, key) for key in (*stages, "b0", "phase_sign", "cosmos", "two_pass")}
    for key in ("mask", "atlas", "reference_region"):
        given = getattr(options, key)
        changes[key] = None if given is None else checks.image_file(f"--{key.replace('_', '-')}", given)
    for key in ("outputs", "output_spaces"):
        names = [name for text in getattr(options, key) or () for name in text.split(",") if name]
        changes[key] = tuple(dict.fromkeys(names)) or None
    tuned = any(method in registry.names("swi") for _, method, *_ in options.parameters)
    if options.swi not in (None, "none") or tuned:  # who names a method, or sets it up, wants to see what it makes
        changes["outputs"] = tuple(dict.fromkeys((*(changes["outputs"] or base.outputs), "swi")))
    changes |= _reference(options, changes["reference_region"])
    chosen = replace(base, **{key: value for key, value in changes.items() if value is not None}, parameters={})
    if options.background and chosen.single_step:
        raise UsageError(f"--background {options.background}: {chosen.no_background}; leave the option out")
    recipe = replace(chosen, parameters=_parameters(base, chosen, options.parameters))
    return recipe if recipe.hash == base.hash else replace(recipe, name=f"{base.name}, modified")


def _reference(options: argparse.Namespace, region: str | None) -> dict[str, str | None]:
    """A region asks for the method that uses it; another method takes the recipe's region away."""
    if options.reference not in (None, "region") and region:
        raise UsageError(f"--reference-region needs '--reference region', not '--reference {options.reference}'")
    if region:
        return {"reference": "region"}
    return {"reference": options.reference, "reference_region": None if options.reference in (None, "region") else ""}


def _parameters(base: Recipe, chosen: Recipe, given: Sequence[tuple[str, str, str, object]]) -> dict[str, dict[str, object]]:
    """The recipe's parameters of methods that are still in use, and those of the command line."""
    used = {name for _, name in chosen.methods}
    parameters = {name: dict(values) for name, values in base.parameters.items() if name in used}
    for option, method, name, value in given:
        if method not in used:
            stage = next(row.stage for row in registry.ALGORITHMS if row.name == method)
            if stage == "background" and chosen.single_step:
                raise UsageError(f"{option}: {chosen.no_background}")
            instead = [used_name for used_stage, used_name in chosen.methods if used_stage == stage]
            title = registry.STAGES[stage].title
            raise UsageError(
                f"{option}: {title} is done by {' & '.join(instead) or 'no method'} here; add {methods.CHOICES[stage]} {method}"
            )
        parameters.setdefault(method, {})[name] = value
    return parameters
