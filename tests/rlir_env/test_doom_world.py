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


def test_shuffled_game_actions_are_paid_less(world):
    prompts = world.prompts["dev"].get(range(64))
    codes = world.tokenizer.encode(torch.cat([prompts.context_frames, prompts.target_frames], dim=1))
    reading = world.coach.infer_game_actions(world.tokenizer.decode(codes))
    matched = (reading == prompts.game_action).float().mean((0, 1))
    shuffled = (reading == prompts.game_action.roll(1, dims=0)).float().mean((0, 1))
    # Every slot that pictures reveal; use and drop are not among them.
    for name in ("forward_back", "left_right", "sprint_sneak", "attack", "pitch", "yaw"):
        slot = world.coach.spec.index(name)
        assert matched[slot] > shuffled[slot] + 0.03, name
