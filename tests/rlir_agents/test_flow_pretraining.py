"""`rlir pretrain model=nfd`: latents in their places, the right velocities, both forcings, shipping."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from tiny_assets import FRAME_SIZE, KL_TOKENIZER, NFD_SIZES, TOKENIZER, make_tiny_assets, write_gameplay

from rlir_agents.cli import main
from rlir_agents.commands.building import build
from rlir_agents.commands.composition import compose_config
from rlir_agents.policies.from_assets import shipped_world_model
from rlir_agents.pretraining import FlowTask, LatentGameplay, encoded_gameplay
from rlir_agents.pretraining.flow import (
    FlowDraw,
    diffusion_forced_velocity,
    draw_timesteps,
    teacher_forced_velocity,
)
from rlir_agents.world_models import NFD, NFDGroups
from rlir_agents.world_models.loading import read_world_model
from rlir_env.assets import load_world
from rlir_env.checkpoints import fingerprint
from rlir_env.game_actions import MINECRAFT, GameActionSpec, Slot, env_action_to_event
from rlir_env.recordings import ClipFilter, FrameArchive, list_recordings, write_recording
from rlir_env.tokenizers import KLTokenizer, VQTokenizer

pytest.importorskip("av")

LATENT, NUM_FRAMES = NFD_SIZES.latent_shape, 5


def archive_of(folder) -> FrameArchive:
    return FrameArchive.build(list_recordings(folder), FRAME_SIZE, folder.parent / "archives", ClipFilter.keep_all())


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Gameplay in which frames and game actions have nothing to do with one another."""
    folder = tmp_path_factory.mktemp("noise") / "recordings"
    write_gameplay(folder, 40, seed=0)
    return archive_of(folder)


@pytest.fixture(scope="module")
def flashes(tmp_path_factory):
    """Gameplay in which a frame is bright if forward was pressed before it, at random, else dark."""
    folder = tmp_path_factory.mktemp("flashes") / "recordings"
    pressed = np.random.default_rng(0).integers(0, 2, 400)
    events = [env_action_to_event({"forward": int(p), "camera": [0, 0]}, i) for i, p in enumerate(pressed)]
    brightness = np.where(np.roll(pressed, 1), 220, 30).astype(np.uint8)
    frames = np.broadcast_to(brightness[:, None, None, None], (400, *FRAME_SIZE, 3))
    write_recording(folder / "play.mp4", frames, events, fps=6)
    return archive_of(folder)


def tokenizer(seed=0) -> KLTokenizer:
    torch.manual_seed(seed)
    return KLTokenizer(KL_TOKENIZER).eval()


