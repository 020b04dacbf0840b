"""The shipped world: what is real must be paid what the coach reads in it, and wrong game actions less."""

import gymnasium
import numpy as np
import pytest
import torch

import rlir_env  # noqa: F401  (registers the ids)
from rlir_agents.controls import ShuffledGameActions
from rlir_env.assets import load_world

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


def test_the_same_tokens_are_paid_less_under_shuffled_game_actions(world):
    env = make_env()
    core, num_prompts = env.unwrapped.core, 64
    true = world.prompts["dev"]
    codes = world.tokenizer.encode(true.get(range(num_prompts)).target_frames).numpy()  # [P, F-1, K]
    outcomes = []
    for core.prompts in (true, ShuffledGameActions(true)):  # the same given frames, the game actions of other prompts
        paid = [pay(env, i, codes[i]) for i in range(num_prompts)]
        matched = np.mean([info["frame_match"] for _, info in paid], axis=(0, 1))  # [S]
        outcomes.append((np.mean([reward for reward, _ in paid]), matched))
    (reward, matched), (shuffled_reward, shuffled_matched) = outcomes
    assert reward > shuffled_reward + 0.1
    for name in world.visible_slots:
        slot = world.coach.spec.index(name)
        assert matched[slot] > shuffled_matched[slot] + 0.03, name
