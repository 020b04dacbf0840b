"""The study of the readers: how clips are cut, its figures by hand, and the command on a tiny world."""

import json
from pathlib import Path

import pytest
import torch
from tiny_assets import IDM, make_run, write_gameplay

from rlir_agents.cli import main
from rlir_agents.reader_figures import reader_figures, visible_slots
from rlir_agents.reader_study import ReaderStudy, ReaderTables, in_pieces, piece_bounds, spread_clips
from rlir_env.assets import write_model
from rlir_env.game_actions import GameActionSpec, Slot
from rlir_env.inverse_dynamics import VPTInverseDynamics
from rlir_env.metrics import confusion_matrices
from rlir_env.recordings import ClipBatch, FrameArchive, list_recordings
from rlir_env.testing import identity_world
from rlir_env.tokenizers import VQTokenizer

SPEC = GameActionSpec(
    (
        Slot("jump", ("none", "pressed")),
        Slot("drop", ("none", "pressed")),
        Slot("use", ("none", "pressed")),
        Slot("yaw", ("-1", "0", "+1"), is_ordered=True),
    )
)
# One clip of five transitions: jump, drop, use, yaw.
TRUE = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 2], [1, 0, 1, 0], [1, 0, 0, 1]]])
GOOD = torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 2], [1, 0, 0, 1], [1, 0, 0, 1]]])
BAD = torch.tensor([[[0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2], [1, 0, 0, 1]]])


def tables(real=GOOD, reconstructed=BAD, coach=GOOD) -> ReaderTables:
    def count(read):
        return confusion_matrices(read, TRUE, SPEC)

    nothing = torch.tensor(SPEC.none_classes).expand_as(TRUE)
    return ReaderTables(
        SPEC,
        count(nothing),
        real={"coach": count(coach), "judge": count(real)},
        reconstructed={"coach": count(coach), "judge": count(reconstructed)},
        by_length={2: {"coach": count(coach), "judge": count(BAD)}, 6: {"coach": count(coach), "judge": count(GOOD)}},
    )


@pytest.mark.parametrize("num_frames", [2, 3, 16, 64])
def test_every_transition_is_read_once_at_every_length(num_frames):
    # Frame t shows the number t, and this reader gives for each transition its frames' numbers and its clip's length.
    def infer(clips):
        assert clips.dtype == torch.uint8
        first, second = clips[..., :-1, 0, 0, 0].long(), clips[..., 1:, 0, 0, 0].long()
        return torch.stack([first, second, torch.full_like(first, clips.shape[-4])], dim=-1)

    frames = torch.arange(num_frames, dtype=torch.uint8)[None, :, None, None, None].expand(2, -1, 3, 1, 1)
    order = torch.arange(num_frames - 1)
    for length in range(2, num_frames + 1):
        readings = in_pieces(infer, frames, length)
        expected = torch.stack([order, order + 1, torch.full_like(order, length)], dim=-1)
        assert torch.equal(readings, expected.expand(2, -1, -1))


def test_pieces_of_the_whole_length_are_the_clip():
    assert piece_bounds(16, 16) == [(0, 0)]
    # 15 transitions by 7: 0-6, 7-13, and the 15th by the last eight frames, whose first six are known.
    assert piece_bounds(16, 8) == [(0, 0), (7, 0), (8, 6)]
    for length in (1, 17):
        with pytest.raises(ValueError, match="use lengths of 2 to 16"):
            piece_bounds(16, length)


