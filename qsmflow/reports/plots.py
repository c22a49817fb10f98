"""Plots of a study: tables in, PNG bytes out, in the look of the other pictures (:mod:`qsmflow.reports.figures`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from qsmflow.group.comparison import CONTROLS
from qsmflow.reports.figures import _WIDTH, FIRST, MUTED, PALETTE, SECOND, TEXT, _box, _figure
from qsmflow.reports.quality import SLACK, metric, metric_title, plausible

_PLAUSIBLE = "#7fd962"
_LANE = 32


def distributions(
    table: pd.DataFrame, *, value: str, label: str, groups: Sequence[str] = (), highlight: Sequence[str] = ()
) -> bytes:
    """Every region a lane, every scan a dot.

    Parameters
    ----------
    table : DataFrame
        ``scan``, ``region``, ``structure``, ``value`` and, where ``groups`` are given, ``group``.
    value : str
        Name of the measure; plausible ranges are shown for susceptibilities.
    label : str
        Of the axis.
    groups : sequence of str
        Each gets a colour.
    highlight : sequence of str
        Scans with a ring.

    Returns
    -------
    bytes
        PNG.
    """
    regions = list(dict.fromkeys(table["region"]))
    words = table.drop_duplicates("region").set_index("region")["structure"].to_dict()
    left, bottom, top = 330, 62, 44
    total = _LANE * len(regions) + bottom + top
    shown = list(groups) or [""]
    with _figure(_WIDTH, total) as (figure, png):
        axes = figure.add_axes(_box(left, bottom, _WIDTH - left - 40, _LANE * len(regions), total))
        for lane, region in enumerate(regions):
            if value.startswith("chi") and (known := plausible(region)):
                span = (known.low - SLACK, known.high + SLACK)
                axes.fill_betweenx([lane - 0.36, lane + 0.36], *span, color=_PLAUSIBLE, alpha=0.1, linewidth=0)
            mine = table[table["region"] == region]
            for number, group in enumerate(shown):
                part = mine if not groups else mine[mine["group"] == group]
                height = lane + 0.34 * ((number + 0.5) / len(shown) * 2 - 1) * (len(shown) > 1)
                _dots(axes, part, height, 0.62 / len(shown), _colour(number), highlight)
        _lanes(axes, [words[region] for region in regions], label)
        axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
        handles = [_dot(_colour(n), group) for n, group in enumerate(groups)]
        handles.append(Line2D([], [], marker="|", markersize=11, markeredgewidth=2, linestyle="", color=TEXT, label="median"))
        if value.startswith("chi"):
            handles.append(Line2D([], [], color=_PLAUSIBLE, alpha=0.35, linewidth=9, label="plausible in adults"))
        if len(highlight):
            handles.append(_ring("outlier"))
        _legend(figure, handles, left)
    return png.getvalue()


def quality(table: pd.DataFrame, metrics: Sequence[str], highlight: Mapping[str, Sequence[str]]) -> bytes:
    """Small plots of quality metrics, one dot per acquisition; ``highlight`` names the outliers of a metric."""

    def draw(axes: Axes, name: str) -> None:
        values = pd.to_numeric(table[name], errors="coerce")
        heights = _spread(values.to_numpy(float), 0.7)
        axes.plot(values, heights, "o", color=SECOND, markersize=3.6, alpha=0.75, markeredgewidth=0)
        far = table["acquisition"].isin(highlight.get(name, ())).to_numpy()
        axes.plot(values[far], heights[far], "o", color="none", markeredgecolor="#ff5d6c", markersize=8, markeredgewidth=1.6)
        axes.axvline(values.median(), color=TEXT, linewidth=1.2, alpha=0.8)
        row = metric(name)
        axes.set_yticks([])
        axes.set_ylim(-0.6, 0.6)
        if row:
            for limit in (row.low, row.high):
                # A limit far outside of what was measured would squeeze the dots together.
                span = values.max() - values.min() or 1.0
                if limit is not None and values.min() - span < limit < values.max() + span:
                    axes.axvline(limit, color=FIRST, linewidth=1, linestyle=(0, (4, 3)))
        _small_title(axes, metric_title(name), row.unit if row else "")

    return _grid([lambda axes, name=name: draw(axes, name) for name in metrics], height=104, columns=4)


def age_plots(ageing: pd.DataFrame, curves: pd.DataFrame, points: pd.DataFrame, groups: Mapping[str, str], label: str) -> bytes:
    """Every region against age: values without the covariates' part, the chosen curve with its band, iron where it is known."""
    fitted = ageing[ageing["status"] == "fitted"]
    levels = sorted(set(groups.values()), key=lambda level: (level.lower() not in CONTROLS, level))

    def draw(axes: Axes, row) -> None:
        dots, line = points[points["region"] == row.region], curves[curves["region"] == row.region]
        colours = [_colour(levels.index(groups[scan])) if groups else SECOND for scan in dots["scan"]]
        axes.fill_between(line["age"], line["low"], line["high"], color=TEXT, alpha=0.16, linewidth=0)
        axes.scatter(dots["age"], dots["adjusted"], c=colours, s=13, alpha=0.8, linewidths=0)
        axes.plot(line["age"], line["fit"], color=TEXT, linewidth=1.8)
        if "iron" in line and line["iron"].notna().all():
            axes.plot(line["age"], _matched(line), color=_PLAUSIBLE, linewidth=1.4, linestyle=(0, (5, 3)))
        sign = "*" if row.slope_q < 0.05 else ""
        _small_title(axes, row.structure, f"{row.curve}{sign}", wrap=26)

    panels = [lambda axes, row=row: draw(axes, row) for row in fitted.itertuples()]
    handles = [_dot(_colour(n), level) for n, level in enumerate(levels)]
    handles.append(Line2D([], [], color=TEXT, linewidth=1.8, label="curve and 95 % band"))
    if "iron" in curves:
        dashed = (0, (5, 3))
        words = "iron, Hallgren & Sourander (scaled)"
        handles.append(Line2D([], [], color=_PLAUSIBLE, linewidth=1.4, linestyle=dashed, label=words))
    return _grid(panels, height=230, columns=4, handles=handles, bottom=f"age, years · {label}")


