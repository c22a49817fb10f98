"""The results of the participant level as tables: region values and quality of every acquisition, with who was scanned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qsmflow.bids.layout import parse_name
from qsmflow.errors import DatasetError
from qsmflow.reports.quality import structure

#: Columns that name an acquisition, and the entities they come from.
ENTITIES = {"participant_id": "sub", "session_id": "ses", "acq": "acq", "rec": "rec", "run": "run"}
#: Columns of the region tables that are no measure.
REGION_COLUMNS = ("atlas", "index", "name", "structure", "hemisphere", "n_voxels", "volume_mm3")

_QUALITY = "_desc-qc_stats.json"
_SIDE = re.compile(r"(?:^|[-_ .])(?:l|r|left|right|lh|rh)(?=$|[-_ .])", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Cohort:
    """What was found.

    ``scans`` has one row per acquisition (``acquisition`` and the columns of :data:`ENTITIES`, then those of
    ``participants.tsv`` and of the sessions' files), ``regions`` one per acquisition and region, ``quality`` one per
    acquisition; ``notices`` say what is missing.
    """

    bids_dir: Path
    results_dir: Path
    scans: pd.DataFrame
    regions: pd.DataFrame
    quality: pd.DataFrame
    columns: tuple[str, ...]
    notices: tuple[str, ...]

    @property
    def measures(self) -> tuple[str, ...]:
        """Columns of the region tables that can be compared."""
        known = {"acquisition", *REGION_COLUMNS}
        return tuple(name for name in self.regions if name not in known)


def collect(bids_dir: Path, results_dir: Path, participants: Sequence[str] = ()) -> Cohort:
    """Read the tables of all participants.

    Parameters
    ----------
    bids_dir : Path
        The dataset, for ``participants.tsv`` and the sessions' files.
    results_dir : Path
        What the participant level wrote.
    participants : sequence of str
        Labels without ``sub-`` of those to read; none: all.

    Returns
    -------
    Cohort

    Raises
    ------
    DatasetError
        If there is no region table or no usable ``participants.tsv``; the message says what to do.
    """
    tables = sorted(
        [*results_dir.glob("sub-*/anat/*_atlas-*_stats.tsv"), *results_dir.glob("sub-*/ses-*/anat/*_atlas-*_stats.tsv")]
    )
    tables = [path for path in tables if not participants or _entities(path)["sub"] in participants]
    if not tables:
        raise DatasetError(
            f"no region tables (sub-*/anat/*_atlas-*_stats.tsv) in {results_dir}; run the participant level first: "
            f"qsmflow {bids_dir} {results_dir} participant"
        )
    people = read_people(bids_dir / "participants.tsv")
    people = people.rename(columns={name: f"participant_{name}" for name in ("acquisition", *REGION_COLUMNS)})
    scans = pd.DataFrame([_scan(path) for path in tables]).drop_duplicates("acquisition", ignore_index=True)
    notices = _gaps(people, scans, bids_dir, results_dir, participants)
    described, more = _describe(scans, people, bids_dir)
    regions = pd.concat([_read_regions(path) for path in tables], ignore_index=True)
    quality, missing = _quality(scans, tables)
    columns = tuple(name for name in described if name not in ("acquisition", *ENTITIES))
    return Cohort(bids_dir, results_dir, described, regions, quality, columns, (*notices, *more, *missing))


def read_people(path: Path) -> pd.DataFrame:
    """``participants.tsv``, texts as they stand, ``n/a`` as missing.

    Raises
    ------
    DatasetError
        If it is not there, cannot be read, has no ``participant_id`` or one of them twice.
    """
    people = read_table(path, "participant_id", f"write {path} with the column participant_id and one row per participant")
    ids = people["participant_id"]
    people["participant_id"] = ids.where(ids.str.startswith("sub-"), "sub-" + ids)
    twice = sorted(people.loc[people["participant_id"].duplicated(), "participant_id"].unique())
    if twice:
        raise DatasetError(f"{path}: {', '.join(twice)} stands in several rows; keep one row per participant")
    return people


def region_key(name: str) -> str:
    """The name of a region without its side.

    Examples
    --------
    >>> region_key("SNc_PBP_VTA_L"), region_key("Left-Putamen"), region_key("vial3")
    ('SNc_PBP_VTA', 'Putamen', 'vial3')
    """
    return _SIDE.sub("", name).strip("-_ .") or name


def read_table(path: Path, key: str, remedy: str) -> pd.DataFrame:
    """A table of the dataset whose rows are named by the column ``key``; ``remedy`` says what to do where there is none."""
    if not path.is_file():
        raise DatasetError(f"there is no {path}; {remedy}")
    try:
        table = pd.read_csv(
            path, sep="\t", dtype=str, na_values=["n/a", "N/A", ""], keep_default_na=False, encoding="utf-8-sig"
        )
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        told = " ".join(str(error).split()).rstrip(".")
        raise DatasetError(f"{path} cannot be read as a table ({told}); {remedy}") from error
    if key not in table or table[key].isna().any():
        raise DatasetError(f"{path}: every row needs a '{key}'; columns must be separated by tabs (found: {', '.join(table)})")
    return table


def _entities(path: Path) -> dict[str, str]:
    return parse_name(path.name)[0]


def _name(path: Path) -> str:
    return re.sub(r"_atlas-[^_]+(_desc-[^_]+)?_stats$", "", path.name.removesuffix(".tsv"))


def _scan(path: Path) -> dict[str, str]:
    found = _entities(path)
    row = {"acquisition": _name(path), **{column: found.get(key, "") for column, key in ENTITIES.items()}}
    row["participant_id"] = f"sub-{row['participant_id']}"
    row["session_id"] = f"ses-{row['session_id']}" if row["session_id"] else ""
    return row


def _read_regions(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False, dtype={"name": str, "hemisphere": str})
    except (ValueError, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read as a table: {' '.join(str(error).split())}; run the participant again"
        ) from error
    if "name" not in table or "hemisphere" not in table:
        raise DatasetError(f"{path} has no column 'name' or 'hemisphere'; it is not a region table of this version")
    table["hemisphere"] = table["hemisphere"].fillna("n/a")
    atlas = _entities(path).get("atlas", "")
    keys = {name: region_key(name) for name in table["name"].unique()}
    longer = {name: structure(name) for name in keys}
    head = {"acquisition": _name(path), "atlas": atlas, "structure": table["name"].map(longer)}
    return table.assign(**head)[["acquisition", *REGION_COLUMNS, *(c for c in table if c not in REGION_COLUMNS)]]


def _gaps(people: pd.DataFrame, scans: pd.DataFrame, bids_dir: Path, results_dir: Path, chosen: Sequence[str]) -> list[str]:
    """Who is in only one of the list and the results."""
    listed, scanned = set(people["participant_id"]), set(scans["participant_id"])
    if not listed & scanned:
        raise DatasetError(
            f"{bids_dir / 'participants.tsv'} lists nobody who has a region table in {results_dir}: {_some(sorted(listed))} "
            f"there, {_some(sorted(scanned))} here; write the labels alike"
        )
    if chosen:
        listed &= {f"sub-{label}" for label in chosen}
    notices = []
    if absent := sorted(listed - scanned):
        notices.append(f"{_some(absent)}: in participants.tsv, but without a region table in {results_dir}")
    if unknown := sorted(scanned - set(people["participant_id"])):
        notices.append(f"{_some(unknown)}: with region tables, but not in {bids_dir / 'participants.tsv'}")
    return notices


def _describe(scans: pd.DataFrame, people: pd.DataFrame, bids_dir: Path) -> tuple[pd.DataFrame, list[str]]:
    """Scans with the columns of their participant and session; what a session's file says comes first."""
    described, notices = scans.merge(people, on="participant_id", how="left", suffixes=("", "_participant")), []
    several = scans[scans["session_id"] != ""]
    rows = []
    for participant in several["participant_id"].unique():
        path = bids_dir / participant / f"{participant}_sessions.tsv"
        if path.is_file():
            table = read_table(path, "session_id", "write it with the column session_id and one row per session")
            ids = table["session_id"]
            table["session_id"] = ids.where(ids.str.startswith("ses-"), "ses-" + ids)
            if table["session_id"].duplicated().any():
                raise DatasetError(f"{path}: a session stands in several rows; keep one row per session")
            rows.append(table.assign(participant_id=participant))
        else:
            notices.append(f"{participant}: has sessions, but there is no {path}")
    if rows:
        sessions = pd.concat(rows, ignore_index=True)
        own = [name for name in sessions if name not in ("participant_id", "session_id")]
        joined = described[["participant_id", "session_id"]].merge(sessions, on=["participant_id", "session_id"], how="left")
        for name in own:
            before = described[name] if name in described else pd.Series(pd.NA, described.index, dtype=object)
            described[name] = joined[name].where(joined[name].notna().to_numpy(), before.to_numpy())
    if len(notices) > 3:
        notices = [f"{len(notices)} participants with sessions have no *_sessions.tsv, {notices[0].split(':')[0]} the first"]
    return described, notices


def _quality(scans: pd.DataFrame, tables: Sequence[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Every number among the metrics of every acquisition."""
    folders: Mapping[str, Path] = {_name(path): path.parent for path in tables}
    rows, missing = [], []
    for name in scans["acquisition"]:
        path = folders[name] / f"{name}{_QUALITY}"
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        except (OSError, ValueError, KeyError, TypeError):
            missing.append(name)
            metrics = {}
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        rows.append({"acquisition": name, **numbers})
    notice = [f"{_some(missing)}: quality metrics (X{_QUALITY}) are missing or cannot be read"] if missing else []
    return pd.DataFrame(rows), notice


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
