"""The shipped world: what is real must be paid what the coach reads in it, and wrong game actions less."""

import gymnasium
import numpy as np
import pytest
import torch

import rlir_env  # noqa: F401  (registers the ids)
from rlir_env.assets import load_world
from rlir_env.envs import TokenGenerationEnv
from rlir_env.gym import GenerationGymEnv
from rlir_env.prompts import ClipPrompts
from rlir_env.rewards import InverseDynamicsReward

NUM_PROMPTS = 8


@pytest.fixture(scope="module")
def world():
    try:
        loaded = load_world("doom")
        loaded.prompts["dev"].get([0])
    except ValueError as missing:
        pytest.skip(str(missing))
    return loaded


def make_env(match="per_slot", slots=None):
    keywords = {"split": "dev", "tokens_per_step": "frame", "match": match, "slots": slots}
    return gymnasium.make("RLIR-MineWorld-v0", world="doom", **keywords)


def pay(env, prompt_index, codes):
    """Play one real continuation."""
    env.reset(options={"prompt_index": prompt_index})
    for frame_codes in codes:
        _, reward, terminated, _, info = env.step(frame_codes)
    assert terminated
    return reward, info


@pytest.mark.parametrize("match, slots", [("per_slot", None), ("all_slots", ["attack", "jump", "left_right"])])
def test_the_real_continuation_is_paid_what_the_coach_reads_in_its_reconstruction(match, slots, world):
    env = make_env(match, slots)
    prompts = world.prompts["dev"].get(range(NUM_PROMPTS))
    frames = torch.cat([prompts.context_frames, prompts.target_frames], dim=1)
    codes = world.tokenizer.encode(frames)  # [P, F, K]
    reading = world.coach.infer_game_actions(world.tokenizer.decode(codes))  # [P, F-1, S]
    counted = [world.coach.spec.index(name) for name in slots or world.visible_slots]
    hits = (reading == prompts.game_action)[..., counted]  # [P, F-1, S']
    matches = hits.all(-1) if match == "all_slots" else hits.double().mean(-1)
    for i in range(NUM_PROMPTS):
        reward, info = pay(env, i, codes[i, 1:].numpy())
        assert reward == pytest.approx(matches[i].double().mean().item(), abs=1e-6)
        np.testing.assert_array_equal(info["inferred_game_action"], reading[i].numpy())


def pay_all(world, frames, game_action, game_action_word):
    """Mean reward of real continuations under these game actions, and the share of matches of every slot ``[S]``."""
    prompts = ClipPrompts(frames, game_action, game_action_word)
    reward_fn = InverseDynamicsReward(world.coach, "per_slot", world.visible_slots)
    env = GenerationGymEnv(TokenGenerationEnv(prompts, world.tokenizer, reward_fn, tokens_per_step="frame"))
    codes = world.tokenizer.encode(frames[:, 1:]).numpy()  # [P, F-1, K]
    paid = [pay(env, i, codes[i]) for i in range(len(codes))]
    reward = np.mean([reward for reward, _ in paid])
    return reward, np.mean([info["frame_match"] for _, info in paid], axis=(0, 1))


def test_the_same_tokens_are_paid_less_under_the_game_actions_of_other_clips(world):
    prompts = world.prompts["dev"].get(range(64))
    frames = torch.cat([prompts.context_frames, prompts.target_frames], dim=1)
    slots, words = prompts.game_action, prompts.game_action_word
    reward, matched = pay_all(world, frames, slots, words)
    # Half of the way round, because neighbours are clips of one recording.
    shuffled_reward, shuffled_matched = pay_all(world, frames, slots.roll(32, 0), words.roll(32, 0))
    assert reward > shuffled_reward + 0.1
    for name in world.visible_slots:
        slot = world.coach.spec.index(name)
        assert matched[slot] > shuffled_matched[slot] + 0.03, name
