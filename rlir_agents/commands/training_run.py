"""One training in its folder: what it is made of, what it has recorded there, and how it does on dev prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from tensordict.nn import TensorDictModuleBase

from rlir_agents.commands.assembly import assemble, make_trainer
from rlir_agents.commands.composition import Config
from rlir_agents.commands.evaluating import (
    Records,
    Sampling,
    best_sampling,
    make_evaluator,
    quoted_slots,
    sampling_policy,
)
from rlir_agents.commands.run_claim import claim
from rlir_agents.report import read_csv_curves
from rlir_agents.world_models.low_rank import merge_low_rank


class TrainingRun:
    """A run of `rlir train`, as far as dev prompts and the coach go; neither judge nor test prompts are touched here.

    Attributes:
        config: what it was made from.
        folder: of the run.
        assembly: its parts.
        records: evaluations and choices that a restart finds again.
        dev: an evaluator on dev prompts, read by the coach.
        slots: over which the quoted F1 averages, by name.
    """

    def __init__(self, config: Config) -> None:
        """Build the parts and claim the folder.

        Args:
            config: of `rlir train`.

        Raises:
            ValueError: if something in the config does not fit, or the folder holds another run.
        """
        self.config, self.folder = config, Path(config["run_dir"])
        self.assembly = assemble(config)
        parts = self.assembly.parts
        modules = [self.assembly.policy, parts["tokenizer"], parts["reward_fn"], parts["idm"]]
        claim(self.folder, config, modules, parts["device"], parts["autocast_dtype"])
        self.records = Records(self.folder, parts["idm"].spec)
        self.dev = make_evaluator(config, parts, "dev", config["evaluation"]["num_dev_clips"], {"coach": parts["idm"]})
        self.slots = quoted_slots(parts)

    def learn(self) -> None:
        """Reinforcement learning, from the newest checkpoint if there is one; leaves the result in the policy."""
        make_trainer(self.assembly, self.evaluate).train()
        keep_best = self.config["trainer"]["keep_best_by"] is not None
        weights = load_file(self.folder / f"{'best_policy' if keep_best else 'policy'}.safetensors")
        merge_low_rank(self.assembly.policy)
        self.assembly.policy.load_state_dict(weights)

    @property
    def sampling(self) -> Sampling:
        """Of every evaluation, before and after: with what the *base* model follows best on dev prompts; found once.

        Were the result free to choose its own, a gain could come from sampling, and a picture get worse by it: at
        top-p 1 PSNR is a decibel lower than at .8, whatever the weights.
        """
        base, parts = self.assembly.base, self.assembly.parts
        return self.records.value("sampling", lambda: best_sampling(self.config, parts, base.world_model, self.dev))

    def sampled_best(self, policy: TensorDictModuleBase) -> TensorDictModuleBase:
        """A policy's world model, sampled as in every evaluation."""
        parts = self.assembly.parts
        return sampling_policy(self.config, parts, self.dev.env, policy.world_model, self.sampling)

    def evaluate(self, policy: TensorDictModuleBase) -> dict[str, float]:
        """Figures of a policy on dev prompts, for the log."""
        return self.dev.evaluate(self.sampled_best(policy)).log_entries("coach", self.slots)

    def logged_seconds(self, names: Sequence[str] | None = None) -> float:
        """Seconds that the iterations took, as logged; of all parts of an iteration, or of the named ones."""
        curves = read_csv_curves(self.folder)
        wanted = [key for key in curves if key.startswith("seconds/")]
        if names is not None:
            wanted = [key for key in wanted if key.removeprefix("seconds/") in names]
        return sum(value for key in wanted for _, value in curves[key])
