"""Dry runs: what is counted on tensors without memory is what real tensors take."""

import pytest
import torch
import torch.nn.functional as F
from small_policies import small_denoising_policy
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rlir_agents.cli import main
from rlir_agents.commands.composition import compose_config, config_folder
from rlir_agents.commands.dry_run import estimate
from rlir_agents.dry_run import DEVICES, Batch, Device, Estimate, Meter, Phase, estimate_table, hollow, policy_phases
from rlir_agents.trainer_config import TrainerConfig
from rlir_agents.world_models import MineWorld, MineWorldConfig
from rlir_env.testing import identity_world


def small_mineworld() -> MineWorld:
    return MineWorld(MineWorldConfig(32, 40, 64, 128, 3, 4, 2, 512))


def test_fake_tensors_take_the_flops_and_the_memory_of_real_ones():
    model, meter = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)), Meter()
    fake = meter.fake(model)
    count = meter.count(lambda: fake(torch.zeros(100, 64)).sum().backward())
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(100, 64)).sum().backward()
    assert (
        count.flops == counter.get_total_flops() == 2 * 100 * (2 * 64 * 256 + 3 * 256 * 8)
    )  # no gradient of the input
    # At the end of the backward pass: inputs, gradients of the weights, and of the larger activations.
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    assert 4 * num_weights < count.peak_bytes < 4 * (num_weights + 100 * (64 + 3 * 256 + 3 * 8))
    assert meter.count(lambda: None) == (0, 0)


def test_a_reference_that_moves_is_held_beside_the_base_model():
    run = ["experiment=identity", "algorithm=grpo"]
    fixed, moving = (
        estimate(compose_config("train", [*run, f"trainer.sync_reference_every={every}"]), False).held
        for every in (0, 2)
    )
    assert moving == fixed | {"reference": fixed["base model"]}


def test_memory_that_was_freed_is_not_counted():
    def one_after_the_other():
        for _ in range(10):
            torch.zeros(1000)

    def at_once():
        return [torch.zeros(1000) for _ in range(10)]

    assert Meter().count(one_after_the_other).peak_bytes in (4000, 8000)
    assert Meter().count(at_once).peak_bytes == 40_000


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_causal_attention_costs_half_and_checkpoints_cost_a_forward(is_checkpointed):
    length = 256
    counts = []
    for num_layers in (2, 4):
        meter = Meter()
        model = MineWorld(MineWorldConfig(32, 40, 64, 128, num_layers, 4, 2, 512))
        model.checkpoints_activations = is_checkpointed
        fake = meter.fake(model)
        counts.append(
            meter.count(lambda fake=fake: fake.hidden(torch.zeros(1, length, dtype=torch.long)).sum().backward())
        )
    weights = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128
    forward, attention = 2 * length * weights, 4 * length**2 * 64 / 2
    expected = 3 * forward + 3.5 * attention
    if is_checkpointed:  # once more, up to the last product, whose result no gradient needs
        expected += forward + attention - 2 * length * 64 * 128
    assert (counts[1].flops - counts[0].flops) / 2 == pytest.approx(expected)
    per_layer = (counts[1].peak_bytes - counts[0].peak_bytes) / 2 - 4 * (weights + 2 * 64)
    inputs = 4 * length * 64
    assert per_layer < inputs if is_checkpointed else per_layer > 8 * inputs


@pytest.mark.parametrize("is_causal", [False, True])
def test_fused_attention_is_counted_forwards_and_backwards(is_causal):
    def attend() -> None:
        query, key = (torch.randn(2, 3, 8, 8, requires_grad=True) for _ in range(2))
        F.scaled_dot_product_attention(query, key, key, is_causal=is_causal).sum().backward()

    pairs = 8 * 8 / (2 if is_causal else 1)
    assert Meter().count(attend).flops == (4 + 10) * 2 * 3 * pairs * 8


def test_hollow_weights_have_shapes_and_no_memory():
    with torch.device("meta"):
        model = small_mineworld()
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    hollowed = hollow(model).state_dict()
    assert {name: weight.shape for name, weight in hollowed.items()} == shapes
    assert all(weight.untyped_storage().nbytes() == 4 and weight.device.type == "cpu" for weight in hollowed.values())


def test_a_rollout_is_counted_as_it_is_made():
    world = identity_world(grid_size=(2, 2), num_frames=4)
    env = world.denoising_env(num_prompts=1, group_size=1, num_denoising_steps=4)
    policy = small_denoising_policy(env)
    with FlopCounterMode(display=False) as counter:
        policy.generate(env.reset())
    meter = Meter()
    policy.world_model = meter.fake(policy.world_model)
    one = Batch(num_videos=1, rollout_batch_size=1, micro_batch_size=1, num_epochs=1, num_log_probs=1)
    rollout, log_probs, update = policy_phases(policy, meter, one)
    assert rollout.flops == counter.get_total_flops()
    many = Batch(num_videos=12, rollout_batch_size=5, micro_batch_size=3, num_epochs=2, num_log_probs=2)
    rollouts, all_log_probs, updates = policy_phases(policy, meter, many, num_learners=2)
    assert rollouts.flops == 12 * rollout.flops
    assert all_log_probs.flops == 2 * 12 * log_probs.flops
    assert updates.flops == 2 * 2 * 12 * update.flops and update.flops > 2 * log_probs.flops
    assert rollouts.peak_bytes(5) - rollouts.peak_bytes(4) == rollout.video_bytes
    assert updates.video_bytes == 0  # the cache is gone by then


def test_the_table_says_what_fits():
    phases = [Phase("rollout", 4e12, 10**9, 10**8, 1e13), Phase("update", 8e12, 10**10)]
    estimate = Estimate("title", {"world model": 10**9}, {"weights": 4 * 10**9}, phases, 400, 300, 10)
    assert estimate.peak_bytes == 4 * 10**9 + 31 * 10**9
    assert estimate.largest_rollout_batch(24e9) == 190 and estimate.largest_rollout_batch(13e9) == 0
    device = Device("one", 24e9, products=1e12, bandwidth=1e12)
    # The rollout is bound by reading, the update by arithmetic.
    assert [device.seconds(phase) for phase in phases] == pytest.approx([1e13 / 6e11, 8 / 0.4])
    text = estimate_table(estimate)
    assert "at most 35.00 GB at once" in text and "may be up to 190 in 24 GB, 400 in 80 GB" in text
    assert [device.name for device in DEVICES][0] in text


EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))
QUICK = ("identity", "identity_nfd")


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in EXPERIMENTS]
)
def test_every_experiment_has_a_dry_run(experiment, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"experiment={experiment}", "trainer.dry_run=true"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{experiment.replace('demo_nfd', 'demo-nfd')}: an iteration of")
    assert "GB at once" in text and "hours of" in text and "H100" in text
    assert not list(tmp_path.iterdir())  # nothing was trained


def test_a_trainer_makes_no_dry_run():
    with pytest.raises(ValueError, match="a trainer trains"):
        TrainerConfig(num_iterations=1, dry_run=True)
