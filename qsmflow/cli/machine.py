"""What this process may use of the machine: affinity and control groups (containers, cluster jobs) included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CGROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

#: Share of the memory that nodes may plan with; the rest is for the system and for estimates that are too low.
_SHARE = 0.9


def processors() -> int:
    """Number of processors that this process may run on, at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for text in _settings("cpu.max"):  # "<microseconds> <period>", or "max <period>"
        quota, period = text.split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    return count


def memory_gb() -> float:
    """Memory in GB (1024^3 bytes) that nodes may plan with."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [int(text) for text in _settings("memory.max") if text != "max"]
    return round(_SHARE * min(limits) / 1024**3, 2)


def _settings(name: str) -> Iterator[str]:
    """A setting of our control group and of those above it (version 2; empty where there is none)."""
    with suppress(OSError):
        for line in _OWN_GROUP.read_text().splitlines():
            if line.startswith("0::/"):
                folder = _CGROUPS / line.removeprefix("0::/")
                for level in (folder, *folder.parents):
                    if level.is_relative_to(_CGROUPS) and (level / name).is_file():
                        yield (level / name).read_text().strip()
