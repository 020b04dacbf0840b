"""The report's sections of things to look at, as HTML: videos side by side, and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from rlir_agents.evaluation import Evaluation
from rlir_agents.report.charts import Curve, line_chart
from rlir_agents.report.encoding import embed_video
from rlir_agents.report.tables import Summary, readers_of
from rlir_agents.report.videos import Panel, draw_comparison

CAPTIONS = {
    "reward/mean": "What is optimised: the coach's reward, mean over the iteration's rollouts.",
    "action_following/f1": "Macro F1 on dev prompts by the coach.",
    "video/psnr": "PSNR on dev prompts, dB: does the picture hold?",
    "train/kl_to_ref": "KL divergence from the reference (at first the base model), nats per token or latent number.",
    "train/clip_fraction": "Share of tokens whose ratio lies outside the clip range.",
    "train/entropy": "Entropy of the token distribution, nats per token.",
    "train/grad_norm": "Norm of the gradient before clipping.",
}
"""The curves shown first, and what each one is; the others follow behind a click."""

VIDEO_TITLES = {"ceiling": "real", "before": "before", "after": "after"}


def video_section(summary: Summary, evaluations: Mapping[str, Evaluation], num_videos: int) -> str:
    """The first videos, real, before and after, as far as there are any."""
    shown = {title: evaluations[name] for name, title in VIDEO_TITLES.items() if name in evaluations}
    count = min([num_videos, *(len(evaluation.frames) for evaluation in shown.values())])
    if not shown or count == 0:
        return ""
    return (
        "<h2>Videos</h2>"
        '<p class="note">The same given frame and the same game actions; slowed down. White: '
        f"pressed. Below each video what the {readers_of(summary)[0]} reads from it, green where right, red where "
        f"wrong, struck out where a pressed key was not seen. The first {count} of "
        f"{summary['num_clips']} clips, not chosen.</p>"
        + "".join(_video(shown, index, summary) for index in range(count))
    )


def _video(shown: Mapping[str, Evaluation], index: int, summary: Summary) -> str:
    first = next(iter(shown.values()))
    panels = [
        Panel(
            title,
            evaluation.frames[index].numpy(),
            evaluation.inferred_game_action[summary["judge"]][index].numpy(),
        )
        for title, evaluation in shown.items()
    ]
    cameras = [slot.name for slot in first.spec.slots if slot.is_ordered]
    slots = [*summary["counted_slots"], *cameras]
    drawn = draw_comparison(panels, first.game_action[index].numpy(), first.spec, summary["judge"], slots)
    return embed_video(drawn, f"clip {index + 1}: {', '.join(shown)}")


def curve_section(curves: Mapping[str, Curve]) -> str:
    """A chart for every curve, those with a caption first; nothing without curves."""
    if not curves:
        return ""
    first = [key for key in CAPTIONS if key in curves]
    rest = sorted(set(curves) - set(first))
    more = ""
    if rest:
        name = f"<summary>{len(rest)} more curves</summary>"
        more = f"<details>{name}{_charts(rest, curves)}</details>"
    return f"<h2>Training</h2>{_charts(first, curves)}{more}"


def _charts(keys: Sequence[str], curves: Mapping[str, Curve]) -> str:
    figures = "".join(
        f"<figure><figcaption><b>{escape(key)}</b>{CAPTIONS.get(key, '')}</figcaption>"
        f"{line_chart(curves[key], key)}</figure>"
        for key in keys
    )
    return f'<div class="charts">{figures}</div>'
