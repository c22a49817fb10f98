"""Pictures of one acquisition: arrays in, PNG bytes out.

All pictures share one look (dark, so that they read on a light and on a dark page), one orientation (radiological, taken from
the affine and written on the picture) and state their window with a colour bar. The bytes depend on the arrays alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import nibabel as nb
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

#: The one look.
BACK, BLACK, TEXT, MUTED = "#10141a", "#000000", "#dfe5ec", "#8f9baa"
FIRST, SECOND = "#ffb454", "#59c2ff"
#: One colour per structure of an atlas, repeated when there are more.
PALETTE = (
    "#4cc9ff", "#ffa62b", "#8ddc3c", "#ff5d6c", "#c792ff", "#2ee6c0", "#ffe45e", "#ff7bd5", "#5b8cff", "#d98c4a",
    "#b8f28a", "#ff9d8a", "#a7b8ff", "#e0e0e0",
)  # fmt: skip

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": TEXT,
    "figure.facecolor": BACK,
    "axes.facecolor": BACK,
}

#: Pixels: width of a picture, margins around the tiles, gap between them. One point is _DPI/72 pixels.
_WIDTH, _LEFT, _RIGHT, _EDGE, _GAP, _DPI = 1320, 44, 92, 14, 6, 110

#: Axis of RAS space that each plane cuts.
_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
#: What is at the left and the right edge of a picture of each plane.
_SIDES = {"sagittal": ("A", "P"), "coronal": ("R", "L"), "axial": ("R", "L")}


@dataclass(frozen=True, eq=False)
class View:
    """How volumes of one acquisition are shown: reoriented to RAS (no resampling), cropped, cut at the same positions.

    Made by :func:`view_of`; ``focus`` is the part of the box, in voxels along the RAS axes, that the cuts are spread over.
    """

    orientation: np.ndarray
    box: tuple[slice, ...]
    voxel_size: tuple[float, float, float]
    affine: np.ndarray
    focus: tuple[tuple[float, float], ...]

    def take(self, volume: np.ndarray) -> np.ndarray:
        """A volume in RAS order, cropped."""
        return nb.orientations.apply_orientation(volume, self.orientation)[self.box]

    def size(self, plane: str) -> tuple[float, float]:
        """Width and height of a cut, mm."""
        extent = [(s.stop - s.start) * h for s, h in zip(self.box, self.voxel_size, strict=True)]
        across = [extent[axis] for axis in range(3) if axis != _AXIS[plane]]
        return across[0], across[1]

    def positions(self, plane: str, number: int) -> list[int]:
        """Voxels at which a plane is cut, evenly spaced."""
        low, high = self.focus[_AXIS[plane]]
        last = self.box[_AXIS[plane]].stop - self.box[_AXIS[plane]].start - 1
        spots = low + (np.arange(number) + 0.5) / number * (high - low)
        return [int(v) for v in np.clip(np.rint(spots - 0.5), 0, last)]

    def millimetres(self, plane: str, position: int) -> float:
        """Scanner coordinate of a cut (at the centre of the box), mm."""
        voxel = [(s.start + s.stop - 1) / 2 for s in self.box]
        voxel[_AXIS[plane]] = self.box[_AXIS[plane]].start + position
        return float((self.affine @ [*voxel, 1])[_AXIS[plane]])


@dataclass(frozen=True, eq=False)
class Row:
    """One row of cuts through a volume: what is shown, in which window, with which outlines.

    ``outlines`` are segmentations (or masks) with the colour of every label that is outlined.
    """

    image: np.ndarray
    plane: str
    window: tuple[float, float]
    unit: str
    label: str = ""
    colours: str = "gray"
    mask: np.ndarray | None = None
    outlines: Sequence[tuple[np.ndarray, Mapping[int, str]]] = ()


def view_of(mask: np.ndarray, affine: np.ndarray, *, focus: np.ndarray | None = None, margin: float = 5.0) -> View:
    """The view of an acquisition.

    Parameters
    ----------
    mask : ndarray of bool, (X, Y, Z)
        What must be seen; the pictures are cropped to it.
    affine : ndarray, (4, 4)
        Voxel indices to scanner mm (RAS+).
    focus : ndarray of bool, (X, Y, Z), optional
        What the cuts are spread over; the mask itself by default.
    margin : float
        Space left around the mask, mm.

    Returns
    -------
    View
        For oblique images the nearest anatomical axes are used.
    """
    orientation = nb.orientations.io_orientation(affine)
    turned = nb.orientations.apply_orientation(mask, orientation)
    new_affine = affine @ nb.orientations.inv_ornt_aff(orientation, mask.shape)
    voxel_size = tuple(float(v) for v in np.linalg.norm(new_affine[:3, :3], axis=0))
    spans = _spans(turned) or tuple((0, n) for n in turned.shape)
    box = tuple(
        slice(max(0, low - math.ceil(margin / h)), min(n, high + math.ceil(margin / h)))
        for (low, high), n, h in zip(spans, turned.shape, voxel_size, strict=True)
    )
    wanted = None if focus is None else _spans(nb.orientations.apply_orientation(focus, orientation))
    # The outermost cuts through a whole brain show little: stay away from its ends.
    inset = 0.0 if wanted else 0.08
    focused = tuple(
        (low - s.start + inset * (high - low), high - s.start - inset * (high - low))
        for (low, high), s in zip(wanted or spans, box, strict=True)
    )
    return View(orientation, box, voxel_size, new_affine, focused)


def three_planes(view: View, image: np.ndarray, *, window: tuple[float, float], unit: str, **options) -> list[Row]:
    """Rows for one volume in three planes; ``options`` go to :class:`Row`."""
    return [Row(image, plane, window, unit, label=plane, **options) for plane in ("axial", "coronal", "sagittal")]


def montage(view: View, rows: Sequence[Row], *, tiles: float = 5.5, legend: Mapping[str, str] | None = None) -> bytes:
    """A picture of rows of cuts, all at one scale.

    Parameters
    ----------
    view : View
        Orientation, crop and positions.
    rows : sequence of Row
        From top to bottom; neighbours with the same window, unit and colours share a colour bar.
    tiles : float
        About how many cuts of the widest plane fit in a row.
    legend : mapping of str to str, optional
        Colour by name, written below the rows.

    Returns
    -------
    bytes
        PNG.
    """
    sizes = [view.size(row.plane) for row in rows]
    inner = _WIDTH - _LEFT - _RIGHT
    numbers = [max(2, round(tiles * max(w for w, _ in sizes) / width)) for width, _ in sizes]
    scale = min((inner - (n - 1) * _GAP) / (n * width) for n, (width, _) in zip(numbers, sizes, strict=True))
    heights = [height * scale for _, height in sizes]
    columns = _legend_columns(legend or {})
    bottom = _EDGE + (21 * math.ceil(len(legend) / columns) + 10 if legend else 0)
    total = _EDGE + sum(heights) + _GAP * (len(rows) - 1) + bottom
    with _figure(_WIDTH, total) as (figure, png):
        # One set of axes in pixels holds all cuts: to set up axes for each takes longer than everything else together.
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, _WIDTH), ylim=(0, figure.get_figheight() * _DPI), autoscale_on=False)
        top = total - _EDGE
        edges = []
        for row, number, (width, _), height in zip(rows, numbers, sizes, heights, strict=True):
            step = width * scale + (inner - number * width * scale) / max(number - 1, 1)
            _row(axes, view, row, number, (top - height, width * scale, height, step))
            edges.append((top - height, top))
            top -= height + _GAP
        _colour_bars(figure, rows, edges)
        if legend:
            _legend(figure, legend, columns, bottom)
    return png.getvalue()


def regions_plot(regions: Sequence[Mapping[str, object]], *, unit: str = "ppm", note: str = "") -> bytes:
    """Values of regions as dots with their spread, against plausible ranges.

    Parameters
    ----------
    regions : sequence of mapping
        One per region: ``structure``, ``hemisphere`` (``"L"``, ``"R"`` or empty), ``mean``, ``p05``, ``p95`` and, where one is
        known, ``range`` (low, high). Regions of one structure share a line.
    unit : str
        Unit of the values.
    note : str
        What the values are relative to; goes below the axis.

    Returns
    -------
    bytes
        PNG.
    """
    names = list(dict.fromkeys(str(region["structure"]) for region in regions))
    lane, left, bottom, top = 32, 330, 62, 44
    total = lane * len(names) + bottom + top
    with _figure(_WIDTH, total) as (figure, png):
        axes = figure.add_axes(_box(left, bottom, _WIDTH - left - 40, lane * len(names), total))
        for region in regions:
            _lane(axes, region, names.index(str(region["structure"])))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names)
        axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
        axes.grid(axis="x", color="#ffffff", alpha=0.08, linewidth=0.8)
        axes.tick_params(length=0, pad=8)
        axes.set_xlabel(f"susceptibility, {unit}" + (f" ({note})" if note else ""))
        for spine in axes.spines.values():
            spine.set_visible(False)
        handles = [
            Line2D([], [], marker="o", linestyle="", color=SECOND, label="left"),
            Line2D([], [], marker="o", linestyle="", color=FIRST, label="right"),
            Line2D([], [], color=TEXT, alpha=0.55, linewidth=1.4, label="5th to 95th percentile"),
            Line2D([], [], color="#7fd962", alpha=0.35, linewidth=9, label="plausible in adults"),
        ]
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(left / _WIDTH - 0.008, 1.0), ncol=4, frameon=False, fontsize=8.5
        )
    return png.getvalue()


def nice(value: float) -> float:
    """The next round number at or above ``value`` (1, 1.5, 2, 3, 5, 7.5 times a power of ten).

    Examples
    --------
    >>> [nice(v) for v in (0.0, 0.011, 4.2, 61)]
    [1.0, 0.015, 5.0, 75.0]
    """
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    factor = next(f for f in (1, 1.5, 2, 3, 5, 7.5, 10) if f * power >= value * (1 - 1e-9))
    return float(f"{factor * power:.6g}")


def symmetric_window(image: np.ndarray, mask: np.ndarray, percentile: float = 99.0) -> tuple[float, float]:
    """A round window around 0 that holds ``percentile`` % of the voxels of the mask."""
    values = np.abs(image[mask])
    limit = nice(float(np.percentile(values, percentile))) if values.size else 1.0
    return -limit, limit


def positive_window(image: np.ndarray, mask: np.ndarray, percentile: float = 99.0) -> tuple[float, float]:
    """A round window from 0 that holds ``percentile`` % of the voxels of the mask."""
    return 0.0, symmetric_window(image, mask, percentile)[1]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """An empty figure of a size in pixels; the PNG is in the buffer when the block ends.

    No pyplot, and the user's own matplotlib settings do not count.
    """
    png = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width / _DPI, round(height) / _DPI), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        yield figure, png
        canvas.print_png(png, metadata={"Software": None})


def _box(left: float, bottom: float, width: float, height: float, total: float) -> tuple[float, float, float, float]:
    """Pixels to the fractions that matplotlib wants."""
    return left / _WIDTH, bottom / total, width / _WIDTH, height / total


def _row(axes: Axes, view: View, row: Row, number: int, place: tuple[float, float, float, float]) -> None:
    bottom, width, height, step = place
    image = view.take(row.image)
    if row.mask is not None:
        image = np.ma.masked_where(~view.take(row.mask), image)
    outlines = [(view.take(labels), of_label) for labels, of_label in row.outlines]
    colours = matplotlib.colormaps[row.colours].with_extremes(bad=BLACK)
    axes.text(
        0.5 * _LEFT, bottom + height / 2, row.label, rotation=90, ha="center", va="center", color=MUTED, fontsize=9
    )  # fmt: skip
    for column, position in enumerate(view.positions(row.plane, number)):
        left = _LEFT + column * step
        extent = (left, left + width, bottom, bottom + height)
        axes.imshow(
            _cut(image, row.plane, position),
            cmap=colours,
            vmin=row.window[0],
            vmax=row.window[1],
            origin="lower",
            aspect="auto",
            extent=extent,
        )
        for labels, of_label in outlines:
            _outline(axes, _cut(labels, row.plane, position), of_label, extent)
        _marks(axes, view, row.plane, position, extent, first=column == 0)


def _outline(axes: Axes, cut: np.ndarray, of_label: Mapping[int, str], extent: tuple[float, float, float, float]) -> None:
    for label in np.unique(cut):
        if int(label) in of_label and not (cut == label).all():
            style = {"colors": [of_label[int(label)]], "linewidths": 1.0, "origin": "lower", "extent": extent}
            axes.contour((cut == label).astype(np.float32), levels=[0.5], **style)


def _cut(volume: np.ndarray, plane: str, position: int) -> np.ndarray:
    """A cut as (up, right) with the patient's right, or front, at the left."""
    return volume.take(position, axis=_AXIS[plane])[::-1].T


