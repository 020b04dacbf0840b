"""A world of untrained models and noise, shipped into a folder by `rlir ship`, for tests of the wiring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rlir_agents.cli import main
from rlir_agents.world_models import NFD, MineWorld, MineWorldConfig, NFDConfig
from rlir_env.assets import read_tokenizer, write_model
from rlir_env.assets.folder import TOKENIZER_OF
from rlir_env.checkpoints import fingerprint
from rlir_env.game_actions import MINECRAFT, env_action_to_event
from rlir_env.inverse_dynamics import VPTConfig, VPTInverseDynamics
from rlir_env.recordings import write_recording
from rlir_env.tokenizers import KLConfig, KLTokenizer, VQConfig, VQTokenizer

FRAME_SIZE = (8, 16)
TOKENIZER = VQConfig(FRAME_SIZE, (8, 8, 8), 1, latent_channels=4, num_vq_embeddings=16, norm_num_groups=4)
IDM = VPTConfig(FRAME_SIZE, 4, (8,), 1, 8, 16, num_heads=2, num_layers=1, batch_norm=True, temperature=1.0)
# 2 x 4 tokens a frame: 16 * 8 + 15 * 11 = 293 positions; 16 codes and 70 ids of words.
MINEWORLD = MineWorldConfig(16, 86, 16, 32, 1, 2, 1, max_position_embeddings=293)
# Latents of 4 x 2 x 4 numbers, one token for each of the 8 places.
KL_TOKENIZER = KLConfig(FRAME_SIZE, 8, (1, 1, 1), 1, embed_dim=4, norm_num_groups=4, scale_factor=1.0)
NFD_SIZES = NFDConfig((4, 2, 4), 1, 16, 1, 2, intermediate_size=32, max_frames=16, timestep_label="continuous")
SPLITS = {"train": 4, "dev": 2, "test": 4}  # clips
VISIBLE = ["forward_back", "jump", "yaw"]


def make_tiny_assets(folder: Path) -> Path:
    """Ship a tiny world below ``folder``; returns the folder of its assets."""
    assets = folder / "assets"
    torch.manual_seed(0)
    models = {
        "tokenizer": VQTokenizer(TOKENIZER),
        "kl_tokenizer": KLTokenizer(KL_TOKENIZER),
        "coach": VPTInverseDynamics(IDM),
        "judge": VPTInverseDynamics(IDM),
        "mineworld": MineWorld(MINEWORLD),
        "nfd": NFD(NFD_SIZES),
    }
    for name, model in models.items():
        run = make_run(folder / name, name, model)
        assert main(["ship", str(run), f"into={assets}"]) == 0
    for split, num_clips in SPLITS.items():
        write_gameplay(folder / "recordings" / split, 16 * num_clips, seed=num_clips)
        arguments = [f"as={split}", f"num_clips={num_clips}", f"into={assets}"]
        assert main(["ship", str(folder / "recordings" / split), *arguments]) == 0
    assert main(["ship", f"visible_slots=[{','.join(VISIBLE)}]", f"into={assets}"]) == 0
    return assets


def make_run(folder: Path, name: str, model: nn.Module) -> Path:
    """What `rlir pretrain` leaves of a model."""
    folder.mkdir(parents=True)
    shares = [[1 / n] * n for n in MINECRAFT.num_classes]
    write_model(folder / "model.safetensors", model, class_frequency=shares)
    facts = {
        "name": name,
        "making_command": f"rlir pretrain model={name}",
        "recordings": name if name in ("coach", "judge") else "world_model",
        "num_frames": 100,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_steps": 0,
        "validation_recordings": "noise",
        "validation": {"loss": 1.5},
    }
    if name in TOKENIZER_OF:
        tokenizer = read_tokenizer(folder.parent / TOKENIZER_OF[name] / "model.safetensors")
        facts["tokenizer"] = fingerprint([tokenizer], torch.float16)
    (folder / "model.json").write_text(json.dumps(facts))
    return folder


def write_gameplay(folder: Path, num_frames: int, seed: int) -> None:
    """A recording of noise in which every visible slot changes."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (num_frames, *FRAME_SIZE, 3), np.uint8)
    events = [
        env_action_to_event({"forward": i % 2, "jump": i // 2 % 2, "camera": [0, int(rng.integers(1, 9))]}, i)
        for i in range(num_frames)
    ]
    write_recording(folder / "play.mp4", frames, events, fps=6)
