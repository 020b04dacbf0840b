"""rlir generate: write videos to look at, with the keys that were pressed and those the coach reads back.

    rlir generate                             # the shipped base model beside the real continuation
    rlir generate weights=runs/demo/policy.safetensors evaluation.num_clips=4

It writes <folder>/clip_01.mp4 and so on (extra: video).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from pathlib import Path

from rlir_agents.commands.assembly import frozen_parts
from rlir_agents.commands.composition import compose_config, describe
from rlir_agents.commands.evaluating import load_policy, make_evaluator, sampling_choices
from rlir_agents.evaluation import Evaluation
from rlir_agents.report import Panel, draw_comparison
from rlir_agents.report.encoding import encode_mp4


def run(arguments: Sequence[str]) -> None:
    """Generate as the overrides say."""
    config = compose_config("generate", arguments)
    parts = frozen_parts(config)
    settings = config["evaluation"]
    evaluator = make_evaluator(config, parts, config["split"], settings["num_clips"], {"coach": parts["idm"]})
    sampling = sampling_choices(config)[0]
    base = load_policy(config | {"weights": None}, parts, evaluator.env, sampling)
    videos = {"real": evaluator.ceiling(), "world model": evaluator.evaluate(base)}
    if config["weights"] is not None:
        after = load_policy(config, parts, evaluator.env, sampling)
        videos[Path(config["weights"]).parent.name or "after"] = evaluator.evaluate(after)
    folder = Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    slots = parts["slots"] or parts["idm"].spec.names
    for clip in range(evaluator.prompts.num_prompts):
        path = folder / f"clip_{clip + 1:02d}.mp4"
        path.write_bytes(_draw(videos, clip, slots, config["frames_per_second"]))
        print(path)


def help_text() -> str:
    """What ``rlir generate --help`` prints."""
    return f"{__doc__}\n{describe('generate')}"


def _draw(videos: dict[str, Evaluation], clip: int, slots: Sequence[str], frames_per_second: int) -> bytes:
    first = next(iter(videos.values()))
    panels = [
        Panel(title, record.frames[clip].numpy(), record.inferred_game_action["coach"][clip].numpy())
        for title, record in videos.items()
    ]
    shown = list(compress(first.spec.names, (name in slots for name in first.spec.names)))
    drawn = draw_comparison(panels, first.game_action[clip].numpy(), first.spec, "coach", shown)
    return encode_mp4(drawn, frames_per_second)
