"""It works: every algorithm learns the identity world, and a reward that must rise does.

The identity world is solved by copying the game action's word into the picture; a world model of MineWorld's
architecture with 30,000 weights learns it in seconds. To add an algorithm, add it to `ALGORITHMS`.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.objectives import ClipPPOLoss, LossModule

from rlir_agents.advantages import FramewiseCredit, SequenceCredit
from rlir_agents.generalized_advantage import GeneralizedAdvantage
from rlir_agents.learning_rate import cosine_with_warmup
from rlir_agents.losses import GRPOLoss
from rlir_agents.policies import TokenPolicy, TokenValue
from rlir_agents.trainer import Trainer
from rlir_agents.trainer_config import TrainerConfig
from rlir_agents.world_models import MineWorld, MineWorldConfig
from rlir_env.envs import TokenGenerationEnv
from rlir_env.rewards import RewardFn
from rlir_env.testing import IDENTITY_SPEC, identity_world

Algorithm = tuple[LossModule, Callable[[TensorDictBase], TensorDictBase]]


class Brightness(RewardFn):
    """Mean brightness of a frame: a reward that must rise, whatever the reader is worth."""

    def frame_rewards(self, generation: TensorDictBase) -> dict[str, torch.Tensor]:
        """Brightness in [0, 1] of every generated frame."""
        return {"frame_reward": generation["frames"][:, 1:].mean((-3, -2, -1))}


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


def make_policy(env: TokenGenerationEnv) -> TokenPolicy:
    """A MineWorld just large enough."""
    torch.manual_seed(0)
    config = MineWorldConfig(
        num_codes=env.num_codes,
        vocab_size=env.num_codes + env.num_word_ids,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=env.layout.sequence_length,
        initializer_range=0.1,  # 0.02 is for wide models: this narrow one would hardly see its input
    )
    return TokenPolicy(MineWorld(config), env.layout, tokens_per_step="frame")


def train(
    env: TokenGenerationEnv, algorithm: Callable[[TokenPolicy], Algorithm], run_dir: Path, **numbers
) -> tuple[Trainer, dict[str, float]]:
    """Train for 60 iterations at most; the figures of the last one."""
    policy = make_policy(env)
    loss, advantage = algorithm(policy)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    config = TrainerConfig(**{"num_iterations": 60, "checkpoint_every": 60, **numbers})
    scheduler = cosine_with_warmup(optimizer, config.num_iterations)
    trainer = Trainer(
        env, policy, loss, advantage, optimizer, config, run_dir, scheduler=scheduler
    )
    return trainer, trainer.train()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_the_identity_world_is_learnt(algorithm, tmp_path):
    # By chance a reading is right once in three (move) or two (jump): 0.42 on average.
    env = identity_world().env(num_prompts=8, group_size=8, tokens_per_step="frame")
    _, figures = train(env, algorithm, tmp_path, num_epochs=2, num_minibatches=2)
    rewards = (tmp_path / "metrics/scalars/reward/mean.csv").read_text().split()
    assert float(rewards[0].split(",")[1]) < 0.6
    assert figures["reward/mean"] >= 0.95
    assert figures["train/ratio_at_first_update"] == pytest.approx(1.0, abs=1e-5)
    assert figures["train/log_prob_mismatch"] < 1e-5


def test_brightness_rises(tmp_path):
    world = identity_world()
    env = TokenGenerationEnv(
        world.prompts["dev"],
        world.tokenizer,
        Brightness(),
        num_prompts=4,
        group_size=8,
        tokens_per_step="frame",
        num_word_ids=world.num_word_ids,
    )
    _, figures = train(env, grpo, tmp_path, num_iterations=20)
    # Codes 0..5 are greys 0..1: 0.5 by chance.
    assert figures["reward/mean"] > 0.9


def test_the_per_slot_match_explains_the_reward(tmp_path):
    env = identity_world().env(num_prompts=2, group_size=4, tokens_per_step="frame")
    policy = make_policy(env)
    loss, advantage = grpo(policy)
    trainer = Trainer(
        env,
        policy,
        loss,
        advantage,
        torch.optim.AdamW(loss.parameters()),
        TrainerConfig(num_iterations=1),
        tmp_path,
        breakdown_names={"frame_match": IDENTITY_SPEC.names},
    )
    figures = trainer.run_iteration()
    match = [figures[f"reward/frame_match/{name}"] for name in IDENTITY_SPEC.names]
    assert figures["reward/mean"] == pytest.approx(sum(match) / len(match), abs=1e-6)
