"""Summary, tables and page of a run, from evaluations whose figures are known."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from rlir_agents.evaluation import Evaluation
from rlir_agents.report import (
    Panel,
    beyond_control,
    build_report,
    check_block,
    console_table,
    draw_comparison,
    encoding,
    read_csv_curves,
    replace_block,
    results_table,
    summarize,
    write_report,
    write_summary,
)
from rlir_agents.report.charts import dot_chart, line_chart, nice_ticks
from rlir_agents.report.keys import RIGHT, WRONG
from rlir_agents.report.summary import psnr_change_by_stillness
from rlir_env.game_actions import MINECRAFT

NUM_CLIPS, NUM_FRAMES = 40, 5
SLOTS = ("forward_back", "left_right", "attack")


def fake_evaluation(share_wrong: float, psnr: float, seed: int = 0) -> Evaluation:
    """Readings of which a share is replaced by noise; labels are the same for every call."""
    labels, noise = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)

    def draw(generator: torch.Generator) -> torch.Tensor:
        shape = (NUM_CLIPS, NUM_FRAMES - 1)
        return torch.stack([torch.randint(n, shape, generator=generator) for n in MINECRAFT.num_classes], -1)

    label = draw(labels)
    is_wrong = [torch.rand(label.shape, generator=noise) < share_wrong for _ in range(2)]
    read = {
        name: torch.where(wrong, draw(noise), label) for name, wrong in zip(("judge", "coach"), is_wrong, strict=True)
    }
    frames = torch.randint(256, (2, NUM_FRAMES, 3, 16, 24), generator=noise, dtype=torch.uint8)
    return Evaluation(MINECRAFT, label, read, torch.full((NUM_CLIPS,), psnr), frames)


@pytest.fixture(scope="module")
def evaluations() -> dict[str, Evaluation]:
    return {
        "before": fake_evaluation(0.6, 20.0, seed=1),
        "after": fake_evaluation(0.3, 19.9, seed=2),
        "ceiling_reconstruction": fake_evaluation(0.1, 27.0, seed=3),
        "ceiling": fake_evaluation(0.05, 100.0, seed=4),
    }


@pytest.fixture(scope="module")
def summary(evaluations) -> dict:
    return summarize(
        evaluations["before"],
        evaluations["after"],
        evaluations["ceiling_reconstruction"],
        evaluations["ceiling"],
        slots=SLOTS,
        controls={"copy_last_frame": fake_evaluation(0.9, 15.0, seed=5)},
        seconds=612.34,
        install_seconds=41.0,
        seed=3,
        arm="rlir",
        paradigm="autoregressive",
    )


def test_summary_has_the_promised_keys_and_their_arithmetic(summary, evaluations):
    for reader in ("judge_f1", "coach_f1"):
        assert set(summary[reader]) == {
            "before",
            "after",
            "ceiling",
            "ceiling_reconstruction",
            "gain_ci95",
        }
    assert set(summary["psnr"]) == {"before", "after"}
    promised = {
        "share_of_gap_closed",
        "num_clips",
        "seconds",
        "install_seconds",
        "seed",
        "arm",
        "paradigm",
    }
    assert promised <= set(summary)

    judge = summary["judge_f1"]
    assert judge["before"] == pytest.approx(evaluations["before"].f1("judge", SLOTS), abs=1e-6)
    low, high = judge["gain_ci95"]
    assert low < judge["after"] - judge["before"] < high
    share = (judge["after"] - judge["before"]) / (judge["ceiling"] - judge["before"])
    assert summary["share_of_gap_closed"] == pytest.approx(share, abs=1e-5)
    low, high = summary["share_of_gap_closed_ci95"]
    assert low < share < high
    assert summary["psnr_change_ci95"] == pytest.approx([-0.1, -0.1], abs=1e-5)
    assert summary["num_clips"] == NUM_CLIPS
    assert summary["figures"]["ceiling"]["psnr"] is None


def test_psnr_is_split_by_how_much_the_real_clip_moves(evaluations):
    before = replace(evaluations["before"], psnr=torch.arange(8.0))
    after = replace(before, psnr=before.psnr + torch.tensor([4.0, 1.0, 3.0, 2.0, 4.0, 1.0, 3.0, 2.0]))
    copy = replace(before, psnr=torch.tensor([40.0, 10.0, 30.0, 20.0, 42.0, 12.0, 32.0, 22.0]))
    expected = [{"copy": 10.0 * quarter + 1.0, "change": float(quarter)} for quarter in (1, 2, 3, 4)]
    assert psnr_change_by_stillness(before, after, copy) == expected
    assert psnr_change_by_stillness(before, after, None) is None


def test_the_table_says_where_psnr_was_lost(summary):
    assert "-0.10, -0.10, -0.10, -0.10 in quarters of the clips" in console_table(summary)
    assert "quarters" not in console_table(summary | {"psnr_change_by_stillness": None})


def test_paired_gain_of_equal_evaluations_is_exactly_zero(evaluations):
    same = evaluations["before"]
    summary = summarize(same, same, same, same, seconds=1, seed=0)
    assert summary["judge_f1"]["gain_ci95"] == [0.0, 0.0]
    assert summary["share_of_gap_closed"] is None  # no gap
    assert summary["share_of_gap_closed_ci95"] is None
    (line,) = (line for line in console_table(summary).splitlines() if line.startswith("share of gap closed"))
    assert line.split()[-1] == "-"  # and the table says so
    json.dumps(summary, allow_nan=False)


def test_what_a_result_has_beyond_a_control_is_paired(evaluations):
    before, after, slots = evaluations["before"], evaluations["after"], ["forward_back", "jump"]
    beyond = beyond_control(after, before, slots, seed=0)
    summary = summarize(before, after, before, before, seconds=1, seed=0, slots=slots)
    assert beyond["judge_f1"] == pytest.approx(summary["judge_f1"]["after"] - summary["judge_f1"]["before"], abs=2e-6)
    assert beyond["judge_f1_ci95"] == summary["judge_f1"]["gain_ci95"]
    assert beyond["psnr"] == pytest.approx(summary["psnr"]["after"] - summary["psnr"]["before"], abs=2e-4)
    assert beyond["psnr_ci95"] == summary["psnr_change_ci95"]
    none = beyond_control(after, after, slots, seed=1)
    assert none == {"judge_f1": 0.0, "judge_f1_ci95": [0.0, 0.0], "psnr": 0.0, "psnr_ci95": [0.0, 0.0]}


def test_evaluations_of_other_prompts_are_refused(evaluations):
    before = evaluations["before"]
    other = Evaluation(
        MINECRAFT,
        before.game_action.flip(0),
        before.inferred_game_action,
        before.psnr,
        before.frames,
    )
    with pytest.raises(ValueError, match="not of the same prompts"):
        summarize(before, other, before, before, seconds=1, seed=0)
    with pytest.raises(ValueError, match="names of figures"):
        summarize(before, before, before, before, seconds=1, seed=0, figures=1)


def test_summary_is_written_whole_or_not_at_all(tmp_path, summary):
    path = tmp_path / "demo" / "summary.json"
    write_summary(path, summary)
    assert json.loads(path.read_text()) == summary
    with pytest.raises(ValueError):
        write_summary(path, {"nan": float("nan")})
    assert json.loads(path.read_text()) == summary
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]


def test_console_table_is_aligned(summary):
    lines = console_table(summary).splitlines()
    rule = next(index for index, line in enumerate(lines) if set(line) == {"-"})
    assert rule == 1
    body = lines[2 : 2 + len(summary["figures"])]
    assert [line.split("  ")[0] for line in body] == [
        "copy of the given frame",
        "before (base model)",
        "after (post-trained)",
        "real video, through the tokenizer",
        "real video (ceiling)",
    ]
    assert len({len(line) for line in [lines[0], *body]}) == 1  # the last column ends at one place
    assert f"{summary['judge_f1']['after']:.3f}" in body[2]


def test_results_table_has_a_row_a_run_and_a_mean(summary):
    runs = [dict(summary, arm=arm, seed=seed) for arm in ("shuffled_actions", "rlir") for seed in (1, 0)]
    rows = [line.split(" | ") for line in results_table(runs).splitlines()]
    assert len({len(row) for row in rows}) == 1
    assert [(row[1], row[2]) for row in rows[2:]] == [
        ("RLIR", "0"),
        ("RLIR", "1"),
        ("RLIR", "**mean**"),
        ("RLIR rewarded on shuffled game actions", "0"),
        ("RLIR rewarded on shuffled game actions", "1"),
        ("RLIR rewarded on shuffled game actions", "**mean**"),
    ]
    with pytest.raises(ValueError, match="lacks paradigm"):
        results_table([{"arm": "rlir"}])
    beyond = {"judge_f1": 0.0378, "judge_f1_ci95": [0.028, 0.048], "psnr": -0.269, "psnr_ci95": [-0.4, -0.1]}
    row = results_table([dict(summary, beyond_more_pretraining=beyond)]).splitlines()[-1]
    assert "the same minus further pre-training" in row and "+0.038 [+0.028, +0.048]" in row and "| -0.27 |" in row


def test_readme_is_rewritten_between_its_markers(tmp_path, summary):
    readme, table = tmp_path / "README.md", results_table([summary])
    readme.write_text("above\n<!-- results:begin -->\nold\n<!-- results:end -->\nbelow\n")
    replace_block(readme, "results", table)
    once = readme.read_text()
    replace_block(readme, "results", table)
    assert readme.read_text() == once
    assert once == (f"above\n<!-- results:begin -->\n{table}\n<!-- results:end -->\nbelow\n")
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="results:begin"):
        replace_block(readme, "results", table)
    with pytest.raises(ValueError, match="results:begin"):
        check_block(readme, "results")


class _References(HTMLParser):
    """Collects everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]


