"""Low-rank adaptation: it begins as the base model, trains nothing but factors, and leaves a plain model."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rlir_agents.cli import main
from rlir_agents.commands.assembly import assemble, make_trainer
from rlir_agents.commands.composition import compose_config
from rlir_agents.commands.dry_run import estimate
from rlir_agents.world_models import (
    NFD,
    Decoder,
    LatentWorldModel,
    MineWorld,
    MineWorldConfig,
    NFDConfig,
    TokenSampler,
    load_world_model,
)
from rlir_agents.world_models.low_rank import LowRank, add_low_rank, merge_low_rank, merged_state_dict
from rlir_env.layout import TokenLayout

MODELS = {
    "mineworld": lambda: MineWorld(MineWorldConfig(8, 12, 32, 64, 2, 4, 2, 64, initializer_range=0.2)),
    "nfd": lambda: NFD(NFDConfig((4, 2, 2), 1, 32, 2, 2, intermediate_size=64, action_dim=6)),
}


def outputs(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, LatentWorldModel):
        latent, vector = (torch.randn(2, 3, *shape, generator=generator) for shape in ((4, 2, 2), (6,)))
        return model(latent, torch.full((2, 3), 0.5), vector)
    return model(torch.randint(12, (2, 20), generator=generator))


@pytest.fixture(params=MODELS)
def base(request) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[request.param]()
    for parameter in model.parameters():  # NFD's head is zero at first
        nn.init.normal_(parameter, std=0.1)
    return model


def train(model: nn.Module, num_steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(num_steps):
        optimizer.zero_grad()
        outputs(model).square().mean().backward()
        optimizer.step()


def test_it_begins_as_the_base_model_and_only_factors_learn(base):
    adapted = copy.deepcopy(base)
    add_low_rank(adapted, rank=2, alpha=4)
    assert torch.equal(outputs(adapted), outputs(base))
    learning = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert learning and all(name.endswith((".0.up", ".0.down")) for name in learning)
    # Every product of attention and perceptron in both layers; of a weight [out, in] there are 2 (out + in).
    num_products = 7 if isinstance(base, MineWorld) else 5
    layers = [
        base.get_submodule(name.removesuffix(".parametrizations.weight.0.up"))
        for name in learning
        if name.endswith(".up")
    ]
    assert len(layers) == 2 * num_products
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == sum(
        2 * sum(layer.weight.shape) for layer in layers
    )
    train(adapted)
    assert not torch.equal(outputs(adapted), outputs(base))
    for name, weight in base.state_dict().items():
        kept = adapted.state_dict().get(name, adapted.state_dict().get(name.replace("weight", _ORIGINAL)))
        assert torch.equal(kept, weight), name


_ORIGINAL = "parametrizations.weight.original"


def test_what_is_left_is_a_plain_model(base):
    adapted = copy.deepcopy(base)
    add_low_rank(adapted, rank=2, alpha=4)
    train(adapted)
    expected, merged = outputs(adapted), merged_state_dict(adapted)
    base.load_state_dict(merged)
    torch.testing.assert_close(outputs(base), expected)
    merge_low_rank(adapted)
    assert adapted.state_dict().keys() == merged.keys()
    torch.testing.assert_close(outputs(adapted), expected)
    merge_low_rank(adapted)  # nothing is left to do


def test_the_factors_are_the_paper_s(base):
    layer = next(layer for name, layer in base.named_modules() if name.endswith(("q_proj", "wqkv")))
    before = layer.weight.detach().clone()
    add_low_rank(base, rank=3, alpha=6)
    factors = layer.parametrizations.weight[0]
    nn.init.normal_(factors.up)
    assert factors.down.shape == (3, before.shape[1]) and factors.up.shape == (before.shape[0], 3)
    torch.testing.assert_close(layer.weight, before + 2 * factors.up @ factors.down)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers so
def test_it_is_peft_s_on_the_same_factors():
    """Values and gradients; peft, of which this is a parametrization, adapts transformers' Llama."""
    peft = pytest.importorskip("peft", reason="the independent implementation")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = MODELS["mineworld"]()
    settings = {name: getattr(model.config, name) for name in MineWorldConfig.__dataclass_fields__}
    del settings["num_codes"]
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, tie_word_embeddings=False))
    llama.load_state_dict({name.removeprefix("transformer."): w for name, w in model.state_dict().items()})
    add_low_rank(model, rank=2, alpha=6)
    products = sorted({name.split(".")[-2] for name, _ in llama.named_modules() if name.endswith("_proj")})
    assert products == ["mlp", "self_attn"]
    theirs = peft.get_peft_model(llama, peft.LoraConfig(r=2, lora_alpha=6, target_modules=r".*_proj"))
    pairs = []
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            layer = name.removeprefix("transformer.").removesuffix(".parametrizations.weight.0")
            twin = theirs.get_submodule(f"base_model.model.{layer}")
            pairs += [(module.down, twin.lora_A["default"].weight), (module.up, twin.lora_B["default"].weight)]
    for ours, their in pairs:
        assert ours.shape == their.shape
        nn.init.normal_(ours, std=0.3)
        their.data.copy_(ours)
    assert len(pairs) == 2 * 2 * 7 == sum(p.requires_grad for p in theirs.parameters())
    token = torch.randint(12, (2, 20))
    logits, expected = model(token), theirs(token).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for output in (logits, expected):
        output.square().mean().backward()
    for ours, their in pairs:
        torch.testing.assert_close(ours.grad, their.grad)
        assert ours.grad.abs().sum() > 0


