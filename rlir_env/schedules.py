"""How noise becomes a frame: the grid of timesteps, and what one denoising step of each SDE does to a latent.

RLIR's diffusion branch (section 3.2; settings in Table 7) needs a policy that samples, and a flow-matching sampler does
not. DanceGRPO (arXiv 2505.07818), Flow-GRPO (2505.05470) and Flow-CPS (2509.05952) each turn the sampler's ODE into
steps z' ~ N(mean, std^2) with a log-prob. The mean of all of them is linear in the same two predictions, so each one is
a small table of numbers, and the code that uses it has no cases. What is not here: a network, the draw of a latent, the
loss.

Words: a *timestep* t is a value in [0, 1], 1 = noise and 0 = data; a *denoising step* is an index k = 0 .. N-1 and
leads from timestep t_k to t_{k+1}; the *noise level* is the paper's epsilon_t. A latent at t is
``(1 - t) data + t noise``, and the network predicts the velocity ``noise - data``. A prime marks what follows: t', z'.

Letters: N denoising steps, c h w a latent's channels, height and width, K selected steps; ``...`` is any leading shape,
such as [P, G, T].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Variant = Literal["dance", "flow", "cps", "ode"]

# A step of exact variance takes at least sqrt(1 - 0.95^2) = 31 % of the next latent's noise from the one before; with
# none, it would be a fresh draw around the predicted data.
MAX_FRESH_NOISE = 0.95


def shifted_grid(num_steps: int, shift: float = 3.0, start: float = 1.0) -> torch.Tensor:
    """Timesteps of N denoising steps: ``t = shift u / (1 + (shift - 1) u)`` at ``u_k = start (1 - k / N)``.

    A shift above 1 spends more steps on high noise, where layout and motion are decided. LIVE (arXiv 2602.03747), the
    public descendant of NFD, shifts by 3 and starts at ``start=0.999``; diffusers starts there too.

    Args:
        num_steps: N.
        shift: 1 is the linear grid.
        start: u of the first timestep. Where it is 1 the first latent is pure noise.

    Returns:
        Decreasing timesteps, the last exactly 0, float64 [N+1].

    Raises:
        ValueError: if there is no step, or shift and start give no timesteps in [0, 1].

    Example:
        >>> [round(t, 3) for t in shifted_grid(4).tolist()]
        [1.0, 0.9, 0.75, 0.5, 0.0]
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: sampling takes at least 1 denoising step (the paper: 10)")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift={shift}: give a positive number; 1 is the linear grid, NFD's is 3")
    if not 0 < start <= 1:
        raise ValueError(f"start={start}: give the first u in (0, 1]; 1 is pure noise, LIVE's is 0.999")
    # N u, not u: whole numbers at start=1, so that t = 1/4 is 0.25 and its label int(1000 t) not 249.
    scaled_u = start * torch.arange(num_steps, -1, -1, dtype=torch.float64)
    return shifted(scaled_u, shift, num_steps)


def shifted(u: torch.Tensor, shift: float, scale: float = 1.0) -> torch.Tensor:
    """Timesteps ``t = shift u / (1 + (shift - 1) u)``: those of a grid, and those that a model is trained on.

    Args:
        u: floating point in [0, scale], any shape.
        shift: above 1 there are more timesteps near noise.
        scale: what u counts as 1.

    Returns:
        Timesteps in [0, 1], like u.
    """
    return shift * u / (scale + (shift - 1) * u)


