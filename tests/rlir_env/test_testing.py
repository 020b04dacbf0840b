"""The public test helpers: the identity world reads itself, the checker finds breaches."""

import copy
import math

import pytest
import torch
from paradigms import AUTOREGRESSIVE, DIFFUSION, PARADIGMS, WORLD, Paradigm

from rlir_env.envs import VideoGenerationEnv
from rlir_env.game_actions import MINECRAFT
from rlir_env.testing import (
    IDENTITY_SPEC,
    IdentityInverseDynamics,
    IdentityLatents,
    IdentityTokenizer,
    RandomTokenPolicy,
    check_generation_env,
    identity_world,
)

both = pytest.mark.parametrize("paradigm", PARADIGMS.values(), ids=PARADIGMS)


def broken_env(paradigm: Paradigm, granularity: int | str = "frame", **methods) -> VideoGenerationEnv:
    """An env with some methods replaced; ``super(type(self), self)`` has the right ones."""
    env = paradigm.core(num_prompts=2, group_size=2, **{paradigm.granularity: granularity})
    env.__class__ = type("Broken", (type(env),), methods)
    return env


def test_tokenizer_round_trip_through_uint8():
    tokenizer = IdentityTokenizer(num_codes=128, grid_size=(2, 3), patch_size=2)
    codes = torch.randint(128, (5, 7, 6), generator=torch.Generator().manual_seed(0))
    frames = tokenizer.decode(codes)
    assert frames.shape == (5, 7, 3, 4, 6) and tokenizer.frame_size == (4, 6)
    assert (tokenizer.encode(frames) == codes).all()
    assert (tokenizer.encode((frames * 255).round().to(torch.uint8)) == codes).all()


def test_latents_of_the_levels_have_unit_variance_and_come_back():
    codes = IdentityTokenizer(num_codes=128, grid_size=(2, 3), patch_size=2)
    latents, generator = IdentityLatents(codes), torch.Generator().manual_seed(0)
    frames = codes.decode(torch.randint(128, (50, 7, 6), generator=generator))
    latent = latents.encode(frames)
    assert latent.shape == (50, 7, 1, 2, 3) and latents.code_shape == (1, 2, 3) and latent.dtype == torch.float32
    assert latent.mean().abs() < 0.1 and latent.std().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(latents.decode(latent), frames)
    beyond = latents.decode(torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 3))
    assert beyond[0].eq(0).all() and beyond[1].eq(1).all()


def test_idm_reads_the_frame_after_the_action():
    tokenizer = IdentityTokenizer()
    idm = IdentityInverseDynamics(tokenizer)
    # Token 0 shows `move` modulo 3, token 1 `jump` modulo 2: 5 -> 2, 4 -> 0; 1 -> 1, 3 -> 1.
    frames = tokenizer.decode(torch.tensor([[[0, 0], [5, 4], [1, 3]]]))
    assert idm.infer_game_actions(frames).tolist() == [[[2, 0], [1, 1]]]
    # MineWorld's protocol drops the first frame: reading j is of generated frame j + 1, the last
    # of itself.
    assert idm.infer_game_actions(frames[:, 1:], "mineworld").tolist() == [[[1, 1], [1, 1]]]
    log_probs = idm.slot_log_probs(frames)
    # One vote and 0.01 free ones a class: 1.01 / 1.03 of three classes; `jump` has no third class.
    assert log_probs[0, 0, 0, 2].item() == pytest.approx(math.log(1.01 / 1.03), rel=1e-4)
    assert log_probs[0, 0, 1, 2].item() == -math.inf
    assert log_probs[..., 0, :].exp().sum(-1).allclose(torch.ones(2))


def test_the_world_fits_other_games():
    world = identity_world(MINECRAFT, num_codes=11, grid_size=(3, 3), num_frames=16)
    tokens = world.env(num_prompts=2, tokens_per_step="frame")
    assert tokens.layout.sequence_length == 16 * 9 + 15 * 9
    latents = world.denoising_env(num_prompts=2, steps_per_action="frame")
    assert latents.layout.latent_shape == (1, 3, 3) and latents.layout.num_frames == 16
    for env in (tokens, latents):
        check_generation_env(env)
        assert (env.reset()["game_action"] < torch.tensor(MINECRAFT.num_classes)).all()


