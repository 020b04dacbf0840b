"""The training loop on the identity world: health, exact shortcuts, and runs that are killed.

Run as a script, this file is one training run, which the tests start and kill: ``test_trainer.py
RUN_DIR``.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch.distributions import Categorical
from torchrl.record.loggers import CSVLogger

from rlir_agents.advantages import SequenceCredit
from rlir_agents.checkpoint_folder import CheckpointFolder, read_tree, write_tree
from rlir_agents.finite_checks import NonFiniteError
from rlir_agents.learning_rate import cosine_with_warmup
from rlir_agents.losses import GRPOLoss
from rlir_agents.minibatches import select_rollouts, shuffled_minibatches
from rlir_agents.rollouts import collect_stepwise
from rlir_agents.trainer import Trainer
from rlir_agents.trainer_config import TrainerConfig
from rlir_env.testing import IDENTITY_SPEC, identity_world

NUM_CODES = 6
NUM_SLOTS = IDENTITY_SPEC.num_slots


class TablePolicy(TensorDictModuleBase):
    """One row of logits per class of the slot that a token shows; draws from the global generator.

    Step mode and sequence mode are the same function of the state. That it draws from the global
    generator is bad manners, and here on purpose: a resumed run must restore that too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = ["game_action", "frame_index"]
        self.out_keys = ["action", "action_log_prob"]
        self.logits = torch.nn.Parameter(torch.zeros(NUM_SLOTS, max(IDENTITY_SPEC.num_classes), NUM_CODES))

    def get_dist(self, tensordict: TensorDictBase) -> Categorical:
        """Distribution of the tokens of a frame, [..., k]; token i shows slot i."""
        line = tensordict["frame_index"].unsqueeze(-1) - 1  # [..., 1, 1]
        pressed = tensordict["game_action"].take_along_dim(line, dim=-2).squeeze(-2)  # [..., S]
        return Categorical(logits=self.logits[torch.arange(NUM_SLOTS), pressed])

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Sample."""
        dist = self.get_dist(tensordict)
        action = dist.sample()
        tensordict["action"] = action
        tensordict["action_log_prob"] = dist.log_prob(action)
        return tensordict


def momentum_sgd(parameters) -> torch.optim.SGD:
    """For comparisons up to rounding: AdamW turns a gradient of 1e-9 into a step of full size."""
    return torch.optim.SGD(parameters, lr=2.0, momentum=0.9, weight_decay=0.01)


def adamw(parameters) -> torch.optim.AdamW:
    """What the paper uses."""
    return torch.optim.AdamW(parameters, lr=0.1)


def make_trainer(
    run_dir: Path, *, policy=None, loss_kwargs=None, reference=None, optimizer_fn=adamw, logger=None, **config
) -> Trainer:
    """A small run: 4 prompts, group size 4, 3 frames of 2 tokens."""
    torch.manual_seed(0)
    env = identity_world().env(num_prompts=4, group_size=4, tokens_per_step="frame", seed=3)
    policy = policy or TablePolicy()
    optimizer = optimizer_fn(policy.parameters())
    config = TrainerConfig(**{"num_iterations": 6, "checkpoint_every": 2, **config})
    return Trainer(
        env,
        policy,
        GRPOLoss(policy, **(loss_kwargs or {})),
        SequenceCredit(),
        optimizer,
        config,
        run_dir,
        scheduler=cosine_with_warmup(optimizer, config.num_iterations, warmup_iterations=1),
        reference_policy=reference,
        logger=logger,
        evaluate=lambda policy: {"eval/logit": policy.logits.max().item()},
        breakdown_names={"frame_match": IDENTITY_SPEC.names},
        collect_fn=collect_stepwise,  # the fused collector asks for a world model with a cache
    )


def weights(trainer: Trainer) -> torch.Tensor:
    """The policy's parameters."""
    return trainer.policy.logits.detach()


