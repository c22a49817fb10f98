"""What a run is told: :class:`Recipe` changes numbers, :class:`Execution` does not.

Both are frozen and passed by hand; there is no global state. A recipe is read from and written to TOML::

    name = "consensus"
    background = "pdf"
    mask = "template & quality"

    [parameters.pdf]
    iterations = 60
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from dataclasses import field as dataclass_field
from importlib import resources
from pathlib import Path

import tomli_w

from qsmflow import registry
from qsmflow.errors import UsageError, nearest
from qsmflow.expression import Expression, parse

#: What can be asked for with ``--outputs``, and the sentence of the help.
OUTPUTS = {
    "qsm": "susceptibility (Chimap), with masks and fields",
    "r2star": "R2*, T2* and S0 maps",
    "rois": "atlas labels in GRE space and the table of region values",
    "swi": "susceptibility-weighted image, its minimum intensity projection and the weight",
}

#: What a run gives when nothing is asked for.
DEFAULT_OUTPUTS = ("qsm", "r2star", "rois")

#: What can be asked for with ``--output-spaces``, and the sentence of the help.
SPACES = {
    "GRE": "the acquisition's own space (always written)",
    "T1w": "susceptibility resampled to the subject's T1w image",
    "MNI152NLin2009cAsym": "susceptibility in template space, 1 mm",
}

#: Recipes that come with the package.
RECIPES = ("consensus", "fast")

#: Entities that may tell orientations of one head apart (``--cosmos``).
ORIENTATION_ENTITIES = ("acq", "ses", "run")

#: Stages whose method a recipe names directly (``mask`` is an expression of methods).
_METHODS = (
    "coils", "readout", "offset", "unwrap", "check", "field", "relaxometry", "background", "inversion", "reference", "swi",
    "separation",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that changes numbers; its :attr:`hash` goes into every sidecar.

    ``parameters`` holds overrides by method name; :meth:`values` gives them merged with the defaults.
    """

    name: str = "consensus"
    coils: str = "mcpc3ds-coils"
    readout: str = "bipolar"
    offset: str = "mcpc3ds"
    unwrap: str = "romeo"
    check: str = "consistency"
    field: str = "wls"
    relaxometry: str = "arlo"
    mask: str = "template & quality"
    background: str = "pdf"
    inversion: str = "tv"
    reference: str = "brain"
    reference_region: str = ""
    swi: str = "swi"
    separation: str = "none"
    atlas: str = "CIT168"
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    output_spaces: tuple[str, ...] = ("GRE", "MNI152NLin2009cAsym")
    b0: float | None = None
    phase_sign: str = "auto"
    cosmos: str = ""
    two_pass: bool = False
    parameters: Mapping[str, Mapping[str, object]] = dataclass_field(default_factory=dict)

    def __post_init__(self):
        for stage in _METHODS:
            name = getattr(self, stage)
            if not (name == "none" and registry.STAGES[stage].optional):
                registry.find(stage, name)
        chosen = {name for _, name in self.methods}
        every = {row.name for row in registry.ALGORITHMS}
        for method in self.parameters:
            if self.single_step and method in registry.names("background"):
                raise UsageError(f"parameters given for '{method}', but {self.no_background}")
            if method not in every:
                raise UsageError(f"parameters of an unknown method '{method}'{nearest(method, every)}")
            if method not in chosen:
                raise UsageError(f"parameters given for '{method}', which this recipe does not use")
        for stage, name in self.methods:
            registry.find(stage, name).merged(self.parameters.get(name))
        for name in self.outputs:
            if name not in OUTPUTS:
                raise UsageError(f"no output '{name}'{nearest(name, OUTPUTS)}")
        for name in self.output_spaces:
            if name not in SPACES:
                raise UsageError(f"no output space '{name}'{nearest(name, SPACES)}")
        if self.single_step and self.separates("local_field"):
            raise UsageError(f"{self.separation} takes the local field, but {self.no_background}")
        if self.phase_sign not in ("auto", "+", "-"):
            raise UsageError(f"phase sign must be 'auto', '+' or '-', not '{self.phase_sign}'")
        if self.b0 is not None and not 0 < self.b0 < 30:
            raise UsageError(f"B0 must be given in tesla, not {self.b0}")
        if self.cosmos:
            self._check_cosmos()
        if not isinstance(self.two_pass, bool):
            raise UsageError(f"two_pass must be true or false, not {self.two_pass!r}")
        if self.two_pass and not self.needs_chi:
            raise UsageError("two passes are for the susceptibility, but the outputs leave it out")
        if (self.reference == "region") != bool(self.reference_region):
            raise UsageError("reference 'region' needs a region (an atlas label or a mask file), and only it takes one")

    def _check_cosmos(self) -> None:
        if self.cosmos not in ORIENTATION_ENTITIES:
            near = nearest(self.cosmos, ORIENTATION_ENTITIES)
            raise UsageError(f"cosmos: orientations cannot be told apart by '{self.cosmos}'{near}")
        if self.single_step:
            raise UsageError(f"cosmos combines local fields, but {self.no_background}")
        if "qsm" not in self.outputs:
            raise UsageError("cosmos makes a susceptibility map, but the outputs leave out qsm")

    @property
    def mask_file(self) -> str | None:
        """The user's mask, where ``mask`` is a path."""
        return self.mask if self.mask.endswith((".nii", ".nii.gz")) else None

    @property
    def mask_expression(self) -> Expression | None:
        """How masking methods are combined (None for a user's mask)."""
        return None if self.mask_file else parse(self.mask)

    @property
    def mask_methods(self) -> tuple[str, ...]:
        """The masking methods that are combined (none for a user's mask)."""
        return self.mask_expression.names if self.mask_expression else ()

    @property
    def single_step(self) -> bool:
        """Whether the inversion starts from the total field; ``background`` then has no part in the recipe."""
        return registry.find("inversion", self.inversion).from_total_field

    @property
    def takes_prior(self) -> bool:
        """Whether the inversion takes the susceptibility that the regions of the atlas are expected to have."""
        return "chi_prior" in registry.find("inversion", self.inversion).arrays

    @property
    def no_background(self) -> str:
        """Why a single-step recipe removes no background field, in words."""
        return f"{self.inversion} starts from the total field and takes no background removal before it"

    @property
    def methods(self) -> tuple[tuple[str, str], ...]:
        """(stage, method) pairs of this recipe, in the order of the chain."""
        pairs = []
        for stage in registry.STAGES:
            chosen = self.mask_methods if stage == "mask" else (getattr(self, stage),)
            if not (stage == "background" and self.single_step):
                pairs += [(stage, name) for name in chosen if name != "none"]
        return tuple(pairs)

    @property
    def weights_chi(self) -> bool:
        """Whether the susceptibility-weighted image is made from susceptibility (and not from phase)."""
        return self.swi != "none" and "chi" in registry.find("swi", self.swi).arrays

    def separates(self, array: str) -> bool:
        """Whether the separation of sources takes an array."""
        return self.separation != "none" and array in registry.find("separation", self.separation).arrays

    @property
    def needs_chi(self) -> bool:
        """Whether something that was asked for is made from susceptibility."""
        return "qsm" in self.outputs or ("swi" in self.outputs and self.weights_chi) or self.separation != "none"

    @property
    def needs_r2star(self) -> bool:
        """Whether something that was asked for is made from R2*."""
        return "r2star" in self.outputs or (self.needs_chi and self.reference == "csf") or self.separates("r2star")

    @property
    def reliable_quality(self) -> float:
        """Lowest phase quality of a voxel that the first of two passes takes: that of the mask by quality."""
        return self.values("mask", "quality")["threshold"]

    def values(self, stage: str, name: str) -> dict[str, object]:
        """All parameters of a method, defaults merged."""
        return registry.find(stage, name).merged(self.parameters.get(name))

    @property
    def hash(self) -> str:
        """Twelve hex digits over everything that changes numbers: methods, versions, merged parameters, content of files."""
        content = {key: _content(value) for key, value in asdict(replace(self, name="", parameters={})).items()}
        if self.single_step:
            del content["background"]
        for key, idle in (("cosmos", ""), ("separation", "none")):
            if content[key] == idle:
                del content[key]
        if self.two_pass:
            content["two_pass"] = self.reliable_quality
        else:
            del content["two_pass"]
        content["methods"] = [
            [stage, name, registry.find(stage, name).version, self.values(stage, name)] for stage, name in self.methods
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def to_toml(self) -> str:
        """The recipe as TOML, every parameter written out."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) not in (None, "")}
        if self.single_step:
            del content["background"]
        content["outputs"], content["output_spaces"] = list(self.outputs), list(self.output_spaces)
        content["parameters"] = {name: self.values(stage, name) for stage, name in self.methods if self.values(stage, name)}
        return tomli_w.dumps(content)

    @classmethod
    def from_mapping(cls, content: Mapping[str, object], where: str) -> Recipe:
        """A recipe from parsed TOML; ``where`` names the source in error messages."""
        known = {f.name for f in fields(cls)}
        for key in content:
            if key not in known:
                raise UsageError(f"{where}: no setting '{key}'{nearest(key, known)}")
        values = dict(content)
        for key in ("outputs", "output_spaces"):
            if key in values:
                values[key] = tuple(values[key])
        try:
            recipe = cls(**values)
        except (UsageError, TypeError) as error:
            raise UsageError(f"{where}: {error}") from error
        if "background" in content and recipe.single_step:
            raise UsageError(f"{where}: background = '{recipe.background}' is given, but {recipe.no_background}")
        return recipe

    @classmethod
    def load(cls, name: str) -> Recipe:
        """A recipe by the name of a packaged one, or from a TOML file."""
        if name in RECIPES:
            text, where = resources.files("qsmflow.data").joinpath(f"recipes/{name}.toml").read_text(), f"recipe {name}"
        elif name.endswith(".toml"):
            try:
                text, where = Path(name).read_text(), name
            except OSError as error:
                raise UsageError(f"recipe file {name} cannot be read: {error.strerror}") from error
        else:
            raise UsageError(f"no recipe '{name}'{nearest(name, RECIPES)} (a recipe of your own is a file ending in .toml)")
        try:
            content = {"name": Path(name).stem} | tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{where} is not valid TOML: {error}") from error
        # What a run leaves in its logs is a recipe, with two tables about that run.
        return cls.from_mapping({key: value for key, value in content.items() if key not in ("run", "execution")}, where)


def _content(value: object) -> object:
    """A value of a recipe as it is hashed: for a NIfTI file what it holds, not where it lies."""
    if not (isinstance(value, str) and value.endswith((".nii", ".nii.gz"))):
        return value
    try:
        return hashlib.sha256(Path(value).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{value} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Execution:
    """Where and how a run happens; nothing here may change a number in the outputs."""

    bids_dir: Path
    output_dir: Path
    work_dir: Path
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filters: Mapping[str, object] = dataclass_field(default_factory=dict)
    derivatives: tuple[Path, ...] = ()
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float | None = None
    plugin_file: Path | None = None
    stop_on_first_crash: bool = False
    skip_bids_validation: bool = False
    write_graph: bool = False
    verbose: bool = False


def read_plugin_file(path: Path) -> tuple[str, dict[str, object]]:
    """The Nipype plugin that a YAML file asks for, and its arguments.

    Raises
    ------
    UsageError
        If the file cannot be read or does not say ``plugin: NAME`` (and, optionally, ``plugin_args:`` with a mapping).
    """
    import yaml  # only runs with a plugin file pay for it

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"plugin file {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"plugin file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise UsageError(f"plugin file {path} must say 'plugin: NAME', the name of a Nipype plugin such as SLURMGraph")
    for key in content:
        if key not in ("plugin", "plugin_args"):
            raise UsageError(f"plugin file {path}: no setting '{key}'{nearest(key, ('plugin', 'plugin_args'))}")
    arguments = content.get("plugin_args") or {}
    if not isinstance(arguments, dict):
        raise UsageError(f"plugin file {path}: 'plugin_args' must be a mapping")
    return content["plugin"], arguments
