"""Measure everything, print the tables, and write them down as numbers.

    python -m benchmarks                                    # what `make bench` runs: minutes, on cores that are idle
    python -m benchmarks --results runs/speed.json env.num_prompts=2 env.group_size=4     # to try it out

Further arguments are overrides of `rlir train experiment=demo`.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.demo import assemble_demo
from benchmarks.figures import (
    Figures,
    generation_figures,
    iteration_figures,
    peak_figures,
    tables,
    work_figures,
)
from benchmarks.generation import WAYS, measure_apart
from benchmarks.iteration import counted_work, rollout_work, seconds_of_parts
from benchmarks.peaks import machine, measure_peaks
from rlir_agents.commands.assembly import Assembly
from rlir_env.atomic_files import write_text

_RESULTS = Path(__file__).parent / "results" / "speed.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all benchmarks in one go."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=_RESULTS, help="where the numbers go")
    parser.add_argument("overrides", nargs="*", help="key=value of `rlir train`, on top of the demo")
    given = parser.parse_args(arguments)
    figures = measure(given.overrides)
    figures["command"] = shlex.join(["python", "-m", "benchmarks", *given.overrides])
    write_text(given.results, json.dumps(figures, indent=1) + "\n")
    print(f"\n{tables(figures)}\n\n{given.results}")


def measure(overrides: Sequence[str]) -> Figures:
    """All figures of the demo.

    Args:
        overrides: of its config.
    """
    with tqdm(total=3 + len(WAYS), unit="stage", dynamic_ncols=True) as bar:

        def stage(name: str) -> None:
            bar.set_description(name)

        generations = {}
        for name, way in WAYS.items():
            stage(way.title)
            generations[name] = measure_apart(name, overrides)
            bar.update()
        stage("one iteration")
        seconds = seconds_of_parts(overrides)
        bar.update()
        stage("counting work")
        assembly = assemble_demo(overrides)
        of_rollout = rollout_work(assembly)
        works = {"rollout": [work for part in of_rollout.values() for work in part], **counted_work(overrides)}
        bar.update()
        stage("peaks")
        peaks = measure_peaks(sorted({work.dtype for part in works.values() for work in part}, key=str))
        bar.update()
    return {
        "machine": machine(),
        **_setting(assembly),
        "peaks": peak_figures(peaks),
        "generation": generation_figures(generations),
        "iteration": iteration_figures(seconds, works, peaks),
        "rollout": {part: work_figures(of_part, peaks) for part, of_part in of_rollout.items()},
    }


def _setting(assembly: Assembly) -> dict[str, Any]:
    """What was run: the batch, and the sizes of the shipped world model."""
    env, policy = assembly.parts["env"], assembly.policy
    world_model: Any = policy.world_model
    dtype = policy.autocast_dtype or torch.float32
    batch = {
        "num_prompts": env.num_groups,
        "group_size": env.group_size,
        "tokens_of_each_video": len(env.layout.action_positions),
        "dtype": str(dtype).removeprefix("torch."),
    }
    num_parameters = sum(parameter.numel() for parameter in world_model.parameters())
    return {"batch": batch, "world_model": asdict(world_model.config) | {"num_parameters": num_parameters}}


if __name__ == "__main__":
    main()