def test_impossible_worlds_are_refused():
    with pytest.raises(ValueError, match="cannot show 9 slots"):
        identity_world(MINECRAFT)
    with pytest.raises(ValueError, match="cannot show 3 classes"):
        identity_world(IDENTITY_SPEC, num_codes=2)
    with pytest.raises(ValueError, match=r"2\.\.128"):
        IdentityTokenizer(num_codes=129)
    with pytest.raises(ValueError, match="no tokenizer 'vq': use one of tokenizer, kl_tokenizer"):
        identity_world(tokenizer="vq")


def test_target_frames_show_the_game_actions():
    prompt = WORLD.prompts["dev"].get(torch.arange(16))
    video = torch.cat([prompt.context_frames, prompt.target_frames], dim=1)
    assert (WORLD.coach.infer_game_actions(video) == prompt.game_action).all()


def test_random_policy_is_uniform_and_reproducible():
    env = AUTOREGRESSIVE.core(num_prompts=16, group_size=8, tokens_per_step="frame")
    rollouts = []
    for _ in range(2):
        env.set_seed(0)
        rollouts.append(env.rollout(3, RandomTokenPolicy(6, tokens_per_step=2, seed=1)))
    assert (rollouts[0] == rollouts[1]).all()
    counts = rollouts[0]["action"].flatten().bincount(minlength=6) / rollouts[0]["action"].numel()
    assert (counts - 1 / 6).abs().max() < 0.05
    # Chance reads 1/3 of `move` and 1/2 of `jump`: 5/12 of the slots. 128 videos: sd below 0.02.
    assert rollouts[0]["next", "reward"][:, -1].mean().item() == pytest.approx(5 / 12, abs=0.06)


@both
def test_checker_finds_an_impure_step(paradigm: Paradigm):
    def _step(self, tensordict):
        self.count = getattr(self, "count", 0) + 1
        result = super(type(self), self)._step(tensordict)
        result[paradigm.video] = result[paradigm.video].clone()
        result[paradigm.video][:, 0] = self.count % 2
        return result

    with pytest.raises(AssertionError, match="deterministic|pure"):
        check_generation_env(broken_env(paradigm, _step=_step))


@both
def test_checker_finds_a_step_that_changes_its_input(paradigm: Paradigm):
    def _step(self, tensordict):
        result = super(type(self), self)._step(tensordict)
        tensordict[paradigm.video][:, -1] = 3
        return result

    with pytest.raises(AssertionError, match="changed its input"):
        check_generation_env(broken_env(paradigm, _step=_step))


@both
def test_checker_finds_an_early_reward(paradigm: Paradigm):
    def no_reward(self, num_rows):
        return super(type(self), self).no_reward(num_rows).apply(torch.ones_like)

    with pytest.raises(AssertionError, match="reward is terminal"):
        check_generation_env(broken_env(paradigm, no_reward=no_reward))


@both
def test_checker_finds_equal_siblings(paradigm: Paradigm):
    def _state(self, prompt_index, episode_seed, group_id):
        return super(type(self), self)._state(prompt_index, episode_seed * 0, group_id)

    with pytest.raises(AssertionError, match="siblings differ"):
        check_generation_env(broken_env(paradigm, _state=_state))


@both
def test_checker_finds_siblings_whose_noise_is_not_shared(paradigm: Paradigm):
    def _state(self, prompt_index, episode_seed, group_id):
        state = super(type(self), self)._state(prompt_index, episode_seed, group_id)
        return state.set("prompt_seed", state["episode_seed"])

    with pytest.raises(AssertionError, match="siblings share a prompt: 'prompt_seed'"):
        check_generation_env(broken_env(paradigm, _state=_state))


