"""MineWorld's protocol on recorded gameplay: what an mp4, and the precision of reading, cost the readers."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlir_env.assets import asset_folder, load_judge, load_world
from rlir_env.game_actions import env_actions_to_slots
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.metrics import confusion_matrices, mineworld_scores, score_folder
from rlir_env.recordings import Recording, list_recordings, write_generated_clip

pytest.importorskip("av")

NUM_CLIPS, NUM_FRAMES = 64, 15  # frames 1 to 15 of a clip of 16, as a world model makes them
EFFECT_OF_COMPRESSION, EFFECT_OF_BFLOAT16 = 0.01, 0.005  # on mean macro F1
IDMS = {"coach": lambda: load_world("doom").coach, "judge": lambda: load_judge("doom")}


@pytest.fixture(scope="module")
def played() -> list[list[dict]]:
    """Env actions of the shipped dev clips, a line a frame."""
    (recording,) = map(Recording, list_recordings(asset_folder("doom").prompt_files("dev")))
    lines, _ = recording.env_actions()
    return [lines[start : start + NUM_FRAMES + 1] for start in range(0, NUM_CLIPS * 16, 16)]


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """uint8 ``[NUM_CLIPS, NUM_FRAMES, 3, H, W]``, of the same clips."""
    frames = load_world("doom").prompts["dev"].get(torch.arange(NUM_CLIPS)).target_frames
    assert frames is not None
    return frames


@pytest.fixture(scope="module", params=IDMS)
def idm(request) -> InverseDynamicsModel:
    return IDMS[request.param]()


def in_memory(idm: InverseDynamicsModel, frames: Tensor, played: list[list[dict]]) -> dict[str, float]:
    true = torch.stack([torch.from_numpy(env_actions_to_slots(lines[1:])) for lines in played])
    read = idm.infer_game_actions(frames, align="mineworld")
    return mineworld_scores(confusion_matrices(read, true).sum(0))["metric_mean_on_task"]


@pytest.fixture(scope="module")
def exact(idm, frames, played) -> dict[str, float]:
    return in_memory(idm, frames, played)


def test_figures_of_files_are_those_in_memory_but_for_the_compression(idm, frames, played, exact, tmp_path: Path):
    (tmp_path / "labels").mkdir()
    for clip, (pictures, lines) in enumerate(zip(frames.permute(0, 1, 3, 4, 2).numpy(), played, strict=True)):
        write_generated_clip(tmp_path / "videos" / f"clip_{clip}.mp4", pictures)
        (tmp_path / "labels" / f"clip_{clip}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    on_files = score_folder(tmp_path / "videos", tmp_path / "labels", idm, num_frames=NUM_FRAMES)["metric_mean_on_task"]
    print(*(f"\n{key}: {exact[key]:.4f} in memory, {on_files[key]:.4f} from files" for key in exact))
    assert exact["f1_macro"] > 0.65  # or there would be nothing to lose
    assert on_files["f1_macro"] == pytest.approx(exact["f1_macro"], abs=EFFECT_OF_COMPRESSION)
    assert on_files["camera_loss"] == pytest.approx(exact["camera_loss"], abs=0.06)
    assert on_files != exact  # the pictures are not the same bytes


def test_bfloat16_reads_alike(idm, frames, played, exact):
    """Training reads so where it is fast; `rlir score` reads in float32, as the original script."""
    with torch.autocast("cpu", torch.bfloat16):
        rounded = in_memory(idm, frames, played)
    print(*(f"\n{key}: {exact[key]:.4f} in float32, {rounded[key]:.4f} in bfloat16" for key in exact))
    assert rounded["f1_macro"] == pytest.approx(exact["f1_macro"], abs=EFFECT_OF_BFLOAT16)
    assert rounded != exact