def active_model() -> NFD:
    """Fresh models predict zero; in this one every parameter counts."""
    torch.manual_seed(0)
    model = NFD(NFD_SIZES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def clean_clips(num_copies, num_clips=2):
    """Latents, vectors, and a draw."""
    torch.manual_seed(1)
    shape = (num_clips, NUM_FRAMES - 1)
    draw = FlowDraw(
        timestep=torch.rand(*shape, num_copies),
        noise=torch.randn(*shape, num_copies, *LATENT),
        context_noise=torch.randn(*shape, *LATENT),
    )
    latent = torch.randn(num_clips, NUM_FRAMES, *LATENT)
    return latent, torch.randn(num_clips, NUM_FRAMES, NFD_SIZES.action_dim), draw


def task(archive, model=None, **settings) -> FlowTask:
    gameplay = LatentGameplay(archive, tokenizer(), NUM_FRAMES)
    defaults = {"clips_per_batch": 4, "num_validation_clips": 10}
    return FlowTask(model or active_model(), gameplay, gameplay, NFDGroups(), **defaults | settings)


def test_clips_hold_latents_and_game_actions(noise):
    coder = tokenizer()
    gameplay = LatentGameplay(noise, coder, NUM_FRAMES)
    starts = gameplay.starts[[3, 20]]
    clips, frames = gameplay.clips(starts), noise.clips(starts, NUM_FRAMES)
    assert clips.latent.shape == (2, NUM_FRAMES, *LATENT) and clips.latent.dtype == torch.float32
    torch.testing.assert_close(clips.latent, coder.encode(frames.frames).half().float(), atol=1e-3, rtol=0)
    assert torch.equal(clips.game_action, frames.game_action)
    # The last clip ends with the recording: nothing beyond it is read.
    last = gameplay.clips(gameplay.starts[-1:]).latent[0, -1]
    torch.testing.assert_close(last, coder.encode(noise.clips([39], 1).frames)[0, 0], atol=1e-3, rtol=0)


def test_frames_are_encoded_once_a_tokenizer_and_precision(noise, monkeypatch):
    encodings = []
    encode_all = encoded_gameplay._encode_all
    monkeypatch.setattr(encoded_gameplay, "_encode_all", lambda *args: encodings.append(args) or encode_all(*args))

    def codes(seed, dtype=None, scale=1.0):
        coder = tokenizer(seed)
        coder.config = type(coder.config)(**vars(coder.config) | {"scale_factor": scale})
        return LatentGameplay(FrameArchive(noise.folder, noise.clip_filter), coder, NUM_FRAMES, dtype)._codes

    first = codes(seed=7)
    assert isinstance(first, np.memmap) and first.dtype == np.float16 and first.shape == (40, *LATENT)
    assert np.array_equal(codes(seed=7), first) and len(encodings) == 1
    assert not np.array_equal(codes(seed=8), first) and len(encodings) == 2
    codes(seed=7, dtype=torch.bfloat16)
    assert len(encodings) == 3
    np.testing.assert_allclose(codes(seed=7, scale=2.0), 2 * first, rtol=2e-3)  # a scale decides latents as weights do
    assert len(encodings) == 4


def test_timesteps_are_logit_normal_and_shifted():
    # t / (1 - t) = shift u / (1 - u): the shift moves the logit by its logarithm.
    for shift in (1.0, 3.0):
        logit = draw_timesteps((100, 200), shift, torch.Generator().manual_seed(0)).logit()
        assert logit.mean().item() == pytest.approx(math.log(shift), abs=0.03)
        assert logit.std().item() == pytest.approx(1, abs=0.03)
        assert logit.var(dim=1).min() > 0.5  # every place has its own


def test_teacher_forcing_is_what_a_rollout_sees():
    """Frame by frame against a cache of finished frames, as samplers and the MDP go."""
    model, context_timestep = active_model(), 0.2
    latent, vector, draw = clean_clips(num_copies=3)
    with torch.no_grad():
        found = teacher_forced_velocity(model, latent, vector, draw, context_timestep)
    assert found.shape == (2, NUM_FRAMES - 1, 3, *LATENT)
    seen = (1 - context_timestep) * latent[:, :-1] + context_timestep * draw.context_noise
    times = torch.full((2, NUM_FRAMES - 1), context_timestep)
    cache = model.new_cache(2, NUM_FRAMES, torch.float32)
    for frame in range(1, NUM_FRAMES):
        before = slice(frame - 1, frame)
        model.append(seen[:, before], times[:, before], vector[:, before], cache)
        for copy in range(3):
            t = draw.timestep[:, frame - 1, copy]
            weight = t[:, None, None, None]
            noisy = (1 - weight) * latent[:, frame] + weight * draw.noise[:, frame - 1, copy]
            expected = model.next_velocity(noisy, t, vector[:, frame], cache)
            torch.testing.assert_close(found[:, frame - 1, copy], expected, atol=2e-5, rtol=1e-4)


def test_diffusion_forcing_is_one_pass_with_a_timestep_for_every_frame():
    model = active_model()
    latent, vector, draw = clean_clips(num_copies=1)
    with torch.no_grad():
        found = diffusion_forced_velocity(model, latent, vector, draw, 0.2)
        times = torch.cat([torch.full((2, 1), 0.2), draw.timestep[:, :, 0]], dim=1)
        assert len(times.unique()) == 2 * (NUM_FRAMES - 1) + 1  # frames 1 to F-1 of both clips, and frame 0
        noise = torch.cat([draw.context_noise[:, :1], draw.noise[:, :, 0]], dim=1)
        weight = times[..., None, None, None]
        expected = model((1 - weight) * latent + weight * noise, times, vector)[:, 1:]
        torch.testing.assert_close(found[:, :, 0], expected, atol=2e-5, rtol=1e-4)
        # Another timestep of frame 2 changes how it is seen by those after it, and nothing before it.
        other = draw._replace(timestep=draw.timestep.clone())
        other.timestep[:, 1] = 0.9 - 0.5 * other.timestep[:, 1]
        changed = (diffusion_forced_velocity(model, latent, vector, other, 0.2) - found).abs().amax((0, 2, 3, 4, 5))
    assert changed[0] < 1e-6 and (changed[1:] > 1e-4).all()


class StillLife(NFD):
    """Knows that every frame is the same picture, so it knows the velocity: noise - data = (latent - data) / timestep.

    Where the timestep is 0, as that of the given frame, it is not a number.
    """

    def __init__(self, picture):
        super().__init__(NFD_SIZES)
        self.picture = picture

    def forward(self, latent, timestep, game_action_vector):
        return (latent - self.picture) / timestep[..., None, None, None]

    def velocity_of_steps(self, context, context_timestep, latent, timestep, game_action_vector, form="C"):
        return self(latent, timestep, game_action_vector)


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    folder = tmp_path_factory.mktemp("still") / "recordings"
    frames = np.full((20, *FRAME_SIZE, 3), 128, np.uint8)
    write_recording(folder / "play.mp4", frames, [env_action_to_event({"camera": [0, 0]}, i) for i in range(20)], fps=6)
    return archive_of(folder)


@pytest.mark.parametrize("settings", [{"forcing": "diffusion"}, {"forcing": "teacher", "copies_per_frame": 2}])
def test_the_right_velocity_has_no_error(settings, still):
    picture = LatentGameplay(still, tokenizer(), NUM_FRAMES).clips(np.array([0])).latent[0, 0]
    knows = task(still, StillLife(picture), **settings)
    loss, _ = knows.loss(0, torch.Generator().manual_seed(0))
    assert loss.item() < 1e-8 and knows.validate()["velocity_mse"] < 1e-8
    # A fresh model predicts zero, so its error is the velocity itself: that of unit noise, and of the picture.
    naive = task(still, NFD(NFD_SIZES), **settings)
    losses = torch.stack([naive.loss(step, torch.Generator().manual_seed(step))[0] for step in range(50)])
    expected = pytest.approx(1 + picture.square().mean().item(), rel=0.03)
    assert losses.mean().item() == expected and naive.validate()["velocity_mse"] == expected


def test_validation_has_the_same_data_and_noise_at_every_call(noise):
    one = task(noise, forcing="diffusion")
    first = one.validate()
    one.loss(3, torch.Generator().manual_seed(3))
    torch.rand(5)
    assert one.validate() == first
    other = task(noise, forcing="teacher", clips_per_batch=7, copies_per_frame=2).validate()
    assert first == {name: pytest.approx(value, rel=1e-5) for name, value in other.items()}
    by_timestep = {name.partition("/")[2]: value for name, value in first.items() if "/" in name}
    assert list(by_timestep) == ["0.964", "0.875", "0.75", "0.562", "0.25"]  # every other one of 10 steps at shift 3
    assert first["velocity_mse"] == pytest.approx(sum(by_timestep.values()) / 5, rel=1e-5)


@pytest.mark.parametrize("settings", [{"forcing": "diffusion"}, {"forcing": "teacher", "copies_per_frame": 3}])
def test_it_learns_what_actions_do(settings, flashes):
    coder = tokenizer()
    coder.fit_scale(flashes.clips(range(100), 1).frames)
    gameplay = LatentGameplay(flashes, coder, NUM_FRAMES)
    torch.manual_seed(0)
    learner = FlowTask(NFD(NFD_SIZES), gameplay, gameplay, NFDGroups(), clips_per_batch=16, **settings)
    optimizer = torch.optim.Adam(learner.module.parameters(), lr=1e-2)
    before = learner.validate()
    assert before["velocity_mse"] == before["velocity_mse_shuffled_actions"]  # it predicts zero whatever is pressed
    for step in range(120):
        loss, _ = learner.loss(step, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = learner.validate()
    assert after["velocity_mse"] < 0.5 * before["velocity_mse"]
    # Which frame follows is up to the action alone, and the actions are those that lead to the frames.
    assert after["velocity_mse_shuffled_actions"] > 1.5 * after["velocity_mse"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"forcing": "student"}, "choose 'diffusion' .* or 'teacher'"),
        ({"copies_per_frame": 2}, "give 1, or more with forcing='teacher'"),
        ({"forcing": "teacher", "copies_per_frame": 0}, "copies_per_frame=0"),
        ({"context_timestep": 1.0}, "from 0 .clean. to below 1"),
    ],
)
def test_wrong_settings_are_answered(settings, message, noise):
    with pytest.raises(ValueError, match=message):
        task(noise, **settings)


