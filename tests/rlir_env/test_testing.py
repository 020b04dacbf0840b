"""The public test helpers: the identity world reads itself, the checker finds breaches."""

import math

import pytest
import torch

from rlir_env.envs import TokenGenerationEnv
from rlir_env.game_actions import MINECRAFT
from rlir_env.testing import (
    IDENTITY_SPEC,
    IdentityInverseDynamics,
    IdentityTokenizer,
    RandomTokenPolicy,
    check_generation_env,
    identity_world,
)

WORLD = identity_world()


def broken_env(**methods):
    """An env class with some methods replaced."""
    cls = type("Broken", (TokenGenerationEnv,), methods)
    env = WORLD.env()
    return cls(
        env.prompts,
        env.tokenizer,
        env.reward_fn,
        num_prompts=2,
        group_size=2,
        tokens_per_step="frame",
        num_word_ids=WORLD.num_word_ids,
    )


def test_tokenizer_round_trip_through_uint8():
    tokenizer = IdentityTokenizer(num_codes=128, grid_size=(2, 3), patch_size=2)
    codes = torch.randint(128, (5, 7, 6), generator=torch.Generator().manual_seed(0))
    frames = tokenizer.decode(codes)
    assert frames.shape == (5, 7, 3, 4, 6) and tokenizer.frame_size == (4, 6)
    assert (tokenizer.encode(frames) == codes).all()
    assert (tokenizer.encode((frames * 255).round().to(torch.uint8)) == codes).all()


def test_idm_reads_the_frame_after_the_action():
    tokenizer = IdentityTokenizer()
    idm = IdentityInverseDynamics(tokenizer)
    # Token 0 shows `move` modulo 3, token 1 `jump` modulo 2: 5 -> 2, 4 -> 0; 1 -> 1, 3 -> 1.
    frames = tokenizer.decode(torch.tensor([[[0, 0], [5, 4], [1, 3]]]))
    assert idm.infer_game_actions(frames).tolist() == [[[2, 0], [1, 1]]]
    # MineWorld's protocol drops the first frame: reading j is of generated frame j + 1, the last
    # of itself.
    assert idm.infer_game_actions(frames[:, 1:], "mineworld").tolist() == [[[1, 1], [1, 1]]]
    log_probs = idm.log_probs(frames)
    # One vote and 0.01 free ones a class: 1.01 / 1.03 of three classes; `jump` has no third class.
    assert log_probs[0, 0, 0, 2].item() == pytest.approx(math.log(1.01 / 1.03), rel=1e-4)
    assert log_probs[0, 0, 1, 2].item() == -math.inf
    assert log_probs[..., 0, :].exp().sum(-1).allclose(torch.ones(2))


def test_the_world_fits_other_games():
    world = identity_world(MINECRAFT, num_codes=11, grid_size=(3, 3), num_frames=16)
    env = world.env(num_prompts=2, tokens_per_step="frame")
    check_generation_env(env)
    assert env.layout.sequence_length == 16 * 9 + 15 * 9
    assert (env.reset()["game_action"] < torch.tensor(MINECRAFT.num_classes)).all()


def test_impossible_worlds_are_refused():
    with pytest.raises(ValueError, match="cannot show 9 slots"):
        identity_world(MINECRAFT)
    with pytest.raises(ValueError, match="cannot show 3 classes"):
        identity_world(IDENTITY_SPEC, num_codes=2)
    with pytest.raises(ValueError, match=r"2\.\.128"):
        IdentityTokenizer(num_codes=129)


def test_target_frames_show_the_game_actions():
    prompt = WORLD.prompts["dev"].get(torch.arange(16))
    video = torch.cat([prompt.context_frames, prompt.target_frames], dim=1)
    assert (WORLD.coach.infer_game_actions(video) == prompt.game_action).all()


def test_random_policy_is_uniform_and_reproducible():
    env = WORLD.env(num_prompts=16, group_size=8, tokens_per_step="frame")
    rollouts = []
    for _ in range(2):
        env.set_seed(0)
        rollouts.append(env.rollout(3, RandomTokenPolicy(6, tokens_per_step=2, seed=1)))
    assert (rollouts[0] == rollouts[1]).all()
    counts = rollouts[0]["action"].flatten().bincount(minlength=6) / rollouts[0]["action"].numel()
    assert (counts - 1 / 6).abs().max() < 0.05
    # Chance reads 1/3 of `move` and 1/2 of `jump`: 5/12 of the slots. 128 videos: sd below 0.02.
    assert rollouts[0]["next", "reward"][:, -1].mean().item() == pytest.approx(5 / 12, abs=0.06)


def test_checker_finds_an_impure_step():
    def _step(self, tensordict):
        self.count = getattr(self, "count", 0) + 1
        result = TokenGenerationEnv._step(self, tensordict)
        result["token"] = result["token"].clone()
        result["token"][:, 0] = self.count % 2
        return result

    with pytest.raises(AssertionError, match="deterministic|pure"):
        check_generation_env(broken_env(_step=_step))


def test_checker_finds_a_step_that_changes_its_input():
    def _step(self, tensordict):
        result = TokenGenerationEnv._step(self, tensordict)
        tensordict["token"][:, -1] = 3
        return result

    with pytest.raises(AssertionError, match="changed its input|position is the next"):
        check_generation_env(broken_env(_step=_step))


def test_checker_finds_an_early_reward():
    def no_reward(self, num_rows):
        zeros = TokenGenerationEnv.no_reward(self, num_rows)
        return zeros.apply(torch.ones_like)

    with pytest.raises(AssertionError, match="reward is terminal"):
        check_generation_env(broken_env(no_reward=no_reward))


def test_checker_finds_missing_words():
    with pytest.raises(AssertionError, match="words stand behind their frame"):
        check_generation_env(broken_env(_append_word=lambda self, *_: None))


def test_checker_finds_equal_siblings():
    def _state(self, prompt_index, episode_seed, group_id):
        return TokenGenerationEnv._state(self, prompt_index, episode_seed * 0, group_id)

    with pytest.raises(AssertionError, match="siblings differ"):
        check_generation_env(broken_env(_state=_state))


class NormedTokenizer(IdentityTokenizer):
    """Frames pass a batch norm, which in training mode counts what it sees."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3, affine=False)

    def decode_codes(self, codes):
        return super().decode_codes(codes) + 0 * self.norm(super().decode_codes(codes))


def test_a_training_env_stays_frozen():
    env = TokenGenerationEnv(
        WORLD.prompts["dev"], NormedTokenizer(), WORLD.env().reward_fn, num_word_ids=WORLD.num_word_ids
    )
    env.train()
    env.rollout(env.num_steps)
    assert env.tokenizer.norm.num_batches_tracked == 0
    check_generation_env(env)


def test_checker_finds_statistics_that_go_on():
    env = broken_env(train=torch.nn.Module.train)
    env.tokenizer = NormedTokenizer().requires_grad_(False)
    with pytest.raises(AssertionError, match=r"nothing learns: .*norm\.running_mean"):
        check_generation_env(env)


def test_checker_finds_trainable_parts():
    env = broken_env()
    env.reward_fn.scale = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(AssertionError, match="nothing trainable"):
        check_generation_env(env)