def differences_plot(table: pd.DataFrame, label: str, fdr: float) -> bytes:
    """Adjusted differences from the reference group with their intervals, one lane per region."""
    regions, levels = list(dict.fromkeys(table["region"])), list(dict.fromkeys(table["group"]))
    left, bottom, top = 330, 62, 44
    total = _LANE * len(regions) + bottom + top
    with _figure(_WIDTH, total) as (figure, png):
        axes = figure.add_axes(_box(left, bottom, _WIDTH - left - 220, _LANE * len(regions), total))
        words = table.drop_duplicates("region").set_index("region")["structure"]
        for row in table.itertuples():
            number = levels.index(row.group)
            height = regions.index(row.region) + (0.5 * ((number + 0.5) / len(levels) - 0.5) if len(levels) > 1 else 0)
            colour, sure = _colour(number + 1), row.q < fdr
            axes.plot(
                [row.low, row.high], [height] * 2, color=colour, linewidth=2.4 if sure else 1.4, alpha=0.95 if sure else 0.55
            )
            axes.plot(row.difference, height, "o", color=colour if sure else "none", markeredgecolor=colour, markersize=6.5)
            if len(levels) == 1:
                text = f"g {row.hedges_g:+.2f}   q {_small(row.q)}".replace("-", "\N{MINUS SIGN}")
                place = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8.5}
                axes.annotate(text, (1.02, height), color=TEXT if sure else MUTED, **place)
        _lanes(axes, list(words[regions]), f"{label}, difference from {table['reference'].iloc[0]}")
        axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
        handles = [_dot(_colour(n + 1), level) for n, level in enumerate(levels)]
        handles.append(Line2D([], [], color=TEXT, linewidth=1.8, label="95 % interval"))
        handles.append(Line2D([], [], marker="o", linestyle="", color=TEXT, label=f"filled: q < {fdr:g}"))
        _legend(figure, handles, left)
    return png.getvalue()


