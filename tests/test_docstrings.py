"""The examples in docstrings do what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = ("av", "vizdoom", "lpips", "torchvision", "tensorboard", "wandb")  # the extras; a module may be without


def modules_with_examples() -> list[str]:
    paths = [path for package in ("rlir_env", "rlir_agents") for path in (ROOT / package).rglob("*.py")]
    with_examples = [path for path in paths if ">>>" in path.read_text(encoding="utf-8")]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in with_examples)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for examples that write
    try:
        module = importlib.import_module(name.removesuffix(".__init__"))
    except ModuleNotFoundError as missing:
        if missing.name not in OPTIONAL:
            raise
        pytest.skip(str(missing))
    assert any(found.examples for found in doctest.DocTestFinder().find(module)), "the >>> is in no docstring"
    assert not doctest.testmod(module).failed  # what fails is printed
