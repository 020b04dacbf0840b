"""Oasis and its tokenizer against outputs of the public code, and RL's coordinates against DDPM's.

``open_oasis.safetensors`` holds small random weights and what etched-ai/open-oasis (commit f59deef) makes of them: its
transformer at DDPM steps, its DDIM loop of ten steps, and its autoencoder.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_agents.checkpoint_contents import read_contents
from rlir_agents.commands.building import build
from rlir_agents.commands.composition import compose_config
from rlir_agents.world_models import LatentSampler, Oasis, OasisConfig, load_world_model
from rlir_agents.world_models.loading import oasis_config, oasis_weights
from rlir_agents.world_models.oasis_schedule import continuous_label, ddim_grid, nearest_label, timesteps
from rlir_env.checkpoints import load_strict
from rlir_env.tokenizers import ViTConfig, ViTTokenizer, load_tokenizer

Reference = dict[str, dict[str, Tensor]]
FRAME_SIZE = (24, 36)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Tensors by part: ``dit``, ``vae`` and ``out``."""
    parts: Reference = {"dit": {}, "vae": {}, "out": {}}
    for name, tensor in load_file(Path(__file__).with_name("open_oasis.safetensors")).items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor
    return parts


@pytest.fixture(scope="module")
def model(reference: Reference) -> Oasis:
    weights = oasis_weights(reference["dit"])
    model = Oasis(oasis_config(weights, latent_size=(4, 6), max_frames=8))
    load_strict(model, weights)
    return model


