"""Offline settings, made before any Hugging Face library is imported, and the fixture for real data."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

_CACHE = tempfile.mkdtemp(prefix="rmtrl-datasets-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _CACHE


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets that `RMTRL_DATA` names; tests that need it are skipped without."""
    if "RMTRL_DATA" not in os.environ:
        pytest.skip("RMTRL_DATA is not set")
    return Path(os.environ["RMTRL_DATA"])
