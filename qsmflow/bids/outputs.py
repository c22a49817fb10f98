"""Names, sidecars and dataset-level files of the output tree.

:data:`PRODUCTS` is the one list of what a run can write: where it goes, its name, its unit and what it means. A file under
its final name is complete: :func:`atomic` gives it a hidden name first and renames it when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsmflow.bids.inputs import Acquisition
    from qsmflow.config import Recipe

#: Entities that a name may carry, in the order of the BIDS schema.
ENTITY_ORDER = (
    "sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "space", "chunk", "atlas", "seg", "res", "label", "desc",
)  # fmt: skip

#: Entities of a source that BIDS does not allow on field maps.
_NOT_IN_FMAP = ("task", "ce", "rec")

#: The standard space that outputs are taken to, and where its reference image can be found.
TEMPLATE = "MNI152NLin2009cAsym"
_TEMPLATE_IMAGE = f"https://templateflow.s3.amazonaws.com/tpl-{TEMPLATE}/tpl-{TEMPLATE}_res-01_T1w.nii.gz"

_BIDS_VERSION = "1.11.0"

#: What the BIDS validator is told to leave alone; ``.*`` covers files that are still being written.
_BIDSIGNORE = ("*.html", "logs/", "figures", "*_xfm.*", "*_stats.tsv", "*_stats.json", "group_*", ".*")

#: Descriptions of the atlases that come with the package.
_ATLASES = {
    "CIT168": {
        "AtlasName": "CIT168 reinforcement learning atlas",
        "Description": "Fourteen subcortical nuclei, left and right, in the space of the ICBM 152 2009c asymmetric template.",
        "Authors": ["Wolfgang M. Pauli", "Amanda N. Nili", "J. Michael Tyszka"],
        "License": "CC-BY-4.0",
        "ReferencesAndLinks": ["https://doi.org/10.1038/sdata.2018.63"],
        "Species": "Homo sapiens",
        "LevelType": "group",
    }
}

_README = """# Quantitative susceptibility maps

Made by qsmflow from the datasets that `dataset_description.json` links to.

- `sub-<label>.html`: one page per subject to look at first.
- `sub-<label>/[ses-<label>/]anat`: susceptibility (ppm), R2* (1/s), masks, atlas regions, and tables of their values.
- `sub-<label>/[ses-<label>/]fmap`: total and local field (Hz).
- `group.html`, `group_*.html`, `group_*.tsv`: report and tables of the whole study, from the group level.
- `logs`: the settings of every run, timings and crash reports.

