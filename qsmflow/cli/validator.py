"""The BIDS validator, where it is installed: what it says is told, and stops nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PROGRAM = "bids-validator-deno"


def validate(bids_dir: Path) -> list[str]:
    """One line per kind of error that the BIDS validator finds in a dataset.

    Errors do not stop a run: they may concern other modalities, and everything that is needed here is checked on reading.
    """
    program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=str(Path(sys.executable).parent))
    if not program:
        return [f"not checked by the BIDS validator, because {PROGRAM} is not installed (pip install {PROGRAM})"]
    command = [program, "--format", "json", "--ignoreWarnings", str(bids_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        issues = json.loads(done.stdout)["issues"]["issues"]
    except (ValueError, KeyError):
        return [f"the BIDS validator failed (exit code {done.returncode}): {done.stderr.strip()[-300:] or 'no message'}"]
    files = defaultdict(list)
    for issue in issues:
        if issue.get("severity") == "error":
            files[issue["code"]].append(issue.get("location", "the dataset").lstrip("/"))
    return [
        f"BIDS validator: {code}: {places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}"
        for code, places in sorted(files.items())
    ]
