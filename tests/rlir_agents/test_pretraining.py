"""Pre-training: interrupted it ends where it would have, bad numbers stop it, and its views of gameplay are true."""

from pathlib import Path

import pytest
import torch
from tiny_assets import FRAME_SIZE, IDM, KL_TOKENIZER, MINEWORLD, NFD_SIZES, TOKENIZER, write_gameplay

from rlir_agents.finite_checks import NonFiniteError
from rlir_agents.pretraining import (
    FlowTask,
    InverseDynamicsTask,
    KLTokenizerTask,
    LatentGameplay,
    Pretrainer,
    PretrainingConfig,
    PretrainingTask,
    TokenizedGameplay,
    TokenizerTask,
    WorldModelTask,
)
from rlir_agents.pretraining.augmentation import mirror
from rlir_agents.run_folder import RunFolder
from rlir_agents.world_models import NFD, MineWorld, NFDGroups
from rlir_env.game_actions import MINECRAFT
from rlir_env.inverse_dynamics import VPTInverseDynamics
from rlir_env.layout import TokenLayout
from rlir_env.recordings import ClipFilter, FrameArchive, list_recordings
from rlir_env.tokenizers import KLTokenizer, VQTokenizer

NUMBERS = PretrainingConfig(num_steps=4, learning_rate=1e-2, warmup_steps=1, validate_every=2, checkpoint_every=1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> FrameArchive:
    folder = tmp_path_factory.mktemp("gameplay")
    write_gameplay(folder / "recordings", 40, seed=0)
    return FrameArchive.build(
        list_recordings(folder / "recordings"), FRAME_SIZE, folder / "archives", ClipFilter.keep_all()
    )


def tokenizer_task(archive):
    return TokenizerTask(VQTokenizer(TOKENIZER), archive, archive, frames_per_batch=4, continuous_steps=1)


def kl_tokenizer_task(archive):
    return KLTokenizerTask(KLTokenizer(KL_TOKENIZER), archive, archive, frames_per_batch=4)


def idm_task(archive):
    return InverseDynamicsTask(VPTInverseDynamics(IDM), archive, archive, num_frames=4, clips_per_batch=4)


def world_model_task(archive):
    layout = TokenLayout(8, num_frames=16)
    gameplay = TokenizedGameplay(archive, VQTokenizer(TOKENIZER).eval(), layout)
    return WorldModelTask(MineWorld(MINEWORLD), gameplay, gameplay, layout, clips_per_batch=2)


def flow_task(archive, **forcing):
    gameplay = LatentGameplay(archive, KLTokenizer(KL_TOKENIZER).eval(), num_frames=6)
    return FlowTask(NFD(NFD_SIZES), gameplay, gameplay, NFDGroups(), clips_per_batch=2, **forcing)


def teacher_forced_flow_task(archive):
    return flow_task(archive, forcing="teacher", copies_per_frame=2, context_timestep=0.1)


TASKS = [tokenizer_task, kl_tokenizer_task, idm_task, world_model_task, flow_task, teacher_forced_flow_task]


def make(make_task, archive):
    torch.manual_seed(0)
    return make_task(archive)


def weights(task) -> torch.Tensor:
    return torch.cat([value.float().flatten() for value in task.module.state_dict().values()])


@pytest.mark.parametrize("make_task", TASKS)
def test_interrupted_it_ends_bitwise_where_it_would_have(make_task, archive, tmp_path):
    undisturbed = make(make_task, archive)
    start = weights(undisturbed)
    figures = Pretrainer(undisturbed, NUMBERS, RunFolder(tmp_path / "one")).train()
    assert not torch.equal(weights(undisturbed), start) and all(
        map(torch.isfinite, map(torch.tensor, figures.values()))
    )

    first = make(make_task, archive)
    loss = first.loss
    first.loss = lambda step, generator: loss(step, generator) if step < 2 else pytest.fail("killed here")
    with pytest.raises(pytest.fail.Exception):
        Pretrainer(first, NUMBERS, RunFolder(tmp_path / "two")).train()
    second = make(make_task, archive)
    with torch.no_grad():  # what a new process starts from does not matter
        next(second.module.parameters()).add_(1)
    assert Pretrainer(second, NUMBERS, RunFolder(tmp_path / "two")).train() == figures
    assert torch.equal(weights(second), weights(undisturbed))


class Line(torch.nn.Module):
    """One weight, and a loss that turns bad at a step."""

    def __init__(self, bad_step, make_bad):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 1))
        self.bad_step, self.make_bad = bad_step, make_bad