def csv_files(run_dir: Path) -> dict[str, str]:
    """The log, without the figures that cannot repeat: seconds."""
    folder = run_dir / "metrics" / "scalars"
    paths = [path for path in folder.rglob("*.csv") if path.parent.name != "seconds"]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_health_figures_of_one_iteration(tmp_path):
    figures = make_trainer(tmp_path).run_iteration()
    # Before the first step nothing has changed, and nothing is off-policy.
    assert figures["train/ratio_at_first_update"] == 1.0
    assert figures["train/clip_fraction"] == 0.0
    assert abs(figures["train/log_prob_mismatch"]) < 1e-6
    # All logits are zero: the entropy is that of 6 equally likely codes.
    assert figures["train/entropy"] == pytest.approx(torch.tensor(6.0).log().item())
    # The reward is the mean match of the two slots.
    match = [figures[f"reward/frame_match/{name}"] for name in IDENTITY_SPEC.names]
    assert figures["reward/mean"] == pytest.approx(sum(match) / 2, abs=1e-6)
    assert 0 < figures["reward/mean"] < 1 and figures["reward/group_spread"] > 0
    assert {f"seconds/{part}" for part in ("rollout", "reward", "score", "update")} <= set(figures)
    assert all(value >= 0 for key, value in figures.items() if key.startswith("seconds/"))
    assert figures["train/grad_norm"] > 0


def test_a_logger_is_told_and_the_run_keeps_its_own_record(tmp_path):
    told = CSVLogger("other", log_dir=str(tmp_path))
    trainer = make_trainer(tmp_path / "run", logger=told)
    trainer.train()
    assert "score" not in vars(trainer.env)  # what was timed is as it was
    record = csv_files(tmp_path / "run")
    assert "reward/mean.csv" in record
    theirs = tmp_path / "other" / "scalars" / "reward" / "mean.csv"
    assert theirs.read_text() == record["reward/mean.csv"]


def test_same_seeds_same_run(tmp_path):
    results = []
    for name in ("a", "b"):
        trainer = make_trainer(tmp_path / name)
        trainer.train()
        results.append(weights(trainer))
    assert torch.equal(*results)
    assert csv_files(tmp_path / "a") == csv_files(tmp_path / "b")


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5])
def test_micro_batches_add_up_to_the_minibatch(tmp_path, micro_batch_size):
    results = []
    for size in (None, micro_batch_size):
        config = {"num_minibatches": 2, "num_epochs": 2, "micro_batch_size": size}
        trainer = make_trainer(tmp_path / str(size), optimizer_fn=momentum_sgd, **config)
        trainer.run_iteration()
        results.append(weights(trainer))
    torch.testing.assert_close(*results)


def test_dropping_rollouts_without_advantage_changes_nothing(tmp_path):
    config = {"optimizer_fn": momentum_sgd, "num_epochs": 3, "num_minibatches": 2}
    everything = make_trainer(tmp_path / "a", **config)
    worth_it = make_trainer(tmp_path / "b", drop_zero_advantage=True, **config)
    without_spread = []
    for iteration in range(6):
        for trainer in (everything, worth_it):
            torch.manual_seed(iteration)  # the same samples for both
            figures = trainer.run_iteration()
        without_spread.append(figures["train/groups_without_spread"])
    assert max(without_spread) > 0  # or nothing would have been dropped
    torch.testing.assert_close(weights(worth_it), weights(everything))


def test_several_epochs_move_away_from_the_behaviour_policy(tmp_path):
    figures = make_trainer(tmp_path, num_epochs=4, num_minibatches=2).run_iteration()
    assert figures["train/ratio_at_first_update"] == 1.0
    assert figures["train/max_ratio"] > 1.0 and figures["train/clip_fraction"] > 0.0


def test_the_kl_to_a_reference_starts_at_zero_and_is_logged(tmp_path):
    reference = TablePolicy()
    trainer = make_trainer(tmp_path, reference=reference, loss_kwargs={"kl_coeff": 0.1})
    first, second = trainer.run_iteration(), trainer.run_iteration()
    assert first["train/kl_to_ref"] == 0.0 < second["train/kl_to_ref"]


def test_the_reference_follows_the_policy_at_the_set_pace(tmp_path):
    def leashed(name: str, **config) -> Trainer:
        settings = {"reference": TablePolicy(), "loss_kwargs": {"kl_coeff": 0.1}, "num_iterations": 5, **config}
        return make_trainer(tmp_path / name, **settings)

    whole = leashed("whole", sync_reference_every=2)
    kl, references = [], []
    for _ in range(5):
        kl.append(whole._iterate_and_keep()["train/kl_to_ref"])
        references.append(whole.reference_policy.logits.clone())
    assert kl[0] == kl[2] == kl[4] == 0.0 < min(kl[1], kl[3])
    assert torch.equal(references[1], references[2]) and not torch.equal(references[2], references[3])
    part = leashed("part", sync_reference_every=2)
    for _ in range(3):  # the newest checkpoint, of iteration 2, is right behind a change of reference
        part._iterate_and_keep()
    again = leashed("part", sync_reference_every=2)
    again.train()
    assert torch.equal(weights(again), weights(whole))
    assert torch.equal(again.reference_policy.logits, references[-1])
    with pytest.raises(ValueError, match="pass reference_policy="):
        leashed("none", sync_reference_every=2, reference=None)


