r"""Measure everything, print the tables, and write them down as numbers.

    python -m benchmarks                                    # what `make bench` runs: minutes, on cores that are idle
    python -m benchmarks --only denoising                   # a part of it
    python -m benchmarks --results runs/speed --repeats 1 env.num_prompts=2 env.group_size=4 \
        --denoising env.group_size=4 world_model.config.num_layers=1                          # to try it out

Each part has its file, `speed_tokens.json` and `speed_denoising.json`, which names the machine it was measured on.
Further arguments are overrides of `rlir train experiment=demo`, and after `--denoising` of `experiment=doom_nfd_paper`.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.demo import assemble_demo
from benchmarks.denoising import SUBJECTS, measure_forms, measure_rollouts
from benchmarks.denoising_figures import denoising_figures, denoising_tables
from benchmarks.figures import (
    Figures,
    generation_figures,
    iteration_figures,
    machine_text,
    peak_figures,
    token_tables,
    work_figures,
)
from benchmarks.generation import WAYS, measure_apart
from benchmarks.iteration import counted_work, rollout_work, seconds_of_parts
from benchmarks.peaks import Peaks, machine, measure_peaks
from rlir_agents.commands.assembly import Assembly
from rlir_env.atomic_files import write_text

_RESULTS = Path(__file__).parent / "results"
_REPEATS = 3

# Announces a stage of the work, and counts it when it is done.
Stage = Callable[[str], AbstractContextManager[None]]
# What is left to do once the machine's peaks are known.
Finish = Callable[[Peaks], Figures]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all benchmarks in one go."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the files")
    parser.add_argument("--only", choices=tuple(_PARTS), help="measure one part")
    parser.add_argument("--repeats", type=int, default=_REPEATS, help="runs of which denoising's medians are taken")
    parser.add_argument(
        "--denoising", nargs="*", default=[], help="key=value of `rlir train`, on top of doom_nfd_paper"
    )
    parser.add_argument("overrides", nargs="*", help="key=value of `rlir train`, on top of the demo")
    given = parser.parse_intermixed_args(arguments)
    overrides = {"tokens": given.overrides, "denoising": given.denoising}
    overrides = {part: of_part for part, of_part in overrides.items() if given.only in (None, part)}
    figures = measure(overrides, given.repeats)
    texts = [machine_text(figures["machine"], figures["peaks"])]
    texts += [_PARTS[part].tables(figures[part]) for part in overrides]
    print("", *texts, sep="\n\n", end="\n\n")
    for part in overrides:
        shared = {"machine": figures["machine"], "peaks": figures["peaks"]}
        path = given.results / f"speed_{part}.json"
        write_text(path, json.dumps(shared | figures[part] | {"command": _command(part, given)}, indent=1) + "\n")
        print(path)


def _command(part: str, given: argparse.Namespace) -> str:
    """What makes the figures of a part again, wherever they are written."""
    repeats = [] if given.repeats == _REPEATS else ["--repeats", str(given.repeats)]
    denoising = ["--denoising", *given.denoising] if given.denoising else []
    of_part = {"tokens": given.overrides, "denoising": [*repeats, *denoising]}[part]
    return shlex.join(["python", "-m", "benchmarks", "--only", part, *of_part])


def measure(parts: Mapping[str, Sequence[str]], repeats: int) -> Figures:
    """All figures of some parts.

    Args:
        parts: Overrides of the config of each.
        repeats: Runs of which denoising's medians are taken; those of tokens are long, and taken once.
    """
    num_stages = sum(_PARTS[part].num_stages for part in parts)
    with tqdm(total=1 + num_stages, unit="stage", dynamic_ncols=True) as bar:

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            bar.set_description(name)
            yield
            bar.update()

        finish = {part: _PARTS[part].measure(overrides, repeats, stage) for part, overrides in parts.items()}
        with stage("peaks"):
            peaks = measure_peaks()
            figures = {part: one(peaks) for part, one in finish.items()}
    return {"machine": machine(), "peaks": peak_figures(peaks), **figures}


def _measure_tokens(overrides: Sequence[str], repeats: int, stage: Stage) -> Finish:
    """The demo: ways to generate, and an iteration."""
    generations = {}
    for name, way in WAYS.items():
        with stage(way.title):
            generations[name] = measure_apart(name, overrides)
    with stage("one iteration"):
        seconds = seconds_of_parts(overrides)
    with stage("counting work"):
        assembly = assemble_demo(overrides)
        of_rollout = rollout_work(assembly)
        works = {"rollout": [work for part in of_rollout.values() for work in part], **counted_work(overrides)}
    return lambda peaks: {
        **_setting(assembly),
        "generation": generation_figures(generations),
        "iteration": iteration_figures(seconds, works, peaks),
        "rollout": {part: work_figures(of_part, peaks) for part, of_part in of_rollout.items()},
    }


def _measure_denoising(overrides: Sequence[str], repeats: int, stage: Stage) -> Finish:
    """Diffusion world models: log-probs and rollouts."""
    forms = {}
    for subject in SUBJECTS:
        with stage(f"log-probs of {subject.world_model}"):
            forms[subject.world_model] = measure_forms(subject, overrides, repeats)
    with stage("denoising rollouts"):
        rollouts = measure_rollouts(overrides, repeats)
    return lambda peaks: denoising_figures(forms, rollouts, peaks)


class _Part(NamedTuple):
    """What `measure` can measure: how, in how many stages, and how its figures are printed."""

    measure: Callable[[Sequence[str], int, Stage], Finish]
    num_stages: int
    tables: Callable[[Figures], str]


_PARTS = {
    "tokens": _Part(_measure_tokens, 2 + len(WAYS), token_tables),
    "denoising": _Part(_measure_denoising, 1 + len(SUBJECTS), denoising_tables),
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
