"""The Gymnasium face: the checker without a warning, both vector modes, and TorchRL's way back."""

import json
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.utils.env_checker import check_env
from paradigms import AUTOREGRESSIVE, DIFFUSION, PARADIGMS, WORLD, Paradigm, frames_that_show
from torchrl.envs import GymEnv, GymWrapper
from torchrl.envs.utils import check_env_specs

import rlir_env
from rlir_env.gym import GenerationGymEnv, GenerationGymVectorEnv

both = pytest.mark.parametrize("paradigm", PARADIGMS.values(), ids=PARADIGMS)
WHITE = torch.ones(3, 4, 8)


@pytest.mark.parametrize(
    ("id", "keywords"),
    [
        (rlir_env.MINEWORLD_ID, {}),
        (rlir_env.MINEWORLD_ID, {"tokens_per_step": "frame"}),
        (rlir_env.NFD_ID, {}),
        (rlir_env.NFD_ID, {"num_denoising_steps": 4, "steps_per_action": 2, "is_initial_noise_shared": False}),
        (rlir_env.NFD_ID, {"steps_per_action": "frame"}),
    ],
    ids=str,
)
def test_check_env_has_nothing_to_say(id, keywords):
    env = gymnasium.make(id, world="identity", **keywords)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


OBSERVED = {
    "autoregressive": {
        "token": Box(-1, 10, (14,), np.int32),  # 4 frames of 2 tokens, 3 words of 2 ids; 6 codes and 5 ids
        "position": Box(0, 14, (1,), np.int64),
        "frame_index": Box(0, 3, (1,), np.int64),
        "game_action": Box(0, 2**31 - 1, (3, 2), np.int64),
        "game_action_word": Box(0, 10, (3, 2), np.int64),
    },
    "diffusion": {
        "latent": Box(-20, 20, (4, 1, 1, 2), np.float32),
        "frame_index": Box(0, 3, (1,), np.int64),
        "denoising_step": Box(0, 2, (1,), np.int64),
        "timestep": Box(0, 1, (1,), np.float32),
        "next_timestep": Box(0, 1, (1,), np.float32),
        "game_action": Box(0, 2**31 - 1, (3, 2), np.int64),
    },
}


@pytest.mark.parametrize("name", PARADIGMS)
def test_observed_is_the_state_and_what_was_pressed(name):
    env = PARADIGMS[name].make()
    assert env.observation_space.spaces == OBSERVED[name]
    assert set(env.reset(seed=0)[0]) == set(OBSERVED[name])


@pytest.mark.parametrize(
    ("paradigm", "granularity", "space"),
    [
        (AUTOREGRESSIVE, 1, Discrete(6)),
        (AUTOREGRESSIVE, "frame", MultiDiscrete([6, 6])),
        (DIFFUSION, 1, Box(-20, 20, (1, 1, 2), np.float32)),
        (DIFFUSION, "frame", Box(-20, 20, (2, 1, 1, 2), np.float32)),
    ],
)
def test_action_spaces_follow_the_granularity(paradigm, granularity, space):
    assert paradigm.make(**{paradigm.granularity: granularity}).action_space == space


def test_the_defaults_are_the_textbook_mdps():
    assert gymnasium.make(rlir_env.MINEWORLD_ID, world="identity").unwrapped.core.num_steps == 3 * 2
    core = gymnasium.make(rlir_env.NFD_ID, world="identity").unwrapped.core
    assert core.num_steps == 3 * 10 and core.steps_per_action == 1 and core.is_initial_noise_shared
    # Shift 3 puts the timestep after one of ten steps at 3 * .9 / (1 + 2 * .9) = 27/28.
    assert core.layout.timesteps[1] == pytest.approx(27 / 28)


@both
def test_the_spec_is_json(paradigm: Paradigm):
    env = paradigm.make(**paradigm.frame, match="all_slots", slots=["move"], split="test")
    kwargs = json.loads(env.spec.to_json())["kwargs"]
    assert kwargs["slots"] == ["move"] and kwargs[paradigm.granularity] == "frame"
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.action_space == env.action_space


@both
def test_the_real_continuation_is_paid_what_the_coach_reads(paradigm: Paradigm):
    env = paradigm.make(match="all_slots")
    observation, info = env.reset(seed=3)
    prompt = WORLD.prompts["dev"].get([info["prompt_index"]])
    pieces = paradigm.pieces(prompt.target_frames[0]).flatten(0, 1).numpy()
    for piece in pieces[:-1]:
        observation, reward, terminated, truncated, step_info = env.step(piece)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert "frame_match" not in step_info
    observation, reward, terminated, truncated, info = env.step(pieces[-1])
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (info["inferred_game_action"] == prompt.game_action[0].numpy()).all()
    assert info["frame_match"].tolist() == [[1, 1]] * 3 and info["frame_reward"].tolist() == [1] * 3
    assert (observation[paradigm.video][-1] == pieces[-1]).all()
    with pytest.raises(ValueError, match="already complete"):
        env.step(pieces[-1])


