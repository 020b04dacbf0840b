"""Grids, SDE steps and DPM-Solver++ against the published forms, closed-form Gaussians and a reference's states."""

import math

import pytest
import torch
from torch.distributions import Normal

from rlir_env.schedules import (
    StepTable,
    data_and_noise,
    dpm_solver_coefficients,
    gaussian_log_prob,
    log_snr,
    select_steps,
    shifted_grid,
    step_table,
    window,
)

DOUBLE = torch.float64
GRID = shifted_grid(10)
STOCHASTIC = ["dance", "flow", "cps"]


def table_of(*args, **kwargs):
    return step_table(*args, dtype=DOUBLE, **kwargs)


def latents(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=DOUBLE)


# Grids


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (
            18,
            "1 .9808 .96 .9375 .913 .8864 .8571 .825 .7895 .75 .7059 .6563 .6 .5357 .4615 .375 .2727 .15 0",
        ),
        (10, "1 .9643 .9231 .875 .8182 .75 .6667 .5625 .4286 .25 0"),
    ],
    ids=["N=18", "N=10"],
)
def test_published_grids(num_steps, expected):
    grid = shifted_grid(num_steps)
    assert grid.dtype == DOUBLE
    torch.testing.assert_close(
        grid, torch.tensor([float(t) for t in expected.split()], dtype=DOUBLE), atol=6e-5, rtol=0
    )


def test_live_starts_a_thousandth_later():
    grid = shifted_grid(18, start=0.999)
    expected = torch.tensor([0.99967, 0.98043, 0.95965], dtype=DOUBLE)
    torch.testing.assert_close(grid[:3], expected, atol=5e-6, rtol=0)
    assert grid[-2].item() == pytest.approx(0.149865, abs=5e-7)
    assert shifted_grid(10, start=0.999)[-2].item() == pytest.approx(0.249792, abs=5e-7)


def test_without_shift_the_grid_is_linear():
    torch.testing.assert_close(shifted_grid(4, shift=1), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=DOUBLE))