@both
def test_checker_finds_states_that_stepping_does_not_give(paradigm: Paradigm):
    def states_along(self, state, action):
        states = super(type(self), self).states_along(state, action)
        states["frame_index"] = states["frame_index"] - 1
        return states

    with pytest.raises(AssertionError, match="states_along is what stepping gives: 'frame_index'"):
        check_generation_env(broken_env(paradigm, states_along=states_along))


def test_checker_finds_missing_words():
    with pytest.raises(AssertionError, match="words stand behind their frame"):
        check_generation_env(broken_env(AUTOREGRESSIVE, _append_word=lambda self, *_: None))


def fading_frames(self, tensordict):
    result = super(type(self), self)._step(tensordict)
    result["latent"][:, 0] *= 0.5
    return result


def early_noise(self, tensordict):
    result = super(type(self), self)._step(tensordict)
    result["latent"][:, 3] += 0.5
    return result


@pytest.mark.parametrize(
    ("message", "methods"),
    [
        ("finished frames stay", {"_step": fading_frames}),
        ("frames to come are zero", {"_step": early_noise}),
        (
            "actions are latents",
            {"_checked_action": lambda self, state: super(type(self), self)._checked_action(state) / 2},
        ),
        (
            "timestep and next_timestep say",
            {"_clock": lambda self, step: super(type(self), self)._clock(step) | {"next_timestep": 0.0 * step.float()}},
        ),
        (
            "siblings start a frame from the same noise",
            {
                "initial_noise": lambda self, state, frame: super(type(self), self).initial_noise(
                    state.copy().set("prompt_seed", state["episode_seed"]), frame
                )
            },
        ),
        (
            "noise of its own",
            {"initial_noise": lambda self, state, frame: super(type(self), self).initial_noise(state, 0 * frame)},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_checker_finds_what_denoising_must_not_do(message, methods):
    with pytest.raises(AssertionError, match=message):
        check_generation_env(broken_env(DIFFUSION, 1, **methods))


def test_checker_finds_a_denoising_step_that_does_not_count():
    def _clock(self, step):
        clock = super(type(self), self)._clock(step)
        is_inside = (step > 0) & (step < self.layout.num_denoising_steps)
        return clock | {"denoising_step": torch.where(is_inside, 0, step)}

    def _step(self, tensordict):
        step = (tensordict["timestep"] != 1).long()  # the env itself knows
        return super(type(self), self)._step(tensordict.copy().set("denoising_step", step))

    with pytest.raises(AssertionError, match="denoising_step counts the steps"):
        check_generation_env(broken_env(DIFFUSION, 1, _clock=_clock, _step=_step))


def with_norm(tokenizer: torch.nn.Module) -> torch.nn.Module:
    """Its frames pass a batch norm, which in training mode counts what it sees."""

    def decode_codes(self, codes):
        frames = super(type(self), self).decode_codes(codes)
        return frames + 0 * self.norm(frames)

    tokenizer.norm = torch.nn.BatchNorm2d(3, affine=False).eval()
    tokenizer.__class__ = type("Normed", (type(tokenizer),), {"decode_codes": decode_codes})
    return tokenizer


@both
def test_a_training_env_stays_frozen(paradigm: Paradigm):
    env = broken_env(paradigm)
    env.tokenizer = with_norm(copy.deepcopy(env.tokenizer))
    env.train()
    env.rollout(env.num_steps)
    assert env.tokenizer.norm.num_batches_tracked == 0
    check_generation_env(env)


@both
def test_checker_finds_statistics_that_go_on(paradigm: Paradigm):
    env = broken_env(paradigm, train=torch.nn.Module.train)
    env.tokenizer = with_norm(copy.deepcopy(env.tokenizer))
    with pytest.raises(AssertionError, match=r"nothing learns: .*norm\.running_mean"):
        check_generation_env(env)


@both
def test_checker_finds_trainable_parts(paradigm: Paradigm):
    env = broken_env(paradigm)
    env.reward_fn.scale = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(AssertionError, match="nothing trainable"):
        check_generation_env(env)