@both
def test_options_choose_the_prompt(paradigm: Paradigm):
    env = paradigm.make()
    observation, info = env.reset(options={"prompt_index": 11, "episode_seed": 5})
    assert (info["prompt_index"], info["episode_seed"]) == (11, 5)
    assert (observation["game_action"] == WORLD.prompts["dev"].get([11]).game_action[0].numpy()).all()


@both
def test_a_seed_fixes_all_resets_and_an_epoch_shows_every_prompt(paradigm: Paradigm):
    env = paradigm.make()
    first = [env.reset(seed=1)[1]] + [env.reset()[1] for _ in range(15)]
    again = [env.reset(seed=1)[1]] + [env.reset()[1] for _ in range(15)]
    assert first == again
    assert sorted(info["prompt_index"] for info in first) == list(range(16))


@both
def test_render_shows_the_frames_so_far(paradigm: Paradigm):
    white = paradigm.pieces(WHITE).numpy()
    env = paradigm.make(**paradigm.frame)  # no mode asked for
    env.reset(seed=0)
    env.step(white)
    sheet = env.render()
    # Four frames of 4x8 pixels on a sheet of two by two; frame 1 stands top right.
    assert sheet.shape == (8, 16, 3) and sheet.dtype == np.uint8
    assert (sheet[:4, 8:] == 255).all() and (sheet[4:] == 0).all()
    frames = paradigm.make(**paradigm.frame, render_mode="rgb_array_list")
    frames.reset(seed=0)
    frames.step(white)
    assert [frame.shape for frame in frames.render()] == [(4, 8, 3)] * 2
    assert (frames.render()[0] == sheet[:4, :8]).all()


@both
def test_observations_and_infos_are_fresh_objects(paradigm: Paradigm):
    env = paradigm.make(**paradigm.frame)
    black = paradigm.pieces(0 * WHITE).numpy()
    first, _ = env.reset(seed=0)
    kept = {key: value.copy() for key, value in first.items()}
    second, *_ = env.step(black)
    second["game_action"][:] = 7
    assert all((first[key] == kept[key]).all() for key in kept)
    third, *_ = env.step(black)
    assert (third["game_action"] == kept["game_action"]).all()


@both
def test_torchrl_wraps_it_back(paradigm: Paradigm):
    env = GymEnv(f"rlir_env:{paradigm.id}", **paradigm.keywords)
    check_env_specs(env)
    rollout = env.rollout(20)
    assert rollout.shape == (6,) and rollout["next", "terminated"][-1]


@pytest.mark.parametrize("autoreset_mode", ["SameStep", "Disabled"])
@both
def test_torchrl_wraps_vector_envs(paradigm: Paradigm, autoreset_mode):
    env = paradigm.make_vec(3, autoreset_mode=autoreset_mode)
    wrapped = GymWrapper(env, categorical_action_encoding=True)
    check_env_specs(wrapped)
    rollout = wrapped.rollout(14, break_when_any_done=False)
    done = rollout["next", "done"][..., 0]
    assert done.nonzero()[:, 1].tolist() == [5, 11] * 3
    # The last observation is the complete video, not the next prompt and not zeros.
    assert rollout["next", "frame_index"][:, 5].flatten().tolist() == [3] * 3
    assert (rollout["next", paradigm.video][:, 5, -1] == rollout["action"][:, 5]).all()
    assert rollout["frame_index"][:, 6].flatten().tolist() == [1] * 3


@both
def test_same_step_starts_finished_rows_anew(paradigm: Paradigm):
    env = paradigm.make_vec(2, **paradigm.frame)
    observation, started = env.reset(seed=0)
    actions = paradigm.pieces(frames_that_show(torch.from_numpy(observation["game_action"]))).numpy()
    for t in range(3):
        observation, reward, terminated, truncated, info = env.step(actions[:, t])
    assert reward.tolist() == [1, 1] and terminated.all() and not truncated.any()
    assert observation["frame_index"].tolist() == [[1], [1]]
    assert [last["frame_index"].item() for last in info["final_obs"]] == [3, 3]
    assert all((last[paradigm.video][-1] == actions[row, -1, -1]).all() for row, last in enumerate(info["final_obs"]))
    assert info["final_info"]["frame_match"].shape == (2, 3, 2)
    assert (info["final_info"]["prompt_index"] == started["prompt_index"]).all()
    assert (info["prompt_index"] != started["prompt_index"]).all()  # a new prompt of the epoch


@both
def test_disabled_resets_the_rows_of_the_mask(paradigm: Paradigm):
    env = paradigm.make_vec(2, **paradigm.frame, autoreset_mode="Disabled")
    env.reset(seed=0)
    actions = torch.stack([paradigm.pieces(0 * WHITE)] * 2).numpy()
    before, *_ = env.step(actions)
    observation, info = env.reset(options={"reset_mask": np.array([False, True])})
    assert observation["frame_index"].tolist() == [[2], [1]]
    assert (observation[paradigm.video][0] == before[paradigm.video][0]).all()
    assert info["_prompt_index"].tolist() == [False, True]
    env.step(actions)
    _, _, terminated, _, info = env.step(actions)
    assert terminated.tolist() == [True, False]
    assert info["_frame_match"].tolist() == [True, False]
    with pytest.raises(ValueError, match="already complete"):
        env.step(actions)


