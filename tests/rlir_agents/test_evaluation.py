"""The figures of an evaluation record, by hand."""

import pytest
import torch

from rlir_agents.evaluation import Evaluation
from rlir_env.game_actions import MINECRAFT, GameActionSpec, Slot
from rlir_env.metrics import draw_weights

SPEC = GameActionSpec(
    (
        Slot("move", ("none", "left", "right")),
        Slot("jump", ("none", "pressed")),
        Slot("yaw", ("-1", "0", "+1"), is_ordered=True),
    )
)


def evaluation(game_action, inferred, spec=SPEC) -> Evaluation:
    return Evaluation(
        spec=spec,
        game_action=game_action,
        inferred_game_action={"judge": inferred},
        psnr=torch.full((len(game_action),), 20.0),
        frames=torch.zeros(1, game_action.shape[1] + 1, 3, 4, 4, dtype=torch.uint8),
    )


def test_draws_are_the_figure_of_the_drawn_clips():
    # A draw that takes clip n w[n] times is the figure of the set with clip n repeated w[n] times.
    noise = torch.Generator().manual_seed(1)
    label, read = (torch.stack([torch.randint(n, (6, 5), generator=noise) for n in (3, 2, 3)], -1) for _ in range(2))
    weights = draw_weights(6, num_draws=4, seed=1)
    draws = evaluation(label, read).f1_draws("judge", weights)
    for weight, draw in zip(weights.long(), draws, strict=True):
        drawn = evaluation(label.repeat_interleave(weight, 0), read.repeat_interleave(weight, 0))
        assert draw.item() == pytest.approx(drawn.f1("judge"), abs=1e-12)
    assert draws.std() > 0


def test_absent_classes_count_in_the_protocol_only():
    # move: labels 0 0 1 1, read 0 0 1 0: F1 of 0 = 2*2/(2+3) = .8, of 1 = 2*1/(2+1) = .667, mean
    # .7333. jump: never pressed, never read: one class, F1 1. Protocol (1 + .7333) / 2 = .8667;
    # quoted .7333.
    label = torch.tensor([[[0, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 1]]])
    read = torch.tensor([[[0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]]])
    result = evaluation(label, read)
    assert result.f1("judge") == pytest.approx(0.73333, abs=1e-5)
    assert result.scores("judge")["mineworld/f1_macro"] == pytest.approx(0.86667, abs=1e-5)
    assert result.scores("judge")["camera_accuracy"] == 0.5
    assert result.slot_figures("judge") == pytest.approx({"move": 0.73333, "jump": 1.0, "yaw": 0.5}, abs=1e-5)
    # Class 1 is the centre of an ordered slot: the camera rests in every label.
    assert result.pressed_shares() == {"move": 0.5, "jump": 0.0, "yaw": 0.0}


def test_slots_can_be_chosen():
    label = torch.tensor([[[0, 0, 1], [1, 1, 1]]])
    read = torch.tensor([[[0, 1, 1], [1, 0, 1]]])  # move right, jump wrong
    result = evaluation(label, read)
    assert result.f1("judge", ["move"]) == 1.0
    assert result.f1("judge", ["jump"]) == 0.0
    assert result.f1("judge") == 0.5
    with pytest.raises(ValueError, match="no slot named 'fly'"):
        result.f1("judge", ["fly"])
    with pytest.raises(ValueError, match="no reader 'coach'"):
        result.f1("coach")


def test_nothing_to_tell_apart_is_an_error():
    still = torch.zeros(2, 3, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="use more clips"):
        evaluation(still, still).f1("judge")


def test_log_entries_are_flat_and_namespaced():
    label = torch.tensor([[[0, 0, 1], [1, 1, 1]]])
    entries = evaluation(label, label).log_entries("judge")
    assert entries["action_following/f1"] == entries["action_following/precision"] == 1.0
    assert entries["action_following/camera_accuracy"] == 1.0
    assert entries["action_following/camera_loss"] == 0.0
    assert entries["video/psnr"] == 20.0
    assert all(isinstance(value, float) for value in entries.values())


def test_a_record_survives_its_file(tmp_path):
    label = torch.tensor([[[0, 0, 1], [1, 1, 1]]])
    record = evaluation(label, label.flip(1))
    record.save(tmp_path / "deep" / "before.safetensors")
    loaded = Evaluation.load(tmp_path / "deep" / "before.safetensors", SPEC)
    assert loaded.inferred_game_action.keys() == {"judge"}
    assert torch.equal(loaded.inferred_game_action["judge"], label.flip(1))
    assert torch.equal(loaded.frames, record.frames) and torch.equal(loaded.psnr, record.psnr)
    assert loaded.f1("judge") == record.f1("judge")
    with pytest.raises(ValueError, match="3 slots"):
        Evaluation.load(tmp_path / "deep" / "before.safetensors", MINECRAFT)
