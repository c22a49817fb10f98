"""Which pictures an acquisition gets, in which window, and what a good one looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from qsmflow.algorithms.units import hz_per_ppm
from qsmflow.reports import figures
from qsmflow.reports.boilerplate import bibliography
from qsmflow.reports.figures import Row, View, montage, three_planes
from qsmflow.reports.quality import RANGE_SOURCES

#: Section of the pictures from several orientations, and how their names begin.
COSMOS = "cosmos"


@dataclass(frozen=True, eq=False)
class Material:
    """What pictures are made of.

    ``arrays`` holds what there is of ``magnitude`` (first echo), ``wrapped`` and ``unwrapped`` (first and last echo along the
    fourth axis, rad), ``brain``, ``mask`` (where susceptibility is given), ``quality``, ``total_field``, ``local_field``,
    ``field_error`` (ppm), ``residual`` (rad), ``matching`` (%), ``chi``, ``chi_para``, ``chi_dia`` (ppm), ``r2star`` (1/s),
    ``swi``, ``minip``, ``phase_mask``, ``labels``. ``regions`` is what :func:`~qsmflow.reports.figures.regions_plot` takes;
    ``slab`` the thickness of the projection, mm; ``label_names`` gives structure and index of every label.
    """

    arrays: Mapping[str, np.ndarray]
    affine: np.ndarray
    b0: float | None
    echoes: int
    reference: str = "the chosen reference"
    regions: Sequence[Mapping[str, object]] = ()
    slab: float = 0.0
    label_names: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def view(self) -> View:
        """The view of all pictures but those of the atlas."""
        brain = self.arrays.get("brain")
        return figures.view_of(self.arrays["mask"] if brain is None else brain | self.arrays["mask"], self.affine)


@dataclass(frozen=True)
class Picture:
    """A kind of picture: its name in the figures folder, its section of the page, its caption and what it needs.

    ``draw`` gives the PNG and the numbers that the caption asks for.
    """

    desc: str
    suffix: str
    section: str
    title: str
    caption: str
    needs: tuple[str, ...]
    draw: Callable[[Material], tuple[bytes, dict[str, object]]]

    @property
    def name(self) -> str:
        """The end of the file's name, after the acquisition's entities."""
        return f"desc-{self.desc}_{self.suffix}"


@dataclass(frozen=True)
class Drawn:
    """A picture that was drawn, and what its sidecar says."""

    name: str
    png: bytes
    sidecar: Mapping[str, object]


def draw(material: Material, pictures: Sequence[Picture] | None = None) -> Iterator[Drawn]:
    """All pictures (:data:`PICTURES` unless others are wanted) that the material suffices for, in the order of the page."""
    pictures = PICTURES if pictures is None else pictures
    for picture in possible(material, pictures):
        png, numbers = picture.draw(material)
        sidecar = {
            "title": picture.title,
            "caption": picture.caption.format(**numbers),
            "section": picture.section,
            "order": pictures.index(picture) + 1,
        }
        yield Drawn(picture.name, png, sidecar)


def possible(material: Material, pictures: Sequence[Picture] | None = None) -> list[Picture]:
    """The pictures (:data:`PICTURES` unless others are wanted) that the material suffices for."""
    have = {name for name, array in material.arrays.items() if array is not None}
    wanted = PICTURES if pictures is None else pictures
    return [picture for picture in wanted if set(picture.needs) <= have and _sensible(picture, material)]


def _sensible(picture: Picture, material: Material) -> bool:
    """Whether there is anything to see: a field strength for Hz, a region, a label."""
    if picture.suffix == "fieldmap" and material.b0 is None:
        return False
    if picture.desc == "atlas":
        return bool(material.arrays["labels"].any())
    return picture.desc != "regions" or bool(material.regions)


def _chi(material: Material, *, limit: float) -> tuple[bytes, dict]:
    arrays = material.arrays
    rows = three_planes(material.view, arrays["chi"], window=(-limit, limit), unit="ppm", mask=arrays["mask"])
    return montage(material.view, rows, tiles=4.6), {"reference": material.reference}


def _sources(material: Material) -> tuple[bytes, dict]:
    arrays = material.arrays
    maps = {"paramagnetic": arrays["chi_para"], "diamagnetic": -arrays["chi_dia"]}
    rows = [
        Row(strength, plane, (0.0, 0.1), "ppm", title, mask=arrays["mask"])
        for plane in ("axial", "coronal")
        for title, strength in maps.items()
    ]
    return montage(material.view, rows, tiles=4.6), {"reference": material.reference}


def _weighted(material: Material) -> tuple[bytes, dict]:
    arrays, mask = material.arrays, _brain(material)
    window = 0.0, figures.nice(float(np.percentile(arrays["swi"][mask], 99)))
    rows = [
        Row(arrays["swi"], "axial", window, "a.u.", "SWI", mask=mask),
        Row(arrays["minip"], "axial", window, "a.u.", "minimum projection", mask=mask),
        Row(arrays["phase_mask"], "axial", (0.0, 1.0), "", "weight", mask=mask),
    ]
    return montage(material.view, rows, tiles=4.6), {"slab": f"{material.slab:g}"}


def _r2star(material: Material) -> tuple[bytes, dict]:
    # The same window for every subject at one field strength: R2* of tissue grows about linearly with it.
    top = 20 * (material.b0 or 3.0)
    rows = three_planes(material.view, material.arrays["r2star"], window=(0.0, top), unit="1/s", mask=_brain(material))
    return montage(material.view, rows), {}


def _field(material: Material, *, name: str, colours: str, signed: bool) -> tuple[bytes, dict]:
    scale, mask = hz_per_ppm(b0=material.b0), _brain(material)
    image = material.arrays[name] * np.float32(scale)
    window = (figures.symmetric_window if signed else figures.positive_window)(image, mask & (image != 0))
    rows = three_planes(material.view, image, window=window, unit="Hz", colours=colours, mask=mask & (image != 0))
    return montage(material.view, rows), {"hz": f"{window[1]:g}", "ppm": f"{window[1] / scale:.2g}", "b0": f"{material.b0:g}"}


def _residual(material: Material) -> tuple[bytes, dict]:
    rows = three_planes(
        material.view, material.arrays["residual"], window=(0.0, 0.5), unit="rad", colours="magma", mask=_brain(material)
    )
    return montage(material.view, rows), {}


def _quality(material: Material) -> tuple[bytes, dict]:
    rows = three_planes(material.view, material.arrays["quality"], window=(0.0, 1.0), unit="", colours="viridis")
    return montage(material.view, rows), {}


def _matching(material: Material) -> tuple[bytes, dict]:
    rows = three_planes(
        material.view, material.arrays["matching"], window=(50.0, 100.0), unit="%", colours="viridis", mask=_brain(material)
    )
    return montage(material.view, rows), {}


def _phase(material: Material) -> tuple[bytes, dict]:
    wrapped, unwrapped = material.arrays["wrapped"], material.arrays["unwrapped"]
    mask = _brain(material)
    echoes = sorted({1, material.echoes})
    window = figures.symmetric_window(unwrapped[..., -1], mask)
    rows = [
        Row(wrapped[..., i], "axial", (-np.pi, np.pi), "rad", f"echo {echo}, wrapped", mask=mask)
        for i, echo in enumerate(echoes)
    ]
    rows += [
        Row(unwrapped[..., i], "axial", window, "rad", f"echo {echo}, unwrapped", colours="RdBu_r", mask=mask)
        for i, echo in enumerate(echoes)
    ]
    return montage(material.view, rows, tiles=7.5), {}


def _outline(material: Material) -> tuple[bytes, dict]:
    image, mask = material.arrays["magnitude"], material.arrays["mask"]
    outlines, legend = [(mask, {1: figures.FIRST})], {"susceptibility is given": figures.FIRST}
    brain = material.arrays.get("brain")
    if brain is not None:
        outlines, legend = [(brain, {1: figures.SECOND}), *outlines], {"brain mask": figures.SECOND, **legend}
    window = 0.0, figures.nice(1.15 * float(np.percentile(image[_brain(material)], 99)))
    rows = three_planes(material.view, image, window=window, unit="a.u.", outlines=outlines)
    return montage(material.view, rows, legend=legend), {}


def _atlas(material: Material) -> tuple[bytes, dict]:
    arrays, labels = material.arrays, material.arrays["labels"]
    names = {int(index): material.label_names.get(int(index), f"label {index}") for index in np.unique(labels[labels != 0])}
    structures = dict.fromkeys(names[index] for index in sorted(names))
    colours = {name: figures.PALETTE[i % len(figures.PALETTE)] for i, name in enumerate(structures)}
    outlines = [(labels, {index: colours[name] for index, name in names.items()})]
    view = figures.view_of(labels != 0, material.affine, focus=labels != 0, margin=18)
    rows = [
        Row(arrays["chi"], plane, (-0.1, 0.1), "ppm", plane, mask=arrays["mask"], outlines=outlines)
        for plane in ("axial", "coronal")
    ]
    return montage(view, rows, tiles=4.6, legend=colours if len(colours) <= 28 else None), {}


def _regions(material: Material) -> tuple[bytes, dict]:
    sources = "; ".join(bibliography()[key].short for key in RANGE_SOURCES)
    return figures.regions_plot(material.regions, note="relative to the whole brain"), {"sources": sources}


def _brain(material: Material) -> np.ndarray:
    brain = material.arrays.get("brain")
    return material.arrays["mask"] if brain is None else brain


#: All pictures, in the order of the page.
PICTURES = (
    Picture(
        "narrow", "Chimap", "chi", "Susceptibility, −0.1 to 0.1 ppm",
        "Relative to {reference}. Good: the iron-rich nuclei (caudate, putamen, globus pallidus, red nucleus, substantia"
        " nigra, dentate) and the veins are bright, white matter is darker than cortex, and the two sides match. Look for"
        " streaks that fan out from strong sources, a bright or dark band along the edge of the brain, and shading that"
        " ignores the anatomy.",
        ("chi", "mask"), partial(_chi, limit=0.1),
    ),
    Picture(
        "fine", "Chimap", "chi", "Susceptibility, −0.05 to 0.05 ppm",
        "The same map in a narrower window. Good: cortex brighter than white matter, fibre bundles dark, and a brightness that"
        " does not drift from one side of the brain to the other. Slow shading is background field that was left.",
        ("chi", "mask"), partial(_chi, limit=0.05),
    ),
    Picture(
        "wide", "Chimap", "chi", "Susceptibility, −0.3 to 0.3 ppm",
        "The same map in a wider window. Good: even grey, and only veins, microbleeds (bright) and calcifications (dark)"
        " reach the ends of the scale. Large bright or dark areas mean background field or unwrapping errors.",
        ("chi", "mask"), partial(_chi, limit=0.3),
    ),
    Picture(
        "sources", "Chimap", "sources", "Paramagnetic and diamagnetic sources",
        "How strong the sources of either sign are (0 to 0.1 ppm, without sign), where the susceptibility is relative to"
        " {reference}. Good: iron-rich nuclei and veins are bright in the first and dark in the second, white matter is bright"
        " in the second; cortex holds both. The same picture twice means that R2* decides alone: the rate of tissue without"
        " sources is then too low. High values of both above the sinuses and the ears come from the field there.",
        ("chi_para", "chi_dia", "mask"), _sources,
    ),
    Picture(
        "weighted", "T2starw", "swi", "Susceptibility-weighted image",
        "From top to bottom: the weighted magnitude, its minimum over slabs of {slab} mm, and the weight (1: magnitude as it"
        " is, 0: black). Good: veins dark and continuous in the projection, tissue even. Dark rims or bands above the sinuses"
        " and the ears, and patterns of rings in the weight, come from the steep field there and are no finding; blood and"
        " calcium can look alike here and are told apart by the susceptibility above (blood bright, calcium dark).",
        ("swi", "minip", "phase_mask", "mask"), _weighted,
    ),
    Picture(
        "map", "R2starmap", "r2star", "R2*",
        "Good: iron-rich nuclei and veins bright, cerebrospinal fluid dark, even noise. High values above the sinuses and"
        " the ears come from the field there, not from tissue.",
        ("r2star", "mask"), _r2star,
    ),
    Picture(
        "total", "fieldmap", "fields", "Total field",
        "Field of all sources inside and outside the brain (±{hz} Hz are ±{ppm} ppm at {b0} T). Good: smooth, strongest"
        " above the sinuses and the ears. Patches with sharp edges are unwrapping errors.",
        ("total_field", "mask"), partial(_field, name="total_field", colours="RdBu_r", signed=True),
    ),
    Picture(
        "local", "fieldmap", "fields", "Local field",
        "Field of the sources inside the brain, after background removal (±{hz} Hz are ±{ppm} ppm at {b0} T). Good: fine"
        " detail and dipole patterns around veins and nuclei. Slow changes across the brain or a bright rim are background"
        " that was left.",
        ("local_field", "mask"), partial(_field, name="local_field", colours="gray", signed=True),
    ),
    Picture(
        "error", "fieldmap", "fields", "Field error",
        "Standard deviation of the field that the noise and the misfit let expect (0 to {hz} Hz, {ppm} ppm at {b0} T). Good:"
        " low and even, higher only where the signal is lost.",
        ("field_error", "mask"), partial(_field, name="field_error", colours="magma", signed=False),
    ),
    Picture(
        "unwrapping", "MEGRE", "phase", "Phase before and after unwrapping",
        "First and last echo. Good: the black-to-white jumps of the wrapped phase are gone after unwrapping, and no patch"
        " with sharp edges is left. Fringe lines that end inside the brain cannot be unwrapped; they come from the coil"
        " combination.",
        ("wrapped", "unwrapped", "mask"), _phase,
    ),
    Picture(
        "misfit", "MEGRE", "phase", "Misfit over the echoes",
        "Deviation of the unwrapped phase from a straight line over the echoes. Good: dark throughout, brighter only near"
        " air and in large vessels. Bright patches are unwrapping errors, motion or a bipolar readout.",
        ("residual", "mask"), _residual,
    ),
    Picture(
        "quality", "MEGRE", "phase", "Phase quality",
        "Reliability of the phase for unwrapping, 0 to 1. Good: yellow throughout the brain, darker only at its edge, in"
        " large vessels and above the sinuses.",
        ("quality", "mask"), _quality,
    ),
    Picture(
        "coilmatching", "T2starw", "phase", "Matching of the receive coils",
        "How well the phases of the coils agree in the first echo after their offsets were removed. Good: near 100 %"
        " throughout, lower only where noise rules. Dark lines or spots inside the brain are places where the coils cancel each"
        " other: phase singularities start there.",
        ("matching", "mask"), _matching,
    ),
    Picture(
        "outline", "mask", "masks", "Masks on the magnitude",
        "First echo. Good: the brain mask follows the surface of the brain, takes in cerebellum and brainstem and leaves out"
        " skull, eyes and scalp; the region with susceptibility is only a few millimetres smaller, with holes only where"
        " signal is lost.",
        ("magnitude", "mask"), _outline,
    ),
    Picture(
        "atlas", "dseg", "regions", "Atlas regions on susceptibility",
        "Good: the outlines enclose the bright nuclei on both sides. Outlines shifted by a voxel or more mean that the"
        " registration failed and that the values of the regions must not be used.",
        ("chi", "mask", "labels"), _atlas,
    ),
    Picture(
        "regions", "stats", "regions", "Susceptibility of the regions",
        "Mean (dot) and 5th to 95th percentile (line) of every region, relative to the whole brain. Green: a range that is"
        " plausible for adults, gathered from published means ({sources}); it is wide on purpose and is no normal range."
        " Good: most dots lie in or near their range, and left and right agree.",
        (), _regions,
    ),
)  # fmt: skip

#: Pictures of what several orientations gave together.
ORIENTATION_PICTURES = (
    Picture(
        f"{COSMOS}narrow", "Chimap", COSMOS, "Susceptibility from all positions, −0.1 to 0.1 ppm",
        "Relative to {reference}. Good: nuclei and veins bright, white matter darker than cortex, finer detail than in the maps"
        " of the single positions, and no streaks in any direction. Blurred or doubled edges come from a registration that is"
        " off or from motion, shading that ignores the anatomy from background that was left in one of the positions, streaks"
        " and strong noise from positions that are too alike.",
        ("chi", "mask"), partial(_chi, limit=0.1),
    ),
    Picture(
        f"{COSMOS}wide", "Chimap", COSMOS, "Susceptibility from all positions, −0.3 to 0.3 ppm",
        "The same map in a wider window. Good: even grey, and only veins, microbleeds (bright) and calcifications (dark)"
        " reach the ends of the scale. Nothing is regularised, so that the edge of the brain may be noisier than elsewhere.",
        ("chi", "mask"), partial(_chi, limit=0.3),
    ),
)  # fmt: skip
