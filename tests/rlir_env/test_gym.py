"""The Gymnasium face: the checker without a warning, both vector modes, and TorchRL's way back."""

import json
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torchrl.envs import GymEnv, GymWrapper
from torchrl.envs.utils import check_env_specs

import rlir_env
from rlir_env.gym import TokenGymEnv, TokenGymVectorEnv
from rlir_env.testing import identity_world, right_codes

KEYWORDS = {"world": "identity"}
WORLD = identity_world()


def make(**keywords):
    return gymnasium.make(rlir_env.MINEWORLD_ID, **KEYWORDS, **keywords)


@pytest.mark.parametrize("tokens_per_step", [1, 2, "frame"])
def test_check_env_has_nothing_to_say(tokens_per_step):
    env = make(tokens_per_step=tokens_per_step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_spaces_follow_the_granularity():
    assert make().action_space == gymnasium.spaces.Discrete(6)
    assert make(tokens_per_step="frame").action_space == gymnasium.spaces.MultiDiscrete([6, 6])
    spaces = make().observation_space.spaces
    assert {key: (space.shape, str(space.dtype)) for key, space in spaces.items()} == {
        "token": ((14,), "int32"),  # 4 frames of 2 tokens, 3 words of 2 ids
        "position": ((1,), "int64"),
        "frame_index": ((1,), "int64"),
        "game_action": ((3, 2), "int64"),
        "game_action_word": ((3, 2), "int64"),
    }


def test_the_spec_is_json():
    env = make(tokens_per_step="frame", match="all_slots", slots=["move"], split="test")
    kwargs = json.loads(env.spec.to_json())["kwargs"]
    assert kwargs["slots"] == ["move"] and kwargs["tokens_per_step"] == "frame"


def test_the_real_continuation_is_paid_what_the_coach_reads():
    env = make(match="all_slots")
    observation, info = env.reset(seed=3)
    prompt = WORLD.prompts["dev"].get([info["prompt_index"]])
    codes = WORLD.tokenizer.encode(prompt.target_frames).flatten()
    for code in codes[:-1]:
        observation, reward, terminated, truncated, step_info = env.step(int(code))
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert "frame_match" not in step_info
    observation, reward, terminated, truncated, info = env.step(int(codes[-1]))
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (info["inferred_game_action"] == prompt.game_action[0].numpy()).all()
    assert info["frame_match"].tolist() == [[1, 1]] * 3
    assert observation["token"].min() >= 0 and observation["position"].tolist() == [14]


def test_options_choose_the_prompt():
    env = make()
    observation, info = env.reset(options={"prompt_index": 11, "episode_seed": 5})
    assert (info["prompt_index"], info["episode_seed"]) == (11, 5)
    assert (observation["game_action"] == WORLD.prompts["dev"].get([11]).game_action[0].numpy()).all()


def test_a_seed_fixes_all_resets_and_an_epoch_shows_every_prompt():
    env = make()
    first = [env.reset(seed=1)[1]] + [env.reset()[1] for _ in range(15)]
    again = [env.reset(seed=1)[1]] + [env.reset()[1] for _ in range(15)]
    assert first == again
    assert sorted(info["prompt_index"] for info in first) == list(range(16))


def test_render_shows_the_frames_so_far():
    env = make(tokens_per_step="frame")  # no mode asked for
    env.reset(seed=0)
    env.step(np.array([5, 5]))  # code 5 is white
    sheet = env.render()
    # Four frames of 4x8 pixels on a sheet of two by two; frame 1 stands top right.
    assert sheet.shape == (8, 16, 3) and sheet.dtype == np.uint8
    assert (sheet[:4, 8:] == 255).all() and (sheet[4:] == 0).all()
    frames = make(tokens_per_step="frame", render_mode="rgb_array_list")
    frames.reset(seed=0)
    frames.step(np.array([5, 5]))
    assert [frame.shape for frame in frames.render()] == [(4, 8, 3)] * 2
    assert (frames.render()[0] == sheet[:4, :8]).all()


def test_observations_and_infos_are_fresh_objects():
    env = make(tokens_per_step="frame")
    first, _ = env.reset(seed=0)
    kept = {key: value.copy() for key, value in first.items()}
    second, *_ = env.step(np.array([0, 0]))
    second["game_action"][:] = 7
    assert all((first[key] == kept[key]).all() for key in kept)
    third, *_ = env.step(np.array([0, 0]))
    assert (third["game_action"] == kept["game_action"]).all()


def test_torchrl_wraps_it_back():
    env = GymEnv(f"rlir_env:{rlir_env.MINEWORLD_ID}", **KEYWORDS)
    check_env_specs(env)
    rollout = env.rollout(20)
    assert rollout.shape == (6,) and rollout["next", "terminated"][-1]


@pytest.mark.parametrize("autoreset_mode", ["SameStep", "Disabled"])
def test_torchrl_wraps_vector_envs(autoreset_mode):
    env = gymnasium.make_vec(rlir_env.MINEWORLD_ID, num_envs=3, **KEYWORDS, autoreset_mode=autoreset_mode)
    wrapped = GymWrapper(env)
    check_env_specs(wrapped)
    rollout = wrapped.rollout(14, break_when_any_done=False)
    done = rollout["next", "done"][..., 0]
    assert done.nonzero()[:, 1].tolist() == [5, 11] * 3
    # The last observation is the complete video, not the next prompt and not zeros.
    assert rollout["next", "position"][:, 5].flatten().tolist() == [14] * 3
    assert (rollout["next", "token"][:, 5, :13] == rollout["token"][:, 5, :13]).all()
    assert rollout["position"][:, 6].flatten().tolist() == [4] * 3


def test_same_step_starts_finished_rows_anew():
    env = gymnasium.make_vec(rlir_env.MINEWORLD_ID, num_envs=2, **KEYWORDS, tokens_per_step="frame")
    observation, started = env.reset(seed=0)
    codes = right_codes(torch.from_numpy(observation["game_action"]), WORLD.tokenizer).numpy()
    for t in range(3):
        observation, reward, terminated, truncated, info = env.step(codes[:, t])
    assert reward.tolist() == [1, 1] and terminated.all() and not truncated.any()
    assert observation["position"].tolist() == [[4], [4]]
    assert [last["position"].item() for last in info["final_obs"]] == [14, 14]
    assert info["final_info"]["frame_match"].shape == (2, 3, 2)
    assert (info["final_info"]["prompt_index"] == started["prompt_index"]).all()
    assert (info["prompt_index"] != started["prompt_index"]).all()  # a new prompt of the epoch


def test_disabled_resets_the_rows_of_the_mask():
    env = gymnasium.make_vec(
        rlir_env.MINEWORLD_ID,
        num_envs=2,
        **KEYWORDS,
        tokens_per_step="frame",
        autoreset_mode="Disabled",
    )
    env.reset(seed=0)
    actions = np.zeros((2, 2), dtype=np.int64)
    before, *_ = env.step(actions)
    observation, info = env.reset(options={"reset_mask": np.array([False, True])})
    assert observation["position"].tolist() == [[8], [4]]
    assert (observation["token"][0] == before["token"][0]).all()
    assert info["_prompt_index"].tolist() == [False, True]
    env.step(actions)
    _, _, terminated, _, info = env.step(actions)
    assert terminated.tolist() == [True, False]
    assert info["_frame_match"].tolist() == [True, False]
    with pytest.raises(ValueError, match="already complete"):
        env.step(actions)


def test_a_vector_env_is_many_single_ones():
    vector = TokenGymVectorEnv(WORLD.env(num_prompts=3, seed=0))
    observation, _ = vector.reset(seed=9)
    single = TokenGymEnv(WORLD.env(seed=0))
    for row in range(3):  # the same seed gives the same order of prompts
        alone, _ = single.reset(seed=9 if row == 0 else None)
        assert all((observation[key][row] == alone[key]).all() for key in alone)
    assert vector.action_space.shape == (3,) and vector.observation_space.contains(observation)
    assert len(vector.render()) == 3


def test_a_vector_env_starts_the_prompts_that_are_asked_for():
    env = TokenGymVectorEnv(WORLD.env(num_prompts=2))
    observation, info = env.reset(options={"prompt_index": [11, 3], "episode_seed": np.array([5, 6])})
    assert (info["prompt_index"].tolist(), info["episode_seed"].tolist()) == ([11, 3], [5, 6])
    assert (observation["game_action"] == WORLD.prompts["dev"].get([11, 3]).game_action.numpy()).all()
    _, info = env.reset(options={"prompt_index": (1, 1)})
    assert (info["prompt_index"].tolist(), info["episode_seed"].tolist()) == ([1, 1], [0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"promt_index": [0, 1]}, "no option 'promt_index': use reset_mask, prompt_index, episode_seed"),
        ({"episode_seed": [0, 1]}, "give prompt_index too"),
        ({"prompt_index": 3}, r"prompt_index has shape \[\]: give one value for each of 2 rows"),
        ({"reset_mask": [True]}, r"reset_mask has shape \[1\]"),
        ({"reset_mask": [True, False], "prompt_index": [0, 1]}, "not both"),
        ({"prompt_index": [0, 16]}, r"must be in 0\.\.15"),
    ],
)
def test_unfit_reset_options_are_named(options, message):
    env = TokenGymVectorEnv(WORLD.env(num_prompts=2))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