def as_flow(out: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """DDPM's latents as flow matching's, their timesteps, and the velocities that the predicted v stand for."""
    alpha, s = (part.sqrt()[..., None, None, None] for part in (out["alpha_bar"], 1 - out["alpha_bar"]))
    data, noise = alpha * out["x"] - s * out["v"], s * out["x"] + alpha * out["v"]
    return out["x"] / (alpha + s), (s / (alpha + s))[..., 0, 0, 0], noise - data


def test_public_velocities(model: Oasis, reference: Reference) -> None:
    out = reference["out"]
    latent, timestep, velocity = as_flow(out)
    assert torch.equal(model._label(timestep).long(), out["step"])
    with torch.no_grad():
        torch.testing.assert_close(model(latent, timestep, out["action"]), velocity, atol=1e-5, rtol=0)
        # Clean frames are labelled as the public code labels its context.
        clean = torch.zeros(2, 1), torch.full((2, 1), timesteps()[14].item())
        assert torch.equal(model._label(clean[0]), model._label(clean[1]))


def test_public_samples(model: Oasis, reference: Reference) -> None:
    out, grid = reference["out"], ddim_grid(10)
    # The public loop starts from noise in DDPM's coordinates, a little less here: r of the first timestep.
    start = ((1 - grid[0]) ** 2 + grid[0] ** 2).sqrt().float()
    sampler, vector = LatentSampler(grid, order=1), out["action"]
    cache = model.read(out["x"][:, :1], torch.zeros(2, 1), vector[:, :1], 4, torch.float32)
    for index in range(1, 4):
        frame = sampler.sample_frame(model, vector[:, index], out["noise"][:, index] * start, cache)
        torch.testing.assert_close(frame, out["sampled"][:, index], atol=1e-4, rtol=0)
        model.append(frame[:, None], torch.zeros(2, 1), vector[:, index : index + 1], cache)


def test_public_tokenizer(reference: Reference) -> None:
    weights, out = reference["vae"], reference["out"]
    tokenizer = ViTTokenizer(ViTConfig.from_weights(weights, frame_size=FRAME_SIZE, enc_heads=2, dec_heads=2))
    load_strict(tokenizer, weights)
    with torch.no_grad():
        moments = tokenizer.moments(out["images"])
        torch.testing.assert_close(moments.mean.flatten(2).mT, out["mean"], atol=1e-5, rtol=0)
        torch.testing.assert_close(moments.log_variance.flatten(2).mT, out["logvar"], atol=1e-5, rtol=0)
    latents = tokenizer.encode(out["images"])
    torch.testing.assert_close(latents, tokenizer.config.scale_factor * moments.mean)
    torch.testing.assert_close(tokenizer.decode(latents), (out["decoded"] / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_published_sizes() -> None:
    network = compose_config("pretrain", ["model=mineworld", "world_model=oasis_500m"])["network"]
    with torch.device("meta"):
        parts = build(network, {}), ViTTokenizer(ViTConfig())
    # Reference page, section 1.7(b): 302 and 228 tensors, about 608M and 229M parameters.
    assert [len(part.state_dict()) for part in parts] == [302, 228]
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == pytest.approx([607.9e6, 229.2e6], rel=1e-3)
    assert parts[0].latent_shape == parts[1].latent_shape


def test_files_of_both_kinds_are_read(model: Oasis, reference: Reference, tmp_path: Path) -> None:
    aliased = dict(model.state_dict())  # as torch.save leaves it: every attention names its frequencies
    for axis, letter in (("spatial", "s"), ("temporal", "t")):
        aliased[f"blocks.0.{letter}_attn.rotary_emb.freqs"] = aliased[f"{axis}_rotary_emb.freqs"]
    torch.save(aliased, tmp_path / "oasis.pt")
    torch.save(reference["vae"], tmp_path / "vit.pt")
    loaded = load_world_model(tmp_path / "oasis.pt", {"latent_size": (4, 6), "max_frames": 8})
    assert isinstance(loaded, Oasis) and loaded.config == model.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    found = read_contents(tmp_path / "oasis.pt")
    assert found.is_readable and not found.unread and [part.name for part in found.parts] == ["Oasis' transformer"]
    assert [part.name for part in read_contents(tmp_path / "vit.pt").parts] == ["Oasis' ViT tokenizer"]
    with pytest.raises(ValueError, match="enc_heads=0"):  # 32 wide: no heads of 64 dimensions
        load_tokenizer(tmp_path / "vit.pt", FRAME_SIZE)
    with pytest.raises(ValueError, match="holds no tokenizer that is known here"):
        load_tokenizer(tmp_path / "oasis.pt", FRAME_SIZE)
    aliased["blocks.0.s_attn.rotary_emb.freqs"] = aliased["spatial_rotary_emb.freqs"] + 1
    with pytest.raises(ValueError, match="differs from other spatial frequencies"):
        oasis_weights(aliased)
    torch.save(aliased, tmp_path / "differing.pt")
    (part,) = read_contents(tmp_path / "differing.pt").parts
    assert part.problem is not None and "differs from other spatial frequencies" in part.problem
    del aliased["blocks.0.s_attn.rotary_emb.freqs"], aliased["blocks.0.t_mlp.fc2.bias"]
    with pytest.raises(ValueError, match=r"missing: blocks\.0\.t_mlp\.fc2\.bias"):
        load_strict(model, oasis_weights(aliased))


def test_labels_are_ddpm_steps() -> None:
    steps = torch.arange(1000)
    for table in (timesteps(), timesteps().float()):
        assert torch.equal(nearest_label(table).long(), steps)
        torch.testing.assert_close(continuous_label(table), steps.float(), atol=2e-2, rtol=0)
    between = (timesteps()[500] + timesteps()[501]) / 2
    assert continuous_label(between[None]).item() == pytest.approx(500.5, abs=1e-3)
    assert nearest_label(torch.tensor([0.0, 1.0])).tolist() == [0, 999]
    assert continuous_label(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


def test_grid_is_that_of_the_public_sampler() -> None:
    # Its steps, cut off to whole numbers: 999, 899, ..., 99, and clean at last.
    assert nearest_label(ddim_grid(10)[:-1]).tolist() == [999 - 100 * step for step in range(10)]
    assert ddim_grid(10)[-1] == 0
    with pytest.raises(ValueError, match="Oasis has 10"):
        ddim_grid(0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": 36, "num_heads": 2}, "hidden_size=36"),
        ({"patch_size": 4}, "patch_size=4"),
        ({"timestep_label": "float"}, "'integer' or 'continuous'"),
    ],
)
def test_impossible_sizes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OasisConfig(**settings)