def test_figures_by_hand():
    figures = reader_figures(tables(), num_draws=3)
    # Always none. Jump is played 0 0 0 1 1: F1 of none 2*3/(3+5) = .75, of pressed 0, mean .375. Drop never occurs:
    # one class, 1. Use 0 1 1 1 0: F1 of none 2*2/(2+5) = .571, mean .2857. Yaw: bin 1 in 3 of 5: .75, of three .25.
    slots = figures["slots"]
    assert [slots[name]["always_none"] for name in SPEC.names] == [0.375, 1.0, 0.2857, 0.25]
    assert [slots[name]["pressed"] for name in SPEC.names] == [0.4, 0.0, 0.6, 0.4]
    # The judge reads jump rightly (1 is .625 above .375), use as none (no gain), drop as nobody pressed it (no gain),
    # and of yaw everything but one: F1 0, 2*3/(3+4) = .857 and 1, mean .619.
    judge = {name: slots[name]["readers"]["judge"] for name in SPEC.names}
    assert [judge[name]["real"]["value"] for name in SPEC.names] == [1.0, 1.0, 0.2857, 0.619]
    assert figures["visible_slots"] == ["jump", "yaw"] and figures["counted_slots"] == ["jump"]
    # Reconstructed, jump is read 0 0 0 0 1: F1 of none 2*3/(3+4) = .857, of pressed 2*1/(2+1) = .667, mean .7619.
    reader = figures["readers"]["judge"]
    assert reader["f1"]["real"] == {"value": 1.0, "ci95": [1.0, 1.0]}
    assert reader["f1"]["reconstructed"]["value"] == 0.7619 and reader["loss"]["value"] == 0.2381
    # Yaw reconstructed: read 2 0 0 2 1, played 1 1 2 0 1: one right; three at most one bin away.
    assert reader["camera"]["real"] == {"exact": 0.8, "within_one_bin": 1.0}
    assert reader["camera"]["reconstructed"] == {"exact": 0.2, "within_one_bin": 0.6}
    assert figures["always_none"] == {"f1": 0.375, "camera": {"exact": 0.6, "within_one_bin": 1.0}}
    lengths = figures["lengths"]["judge"]
    assert [entry["num_frames"] for entry in lengths] == [2, 6]
    assert [entry["gain"]["value"] for entry in lengths] == [0.0, 0.2381]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_a_slot_is_visible_if_the_coach_sees_it():
    assert visible_slots(tables(real=BAD, coach=GOOD)).tolist() == [True, False, False, True]
    assert visible_slots(tables(real=GOOD, coach=BAD)).tolist() == [True, False, False, False]  # yaw: the judge alone
    nothing = torch.tensor(SPEC.none_classes).expand_as(TRUE)
    blind = tables(real=nothing, coach=nothing)
    assert visible_slots(blind).tolist() == [False] * 4
    assert reader_figures(blind, num_draws=3)["readers"]["judge"]["f1"]["real"] == {"value": None, "ci95": None}


def test_the_intervals_are_over_clips():
    # Ten clips, all read rightly but one: draws with and without it differ.
    true, read = TRUE.repeat(10, 1, 1), torch.cat([GOOD.repeat(9, 1, 1), BAD])
    count = confusion_matrices(read, true, SPEC)
    nothing = confusion_matrices(torch.ones_like(true) * torch.tensor(SPEC.none_classes), true, SPEC)
    several = ReaderTables(SPEC, nothing, {"coach": count}, {"coach": count}, {2: {"coach": count}})
    figures = reader_figures(several, num_draws=200)["readers"]["coach"]
    low, high = figures["f1"]["real"]["ci95"]
    assert low < figures["f1"]["real"]["value"] < high == 1.0
    assert figures["loss"] == {"value": 0.0, "ci95": [0.0, 0.0]}  # paired: the same clips in both


