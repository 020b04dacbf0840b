"""The denoising MDP: contract at every granularity, its grid, its noise, its boxes, errors."""

import pytest
import torch
from torch import Tensor
from torchrl.envs.utils import step_mdp

from rlir_env.envs import DenoisingEnv
from rlir_env.noise import INITIAL_NOISE, step_normal
from rlir_env.prompts import ClipPrompts
from rlir_env.rewards import BrightnessReward
from rlir_env.schedules import shifted_grid
from rlir_env.testing import IdentityLatents, check_generation_env, identity_world, right_codes

WORLD = identity_world()  # latents [1, 1, 2], 4 frames; 4 denoising steps a frame unless told otherwise
LATENTS = IdentityLatents(WORLD.tokenizer)
SHAPE = (1, 1, 2)
GRANULARITIES = [1, 2, "frame"]


def random_latents(env: DenoisingEnv, seed: int = 0) -> Tensor:
    """Actions of whole videos, one a denoising step, ``[B, T k, c, h, w]``."""
    count = env.layout.num_steps(1)
    return torch.randn(env.batch_size[0], count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def play(env: DenoisingEnv, state, latents: Tensor) -> list:
    """Step through latents ``[B, T k, c, h, w]``, k a step; returns all of TorchRL's step outputs."""
    steps = []
    for action in latents.unflatten(1, (-1, env.steps_per_action)).unbind(1):
        steps.append(env.step(state.set("action", action)))
        state = step_mdp(steps[-1])
    return steps


@pytest.mark.parametrize("steps_per_action", GRANULARITIES)
@pytest.mark.parametrize(("num_prompts", "group_size"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("is_initial_noise_shared", [True, False])
def test_env_keeps_the_contract(steps_per_action, num_prompts, group_size, is_initial_noise_shared) -> None:
    check_generation_env(
        WORLD.denoising_env(
            num_prompts=num_prompts,
            group_size=group_size,
            steps_per_action=steps_per_action,
            is_initial_noise_shared=is_initial_noise_shared,
        )
    )


def test_frames_stand_one_behind_the_other() -> None:
    # F = 3, N = 2: frames 1 and 2 are denoised in two steps each. Shift 3 puts 1/2 at 3/2 / (1 + 2/2) = 3/4.
    env = identity_world(num_frames=3).denoising_env(num_denoising_steps=2)
    state = env.reset()
    start = state["latent"][0, :2].clone()
    assert state["latent"][0, 2].eq(0).all()
    assert (state["timestep"].item(), state["next_timestep"].item()) == (1.0, 0.75)
    latents = torch.arange(1.0, 5.0).reshape(1, 4, 1, 1, 1).expand(1, 4, *SHAPE)
    steps = [step["next"] for step in play(env, state, latents)]
    noise = env.initial_noise(state, torch.tensor([1, 2]))[0]
    assert (start[1] == noise[0]).all()
    videos = [step["latent"][0] for step in steps]
    context = start[0]
    full = torch.ones(SHAPE)
    for found, expected in zip(
        videos,
        [
            [context, full, 0 * full],
            [context, 2 * full, noise[1]],  # frame 1 is finished, frame 2 starts from noise of its own
            [context, 2 * full, 3 * full],
            [context, 2 * full, 4 * full],
        ],
        strict=True,
    ):
        assert torch.equal(found, torch.stack(expected))
    assert [step["frame_index"].item() for step in steps] == [1, 2, 2, 2]
    assert [step["denoising_step"].item() for step in steps] == [1, 0, 1, 2]
    assert [step["timestep"].item() for step in steps] == [0.75, 1.0, 0.75, 0.0]
    assert [step["next_timestep"].item() for step in steps] == [0.0, 0.75, 0.0, 0.0]
    assert [step["terminated"].item() for step in steps] == [False, False, False, True]
    assert [env.num_finished_frames(step).item() for step in steps] == [1, 2, 2, 3]


def test_a_frame_a_step_ends_where_its_timesteps_end() -> None:
    env = WORLD.denoising_env(steps_per_action="frame")
    state = env.reset()
    assert (state["timestep"].item(), state["next_timestep"].item(), env.num_steps) == (1.0, 0.0, 3)
    assert env.action_spec.shape == (1, 4, *SHAPE)


def test_right_latents_are_paid_one_and_those_of_the_next_line_less() -> None:
    env = WORLD.denoising_env(num_prompts=8, steps_per_action="frame")
    state = env.reset()
    frames = WORLD.tokenizer.decode(right_codes(state["game_action"], WORLD.tokenizer))
    right = LATENTS.encode(frames)  # [B, F-1, c, h, w]
    last_step = torch.arange(3) * 4 + 3  # only where denoising ends does a latent count
    latents = random_latents(env)
    latents[:, last_step] = right
    steps = play(env, state.clone(), latents)
    last = steps[-1]["next"]
    assert last["reward"].eq(1).all() and last["frame_match"].eq(1).all()
    assert (last["inferred_game_action"] == state["game_action"]).all()
    for step in steps[:-1]:
        assert step["next", "reward"].eq(0).all() and step["next", "frame_reward"].eq(0).all()
    latents[:, last_step] = right.roll(-1, dims=1)
    assert play(env, state.clone(), latents)[-1]["next", "reward"].mean() < 0.8


def test_granularity_changes_neither_video_nor_reward() -> None:
    ends = []
    for steps_per_action in GRANULARITIES:
        env = WORLD.denoising_env(num_prompts=2, steps_per_action=steps_per_action)
        ends.append(play(env, env.reset(), random_latents(env))[-1]["next"])
    for end in ends[1:]:
        assert torch.equal(end["latent"], ends[0]["latent"]) and torch.equal(end["reward"], ends[0]["reward"])


@pytest.mark.parametrize("steps_per_action", GRANULARITIES)
def test_states_along_are_those_of_stepping_bitwise(steps_per_action) -> None:
    env = WORLD.denoising_env(num_prompts=2, group_size=2, steps_per_action=steps_per_action)
    state, latents = env.reset(), random_latents(env)
    steps = play(env, state.clone(), latents)
    along = env.states_along(state, latents.unflatten(1, (-1, env.steps_per_action)))
    assert set(along.keys()) == set(env.observation_spec.keys())
    for key in along.keys():
        stepped = torch.stack([steps[0][key], *(step["next", key] for step in steps)], dim=1)
        assert stepped.dtype == along[key].dtype and torch.equal(stepped, along[key]), key


def test_the_step_is_a_function_of_state_and_action_alone() -> None:
    env = WORLD.denoising_env(num_prompts=2)
    state = env.reset()
    state["action"] = env.rand_action(state)["action"]
    before = state.clone()
    first = env.step(state.clone())["next"]
    assert (state == before).all()
    env.set_seed(9)  # neither what else the env does nor the global generator has a say
    env.rollout(3)
    torch.manual_seed(1)
    again = env.step(state.clone())["next"]
    assert all(torch.equal(first[key], again[key]) for key in first.keys(True, True))
    # Rows do not influence one another: each is the same in a batch of two of itself.
    twice = env.step(state[[1, 1]])["next"]
    assert all(torch.equal(twice[key][0], first[key][1]) for key in first.keys(True, True))


def starts_of_frames(env: DenoisingEnv) -> Tensor:
    """The noise that frames start from, as the states of an episode show it, ``[P, G, F-1, c, h, w]``."""
    rollout = env.rollout(env.num_steps)
    starts = torch.stack([rollout["latent"][:, 4 * j, j + 1] for j in range(3)], dim=1)
    return starts.unflatten(0, (env.num_groups, env.group_size))


def test_initial_noise_is_that_of_prompt_and_frame() -> None:
    env = WORLD.denoising_env(num_prompts=3, group_size=4)
    starts = starts_of_frames(env)
    assert (starts == starts[:, :1]).all()  # siblings share it
    assert len(starts[:, 0].flatten(0, 1).flatten(1).unique(dim=0)) == 3 * 3  # prompts and frames do not
    assert not torch.equal(starts, starts_of_frames(env))  # nor do the next groups, even of the same prompts
    own = WORLD.denoising_env(num_prompts=3, group_size=4, is_initial_noise_shared=False)
    state = own.reset()
    assert torch.equal(state["prompt_seed"], state["episode_seed"])
    assert len(starts_of_frames(own).flatten(0, 2).flatten(1).unique(dim=0)) == 3 * 4 * 3


def test_initial_noise_is_standard_normal_and_repeatable_from_the_seed() -> None:
    env = identity_world(grid_size=(20, 20), patch_size=1).denoising_env(num_prompts=4)
    state = env.reset()
    noise = state["latent"][:, 1]
    assert torch.equal(noise, step_normal(state["prompt_seed"].squeeze(-1), (1, 20, 20), 1, INITIAL_NOISE))
    # 1,600 numbers: the mean's sd is .025, that of the standard deviation .018.
    assert noise.mean().abs() < 0.1 and noise.std().item() == pytest.approx(1, abs=0.07)


def test_rows_may_be_reset_at_different_times() -> None:
    env = WORLD.denoising_env(num_prompts=2, steps_per_action="frame")
    state = env.reset()
    for _ in range(2):
        state = step_mdp(env.step(env.rand_action(state)))
    before = state.clone()
    state["_reset"] = torch.tensor([[True], [False]])
    state = env.reset(state)
    assert state["frame_index"].flatten().tolist() == [1, 3]
    assert torch.equal(state["latent"][1], before["latent"][1])
    after = env.step(env.rand_action(state))
    outcome = after["next"]  # row 1 ends, row 0 goes on to its frame 2
    assert outcome["terminated"].flatten().tolist() == [False, True]
    assert outcome["frame_reward"][0].eq(0).all()
    assert torch.isclose(outcome["reward"][1], outcome["frame_reward"][1].mean())
    assert torch.equal(outcome["latent"][:1, 2], env.initial_noise(after[:1], torch.tensor([2]))[:, 0])
    assert torch.equal(outcome["latent"][1, 3], after["action"][1, -1])


def test_unfinished_frames_are_black_and_finished_ones_decoded() -> None:
    env = WORLD.denoising_env(steps_per_action=2)
    white = LATENTS.encode(torch.ones(1, 3, 4, 8))[:, None].expand(-1, 4, *SHAPE)
    half, whole = (step["next"] for step in play(env, env.reset(), white))
    assert env.num_finished_frames(half).item() == 1 and env.frames_of(half)[0, 1:].eq(0).all()
    frames = env.frames_of(whole)
    assert frames.shape == (1, 4, 3, 4, 8) and frames.dtype == torch.float32
    assert frames[0, 1].eq(1).all() and frames[0, 2:].eq(0).all()
    assert env.num_finished_frames(whole).item() == 2 and env.frames_of(whole, 2).shape[1] == 2


def test_another_reward_is_one_class() -> None:
    env = DenoisingEnv(
        WORLD.prompts["dev"], LATENTS, BrightnessReward(), shifted_grid(2, shift=1.0), steps_per_action="frame"
    )
    check_generation_env(env)
    # Frames that are white, black and white have mean 2/3.
    frames = torch.tensor([1.0, 0.0, 1.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 3, 4, 8)
    latents = LATENTS.encode(frames).repeat_interleave(2, dim=1)
    end = play(env, env.reset(), latents)[-1]["next"]
    assert end["frame_reward"].tolist() == [[1, 0, 1]] and end["reward"].item() == pytest.approx(2 / 3)


def step_with(env: DenoisingEnv, action: Tensor) -> Tensor:
    return env.step(env.reset().set("action", action))["next", "latent"][:, 1]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.full((1, 1, *SHAPE), 20.001), "action reaches 20.001, beyond 20"),
        (torch.full((1, 1, *SHAPE), -20.001), "action reaches 20.001, beyond 20"),
        (torch.tensor([0.0, torch.nan]).reshape(1, 1, *SHAPE), "diverged"),
        (torch.tensor([0.0, torch.inf]).reshape(1, 1, *SHAPE), "diverged"),
        (torch.zeros(1, *SHAPE), r"expected float \[B, k, c, h, w\] = \(1, 1, 1, 1, 2\)"),
        (torch.zeros(1, 2, *SHAPE), r"\(1, 2, 1, 1, 2\), expected"),
        (torch.zeros(1, 1, 1, 2, 1), r"\(1, 1, 1, 2, 1\), expected"),
        (torch.zeros(1, 1, *SHAPE, dtype=torch.long), "action is torch.int64"),
    ],
)
def test_wrong_actions_are_refused(action, message) -> None:
    with pytest.raises(ValueError, match=message):
        step_with(WORLD.denoising_env(), action)


def test_one_wrong_latent_among_many_is_refused_and_the_box_itself_is_kept_as_it_is() -> None:
    env = WORLD.denoising_env(steps_per_action="frame")
    action = torch.zeros(1, 4, *SHAPE)
    action[0, 1, 0, 0, 1] = 21  # not the one that the frame ends with
    with pytest.raises(ValueError, match="action reaches 21"):
        step_with(env, action)
    for limit in (20.0, -20.0):
        assert step_with(env, torch.full((1, 4, *SHAPE), limit)).eq(limit).all()
    precise = torch.full((1, 4, *SHAPE), 0.1, dtype=torch.float64)
    assert step_with(env, precise).dtype == torch.float32


def test_a_complete_video_cannot_be_continued() -> None:
    env = WORLD.denoising_env(steps_per_action="frame")
    state = step_mdp(env.rollout(3)[:, -1])
    with pytest.raises(ValueError, match="already complete"):
        env.step(env.rand_action(state))


def test_wrong_set_ups_are_refused() -> None:
    with pytest.raises(ValueError, match="steps_per_action=3: use 'frame' or a divisor of the 4 denoising steps"):
        WORLD.denoising_env(steps_per_action=3)
    with pytest.raises(ValueError, match="group_size=0"):
        WORLD.denoising_env(group_size=0)
    reward_fn, prompts = BrightnessReward(), WORLD.prompts["dev"]
    with pytest.raises(ValueError, match="continuous latents, such as KLTokenizer"):
        DenoisingEnv(prompts, WORLD.tokenizer, reward_fn, shifted_grid(4))
    for timesteps in ([1.0, 0.5], [1.0, 0.5, 0.5, 0.0], [1.5, 0.0], [0.0]):
        with pytest.raises(ValueError, match="decreases from at most 1 to exactly 0"):
            DenoisingEnv(prompts, LATENTS, reward_fn, timesteps)
    frames = torch.zeros(2, 4, 3, 4, 8, dtype=torch.uint8)
    two = ClipPrompts(frames, torch.zeros(2, 3, 2).long(), torch.zeros(2, 3, 2).long(), num_context_frames=2)
    with pytest.raises(ValueError, match="2 context frames"):
        DenoisingEnv(two, LATENTS, reward_fn, shifted_grid(4))


class LoudLatents(IdentityLatents):
    """A tokenizer whose scale factor is far off: latents of hundreds."""

    def encode_frames(self, frames: Tensor) -> Tensor:
        return 200 * super().encode_frames(frames)


def test_a_prompt_whose_latent_leaves_the_box_is_refused() -> None:
    frames = torch.zeros(2, 4, 3, 4, 8, dtype=torch.uint8)  # black: a latent of -1.73
    prompts = ClipPrompts(frames, torch.zeros(2, 3, 2).long(), torch.zeros(2, 3, 2).long())
    assert DenoisingEnv(prompts, LATENTS, BrightnessReward(), shifted_grid(4)).reset()["latent"][0, 0].max() < -1.7
    env = DenoisingEnv(prompts, LoudLatents(WORLD.tokenizer), BrightnessReward(), shifted_grid(4))
    with pytest.raises(ValueError, match="the latent of a context frame reaches 346.41, beyond 20.*scale_factor"):
        env.reset()