def test_parts_that_do_not_fit_are_refused(noise):
    gameplay = LatentGameplay(noise, tokenizer(), NUM_FRAMES)
    jump = NFDGroups(GameActionSpec((Slot("jump", ("none", "pressed")),)))
    with pytest.raises(ValueError, match="vectors of 2 numbers, the world model reads 39: make it with action_dim=2"):
        FlowTask(active_model(), gameplay, gameplay, jump)
    with pytest.raises(ValueError, match="a VQTokenizer makes ids, no latents; give a KL tokenizer"):
        LatentGameplay(noise, VQTokenizer(TOKENIZER), NUM_FRAMES)


def test_the_presets_fit_one_another():
    config = compose_config("pretrain", ["model=nfd"])
    with torch.device("meta"):
        world_model = build(config["network"], {})
        coder = build(compose_config("pretrain", ["model=kl_tokenizer"])["network"], {})
    assert world_model.latent_shape == coder.code_shape and coder.frame_size == tuple(config["frame_size"])
    assert world_model.action_dim == sum(MINECRAFT.num_classes)
    assert config["gameplay"]["num_frames"] <= world_model.max_frames


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return make_tiny_assets(tmp_path_factory.mktemp("world"))


def pretrain(name, folder, *overrides):
    run = ["pretrain", f"model={name}", f"run_dir={folder}/runs/{name}", f"recordings.folder={folder}/recordings"]
    run += [f"archives={folder}/archives", f"frame_size={list(FRAME_SIZE)}", "num_threads=1", "device=cpu"]
    run += ["pretraining.num_steps=2", "autocast=float32", *overrides]
    assert main(run) == 0


