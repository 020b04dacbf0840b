"""Shared fixtures: where the parity files are, and one thread policy for all tests."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _deterministic_threads():
    """One thread: tests are small, and threads that wait for busy cores cost more than they give."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder with outputs of the reference implementations; tests that need it skip where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "fixtures"
    folder = Path(os.environ.get("RLIR_FIXTURES", default))
    if not folder.is_dir():
        pytest.skip(f"no parity fixtures at {folder}; set RLIR_FIXTURES to their folder")
    return folder