def test_page_is_self_contained_and_complete(tmp_path, summary, evaluations):
    curves = {"reward/mean": [(0, 0.4), (1, 0.5)], "time/<rollout>": [(0, 1.0), (1, 2.0)]}
    path = tmp_path / "report.html"
    write_report(path, summary, evaluations=evaluations, curves=curves, settings="lr: 1e-4 & <more>")
    page = path.read_text()
    references = _References()
    references.feed(page)
    assert references.sources and all(source.startswith("data:") for source in references.sources)
    assert not {"script", "link", "iframe"} & set(references.tags)
    assert "@import" not in page and "url(" not in page
    assert references.tags.count("video") == 2  # as many clips as the evaluations hold
    assert references.tags.count("svg") == 3  # the overview and two curves
    assert f"{summary['judge_f1']['after'] - summary['judge_f1']['before']:+.3f}" in page
    assert "lr: 1e-4 &amp; &lt;more&gt;" in page and "time/&lt;rollout&gt;" in page
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def test_page_lives_with_missing_pieces(summary):
    page = build_report(summary)
    assert "<video" not in page and "<h2>Training" not in page and "<h2>Settings" not in page
    assert "<h2>Figures" in page


def test_without_av_videos_are_animated_webp(monkeypatch, summary, evaluations):
    monkeypatch.setattr(encoding.importlib.util, "find_spec", lambda name: None)
    page = build_report(summary, evaluations=evaluations, num_videos=1)
    assert "<video" not in page and 'src="data:image/webp;base64,' in page


