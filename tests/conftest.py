"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import numba  # noqa: F401 - keeps the number of threads that it finds in the environment now, before tests change that
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Look for doctests in the package, not in the helpers and programs beside the tests."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of larger test data: QSMFLOW_SHARED, or ``shared`` beside the repository."""
    folder = Path(os.environ.get("QSMFLOW_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no test data in {folder} (QSMFLOW_SHARED names its place)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A random generator that gives every test the same numbers."""
    return np.random.default_rng(20240501)