def test_a_tokenizer_and_its_world_model_are_made_and_shipped(assets, tmp_path, capsys):
    for seed, name in enumerate(("world_model", "dev")):
        write_gameplay(tmp_path / "recordings" / name, 40, seed=seed)
    sizes = [f"tokenizer.config.{key}={value}" for key, value in (("ch", 4), ("ch_mult", [1, 1, 1]), ("embed_dim", 4))]
    pretrain("kl_tokenizer", tmp_path, f"tokenizer.config.frame_size={list(FRAME_SIZE)}", *sizes)
    sizes = {"latent_shape": list(LATENT), "hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
    run = [f"world_model.config.{key}={value}" for key, value in sizes.items()]
    run += [f"frozen_tokenizer.run_dir={tmp_path}/runs/kl_tokenizer", "gameplay.num_frames=5", "task.clips_per_batch=2"]
    run += ["pretraining.warmup_steps=0"]
    pretrain("nfd", tmp_path, *run)
    facts = json.loads((tmp_path / "runs" / "nfd" / "model.json").read_text())
    assert facts["validation"]["velocity_mse"] > 0 and facts["recordings"] == "world_model"
    made = read_world_model(tmp_path / "runs" / "nfd" / "model.safetensors")
    assert isinstance(made, NFD) and made.latent_shape == LATENT and made.final_layer.linear.weight.abs().max() > 0

    folder = shutil.copytree(assets, tmp_path / "assets")
    before = (folder / "nfd.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["ship", f"{tmp_path}/runs/nfd", f"into={folder}"]) == 2
    assert "was not trained on the shipped kl_tokenizer: ship that of its training first" in capsys.readouterr().err
    assert (folder / "nfd.safetensors").read_bytes() == before
    assert main(["ship", f"{tmp_path}/runs/kl_tokenizer", f"{tmp_path}/runs/nfd", f"into={folder}"]) == 0
    assert main(["ship", str(assets.parent / "mineworld"), f"into={folder}"]) == 0  # it has the other tokenizer
    assert "by denoising latents" in (folder / "nfd.md").read_text()
    assert "| scale_factor | " in (folder / "kl_tokenizer.md").read_text()

    world = load_world(str(folder), tokenizer="kl_tokenizer")
    assert world.tokenizer.code_shape == LATENT and world.prompts["dev"].num_prompts == 2
    assert load_world(str(folder)).tokenizer.num_codes == TOKENIZER.num_vq_embeddings
    shipped = shipped_world_model(str(folder), "nfd")
    assert isinstance(shipped, NFD) and fingerprint([shipped]) == fingerprint([made.half().float()])
    assert type(shipped_world_model(str(folder))).__name__ == "MineWorld"

    (folder / "nfd.safetensors").unlink()
    with pytest.raises(ValueError, match="make it with `rlir pretrain model=nfd && rlir ship runs/pretraining/nfd as="):
        shipped_world_model(str(folder), "nfd")


def test_latents_share_the_maps_of_the_world_model_only(assets, tmp_path, capsys):
    folder = shutil.copytree(assets, tmp_path / "assets")
    run = shutil.copytree(assets.parent / "nfd", tmp_path / "nfd")
    facts = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(facts | {"recordings": "coach"}))
    assert main(["ship", str(run), f"into={folder}"]) == 2
    assert "comes from the recordings 'coach', and so does the shipped coach" in capsys.readouterr().err