def _marks(
    axes: Axes, view: View, plane: str, position: int, extent: tuple[float, float, float, float], *, first: bool
) -> None:
    """The cut's coordinate, and on the first cut of a row the sides."""
    low, high, bottom, top = extent
    left, right, lower, upper = (
        start + share * (end - start)
        for start, end, share in ((low, high, 0.03), (low, high, 0.97), (bottom, top, 0.02), (bottom, top, 0.97))
    )
    # A dark rim around the letters keeps them readable on bright anatomy.
    style = {"fontsize": 7.5, "color": TEXT, "path_effects": [withStroke(linewidth=2, foreground=BLACK)]}
    where = f"{'xyz'[_AXIS[plane]]} {_number(round(view.millimetres(plane, position)))}"
    axes.text(left, lower, where, va="bottom", ha="left", **style)
    if first:
        for place, align, side in zip((left, right), ("left", "right"), _SIDES[plane], strict=True):
            axes.text(place, upper, side, va="top", ha=align, fontweight="bold", **style)


def _colour_bars(figure: Figure, rows: Sequence[Row], edges: Sequence[tuple[float, float]]) -> None:
    total = figure.get_figheight() * _DPI
    start = 0
    while start < len(rows):
        key = (rows[start].window, rows[start].unit, rows[start].colours)
        end = start
        while end + 1 < len(rows) and (rows[end + 1].window, rows[end + 1].unit, rows[end + 1].colours) == key:
            end += 1
        low, high = edges[end][0], edges[start][1]
        height = min(0.8 * (high - low), 240)
        axes = figure.add_axes(_box(_WIDTH - _RIGHT + 16, (low + high - height) / 2 - 8, 12, height, total))
        mappable = ScalarMappable(Normalize(*rows[start].window), rows[start].colours)
        bar = figure.colorbar(mappable, cax=axes)
        bottom, top = rows[start].window
        bar.set_ticks([bottom, (bottom + top) / 2, top])
        bar.set_ticklabels([_number(v) for v in (bottom, (bottom + top) / 2, top)])
        bar.outline.set_visible(False)
        axes.tick_params(length=0, pad=5, labelsize=8.5, labelcolor=TEXT)
        axes.set_title(rows[start].unit, fontsize=8.5, color=MUTED, pad=7, loc="left")
        start = end + 1


