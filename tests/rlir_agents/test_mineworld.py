"""MineWorld's transformer: published outputs, names and sizes, an independent Llama, and decoding with a cache."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from rlir_agents.world_models import MineWorld, MineWorldConfig, TokenSampler, load_world_model, nucleus
from rlir_agents.world_models.kv_cache import KVCache, PlainLayerCache
from rlir_agents.world_models.layers import causal_attention
from rlir_agents.world_models.loading import mineworld_config
from rlir_env.checkpoints import save_safetensors
from rlir_env.noise import counter_uniform

PUBLISHED = {
    "lm_300M": (MineWorldConfig(), 321_049_600),
    "lm_700M": (MineWorldConfig(hidden_size=2048, num_attention_heads=32), 725_985_280),
    "lm_1200M": (MineWorldConfig(hidden_size=2048, num_attention_heads=32, intermediate_size=8192), 1_229_301_760),
}


def small_config(**sizes: int) -> MineWorldConfig:
    defaults = {
        "num_codes": 20,
        "vocab_size": 25,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 320,
        "initializer_range": 0.1,
    }
    return MineWorldConfig(**defaults | sizes)


def small_model(**sizes: int) -> MineWorld:
    torch.manual_seed(0)
    return MineWorld(small_config(**sizes))


def test_published_outputs(fixtures_dir: Path) -> None:
    fixture = torch.load(fixtures_dir / "mineworld_lm.pt", weights_only=True)
    sizes = set(MineWorldConfig.__dataclass_fields__)
    model = MineWorld(MineWorldConfig(**{k: v for k, v in fixture["config"].items() if k in sizes}))
    model.load_state_dict(fixture["state_dict"], strict=True)
    inputs, expected = fixture["inputs"], fixture["outputs"]
    with torch.no_grad():
        selected = model(inputs["seq"], inputs["logit_positions"])
        everywhere = model(inputs["seq"])
    torch.testing.assert_close(selected, expected["logits_sel"], atol=1e-4, rtol=0)
    assert torch.equal(everywhere[..., :8192].argmax(-1), expected["argmax_8192"])


def test_a_published_file_gives_the_outputs_of_the_reference(fixtures_dir: Path, tmp_path: Path) -> None:
    fixture = torch.load(fixtures_dir / "mineworld_lm.pt", weights_only=True)
    # As published: half precision, under state_dict, with the tokenizer beside the transformer.
    weights = fixture["state_dict"] | {"tokenizer.model.quant_conv.bias": torch.zeros(4)}
    torch.save({"state_dict": weights}, tmp_path / "lm.ckpt")
    sizes = {key: value for key, value in fixture["config"].items() if key in MineWorldConfig.__dataclass_fields__}
    config = {**sizes, "torch_dtype": "bfloat16", "hidden_act": "silu"}
    with pytest.warns(UserWarning, match="left out: .*torch_dtype"):
        model = load_world_model(tmp_path / "lm.ckpt", config)
    inputs, expected = fixture["inputs"], fixture["outputs"]
    with torch.no_grad():
        selected = model(inputs["seq"], inputs["logit_positions"])
    torch.testing.assert_close(selected, expected["logits_sel"], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="tie_word_embeddings=False only, the config asks for True"):
        load_world_model(tmp_path / "lm.ckpt", {"tie_word_embeddings": True})
    with pytest.raises(ValueError, match=r"of another shape: .*mlp.down_proj"):
        load_world_model(tmp_path / "lm.ckpt", {**sizes, "intermediate_size": 96})
    torch.save({"lpips.weight": torch.ones(1), **weights}, tmp_path / "lm.ckpt")
    with pytest.raises(ValueError, match="belong to nothing that is known: lpips.weight"):
        load_world_model(tmp_path / "lm.ckpt", sizes)


def test_sizes_are_read_off_the_weights() -> None:
    for config, _ in PUBLISHED.values():
        with torch.device("meta"):
            weights = MineWorld(config).state_dict()
        assert mineworld_config(weights) == config


def test_own_files_say_their_sizes_themselves(tmp_path: Path) -> None:
    model = small_model()
    save_safetensors(tmp_path / "a.safetensors", model, {"class": "MineWorld", "sizes": asdict(model.config)})
    loaded = load_world_model(tmp_path / "a.safetensors")
    assert loaded.config == model.config
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="leave out config"):
        load_world_model(tmp_path / "a.safetensors", {})
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="no world model that is known here: `rlir inspect"):
        load_world_model(tmp_path / "a.pt")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_and_names(name: str, fixtures_dir: Path) -> None:
    config, num_parameters = PUBLISHED[name]
    with torch.device("meta"):
        state = MineWorld(config).state_dict()
    assert sum(entry.numel() for entry in state.values()) == num_parameters
    listing = fixtures_dir.parent / "reference" / "checkpoint_shapes.json"
    if not listing.is_file():
        pytest.skip(f"no list of published shapes at {listing}")
    shapes = json.loads(listing.read_text())[name]
    published = {key: list(shape) for key, shape in shapes.items() if key.startswith("transformer.")}
    assert len(published) == 183  # 20 layers of 9 tensors, embedding, norm, head
    assert {key: list(entry.shape) for key, entry in state.items()} == published


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_equals_transformers_llama(num_kv_heads: int) -> None:
    transformers = pytest.importorskip("transformers")
    model = small_model(num_key_value_heads=num_kv_heads)
    names = set(MineWorldConfig.__dataclass_fields__) - {"num_codes"}
    config = transformers.LlamaConfig(
        **{name: getattr(model.config, name) for name in names}, tie_word_embeddings=False
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    state = {key.removeprefix("transformer."): entry for key, entry in model.state_dict().items()}
    llama.load_state_dict(state, strict=True)
    token = torch.randint(25, (2, 200))  # longer than one block of queries
    with torch.no_grad():
        torch.testing.assert_close(model(token), llama(token).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_equals_transformers_llama_at_full_width() -> None:
    """The 300M model, random weights, over two frames and a bit; `pytest -m slow -s` prints the difference."""
    transformers = pytest.importorskip("transformers")
    config, num_parameters = PUBLISHED["lm_300M"]
    torch.manual_seed(0)
    model = MineWorld(config).eval()
    names = set(MineWorldConfig.__dataclass_fields__) - {"num_codes"}
    settings = {name: getattr(config, name) for name in names}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, tie_word_embeddings=False)).eval()
    llama.load_state_dict({key.removeprefix("transformer."): value for key, value in model.state_dict().items()})
    assert sum(parameter.numel() for parameter in llama.parameters()) == num_parameters
    token = torch.randint(config.vocab_size, (1, 2 * 347 + 50))
    with torch.no_grad():
        logits, expected = model(token), llama(token).logits
    print(f"\nlargest difference {(logits - expected).abs().max():.1e} of logits up to {expected.abs().max():.1f}")
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_logits_only_where_asked_are_the_same() -> None:
    model, token = small_model(), torch.randint(25, (3, 30))
    per_row = torch.tensor([[0, 29], [4, 5], [7, 7]])
    everywhere = model(token)
    torch.testing.assert_close(model(token, torch.tensor([3, 9])), everywhere[:, [3, 9]])
    expected = torch.stack([everywhere[row, places] for row, places in enumerate(per_row)])
    torch.testing.assert_close(model(token, per_row), expected)


def test_a_position_reads_nothing_behind_it() -> None:
    model, token = small_model(), torch.randint(25, (1, 150))
    changed = token.clone()
    changed[0, 100] = (token[0, 100] + 1) % 25
    difference = (model(token) - model(changed)).abs().amax(-1)[0]
    assert difference[:100].max() == 0
    assert difference[100] > 1e-3


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("layout", ["cpu", "plain"])
def test_decoding_in_pieces_equals_one_forward(num_kv_heads: int, layout: str) -> None:
    model = small_model(num_key_value_heads=num_kv_heads, hidden_size=40)  # heads of 10, an odd half
    weights = model.decoding_weights(torch.float32)
    cache = weights.new_cache(3, 300)
    if layout == "plain":  # what accelerators use
        shape = (3, num_kv_heads, 300, 10)
        cache = KVCache([PlainLayerCache(shape, torch.float32, torch.device("cpu")) for _ in range(2)])
    token = torch.randint(25, (3, 300))
    # The first piece alone; single tokens; a word; a piece across the border of a cache block (128, 256).
    ends = [40, 41, 42, 54, 120, 140, *range(141, 300, 53), 300]
    expected = model(token)[..., :20]
    for start, end in zip([0, *ends], ends, strict=False):
        logits = weights.feed(token[:, start:end], cache)
        torch.testing.assert_close(logits, expected[:, end - 1], atol=1e-5, rtol=0)
    assert cache.length == 300


def test_cache_rows_are_copied_and_memory_is_counted() -> None:
    model = small_model()
    weights = model.decoding_weights(torch.bfloat16)
    prompts, rows = torch.randint(25, (2, 20)), torch.tensor([0, 0, 1, 0, 1])
    shared, cache = weights.new_cache(2, 20), weights.new_cache(5, 128)
    weights.feed(prompts, shared)
    cache.copy_rows(shared, rows)
    direct = weights.new_cache(5, 128)
    weights.feed(prompts[rows], direct)
    following = torch.randint(25, (5, 1))
    assert torch.equal(weights.feed(following, cache), weights.feed(following, direct))
    assert cache.num_bytes == 2 * 2 * 5 * 2 * 128 * 12 * 2  # (k, v) layers B KV L d bytes
    cache.clear()
    assert cache.length == 0


def test_bfloat16_autocast_is_close_and_differentiable() -> None:
    model, token = small_model(), torch.randint(25, (2, 130))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(token)
    assert logits.dtype == torch.bfloat16
    expected = model(token)
    # bfloat16 has 8 bits: about a percent of the logits' spread.
    assert (logits - expected).abs().mean() < 0.02 * expected.std()
    logits.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    weights = model.decoding_weights(torch.bfloat16)
    decoded = weights.feed(token, weights.new_cache(2, 130))
    torch.testing.assert_close(decoded, logits[:, -1, :20], atol=0.02, rtol=0.02)


def test_blocked_attention_has_the_fused_kernels_gradient() -> None:
    shapes = [(2, 4, 200, 8), (2, 2, 200, 8), (2, 2, 200, 8)]
    mine = [torch.randn(shape, requires_grad=True) for shape in shapes]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in mine]
    fused = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=True, enable_gqa=True)
    output = causal_attention(*mine)
    weight = torch.randn_like(output)
    (output * weight).sum().backward()
    (fused * weight).sum().backward()
    torch.testing.assert_close(output, fused, atol=1e-5, rtol=0)
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-5, rtol=0)


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="num_attention_heads=5"):
        MineWorldConfig(num_attention_heads=5, num_key_value_heads=2, hidden_size=100)
    with pytest.raises(ValueError, match="hidden_size=6"):
        MineWorldConfig(num_attention_heads=4, hidden_size=6)
    with pytest.raises(ValueError, match="vocab_size=10"):
        MineWorldConfig(vocab_size=10)
    with pytest.raises(ValueError, match="max_position_embeddings=320"):
        small_model()(torch.zeros(1, 321, dtype=torch.long))


def reference_nucleus(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """MineWorld's rule, literally: sort, keep while the mass strictly before is at most top_p."""
    ordered, order = probs.sort(-1, descending=True)
    is_kept = ordered.cumsum(-1) - ordered <= top_p
    return torch.zeros_like(is_kept).scatter(-1, order, is_kept)


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])  # nearly uniform needs every candidate, peaked a few
def test_nucleus_is_the_published_rule(spread: float) -> None:
    probs = (spread * torch.randn(40, 700)).softmax(-1)
    for top_p in (0.3, 0.8, 0.99):
        assert torch.equal(nucleus(probs, top_p), reference_nucleus(probs, top_p))