def test_collection_log_prob_can_be_used_as_it_is(tmp_path):
    trainer = make_trainer(tmp_path, recompute_log_prob=False)
    figures = trainer.run_iteration()
    assert "train/log_prob_mismatch" not in figures
    assert figures["train/ratio_at_first_update"] == pytest.approx(1.0)


def test_one_update_takes_its_own_log_prob_where_collection_wrote_none(tmp_path):
    written = make_trainer(tmp_path / "written", recompute_log_prob=False)
    without = make_trainer(tmp_path / "without", recompute_log_prob=False)
    collected = without._collect_fn
    without._collect_fn = lambda env, policy: collected(env, policy).exclude("action_log_prob")
    for trainer in (written, without):
        torch.manual_seed(0)
        assert trainer.run_iteration()["train/ratio_at_first_update"] == pytest.approx(1.0)
    torch.testing.assert_close(weights(without), weights(written))
    silent = TablePolicy()
    silent.out_keys = ["action"]
    with pytest.raises(ValueError, match="2 updates a batch .*recompute_log_prob=true"):
        make_trainer(tmp_path / "several", policy=silent, recompute_log_prob=False, num_epochs=2)


def test_evaluation_before_every_n_and_after_and_the_best_is_kept(tmp_path):
    trainer = make_trainer(tmp_path, num_iterations=5, evaluate_every=2, keep_best_by="eval/logit")
    values = iter([0.0, 3.0, 1.0, 2.0])
    seen = []

    def evaluate(policy):
        seen.append(policy.logits.detach().clone())
        return {"eval/logit": next(values)}

    trainer.evaluate = evaluate
    trainer.train()
    rows = (tmp_path / "metrics/scalars/eval/logit.csv").read_text().split()
    assert rows == ["0,0.0", "2,3.0", "4,1.0", "5,2.0"]
    assert torch.equal(load_file(tmp_path / "best_policy.safetensors")["logits"], seen[1])
    assert torch.equal(load_file(tmp_path / "policy.safetensors")["logits"], weights(trainer))


def test_the_mean_of_the_weights_is_what_is_evaluated_and_left(tmp_path):
    trainer = make_trainer(tmp_path / "mean", ema_decay=0.75, evaluate_every=1, num_iterations=3, checkpoint_every=1)
    mean = weights(trainer).clone()
    for _ in range(3):
        trainer._iterate_and_keep()
        mean = 0.75 * mean + 0.25 * weights(trainer)
    trainer.train()  # nothing is left to do but to leave the result
    torch.testing.assert_close(load_file(tmp_path / "mean" / "policy.safetensors")["logits"], mean)
    torch.testing.assert_close(trainer.result.logits, mean)
    plain = make_trainer(tmp_path / "plain", num_iterations=3)
    plain.train()
    assert torch.equal(weights(plain), weights(trainer))  # the mean has no say in what is learnt
    rows = (tmp_path / "mean/metrics/scalars/eval/logit.csv").read_text().split()
    assert float(rows[-1].split(",")[1]) == pytest.approx(mean.max().item())


def test_a_resumed_run_goes_on_with_its_mean(tmp_path):
    whole = make_trainer(tmp_path / "whole", ema_decay=0.5, num_iterations=4)
    whole.train()
    part = make_trainer(tmp_path / "part", ema_decay=0.5, num_iterations=4)
    for _ in range(2):
        part._iterate_and_keep()
    assert part.run_folder.checkpoints.newest() is not None
    again = make_trainer(tmp_path / "part", ema_decay=0.5, num_iterations=4)
    again.train()
    assert torch.equal(again.result.logits, whole.result.logits)
    with pytest.raises(ValueError, match="ema_decay=1.0: give a number between 0 and 1"):
        make_trainer(tmp_path, ema_decay=1.0)


