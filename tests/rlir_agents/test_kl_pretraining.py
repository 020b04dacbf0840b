"""`rlir pretrain model=kl_tokenizer`: it learns, it measures its scale, and its preset fits the budget."""

import json

import pytest
import torch
from tiny_assets import FRAME_SIZE, write_gameplay

from rlir_agents.cli import main
from rlir_agents.commands.building import build
from rlir_agents.commands.composition import compose_config
from rlir_agents.pretraining import KLTokenizerTask
from rlir_env.assets.models import read_model
from rlir_env.recordings import FrameArchive, list_recordings
from rlir_env.tokenizers import KLConfig, KLTokenizer

pytest.importorskip("av")

BUILDERS = {"KLTokenizer": lambda sizes: KLTokenizer(KLConfig(**sizes))}


def archive(folder, name) -> FrameArchive:
    return FrameArchive.build(list_recordings(folder / "recordings" / name), FRAME_SIZE, folder / "archives")


@pytest.fixture(scope="module")
def gameplay(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gameplay")
    for seed, name in enumerate(("world_model", "dev")):
        write_gameplay(folder / "recordings" / name, 64, seed=seed)
    return folder


def test_a_run_leaves_a_tokenizer_with_unit_variance(gameplay, tmp_path):
    run = ["pretrain", "model=kl_tokenizer", f"run_dir={tmp_path}/run", f"recordings.folder={gameplay}/recordings"]
    run += [f"archives={gameplay}/archives", f"frame_size={list(FRAME_SIZE)}", "num_threads=1", "device=cpu"]
    run += [f"tokenizer.config.frame_size={list(FRAME_SIZE)}", "tokenizer.config.ch=4", "tokenizer.config.embed_dim=3"]
    run += ["pretraining.num_steps=10", "pretraining.validate_every=5", "task.frames_per_batch=8", "autocast=float32"]
    assert main(run) == 0
    path = tmp_path / "run" / "model.safetensors"
    first = path.read_bytes()
    tokenizer, _ = read_model(path, BUILDERS)
    frames = archive(gameplay, "world_model").clips(range(64), 1).frames
    assert tokenizer.encode(frames).shape == (64, 1, 3, 1, 2)
    assert tokenizer.encode(frames).std().item() == pytest.approx(1, abs=1e-3)
    facts = json.loads((tmp_path / "run" / "model.json").read_text())
    figures = facts["validation"]
    assert figures.keys() == {"psnr", "kl_per_dimension", "latent_std", "scale_factor"}
    assert figures["latent_std"] * figures["scale_factor"] == pytest.approx(1, abs=1e-2)
    assert figures["psnr"] > 5 and figures["kl_per_dimension"] > 0
    assert main(run) == 0  # goes on from the end: nothing left to do, but the scale is measured again
    assert path.read_bytes() == first


def test_a_little_training_helps(gameplay):
    torch.manual_seed(0)
    tokenizer = KLTokenizer(KLConfig(FRAME_SIZE, 8, (1, 2), 1, 8, norm_num_groups=1, scale_factor=1.0))
    data = archive(gameplay, "dev")
    task = KLTokenizerTask(tokenizer, data, data, frames_per_batch=16, num_validation_frames=16)
    optimizer = torch.optim.Adam(task.module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    before = task.validate()
    for step in range(40):
        loss, _ = task.loss(step, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = task.validate()
    assert after["psnr"] > before["psnr"] + 1
    task.finish()  # the same frames, so now the figures are of scaled latents and say the same
    assert task.validate()["latent_std"] == pytest.approx(after["latent_std"], rel=1e-4)
    assert tokenizer.config.scale_factor == pytest.approx(after["scale_factor"], rel=1e-4)


def test_the_preset_fits_the_budget():
    with torch.device("meta"):
        built = build(compose_config("pretrain", ["model=kl_tokenizer"])["network"], {})
    assert built.latent_shape == (16, 5, 7)
    assert sum(p.numel() for p in built.parameters()) <= 1_300_000  # under 3 MB in float16