def _number(value: float) -> str:
    if math.isclose(abs(value), math.pi):
        return "\N{MINUS SIGN}" * (value < 0) + "\N{GREEK SMALL LETTER PI}"
    return f"{value:.5g}".replace("-", "\N{MINUS SIGN}")


def _legend_columns(legend: Mapping[str, str]) -> int:
    """How many entries fit side by side (a letter takes about 8 pixels)."""
    widest = 60 + 8 * max((len(name) for name in legend), default=1)
    return max(1, min(len(legend), 7, int((_WIDTH - 2 * _EDGE) / widest)))


def _legend(figure: Figure, legend: Mapping[str, str], columns: int, height: float) -> None:
    total = figure.get_figheight() * _DPI
    handles = [Line2D([], [], color=colour, linewidth=2.4, label=name) for name, colour in legend.items()]
    figure.legend(
        handles=handles, loc="center", bbox_to_anchor=(0.5, (height - 4) / 2 / total), ncol=columns, frameon=False,
        fontsize=8.5, handlelength=1.2, columnspacing=1.6,
    )  # fmt: skip


def _lane(axes: Axes, region: Mapping[str, object], row: int) -> None:
    side = str(region.get("hemisphere", ""))
    height = row + {"L": -0.15, "R": 0.15}.get(side, 0.0)
    colour = {"L": SECOND, "R": FIRST}.get(side, TEXT)
    bounds = region.get("range")
    if bounds:
        axes.barh(row, bounds[1] - bounds[0], left=bounds[0], height=0.74, color="#7fd962", alpha=0.14, zorder=0, linewidth=0)
    axes.plot([region["p05"], region["p95"]], [height, height], color=colour, alpha=0.55, linewidth=1.4, zorder=2)
    axes.plot([region["mean"]], [height], marker="o", markersize=6, color=colour, zorder=3)


def _spans(mask: np.ndarray) -> tuple[tuple[int, int], ...] | None:
    """First and last-but-one index of a mask along each axis, or None when it is empty."""
    if not mask.any():
        return None
    found = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return tuple((int(f[0]), int(f[-1]) + 1) for f in found)