class LineTask(PretrainingTask):
    def __init__(self, bad_step=None, make_bad=None):
        self.module = Line(bad_step, make_bad)

    def loss(self, step, generator):
        value = self.module.weight.square().sum()
        return (self.module.make_bad(value) if step == self.module.bad_step else value), {}

    def validate(self):
        return {"weight": float(self.module.weight)}


@pytest.mark.parametrize(
    "make_bad, message",
    [
        (lambda value: value * torch.nan, "step 3: the loss is nan"),
        (lambda value: (0 * value).sqrt(), "step 3: the gradient is not finite. Parameters: weight"),  # the loss is 0
    ],
)
def test_a_number_that_is_not_finite_never_reaches_a_checkpoint(make_bad, message, tmp_path):
    task, run = LineTask(3, make_bad), RunFolder(tmp_path)
    with pytest.raises(NonFiniteError, match=message) as error:
        Pretrainer(task, NUMBERS, run).train()
    assert "iteration_00000003" in str(error.value) and task.module.weight.isfinite().all()
    assert run.checkpoints.newest().name == "iteration_00000003"


def test_another_config_is_refused_and_a_run_can_be_continued(tmp_path):
    Pretrainer(LineTask(), NUMBERS, RunFolder(tmp_path / "one")).train()
    longer = PretrainingConfig(num_steps=6, learning_rate=1e-2, warmup_steps=1)
    with pytest.raises(ValueError, match="another num_steps"):
        Pretrainer(LineTask(), longer, RunFolder(tmp_path / "one")).train()
    log = {path: path.read_bytes() for path in Path(tmp_path / "one").rglob("*.csv")}
    task = LineTask()
    Pretrainer(task, longer, RunFolder(tmp_path / "two"), continue_from=RunFolder(tmp_path / "one")).train()
    fresh = LineTask()
    Pretrainer(fresh, longer, RunFolder(tmp_path / "three")).train()
    assert task.module.weight < 1 and not torch.equal(task.module.weight, fresh.module.weight)
    assert log == {path: path.read_bytes() for path in log}  # what it started from is as it was
    with pytest.raises(ValueError, match="no checkpoint to continue from"):
        Pretrainer(LineTask(), longer, RunFolder(tmp_path / "four"), continue_from=RunFolder(tmp_path / "none")).train()


def test_a_mirror_swaps_left_and_right_and_turns_the_camera_back():
    left_right, yaw, pitch = (MINECRAFT.index(name) for name in ("left_right", "yaw", "pitch"))
    frames = torch.rand(2, 3, 3, 4, 6)
    game_action = torch.zeros(2, 2, MINECRAFT.num_slots, dtype=torch.long)
    game_action[0, 0, left_right], game_action[0, 1, left_right] = 1, 2
    game_action[1, :, yaw] = torch.tensor([0, 7])  # of 11 bins; 5 is no motion
    game_action[1, :, pitch] = 3
    mirrored, played = mirror(frames, game_action, MINECRAFT)
    assert torch.equal(mirrored[..., 0], frames[..., -1])
    assert played[0, :, left_right].tolist() == [2, 1]
    assert played[1, :, yaw].tolist() == [10, 3] and (played[1, :, pitch] == 3).all()
    again = mirror(mirrored, played, MINECRAFT)
    assert torch.equal(again[0], frames) and torch.equal(again[1], game_action)


def test_a_reader_that_knows_the_prior_learns_what_it_does_not_explain(archive):
    """With the whole prior given, a model that reads every class as likely as any other already has the right loss."""
    torch.manual_seed(0)
    idm = VPTInverseDynamics(IDM)
    task = InverseDynamicsTask(idm, archive, archive, num_frames=4, clips_per_batch=4, prior_share=1.0)
    shares = archive.class_shares(MINECRAFT)
    clips = archive.clips(archive.clip_starts(4)[:8], 4)
    nll = idm.slot_nll(clips.frames, clips.game_action, task._log_prior).mean((0, 1))
    jump = MINECRAFT.index("jump")
    entropy = -sum(share * torch.tensor(share).log() for share in shares[jump] if share)
    assert nll[jump].item() == pytest.approx(entropy.item(), abs=0.2)