def test_labels_of_round_timesteps_do_not_lose_one():
    # t = 3 (N - k) / (N + 2 (N - k)), in whole numbers; 3/12 = .25 must not fall a bit short before it is cut to 250.
    assert (1000 * GRID).long().tolist() == [1000, 964, 923, 875, 818, 750, 666, 562, 428, 250, 0]
    for num_steps in range(1, 61):
        exact = [3000 * left // (num_steps + 2 * left) for left in range(num_steps, -1, -1)]
        assert (1000 * shifted_grid(num_steps)).long().tolist() == exact


# Steps


def test_one_step_by_hand():
    # From t = 1 to 1/2, dance 0.8: std^2 = .64 / 2 = .32, noise weight .5 - .32 / 2 = .34. The velocity 2 at x = 1 says
    # data 1 - 2 = -1 and noise 1 + 0 = 1, so the mean is -.5 + .34 = -.16.
    table = table_of(torch.tensor([1.0, 0.5, 0.0]), "dance", 0.8)
    torch.testing.assert_close(table.std, torch.tensor([math.sqrt(0.32), 0.0], dtype=DOUBLE))
    torch.testing.assert_close(table.data_coeff, torch.tensor([0.5, 1.0], dtype=DOUBLE))
    torch.testing.assert_close(table.noise_coeff, torch.tensor([0.34, 0.0], dtype=DOUBLE))
    mean = table.mean(torch.ones(1, 1, 1), torch.full((1, 1, 1), 2.0), 0)
    assert mean.item() == pytest.approx(-0.16)


def published_step(variant, a, latent, velocity, k):
    """Mean and std as each repository writes them, with their words, for k < N - 1."""
    sigma, sigma_prev = GRID[k], GRID[k + 1]
    dt = sigma_prev - sigma
    if variant == "dance":
        pred_original = latent - sigma * velocity
        score = -(latent - pred_original * (1 - sigma)) / sigma**2
        return latent + dt * velocity + (-0.5 * a**2 * score) * dt, a * (sigma - sigma_prev).sqrt()
    if variant == "flow":
        std_dev_t = (sigma / (1 - (GRID[1] if sigma == 1 else sigma))).sqrt() * a
        mean = latent * (1 + std_dev_t**2 / (2 * sigma) * dt)
        mean = mean + velocity * (1 + std_dev_t**2 * (1 - sigma) / (2 * sigma)) * dt
        return mean, std_dev_t * (-dt).sqrt()
    std_dev_t = sigma_prev * math.sin(a * math.pi / 2)
    pred_original, pred_noise = latent - sigma * velocity, latent + velocity * (1 - sigma)
    return pred_original * (1 - sigma_prev) + pred_noise * (sigma_prev**2 - std_dev_t**2).sqrt(), std_dev_t


@pytest.mark.parametrize(("variant", "noise_level"), [("dance", 0.75), ("flow", 0.7), ("cps", 0.8)])
def test_tables_equal_the_published_forms(variant, noise_level):
    table = table_of(GRID, variant, noise_level)
    for k in range(9):
        latent, velocity = latents(3, 2, 2, seed=k)
        mean, std = published_step(variant, noise_level, latent, velocity, k)
        torch.testing.assert_close(table.mean(latent, velocity, k), mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(table.std[k], std, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mean", ["euler", "exact_variance"])
@pytest.mark.parametrize("variant", [*STOCHASTIC, "ode"])
def test_without_noise_every_variant_is_the_euler_step_of_the_ode(variant, mean):
    table = table_of(GRID, variant, 1e-8, mean=mean)
    latent, velocity = latents(10, 3, 2, 2)
    length = (GRID[:-1] - GRID[1:])[:, None, None, None]
    expected = latent - length * velocity
    torch.testing.assert_close(table.mean(latent, velocity, torch.arange(10)), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("mean", ["euler", "exact_variance"])
@pytest.mark.parametrize("variant", [*STOCHASTIC, "ode"])
def test_the_last_step_is_the_predicted_data(variant, mean):
    table = table_of(GRID, variant, mean=mean)
    latent, velocity = latents(3, 2, 2)
    assert torch.equal(table.mean(latent, velocity, 9), latent - GRID[9] * velocity)
    assert table.is_stochastic.tolist() == [variant != "ode"] * 9 + [False]
    assert table.trainable_steps.tolist() == (list(range(9)) if variant != "ode" else [])


@pytest.mark.parametrize(
    ("variant", "noise_level", "expected"),
    [
        ("dance", 0.75, [0.14, 0.15, 0.16, 0.18, 0.20, 0.22, 0.24, 0.27, 0.32]),
        ("flow", 0.75, [0.75, 0.79, 0.57, 0.47, 0.42, 0.38, 0.34, 0.31, 0.27]),
        ("flow", 0.7, [0.70, 0.74, 0.53, 0.44, 0.39, 0.35, 0.32, 0.29, 0.26]),
        ("cps", 0.8, [0.92, 0.88, 0.83, 0.78, 0.71, 0.63, 0.53, 0.41, 0.24]),
    ],
)
def test_step_stds(variant, noise_level, expected):
    std = step_table(GRID, variant, noise_level).std
    torch.testing.assert_close(std, torch.tensor([*expected, 0.0]), atol=0.0051, rtol=0)


def excess_noise(table):
    """Noise that a latent holds over the noise its timestep says, after each stochastic step, if the data are known."""
    one = torch.ones(1, 1, 1, dtype=DOUBLE)
    variance, excess = table.timestep[0] ** 2, []
    for k in table.trainable_steps.tolist():
        # Data at zero: the latent is all noise, and the velocity that says so is x / t.
        factor = table.mean(one, one / table.timestep[k], k).squeeze()
        variance = factor**2 * variance + table.std[k] ** 2
        excess.append((variance.sqrt() / table.timestep[k + 1]).item())
    return excess


@pytest.mark.parametrize(
    ("num_steps", "shift", "dance", "flow"),
    [
        (10, 3.0, [1.05, 1.06, 1.18, 1.39], 1.29),
        (18, 3.0, [1.09, 1.13, 1.35, 1.76], 1.29),
        (20, 3.0, [1.10, 1.15, 1.39, 1.86], 1.29),
        (10, 1.0, [1.18, 1.25, 1.64, 2.43], 1.38),
    ],
)
def test_excess_noise(num_steps, shift, dance, flow):
    grid = shifted_grid(num_steps, shift)
    for noise_level, expected in zip([0.25, 0.3, 0.5, 0.75], dance, strict=True):
        excess = excess_noise(table_of(grid, "dance", noise_level))
        assert excess[-1] == max(excess) == pytest.approx(expected, abs=0.0051)
    assert excess_noise(table_of(grid, "flow", 0.7))[-1] == pytest.approx(flow, abs=0.0051)
    for variant, mean in [("cps", "euler"), ("dance", "exact_variance"), ("flow", "exact_variance")]:
        assert excess_noise(table_of(grid, variant, 0.75, mean=mean)) == pytest.approx([1.0] * (num_steps - 1))


def test_excess_noise_of_flow_is_spread_over_the_steps():
    excess = excess_noise(table_of(GRID, "flow", 0.7))
    assert min(excess) == pytest.approx(1.04, abs=0.0051) and excess[-2] == pytest.approx(1.13, abs=0.0051)


def gaussian_marginals(table, centre=1.0, spread=0.5):
    """Errors of the mean and ratios of the deviation, [N] each, where the data are N(centre, spread^2).

    Given x at t the noise has the mean t (x - (1 - t) centre) / V with V = (1 - t)^2 spread^2 + t^2, the data likewise;
    so every step maps a Gaussian to a Gaussian, and two points show how.
    """
    points = torch.tensor([0.0, 1.0], dtype=DOUBLE)[:, None, None, None]
    mean, variance = torch.zeros((), dtype=DOUBLE), torch.ones((), dtype=DOUBLE)
    errors, ratios = [], []
    for k in range(table.num_steps):
        t, following = table.timestep[k], table.timestep[k + 1]
        deviation = (points - (1 - t) * centre) / ((1 - t) ** 2 * spread**2 + t**2)
        velocity = t * deviation - (centre + (1 - t) * spread**2 * deviation)
        offset, end = table.mean(points, velocity, k).flatten()
        mean, variance = offset + (end - offset) * mean, (end - offset) ** 2 * variance + table.std[k] ** 2
        errors.append(mean - (1 - following) * centre)
        ratios.append((variance / ((1 - following) ** 2 * spread**2 + following**2)).sqrt())
    return torch.stack(errors).abs(), torch.stack(ratios)


@pytest.mark.parametrize(
    ("variant", "noise_level", "tolerance"),
    [
        ("ode", 0.75, 0.004),  # what the grid alone costs
        ("dance", 0.75, 0.002),
        ("flow", 0.75, 0.011),
        ("cps", 0.8 / math.sqrt(1000 / 10), 0.006),  # an SDE only where the variance of the kick shrinks with the step
    ],
)
def test_many_steps_keep_every_marginal_of_gaussian_data(variant, noise_level, tolerance):
    errors, ratios = gaussian_marginals(table_of(shifted_grid(1000), variant, noise_level))
    assert errors.max() < 1e-12
    # Flow's first kicks do not shrink with N, since 1 - t does: a transient of .06 that later steps take back.
    settled = ratios[100:] if variant == "flow" else ratios
    assert (settled - 1).abs().max() < tolerance
    assert (ratios - 1).abs().max() < 0.06


def test_many_steps_keep_the_marginals_with_exact_variance_too_but_slowly():
    shortfalls = []
    for num_steps in (250, 1000):
        errors, ratios = gaussian_marginals(table_of(shifted_grid(num_steps), "dance", 0.75, mean="exact_variance"))
        assert errors.max() < 1e-12
        shortfalls.append(1 - ratios.min().item())
    # A few steps before the end, t' is of the order 1 / N and the kick eta sqrt(D) / t' of the noise is not small; the
    # share of the path where it is not falls as sqrt(1 / N): by half for four times the steps.
    assert shortfalls[1] < 0.03 and shortfalls[0] > 2 * shortfalls[1]


@pytest.mark.parametrize("num_steps", [100, 1000])
def test_kicks_of_cps_cost_spread_at_any_number_of_steps(num_steps):
    # Each step redraws the same share of the noise around the *average* data, so the spread of .5 is not kept...
    errors, ratios = gaussian_marginals(table_of(shifted_grid(num_steps), "cps", 0.8))
    assert errors.max() < 1e-12 and 0.75 < ratios[-1] < 0.82
    # ... while noise around known data is kept to rounding.
    assert excess_noise(table_of(shifted_grid(num_steps), "cps", 0.8)) == pytest.approx([1.0] * (num_steps - 1))


@pytest.mark.parametrize("variant", STOCHASTIC)
def test_exact_variance_adds_up_to_the_next_timestep(variant):
    noise_level = 0.9 if variant == "cps" else 0.75
    table = table_of(GRID, variant, noise_level, mean="exact_variance")
    torch.testing.assert_close(table.noise_coeff**2 + table.std**2, GRID[1:] ** 2)
    euler = table_of(GRID, variant, noise_level)
    if variant == "dance":  # .2745 / .4286 fits, .3169 / .25 does not and is cut to .95 * .25
        assert torch.equal(table.std[:8], euler.std[:8])
        assert table.std[8].item() == pytest.approx(0.2375)
    if variant == "cps":  # sin(81 degrees) = .988, which is not cut
        assert torch.equal(table.std, euler.std) and torch.equal(table.noise_coeff, euler.noise_coeff)


def test_cps_at_its_largest_is_all_fresh_noise():
    table = table_of(GRID, "cps", 1.0)
    assert torch.equal(table.std, GRID[1:]) and torch.equal(table.noise_coeff, torch.zeros(10, dtype=DOUBLE))


def test_flow_on_a_grid_from_just_below_one_is_close_to_flow_from_one():
    # 1 - t is 3e-4 at the start: the formula without the second timestep would give a std of 7.8.
    std = step_table(shifted_grid(10, start=0.999), "flow").std
    torch.testing.assert_close(std, step_table(GRID, "flow").std, atol=0.005, rtol=0)


def test_a_window_makes_the_other_steps_ode_steps():
    everywhere, ode = table_of(GRID, "flow"), table_of(GRID, "ode")
    inside = window(10, first=2, length=3)
    table = table_of(GRID, "flow", stochastic_steps=inside)
    assert torch.equal(table.is_stochastic, inside) and table.trainable_steps.tolist() == [2, 3, 4]
    for name in ("data_coeff", "noise_coeff", "std"):
        expected = torch.where(inside, getattr(everywhere, name), getattr(ode, name))
        assert torch.equal(getattr(table, name), expected)


def test_a_mask_cannot_make_the_last_step_stochastic():
    table = step_table(GRID, "dance", stochastic_steps=torch.ones(10, dtype=torch.bool))
    assert not table.is_stochastic[9]
    assert not step_table(GRID, "dance", stochastic_steps=torch.zeros(10, dtype=torch.bool)).is_stochastic.any()


def test_steps_are_gathered_for_each_latent():
    table = step_table(GRID)
    latent, velocity = latents(2, 3, 4, 1, 2, 2).float()  # [P, G, T, c, h, w]
    step = torch.randint(10, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    mean = table.mean(latent, velocity, step)
    for place in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        torch.testing.assert_close(mean[place], table.mean(latent[place], velocity[place], int(step[place])))
    shared = table.mean(latent, velocity, torch.arange(4))  # one step along T, the same for all videos
    assert torch.equal(shared[1, 2, 3], table.mean(latent[1, 2, 3], velocity[1, 2, 3], 3))


def test_means_are_calculated_in_the_precision_of_the_table():
    latent, velocity = latents(2, 1, 2, 2)
    step = torch.tensor([3, 8])
    assert step_table(GRID).std.dtype == torch.float32
    low = step_table(GRID).mean(latent.float(), velocity.bfloat16(), step)
    exact = table_of(GRID).mean(latent.float(), velocity.bfloat16(), step)
    assert low.dtype == torch.float32 and exact.dtype == DOUBLE
    torch.testing.assert_close(low, exact.float(), atol=1e-6, rtol=0)
    assert step_table(GRID).mean(latent, velocity, step).dtype == torch.float32


def test_data_and_noise_make_the_latent():
    (latent, velocity), t = latents(4, 1, 2, 2), torch.tensor([1.0, 0.7, 0.2, 0.0], dtype=DOUBLE)
    data, noise = data_and_noise(latent, velocity, t)
    weight = t[:, None, None, None]
    torch.testing.assert_close((1 - weight) * data + weight * noise, latent)
    torch.testing.assert_close(noise - data, velocity)


def test_a_table_moves_as_a_whole():
    table = step_table(GRID).to("meta")
    assert {column.device.type for column in (table.timestep, table.data_coeff, table.noise_coeff, table.std)} == {
        "meta"
    }


# Log-probs


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_prob_is_torchs(reduction):
    value, mean = latents(2, 3, 4, 2, 2)
    std = torch.tensor([[0.1, 0.5, 2.0]], dtype=DOUBLE)  # broadcasts over the first dimension
    log_prob = gaussian_log_prob(value, mean, std, reduction)
    expected = Normal(mean, std[..., None, None, None]).log_prob(value)
    assert log_prob.shape == (2, 3)
    torch.testing.assert_close(log_prob, getattr(expected, reduction)((-3, -2, -1)))


def test_log_prob_of_low_precision_is_taken_in_float32():
    value, mean = latents(2, 4, 2, 2).bfloat16()
    std = torch.tensor([0.1, 0.5])
    log_prob = gaussian_log_prob(value, mean, std)
    assert log_prob.dtype == torch.float32
    assert torch.equal(log_prob, gaussian_log_prob(value.float(), mean.float(), std))


@pytest.mark.parametrize(
    ("variant", "noise_level", "expected"),
    [
        ("dance", 0.75, [0.25, 0.27, 0.30, 0.33, 0.37, 0.42, 0.49, 0.59, 0.77]),
        ("dance", 0.3, [0.63, None, None, None, None, None, None, None, 1.49]),
        ("flow", 0.7, [0.05, 0.07, 0.11, 0.16, 0.22, 0.30, 0.41, 0.57, 0.87]),
    ],
)
def test_gradient_with_respect_to_the_velocity(variant, noise_level, expected):
    """d log-prob / d v = -z sqrt(D) (1/s + s (1 - t) / (2 t)) for a value that is z deviations from the mean."""
    table = table_of(GRID, variant, noise_level)
    steps = table.trainable_steps
    latent, velocity = latents(9, 2, 2, 2)
    z = latents(9, 2, 2, 2, seed=1)[0]
    velocity.requires_grad_()
    mean = table.mean(latent, velocity, steps)
    std = table.std[steps]
    value = (mean + std[:, None, None, None] * z).detach()
    (gradient,) = torch.autograd.grad(gaussian_log_prob(value, mean, std, "sum").sum(), velocity)
    t, length = GRID[:9], GRID[:9] - GRID[1:10]
    diffusion = std / length.sqrt()
    weight = length.sqrt() * (1 / diffusion + diffusion * (1 - t) / (2 * t))
    torch.testing.assert_close(gradient, -z * weight[:, None, None, None])
    for got, printed in zip(weight.tolist(), expected, strict=True):
        assert printed is None or got == pytest.approx(printed, abs=0.0052)
    (of_mean,) = torch.autograd.grad(gaussian_log_prob(value, table.mean(latent, velocity, steps), std).sum(), velocity)
    torch.testing.assert_close(of_mean, gradient / 8)


# Selection of steps


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("num_trainable", "fraction", "expected"),
    [(9, 0.6, 5), (9, 1.0, 9), (9, 0.05, 1), (1, 0.6, 1), (100, 0.29, 29), (9, 0.99, 8)],
)
def test_number_of_selected_steps(num_trainable, fraction, expected):
    places = select_steps(noise(2, 3, num_trainable), fraction)
    assert places.shape == (2, 3, expected) and places.dtype == torch.long


def test_selections_are_sorted_distinct_uniform_and_independent():
    places = select_steps(noise(4000, 9), 0.6)
    assert (places.diff(dim=-1) > 0).all() and places.min() == 0 and places.max() == 8
    # Each of 9 is in 5 of 9 draws; a share of 4000 draws has a deviation of sqrt(5/9 4/9 / 4000) = .008.
    counts = torch.bincount(places.flatten(), minlength=9) / 4000
    torch.testing.assert_close(counts, torch.full((9,), 5 / 9), atol=0.035, rtol=0)
    # All 126 subsets appear: one is missed by 4000 draws with probability e^-32.
    assert len(places.unique(dim=0)) == math.comb(9, 5)


def test_selection_is_a_function_of_the_noise():
    first, second, other = (select_steps(noise(50, 9, seed=seed), 0.6) for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_selection_within_a_window_gives_steps_of_the_window():
    table = step_table(GRID, stochastic_steps=window(10, first=4, length=3))
    places = select_steps(noise(100, len(table.trainable_steps)), 0.7)
    assert table.trainable_steps[places].unique().tolist() == [4, 5, 6] and places.shape == (100, 2)


# DPM-Solver++


def test_log_snr():
    # log((1 - .25) / .25) = log 3.
    timestep = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=DOUBLE)
    expected = torch.tensor([-math.inf, -math.log(3), 0.0, math.log(3), math.inf], dtype=DOUBLE)
    torch.testing.assert_close(log_snr(timestep), expected)


def test_dpm_solver_by_hand():
    # t = 1, 3/4, 1/2, 1/4, 0 with log-SNR -inf, -log 3, 0, log 3, inf. Third step: a = 1/2, both lengths log 3, so the
    # data get 1/2 (1 + 1/2) and those before -1/4. The second has no step before it on this clock.
    third, half = 1 / 3, 1 / 2
    expected = [[0.75, 0.25, 0], [2 * third, third, 0], [half, 0.75, -0.25], [0, 1, 0]]
    coefficients = dpm_solver_coefficients(shifted_grid(4, shift=1))
    torch.testing.assert_close(coefficients, torch.tensor(expected, dtype=DOUBLE))
    first_order = dpm_solver_coefficients(shifted_grid(4, shift=1, start=0.999))[:, 2] == 0
    assert first_order.tolist() == [True, False, False, True]


@pytest.mark.parametrize("start", [1.0, 0.999])
def test_dpm_solver_is_exact_for_known_data(start):
    grid = shifted_grid(18, start=start)
    latent_coeff, data_coeff, before_coeff = dpm_solver_coefficients(grid).unbind(-1)
    latent = (1 - grid) * 3.0 + grid * -2.0  # data 3, noise -2
    torch.testing.assert_close(latent_coeff * latent[:-1] + (data_coeff + before_coeff) * 3.0, latent[1:])


@pytest.mark.parametrize("run", ["N18_ctxnoise1", "N18_ctxnoise0", "N10_ctxnoise1", "N10_ctxnoise0"])
def test_dpm_solver_goes_where_the_reference_went(run, fixtures_dir):
    fixture = torch.load(fixtures_dir / "live_dit.pt", weights_only=True)["outputs"]["sampler"][run]
    num_steps = fixture["v"].shape[1]
    grid = shifted_grid(num_steps, start=0.999)
    torch.testing.assert_close(grid, fixture["grid"].double(), atol=1e-7, rtol=0)
    assert (1000 * grid[:-1]).long().tolist() == fixture["t_label"][0, :, -1].tolist()
    states = fixture["states"][0].double()
    data, _ = data_and_noise(states[:-1], fixture["v"][0].double(), grid[:-1])
    data_before = torch.cat([torch.zeros_like(data[:1]), data[:-1]])
    weights = dpm_solver_coefficients(grid)[..., None, None, None].unbind(1)
    after = weights[0] * states[:-1] + weights[1] * data + weights[2] * data_before
    # 2e-5 is the reference's own float32; a second step of first order would be off by 7e-4 or more.
    torch.testing.assert_close(after, states[1:], atol=5e-5, rtol=0)


def solve_gaussian(grid, coefficients, num_steps, centre=1.0, spread=0.5, noise=1.3):
    """Error of a solver after some steps: the ODE of Gaussian data keeps a latent at the same number of deviations."""

    def on_path(t):
        return (1 - t) * centre + ((1 - t) ** 2 * spread**2 + t**2).sqrt() * noise

    latent, before = on_path(grid[0]), torch.zeros((), dtype=DOUBLE)
    for t, (a, b, c) in zip(grid[:num_steps], coefficients, strict=False):
        data = centre + (1 - t) * spread**2 * (latent - (1 - t) * centre) / ((1 - t) ** 2 * spread**2 + t**2)
        latent, before = a * latent + b * data + c * before, data
    return (latent - on_path(grid[num_steps])).abs().item()


def test_dpm_solver_converges_at_second_order():
    errors = []
    for num_steps in (32, 64, 128, 256):  # even steps on the clock from log-SNR -3 to 3, and one to the data
        grid = torch.cat([torch.linspace(3, -3, num_steps + 1, dtype=DOUBLE).sigmoid(), torch.zeros(1, dtype=DOUBLE)])
        errors.append(solve_gaussian(grid, dpm_solver_coefficients(grid), num_steps))
    ratios = [coarse / fine for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert ratios == pytest.approx([4, 4, 4], abs=0.15)


def test_dpm_solver_beats_euler_on_the_published_grid():
    for num_steps in (18, 100):
        grid = shifted_grid(num_steps)
        second_order = solve_gaussian(grid, dpm_solver_coefficients(grid), num_steps)
        shrink = grid[1:] / grid[:-1]
        euler = torch.stack([shrink, 1 - shrink, torch.zeros_like(shrink)], dim=-1)
        assert second_order < 0.3 * solve_gaussian(grid, euler, num_steps)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shifted_grid(0), "at least 1 denoising step"),
        (lambda: shifted_grid(10, shift=0), "give a positive number"),
        (lambda: shifted_grid(10, shift=math.nan), "give a positive number"),
        (lambda: shifted_grid(10, start=1.001), r"give the first u in \(0, 1\]"),
        (lambda: shifted_grid(10, start=0), r"give the first u in \(0, 1\]"),
        (lambda: step_table(GRID.flip(0)), "decreases from at most 1"),
        (lambda: step_table(GRID[:-1]), "to exactly 0"),
        (lambda: step_table(1000 * GRID), "at most 1"),
        (lambda: step_table(GRID[None]), r"give a grid \[N\+1\]"),
        (lambda: step_table(torch.zeros(1)), r"give a grid \[N\+1\]"),
        (lambda: step_table(torch.tensor([1, 0])), r"give a grid \[N\+1\]"),
        (lambda: step_table(torch.tensor([math.nan, 0.5, 0.0])), r"give a grid \[N\+1\]"),
        (lambda: step_table(torch.tensor([1.0, 0.5, 0.5, 0.0])), "decreases"),
        (lambda: step_table(GRID, "ddpm"), "choose one of dance, flow, cps, ode"),
        (lambda: step_table(GRID, mean="exact_var"), "choose 'euler'"),
        (lambda: step_table(GRID, noise_level=0), "variant='ode'"),
        (lambda: step_table(GRID, noise_level=math.nan), "give a positive number"),
        (lambda: step_table(GRID, "cps", noise_level=1.5), "at most 1"),
        (lambda: step_table(GRID, stochastic_steps=window(11, 0, 1)), r"window\(10, first, length\)"),
        (lambda: step_table(GRID, stochastic_steps=torch.arange(10)), "give one bool"),
        (lambda: StepTable(GRID, GRID, GRID, GRID), "one fewer than timesteps"),
        (lambda: window(10, -1, 2), "first >= 0"),
        (lambda: window(10, 3, 0), "length >= 1"),
        (lambda: window(10, 8, 2), "the last never samples"),
        (lambda: select_steps(torch.rand(2, 0), 0.6), "give a step_table that samples"),
        (lambda: select_steps(torch.rand(2, 9), 0.0), r"give a share in \(0, 1\]"),
        (lambda: select_steps(torch.rand(2, 9), 60), r"give a share in \(0, 1\]"),
        (lambda: dpm_solver_coefficients(GRID.flip(0)), "decreases"),
    ],
)
def test_errors_name_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_errors_about_latents_name_the_fix():
    table, latent = step_table(GRID), torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match="step of shape .* one number per latent"):
        table.mean(latent, latent, torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="timestep of shape .* one number per latent"):
        data_and_noise(latent, latent, torch.ones(2, 1, 1, 1))
    with pytest.raises(ValueError, match="std of shape .* one number per latent"):
        gaussian_log_prob(latent, latent, torch.ones(2, 1))
    with pytest.raises(ValueError, match="trainable_steps only"):
        gaussian_log_prob(latent, latent, table.std[torch.tensor([8, 9])])
    with pytest.raises(ValueError, match="choose 'mean' or 'sum'"):
        gaussian_log_prob(latent, latent, torch.ones(2), "batchmean")


# Reference page, section 2.4, N = 10.
SENSITIVITY = {
    ("dance", 0.75): [0.25, 0.27, 0.30, 0.33, 0.37, 0.42, 0.49, 0.59, 0.77],
    ("flow", 0.7): [0.05, 0.07, 0.11, 0.16, 0.22, 0.30, 0.41, 0.57, 0.87],
}


@pytest.mark.parametrize(("variant", "noise_level"), SENSITIVITY)
def test_sensitivity_is_that_of_the_log_prob(variant, noise_level):
    table = step_table(GRID, variant, noise_level, dtype=torch.float64)
    torch.testing.assert_close(
        table.sensitivity[:-1], torch.tensor(SENSITIVITY[variant, noise_level]).double(), atol=0.0051, rtol=0
    )
    assert table.sensitivity[-1] == 0
    for step in range(9):  # noise of size one: the gradient of the summed log-prob has this size everywhere
        latent, velocity = torch.randn(2, 3, 2, 2).double().unbind(0)
        velocity.requires_grad_()
        mean = table.mean(latent, velocity, step)
        gaussian_log_prob(mean.detach() + table.std[step], mean, table.std[step], "sum").backward()
        torch.testing.assert_close(velocity.grad.abs(), table.sensitivity[step].expand(3, 2, 2))
    weights = table.flat_weights
    torch.testing.assert_close((weights * table.sensitivity)[:-1].diff(), torch.zeros(8).double(), atol=1e-12, rtol=0)
    assert weights[:-1].mean() == pytest.approx(1) and weights[-1] == 1