def test_a_nan_in_the_reward_is_named_and_the_last_checkpoint_stays(tmp_path):
    trainer = make_trainer(tmp_path)
    read = trainer.env.reward_fn.forward

    def broken(generation):
        reward = read(generation)
        if trainer.iteration == 3:
            reward["reward"][5] = float("nan")
        return reward

    trainer.env.reward_fn.forward = broken
    with pytest.raises(NonFiniteError) as error:
        trainer.train()
    message = str(error.value)
    assert "iteration 4" in message and "loss_objective" in message
    assert "next.reward (1 of 48)" in message and "iteration_00000002" in message
    folders = [path.name for path in trainer.run_folder.checkpoints.complete()]
    assert folders == ["iteration_00000000", "iteration_00000002"]
    state = read_tree(trainer.run_folder.checkpoints.newest())["state"]
    assert state["modules"]["policy"]["logits"].isfinite().all()


def test_a_nan_in_a_gradient_names_the_parameter(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.policy.logits.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(trainer).clone()
    with pytest.raises(NonFiniteError, match="logits"):
        trainer.train()
    assert torch.equal(weights(trainer), before)


def test_a_run_is_not_resumed_with_another_config(tmp_path):
    make_trainer(tmp_path, num_iterations=2).train()
    with pytest.raises(ValueError, match="num_epochs"):
        make_trainer(tmp_path, num_iterations=2, num_epochs=2).train()


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    make_trainer(tmp_path).train()
    log, policy = csv_files(tmp_path), (tmp_path / "policy.safetensors").read_bytes()
    assert make_trainer(tmp_path).train() == {}
    assert csv_files(tmp_path) == log
    assert (tmp_path / "policy.safetensors").read_bytes() == policy


def test_config_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="evaluate_every"):
        TrainerConfig(num_iterations=1, keep_best_by="eval/f1")
    with pytest.raises(ValueError, match="num_epochs"):
        TrainerConfig(num_iterations=1, num_epochs=0, rollout_batch_size=0)
    with pytest.raises(ValueError, match="evaluate_every, sync_reference_every: must be at least 0"):
        TrainerConfig(num_iterations=1, evaluate_every=-1, sync_reference_every=-1)
    for norm in (-1.0, 0.0, float("nan"), None):
        with pytest.raises(ValueError, match="max_grad_norm=.*: must be above 0"):
            TrainerConfig(num_iterations=1, max_grad_norm=norm)
    with pytest.raises(ValueError, match="must divide the 4 prompts"):
        make_trainer(tmp_path, num_minibatches=3)
    with pytest.raises(ValueError, match="kl_coeff=-0.1: must be at least 0"):
        make_trainer(tmp_path, loss_kwargs={"kl_coeff": -0.1})
    with pytest.raises(ValueError, match="keep_best_by='f1': the evaluation gives eval/logit"):
        make_trainer(tmp_path, evaluate_every=1, keep_best_by="f1").train()


def test_siblings_that_are_copies_are_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    collected = trainer._collect_fn

    def copies(env, policy):
        rollout = collected(env, policy)
        rollout["action"] = rollout["action"][:, :1].expand_as(rollout["action"]).clone()
        return rollout

    trainer._collect_fn = copies
    before = weights(trainer).clone()
    with pytest.raises(ValueError, match="the same video.*is_initial_noise_shared=false"):
        trainer.run_iteration()
    assert torch.equal(weights(trainer), before)