def test_crossing_code_is_kept_and_renormalised() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    truncated = TokenSampler(top_p=0.6).truncate(logits).softmax(-1)
    # Before .5 lies 0, before .3 lies .5 <= .6, before .15 lies .8 > .6; 5/8 and 3/8 remain.
    torch.testing.assert_close(truncated, torch.tensor([0.625, 0.375, 0.0, 0.0]))
    # A tiny top-p still keeps the best.
    assert TokenSampler(top_p=1e-6).truncate(logits).softmax(-1).tolist() == [1, 0, 0, 0]
    # A code that was sampled before an update stays: .5, .3 and .05 of .85.
    taken = TokenSampler(top_p=0.6).truncate(logits, torch.tensor(3)).softmax(-1)
    torch.testing.assert_close(taken, torch.tensor([0.5, 0.3, 0, 0.05]) / 0.85)


def test_top_k_keeps_ties() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    kept = TokenSampler(top_k=2).truncate(logits)  # the second and the third largest are equal
    assert kept.isfinite().tolist() == [False, True, True, True, False]
    assert TokenSampler(top_k=1, temperature=9.0).truncate(logits).softmax(-1).tolist() == [0, 1, 0, 0, 0]
    assert TokenSampler(top_k=99).truncate(logits).isfinite().all()


