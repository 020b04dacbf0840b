"""`rlir inspect`: files of every published kind, and files of none."""

import json
import pickle
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rlir_agents.checkpoint_contents import read_contents
from rlir_agents.cli import main
from rlir_agents.world_models import NFD, MineWorld, MineWorldConfig, NFDConfig, load_world_model
from rlir_env.assets import write_model
from rlir_env.checkpoints import load_safetensors
from rlir_env.inverse_dynamics import VPTConfig, VPTInverseDynamics
from rlir_env.tokenizers import KLConfig, KLTokenizer, VQConfig, VQTokenizer

LM = MineWorldConfig(16, 86, 128, 64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
DIT = NFDConfig((5, 14, 24), hidden_size=64, num_layers=2, num_heads=1, intermediate_size=96, action_dim=7)
VQ = VQConfig((224, 384), (32, 64), layers_per_block=1, latent_channels=4, num_vq_embeddings=16, vq_embed_dim=4)
KL = KLConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, embed_dim=5)
IDM = VPTConfig((16, 16), 4, (8, 8), 1, 8, 64, num_layers=1)


def weights_of(module: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in module.half().state_dict().items()}


def as_json(content: object) -> object:
    """Tuples as lists."""
    return json.loads(json.dumps(content))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files laid out as the published ones are, of small models."""
    contents = {
        "mineworld.ckpt": {"state_dict": weights_of(MineWorld(LM)) | weights_of(VQTokenizer(VQ), "tokenizer.model.")},
        "live.ckpt": {
            "state_dict": weights_of(NFD(DIT), "model._orig_mod.") | weights_of(KLTokenizer(KL), "tokenizer."),
            "epoch": 7,
        },
        "4x_idm.weights": weights_of(VPTInverseDynamics(IDM)),
        "other.pt": {"layer.weight": torch.ones(3)},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    write_model(tmp_path / "own.safetensors", VQTokenizer(VQ))
    return {path.name: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mineworld.ckpt", {"MineWorld's transformer": LM, "MineWorld's VQ tokenizer": VQ}),
        ("live.ckpt", {"a world model of NFD's family": DIT, "a KL tokenizer of latent diffusion": KL}),
        ("own.safetensors", {"VQTokenizer of this package": VQ}),
    ],
)
def test_models_of_a_file_are_named_with_their_sizes(files, name, expected, capsys):
    contents = read_contents(files[name])
    assert contents.is_readable and not contents.unread
    assert [part.name for part in contents.parts] == list(expected)
    for part, config in zip(contents.parts, expected.values(), strict=True):
        assert as_json(part.sizes) == as_json(asdict(config))
    assert main(["inspect", str(files[name])]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in expected) and printed.count("read it with") == len(expected)


def test_what_is_read_is_what_is_said(files):
    """The reader that is named is called as it stands."""
    (part, _) = read_contents(files["mineworld.ckpt"]).parts
    import rlir_agents.world_models

    model = eval(part.reader, {"rlir_agents": rlir_agents})  # noqa: S307 (our own words)
    assert model.config == LM and part.num_parameters == sum(p.numel() for p in model.parameters())
    assert part.dtypes == ("float16",)


def test_the_idm_and_its_settings(files, fixtures_dir, tmp_path):
    (part,) = read_contents(files["4x_idm.weights"]).parts
    # Heads and temperature are in no weight; the published values are taken.
    assert part.problem is None and part.sizes == asdict(IDM)
    fixture = torch.load(fixtures_dir / "vpt_idm.pt", weights_only=True)["config"]
    settings = {"model": {"args": {"net": {"args": fixture["net"]}, "pi_head_opts": fixture["pi_head_opts"]}}}
    (tmp_path / "4x_idm.model").write_bytes(pickle.dumps(settings))
    (part,) = read_contents(tmp_path / "4x_idm.model").parts
    assert part.sizes["num_heads"] == fixture["net"]["attention_heads"]


@pytest.mark.parametrize("name", ["mineworld.ckpt", "live.ckpt", "4x_idm.weights"])
def test_a_renamed_tensor_is_found(files, name, capsys):
    content = torch.load(files[name])
    weights = content.get("state_dict", content)
    old = next(key for key in weights if key.endswith(".weight") and "norm" in key and "tokenizer" not in key)
    weights[old + "s"] = weights.pop(old)
    torch.save(content, files[name])
    assert main(["inspect", str(files[name])]) == 2
    printed = capsys.readouterr()
    own_name = old.removeprefix("model._orig_mod.")
    assert f"missing: {own_name}; unexpected: {own_name}s" in printed.out
    assert "(as published; no weight tells)" in printed.out
    assert "can be read, see above" in printed.err


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("mineworld.ckpt", "transformer.model.embed_tokens.weight", "tensors belong to no model that is known here"),
        ("mineworld.ckpt", "", "1 tensors belong to nothing that is known: lpips.weight"),
        ("own.safetensors", "decoder.conv_in.weight", "missing: decoder.conv_in.weight; unexpected: renamed"),
    ],
    ids=["the tensor it is known by", "one too many", "one of our own"],
)
def test_what_no_reader_would_take_is_not_called_readable(files, name, change, expected, capsys):
    if name == "own.safetensors":
        weights, facts = load_safetensors(files[name])
        weights["renamed"] = weights.pop(change)
        save_file(weights, files[name], {"config": json.dumps(facts)})
    else:
        content = torch.load(files[name])
        weights = content["state_dict"]
        weights["renamed" if change else "lpips.weight"] = weights.pop(change) if change else torch.ones(1)
        torch.save(content, files[name])
    assert main(["inspect", str(files[name])]) == 2
    assert expected in capsys.readouterr().out


def test_a_wrapped_checkpoint_is_read(files, tmp_path):
    """With ``model.`` before the transformer and before the tokenizer."""
    weights = torch.load(files["mineworld.ckpt"])["state_dict"]
    path = tmp_path / "wrapped.ckpt"
    torch.save({f"model.{key}": tensor for key, tensor in weights.items()}, path)
    assert read_contents(path).is_readable
    assert load_world_model(path).config.hidden_size == LM.hidden_size


def _runs_code(path: Path) -> None:
    path.write_bytes(b"cposix\nsystem\n(S'echo code'\ntR.")


def _truncated(path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def _holds_a_class(path: Path) -> None:
    torch.save({"model": nn.Linear(1, 1)}, path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.model", _runs_code, "it asks for posix.system; nothing was run"),
        ("a.model", lambda path: path.write_bytes(b"\x80\x02}}b."), "no pickle of plain containers"),
        ("a.pt", _runs_code, "cannot be read as tensors and plain containers; nothing was run"),
        ("a.pt", _holds_a_class, "nothing was run: .*Linear"),
        ("a.ckpt", _truncated, "its end is missing"),
        ("a.safetensors", _truncated, "no complete safetensors file"),
        ("a.txt", lambda path: path.write_text("notes"), "cannot be read as tensors"),
        ("a.pt", lambda path: torch.save({"epoch": 3}, path), "neither a state dict nor has one"),
        ("a.pt", lambda path: None, "there is no file"),
    ],
)
def test_other_files_get_a_clear_word(tmp_path, capfd, name, make, message):
    make(tmp_path / name)
    assert main(["inspect", str(tmp_path / name)]) == 2
    printed = capfd.readouterr()
    assert re.search(message, printed.err), printed.err
    assert "code" not in printed.out and "Traceback" not in printed.err


def test_tensors_of_no_model_are_listed(files, capsys):
    assert main(["inspect", str(files["other.pt"])]) == 2
    assert "1 tensors belong to no model that is known here: layer.weight" in capsys.readouterr().out
