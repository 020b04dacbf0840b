"""Configs name what is wrong with them, whoever wrote them."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rlir_agents.world_models import NFD, MineWorldConfig, NFDConfig, OasisConfig, load_world_model
from rlir_env.assets import read_idm
from rlir_env.checkpoints import save_safetensors
from rlir_env.inverse_dynamics import VPTConfig
from rlir_env.sizes import config_of
from rlir_env.tokenizers import KLConfig, ViTConfig, VQConfig

CONFIGS: list[Any] = [MineWorldConfig, NFDConfig, OasisConfig, VQConfig, KLConfig, ViTConfig, VPTConfig]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_size_of_every_network_is_checked(config):
    defaults = config()
    for name, value in vars(defaults).items():
        if isinstance(value, bool | str) or value is None or name == "context_label":
            continue
        wrong = [(), 3, (0, *value[1:])] if isinstance(value, tuple) else [-1, "many", None]
        for bad in wrong:
            with pytest.raises(ValueError, match=name):
                config(**{name: bad})


def test_lists_become_tuples():
    assert NFDConfig(latent_shape=[16, 14, 24], rope_dims=[16, 24, 24]) == NFDConfig(rope_dims=(16, 24, 24))
    assert VQConfig(frame_size=[224, 384]) == VQConfig()


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"widths": 3}, "NFDConfig has no widths; it has latent_shape, patch_size"),
        (None, "sizes of NFDConfig are needed, not None"),
    ],
)
def test_what_a_file_or_a_user_gives_is_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        config_of(NFDConfig, sizes)


def test_files_without_sizes_are_refused(tmp_path):
    for name, read in {"MineWorld": load_world_model, "VPTInverseDynamics": read_idm}.items():
        save_safetensors(tmp_path / "a.safetensors", {"weight": torch.ones(1)}, {"class": name})
        with pytest.raises(ValueError, match="sizes of .*Config are needed, not None"):
            read(tmp_path / "a.safetensors")


def test_a_config_beside_a_checkpoint_names_its_fields(tmp_path):
    save_file(NFD(NFDConfig((4, 2, 2), 1, 64, 1, 1)).state_dict(), tmp_path / "nfd.safetensors")
    with pytest.raises(ValueError, match="NFDConfig has no hidden; it has latent_shape"):
        load_world_model(tmp_path / "nfd.safetensors", {"hidden": 64})
    with pytest.raises(ValueError, match="num_heads='one': give positive integers"):
        load_world_model(tmp_path / "nfd.safetensors", {"latent_size": (2, 2), "num_heads": "one"})
