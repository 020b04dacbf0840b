"""What may change between the parts of a run, and what may not."""

import pytest
import torch
from torch import nn

from rlir_agents.commands.run_claim import claim

CONFIG = {"optimizer": {"lr": 1.0}, "num_threads": None, "diagnose": {"num_rollouts": 32}}


def claim_with(folder, module=None, **changes):
    claim(folder, CONFIG | changes, [module or nn.Identity()], torch.device("cpu"), None)


@pytest.fixture
def folder(tmp_path):
    claim_with(tmp_path)
    (tmp_path / "metrics").mkdir()  # the run made something
    return tmp_path


@pytest.mark.parametrize("change", [{"num_threads": 1}, {"diagnose": None}, {"diagnose": {"num_rollouts": 8}}])
def test_what_a_run_does_not_learn_from_may_change(folder, change):
    claim_with(folder, **change)


def test_what_it_learns_from_may_not(folder):
    with pytest.raises(ValueError, match=r"other settings \(optimizer.lr\)"):
        claim_with(folder, optimizer={"lr": 2.0}, diagnose=None)
    with pytest.raises(ValueError, match=r"other settings \(the weights it starts from\)"):
        claim_with(folder, nn.Linear(1, 1))