def test_rollouts_see_the_factors():
    model = MODELS["mineworld"]()
    add_low_rank(model, rank=2, alpha=4)
    layout, sampler = TokenLayout(4, 3, 2), TokenSampler(greedy=True)
    token, word = torch.zeros(1, layout.sequence_length, dtype=torch.long), torch.full((1, 2, 2), 8)
    videos, decoder = [], Decoder(sampler)
    for _ in range(2):
        videos.append(decoder.generate(model, token.clone(), word, layout, torch.zeros(1, dtype=torch.long))[0])
        train(model, num_steps=20)
    places = layout.action_positions
    for video in videos:  # made before the last steps
        assert not torch.equal(model(video)[:, places - 1, :8].argmax(-1), video[:, places])
    now = decoder.generate(model, token.clone(), word, layout, torch.zeros(1, dtype=torch.long))[0]
    assert torch.equal(model(now)[:, places - 1, :8].argmax(-1), now[:, places])


def test_mistakes_are_named(base):
    with pytest.raises(ValueError, match=r"lora\.rank=-1"):
        add_low_rank(base, rank=-1, alpha=1)
    with pytest.raises(ValueError, match="Sequential has no layer to adapt"):
        add_low_rank(nn.Sequential(nn.Linear(2, 2)), rank=1, alpha=1)


@pytest.mark.parametrize("experiment", ["identity", "identity_nfd"])
def test_a_run_with_factors_leaves_plain_weights(experiment: str, tmp_path: Path):
    sizes = ["env.num_prompts=2", "env.group_size=2", "trainer.num_iterations=2", "trainer.num_minibatches=1"]
    run = ["train", f"experiment={experiment}", "device=cpu", "num_threads=1", "trainer.evaluate_every=0", *sizes]
    plain, adapted = tmp_path / "plain", tmp_path / "adapted"
    assert main([*run, f"run_dir={plain}"]) == 0
    assert main([*run, f"run_dir={adapted}", "lora={rank:2,alpha:4}", "optimizer.lr=0.01"]) == 0
    base = {key: value.shape for key, value in load_file(plain / "policy.safetensors").items()}
    assert {key: value.shape for key, value in load_file(adapted / "policy.safetensors").items()} == base
    assert (adapted / "summary.json").is_file()
    # Heads of 8 dimensions are not the published ones: the file says so itself.
    learnt = load_world_model(adapted / "policy.safetensors")
    sizes = compose_config("train", [f"experiment={experiment}"])["world_model"]["config"]
    assert {key: getattr(learnt.config, key) for key in sizes if "heads" in key} == {
        key: size for key, size in sizes.items() if "heads" in key
    }
    assert (
        main([*run, f"run_dir={adapted}", "lora={rank:2,alpha:4}", "optimizer.lr=0.01"]) == 0
    )  # finished: nothing to do


def test_a_reference_that_moves_takes_the_factors_over(tmp_path: Path):
    overrides = ["experiment=identity", "algorithm=grpo", "lora={rank:2,alpha:4}", "trainer.num_epochs=1"]
    overrides += ["trainer.num_minibatches=1", "trainer.evaluate_every=0", "trainer.sync_reference_every=1"]
    overrides += ["optimizer.lr=0.01", f"run_dir={tmp_path}"]
    trainer = make_trainer(assemble(compose_config("train", overrides)), evaluate=None)
    before = copy.deepcopy(trainer.reference_policy.state_dict())
    divergence = [trainer.run_iteration()["train/kl_to_ref"] for _ in range(2)]
    assert max(map(abs, divergence)) < 1e-5  # every batch begins where the reference stands
    after, learnt = trainer.reference_policy.state_dict(), merged_state_dict(trainer.policy)
    assert all(torch.equal(after[name], weight) for name, weight in learnt.items())
    assert max((after[name] - weight).abs().max() for name, weight in before.items()) > 1e-4


def test_a_dry_run_counts_what_learns():
    base = compose_config("train", ["experiment=identity"])
    whole, adapted = estimate(base, False), estimate(base | {"lora": {"rank": 1, "alpha": 1}}, False)
    moments = "moments of the optimiser"
    assert whole.held[moments] == 8 * whole.num_parameters["world model"]
    num_factors = adapted.num_parameters["world model"] - whole.num_parameters["world model"]
    assert adapted.held[moments] == 8 * num_factors < whole.held[moments] / 4
