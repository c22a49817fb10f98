"""Skeleton studies; the modules beside the tests can be imported by their names."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from skeleton import Study


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


@pytest.fixture
def native_atlas(study):
    return study.image(study.root / "lesion_mask.nii")