def test_encoded_videos_can_be_read_back():
    frames = np.zeros((4, 32, 48, 3), dtype=np.uint8)
    frames[2:] = 200
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(encoding.encode_mp4(frames))) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 4
    assert abs(decoded[0].mean() - 0) < 4 and abs(decoded[3].mean() - 200) < 4
    assert Image.open(io.BytesIO(encoding.encode_webp(frames))).n_frames == 2  # equal frames are merged


def test_keys_are_green_where_read_right_and_red_where_wrong():
    spec_slots = ("jump", "attack")
    press = np.zeros((1, MINECRAFT.num_slots), dtype=np.int64)
    press[0, MINECRAFT.index("jump")] = 1
    read_right, read_wrong = press.copy(), press * 0
    read_wrong[0, MINECRAFT.index("attack")] = 1
    frames = np.full((2, 3, 10, 20), 90, dtype=np.uint8)

    def count(inferred: np.ndarray, frame: int, colour: str) -> int:
        drawn = draw_comparison([Panel("after", frames, inferred)], press, MINECRAFT, "judge", spec_slots)
        rgb = [int(colour[index : index + 2], 16) for index in (1, 3, 5)]
        return int((drawn[frame] == rgb).all(-1).sum())

    assert count(read_right, 1, RIGHT) > 100 and count(read_right, 1, WRONG) == 0
    assert count(read_wrong, 1, RIGHT) == 0 and count(read_wrong, 1, WRONG) > 100
    assert count(read_wrong, 0, WRONG) == 0  # nothing acts before the given frame


