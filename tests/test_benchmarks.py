"""What the benchmarks count is right. No test asserts a time: times belong to a machine."""

from functools import partial

import pytest
import torch
from small_policies import small_denoising_policy, small_mineworld, small_policy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.denoising import (
    FORMS,
    PRESET,
    Measurement,
    denoise_without_cache,
    generate_one_by_one,
    log_probs,
    measure_forms,
    measure_rollouts,
    selected_steps,
    videos_of,
)
from benchmarks.denoising_figures import denoising_figures, denoising_tables
from benchmarks.denoising_work import DenoisingWork
from benchmarks.generation import sample_without_cache
from benchmarks.peaks import Peaks
from benchmarks.rollout_work import RolloutWork
from benchmarks.timing import median_seconds
from benchmarks.work import ProductCounter, Work, limit, total
from rlir_agents.policies import TokenPolicy
from rlir_agents.rollouts import collect
from rlir_agents.world_models import NFD, NFDConfig, mineworld
from rlir_agents.world_models.kv_cache import KVCache, PlainLayerCache
from rlir_agents.world_models.latent import Form
from rlir_env.envs import DenoisingEnv, TokenGenerationEnv
from rlir_env.testing import identity_world

P, G = 2, 3


def make_env() -> TokenGenerationEnv:
    world = identity_world(grid_size=(2, 4), num_frames=4)
    return world.env(num_prompts=P, group_size=G, tokens_per_step="frame")


def make_policy(env: TokenGenerationEnv, num_key_value_heads: int = 1) -> TokenPolicy:
    return small_policy(env, partial(small_mineworld, num_key_value_heads=num_key_value_heads))


def small_nfd_config(**changes) -> NFDConfig:
    sizes = {"latent_shape": (4, 4, 6), "hidden_size": 32, "num_layers": 3, "num_heads": 2, "intermediate_size": 48}
    return NFDConfig(**sizes | {"action_dim": 5} | changes)


