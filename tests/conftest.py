"""Shared fixtures: where the parity files are, and one CPU thread policy for all tests."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _deterministic_threads():
    """Two threads, the size of the machine that the tests are budgeted for."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder with outputs of the reference implementations; tests that need it skip where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "fixtures"
    folder = Path(os.environ.get("RLIR_FIXTURES", default))
    if not folder.is_dir():
        pytest.skip(f"no parity fixtures at {folder}; set RLIR_FIXTURES to their folder")
    return folder
