"""What a study asks: the model file, checked; ready-made ones come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path

import yaml

from qsmflow.errors import UsageError, nearest

#: Studies that come with the package.
STUDIES = ("ageing", "case-control", "phantom", "test-retest")

_CHOICES = {
    "analysis": STUDIES,
    "hemispheres": ("average", "separate"),
    "harmonise": ("none", "combat"),
    "compound": ("gadolinium", "manganese", "iron"),
}
_LISTS = ("regions", "covariates", "exclude")


@dataclass(frozen=True)
class Voxelwise:
    """Settings of the comparison voxel by voxel: smoothing and grid in mm, permutations, enhancement of clusters."""

    fwhm: float = 3.0
    resolution: int = 2
    permutations: int = 1000
    tfce: bool = False


@dataclass(frozen=True)
class Model:
    """A study: which values of whom are explained by what.

    ``covariates`` and ``site`` name columns of ``participants.tsv`` or of the sessions' files; one that ends in ``?`` is used
    where the column exists and is not constant. ``select`` keeps the participants whose column has one of some values.
    """

    name: str
    analysis: str
    measure: str = "chi_mean"
    regions: tuple[str, ...] = ()
    hemispheres: str = "average"
    atlas: str = ""
    acquisition: str = ""
    session: str = ""
    select: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    group: str = "group"
    reference: str = ""
    age: str = "age"
    covariates: tuple[str, ...] = ()
    site: str = ""
    harmonise: str = "none"
    fdr: float = 0.05
    bootstrap: int = 1000
    seed: int = 0
    compound: str = "gadolinium"
    temperature: float = 20.0
    concentrations: Mapping[str, float] = field(default_factory=dict)
    voxelwise: Voxelwise = Voxelwise()

    @property
    def of_iron(self) -> bool:
        """Whether the measure goes with iron: what is known of iron says nothing about diamagnetic sources."""
        return not self.measure.startswith("dia_")

    def to_yaml(self) -> str:
        """The model as a file, every setting written out."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        plain["select"] = {key: list(values) for key, values in self.select.items()}
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def load_study(name: str) -> Model:
    """A ready-made study.

    Raises
    ------
    UsageError
        If there is none of that name; the message gives the nearest.

    Examples
    --------
    >>> load_study("ageing").covariates
    ('sex?', 'group?', 'site?')
    """
    if name not in STUDIES:
        raise UsageError(f"--study: no study '{name}'{nearest(name, STUDIES)} (a study of your own: --model FILE.yml)")
    text = resources.files("qsmflow.data").joinpath(f"studies/{name}.yml").read_text(encoding="utf-8")
    return read_model(text, f"study {name}")


def load_model(path: Path) -> Model:
    """A study from a YAML file.

    Raises
    ------
    UsageError
        If the file cannot be read or used; the message names it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"model file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return read_model(text, f"model file {path}", name=Path(path).stem)


def read_model(text: str, where: str, name: str = "") -> Model:
    """A model from YAML; ``where`` names the source in messages."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{where} must hold settings such as 'analysis: case-control'")
    known = {f.name: f for f in fields(Model)}
    for key in content:
        if key not in known:
            raise UsageError(f"{where}: no setting '{key}'{nearest(str(key), known)}")
    if "analysis" not in content:
        raise UsageError(f"{where} must say 'analysis:', one of {', '.join(STUDIES)}")
    values = {"name": name, **{key: _value(key, value, known[key], where) for key, value in content.items()}}
    model = Model(**values)
    if not model.name or not model.name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"{where}: name '{model.name}' goes into the names of files; use letters, digits, '-' and '_'")
    if model.harmonise != "none" and not model.site:
        raise UsageError(f"{where}: 'harmonise: {model.harmonise}' needs 'site:', the column that tells the scanners apart")
    return model


def _value(key: str, value: object, row: object, where: str) -> object:
    """One setting in the type that the model wants."""
    if key in _CHOICES and value not in _CHOICES[key]:
        raise UsageError(f"{where}: no {key} '{value}'{nearest(str(value), _CHOICES[key])}")
    if key in _LISTS:
        return tuple(str(part) for part in (value if isinstance(value, list) else [value]))
    if key == "voxelwise":
        return replace(Voxelwise(), **_settings(key, value, Voxelwise, where))
    if key in ("select", "concentrations"):
        if not isinstance(value, dict):
            raise UsageError(f"{where}: '{key}' must be a mapping")
        if key == "select":
            return {str(k): tuple(str(x) for x in (v if isinstance(v, list) else [v])) for k, v in value.items()}
        return {str(k): _number(f"concentration of {k}", v, where) for k, v in value.items()}
    default = "" if row.default is MISSING else row.default
    if isinstance(default, (int, float)):
        return type(default)(_number(key, value, where, whole=isinstance(default, int)))
    return "" if value is None else str(value)


def _settings(key: str, value: object, kind: type, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: '{key}' must be a mapping")
    defaults = {f.name: f.default for f in fields(kind)}
    for name in value:
        if name not in defaults:
            raise UsageError(f"{where}: {key} has no setting '{name}'{nearest(str(name), defaults)}")
    result = {}
    for name, given in value.items():
        if isinstance(defaults[name], bool):
            result[name] = bool(given)
        else:
            result[name] = type(defaults[name])(_number(name, given, where, whole=isinstance(defaults[name], int)))
    return result


def _number(key: str, value: object, where: str, *, whole: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or (whole and value != int(value)):
        raise UsageError(f"{where}: '{key}' must be a {'whole ' if whole else ''}number that is not negative, not '{value}'")
    return value
