"""The paper's experiments from files of others: checkpoints in the published layouts, small, and recordings."""

import csv
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_assets import write_gameplay
from torch import nn

from rlir_agents.cli import main
from rlir_agents.world_models import NFD, MineWorld, MineWorldConfig, NFDConfig, Oasis, OasisConfig, load_world_model
from rlir_env.assets import load_published_world, published_idm
from rlir_env.checkpoints import load_foreign
from rlir_env.inverse_dynamics import VPTConfig, VPTInverseDynamics
from rlir_env.recordings import ClipFilter
from rlir_env.tokenizers import KLConfig, KLTokenizer, ViTConfig, ViTTokenizer, VQConfig, VQTokenizer

av = pytest.importorskip("av")

FRAME_SIZE, NUM_FRAMES = (32, 64), 4
# Stride 16, as published: 2 x 4 codes a frame. The group norms have the published 32 groups.
VQ = VQConfig(FRAME_SIZE, (32,) * 5, 1, latent_channels=8, num_vq_embeddings=16)
LM = MineWorldConfig(16, 86, 128, 64, 1, 2, 1)
KL = KLConfig(FRAME_SIZE, 32, (1, 1, 1), 1, embed_dim=4)
DIT = NFDConfig((4, 8, 16), 2, 64, 1, 1, intermediate_size=64)
OASIS = OasisConfig((4, 8, 16), 2, 64, 1, 1, intermediate_size=64)
VIT = ViTConfig(FRAME_SIZE, 4, 4, 64, 1, 1, 64, 1, 1)
NET = {
    "attention_heads": 2,
    "attention_mask_style": "none",
    "attention_memory_size": 8,
    "timesteps": 8,
    "conv3d_params": {"inchan": 3, "outchan": 4, "kernel_size": [5, 1, 1], "padding": [2, 0, 0]},
    "hidsize": 32,
    "img_shape": [16, 16, 4],
    "impala_width": 1,
    "impala_kwargs": {"post_pool_groups": 1},
    "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1},
    "n_recurrence_layers": 1,
    "pointwise_ratio": 2,
    "pointwise_use_activation": False,
    "recurrence_is_residual": True,
    "recurrence_type": "transformer",
    "single_output": True,
    "only_img_input": True,
    "use_pointwise_layer": True,
    "use_pre_lstm_ln": False,
}


