"""The folder protocol on recorded gameplay: what an mp4 costs the readers."""

import json
from pathlib import Path

import pytest
import torch

from rlir_env.assets import load_judge, load_world
from rlir_env.game_actions import MINECRAFT, VPT_CAMERA
from rlir_env.metrics import confusion_matrices, mineworld_scores, score_folder
from rlir_env.recordings import write_recording

pytest.importorskip("av")

NUM_CLIPS, NUM_FRAMES = 64, 14  # the line of the last of 15 frames is not in a clip
EFFECT_OF_COMPRESSION = 0.01  # on mean macro F1


def as_env_action(slots: list[int]) -> dict:
    """A game action from whose line the same slots are read."""
    action: dict = {"ESC": 0, "camera": [int(VPT_CAMERA.decode(bin_).round()) for bin_ in slots[7:]]}
    for slot, chosen in zip(MINECRAFT.slots[:7], slots, strict=False):
        if chosen:
            action[slot.classes[chosen] if len(slot.classes) > 2 else slot.name] = 1
    return action


@pytest.mark.parametrize("name", ["coach", "judge"])
def test_figures_of_files_are_those_in_memory_but_for_the_compression(name: str, tmp_path: Path) -> None:
    world = load_world("doom")
    prompt = world.prompts["dev"].get(torch.arange(NUM_CLIPS))
    frames, played = prompt.target_frames[:, :NUM_FRAMES], prompt.game_action
    idm = {"coach": world.coach, "judge": load_judge("doom")}[name]
    # The first frame here is frame 1 of the clip: what is read at it is line 1.
    read = idm.infer_game_actions(frames, align="mineworld")
    in_memory = mineworld_scores(confusion_matrices(read, played[:, 1:]).sum(0))["metric_mean_on_task"]
    for clip in range(NUM_CLIPS):
        pictures = frames[clip].permute(0, 2, 3, 1).numpy()
        write_recording(tmp_path / "videos" / f"{clip:03}.mp4", pictures, [{}] * NUM_FRAMES, fps=6)
    (tmp_path / "labels").mkdir()
    for clip, slots in enumerate(played.tolist()):
        lines = [json.dumps(as_env_action(one)) for one in slots]
        (tmp_path / "labels" / f"{clip:03}.jsonl").write_text("\n".join(lines))
    on_files = score_folder(tmp_path / "videos", tmp_path / "labels", idm, num_frames=NUM_FRAMES)["metric_mean_on_task"]
    print({key: (round(in_memory[key], 4), round(on_files[key], 4)) for key in in_memory})
    assert in_memory["f1_macro"] > 0.7  # or there would be nothing to lose
    assert on_files["f1_macro"] == pytest.approx(in_memory["f1_macro"], abs=EFFECT_OF_COMPRESSION)
    assert on_files["camera_loss"] == pytest.approx(in_memory["camera_loss"], abs=0.05)
    assert on_files != in_memory  # the pictures are not the same bytes