def test_a_perfect_reader_is_perfect_at_every_length():
    world = identity_world()
    prompts = world.prompts["test"].get(range(6))
    frames = torch.cat([prompts.context_frames, prompts.target_frames], dim=1)
    clips = ClipBatch(frames, prompts.game_action, prompts.game_action)
    length = frames.shape[1]
    study = ReaderStudy({"coach": world.coach}, world.tokenizer, batch_size=4)
    read = study.read(clips, clips, [2, 3, length])
    assert torch.equal(read.by_length[length]["coach"], read.real["coach"])
    for counts in (read.real["coach"], read.by_length[2]["coach"], read.by_length[3]["coach"]):
        assert len(counts) == 6 and counts.sum() == prompts.game_action.numel()
        assert torch.equal(counts, counts.diagonal(dim1=-2, dim2=-1).diag_embed())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Models as `rlir pretrain` leaves them, and recordings of two sets."""
    pytest.importorskip("av")
    from tiny_assets import TOKENIZER

    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    for name, model in (("coach", VPTInverseDynamics(IDM)), ("judge", VPTInverseDynamics(IDM))):
        make_run(folder / name, name, model)
    write_model(folder / "tokenizer.safetensors", VQTokenizer(TOKENIZER))
    write_gameplay(folder / "recordings" / "test", 100, seed=1)
    return folder


def arguments(world: Path, *more: str) -> list[str]:
    weights = [f"weights.{name}={world / name}" for name in ("coach", "judge")]
    weights += [f"weights.tokenizer={world}/tokenizer.safetensors", f"recordings.folder={world}/recordings"]
    paths = [f"archives={world}/archives", f"results={world}/readers.json", f"page={world}/readers.html"]
    return ["study", "readers", *weights, *paths, "device=cpu", "lengths=[16,4,32]", "readme=null", *more]


def test_clips_are_disjoint_and_evenly_spread(world):
    archive = FrameArchive.build(list_recordings(world / "recordings" / "test"), (8, 16), world / "archives")
    assert len(spread_clips(archive, 512, 16).frames) == 6  # 100 frames
    two = spread_clips(archive, 2, 16).frames
    every = spread_clips(archive, 6, 16).frames
    assert torch.equal(two, every[[0, 5]])
    for asked in ((0, 16), (5, 101), (5, 1)):
        with pytest.raises(ValueError, match="of 2 frames or more, or record longer"):
            spread_clips(archive, *asked)


def test_the_command_leaves_json_page_and_readme(world, capsys):
    readme = world / "README.md"
    readme.write_text("above\n<!-- readers:begin -->\nstale\n<!-- readers:end -->\nbelow\n")
    given = arguments(world, f"readme={readme}", "num_clips=3")
    assert main(given) == 0
    text = capsys.readouterr().out
    assert "always none" in text and "gain over the shortest" in text
    assert "rlir ship visible_slots" not in text  # test maps choose nothing
    figures = json.loads((world / "readers.json").read_text())
    assert (figures["num_clips"], figures["num_windows"], figures["window_frames"]) == (3, 3, 32)
    assert figures["command"].startswith("rlir study readers weights.coach=")
    assert len(figures["weights"]["judge"]["sha256"]) == 64
    assert [entry["num_frames"] for entry in figures["lengths"]["coach"]] == [4, 16, 32]
    assert figures["slots"]["drop"]["always_none"] == 1.0  # nobody drops anything
    assert "<svg" in (world / "readers.html").read_text()
    assert "| slot |" in readme.read_text() and "stale" not in readme.read_text()
    (world / "recordings" / "test").rename(world / "recordings" / "dev")
    assert main([*given, "maps=dev", "readme=null"]) == 0
    assert "rlir ship visible_slots=[" in capsys.readouterr().out
    (world / "recordings" / "dev").rename(world / "recordings" / "test")


@pytest.mark.parametrize(
    "override, message",
    [
        ("maps=coach", "use test, or dev"),
        ("maps=mars", "no set of recordings 'mars'"),
        ("lengths=[1,16]", "use lengths of 2 to 16"),
        ("lengths=[]", "lengths is empty"),
        ("lengths=[2,200]", "ask for 1 or more"),
        ("weights.judge=nowhere", "give the folder of a finished `rlir pretrain`"),
    ],
)
def test_a_mistake_names_its_remedy(override, message, world, capsys):
    assert main(arguments(world, override)) == 2
    assert message in capsys.readouterr().err
    assert main(["study"]) == 2
    assert "write `rlir study SUBJECT [key=value ...]`; subjects are readers, settings" in capsys.readouterr().err