def under(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in module.half().state_dict().items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """What a researcher holds: two checkpoints, VPT's IDM, recordings."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    dit = NFD(DIT)
    nn.init.normal_(dit.final_layer.linear.weight, std=0.02)  # a fresh one paints nothing
    lm = {"state_dict": under(MineWorld(LM), "") | under(VQTokenizer(VQ), "tokenizer.model.")}
    torch.save(lm, folder / "mineworld.ckpt")
    live = {"state_dict": under(dit, "model.") | under(KLTokenizer(KL), "tokenizer."), "global_step": 5}
    torch.save(live, folder / "nfd.ckpt")
    oasis = Oasis(OASIS)
    nn.init.normal_(oasis.final_layer.linear.weight, std=0.02)
    save_file(under(oasis, ""), folder / "oasis.safetensors")
    save_file(under(ViTTokenizer(VIT), ""), folder / "vit.safetensors")
    args = {"net": {"args": NET}, "pi_head_opts": {"temperature": 4}}
    (folder / "idm").mkdir()
    (folder / "idm" / "4x_idm.model").write_bytes(pickle.dumps({"model": {"args": args}}))
    idm = VPTInverseDynamics(VPTConfig.from_published(NET, args["pi_head_opts"]))
    torch.save(idm.state_dict(), folder / "idm" / "4x_idm.weights")
    for seed, split in enumerate(("train", "dev", "test")):
        write_gameplay(folder / "data" / split, 16, seed)
    return folder


COMMON = [
    *(f"world.frozen.frame_size=[{FRAME_SIZE[0]},{FRAME_SIZE[1]}]", f"world.frozen.num_frames={NUM_FRAMES}"),
    *("env.num_prompts=2", "env.group_size=2", "trainer.num_iterations=3", "trainer.evaluate_every=0"),
    *("device=cpu", "num_threads=1", "evaluation.num_dev_clips=2"),
    "reward=log_prob",  # an untrained IDM reads no whole game action rightly, and Eq. 3 would teach nothing
]
SIZES = "+world_model.config={latent_size: [8, 16], max_frames: 4}"
EXPERIMENTS = {
    "mineworld_300m_rlir": ("mineworld.ckpt", []),
    "nfd_310m_rlir": ("nfd.ckpt", [SIZES, "env.timesteps.num_steps=4"]),
    "oasis_500m_rlir": ("oasis.safetensors", [SIZES, "env.timesteps.num_steps=4"]),
}
PREFIX = {"mineworld.ckpt": "", "nfd.ckpt": "model.", "oasis.safetensors": ""}
TOKENIZER = {"oasis.safetensors": "vit.safetensors"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_post_training_needs_nothing_but_paths(files, tmp_path, experiment):
    checkpoint, settings = EXPERIMENTS[experiment]
    paths = [f"world={files / checkpoint}", f"idm={files / 'idm'}", f"data={files / 'data'}"]
    paths += [f"tokenizer={files / TOKENIZER[checkpoint]}"] if checkpoint in TOKENIZER else []
    run = ["train", f"experiment={experiment}", f"run_dir={tmp_path / 'run'}", *paths, *COMMON, *settings]
    assert main(run) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_iterations"] == 3 and summary["num_clips"] == 4  # 16 frames are four clips of four
    # The paper's one reader rewards and evaluates, and the report does not call it a judge.
    assert summary["judge"] == summary["coach"] == "coach" and summary["judge_f1"] == summary["coach_f1"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "its own verdict" in report and "judge" not in report.partition("Settings")[0]
    ratio = (tmp_path / "run/metrics/scalars/train/ratio_at_first_update.csv").read_text().split()[0]
    assert float(ratio.split(",")[1]) == pytest.approx(1, abs=1e-3)
    learnt, published = load_file(tmp_path / "run" / "policy.safetensors"), load_foreign(files / checkpoint)
    moved = [
        key for key in learnt if (learnt[key] != published[PREFIX[checkpoint] + key.removeprefix("world_model.")]).any()
    ]
    assert len(moved) > len(learnt) / 2
    policy = tmp_path / "run" / "policy.safetensors"
    assert main(["inspect", str(policy)]) == 0
    read = load_world_model(policy).state_dict()  # what a run leaves is a world model again
    assert read and all(torch.equal(tensor, learnt[f"world_model.{key}"]) for key, tensor in read.items())


def test_files_are_found_whichever_is_named(files):
    for path in (files / "idm", files / "idm" / "4x_idm.model", files / "idm" / "4x_idm.weights"):
        assert published_idm(path).config.hidsize == 32
    with pytest.raises(FileNotFoundError, match=r"there is no .*other\.model"):
        published_idm(files / "idm" / "other.weights")
    with pytest.raises(ValueError, match=r"holds 0 files \*\.weights"):
        published_idm(files / "data")


def test_scores_and_labels_take_the_same_path(files, tmp_path, capsys):
    (video,) = (files / "data" / "dev").glob("*.mp4")
    made = tmp_path / f"{video.stem}.jsonl"
    assert main(["record", "label", str(video), f"idm={files / 'idm'}", f"folder={tmp_path}", "device=cpu"]) == 0
    assert len(made.read_text().splitlines()) == 16
    # A reader agrees with its own labels, and not with what was pressed.
    score = ["score", f"videos={video.parent}", f"idm={files / 'idm'}", "first_line=0", "num_frames=15", "device=cpu"]
    score += [f"references={video.parent}", f"metrics={tmp_path}"]
    for labels, run in ((tmp_path, "own"), (video.parent, "pressed")):
        assert main([*score, f"labels={labels}", f"run={run}"]) == 0
    rows = list(csv.DictReader((tmp_path / "latest_metrics.csv").read_text().splitlines()))
    f1 = {row["experiment"]: float(row["f1_macro"]) for row in rows}
    assert f1["own"] > 0.99 > f1["pressed"]
    capsys.readouterr()
    label = ["record", "label", f"idm={tmp_path}", f"folder={tmp_path / 'new'}", "device=cpu"]
    wrong_videos = {video: "holds 0 files *.weights", made: "holds labels", "none.mp4": "no video none.mp4"}
    for wrong, message in {**wrong_videos, video.parent: "is a folder: name its videos"}.items():
        assert main([*label, str(wrong)]) == 2
        assert message in capsys.readouterr().err
    # Labels without videos beside them are scored even so; what is named and not there is found before that.
    assert main([*[word for word in score if "references" not in word], f"labels={tmp_path}", "run=alone"]) == 0
    assert "give references=DIR" in capsys.readouterr().out
    rows = {
        row["experiment"]: row for row in csv.DictReader((tmp_path / "latest_metrics.csv").read_text().splitlines())
    }
    assert rows["alone"]["psnr"] == "" and rows["alone"]["f1_macro"] == rows["own"]["f1_macro"]
    assert float(rows["own"]["psnr"]) == 100  # whole recordings, compared with themselves
    for wrong, message in {f"references={tmp_path}": "there are not all of", "num_frames=-3": "at least 1"}.items():
        assert main([*score, f"labels={tmp_path}", wrong]) == 2
        assert message in capsys.readouterr().err
    assert main([*score[:2], f"labels={tmp_path}", "idm=nowhere"]) == 2
    assert "there is no nowhere.model" in capsys.readouterr().err


def test_scores_of_one_name_are_of_one_kind(files, tmp_path, capsys):
    dev = files / "data" / "dev"
    score = ["score", f"videos={dev}", f"labels={dev}", f"idm={files}/idm", "first_line=0", "device=cpu"]
    score += [f"metrics={tmp_path}", "num_frames=3"]
    assert main(score) == 0
    settings = json.loads((tmp_path / "settings_dev.json").read_text())
    assert settings["num_frames"] == 3 and settings["idm"] == f"{files}/idm"
    assert main(score) == 0  # once more
    before = (tmp_path / "idm_dev.json").read_text()
    assert main([*score, "num_frames=4"]) == 2
    assert "scores are of other num_frames; give another run=NAME" in capsys.readouterr().err
    assert (tmp_path / "idm_dev.json").read_text() == before
    assert main([*score, "num_frames=4", "run=longer"]) == 0


def test_files_that_do_not_fit_are_named(files, tmp_path):
    """A renamed tensor, a model without its tokenizer, one tokenizer for another."""
    weights = torch.load(files / "mineworld.ckpt")["state_dict"]
    key = "transformer.model.norm.weight"
    renamed = {**{name: tensor for name, tensor in weights.items() if name != key}, f"{key}s": weights[key]}
    torch.save(renamed, tmp_path / "renamed.ckpt")
    with pytest.raises(ValueError, match=rf"renamed\.ckpt: the weights do not fit MineWorld; missing: {key}"):
        load_world_model(tmp_path / "renamed.ckpt")
    torch.save(weights | {key: weights[key] * torch.nan}, tmp_path / "diverged.ckpt")
    with pytest.raises(ValueError, match=rf"diverged\.ckpt: weights are not finite: {key}\."):
        load_world_model(tmp_path / "diverged.ckpt")
    paths = {"idm": files / "idm", "data": files / "data", "frame_size": FRAME_SIZE}
    with pytest.raises(ValueError, match=r"oasis\.safetensors holds no tokenizer .* give tokenizer=PATH"):
        load_published_world(files / "oasis.safetensors", tokenizer="vit_tokenizer", **paths)
    with pytest.raises(ValueError, match=r"tokenizer=.*vit\.safetensors holds a ViTTokenizer, but .* is for ids"):
        load_published_world(files / "mineworld.ckpt", tokenizer_weights=files / "vit.safetensors", **paths)


def test_the_idm_is_inspected_with_its_settings(files, capsys):
    """Two heads are in the settings; no weight tells."""
    weights = files / "idm" / "4x_idm.weights"
    assert main(["inspect", str(weights)]) == 0
    assert "num_heads: 2\n" in capsys.readouterr().out
    assert main(["inspect", str(files / "idm")]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_siblings_that_are_paid_alike_are_spoken_of(files, tmp_path):
    """An untrained IDM reads no whole game action rightly."""
    paths = [f"world={files / 'mineworld.ckpt'}", f"idm={files / 'idm'}", f"data={files / 'data'}"]
    run = ["train", "experiment=mineworld_300m_rlir", f"run_dir={tmp_path}/run", *paths, *COMMON, "reward=equation_3"]
    with pytest.warns(UserWarning, match="paid alike"):
        assert (
            main(
                [word for word in run if word not in ("reward=log_prob", "trainer.num_iterations=3")]
                + ["trainer.num_iterations=1"]
            )
            == 0
        )


def test_benchmark_from_recordings_to_scores(files, tmp_path, capsys):
    """Clips are cut, continued by a published model, and scored, as the original scripts do."""
    size = f"[{FRAME_SIZE[0]},{FRAME_SIZE[1]}]"
    clips, outputs = tmp_path / "validation", tmp_path / "outputs"
    cut = [f"folder={clips}", f"frame_size={size}", "num_frames=4", "num_clips=3", "clip_filter.max_null_run=null"]
    assert main(["record", "cut", str(files / "data" / "train"), *cut]) == 0
    make = ["generate", "world=published", "world_model=published", "policy=diagonal", f"world={files}/mineworld.ckpt"]
    make += [f"idm={files}/idm", f"data={clips}", f"world.frozen.frame_size={size}", "device=cpu", "num_threads=1"]
    make += [f"validation.folder={clips}", "validation.num_frames=4", "evaluation.batch_size=2", f"folder={outputs}"]
    assert main(make) == 0
    names = sorted(path.name for path in clips.iterdir())
    assert len(names) == 6 and sorted(path.name for path in outputs.glob("clip_*")) == names
    with av.open(str(outputs / "clip_0.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "mpeg4" and stream.average_rate == 6 and stream.frames == 3
    first = {name: (outputs / name).read_bytes() for name in names}
    (outputs / "clip_0.jsonl").unlink()
    assert main(make) == 0  # all videos are there, a label is not
    (outputs / "clip_1.mp4").unlink()
    assert main(make) == 0  # only what is missing is made, and from its own noise
    assert {name: (outputs / name).read_bytes() for name in names} == first
    assert main([*make, "validation.action_offset=1"]) == 2  # would mix two kinds of clips
    assert "other settings (validation.action_offset)" in capsys.readouterr().err
    assert main([*make, f"folder={clips}"]) == 2
    assert "give another one for what is made" in capsys.readouterr().err and not (clips / "run.json").exists()
    assert main([*make, "evaluation.batch_size=1"]) == 0  # changes nothing
    other = tmp_path / "other"
    assert main([*make, "validation.action_offset=1", f"folder={other}"]) == 0
    assert any((other / name).read_bytes() != first[name] for name in names if name.endswith(".mp4"))
    score = [f"videos={outputs}", f"labels={clips}", f"idm={files}/idm", "num_frames=3", f"metrics={tmp_path}/metrics"]
    assert main(["score", *score, "device=cpu"]) == 0
    (row,) = csv.DictReader((tmp_path / "metrics" / "latest_metrics.csv").read_text().splitlines())
    assert row["experiment"] == "outputs" and 0 < float(row["f1_macro"]) < 1 and 0 < float(row["psnr"]) < 40
    assert main([*make, "validation.num_frames=9", f"folder={other}"]) == 2
    assert "fewer than 9 frames" in capsys.readouterr().err


def test_recordings_of_vpt_may_lie_deep_and_be_broken(files, tmp_path, caplog):
    settings = {"frame_size": FRAME_SIZE, "num_frames": NUM_FRAMES}
    for seed in range(8):
        write_gameplay(tmp_path / "data" / str(seed), 16, seed)
        for file in (tmp_path / "data" / str(seed)).iterdir():
            file.rename(file.with_name(f"{seed}{file.suffix}"))
    lines = (tmp_path / "data" / "3" / "3.jsonl").read_text().splitlines()
    (tmp_path / "data" / "3" / "3.jsonl").write_text("\n".join(lines[:-1]))
    paths = files / "mineworld.ckpt", files / "idm", tmp_path / "data"
    found = load_published_world(*paths, **settings).prompts["train"].num_prompts
    assert 16 <= found <= 7 * 4  # four clips of each, but for the broken one and those of other splits
    assert "15 lines for the 16 frames" in caplog.text
    with pytest.raises(ValueError, match="15 lines for the 16 frames"):
        load_published_world(*paths, on_error="raise", **settings)
    strict = ClipFilter(max_static_run=0, max_null_run=0, static_threshold=255)  # every picture stands still
    with pytest.raises(ValueError, match="dropped windows: .* static"):
        load_published_world(*paths, clip_filter=strict, **settings).prompts["train"]


def test_recordings_are_split_by_folder_or_by_name(files, tmp_path):
    settings = {"frame_size": FRAME_SIZE, "num_frames": NUM_FRAMES, "num_prompts": {"train": 2}}
    world = load_published_world(files / "mineworld.ckpt", files / "idm", files / "data", **settings)
    assert world.prompts["train"].num_prompts == 2 and world.prompts["test"].num_prompts == 4
    frames = world.prompts["dev"].get([0]).context_frames
    assert frames.shape == (1, 1, 3, *FRAME_SIZE) and world.tokenizer.encode(frames).shape == (1, 1, 8)
    assert [sum(shares) for shares in world.class_frequency] == pytest.approx([1.0] * 9)
    for seed in range(12):
        write_gameplay(tmp_path / str(seed), 16, seed)
        for file in (tmp_path / str(seed)).iterdir():
            file.rename(tmp_path / f"{seed}{file.suffix}")
    settings["num_prompts"] = {}
    flat = load_published_world(files / "mineworld.ckpt", files / "idm", tmp_path, **settings).prompts
    assert 8 * 4 < flat["train"].num_prompts <= 12 * 4  # four clips each
    with pytest.raises(ValueError, match="no .* recording: by a hash"):
        for split in ("dev", "test"):  # a twentieth of twelve recordings may be none
            flat[split]


def test_a_test_folder_is_not_trained_on(files, tmp_path):
    shutil.copytree(files / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "dev")
    with pytest.raises(ValueError, match="has some of train, dev, test, but no dev: give all"):
        load_published_world(files / "mineworld.ckpt", files / "idm", tmp_path / "data", frame_size=FRAME_SIZE)