def test_minibatches_hold_whole_groups_and_every_rollout_once():
    generator = torch.Generator().manual_seed(0)
    batches = list(shuffled_minibatches(6, 4, 3, generator))
    assert [len(rows) for rows in batches] == [8, 8, 8]
    for rows in batches:
        assert (torch.bincount(rows // 4, minlength=6) % 4 == 0).all()
    assert sorted(torch.cat(batches).tolist()) == list(range(24))


def test_selected_rollouts_keep_constants_as_views(tmp_path):
    trainer = make_trainer(tmp_path)
    rollouts = trainer.env.rollout(3, trainer.policy).detach()  # [16, 3]
    prompt = rollouts["game_action"][:, :1].clone()
    rollouts["game_action"] = prompt.expand(-1, 3, -1, -1)
    rows = torch.tensor([5, 0, 7])
    chosen = select_rollouts(rollouts, rows)
    assert chosen["game_action"].stride(1) == 0
    assert (chosen == rollouts[rows]).all()


def test_cosine_with_warmup_by_hand():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = cosine_with_warmup(optimizer, 6, warmup_iterations=2, final_fraction=0.5)
    rates = []
    for _ in range(7):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # Warm-up 1/2, 2/2 of the peak; then 1/2 + 1/2 (1 + cos(pi i / 4)) / 2 for i = 0..4, times 2.
    half = 0.5**0.5
    expected = [1.0, 2.0, 2.0, 1.5 + half / 2, 1.5, 1.5 - half / 2, 1.0]
    assert rates == pytest.approx(expected)
    with pytest.raises(ValueError, match="warmup_iterations=6"):
        cosine_with_warmup(optimizer, 6, warmup_iterations=6)


def test_a_run_that_holds_its_rate_is_what_a_longer_one_begins_with():
    def rates(num_iterations, decay_iterations):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        scheduler = cosine_with_warmup(
            optimizer, num_iterations, warmup_iterations=2, decay_iterations=decay_iterations
        )
        for _ in range(num_iterations):
            yield scheduler.get_last_lr()[0]
            optimizer.step()
            scheduler.step()

    assert list(rates(5, 2)) == pytest.approx([1.0, 2.0, 2.0, 2.0, 1.0])
    assert list(rates(9, 2)) == pytest.approx([1.0, *7 * [2.0], 1.0])
    assert list(rates(5, 8)) == list(rates(5, 3)) == list(rates(5, None))
    with pytest.raises(ValueError, match="decay_iterations=0"):
        next(rates(5, 0))


def test_a_checkpoint_tree_comes_back_exactly(tmp_path):
    shared = torch.randn(3, 2)
    tree = {
        "state": {0: {"step": torch.tensor(3.0)}, 1: {"step": torch.tensor(4.0)}},
        "views": [shared, shared.T, shared[:, 1]],
        "numbers": [0.1, 1 / 3, None, True, "text", float("-inf")],
    }
    write_tree(tmp_path, tree)
    back = read_tree(tmp_path)
    assert list(back["state"]) == [0, 1] and back["numbers"] == tree["numbers"]
    for ours, theirs in zip(back["views"], tree["views"], strict=True):
        assert torch.equal(ours, theirs)


def test_only_complete_checkpoints_count_and_the_newest_two_stay(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for iteration in (2, 4, 6):
        folder.save(iteration, {"iteration": iteration})
    (tmp_path / ".unfinished_iteration_00000008").mkdir()
    assert [path.name for path in folder.complete()] == ["iteration_00000004", "iteration_00000006"]
    assert read_tree(folder.newest()) == {"iteration": 6}
    folder.save(8, {"iteration": 8})
    assert not list(tmp_path.glob(".unfinished_*"))


NUM_KILLABLE_ITERATIONS = 30


def train_with_pauses(run_dir: Path, seconds: float) -> None:
    """One run with a pause at every evaluation, so that a kill finds it at work."""
    trainer = make_trainer(run_dir, num_iterations=NUM_KILLABLE_ITERATIONS, checkpoint_every=4, evaluate_every=3)
    evaluate = trainer.evaluate

    def slow(policy):
        time.sleep(seconds)
        return evaluate(policy)

    trainer.evaluate = slow
    trainer.train()


def rows_logged(run_dir: Path) -> int:
    """How many iterations the log has."""
    path = run_dir / "metrics/scalars/reward/mean.csv"
    return path.read_text().count("\n") if path.exists() else 0


def train_until_killed(run_dir: Path, num_rows: int, delay: float) -> None:
    """Run in a process of its own; SIGKILL when the log has so many rows, plus a moment."""
    run = subprocess.Popen(
        [sys.executable, __file__, str(run_dir)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.DEVNULL,  # the progress bar
    )
    while rows_logged(run_dir) < num_rows:
        assert run.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    time.sleep(delay)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL


@pytest.mark.parametrize("num_kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_ends_bitwise_equal_to_an_undisturbed_one(tmp_path, num_kills):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train_with_pauses(undisturbed, seconds=0.0)
    dice = random.Random(num_kills)
    for moment in sorted(dice.sample(range(1, NUM_KILLABLE_ITERATIONS - 6), num_kills)):
        train_until_killed(killed, moment, delay=dice.uniform(0.0, 0.1))
        assert not (killed / "policy.safetensors").exists()
    train_with_pauses(killed, seconds=0.0)

    expected = (undisturbed / "policy.safetensors").read_bytes()
    assert (killed / "policy.safetensors").read_bytes() == expected
    assert csv_files(killed) == csv_files(undisturbed)
    assert rows_logged(killed) == NUM_KILLABLE_ITERATIONS


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_with_pauses(Path(sys.argv[1]), seconds=0.1)
