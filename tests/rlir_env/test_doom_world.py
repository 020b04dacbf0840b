"""The shipped world: what is real must be paid what the coach reads in it, and wrong game actions less."""

import gymnasium
import numpy as np
import pytest
import torch

import rlir_env  # noqa: F401  (registers the ids)
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


def pay(env, prompt_index, codes):
    """Play one real continuation."""
    env.reset(options={"prompt_index": prompt_index})
    for frame_codes in codes:
        _, reward, terminated, _, info = env.step(frame_codes)
    assert terminated
    return reward, info


def test_the_real_continuation_is_paid_what_the_coach_reads_in_its_reconstruction(world):
    env = gymnasium.make(
        "RLIR-MineWorld-v0", world="doom", split="dev", tokens_per_step="frame", match="all_slots", slots=["attack"]
    )
    prompts = world.prompts["dev"].get(range(NUM_PROMPTS))
    frames = torch.cat([prompts.context_frames, prompts.target_frames], dim=1)
    codes = world.tokenizer.encode(frames)  # [P, F, K]
    reading = world.coach.infer_game_actions(world.tokenizer.decode(codes))  # [P, F-1, S]
    attack = world.coach.spec.index("attack")
    matches = (reading == prompts.game_action)[..., attack].float().mean(1)
    for i in range(NUM_PROMPTS):
        reward, info = pay(env, i, codes[i, 1:].numpy())
        assert reward == pytest.approx(matches[i].item(), abs=1e-6)
        np.testing.assert_array_equal(info["inferred_game_action"], reading[i].numpy())


def test_the_same_tokens_are_paid_less_under_shuffled_game_actions(world):
    env = gymnasium.make("RLIR-MineWorld-v0", world="doom", split="dev", tokens_per_step="frame")
    num_prompts = 32
    prompts = world.prompts["dev"].get(range(num_prompts))
    codes = world.tokenizer.encode(prompts.target_frames).numpy()  # [P, F-1, K]
    outcomes = {}
    for shift in (0, 1):  # with 1, the continuation of each prompt is played under the game actions of the next
        paid = [pay(env, (i + shift) % num_prompts, codes[i]) for i in range(num_prompts)]
        matched = np.mean([info["frame_match"] for _, info in paid], axis=(0, 1))  # [S]
        outcomes[shift] = np.mean([reward for reward, _ in paid]), matched
    (reward, matched), (shuffled_reward, shuffled_matched) = outcomes[0], outcomes[1]
    assert reward > shuffled_reward + 0.1
    # Every slot that pictures reveal, but for `jump`: pressed so rarely that the share of right readings hardly tells.
    for name in set(world.visible_slots) - {"jump"}:
        slot = world.coach.spec.index(name)
        assert matched[slot] > shuffled_matched[slot] + 0.03, name