def test_the_first_reset_takes_all_rows():
    env = TokenGymVectorEnv(WORLD.env(num_prompts=2), autoreset_mode="Disabled")
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\) without reset_mask first"):
        env.reset(options={"reset_mask": np.array([False, True])})


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no split 'night'"):
        make(split="night")
    with pytest.raises(ValueError, match="use TokenGymVectorEnv"):
        TokenGymEnv(WORLD.env(num_prompts=2))
    with pytest.raises(ValueError, match="group_size=1"):
        TokenGymVectorEnv(WORLD.env(group_size=2))
    with pytest.raises(ValueError, match="SAME_STEP or DISABLED"):
        TokenGymVectorEnv(WORLD.env(), autoreset_mode="NextStep")
    with pytest.raises(ValueError, match="render_mode='human'"):
        TokenGymEnv(WORLD.env(), render_mode="human")
    env = TokenGymEnv(WORLD.env())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"0\.\.5"):
        env.step(6)
    with pytest.raises(ValueError, match="no option 'seed': use prompt_index, episode_seed"):
        env.reset(options={"seed": 3})
    with pytest.raises(ValueError, match="give prompt_index too"):
        env.reset(options={"episode_seed": 3})


def test_import_registers_the_id_and_nothing_heavy():
    code = "import sys, rlir_env, gymnasium; gymnasium.spec(rlir_env.MINEWORLD_ID); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