def roc_plots(samples: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> bytes:
    """Receiver operating characteristics: title, false and true positive rate of each."""

    def draw(axes: Axes, title: str, false: np.ndarray, true: np.ndarray) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        axes.plot(false, true, color=FIRST, linewidth=1.8, drawstyle="steps-post")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        name, area = title.split("\n")
        axes.text(0.97, 0.06, area, ha="right", color=TEXT, fontsize=8.5)
        _small_title(axes, name, wrap=36)

    panels = [lambda axes, part=part: draw(axes, *part) for part in samples]
    return _grid(panels, height=230, columns=4, bottom="1 − specificity · sensitivity")


def agreement_plots(reliability: pd.DataFrame, pairs: pd.DataFrame, label: str) -> bytes:
    """Bland-Altman plots, one per region."""

    def draw(axes: Axes, row) -> None:
        mine = pairs[pairs["region"] == row.region]
        mean, change = (mine["first"] + mine["second"]) / 2, mine["second"] - mine["first"]
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for height, style in ((row.bias, "-"), (row.loa_low, "--"), (row.loa_high, "--")):
            axes.axhline(height, color=TEXT, linewidth=1.2, linestyle=style)
        axes.plot(mean, change, "o", color=SECOND, markersize=4, alpha=0.8, markeredgewidth=0)
        limit = 1.25 * max(abs(row.loa_low), abs(row.loa_high), float(change.abs().max()), 1e-9)
        axes.set_ylim(-limit, limit)
        _small_title(axes, row.structure, f"ICC {row.icc_consistency:.2f}", wrap=26)

    known = reliability[reliability["status"] == "compared"]
    panels = [lambda axes, row=row: draw(axes, row) for row in known.itertuples()]
    return _grid(panels, height=220, columns=4, bottom=f"mean of both sessions · second minus first, {label}")


def calibration_plot(calibration: pd.DataFrame, vials: pd.DataFrame) -> bytes:
    """Susceptibility against concentration with the fitted and the expected line, one panel per scan."""

    def draw(axes: Axes, row) -> None:
        mine = vials[vials["scan"] == row.scan]
        at = np.array([0.0, mine["concentration"].max()])
        axes.plot(at, row.intercept + row.expected * at, color=_PLAUSIBLE, linewidth=1.4, linestyle=(0, (5, 3)))
        axes.plot(at, row.intercept + row.slope * at, color=TEXT, linewidth=1.8)
        axes.plot(mine["concentration"], mine["chi"], "o", color=FIRST, markersize=5.5)
        _small_title(axes, row.scan, f"{row.slope:.3f} ppm/mM", wrap=30)

    panels = [lambda axes, row=row: draw(axes, row) for row in calibration.itertuples()]
    handles = [Line2D([], [], color=TEXT, linewidth=1.8, label="fit")]
    handles.append(Line2D([], [], color=_PLAUSIBLE, linewidth=1.4, linestyle=(0, (5, 3)), label="slope of Curie's law"))
    return _grid(
        panels, height=260, columns=min(3, len(panels)), handles=handles, bottom="concentration, mM · susceptibility, ppm"
    )


def _grid(
    panels: Sequence[Callable[[Axes], None]], *, height: float, columns: int, handles: Sequence[Line2D] = (), bottom: str = ""
) -> bytes:
    """Panels in rows, each drawn by its function."""
    rows = math.ceil(len(panels) / columns)
    left, gap, head, foot = 64, 62, 34, 34
    top, low = (44 if handles else 12), (34 if bottom else 8)
    width = (_WIDTH - left - 24 - gap * (columns - 1)) / columns
    total = top + low + rows * (height + head + foot)
    with _figure(_WIDTH, total) as (figure, png):
        for number, draw in enumerate(panels):
            row, column = divmod(number, columns)
            y = total - top - (row + 1) * (height + head + foot) + foot
            axes = figure.add_axes(_box(left + column * (width + gap), y, width, height, total))
            axes.tick_params(labelsize=7.5, length=0, pad=5, labelcolor=MUTED)
            axes.grid(color="#ffffff", alpha=0.08, linewidth=0.8)
            for spine in axes.spines.values():
                spine.set_visible(False)
            axes.locator_params(nbins=5)
            draw(axes)
        if bottom:
            figure.text(0.5, 12 / total, bottom, ha="center", va="bottom", color=MUTED, fontsize=8.5)
        if handles:
            _legend(figure, handles, left)
    return png.getvalue()


def _lanes(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="x", color="#ffffff", alpha=0.08, linewidth=0.8)
    axes.tick_params(length=0, pad=8)
    axes.set_xlabel(label)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _dots(axes: Axes, part: pd.DataFrame, lane: float, height: float, colour: str, highlight: Sequence[str]) -> None:
    values = part["value"].to_numpy(float)
    if not np.isfinite(values).any():
        return
    heights = lane + _spread(values, height)
    axes.plot(values, heights, "o", color=colour, markersize=3.4, alpha=0.7, markeredgewidth=0)
    far = part["scan"].isin(highlight).to_numpy()
    axes.plot(values[far], heights[far], "o", color="none", markeredgecolor="#ff5d6c", markersize=8, markeredgewidth=1.6)
    median = np.nanmedian(values)
    axes.plot([median] * 2, [lane - height / 2, lane + height / 2], color=TEXT, linewidth=1.8)


def _spread(values: np.ndarray, height: float) -> np.ndarray:
    """Heights that keep equal values apart: a fixed zigzag over the order of the values, no chance."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return height * ((rank * 0.618034) % 1 - 0.5)


def _matched(line: pd.DataFrame) -> np.ndarray:
    """The iron curve scaled and shifted onto the fitted one."""
    columns = np.column_stack([np.ones(len(line)), line["iron"]])
    return columns @ np.linalg.lstsq(columns, line["fit"].to_numpy(float), rcond=None)[0]


def _colour(number: int) -> str:
    return (SECOND, FIRST, *PALETTE[2:])[number % len(PALETTE)]


def _dot(colour: str, label: str) -> Line2D:
    return Line2D([], [], marker="o", linestyle="", color=colour, label=label)


def _ring(label: str) -> Line2D:
    return Line2D(
        [], [], marker="o", markersize=8, markerfacecolor="none", markeredgecolor="#ff5d6c", linestyle="", label=label
    )


def _legend(figure, handles: Sequence[Line2D], left: float) -> None:
    place = (left / _WIDTH - 0.008, 1.0)
    figure.legend(
        handles=list(handles), loc="upper left", bbox_to_anchor=place, ncol=min(len(handles), 6), frameon=False, fontsize=8.5
    )


def _small_title(axes: Axes, title: str, right: str = "", wrap: int = 40) -> None:
    short = title if len(title) <= wrap else title[: wrap - 1].rstrip() + "…"
    axes.set_title(short, loc="left", fontsize=8.8, color=TEXT, pad=7)
    if right:
        axes.set_title(right, loc="right", fontsize=8, color=MUTED, pad=7)


def _small(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
