"""Noise as a function of its place: the generator, its distribution, and that places share nothing."""

import pytest
import torch

from rlir_env import noise as noise_module
from rlir_env.noise import CONTEXT_NOISE, INITIAL_NOISE, STEP_SELECTION, counter_uniform, step_normal, step_uniform


def test_noise_is_splitmix64() -> None:
    # Outputs of the public reference code for seed 1234567; ours hashes the seed once more before.
    state = torch.tensor([1234567]) + noise_module._INCREMENT * torch.arange(1, 4)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [z % 2**64 for z in noise_module._mix(state).tolist()] == expected


def test_noise_is_uniform_and_independent() -> None:
    seeds, positions = torch.arange(400), torch.arange(500)
    noise = counter_uniform(seeds[:, None], positions)  # 200,000 numbers of neighbouring seeds and positions
    assert 0 < noise.min() and noise.max() < 1
    shares = torch.histc(noise, 20, 0, 1) / noise.numel()
    # Standard error of a share: sqrt(.05 * .95 / 200,000) = .0005; five of them.
    assert (shares - 0.05).abs().max() < 0.0025
    centred = noise - noise.mean()
    for shift in ((1, 0), (0, 1), (1, 1), (1, -1)):
        correlation = (centred * centred.roll(shift, (0, 1))).mean() / centred.var()
        assert abs(correlation) < 5 / 200_000**0.5  # five standard errors of an independent pair
    assert torch.equal(counter_uniform(seeds, 7), noise[:, 7])


def test_noise_depends_on_its_place_only() -> None:
    seed = torch.arange(300)
    noise = torch.stack(
        [step_normal(seed, (2, 5), frame, step) for frame in range(3) for step in (0, 1, INITIAL_NOISE)]
    )
    # 27,000 numbers: standard errors of mean, variance and fourth moment are .006, .009 and .06; five of each.
    assert abs(noise.mean()) < 0.03 and abs(noise.var() - 1) < 0.045 and abs((noise**4).mean() - 3) < 0.3
    flat = noise.flatten(2)
    for shift in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert abs((flat * flat.roll(shift, (0, 1, 2))).mean()) < 5 / 27_000**0.5
    assert torch.equal(step_normal(torch.tensor(7), (2, 5), 1, 1), noise[4, 7])
    frames = step_normal(torch.tensor(7), (2, 5), torch.arange(3), 1)
    assert torch.equal(frames, noise[[1, 4, 7], 7])
    with pytest.raises(ValueError, match="denoising steps are 0"):
        step_normal(seed, (2,), 0, 4096)


def test_places_of_a_frame_are_streams_of_their_own() -> None:
    seed = torch.arange(500)
    steps = (0, STEP_SELECTION, CONTEXT_NOISE, INITIAL_NOISE)
    streams = torch.cat([step_uniform(seed, (9,), frame, step) for frame in (1, 2) for step in steps], dim=-1)
    # 36,000 numbers of 23 bits: 77 pairs are equal by chance, with a deviation of 9.
    repeats = streams.numel() - len(streams.unique())
    assert abs(repeats - 77) < 45
    # A longer stream begins like a shorter one of the same place: there is one, whatever is asked of it.
    assert torch.equal(step_uniform(seed, (9,), 1, 0), step_uniform(seed, (2, 5), 1, 0).flatten(1)[:, :9])
