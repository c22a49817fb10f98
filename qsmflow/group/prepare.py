"""From tables to what a model is fitted to: one row per participant and session, one column per region, gaps told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qsmflow.errors import DatasetError, UsageError, nearest
from qsmflow.group.collect import Cohort, region_key
from qsmflow.group.harmonise import combat
from qsmflow.group.model import Model


@dataclass(frozen=True, eq=False)
class Data:
    """What a study works on.

    ``people`` has one row per participant and session with ``participant_id``, ``session_id`` and the model's columns;
    ``values`` the same rows and one column per region; ``names`` the regions in words. ``numeric`` and ``factors`` are the
    covariates in use, ``left_out`` tells which row was not used and why, ``scans`` which acquisitions a row is the mean of.
    """

    people: pd.DataFrame
    values: pd.DataFrame
    names: dict[str, str]
    numeric: tuple[str, ...]
    factors: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    notices: tuple[str, ...]
    scans: dict[str, list[str]]

    @property
    def repeated(self) -> bool:
        """Whether somebody was scanned in several sessions."""
        return bool(self.people["participant_id"].duplicated().any())


def prepare(cohort: Cohort, model: Model) -> Data:
    """Select, average and check.

    Parameters
    ----------
    cohort : Cohort
    model : Model

    Returns
    -------
    Data

    Raises
    ------
    UsageError
        If the model names a column, measure or region that does not exist.
    DatasetError
        If the values of a column cannot be used.
    """
    table = cohort.bids_dir / "participants.tsv"
    needed = _columns(cohort, model, str(table))
    scans, left_out = _selected(cohort, model)
    values, names, notices = _values(cohort, model, scans)
    people = scans.set_index("acquisition").loc[values.index]
    people, values, parts, averaged = _one_per_session(people, values)
    notices += averaged
    gaps = people[needed].isna() | (people[needed] == "")
    for row in people.index[gaps.any(axis=1)]:
        left_out.append((row, f"no {', '.join(gaps.columns[gaps.loc[row]])} in {table.name}"))
    keep = ~gaps.any(axis=1)
    people, values = people[keep].copy(), values[keep]
    if people.empty:
        counts = ", ".join(f"{name} is missing in {count}" for name, count in gaps.sum().items() if count)
        raise DatasetError(
            f"{table}: none of the {len(gaps)} scans with region tables has all of {', '.join(needed)} ({counts}); fill in the "
            f"columns, or take one out of the model '{model.name}'"
        )
    numeric, factors, dropped = _types(people, model, needed, str(table))
    if model.harmonise == "combat":
        values, told = _harmonised(people, values, model, numeric, factors)
        notices += told
        factors = tuple(name for name in factors if name != model.site)
    _check_sessions(cohort, people, model)
    return Data(people, values, names, numeric, factors, tuple(left_out), (*notices, *dropped), parts)


def _columns(cohort: Cohort, model: Model, table: str) -> list[str]:
    """The columns of the model's effects; a wanted one that does not exist is an error, one that only selects scans, too."""
    wanted = [*model.covariates, *([model.site] if model.site else [])]
    wanted += [model.group] if model.analysis == "case-control" else []
    wanted += [model.age] if model.analysis == "ageing" else []
    found = []
    for name in dict.fromkeys([*wanted, *model.select]):
        plain = name.removesuffix("?")
        if plain in cohort.columns:
            found.append(plain)
        elif name == plain:
            close = nearest(plain, cohort.columns) if cohort.columns else ""
            raise UsageError(f"the model '{model.name}' needs the column '{plain}', which {table} does not have{close}")
    effects = {name.removesuffix("?") for name in wanted}
    return [name for name in dict.fromkeys(found) if name in effects]


def _selected(cohort: Cohort, model: Model) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """The scans that the model asks for."""
    scans, left_out = cohort.scans.copy(), []

    def drop(keep: pd.Series, why: str) -> pd.DataFrame:
        left_out.extend((name, why) for name in scans.loc[~keep, "acquisition"])
        return scans[keep]

    if model.exclude:
        excluded = {f"sub-{label.removeprefix('sub-')}" for label in model.exclude}
        scans = drop(~scans["participant_id"].isin(excluded), "excluded by the model")
    if model.session:
        scans = drop(scans["session_id"] == f"ses-{model.session.removeprefix('ses-')}", f"not session {model.session}")
    for name, levels in model.select.items():
        scans = drop(scans[name].isin(levels), f"{name} is not {' or '.join(levels)}")
    labels = sorted(scans["acq"].unique())
    if model.acquisition:
        scans = drop(scans["acq"] == model.acquisition, f"not acquisition {model.acquisition}")
    elif len(labels) > 1:
        shown = ", ".join(f"'{label}'" for label in labels)
        raise DatasetError(f"several acquisitions (acq-): {shown}; say in a model file which one to use: 'acquisition: LABEL'")
    if scans.empty:
        raise DatasetError(
            f"{cohort.results_dir}: the model '{model.name}' leaves no scan; look at its select, exclude and session"
        )
    return scans, left_out


