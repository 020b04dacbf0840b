"""rlir evaluate: measure how well a world model follows game actions, beside the controls that say what it is worth.

    rlir evaluate                             # the shipped base model on dev prompts, by the coach
    rlir evaluate weights=runs/demo/policy.safetensors
    rlir evaluate split=test                  # by coach and judge, for final figures

It prints a table and leaves nothing behind; `rlir train` does the same before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rlir_agents.commands.assembly import Parts, frozen_parts
from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_agents.commands.evaluating import (
    describe_sampling,
    load_policy,
    load_readers,
    make_evaluator,
    quoted_slots,
    sampling_choices,
)
from rlir_agents.controls import ShuffledGameActions, best_of
from rlir_agents.evaluation import Evaluation
from rlir_agents.evaluator import Evaluator
from rlir_agents.report.summary import mean_psnr
from rlir_agents.report.tables import align, number


def run(arguments: Sequence[str]) -> None:
    """Evaluate as the overrides say, printing each row as soon as it is known."""
    config = compose_config("evaluate", arguments)
    parts = frozen_parts(config)
    readers = load_readers(config, parts) if config["split"] == "test" else {"coach": parts["idm"]}
    evaluator = make_evaluator(config, parts, config["split"], config["evaluation"]["num_clips"], readers)
    slots = quoted_slots(parts)
    print(f"{evaluator.prompts.num_prompts} {config['split']} clips; F1 over {', '.join(slots)}", flush=True)
    rows = [["", *(f"{name} F1" for name in readers), "PSNR dB"]]
    for title, make in _evaluations(config, parts, evaluator):
        print(f"evaluating: {title}", flush=True)
        record = make()
        f1 = [number(record.f1(name, slots)) for name in readers]
        rows.append([title, *f1, number(mean_psnr(record.psnr), 2)])
    print(f"\n{align(rows)}")


def help_text() -> str:
    """What ``rlir evaluate --help`` prints."""
    return f"{__doc__}\n{describe('evaluate')}"


def _evaluations(config: Config, parts: Parts, evaluator: Evaluator) -> Iterator[tuple[str, Callable[[], Evaluation]]]:
    choices = [
        (describe_sampling(sampling) or "world model", load_policy(config, parts, evaluator.env, sampling))
        for sampling in sampling_choices(config)
    ]
    for label, policy in choices:
        yield label, partial(evaluator.evaluate, policy)
    if not config["controls"]:
        return
    label, policy = choices[0]
    shuffled = ShuffledGameActions(evaluator.prompts, config["seed"])
    yield f"{label}, shuffled game actions", lambda: evaluator.evaluate_under(shuffled, policy)
    if config["best_of"] is not None:
        best = partial(best_of, evaluator, policy, config["best_of"], by="coach")
        yield f"{label}, best of {config['best_of']} by the coach", best
    yield "copy of the given frame", evaluator.copy_last_frame
    yield "real video, through the tokenizer", lambda: evaluator.reconstruction(parts["tokenizer"])
    yield "real video (ceiling)", evaluator.ceiling