Every image has a sidecar with its unit, its sources, and the methods and parameters that led to it.
`descriptions.tsv` explains the `desc-` labels.
"""

_PHASE = ("coils", "readout", "offset", "unwrap", "check", "field", "mask")
_CHAIN = (*_PHASE, "background", "inversion", "reference")


@dataclass(frozen=True)
class Product:
    """One kind of output file.

    ``entities`` are added to those of the acquisition, ``stages`` are the steps whose methods led to it, ``stripped`` is
    the sidecar's ``SkullStripped`` (None: does not apply) and ``grid`` says which image the voxels are aligned to.
    """

    datatype: str
    suffix: str
    description: str
    units: str = ""
    entities: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    stripped: bool | None = None
    dtype: str = "float32"
    extension: str = ".nii.gz"
    grid: str = "acquisition"
    mask_type: str = ""

    @property
    def is_image(self) -> bool:
        """Whether the file is an image (and therefore has a sidecar)."""
        return self.extension == ".nii.gz"


PRODUCTS: dict[str, Product] = {
    "chi": Product(
        "anat", "Chimap", "Magnetic susceptibility relative to the reference that the methods name; 0 outside the mask.",
        "ppm", stages=_CHAIN, stripped=True,
    ),
    "chi_t1w": Product(
        "anat", "Chimap", "Magnetic susceptibility resampled to the T1-weighted image.",
        "ppm", {"space": "T1w"}, _CHAIN, stripped=True, grid="t1w",
    ),
    "chi_template": Product(
        "anat", "Chimap", "Magnetic susceptibility resampled to the template.",
        "ppm", {"space": TEMPLATE, "res": "1"}, _CHAIN, stripped=True, grid="template",
    ),
    "chi_cosmos": Product(
        "anat", "Chimap", "Magnetic susceptibility from several orientations of the head (COSMOS); 0 outside the mask.",
        "ppm", {"desc": "cosmos"}, (*_PHASE, "background", "reference"), stripped=True,
    ),
    "chi_para": Product(
        "anat", "Chimap", "Magnetic susceptibility of the paramagnetic sources of every voxel, 0 or more.",
        "ppm", {"desc": "paramagnetic"}, (*_CHAIN, "relaxometry", "separation"), stripped=True,
    ),
    "chi_dia": Product(
        "anat", "Chimap", "Magnetic susceptibility of the diamagnetic sources of every voxel, 0 or less.",
        "ppm", {"desc": "diamagnetic"}, (*_CHAIN, "relaxometry", "separation"), stripped=True,
    ),
    "r2star": Product(
        "anat", "R2starmap", "Effective transverse relaxation rate.",
        "1/s", stages=("coils", "mask", "relaxometry"), stripped=True,
    ),
    "t2star": Product(
        "anat", "T2starmap", "Effective transverse relaxation time.",
        "s", stages=("coils", "mask", "relaxometry"), stripped=True,
    ),
    "s0": Product(
        "anat", "S0map", "Magnitude extrapolated to echo time zero.",
        "arbitrary", stages=("coils", "mask", "relaxometry"), stripped=True,
    ),
    "combined": Product(
        "anat", "T2starw", "Magnitude combined over the echoes (root of the sum of squares).",
        "arbitrary", {"desc": "combined"}, ("coils",), stripped=False,
    ),
    "swi": Product(
        "anat", "T2starw", "Susceptibility-weighted image: magnitude darkened where phase or susceptibility is unusual.",
        "arbitrary", {"desc": "swi"}, ("mask", "swi"), stripped=True,
    ),
    "minip": Product(
        "anat", "T2starw", "Minimum of the susceptibility-weighted image over a slab around every slice.",
        "arbitrary", {"desc": "minip"}, ("mask", "swi"), stripped=True,
    ),
    "phase_mask": Product(
        "anat", "T2starw", "Weight of the susceptibility-weighted image, 0 to 1.",
        "1", {"desc": "phasemask"}, ("mask", "swi"), stripped=True,
    ),
    "unwrapped": Product(
        "anat", "MEGRE", "Unwrapped phase of one echo after phase-offset removal.",
        "rad", {"part": "phase", "desc": "unwrapped"}, ("coils", "readout", "offset", "unwrap", "check", "mask"), stripped=True,
    ),
    "matching": Product(
        "anat", "T2starw", "Matching quality of the receive coils in the first echo: 100 % where the phases of all agree.",
        "percent", {"desc": "coilmatching"}, ("coils",), stripped=False,
    ),
    "brain_mask": Product(
        "anat", "mask", "Brain in the magnitude image.", "", {"desc": "brain"}, ("mask",), dtype="uint8", mask_type="Brain",
    ),
    "qsm_mask": Product(
        "anat", "mask", "Voxels with a susceptibility: brain with reliable phase, less what background removal took.",
        "", {"desc": "qsm"}, ("mask", "background"), dtype="uint8", mask_type="ROI",
    ),
    "mask_cosmos": Product(
        "anat", "mask", "Voxels that at least two orientations of the head have in common.",
        "", {"desc": "cosmos"}, ("mask", "background"), dtype="uint8", mask_type="ROI",
    ),
    "labels": Product(
        "anat", "dseg", "Atlas regions in the space of the gradient-echo images.",
        "", {"space": "GRE"}, dtype="int16", grid="gre",
    ),
    "labels_table": Product(
        "anat", "dseg", "Index and name of every atlas region.", "", {"space": "GRE"}, extension=".tsv",
    ),
    "region_table": Product(
        "anat", "stats", "Values of susceptibility and R2* in every atlas region.", "", stages=_CHAIN, extension=".tsv",
    ),
    "quality": Product(
        "anat", "stats", "Quality metrics, notices, inputs and methods of one acquisition.",
        "", {"desc": "qc"}, extension=".json",
    ),
    "total_field": Product(
        "fmap", "fieldmap", "Field offset fitted to the unwrapped phase of all echoes.",
        "Hz", {"desc": "total"}, _PHASE, stripped=True,
    ),
    "local_field": Product(
        "fmap", "fieldmap", "Field offset of the sources inside the mask, after background field removal.",
        "Hz", {"desc": "local"}, (*_PHASE, "background"), stripped=True,
    ),
    "field_magnitude": Product(
        "fmap", "magnitude", "Magnitude combined over the echoes, beside the field maps.", "arbitrary", stripped=False,
    ),
}  # fmt: skip


def output_path(
    output_dir: str | Path,
    acquisition_entities: Mapping[str, str],
    suffix: str,
    extension: str,
    *,
    datatype: str,
    **entities: str,
) -> Path:
    """Path of an output file.

    Parameters
    ----------
    output_dir : str or Path
        Root of the output tree.
    acquisition_entities : mapping
        Entities of the source acquisition by short key, ``sub`` at least.
    suffix, extension : str
        ``"Chimap"``, ``".nii.gz"``.
    datatype : str
        ``"anat"``, ``"fmap"``, or ``"figures"`` (which lies beside the sessions, as report viewers expect).
    **entities : str
        Entities added to, or replacing, those of the acquisition; an empty label removes one.

    Returns
    -------
    Path
        The entities stand in the order of the BIDS schema. BIDS allows no ``task-``, ``ce-`` and ``rec-`` on field maps:
        their labels move into ``acq-`` there, so that two acquisitions never share a name.

    Raises
    ------
    ValueError
        If an entity is unknown, a label holds anything but letters and digits, or there is no ``sub``.

    Examples
    --------
    >>> x = {"sub": "01", "run": "1"}
    >>> output_path("out", x, "dseg", ".tsv", datatype="anat", atlas="CIT168", space="GRE").as_posix()
    'out/sub-01/anat/sub-01_run-1_space-GRE_atlas-CIT168_dseg.tsv'
    """
    source = dict(acquisition_entities)
    if datatype == "fmap":
        source = _foldable(source)
    merged = {key: label for key, label in {**source, **entities}.items() if label}
    for key, label in merged.items():
        if key not in ENTITY_ORDER:
            raise ValueError(f"'{key}-{label}' cannot be part of an output name")
        if not (label.isascii() and label.isalnum()):
            raise ValueError(f"'{key}-{label}': a BIDS label holds letters and digits only")
    if "sub" not in merged:
        raise ValueError("an output name needs a subject")
    name = "_".join(f"{key}-{merged[key]}" for key in ENTITY_ORDER if key in merged)
    folder = Path(output_dir, f"sub-{merged['sub']}")
    if "ses" in merged and datatype != "figures":
        folder /= f"ses-{merged['ses']}"
    return folder / datatype / f"{name}_{suffix}{extension}"


def product_path(output_dir: str | Path, acquisition_entities: Mapping[str, str], product: str, **entities: str) -> Path:
    """Path of one of the :data:`PRODUCTS`; ``entities`` adds what the product leaves open (``echo``, ``atlas``).

    Examples
    --------
    >>> product_path("out", {"sub": "01", "rec": "norm"}, "total_field").as_posix()
    'out/sub-01/fmap/sub-01_acq-recnorm_desc-total_fieldmap.nii.gz'
    """
    row = PRODUCTS[product]
    return output_path(
        output_dir, acquisition_entities, row.suffix, row.extension, datatype=row.datatype, **{**row.entities, **entities}
    )


def sidecar_path(path: Path) -> Path:
    """The ``.json`` beside an image or a table.

    Examples
    --------
    >>> sidecar_path(Path("anat/sub-01_Chimap.nii.gz")).name
    'sub-01_Chimap.json'
    """
    return path.with_name(path.name.split(".")[0] + ".json")


def sidecar(
    product: str, acquisition: Acquisition, recipe: Recipe, *, datasets: Mapping[str, Path], skipped: Collection[str] = ()
) -> dict[str, object]:
    """Metadata of an output image: what it is, in which unit, from which files, by which methods and parameters.

    Parameters
    ----------
    product : str
        Key of :data:`PRODUCTS`.
    acquisition : Acquisition
        The source images.
    recipe : Recipe
        Methods and parameters; only the stages that lead to the product are listed.
    datasets : mapping of str to Path
        Roots of the datasets that sources may lie in, by the name they have in BIDS URIs (``"raw"``).
    skipped : collection of str
        Stages that do not run for this acquisition.

    Returns
    -------
    dict
        Content of the sidecar; the same for the same input, recipe and version, wherever the dataset lies.
    """
    row = PRODUCTS[product]
    content: dict[str, object] = {"Description": row.description}
    if row.units:
        content["Units"] = row.units
    content["Sources"] = [bids_uri(path, datasets) for path in acquisition.sources]
    if row.stripped is not None:
        content["SkullStripped"] = row.stripped
    if row.mask_type:
        content["Type"] = row.mask_type
    reference = _spatial_reference(row, acquisition, datasets)
    if reference:
        content["SpatialReference"] = reference
    if "res" in row.entities:
        content["Resolution"] = {row.entities["res"]: "1 mm, isotropic"}
    if acquisition.b0 is not None:
        content["MagneticFieldStrength"] = acquisition.b0
    content["GeneratedBy"] = [{"Name": "qsmflow", "Version": version("qsmflow")}]
    content["RecipeName"], content["RecipeHash"] = recipe.name, recipe.hash
    stages = row.stages
    if "swi" in stages and recipe.weights_chi:
        stages = (*_CHAIN, *stages)
    content["Methods"] = [
        {"Stage": stage, "Method": name, "Parameters": recipe.values(stage, name)}
        for stage, name in recipe.methods
        if stage in stages and stage not in skipped
    ]
    if recipe.takes_prior and "inversion" in stages and "inversion" not in skipped:
        content["SusceptibilityPrior"] = f"middle of the plausible range in regions of {Path(recipe.atlas).name}, 0 elsewhere"
    return content


def bids_uri(path: str | Path, datasets: Mapping[str, Path]) -> str:
    """BIDS URI of a file in one of the datasets; the longest matching root wins, a file elsewhere gets a file URI.

    Examples
    --------
    >>> bids_uri("/study/sub-01/anat/sub-01_T1w.nii.gz", {"raw": Path("/study")})
    'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
    """
    path = Path(os.path.abspath(path))  # not resolved: a DataLad file is a link out of the dataset, into its object store
    inside = [
        (len(root.parts), name, path.relative_to(root))
        for name, given in datasets.items()
        for root in (Path(os.path.abspath(given)), Path(given).resolve())
        if path.is_relative_to(root)
    ]
    if not inside:
        return path.as_uri()
    _, name, relative = max(inside)
    return f"bids:{name}:{relative.as_posix()}"


def dataset_roots(bids_dir: Path, derivatives: Sequence[Path] = ()) -> dict[str, Path]:
    """The datasets that sources may lie in, by the name they get in BIDS URIs.

    Examples
    --------
    >>> list(dataset_roots(Path("study"), [Path("masks"), Path("fields")]))
    ['raw', 'derivatives1', 'derivatives2']
    """
    return {"raw": Path(bids_dir)} | {f"derivatives{n}": Path(path) for n, path in enumerate(derivatives, 1)}


def write_dataset_files(output_dir: Path, *, datasets: Mapping[str, Path]) -> None:
    """Write what describes the output tree as a whole; safe to repeat and to run from many jobs at once.

    Parameters
    ----------
    output_dir : Path
        Root of the output tree; made when it does not exist.
    datasets : mapping of str to Path
        Where the sources lie, see :func:`dataset_roots`. The links are relative to ``output_dir``, so that they hold when a
        study's folder is moved as a whole.
    """
    files = {
        "dataset_description.json": json_text(_description(output_dir, datasets)),
        "descriptions.tsv": "desc_id\tdescription\n" + "".join(f"{key}\t{text}\n" for key, text in descriptions().items()),
        "README.md": _README,
    }
    for name, text in files.items():
        _write_new(Path(output_dir, name), text)
    write_ignore_file(output_dir)


def describe_atlas(output_dir: str | Path, atlas: str) -> None:
    """Write what BIDS wants to know of an atlas whose name outputs carry (``atlas-<name>``), where it is not there yet."""
    own = {"AtlasName": atlas, "License": "unknown", "Description": "Atlas given by the user."}
    _write_new(Path(output_dir, f"atlas-{atlas}_description.json"), json_text(_ATLASES.get(atlas, own)))


def write_ignore_file(output_dir: Path) -> None:
    """Write the list of what the BIDS validator leaves alone, where it is not there or an older one."""
    _write_new(Path(output_dir, ".bidsignore"), "\n".join(_BIDSIGNORE) + "\n")


def _write_new(path: Path, text: str) -> None:
    if not (path.is_file() and path.read_text() == text):
        write_text(path, text)


def descriptions() -> dict[str, str]:
    """What every ``desc-<label>`` means (a label used on several suffixes has all its meanings)."""
    meanings: dict[str, list[str]] = {}
    for row in PRODUCTS.values():
        if "desc" in row.entities:
            meanings.setdefault(f"desc-{row.entities['desc']}", []).append(row.description)
    return {label: " ".join(texts) for label, texts in sorted(meanings.items())}


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path`` to write to; it becomes ``path`` when the block ends, and is removed when it fails.

    The hidden name ends like the final one (so that a file format can be told from it) and is different for every writer,
    on every machine that shares the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # the name must not be on disk before the content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def copy_file(source: str | Path, path: Path) -> None:
    """Copy a file atomically."""
    with atomic(path) as temporary:
        shutil.copyfile(source, temporary)


def json_text(content: Mapping[str, object]) -> str:
    """JSON as written in the output tree: indented, NaN refused, NumPy numbers as numbers.

    Raises
    ------
    ValueError
        If a number is not finite; JSON has no way to say so.
    """
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=lambda value: value.item()) + "\n"


def _foldable(entities: Mapping[str, str]) -> dict[str, str]:
    folded = "".join(f"{key}{entities[key]}" for key in _NOT_IN_FMAP if entities.get(key))
    kept = {key: label for key, label in entities.items() if key not in _NOT_IN_FMAP}
    return {**kept, "acq": kept.get("acq", "") + folded} if folded else kept


def _spatial_reference(row: Product, acquisition: Acquisition, datasets: Mapping[str, Path]) -> str:
    if row.grid == "gre":
        return bids_uri(acquisition.sources[0], datasets)
    if row.grid == "t1w" and acquisition.t1w:
        return bids_uri(acquisition.t1w, datasets)
    if row.grid == "template":
        return _TEMPLATE_IMAGE
    return "orig" if row.mask_type else ""


def _description(output_dir: Path, datasets: Mapping[str, Path]) -> dict[str, object]:
    links = {name: Path(os.path.relpath(root, output_dir)).as_posix() for name, root in datasets.items()}
    sources, licence = [], {}
    for name, root in datasets.items():
        origin = _read_description(root)
        sources.append({"URL": links[name], **({"DOI": origin["DatasetDOI"]} if "DatasetDOI" in origin else {})})
        if name == "raw" and "License" in origin:
            licence = {"License": origin["License"]}
    return {
        "Name": "qsmflow: quantitative susceptibility mapping",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "qsmflow", "Version": version("qsmflow")}],
        "SourceDatasets": sources,
        "DatasetLinks": links,
        **licence,
        "HowToAcknowledge": "Cite the works that the methods text of the subject pages names.",
    }


def _read_description(root: Path) -> dict[str, object]:
    """The dataset's own description; empty when there is none or when it is broken, which reading the dataset reports."""
    try:
        content = json.loads(Path(root, "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
