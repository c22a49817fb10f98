"""What would be done, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qsmflow import registry
from qsmflow.bids.outputs import product_path
from qsmflow.interfaces.outputs import SaveDerivative
from qsmflow.workflows.plan import Plan

if TYPE_CHECKING:
    from nipype.pipeline.engine import Workflow

_THROUGH = {
    "t1w": "through the T1-weighted image", "magnitude": "from the magnitude straight to the template",
    "native": "given in the space of the images",
}  # fmt: skip


def describe(plan: Plan, reason: str, root: Path, files: Sequence[str]) -> str:
    """What would be done with one acquisition.

    Parameters
    ----------
    plan : Plan
        The acquisition and what will be done with it.
    reason : str
        Why it would be processed; empty when it is finished.
    root : Path
        The dataset.
    files : sequence of str
        What would be written, relative to the output folder.

    Returns
    -------
    str
        Several lines.
    """
    acquisition, grid = plan.acquisition, plan.grid
    lines = [f"{acquisition.name}: " + (f"would run ({reason})" if reason else "finished, would be skipped")]
    if not reason:
        return lines[0]
    read = [path for path in (*acquisition.sources, acquisition.t1w, *plan.given.values()) if path]
    parts = [part for part in ("magnitude", "phase", "real", "imag") if getattr(acquisition, part)]
    times = ", ".join(f"{1000 * t:.4g}" for t in acquisition.echo_times)
    lines += [
        f"  images: {' and '.join(parts)} of {len(acquisition.echo_times)} echoes ({times} ms)"
        + (f", {acquisition.coils} coils" if acquisition.coils > 1 else "")
        + (f", {acquisition.b0:g} T" if acquisition.b0 else "")
        + f", {' x '.join(map(str, grid.shape))} voxels of {' x '.join(f'{h:.4g}' for h in grid.voxel_size)} mm",
        *(f"  reads: {_relative(path, root)}" for path in read),
        *_steps(plan),
    ]
    if plan.atlas:
        lines.append(f"  regions: {plan.atlas.name}, {_THROUGH[plan.regions]}")
    lines += [f"  writes: {file}" for file in files]
    lines += [f"  notice: {notice}" for notice in (*acquisition.notices, *plan.notices)]
    return "\n".join(lines)


def _steps(plan: Plan) -> list[str]:
    lines = []
    for stage, row in registry.STAGES.items():
        methods = [(name, plan.recipe.values(stage, name)) for found, name in plan.recipe.methods if found == stage]
        if not plan.runs(stage):
            lines.append(f"  {row.title}: not done ({plan.skipped[stage]})")
        elif stage == "mask" and (plan.recipe.mask_file or "brain_mask" in plan.given):
            lines.append(f"  {row.title}: {plan.recipe.mask_file or plan.given['brain_mask']}")
        elif stage == "mask":
            told = {name: name + _values(values) for name, values in methods}
            lines.append(f"  {row.title}: {plan.recipe.mask_expression.text(told.get)}")
        elif methods:
            passes = ", in two passes" if stage == "inversion" and plan.recipe.two_pass else ""
            lines.append(f"  {row.title}: " + " & ".join(name + _values(values) for name, values in methods) + passes)
    return lines


def _values(values: Mapping[str, object]) -> str:
    told = ", ".join(f"{key.rstrip('_')} {_text(value)}" for key, value in values.items())
    return f" ({told})" if told else ""


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def written(workflow: Workflow, output_dir: Path) -> dict[str, list[str]]:
    """What a graph writes, by acquisition workflow: the files of its saving nodes, relative to the output folder."""
    files: dict[str, list[str]] = {}
    for name in workflow.list_node_names():
        interface = workflow.get_node(name).interface
        if isinstance(interface, SaveDerivative):
            told = interface.inputs
            path = product_path(output_dir, told.entities, told.product, **told.extra)
            files.setdefault(name.split(".")[0], []).append(_relative(str(path), output_dir))
    return {name: sorted(paths) for name, paths in files.items()}


def _relative(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path
