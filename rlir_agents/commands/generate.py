r"""rlir generate: write videos to look at, with the keys that were pressed and those the coach reads back.

    rlir generate                             # the shipped base model beside the real continuation
    rlir generate weights=runs/demo/policy.safetensors evaluation.num_clips=4

It writes <folder>/clip_01.mp4 and so on (extra: video). Or MineWorld's benchmark, for `rlir score`: every clip of a
folder (`rlir record cut`) is continued under its own name, without the given frame, its labels beside it. What is there
already is not made again; a folder belongs to one model and its settings.

    rlir generate validation.folder=runs/validation folder=runs/outputs/base
    rlir generate world=published world_model=published policy=diagonal world=300M_16f.ckpt idm=idm/ data=validation/ \
        validation.folder=validation/ folder=runs/outputs/300M
    rlir score videos=runs/outputs/300M labels=validation/ idm=idm/
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import torch
from tqdm import tqdm

from rlir_agents.commands.assembly import Parts, frozen_parts
from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_agents.commands.evaluating import load_policy, make_env, make_evaluator, sampling_choices
from rlir_agents.commands.run_claim import claim
from rlir_agents.evaluation import Evaluation
from rlir_agents.report import Panel, draw_comparison
from rlir_agents.report.encoding import encode_mp4
from rlir_agents.rollouts import collect
from rlir_agents.video_makers import generator
from rlir_env.prompts import ClipPrompts
from rlir_env.recordings import list_recordings, truncate_pixels, validation_clips, write_generated_clip


def run(arguments: Sequence[str]) -> None:
    """Generate as the overrides say."""
    config = compose_config("generate", arguments)
    parts = frozen_parts(config)
    if config["validation"]["folder"] is not None:
        _continue_clips(config, parts)
        return
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


def _continue_clips(config: Config, parts: Parts) -> None:
    """Continue the clips of a folder by one model, and write each as soon as its batch is made."""
    settings, folder = config["validation"], Path(config["folder"])
    if folder.resolve() == Path(settings["folder"]).resolve():
        raise ValueError(f"folder={folder} holds the clips that are continued: give another one for what is made")
    clips = validation_clips(
        settings["folder"],
        parts["frame_size"],
        settings["num_frames"],
        settings["max_clips"],
        settings["action_offset"],
        settings["resampling"],
    )
    prompts = ClipPrompts.from_clips(clips)
    env = make_env(config, parts, prompts, min(config["evaluation"]["batch_size"], len(clips)))
    policy = load_policy(config, parts, env, sampling_choices(config)[0])
    # The size of a batch changes nothing, and where clips lie is not what they are.
    sampling = {key: value for key, value in config["evaluation"].items() if key in ("sampling", "seed")}
    made_by = {"policy": config["policy"], "evaluation": sampling, "validation": settings | {"folder": None}}
    claim(folder, made_by, [policy, parts["tokenizer"]], parts["device"], parts["autocast_dtype"])
    videos = {video.stem: video for video in list_recordings(settings["folder"])}
    for clip in clips:
        shutil.copyfile(videos[clip.recording].with_suffix(".jsonl"), folder / f"{clip.recording}.jsonl")
    make_videos = generator(env, policy, collect, config["evaluation"]["seed"])
    missing = [place for place, clip in enumerate(clips) if not (folder / f"{clip.recording}.mp4").is_file()]
    with torch.no_grad(), tqdm(total=len(clips), initial=len(clips) - len(missing), unit="clip") as bar:
        for index in torch.tensor(missing, dtype=torch.long).split(env.batch_size[0]) if missing else ():
            frames = truncate_pixels(make_videos(index)[:, 1:]).cpu()
            for place, video in zip(index.tolist(), frames.permute(0, 1, 3, 4, 2).numpy(), strict=True):
                name = clips[place].recording
                write_generated_clip(folder / f"{name}.mp4", video, settings["frames_per_second"])
                bar.update()
    print(f"{folder}: {len(clips)} clips")


def _draw(videos: dict[str, Evaluation], clip: int, slots: Sequence[str], frames_per_second: int) -> bytes:
    first = next(iter(videos.values()))
    panels = [
        Panel(title, record.frames[clip].numpy(), record.inferred_game_action["coach"][clip].numpy())
        for title, record in videos.items()
    ]
    shown = list(compress(first.spec.names, (name in slots for name in first.spec.names)))
    drawn = draw_comparison(panels, first.game_action[clip].numpy(), first.spec, "coach", shown)
    return encode_mp4(drawn, frames_per_second)