def plain_cache(num_layers: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> KVCache:
    """What accelerators use: torch knows the FLOPs of its attention, and it pads nothing."""
    return KVCache([PlainLayerCache(shape, dtype, device) for _ in range(num_layers)])


@pytest.mark.parametrize("num_key_value_heads", [1, 2])
def test_closed_form_of_the_rollout_agrees_with_torch(
    monkeypatch: pytest.MonkeyPatch, num_key_value_heads: int
) -> None:
    monkeypatch.setattr(mineworld, "new_cache", plain_cache)
    env = make_env()
    policy = make_policy(env, num_key_value_heads)
    state = env.reset()
    with FlopCounterMode(display=False) as torch_counter:
        policy.generate(state)
    work = RolloutWork(policy.world_model.config, env.layout, P, P * G, torch.float32)
    parts = work.parts()
    counted = total([work for part in parts.values() for work in part])[0]
    assert counted == torch_counter.get_total_flops()
    # 2 FLOPs x 6 rows x 32 wide x the codes, for each of 3 frames' 8 tokens
    assert total(parts["head"])[0] == 2 * 6 * 32 * env.num_codes * 24


def test_counter_agrees_with_torch_forward_and_backward() -> None:
    model = make_policy(make_env()).world_model
    token = torch.zeros(3, 20, dtype=torch.long)

    def step() -> None:
        model(token).sum().backward()

    with FlopCounterMode(display=False) as torch_counter:
        step()
    with ProductCounter() as counter:
        step()
    assert total(counter.works)[0] == torch_counter.get_total_flops() > 0


def test_counter_knows_bytes_and_types() -> None:
    left, right = torch.zeros(4, 8, dtype=torch.bfloat16), torch.zeros(8, 2, dtype=torch.bfloat16)
    with ProductCounter() as counter:
        (left @ right).relu()
    # 2 x 4 x 8 x 2 FLOPs; 32 + 16 + 8 elements of two bytes; what is not a product counts nothing
    assert counter.works == [Work(128, 112, torch.bfloat16)]


def test_limit_is_a_sum_of_maxima() -> None:
    peaks = Peaks({torch.float32: 100.0, torch.bfloat16: 400.0}, copy=10.0)
    busy, moving = Work(200, 10, torch.float32), Work(400, 30, torch.bfloat16)
    # max(200/100, 10/10) + max(400/400, 30/10); of the sums it would be max(2 + 1, 4) = 4
    assert limit([busy, moving], peaks) == 2 + 3
    assert limit([busy.times(3)], peaks) == 6


def test_generation_without_a_cache_samples_the_same() -> None:
    env = make_env()
    policy, state = make_policy(env), env.reset()
    rollout = collect(env, policy, state).flatten(0, 1)
    video = rollout["next", "token"][:, -1]
    for position in env.layout.action_positions.tolist():
        code, _ = sample_without_cache(policy, video, position, state["episode_seed"].squeeze(-1))
        assert torch.equal(code, video[:, position].long())


def make_denoising_env() -> DenoisingEnv:
    world = identity_world(grid_size=(2, 4), num_frames=4)
    return world.denoising_env(num_prompts=1, group_size=G, num_denoising_steps=4, steps_per_action="frame")


@pytest.mark.parametrize("action_embedding", ["linear", "mlp"])
@pytest.mark.parametrize("has_backward", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_closed_form_of_every_form_agrees_with_torch(form: Form, has_backward: bool, action_embedding: str) -> None:
    num_frames, num_steps, config = 5, 3, small_nfd_config(action_embedding=action_embedding)
    model = NFD(config)
    latent = torch.randn(P, num_frames - 1, num_steps, *config.latent_shape)
    times, vector = torch.rand(P, num_frames - 1, num_steps), torch.randn(P, num_frames, config.action_dim)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(has_backward):
        velocity = model.velocity_of_steps(latent[:, :, 0], times[:, :, 0], latent, times, vector, form)
        if has_backward:
            velocity.sum().backward()
    work = DenoisingWork(config, num_frames, P, torch.float32)
    assert total(work.evaluation(form, num_steps, has_backward))[0] == counter.get_total_flops()


def test_closed_form_of_denoising_agrees_with_the_reference_page() -> None:
    # Section 4.5, NFD-310M, in TFLOP: a video's rollout 6.38 with a cache and 50.4 without; A 25.19, A2 7.36, B 5.77,
    # C 3.48 for 5 of 10 steps.
    work = DenoisingWork(NFDConfig(), 16, 1, torch.bfloat16)
    without_cache = [one for frame in range(1, 16) for one in work.without_cache(frame) * 10]
    assert total(work.rollout(10))[0] == pytest.approx(6.38e12, rel=0.02)
    assert total(without_cache)[0] == pytest.approx(50.4e12, rel=0.02)
    for form, expected in {"A": 25.19e12, "A2": 7.36e12, "B": 5.77e12, "C": 3.48e12}.items():
        assert total(work.evaluation(form, 5, False))[0] == pytest.approx(expected, rel=0.02)


def test_closed_form_of_denoising_rollouts_agrees_with_torch() -> None:
    env = make_denoising_env()
    policy, state = small_denoising_policy(env), env.reset()
    frames = torch.randn(G, 3, *env.layout.latent_shape)
    with FlopCounterMode(display=False) as with_cache:
        policy.generate(state)
    with FlopCounterMode(display=False) as without_cache:
        denoise_without_cache(policy, state, frames[:, :2], frames[:, 2], 0)
    work = DenoisingWork(policy.world_model.config, env.layout.num_frames, G, torch.float32)
    assert total(work.rollout(4))[0] == with_cache.get_total_flops()
    assert total(work.without_cache(2))[0] == without_cache.get_total_flops()


def test_bytes_of_denoising() -> None:
    config = small_nfd_config(num_layers=2)  # 6 tokens of 16 numbers a frame, hidden 32
    step = DenoisingWork(config, 4, P, torch.bfloat16).rollout(1)[-19:]  # of frame 3, the last work of a rollout
    assert step[-1].num_bytes == step[-2].num_bytes == P * 6 * 32 * 2 * (4 + 2 * 3)  # q, k, v, result; 3 frames' k, v
    # The head's product in float32: input, weight and result.
    assert step[-3] == Work(2 * 12 * 32 * 16, 4 * (12 * 32 + 32 * 16 + 12 * 16), torch.float32)


@pytest.mark.parametrize("context_timestep", [0.0, 0.25])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_log_probs_of_the_rollout(form: Form, context_timestep: float) -> None:
    env = make_denoising_env()
    policy, state = small_denoising_policy(env, context_timestep=context_timestep), env.reset()
    rollout = collect(env, policy, state)
    expected = rollout["action_log_prob"][rollout["loss_mask"]].view(G, 3, -1)
    found = log_probs(policy, selected_steps(policy, state), form)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("context_timestep", [0.0, 0.25])
def test_denoising_without_a_cache_gives_the_same_latents(context_timestep: float) -> None:
    env = make_denoising_env()
    policy, state = small_denoising_policy(env, context_timestep=context_timestep), env.reset()
    frames = state["latent"][:, :1]
    for index in range(1, env.layout.num_frames):
        latent = env.initial_noise(state, torch.tensor([index]))[:, 0]
        for step in range(env.layout.num_denoising_steps):
            latent = denoise_without_cache(policy, state, frames, latent, step)
        frames = torch.cat([frames, latent[:, None]], dim=1)
    assert (frames[0] - frames[1]).abs().max() > 0.1  # siblings differ
    torch.testing.assert_close(frames, videos_of(policy, state), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames, collect(env, policy, state)["next", "latent"][0, :, -1], atol=1e-5, rtol=0)


def test_rollouts_one_by_one_are_those_of_the_group() -> None:
    env = make_denoising_env()
    policy, state = small_denoising_policy(env), env.reset()
    alone, together = generate_one_by_one(policy, state), policy.generate(state)
    assert (together["action"][0] - together["action"][1]).abs().max() > 0.1
    for key in ("action", "action_log_prob"):
        torch.testing.assert_close(alone[key], together[key], atol=1e-5, rtol=0)
    assert torch.equal(alone["loss_mask"], together["loss_mask"])


def test_denoising_is_measured_counted_and_printed() -> None:
    sizes = ["latent_shape=[4,2,2]", "patch_size=1", "hidden_size=32", "num_heads=2", "intermediate_size=32"]
    few = [*(f"world_model.config.{size}" for size in [*sizes, "num_layers=1"]), "env.timesteps.num_steps=4"]
    overrides = [*few, "env.group_size=2", "autocast=float32"]
    forms = {"nfd_doom": measure_forms(PRESET, overrides, repeats=1)}
    rollouts = measure_rollouts(overrides, repeats=1)
    # Of 3 steps that sample, int(0.6 x 3) = 1 is selected in each of 4 x 15 frames; a rollout has 4 steps a frame.
    assert all(one.num_steps == dict.fromkeys(FORMS, 4 * 15) for one in forms["nfd_doom"].values())
    assert rollouts.num_steps == {"group": 2 * 60, "one_by_one": 2 * 60, "without_cache": 2 * 15}
    peaks = Peaks({torch.float32: 1e11}, copy=1e10)
    figures = denoising_figures(forms, rollouts, peaks)
    passes = figures["forms"]["nfd_doom"]
    assert passes["setting"]["num_layers"] == 1 and passes["setting"]["num_layers_of_model"] == 6
    for one in (passes["forward"], passes["forward_backward"]):
        assert one["B"]["flops"] == one["C"]["flops"] < one["A2"]["flops"] == one["A"]["flops"]  # with K = 1
        assert one["c_is_times_as_fast_as_a"] == one["A"]["seconds"] / one["C"]["seconds"]
    text = denoising_tables(figures)
    assert all(
        title in text for title in ("form A2", "form C", "a group without a cache", "1 of 6 layers", "asked: 70 %")
    )


def test_what_is_asked_of_form_c() -> None:
    seconds, flops = {"A": 6, "A2": 3, "B": 3, "C": 2}, {"A": 60, "A2": 40, "B": 30, "C": 20}
    works = {form: [Work(count, 1, torch.float32)] for form, count in flops.items()}
    setting = {"num_layers": 1, "num_layers_of_model": 1, "num_rows": 1, "num_selected": 1, "num_denoising_steps": 2}
    setting |= {"num_frames": 2, "tokens_per_frame": 1, "num_parameters": 1, "dtype": "float32"}
    measured = Measurement(setting, seconds, works, dict.fromkeys(FORMS, 1))
    ways = {"group": 1.0, "one_by_one": 3.0, "without_cache": 1.0}
    counts = {"group": 8, "one_by_one": 4, "without_cache": 2}
    rollouts = Measurement(setting, ways, dict.fromkeys(ways, works["C"]), counts)
    peaks = Peaks({torch.float32: 10.0}, copy=1e3)
    figures = denoising_figures({"nfd_doom": {"forward": measured, "forward_backward": measured}}, rollouts, peaks)
    forward = figures["forms"]["nfd_doom"]["forward"]
    assert forward["c_is_times_as_fast_as_a"] == 3  # 6 / 2
    assert forward["share_of_flops_saved_from_a2"] == 0.75  # 3 / 2 of the time for 40 / 20 of the FLOPs
    assert forward["C"]["limit_seconds"] == 2 and forward["A"]["times_limit"] == 1
    group = {way: figures["rollouts"][way]["group_is_times_as_fast"] for way in ways}
    assert group == {"group": 1, "one_by_one": 6, "without_cache": 4}  # 8 a second beside 4 / 3 and 2
    assert "NOT met" not in denoising_tables(figures)
    slower = {**seconds, "C": 2.5}  # 6 / 2.5 = 2.4 times as fast as A; (3 / 2.5) / 2 = 60 %
    measured = Measurement(setting, slower, works, measured.num_steps)
    figures = denoising_figures({"nfd_doom": {"forward": measured, "forward_backward": measured}}, rollouts, peaks)
    assert denoising_tables(figures).count("NOT met") == 4


def test_medians_leave_out_the_first_round() -> None:
    runs = {"first": [], "second": []}
    waits = {"first": [9, 1, 5, 2], "second": [0, 0, 0, 0]}
    clock = [0.0]

    def way(name: str) -> None:
        runs[name].append(len(runs["first"]))
        clock[0] += waits[name][len(runs[name]) - 1]

    ways = {name: partial(way, name) for name in runs}
    assert median_seconds(ways, 3, clock=lambda: clock[0]) == {"first": 2, "second": 0}  # of 1, 5 and 2
    assert runs == {"first": [0, 1, 2, 3], "second": [1, 2, 3, 4]}  # by turns