def data_and_noise(
    latent: torch.Tensor, velocity: torch.Tensor, timestep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a velocity as the data and the noise that it implies: ``x - t v`` and ``x + (1 - t) v``.

    Args:
        latent: x at the timestep, [..., c, h, w].
        velocity: v, the network's estimate of noise - data, [..., c, h, w].
        timestep: t, [...] or any shape that broadcasts to it.

    Returns:
        Predicted data and predicted noise, each [..., c, h, w].

    Raises:
        ValueError: if `timestep` has more dimensions than ``...``.
    """
    t = _over_latents(timestep, latent, "timestep")
    return latent - t * velocity, latent + (1 - t) * velocity


@dataclass(frozen=True, eq=False)  # eq: a comparison of tensors is not one bool
class StepTable:
    """What denoising step k does: z' ~ N(data_coeff[k] data + noise_coeff[k] noise, std[k]^2).

    Data and noise are the predictions of `data_and_noise`. A step with std 0 is deterministic: no action of the MDP,
    and without a log-prob.

    Attributes:
        timestep: t_0 > ... > t_N = 0, [N+1].
        data_coeff: weight of the predicted data, [N].
        noise_coeff: weight of the predicted noise, [N].
        std: standard deviation of the step's own noise, [N].

    Raises:
        ValueError: if the lengths do not belong together.

    Example:
        >>> table = step_table(shifted_grid(4), "dance", noise_level=0.5)
        >>> table.is_stochastic.tolist()
        [True, True, True, False]
        >>> latent, velocity = torch.ones(2, 1, 1, 1), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        >>> table.mean(latent, velocity, torch.tensor([3, 3])).flatten().tolist()  # the last is x - t v, here t = 1/2
        [1.0, 0.5]
    """

    timestep: torch.Tensor
    data_coeff: torch.Tensor
    noise_coeff: torch.Tensor
    std: torch.Tensor

    def __post_init__(self) -> None:
        lengths = [len(column) for column in (self.data_coeff, self.noise_coeff, self.std)]
        if lengths != [len(self.timestep) - 1] * 3:
            raise ValueError(
                f"{len(self.timestep)} timesteps with columns of {lengths} rows: give one row per denoising step, "
                "one fewer than timesteps"
            )

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.std)

    @property
    def is_stochastic(self) -> torch.Tensor:
        """Which denoising steps sample, bool [N]."""
        return self.std > 0

    @property
    def trainable_steps(self) -> torch.Tensor:
        """Indices of the denoising steps that sample, and so have a log-prob, in order, long [at most N-1]."""
        return self.is_stochastic.nonzero().squeeze(-1)

    def mean(self, latent: torch.Tensor, velocity: torch.Tensor, step: torch.Tensor | int) -> torch.Tensor:
        """Mean of the next latent; for a deterministic step, the next latent itself.

        Calculated in the precision of the table, whatever the network ran in.

        Args:
            latent: the latents now, [..., c, h, w].
            velocity: the network's velocity there, [..., c, h, w].
            step: denoising step of each latent, 0 .. N-1, long [...] or any shape that broadcasts to it.

        Returns:
            Means, [..., c, h, w].

        Raises:
            ValueError: if `step` has more dimensions than ``...``.
        """
        latent, velocity = latent.to(self.std.dtype), velocity.to(self.std.dtype)
        data_coeff = _over_latents(self.data_coeff[step], latent, "step")
        noise_coeff = _over_latents(self.noise_coeff[step], latent, "step")
        data, noise = data_and_noise(latent, velocity, self.timestep[:-1][step])
        return data_coeff * data + noise_coeff * noise

    @property
    def sensitivity(self) -> torch.Tensor:
        """How far a change of the velocity moves a step's mean, in units of its std, [N]; 0 for deterministic steps.

        It is the size of ``d log-prob / d velocity`` for noise of size one: a step's weight in a policy gradient. For
        DanceGRPO's steps it rises by 3 from the first to the last, for Flow-GRPO's by 17, which leaves the steps that
        decide layout and motion almost without a gradient.
        """
        now = self.timestep[:-1]
        moved = (self.noise_coeff * (1 - now) - self.data_coeff * now).abs()
        return torch.where(self.is_stochastic, moved / self.std.where(self.is_stochastic, torch.ones_like(now)), 0.0)

    @property
    def flat_weights(self) -> torch.Tensor:
        """Weights that make all steps that sample equally sensitive, of mean 1 over them; 1 for the others, [N]."""
        inverse = torch.where(self.is_stochastic, 1 / self.sensitivity, 0.0)
        return torch.where(self.is_stochastic, inverse / inverse[self.is_stochastic].mean(), 1.0)

    def to(self, device: torch.device | str) -> StepTable:
        """Return the same table on another device."""
        columns = (self.timestep, self.data_coeff, self.noise_coeff, self.std)
        return StepTable(*(column.to(device) for column in columns))


def step_table(
    timestep: torch.Tensor,
    variant: Variant = "dance",
    noise_level: float = 0.75,
    *,
    mean: Literal["euler", "exact_variance"] = "euler",
    stochastic_steps: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> StepTable:
    """Tabulate one variant of the SDE on one grid.

    With D = t - t', an Euler step of ``dx = [v + s^2 / (2 t) noise] dt + s dW`` has ``std = s sqrt(D)`` and the mean
    ``(1 - t') data + (t' - std^2 / (2 t)) noise``: the correction pulls towards less noise, and so takes back what the
    kick adds. The variants differ in the kick:

    - ``"dance"`` (DanceGRPO; so we read Table 7): s is the noise level; its code uses 0.25 to 0.3.
    - ``"flow"`` (Flow-GRPO): s is the noise level times ``sqrt(t / (1 - t))``; its code uses 0.7. Where t is 1 its code
      takes 1 - t at the second timestep; here the first step always does, because LIVE's grid starts at 1 - t = 3e-4.
    - ``"cps"`` (Flow-CPS): ``std = t' sin(noise_level pi / 2)``, always with the exact-variance mean below; its code
      uses 0.8. The kick does not shrink with the length of the step, so this is not a discretised SDE.
    - ``"ode"``: no noise; the noise level is not used.

    An Euler step leaves excess noise where t' is small: at N = 10 and dance 0.75, the latent that is labelled 0.25
    holds noise of 0.35. ``mean="exact_variance"`` gives the same kick, at most 0.95 t', and noise the weight
    ``sqrt(t'^2 - std^2)``, so that a latent holds the noise that its timestep says. The price: where the predicted data
    is an average over possible frames, every kick also loses some of their variance; the loss vanishes with the kick,
    as N grows for dance and flow, never for cps.

    The last step (t' = 0) is the predicted data in every variant, since its density would be a point.

    Args:
        timestep: strictly decreasing from at most 1 to exactly 0, [N+1], as from `shifted_grid`.
        variant: which SDE.
        noise_level: epsilon_t, the size of the kicks; at most 1 for cps.
        mean: the step as published, or the one that keeps the noise exact.
        stochastic_steps: bool [N], the steps that may sample; the others become ODE steps, as in MixGRPO (2507.21802)
            and Flow-GRPO-Fast. None is all of them; `window` makes the usual mask.
        dtype: precision of the table and of the means it gives; calculated in float64 and rounded once.

    Returns:
        The table, on the device of `timestep`.

    Raises:
        ValueError: if the grid, a name, the noise level or the mask is not one of the above.
    """
    check_grid(timestep)
    if variant not in _STDS:
        raise ValueError(f"variant={variant!r}: choose one of {', '.join(_STDS)}")
    if mean not in ("euler", "exact_variance"):
        raise ValueError(f"mean={mean!r}: choose 'euler' (as published) or 'exact_variance'")
    if variant != "ode" and not 0 < noise_level < math.inf:
        raise ValueError(f"noise_level={noise_level}: give a positive number, or variant='ode' for steps without noise")
    if variant == "cps" and noise_level > 1:
        raise ValueError(f"noise_level={noise_level}: cps turns by noise_level x 90 degrees, give at most 1")
    grid = timestep.double()
    now, following = grid[:-1], grid[1:]
    may_sample = following > 0
    if stochastic_steps is not None:
        if stochastic_steps.shape != now.shape or stochastic_steps.dtype != torch.bool:
            raise ValueError(
                f"stochastic_steps is {stochastic_steps.dtype} of shape {tuple(stochastic_steps.shape)}: give one bool "
                f"for each of the grid's {len(now)} denoising steps, for example window({len(now)}, first, length)"
            )
        may_sample = may_sample & stochastic_steps.to(grid.device)
    std = _STDS[variant](grid, noise_level)
    if mean == "exact_variance" and variant != "cps":
        std = torch.minimum(std, MAX_FRESH_NOISE * following)
    std = torch.where(may_sample, std, 0.0)
    if mean == "exact_variance" or variant == "cps":
        noise_coeff = (following**2 - std**2).clamp(min=0).sqrt()  # clamp: rounding, at cps of noise level 1
    else:
        noise_coeff = following - std**2 / (2 * now)
    return StepTable(*(column.to(dtype) for column in (grid, 1 - following, noise_coeff, std)))


def _dance_std(grid: torch.Tensor, noise_level: float) -> torch.Tensor:
    return noise_level * (grid[:-1] - grid[1:]).sqrt()


def _flow_std(grid: torch.Tensor, noise_level: float) -> torch.Tensor:
    # On LIVE's grid the first step's own 1 - t would make its std 7.8 at N = 10.
    data_share = 1 - torch.cat([grid[1:2], grid[1:-1]])
    return noise_level * (grid[:-1] / data_share).sqrt() * (grid[:-1] - grid[1:]).sqrt()


def _cps_std(grid: torch.Tensor, noise_level: float) -> torch.Tensor:
    return grid[1:] * math.sin(noise_level * math.pi / 2)


def _ode_std(grid: torch.Tensor, noise_level: float) -> torch.Tensor:
    return torch.zeros_like(grid[1:])


_STDS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "dance": _dance_std,
    "flow": _flow_std,
    "cps": _cps_std,
    "ode": _ode_std,
}


def window(num_steps: int, first: int, length: int) -> torch.Tensor:
    """Mask of consecutive denoising steps for `step_table`: the SDE window of MixGRPO and Flow-GRPO-Fast.

    Args:
        num_steps: N.
        first: the first step that samples.
        length: how many sample.

    Returns:
        True inside the window, bool [N].

    Raises:
        ValueError: if the window is empty or not within steps 0 .. N-2; step N-1 never samples.

    Example:
        >>> window(5, first=1, length=2).tolist()
        [False, True, True, False, False]
    """
    if first < 0 or length < 1 or first + length >= num_steps:
        raise ValueError(
            f"a window of {length} from step {first} on does not fit {num_steps} denoising steps, of which the last "
            "never samples: give first >= 0, length >= 1 and first + length < num_steps"
        )
    step = torch.arange(num_steps)
    return (step >= first) & (step < first + length)


def gaussian_log_prob(
    value: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    reduction: Literal["mean", "sum"] = "mean",
) -> torch.Tensor:
    """Log-density of the next latents, in float32 (in float64 where `value` or `mean` is).

    The public code of DanceGRPO and Flow-GRPO takes the mean over a latent's dimensions. The sum is the log-density
    itself, c h w times larger; so are its ratios' logarithms, and a clip made for one does not fit the other.

    Args:
        value: the next latent, [..., c, h, w]; detach it where the gradient is to be the policy's.
        mean: as from `StepTable.mean`, [..., c, h, w].
        std: of each latent's step, as ``table.std[step]``, [...] or any shape that broadcasts to it.
        reduction: ``"mean"`` or ``"sum"`` over c, h, w.

    Returns:
        Log-probs, [...].

    Raises:
        ValueError: if a std is not positive or has more dimensions than ``...``, or the reduction has another name.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r}: choose 'mean' or 'sum' over the dimensions of a latent")
    if not bool((std > 0).all()):
        raise ValueError(
            "std is not positive: a deterministic step has no log-prob, use StepTable.trainable_steps only"
        )
    dtype = torch.promote_types(torch.promote_types(value.dtype, mean.dtype), torch.float32)
    std = _over_latents(std.to(dtype), value, "std")
    log_density = -0.5 * ((value.to(dtype) - mean.to(dtype)) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
    latent_dims = (-3, -2, -1)
    return log_density.mean(latent_dims) if reduction == "mean" else log_density.sum(latent_dims)


def select_steps(uniform: torch.Tensor, fraction: float) -> torch.Tensor:
    """Draw the denoising steps to train on: timestep selection tau (DanceGRPO; Table 7 has 0.6).

    Every row of noise gets its own subset, uniformly and without replacement: noise of shape [P, G, n] gives one per
    video, as in DanceGRPO's code, [P, G, F-1, n] one per frame.

    Args:
        uniform: independent noise, one number for each of the n steps to choose from, [..., n].
        fraction: tau in (0, 1]; K is the whole part of ``fraction * n``, as in DanceGRPO's code (its paper rounds up),
            and at least 1. For N = 10 and 0.6 it is 5, of 9.

    Returns:
        Places among the n steps, increasing along the last dimension, long [..., K]. The denoising steps are
        ``table.trainable_steps[places]``; without a window the two are the same.

    Raises:
        ValueError: if there is nothing to choose from, or the fraction is not in (0, 1].

    Example:
        >>> select_steps(torch.tensor([0.3, 0.9, 0.1]), 0.67).tolist()
        [0, 2]
    """
    num_trainable = uniform.shape[-1]
    if num_trainable < 1:
        raise ValueError("no step to choose from: give a step_table that samples (variant, stochastic_steps)")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: give a share in (0, 1]; the paper's is 0.6, and 1 takes every step")
    # The small term: 0.29 * 100 is 28.999... in binary, and means 29.
    num_selected = max(1, math.floor(fraction * num_trainable + 1e-9))
    return uniform.argsort(dim=-1)[..., :num_selected].sort(dim=-1).values


def log_snr(timestep: torch.Tensor) -> torch.Tensor:
    """DPM-Solver's clock, lambda = ``log((1 - t) / t)``: minus infinity at noise, infinity at data.

    Args:
        timestep: t in [0, 1], floating point of any shape.

    Returns:
        Logarithms of the ratio of amplitudes, of the same shape and precision.
    """
    return -torch.logit(timestep)


def dpm_solver_coefficients(timestep: torch.Tensor) -> torch.Tensor:
    """DPM-Solver++ (2M; arXiv 2211.01095, Algorithm 2) on a grid: the sampler of RLIR's evaluation, at 18 steps.

    Step k is ``x' = a x + b data + c data_before``, from the data predicted at this step and at the one before. Of
    first order it is ``x' = (t' / t) x + E data`` with ``E = 1 - t' / t``, the same as Euler's. The second order
    extrapolates the data to the middle of the step on the clock of `log_snr`: with h the step's length on it, this
    adds ``E h / (2 h_before) (data - data_before)``.

    The first and the last step are of first order. So is the second on a grid from exactly 1, where h_before is
    infinite; on LIVE's it is not, and the two grids' results differ more than their timesteps.

    Args:
        timestep: strictly decreasing from at most 1 to exactly 0, [N+1], as from `shifted_grid`.

    Returns:
        Columns a, b, c, float64 [N, 3]; c is 0 for steps of first order.

    Raises:
        ValueError: if `timestep` is not such a grid.

    Example:
        >>> dpm_solver_coefficients(shifted_grid(2, shift=1)).tolist()
        [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]
    """
    check_grid(timestep)
    grid = timestep.double()
    clock_step = log_snr(grid).diff()
    before = torch.zeros_like(clock_step)  # weight of the data before, in units of E
    before[1:-1] = -clock_step[1:-1] / (2 * clock_step[:-2])
    latent_coeff = grid[1:] / grid[:-1]
    first_order = 1 - latent_coeff
    return torch.stack([latent_coeff, first_order * (1 - before), first_order * before], dim=-1)


def check_grid(timestep: torch.Tensor) -> None:
    """Hold timesteps against what a sampler walks along.

    Raises:
        ValueError: if they are no list that decreases from at most 1 to exactly 0.
    """
    is_list = timestep.ndim == 1 and len(timestep) >= 2 and timestep.is_floating_point()
    if not is_list or not timestep[0] <= 1 or timestep[-1] != 0 or not bool((timestep.diff() < 0).all()):
        raise ValueError(
            f"timesteps {timestep.tolist()}: give a grid [N+1] of floats that decreases from at most 1 to exactly 0, "
            "as shifted_grid(num_steps) does"
        )


def _over_latents(per_latent: torch.Tensor, latent: torch.Tensor, name: str) -> torch.Tensor:
    """Give numbers per latent, [...], the dimensions c, h, w to be repeated over."""
    if per_latent.ndim > latent.ndim - 3:
        raise ValueError(
            f"{name} of shape {tuple(per_latent.shape)} for latents of shape {tuple(latent.shape)}: "
            "give one number per latent, without the last three dimensions"
        )
    return per_latent[..., None, None, None]
