"""What ships: the files are the manifest's, within the budget, and a world loads from them."""

import json
from pathlib import Path

import pytest
import torch

import rlir_env.assets
from rlir_env.assets import AssetFolder, Manifest, asset_folder, load_judge, load_world
from rlir_env.assets.cards import write_cards
from rlir_env.assets.folder import MODELS, SPLITS, making_commands
from rlir_env.checkpoints import save_safetensors
from rlir_env.prompts import ClipPrompts

SHIPPED = Path(rlir_env.assets.__file__).parent
DOOM = SHIPPED / "doom"
# Design, 5.14: bytes.
BUDGET = dict.fromkeys(MODELS, 3e6) | {"mineworld": 10e6, "nfd": 10e6}
TOGETHER = 40e6
# What playing with tokens needs; the models of latents may come later.
NEEDED = ("tokenizer", "coach", "judge", "mineworld")

needs_assets = pytest.mark.skipif(
    not all((DOOM / f"{name}.safetensors").is_file() for name in NEEDED), reason="not all models are shipped yet"
)


def shipped_files() -> list[Path]:
    endings = (".safetensors", ".mp4", ".jsonl", "-options.json")
    return [path for path in DOOM.rglob("*") if path.is_file() and path.name.endswith(endings)]


@pytest.mark.skipif(not (DOOM / "manifest.json").is_file(), reason="nothing is shipped yet")
def test_files_and_manifest_agree():
    manifest = Manifest(DOOM)
    assert {str(path.relative_to(DOOM)) for path in shipped_files()} == manifest.files.keys()
    for name, entry in manifest.files.items():
        manifest.check(name)
        assert entry["bytes"] == (DOOM / name).stat().st_size
        assert entry["making_command"].startswith("rlir ") and entry["recordings"] and entry["licence"]
        if name.endswith(".safetensors"):
            assert entry["validation"], name
            assert entry["sha256"] in (DOOM / name).with_suffix(".md").read_text()


def test_the_budget_holds():
    for name, limit in BUDGET.items():
        path = DOOM / f"{name}.safetensors"
        assert not path.is_file() or path.stat().st_size <= limit, name
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < TOGETHER


@needs_assets
def test_the_shipped_world_loads():
    world = load_world("doom")
    assert set(world.prompts) == set(SPLITS)
    assert world.prompts["test"].num_prompts >= 200
    prompt = world.prompts["dev"].get([0, 1])
    assert prompt.context_frames.shape == (2, 1, 3, *world.tokenizer.frame_size)
    assert prompt.target_frames.shape[1] == 15
    assert set(world.visible_slots or ()) <= set(world.coach.spec.names)


@needs_assets
def test_shipped_prompts_know_their_length():
    with pytest.raises(ValueError, match="clips of 16 frames"):
        ClipPrompts.from_folder(asset_folder("doom").prompt_files("dev"), (40, 56), num_frames=8)


def test_a_card_tells_the_stored_precision(tmp_path):
    folder = AssetFolder(tmp_path)
    save_safetensors(tmp_path / "coach.safetensors", {"w": torch.ones(2), "count": torch.ones(1).long()}, {})
    facts = {"recordings": "coach", "validation_recordings": "dev", "licence": {"weights": "MIT", "game_data": "BSD"}}
    counts = {"num_parameters": 2, "num_frames": 1, "num_steps": 1}
    folder.manifest.add("coach.safetensors", making_command="rlir pretrain", **facts, **counts)
    write_cards(folder)
    assert "| stored | float32, 0.00 MB |" in (tmp_path / "coach.md").read_text()


@needs_assets
def test_coach_and_judge_are_different_readers():
    assert not any(
        (own == other).all()
        for own, other in zip(load_world("doom").coach.parameters(), load_judge("doom").parameters(), strict=True)
        if own.ndim > 1 and own.numel()  # not the relative bias of length 0
    )
    files = Manifest(DOOM).files
    assert files["coach.safetensors"]["recordings"] != files["judge.safetensors"]["recordings"]


def test_an_unknown_world_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no world 'mars': use"):
        asset_folder("mars")


def test_a_missing_model_names_its_command(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"about": {}, "files": {}}))
    with pytest.raises(ValueError, match="is missing; make it with `rlir pretrain model=tokenizer"):
        load_world(f"{tmp_path}/")
    with pytest.raises(ValueError, match=r"idm idm=judge && rlir ship runs/pretraining/judge as=judge"):
        load_judge(f"{tmp_path}/")
    for name in MODELS:
        with pytest.raises(ValueError, match="is missing; make it with") as error:
            asset_folder(f"{tmp_path}/").model_file(name)
        assert making_commands(name) in str(error.value)
    with pytest.raises(ValueError, match="pretrain model=kl_tokenizer && rlir ship runs/pretraining/kl_tokenizer as="):
        load_world(f"{tmp_path}/", tokenizer="kl_tokenizer")
    with pytest.raises(ValueError, match="no model 'vae': use one of tokenizer, kl_tokenizer"):
        load_world(f"{tmp_path}/", tokenizer="vae")


def test_a_changed_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    manifest = Manifest(tmp_path)
    manifest.add("a.txt", making_command="rlir make-a")
    Manifest(tmp_path).check("a.txt")
    (tmp_path / "a.txt").write_text("two")
    with pytest.raises(ValueError, match="make it anew with `rlir make-a`"):
        Manifest(tmp_path).check("a.txt")
    with pytest.raises(ValueError, match="no entry for b.txt"):
        Manifest(tmp_path).check("b.txt")


def test_two_that_ship_at_once_lose_nothing(tmp_path):
    first, second = Manifest(tmp_path), Manifest(tmp_path)  # both read before either writes
    for name, manifest in (("a", first), ("b", second)):
        (tmp_path / name).write_text(name)
        manifest.add(name, making_command="rlir")
    first.state(visible_slots=["jump"])
    assert Manifest(tmp_path).files.keys() == {"a", "b"}
    assert Manifest(tmp_path).about == {"visible_slots": ["jump"]}
