"""The command line: its messages, and a tiny world shipped, trained on, evaluated and compared."""

import csv
import html
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from tiny_assets import FRAME_SIZE, SPLITS, VISIBLE, make_tiny_assets, write_gameplay

import rlir_env
from rlir_agents import policy_from_assets
from rlir_agents.cli import VERBS, main
from rlir_agents.report import check_block
from rlir_env.assets import load_judge, load_world
from rlir_env.game_actions import env_action_to_event
from rlir_env.recordings import Recording, list_recordings, write_recording

pytest.importorskip("av")

TINY_RUN = [
    *("device=cpu", "num_threads=1", "env.num_prompts=2", "env.group_size=2", "trainer.num_iterations=2"),
    *("scheduler.warmup_iterations=0", "trainer.num_minibatches=1", "evaluation.num_dev_clips=2"),
]
TINY = [*TINY_RUN, "evaluation.sampling.top_p=[0.8,1.0]"]


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    return make_tiny_assets(tmp_path_factory.mktemp("world"))


def test_it_tells_its_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rlir 0.")


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"rlir {verb}: ") and "Keys:" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["fly"], "no verb 'fly'; use one of record, pretrain"),
        (["train", "trainer.nun_iterations=1"], "no key 'trainer.nun_iterations'; keys of trainer are num_iterations"),
        (["train", "reward=inverse", "seed=1"], "Could not find 'reward/inverse'"),
        (["train", "world.name=mars"], "no world 'mars'"),
        (["train", "experiment=identity", "credit=gae"], "credit: GeneralizedAdvantage needs critic"),
        (["train", "experiment=identity", "algorithm=ppo"], "use credit=gae"),
        (
            ["train", "experiment=identity", "algorithm=grpo", "algorithm.has_reference=false"],
            "needs a reference policy",
        ),
        (["record", "quake"], "rlir record doom"),
        (["record", "cut", "folder=clips"], "rlir record cut DIR"),
        (["record", "validate", "nowhere"], "no such folder"),
        (["ship", "nowhere"], "say what it is with as="),
        (["pretrain"], "You must specify 'model'"),
        (["train", "experiment=identity", "device=gpu"], "device='gpu': use auto, cpu or cuda"),
        (["record", "doom", "only=[mine]", "+recordings.sets.mine={num_frames: 1, seed: 0}"], "Doom's sets are"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_was_shipped_is_loaded(assets):
    world = load_world(str(assets))
    assert {split: world.prompts[split].num_prompts for split in world.prompts} == SPLITS
    assert world.prompts["test"].get([0]).target_frames.shape == (1, 15, 3, 8, 16)
    assert world.visible_slots == tuple(VISIBLE)
    assert [len(row) for row in world.class_frequency] == list(world.coach.spec.num_classes)
    assert not any(p.requires_grad for p in world.coach.parameters())
    assert load_judge(str(assets)).spec == world.coach.spec
    manifest = json.loads((assets / "manifest.json").read_text())
    assert manifest["files"]["prompts/dev/dev.mp4"]["num_clips"] == 2
    assert "rlir pretrain model=coach" in (assets / "coach.md").read_text()


def test_prompts_keep_their_game_actions(assets):
    # The recording presses forward on every other frame, so a clip's lines alternate, whichever it is.
    forward = load_world(str(assets)).prompts["test"].get(range(4)).game_action[..., 0]
    assert (forward.diff(dim=1).abs() == 1).all()


def test_a_file_that_is_not_the_manifests_is_refused(assets, tmp_path):
    folder = shutil.copytree(assets, tmp_path / "assets")
    (folder / "coach.safetensors").write_bytes((folder / "judge.safetensors").read_bytes())
    with pytest.raises(ValueError, match="rlir pretrain model=coach"):
        load_world(str(folder))
    (folder / "coach.safetensors").unlink()
    with pytest.raises(ValueError, match="is missing; make it with `rlir pretrain model=idm idm=coach"):
        load_world(str(folder))


def test_the_base_model_plays_in_gymnasiums_env(assets):
    env = gymnasium.make(rlir_env.MINEWORLD_ID, world=str(assets), tokens_per_step="frame")
    core, policy = env.unwrapped.core, policy_from_assets(str(assets))
    reward = core.rollout(core.num_steps, policy)["next", "reward"]
    assert reward.shape == (1, 15, 1) and 0 <= reward[0, -1] <= 1


def test_training_leaves_summary_and_report(assets, tmp_path, capsys):
    run = ["train", f"world.name={assets}", f"run_dir={tmp_path}/run", *TINY, "install_seconds=7"]
    assert main(run) == 0
    table = capsys.readouterr().out
    assert "before (base model)" in table and "share of gap closed" in table
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for reader in ("judge_f1", "coach_f1"):
        assert summary[reader].keys() == {"before", "after", "ceiling", "ceiling_reconstruction", "gain_ci95"}
    assert summary["num_clips"] == SPLITS["test"] and summary["install_seconds"] == 7
    assert summary["counted_slots"] == ["forward_back", "jump"]
    assert summary["sampling"]["top_p"] in (0.8, 1.0) and summary["training_seconds"] < summary["seconds"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    # Again: everything is found, nothing is computed anew.
    assert main(run) == 0
    assert "evaluating" not in capsys.readouterr().out
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert again["judge_f1"] == summary["judge_f1"] and again["figures"] == summary["figures"]
    # Another run in the same folder is refused.
    assert main([*run, "optimizer.lr=1"]) == 2
    assert "other settings (optimizer.lr)" in capsys.readouterr().err


def test_what_must_be_from_different_maps_is_not_shipped_together(assets, tmp_path, capsys):
    folder = shutil.copytree(assets, tmp_path / "assets")
    judge = assets.parent / "judge"  # a run made from the recordings "judge"
    assert main(["ship", str(assets.parent / "mineworld"), f"into={folder}"]) == 0  # beside prompts of the same maps
    assert main(["ship", str(judge), "as=coach", f"into={folder}"]) == 2
    assert "comes from the recordings 'judge', and so does the shipped judge" in capsys.readouterr().err
    assert main(["ship", str(assets.parent / "recordings" / "dev"), "as=test", f"into={folder}"]) == 2
    assert "and so does the shipped dev" in capsys.readouterr().err
    assert main(["ship", str(assets.parent / "coach"), f"into={folder}"]) == 0  # anew: it is its own


@pytest.mark.parametrize(
    "override, message",
    [
        ("trainer.num_iterations=-1", "num_iterations: must be at least 1"),
        ("optimizer.lr=fast", "optimizer: AdamW does not take lr='fast'"),
        ("seed=abc", "seed='abc': give a whole number"),
        ("env.group_size=1", "siblings are compared, and there are none: set env.group_size=2"),
    ],
)
def test_a_setting_that_is_refused_leaves_no_run(override, message, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "experiment=identity", "device=cpu", f"run_dir={run}", override]) == 2
    assert message in capsys.readouterr().err
    assert not run.exists()  # so that the right command can follow


def test_evaluate_and_generate(assets, tmp_path, capsys):
    shared = [f"world.name={assets}", "device=cpu", "num_threads=1"]
    assert main(["evaluate", *shared, "evaluation.sampling.top_p=[1.0]", "split=test", "best_of=2"]) == 0
    table = capsys.readouterr().out
    assert "top-p 1, best of 2 by the coach" in table
    assert "judge F1" in table and "real video (ceiling)" in table
    assert main(["evaluate", *shared, "evaluation.sampling.top_p=[1.0]", "controls=false"]) == 0
    assert "judge" not in capsys.readouterr().out  # dev prompts are the coach's
    assert main(["generate", *shared, f"folder={tmp_path}", "evaluation.num_clips=2"]) == 0
    assert len(list(tmp_path.glob("clip_*.mp4"))) == 2


def test_labels_and_scores_of_videos(assets, tmp_path, capsys):
    videos = tmp_path / "my videos"
    write_gameplay(videos, 16, seed=0)
    (video,) = videos.glob("*.mp4")
    label = ["record", "label", str(video), f"world.name={assets}", "device=cpu"]
    assert main(label) == 2  # what is there is not written over
    assert "labels are there already" in capsys.readouterr().err
    assert main([*label, f"folder={tmp_path}/labels"]) == 0
    assert len((tmp_path / "labels" / f"{video.stem}.jsonl").read_text().splitlines()) == 16
    score = ["score", f"videos={videos}", f"world.name={assets}", f"metrics={tmp_path}/metrics", "device=cpu"]
    own = [f"labels={tmp_path}/labels", "first_line=0", "num_frames=15", f"references={videos}"]
    assert main([*score, *own, "run=own"]) == 0
    assert "fvd and lpips need networks of others" in capsys.readouterr().out
    assert main([*score, f"labels={videos}"]) == 2
    assert "whole recordings, which hold the given frame, have first_line=0" in capsys.readouterr().err
    assert main([*score, f"labels={videos}", "first_line=0"]) == 0
    files = {file.name for file in (tmp_path / "metrics").iterdir()}
    runs = ("my videos", "own")
    assert files == {
        "latest_metrics.csv",
        *(f"{kind}_{run}.json" for kind in ("idm", "fvd", "settings") for run in runs),
    }
    rows = list(csv.DictReader((tmp_path / "metrics" / "latest_metrics.csv").read_text().splitlines()))
    assert [row["experiment"] for row in rows] == list(runs)
    assert list(rows[0]) == [
        *("experiment", "fvd", "lpips", "ssim", "psnr", "precision_micro", "recall_micro", "f1_micro"),
        *("precision_macro", "recall_macro", "f1_macro", "camera_loss"),
    ]
    assert all(row["fvd"] == row["lpips"] == "" and float(row["psnr"]) > 5 for row in rows)
    assert float(rows[0]["f1_macro"]) < 1
    visual = json.loads((tmp_path / "metrics" / "fvd_own.json").read_text())
    assert visual["fvd"] is None and visual["lpips"] is None  # said to be empty
    assert visual["mean"]["exp_name"] == "own" and len(visual["ssim"]["value_std"]) == 15


def test_validation_clips_are_cut_with_the_hygiene_that_is_asked_for(tmp_path):
    frames = np.full((8, *FRAME_SIZE, 3), 100, np.uint8)
    events = [env_action_to_event({"camera": [0, 5]}, t) | {"hotbar": t // 4} for t in range(8)]
    write_recording(tmp_path / "play" / "one.mp4", frames, events, fps=20)
    (tmp_path / "index.json").write_text(json.dumps({"basedir": "https://example.org/", "relpaths": ["6.x/one"]}))
    cut = ["record", "cut", f"{tmp_path}/play", f"index={tmp_path}/index.json", "num_frames=4", "frame_size=[24,32]"]
    cut.append("clip_filter.max_static_run=null")
    pressed = {}
    for name, mends in {"as_is": "false", "mended": "true"}.items():
        folder = tmp_path / name
        assert main([*cut, f"folder={folder}", f"hygiene.press_changed_hotbar={mends}"]) == 0
        clips = [Recording(video) for video in list_recordings(folder)]
        assert [clip.frame_size for clip in clips] == [(24, 32)] * 2
        pressed[name] = sum(action["hotbar.2"] for clip in clips for action in clip.env_actions()[0])
    assert pressed == {"as_is": 0, "mended": 1}  # the key that the new slot stands for


def test_compare_is_resumable(assets, tmp_path, capsys):
    for name in ("world_model", "dev"):
        write_gameplay(tmp_path / "recordings" / name, 64, seed=2)
    results = tmp_path / "results.json"
    # At the preset's rate two iterations move PSNR by less than it is rounded to.
    train = listed([f"world.name={assets}", *TINY_RUN, "optimizer.lr=0.01"])
    pretrain = listed([f"recordings.folder={tmp_path}/recordings", f"archives={tmp_path}/archives"])
    run = ["compare", f"overrides={train}"]
    run += [f"more_pretraining={{mineworld: {pretrain}, nfd: {pretrain}}}", "seeds=[0]", "readme=null"]
    run += [f"folder={tmp_path}/runs", f"results={results}"]
    assert main(run) == 0
    entries = json.loads(results.read_text())
    arms = ["rlir", "more_pretraining", "shuffled_actions"]
    assert [(entry["paradigm"], entry["arm"], entry["seed"]) for entry in entries] == [
        (paradigm, arm, 0) for paradigm in ("autoregressive", "diffusion") for arm in arms
    ]
    # All arms start from the same base model: the control differs in `after` only.
    for of_paradigm in (entries[:3], entries[3:]):
        assert len({json.dumps(entry["figures"]["before"]) for entry in of_paradigm}) == 1
        assert len({json.dumps(entry["psnr"]["after"]) for entry in of_paradigm}) == 3
    assert all(0 < entry["training_seconds"] < entry["seconds"] for entry in entries)
    capsys.readouterr()
    assert main([*run, "only=[shuffled_actions_seed0]"]) == 0
    assert "evaluating" not in capsys.readouterr().out
    assert json.loads(results.read_text()) == entries  # of all that are finished
    other = listed([f"world.name={assets}", *TINY_RUN, "optimizer.lr=0.5"])
    assert main([*run, f"overrides={other}"]) == 2  # not taken for the runs that there are
    assert "rlir_seed0 holds a run with other settings (optimizer.lr)" in capsys.readouterr().err
    rate = "more_pretraining.mineworld=['pretraining.learning_rate=1.0']"
    assert main([*run, rate, "only=[more_pretraining_seed0]"]) == 2
    assert "more_pretraining_seed0 holds a run with other settings (more_pretraining)" in capsys.readouterr().err
    assert main([*run, "only=[rlir_seed7]"]) == 2
    assert "there is no run rlir_seed7; there are rlir_seed0, more_pretraining_seed0" in capsys.readouterr().err
    assert main([*run, f"folder={tmp_path}/other", "only=[more_pretraining_seed0]"]) == 2
    assert "run rlir_seed0 first" in capsys.readouterr().err
    (tmp_path / "runs").rename(tmp_path / "elsewhere")  # as in a fresh clone: the results are there, their runs are not
    results.write_text(json.dumps([*entries[:2], entries[2] | {"seconds": -1}, *entries[3:]]))
    assert main([*run, "only=[shuffled_actions_seed0]"]) == 0
    kept = json.loads(results.read_text())
    assert [kept[0], kept[1], *kept[3:]] == [entries[0], entries[1], *entries[3:]]
    assert kept[2]["figures"] == entries[2]["figures"] and kept[2]["seconds"] > 0


def test_settings_are_compared_by_the_coach_on_dev_prompts(assets, tmp_path, capsys, monkeypatch):
    results, readme = tmp_path / "settings.json", tmp_path / "README.md"
    readme.write_text("<!-- settings:begin -->\n<!-- settings:end -->\n")
    train = listed([f"world.name={assets}", *TINY, "trainer.evaluate_every=0", "evaluation.sampling.top_p=[0.8]"])
    run = ["study", "settings", f"overrides={train}", f"folder={tmp_path}/runs", f"results={results}"]
    run += [f"readme={readme}", "only=[log_prob_sequence_seed0,balanced_log_prob_framewise_seed0]"]
    monkeypatch.setattr("rlir_env.assets.load_judge", lambda **_: pytest.fail("the judge was asked"))
    assert main(run) == 0
    entries = {entry["arm"]: entry for entry in json.loads(results.read_text())}
    assert entries.keys() == {"log_prob_sequence", "balanced_log_prob_framewise"}
    assert all(entry["num_videos"] == 8 and entry["num_clips"] == SPLITS["dev"] for entry in entries.values())
    one, other = entries.values()
    assert one["psnr"]["before"] == other["psnr"]["before"]
    assert len({path.read_bytes() for path in tmp_path.glob("runs/*/policy.safetensors")}) == 2  # they differ
    assert "`reward=log_prob`, `credit=sequence`" in readme.read_text()
    first = results.read_bytes()
    assert main(run) == 0 and results.read_bytes() == first


def test_denoising_is_studied_by_the_judge(assets, tmp_path, capsys):
    results, readme = tmp_path / "denoising.json", tmp_path / "README.md"
    train = listed([f"world.name={assets}", *TINY_RUN])
    run = ["study", "denoising", f"overrides={train}", f"folder={tmp_path}/runs", f"results={results}"]
    run += [f"readme={readme}", "only=[flow_0.7_seed0,flow_matching_seed0]"]
    readme.write_text("no place for the table")
    assert main(run) == 2 and not list(tmp_path.glob("runs/*"))  # said before the hours, not after them
    assert "needs the lines <!-- denoising:begin -->" in capsys.readouterr().err
    readme.write_text("<!-- denoising:begin -->\n<!-- denoising:end -->\n")
    assert main(run) == 0
    entries = json.loads(results.read_text())
    assert [(entry["paradigm"], entry["arm"]) for entry in entries] == [
        ("diffusion", "flow_0.7"),
        ("diffusion", "flow_matching"),
    ]
    assert entries[0]["psnr"]["before"] == entries[1]["psnr"]["before"]
    assert entries[0]["psnr"]["after"] != entries[1]["psnr"]["after"]
    assert "| diffusion | flow_0.7 | 0 |" in readme.read_text()
    report = (tmp_path / "runs" / "flow_0.7_seed0" / "report.html").read_text()
    others = [word for word in run if not word.startswith("only=")]
    assert html.escape(shlex.join(["rlir", *others, "only=[flow_0.7_seed0]"])) in report  # typed, it makes this run


def test_the_readme_has_a_place_for_every_table():
    for block in ("results", "readers", "settings", "denoising"):
        check_block(Path(__file__).parents[2] / "README.md", block)


def listed(overrides: list[str]) -> str:
    """Overrides as a list in hydra's grammar."""
    return "[" + ",".join(f"'{override}'" for override in overrides) + "]"


def test_pretraining_leaves_what_can_be_shipped(assets, tmp_path, monkeypatch):
    for name in ("coach", "dev"):
        write_gameplay(tmp_path / "recordings" / name, 64, seed=1)
    run = ["pretrain", "model=idm", f"run_dir={tmp_path}/coach", f"recordings.folder={tmp_path}/recordings"]
    run += [f"archives={tmp_path}/archives", "frame_size=[8,16]", "pretraining.num_steps=2", "num_threads=1"]
    run += [
        "idm.network.config.hidsize=16",
        "idm.network.config.impala_outsize=8",
        "idm.network.config.conv3d_channels=4",
    ]
    run += ["idm.network.config.impala_channels=[4,4]", "task.clips_per_batch=2"]
    assert main(run) == 0
    facts = json.loads((tmp_path / "coach" / "model.json").read_text())
    assert facts["recordings"] == "coach" and facts["num_frames"] == 64 and "f1" in facts["validation"]
    first = (tmp_path / "coach" / "model.safetensors").read_bytes()
    assert main(run) == 0  # goes on from the end: nothing left to do
    assert (tmp_path / "coach" / "model.safetensors").read_bytes() == first
    assert main(["ship", f"{tmp_path}/coach", f"into={tmp_path}/assets"]) == 0
    assert (tmp_path / "assets" / "coach.md").is_file()


def test_an_installed_wheel_trains_in_an_empty_folder(tmp_path):
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling")
    root = Path(__file__).parents[2]
    wheels, target, empty = tmp_path / "wheels", tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    quiet = {"check": True, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)], cwd=root, **quiet)
    (wheel,) = wheels.glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], cwd=empty, **quiet)
    environment = os.environ | {"PYTHONPATH": str(target)}
    overrides = ["experiment=identity", "trainer.num_iterations=2", "num_threads=1"]
    code = f"import rlir_agents.cli as c; print(c.__file__); raise SystemExit(c.main({['train', *overrides]!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, env=environment, **quiet)
    assert done.stdout.startswith(str(target))
    assert (empty / "runs" / "identity" / "summary.json").is_file()
