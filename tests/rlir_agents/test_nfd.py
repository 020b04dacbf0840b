"""NFD's transformer: published outputs, names and sizes, caches, and parallel evaluation against dense attention."""

import math
from pathlib import Path

import pytest
import torch
from small_transformers import ACTION_DIM, LATENT, NUM_FRAMES, largest, small_nfd, small_nfd_config
from torch.utils.flop_counter import FlopCounterMode

from rlir_agents.commands.building import build
from rlir_agents.commands.composition import compose_config
from rlir_agents.world_models import NFD, LatentSampler, NFDConfig
from rlir_agents.world_models.loading import make_nfd, nfd_config, nfd_weights, read_world_model
from rlir_env.checkpoints import load_strict, save_safetensors
from rlir_env.schedules import shifted_grid

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def live():
    """The fixture and its model, whose sizes are read off the weights."""

    def load(folder: Path):
        fixture = torch.load(folder / "live_dit.pt", weights_only=True)
        weights = nfd_weights(fixture["state_dict"])
        model = NFD(nfd_config(weights, latent_size=(4, 6), max_frames=8))
        load_strict(model, weights)
        return fixture, model.eval()

    return load


def test_published_outputs(live, fixtures_dir: Path) -> None:
    fixture, model = live(fixtures_dir)
    inputs, expected = fixture["inputs"], fixture["outputs"]
    x, t, vector = inputs["x"], inputs["t"] / 1000, inputs["act"]
    with torch.no_grad():
        found = {
            "v": model(x, t, vector),
            "v_no_act": model(x, t, None),
            "v_fractional_t": model(x, inputs["t_fractional"] / 1000, vector),
            "v_first3": model(x[:, :3], t[:, :3], vector[:, :3]),
        }
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(x, t, vector)
    for name, velocity in found.items():
        torch.testing.assert_close(velocity, expected[name], atol=TOLERANCE, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    # The public code in bfloat16 is .0056 off (rms): it rounds the ends and the residual stream as well.
    theirs = (expected["v_reference_eval_bf16_autocast"] - expected["v"]).square().mean()
    assert (rounded - expected["v"]).square().mean() < theirs / 4


@pytest.mark.parametrize("case", ["N18_ctxnoise1", "N18_ctxnoise0", "N10_ctxnoise1", "N10_ctxnoise0"])
def test_published_sampler(case: str, live, fixtures_dir: Path) -> None:
    fixture, model = live(fixtures_dir)
    inputs, expected = fixture["inputs"]["sampler"], fixture["outputs"]["sampler"][case]
    grid = shifted_grid(int(case[1:3]), shift=3, start=0.999)
    assert model._label(grid[:-1]).tolist() == expected["t_label"][0, :, 3].tolist()
    share = grid[-2].item() if case.endswith("1") else 0.0
    seen = torch.lerp(inputs["context"], inputs["context_noise"][:, :3], share)
    times = torch.full(seen.shape[:2], share)
    cache = model.read(seen, times, inputs["act"][:, :3], 4, torch.float32)
    frame = LatentSampler(grid).sample_frame(model, inputs["act"][:, 3], inputs["init_noise"][:, 0], cache)
    torch.testing.assert_close(frame, expected["frame"][:, 0], atol=1e-4, rtol=0)


# Reference page, sections 1.2 and 1.7: 9 L + 10 tensors and those of the action embedding, 2 or 4.
PUBLISHED = {
    "nfd_310m": ([], 309.9e6, 9 * 16 + 10 + 2),
    "nfd_774m": ([], 774.7e6, 9 * 18 + 10 + 4),
    "nfd_774m, linear": (["world_model.config.action_embedding=linear"], 772.4e6, 9 * 18 + 10 + 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    overrides, num_parameters, num_tensors = PUBLISHED[name]
    config = compose_config("pretrain", ["model=mineworld", f"world_model={name.split(',')[0]}", *overrides])
    with torch.device("meta"):
        state = build(config["network"], {}).state_dict()
    assert len(state) == num_tensors
    assert sum(entry.numel() for entry in state.values()) == pytest.approx(num_parameters, rel=2e-4)


def test_preset_fits_the_budget() -> None:
    with torch.device("meta"):
        model = build(compose_config("pretrain", ["model=mineworld", "world_model=nfd_doom"])["network"], {})
    assert model.latent_shape == (16, 5, 7) and model.max_frames == 16
    assert 2 * sum(p.numel() for p in model.parameters()) < 10e6  # bytes in float16


def test_flops_are_those_of_the_formulas() -> None:
    # Section 7 of the reference page, with 84 tokens a frame and patches of 64 numbers as there; no timestep embedding.
    d, layers, f, tokens, frames, steps = 64, 3, 256, 84, 5, 2
    model = small_nfd(**{"latent_shape": (16, 14, 24), "hidden_size": d, "num_layers": layers, "intermediate_size": f})
    per_frame = tokens * (2 * layers * (4 * d * d + 3 * d * f) + 256 * d) + 12 * layers * d * d + 4 * d * d
    per_pair = 4 * d * layers * tokens**2

    def count(function) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function()
        return counter.get_total_flops()

    latent, timestep = torch.randn(1, frames, 16, 14, 24), torch.rand(1, frames)
    vector = torch.randn(1, frames, ACTION_DIM)
    # Frame f attends to f + 1 frames: 1 + ... + 5.
    found = count(lambda: model(latent, timestep, vector))
    assert found == pytest.approx(frames * per_frame + 15 * per_pair, rel=0.02)
    # Four clean frames, 1 + ... + 4; two copies of frames 1 .. 4, each 2 + ... + 5.
    noisy = torch.randn(1, frames - 1, steps, 16, 14, 24)
    batch = (latent[:, 1:], timestep[:, 1:], noisy, torch.rand(1, frames - 1, steps), vector)
    found = count(lambda: model.velocity_of_steps(*batch))
    assert found == pytest.approx((4 + 2 * 4) * per_frame + (10 + 2 * 14) * per_pair, rel=0.02)
    # A denoising step against three finished frames.
    cache = model.new_cache(1, frames, torch.float32)
    model.append(latent[:, :3], timestep[:, :3], vector[:, :3], cache)
    found = count(lambda: model.next_velocity(latent[:, 3], timestep[:, 3], vector[:, 3], cache))
    assert found == pytest.approx(per_frame + 4 * per_pair, rel=0.02)


def test_labels_are_the_published_ones_wherever_a_timestep_was_computed() -> None:
    model = small_nfd()
    thousandths = torch.arange(1001)
    for timestep in (thousandths / 1000, thousandths.double() / 1000, (thousandths.double() / 1000).float()):
        assert torch.equal(model._label(timestep).long(), thousandths)
    # Plain truncation in float32 puts 0.251 and four others one lower, in float64 none.
    assert (1000 * (thousandths / 1000)).long().ne(thousandths).sum() == 5
    for num_steps in (4, 9, 10, 18, 20, 50):
        for start in (1.0, 0.999):
            grid = shifted_grid(num_steps, start=start)
            assert torch.equal(model._label(grid), model._label(grid.float()))
            assert torch.equal(model._label(grid).long(), (1000 * grid).long())
    latent, vector = torch.randn(1, 2, *LATENT), torch.zeros(1, 2, ACTION_DIM)
    between = torch.full((1, 2), 0.4999), torch.full((1, 2), 0.4991)
    assert torch.equal(model(latent, between[0], vector), model(latent, between[1], vector))
    exact = small_nfd(timestep_label="continuous")
    assert largest(exact(latent, between[0], vector) - exact(latent, between[1], vector)) > 1e-4


def test_checkpoints_are_read_whatever_stands_before_their_names(tmp_path: Path) -> None:
    published = small_nfd(action_embedding="mlp", hidden_size=128, intermediate_size=341)
    weights = published.state_dict()
    for prefix in ("", "model.", "model._orig_mod."):
        file = {f"{prefix}{key}": value for key, value in weights.items()}
        file |= {f"{prefix}attn_mask_block": torch.ones(2), "tokenizer.decoder.conv_in.weight": torch.ones(3)}
        torch.save({"state_dict": file, "epoch": 1}, tmp_path / "nfd.ckpt")
        config = nfd_config(nfd_weights(file), latent_size=(4, 6), max_frames=NUM_FRAMES)
        assert config == published.config  # width of the SwiGLU and kind of action embedding among the rest
        loaded = make_nfd(config, tmp_path / "nfd.ckpt").state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    with pytest.warns(UserWarning, match=r"outside of model\._orig_mod\. is left out: lpips"):
        assert nfd_weights(file | {"lpips.weight": torch.ones(1)}).keys() == weights.keys()
    with pytest.raises(ValueError, match="lpips.weight"):  # a bare transformer has no outside
        nfd_weights(weights | {"lpips.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="missing: blocks.2.attention.wo.weight"):
        load_strict(published, {key: value for key, value in weights.items() if key != "blocks.2.attention.wo.weight"})
    with pytest.raises(ValueError, match="0 tensors are named"):
        nfd_weights({"a": torch.ones(1)})
    rays = {key: value for key, value in weights.items() if not key.startswith("c_embedder")}
    with pytest.raises(ValueError, match="camera rays"):
        nfd_config(rays | {"c_embedder.proj.weight": torch.ones(128, 6, 1, 2, 2)})


def test_own_files_are_read_back(tmp_path: Path) -> None:
    model = small_nfd(rope_dims=(4, 4, 8))
    facts = {"class": "NFD", "sizes": vars(model.config)}
    save_safetensors(tmp_path / "nfd.safetensors", model, facts)
    read = read_world_model(tmp_path / "nfd.safetensors")
    assert read.config == model.config
    assert all(torch.equal(value, read.state_dict()[key]) for key, value in model.state_dict().items())
    save_safetensors(tmp_path / "other.safetensors", model, facts | {"class": "KLTokenizer"})
    with pytest.raises(ValueError, match="holds a KLTokenizer, no world model: give a file of MineWorld or NFD"):
        read_world_model(tmp_path / "other.safetensors")


def test_sizes_that_follow_from_others() -> None:
    assert NFDConfig().axis_dims == (8, 28, 28) and NFDConfig().tokens_per_frame == 84
    for head_dim, dims in {8: (4, 2, 2), 16: (4, 6, 6), 32: (4, 14, 14), 96: (12, 42, 42), 128: (16, 56, 56)}.items():
        assert NFDConfig(hidden_size=2 * head_dim, num_heads=2).axis_dims == dims
    # int(8 * 1024 / 3) = 2730, rounded up to a multiple of 256; 8 * 1536 / 3 is one.
    assert NFDConfig().feed_forward_size == 2816
    assert NFDConfig(hidden_size=1536, num_heads=24).feed_forward_size == 4096
    assert NFDConfig(intermediate_size=2730).feed_forward_size == 2730


def test_fresh_models_add_nothing() -> None:
    model = NFD(small_nfd_config())
    velocity = model(torch.randn(1, 2, *LATENT), torch.rand(1, 2), torch.randn(1, 2, ACTION_DIM))
    assert largest(velocity) == 0
    fan_in, fan_out = 32, 96
    bound = math.sqrt(6 / (fan_in + fan_out))  # Xavier's
    assert 0.95 * bound < largest(model.blocks[0].attention.wqkv.weight) < bound


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": 36, "num_heads": 4}, "hidden_size=36"),
        ({"patch_size": 4}, "patch_size=4"),
        ({"rope_dims": [4, 4, 4]}, "add up to 16"),
        ({"rope_dims": [3, 5, 8]}, "even numbers"),
        ({"action_embedding": "conv"}, "'linear' or 'mlp'"),
        ({"timestep_label": "float"}, "'integer' or 'continuous'"),
    ],
)
def test_impossible_sizes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_nfd_config(**settings)