@both
def test_a_vector_env_is_many_single_ones(paradigm: Paradigm):
    vector = GenerationGymVectorEnv(paradigm.core(num_prompts=3, seed=0))
    single = GenerationGymEnv(paradigm.core(seed=0))
    observation, _ = vector.reset(seed=9)
    vector.action_space.seed(0)
    actions = vector.action_space.sample()
    after, *_ = vector.step(actions)
    for row in range(3):  # the same seed gives the same order of prompts
        alone, _ = single.reset(seed=9 if row == 0 else None)
        assert all((observation[key][row] == alone[key]).all() for key in alone)
        alone, *_ = single.step(actions[row])
        assert all((after[key][row] == alone[key]).all() for key in alone)
    assert vector.action_space.shape == (3, *single.action_space.shape)
    assert vector.observation_space.contains(observation)
    assert len(vector.render()) == 3


@both
def test_a_vector_env_starts_the_prompts_that_are_asked_for(paradigm: Paradigm):
    env = GenerationGymVectorEnv(paradigm.core(num_prompts=2))
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
@both
def test_unfit_reset_options_are_named(paradigm: Paradigm, options, message):
    env = GenerationGymVectorEnv(paradigm.core(num_prompts=2))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


@both
def test_the_first_reset_takes_all_rows(paradigm: Paradigm):
    env = GenerationGymVectorEnv(paradigm.core(num_prompts=2), autoreset_mode="Disabled")
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\) without reset_mask first"):
        env.reset(options={"reset_mask": np.array([False, True])})


@both
def test_mistakes_are_named(paradigm: Paradigm):
    with pytest.raises(ValueError, match="no split 'night'"):
        paradigm.make(split="night")
    with pytest.raises(ValueError, match=f"{paradigm.granularity}=3"):
        paradigm.make(**{paradigm.granularity: 3})
    with pytest.raises(ValueError, match="use GenerationGymVectorEnv"):
        GenerationGymEnv(paradigm.core(num_prompts=2))
    with pytest.raises(ValueError, match="group_size=1"):
        GenerationGymVectorEnv(paradigm.core(group_size=2))
    with pytest.raises(ValueError, match="SAME_STEP or DISABLED"):
        GenerationGymVectorEnv(paradigm.core(), autoreset_mode="NextStep")
    with pytest.raises(ValueError, match="render_mode='human'"):
        GenerationGymEnv(paradigm.core(), render_mode="human")
    env = GenerationGymEnv(paradigm.core())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.action_space.sample())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="no option 'seed': use prompt_index, episode_seed"):
        env.reset(options={"seed": 3})
    with pytest.raises(ValueError, match="give prompt_index too"):
        env.reset(options={"episode_seed": 3})


def latents(*shape: int, value: float = 0.0) -> np.ndarray:
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize(
    ("paradigm", "action", "message"),
    [
        (AUTOREGRESSIVE, 6, r"0\.\.5"),
        (AUTOREGRESSIVE, 0.0, "integer codes"),
        (AUTOREGRESSIVE, [1, 2], r"action has shape \[2\], expected \[\]"),
        (DIFFUSION, latents(1, 1, 2, value=20.1), "action reaches 20.1, beyond 20"),
        (DIFFUSION, latents(1, 1, 2, value=np.nan), "action reaches inf, beyond 20"),
        (DIFFUSION, latents(1, 2, 1), r"action has shape \[1, 2, 1\], expected \[1, 1, 2\]"),
        (DIFFUSION, np.zeros((1, 1, 2), np.int64), r"torch.int64 .* expected float"),
    ],
)
def test_actions_outside_of_the_space_are_refused(paradigm: Paradigm, action, message):
    single, many = GenerationGymEnv(paradigm.core()), GenerationGymVectorEnv(paradigm.core(num_prompts=2))
    before, _ = single.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        single.step(action)
    after, *_ = single.step(single.action_space.sample())  # the refused one left no trace
    assert (after["frame_index"] == before["frame_index"]).all()
    many.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        many.step(np.stack([np.asarray(action)] * 2))


def test_a_world_without_latents_says_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match="kl_tokenizer.*make it with `rlir pretrain model=kl_tokenizer && rlir ship"):
        gymnasium.make(rlir_env.NFD_ID, world=str(tmp_path))
    with pytest.raises(ValueError, match="paradigm='flow': use one of"):
        gymnasium.make(rlir_env.NFD_ID, world="identity", paradigm="flow")


def test_import_registers_the_ids_and_nothing_heavy():
    code = (
        "import sys, rlir_env, gymnasium; gymnasium.spec(rlir_env.MINEWORLD_ID); gymnasium.spec(rlir_env.NFD_ID); "
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