def test_frames_are_enlarged_without_blur():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 10, 20), dtype=np.uint8)
    still = np.zeros((1, MINECRAFT.num_slots), dtype=np.int64)
    drawn = draw_comparison([Panel("real", frames, still)], still, MINECRAFT, "judge", scale=4)
    assert drawn.shape[1] % 2 == 0 and drawn.shape[2] % 2 == 0
    enlarged = frames[1].transpose(1, 2, 0).repeat(4, 0).repeat(4, 1)
    top, left = 66 + 28, 14  # header and title; margin
    assert (drawn[1, top : top + 40, left : left + 80] == enlarged).all()
    with pytest.raises(ValueError, match="uint8"):
        draw_comparison([Panel("real", frames / 255.0, still)], still, MINECRAFT, "judge")
    with pytest.raises(ValueError, match="1 lines"):
        draw_comparison([Panel("real", frames, still)], still.repeat(2, 0), MINECRAFT, "judge")


def test_curves_are_read_from_the_csv_logger(tmp_path):
    from torchrl.record.loggers.csv import CSVLogger

    logger = CSVLogger("run", log_dir=str(tmp_path))
    for step, value in ((0, 0.25), (1, 0.5), (1, 0.75)):  # step 1 twice, as after a resumption
        logger.log_scalar("reward/mean", value, step=step)
    assert read_csv_curves(tmp_path) == {"reward/mean": [(0.0, 0.25), (1.0, 0.75)]}
    next(tmp_path.rglob("mean.csv")).write_text("0,0.25\n1,oops\n")
    with pytest.raises(ValueError, match=r"mean\.csv:2"):
        read_csv_curves(tmp_path)


def test_charts_scale_their_axes():
    assert nice_ticks(0.38, 0.55, 4) == [0.4, 0.45, 0.5, 0.55]
    assert nice_ticks(0, 60, 5) == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    svg = line_chart([(0, 1.0), (1, 3.0), (2, float("nan")), (3, 2.0), (4, 2.0)], "loss")
    assert svg.count("<polyline") == 2  # a NaN breaks the line
    assert line_chart([(0, 1.0)], "one point").count("<circle") == 1
    assert line_chart([(0, 1.0), (1, 1.0)], "constant")
    with pytest.raises(ValueError, match="no finite value"):
        line_chart([(0, float("nan"))], "loss")
    ElementTree.fromstring(dot_chart({"judge": [("before", "before", 0.5, [0.4, 0.6])]}))