def _values(cohort: Cohort, model: Model, scans: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """Scans by regions."""
    if model.measure not in cohort.measures:
        raise UsageError(f"no measure '{model.measure}' in the region tables{nearest(model.measure, cohort.measures)}")
    regions = cohort.regions[cohort.regions["acquisition"].isin(scans["acquisition"])]
    atlases = sorted(regions["atlas"].unique())
    if model.atlas or len(atlases) > 1:
        if model.atlas not in atlases:
            raise UsageError(f"several or other atlases ({', '.join(atlases)}); say 'atlas: NAME' in a model file")
        regions = regions[regions["atlas"] == model.atlas]
    regions = regions.assign(region=regions["name"], value=pd.to_numeric(regions[model.measure], errors="coerce"))
    regions = regions.assign(value=regions["value"].where(np.isfinite(regions["value"])))
    notices = []
    if model.hemispheres == "average":
        regions = regions.assign(region=regions["name"].map({n: region_key(n) for n in regions["name"].unique()}))
        lonely = regions.groupby(["acquisition", "region"])["value"].agg(lambda v: 0 < v.isna().sum() < len(v))
        if lonely.any():
            notices.append(f"{int(lonely.sum())} values of one side only are taken as missing (hemispheres: average)")
    order = list(dict.fromkeys(regions["region"]))
    chosen = order
    if model.regions:
        for name in model.regions:
            if name not in order:
                raise UsageError(f"no region '{name}' in the region tables{nearest(name, order)}")
        chosen = list(model.regions)
    grouped = regions.groupby(["acquisition", "region"])["value"].agg(lambda v: v.mean(skipna=False))
    values = grouped.unstack("region").reindex(columns=chosen).loc[scans["acquisition"]]
    values.columns.name = None
    words = regions.drop_duplicates("region").set_index("region")["structure"].to_dict()
    if model.hemispheres == "separate":
        sides = (
            regions.drop_duplicates("region").set_index("region")["hemisphere"].map({"L": ", left", "R": ", right"}).fillna("")
        )
        words = {name: f"{word}{sides[name]}" for name, word in words.items()}
    empty = [name for name in chosen if values[name].isna().all()]
    if empty:
        notices.append(f"no value in any scan: {', '.join(empty)}")
    return values.drop(columns=empty), {name: words[name] for name in chosen}, notices


def _one_per_session(
    people: pd.DataFrame, values: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, list[str]], list[str]]:
    """Runs (and reconstructions) of a session averaged."""
    row = people["participant_id"] + people["session_id"].map(lambda ses: f"_{ses}" if ses else "")
    sizes = row.value_counts()
    notices = []
    if (sizes > 1).any():
        notices.append(f"several scans of a session were averaged for {int((sizes > 1).sum())} of {len(sizes)} sessions")
    parts = {name: list(group.index) for name, group in people.groupby(row.to_numpy())}
    return people.groupby(row.to_numpy()).first(), values.groupby(row.to_numpy()).mean(), parts, notices


def _types(people: pd.DataFrame, model: Model, needed: Sequence[str], table: str) -> tuple[tuple, tuple, list[str]]:
    """Which covariates are numbers and which are levels; constant ones are refused, or left out where they may be."""
    optional = {name.removesuffix("?") for name in model.covariates if name.endswith("?")}
    always = {model.group, model.site, "sex", "gender", "site", "scanner"}
    numeric, factors, notices = [], [], []
    for name in needed:
        numbers = pd.to_numeric(people[name], errors="coerce")
        is_number = name not in always and (name == model.age or numbers.notna().any())
        if is_number and numbers.isna().any():
            rows = [f"{row} ('{people.at[row, name]}')" for row in people.index[numbers.isna()]][:6]
            raise DatasetError(f"{table}: '{name}' is not a number for {', '.join(rows)}; write a number, or n/a")
        if is_number:
            people[name] = numbers.astype(float)
        if name == model.group and model.analysis == "case-control":
            continue
        if people[name].nunique() < 2:
            value = f"{people[name].iloc[0]:g}" if is_number else people[name].iloc[0]
            if name == model.age and model.analysis == "ageing":
                raise DatasetError(
                    f"{table}: '{name}' is the same ({value}) for everybody; ageing needs people of several ages"
                )
            if name not in optional:
                raise DatasetError(
                    f"{table}: '{name}' is the same ({value}) for all {len(people)} scans that are used, so nothing can be "
                    f"told about it; take it out of the model '{model.name}', or correct the column"
                )
            notices.append(f"covariate '{name}' is left out, because it is {value} for everybody")
            continue
        (numeric if is_number else factors).append(name)
    missing = sorted(optional - set(needed))
    if missing:
        notices.append(f"no column for the covariates that may be left out: {', '.join(missing)}")
    return tuple(numeric), tuple(factors), notices


def _harmonised(
    people: pd.DataFrame, values: pd.DataFrame, model: Model, numeric: Sequence[str], factors: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Values without the differences between sites; what the model asks about is kept."""
    kept = [people[name].to_numpy(float) for name in numeric]
    levels = [name for name in factors if name != model.site]
    levels += [model.group] if model.analysis == "case-control" else []
    for name in levels:
        kept += [(people[name] == level).to_numpy(float) for level in sorted(people[name].unique())[1:]]
    sites = people[model.site].to_numpy()
    few = sorted(site for site in set(sites) if (sites == site).sum() < 3)
    if few:
        raise DatasetError(f"ComBat needs at least 3 scans of every site; '{model.site}' has fewer at {', '.join(few)}")
    adjusted = combat(values.to_numpy(float), sites, np.column_stack(kept) if kept else None)
    return pd.DataFrame(adjusted, values.index, values.columns), [f"ComBat removed differences between {len(set(sites))} sites"]


def _check_sessions(cohort: Cohort, people: pd.DataFrame, model: Model) -> None:
    """Repeated sessions need an age of their own where age counts."""
    uses_age = model.analysis == "ageing" or model.age in [name.removesuffix("?") for name in model.covariates]
    if model.analysis not in ("ageing", "case-control") or not uses_age or model.age not in people:
        return
    repeated = people[people["participant_id"].duplicated(keep=False)]
    for participant in repeated["participant_id"].unique():
        path = cohort.bids_dir / participant / f"{participant}_sessions.tsv"
        if not path.is_file():
            raise DatasetError(
                f"{participant} has several sessions, but there is no {path} with session_id and {model.age}; write it, or say "
                "'session: LABEL' in a model file to use one session"
            )