@pytest.mark.parametrize(
    "sampler", [TokenSampler(), TokenSampler(0.5), TokenSampler(2.0, 0.7), TokenSampler(2.0, top_k=3)]
)
def test_draws_follow_the_distribution_and_report_its_log_probs(sampler: TokenSampler) -> None:
    logits = torch.randn(8)
    uniform = counter_uniform(torch.arange(200_000), 0)
    codes, log_probs = sampler.draw(logits.expand(200_000, 8), uniform)
    expected = sampler.truncate(logits).log_softmax(-1)
    torch.testing.assert_close(log_probs, expected[codes])
    frequency = codes.bincount(minlength=8) / 200_000
    # Standard error of a frequency is at most .5 / sqrt(200,000) = .0011; five of them.
    torch.testing.assert_close(frequency, expected.exp(), atol=0.0056, rtol=0)
    best, _ = TokenSampler(greedy=True).draw(logits[None], uniform[:1])
    assert best.item() == logits.argmax()


def test_extreme_noise_never_picks_an_impossible_code() -> None:
    smallest, largest = torch.tensor([2.0**-24]), torch.tensor([1 - 2.0**-24])
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]])
    assert TokenSampler().draw(logits, smallest)[0].item() == 1
    assert TokenSampler().draw(logits, largest)[0].item() == 2


@pytest.mark.parametrize(
    "setting", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": 0}, {"top_k": 9, "top_p": 0.5}]
)
def test_impossible_sampling_is_named(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        TokenSampler(**setting)
