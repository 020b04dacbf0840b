"""It works: every algorithm learns the identity world, and a reward that must rise does.

The identity world is solved by copying the game action's word into the picture; a world model of
MineWorld's architecture with 30,000 weights learns it in seconds. To add an algorithm, add it to
`ALGORITHMS`.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_policies import small_policy
from tensordict import TensorDictBase
from torchrl.objectives import ClipPPOLoss, LossModule

from rlir_agents.advantages import FramewiseCredit, SequenceCredit
from rlir_agents.generalized_advantage import GeneralizedAdvantage
from rlir_agents.learning_rate import cosine_with_warmup
from rlir_agents.losses import GRPOLoss
from rlir_agents.policies import TokenPolicy, TokenValue
from rlir_agents.trainer import Trainer
from rlir_agents.trainer_config import TrainerConfig
from rlir_env.envs import TokenGenerationEnv
from rlir_env.rewards import BrightnessReward
from rlir_env.testing import identity_world

Algorithm = tuple[LossModule, Callable[[TensorDictBase], TensorDictBase]]


def grpo(policy: TokenPolicy) -> Algorithm:
    """The paper's: clipped loss, one advantage per video."""
    return GRPOLoss(policy), SequenceCredit()


def framewise_grpo(policy: TokenPolicy) -> Algorithm:
    """The same loss, credit by frame."""
    return GRPOLoss(policy), FramewiseCredit()


def stock_clipped_loss(policy: TokenPolicy) -> Algorithm:
    """GRPO out of TorchRL's own loss."""
    loss = ClipPPOLoss(policy, None, critic_coeff=None, functional=False, entropy_bonus=False)
    return loss, SequenceCredit()


def ppo(policy: TokenPolicy) -> Algorithm:
    """TorchRL's clipped loss with a critic of the same architecture."""
    critic = TokenValue(copy.deepcopy(policy.world_model))
    loss = ClipPPOLoss(policy, critic, functional=False, entropy_bonus=False)
    return loss, GeneralizedAdvantage(critic)


ALGORITHMS = [grpo, framewise_grpo, stock_clipped_loss, ppo]


def make_trainer(
    env: TokenGenerationEnv, algorithm: Callable[[TokenPolicy], Algorithm], run_dir: Path, **numbers
) -> Trainer:
    """A run of 40 iterations, unless told otherwise."""
    policy = small_policy(env)
    loss, advantage = algorithm(policy)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    config = TrainerConfig(**{"num_iterations": 40, "checkpoint_every": 40, **numbers})
    return Trainer(
        env,
        policy,
        loss,
        advantage,
        optimizer,
        config,
        run_dir,
        scheduler=cosine_with_warmup(optimizer, config.num_iterations),
        evaluate=lambda policy: {},
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_the_identity_world_is_learnt(algorithm, tmp_path):
    # By chance a reading is right once in three (move) or twice in four (jump): 0.42 on average.
    env = identity_world().env(num_prompts=8, group_size=8, tokens_per_step="frame")
    trainer = make_trainer(env, algorithm, tmp_path, num_epochs=2, num_minibatches=2)
    before = trainer.run_iteration()
    assert before["reward/mean"] < 0.6
    assert before["train/ratio_at_first_update"] == pytest.approx(1.0, abs=1e-5)
    after = trainer.train()
    assert after["reward/mean"] >= 0.95
    assert after["train/log_prob_mismatch"] < 1e-5


def test_brightness_rises(tmp_path):
    world = identity_world()
    env = TokenGenerationEnv(
        world.prompts["dev"],
        world.tokenizer,
        BrightnessReward(),
        num_prompts=4,
        group_size=8,
        tokens_per_step="frame",
        num_word_ids=world.num_word_ids,
    )
    trainer = make_trainer(env, grpo, tmp_path, num_iterations=20, num_epochs=2)
    # Codes 0..5 are greys 0..1: 0.5 by chance.
    assert trainer.run_iteration()["reward/mean"] < 0.7
    assert trainer.train()["reward/mean"] > 0.9


@pytest.mark.parametrize("algorithm", [framewise_grpo, ppo], ids=lambda algorithm: algorithm.__name__)
def test_an_interrupted_run_goes_on_bitwise(algorithm, tmp_path):
    env = {"num_prompts": 2, "group_size": 4, "tokens_per_step": "frame"}
    numbers = {"num_iterations": 6, "checkpoint_every": 2, "evaluate_every": 5}
    weights = []
    for run in ("undisturbed", "interrupted"):
        trainer = make_trainer(identity_world().env(**env), algorithm, tmp_path / run, **numbers)
        if run == "interrupted":
            trainer.evaluate = interrupt_at(trainer, iteration=5)
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
            fresh = identity_world().env(**env)
            trainer = make_trainer(fresh, algorithm, tmp_path / run, **numbers)
        trainer.train()
        weights.append(trainer.loss.state_dict())
    assert len(weights[0]) > 10
    for key, value in weights[0].items():
        assert torch.equal(weights[1][key], value), key


def interrupt_at(trainer: Trainer, iteration: int) -> Callable[[TokenPolicy], dict[str, float]]:
    """An evaluation that is interrupted after so many iterations."""

    def evaluate(policy):
        if trainer.iteration == iteration:
            raise KeyboardInterrupt
        return {}

    return evaluate
