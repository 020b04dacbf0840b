"""VPT's IDM: parity with the reference, projection to slots, alignment, and that it learns."""

import json
import math
import pickle
from pathlib import Path

import pytest
import torch

from rlir_env.game_actions import MINECRAFT, VPT_BUTTONS, VPT_CAMERA, GameActionSpec, Slot
from rlir_env.inverse_dynamics import GameActionReading, InverseDynamicsModel, VPTConfig, VPTInverseDynamics
from rlir_env.inverse_dynamics.slot_projection import SlotProjection
from rlir_env.resize import resize_like_opencv

SMALL = VPTConfig(
    input_size=(12, 20),
    conv3d_channels=8,
    impala_channels=(8, 16),
    impala_outsize=32,
    hidsize=32,
    num_heads=2,
    temperature=1.0,
)


@pytest.fixture(scope="module")
def small_idm() -> VPTInverseDynamics:
    torch.manual_seed(0)
    idm = VPTInverseDynamics(SMALL)
    for head in idm.pi_head.values():  # decided readings, so that equalities below mean something
        torch.nn.init.normal_(head.linear_layer.weight, std=0.5)
    return idm


@pytest.fixture(scope="module")
def fixture(fixtures_dir):
    return torch.load(fixtures_dir / "vpt_idm.pt", weights_only=True)


@pytest.fixture(scope="module")
def fixture_idm(fixture) -> VPTInverseDynamics:
    config = fixture["config"]
    idm = VPTInverseDynamics(VPTConfig.from_published(config["net"], config["pi_head_opts"]))
    idm.load_state_dict(fixture["state_dict"], strict=True)
    return idm


def test_parity_with_the_reference(fixture, fixture_idm):
    frames = fixture["inputs"]["frames_uint8"].permute(0, 3, 1, 2)  # [5, 3, 224, 384]
    resized = resize_like_opencv(frames, (128, 128)).permute(0, 2, 3, 1)
    assert torch.equal(resized, fixture["outputs"]["resized_uint8"])
    with torch.no_grad():
        buttons, camera = fixture_idm(frames.unsqueeze(0))
    expected = fixture["outputs"]["log_probs"]
    torch.testing.assert_close(buttons, expected["buttons"], atol=1e-4, rtol=0)
    torch.testing.assert_close(camera, expected["camera"], atol=1e-4, rtol=0)
    pred = fixture["outputs"]["pred"]
    for index, name in enumerate(VPT_BUTTONS):
        assert torch.equal(buttons[..., index, :].argmax(-1), pred[name]), name
    degrees = torch.from_numpy(VPT_CAMERA.decode(camera.argmax(-1).numpy()))
    torch.testing.assert_close(degrees, pred["camera"])


def test_slots_of_the_reference(fixture, fixture_idm):
    pred = fixture["outputs"]["pred"]
    frames = fixture["inputs"]["frames_uint8"].permute(0, 3, 1, 2)
    slots = fixture_idm.infer_game_actions(frames, align="mineworld")
    forward, back = pred["forward"][0], pred["back"][0]
    expected = torch.where(forward == back, 0, forward + 2 * back)
    assert torch.equal(slots[:, MINECRAFT.index("forward_back")], expected)
    assert torch.equal(slots[:, MINECRAFT.index("attack")], pred["attack"][0])
    bins = torch.from_numpy(VPT_CAMERA.encode(pred["camera"][0].numpy()))
    assert torch.equal(slots[:, [MINECRAFT.index("pitch"), MINECRAFT.index("yaw")]], bins.long())


@pytest.fixture
def published_files(fixture, tmp_path) -> tuple[Path, Path]:
    """Files as OpenAI publishes them: a pickle of settings, and a bare state dict."""
    args = {"net": {"args": fixture["config"]["net"]}, "pi_head_opts": fixture["config"]["pi_head_opts"]}
    content = {"version": 1361, "model": {"function": "ypt.model.inverse_action_model:create", "args": args}}
    (tmp_path / "4x_idm.model").write_bytes(pickle.dumps(content))
    torch.save(fixture["state_dict"], tmp_path / "4x_idm.weights")
    return tmp_path / "4x_idm.model", tmp_path / "4x_idm.weights"


def test_published_files_give_the_outputs_of_the_reference(fixture, published_files):
    idm = VPTInverseDynamics.from_files(*published_files)
    outputs = idm.log_probs(fixture["inputs"]["frames_uint8"])
    for name, expected in fixture["outputs"]["log_probs"].items():
        torch.testing.assert_close(outputs[name], expected, atol=1e-4, rtol=0)
    assert idm.config == VPTConfig.from_file(published_files[0])
    heads = {"num_heads": idm.config.num_heads, "temperature": idm.config.temperature}
    assert VPTConfig.from_weights(fixture["state_dict"], **heads) == idm.config


def test_published_files_that_do_not_fit_are_refused(fixture, published_files):
    model, weights = published_files
    torch.save({key: tensor for key, tensor in fixture["state_dict"].items() if key != "net.final_ln.bias"}, weights)
    with pytest.raises(ValueError, match="missing: net.final_ln.bias"):
        VPTInverseDynamics.from_files(model, weights)
    torch.save({"optimizer.a": torch.ones(1), **fixture["state_dict"]}, weights)
    with pytest.raises(ValueError, match=r"1 tensors belong to nothing that is known: optimizer\.a"):
        VPTInverseDynamics.from_files(model, weights)
    model.write_bytes(pickle.dumps({"model": {"function": "ypt.model.policy:create"}}))
    with pytest.raises(ValueError, match="holds no settings of VPT's IDM: KeyError\\('args'\\)"):
        VPTInverseDynamics.from_files(model, weights)


def test_long_videos_are_read_in_stretches(small_idm):
    frames = torch.randint(0, 256, (300, 12, 20, 3), dtype=torch.uint8)
    outputs = small_idm.log_probs(frames)
    assert outputs["buttons"].shape == (1, 300, 20, 2) and outputs["camera"].shape == (1, 300, 2, 11)
    for start, end in ((0, 128), (128, 256), (256, 300)):  # a stretch is read as if it were alone
        alone = small_idm.log_probs(frames[start:end])
        torch.testing.assert_close(outputs["buttons"][:, start:end], alone["buttons"])
    with pytest.raises(ValueError, match=r"give uint8 \[T, H, W, 3\]"):
        small_idm.log_probs(frames.permute(0, 3, 1, 2))


def test_published_shapes(fixtures_dir):
    path = fixtures_dir.parent / "reference" / "checkpoint_shapes.json"
    if not path.is_file():
        pytest.skip(f"no published shapes at {path}")
    with torch.device("meta"):
        idm = VPTInverseDynamics(VPTConfig())
    shapes = {key: list(tensor.shape) for key, tensor in idm.state_dict().items()}
    assert shapes == json.loads(path.read_text())["idm_4x"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("attention_memory_size", 256, "attention_memory_size=256 instead of 16"),
        ("single_output", False, "single_output=False"),
        ("only_img_input", False, "only_img_input=False"),
        ("init_norm_kwargs", {"batch_norm": False, "group_norm_groups": 2}, r"init_norm_kwargs\.group_norm_groups=2"),
        ("init_norm_kwargs", {"batch_norm": True, "group_norm_groups": 1}, r"init_norm_kwargs\.batch_norm=True"),
        ("impala_kwargs", {"post_pool_groups": 4}, r"impala_kwargs\.post_pool_groups=4"),
        ("impala_kwargs", {}, r"impala_kwargs\.post_pool_groups=None"),  # then VPT has no norm behind the pool
        ("conv3d_params", {"inchan": 1}, r"conv3d_params\.inchan=1 instead of 3"),
        ("conv3d_params", {"padding": [0, 0, 0]}, r"conv3d_params\.padding=\[0, 0, 0\] instead of \(2, 0, 0\)"),
        ("conv3d_params", {"kernel_size": [3, 1, 1]}, r"conv3d_params\.kernel_size"),
    ],
)
def test_other_topologies_are_refused(fixture, name, value, message):
    net = dict(fixture["config"]["net"])
    net[name] = {**net[name], **value} if name == "conv3d_params" else value
    with pytest.raises(ValueError, match=message):
        VPTConfig.from_published(net, fixture["config"]["pi_head_opts"])


@pytest.mark.parametrize(
    ("source", "target"),
    [((224, 384), (128, 128)), ((48, 64), (128, 128)), ((96, 128), (48, 64)), ((17, 31), (60, 9))],
)
def test_resize_equals_opencv(source, target):
    cv2 = pytest.importorskip("cv2", reason="the implementation to reproduce")
    image = torch.randint(0, 256, (3, *source), dtype=torch.uint8)
    hwc = image.permute(1, 2, 0).contiguous().numpy()
    expected = cv2.resize(hwc, target[::-1], interpolation=cv2.INTER_LINEAR)
    resized = resize_like_opencv(image, target).permute(1, 2, 0)
    assert torch.equal(resized, torch.from_numpy(expected))


def _button_log_probs(**pressed: float) -> torch.Tensor:
    """``[20, 2]``: the given buttons are pressed with these probabilities, all others with .1."""
    p = torch.tensor([pressed.get(name, 0.1) for name in VPT_BUTTONS])
    return torch.stack([1 - p, p], dim=-1).log()


def test_projection_to_slots_by_hand():
    camera = torch.full((2, 11), 1 / 11).log()
    buttons = _button_log_probs(forward=0.6, back=0.45, attack=0.7)
    probs = SlotProjection(MINECRAFT).log_probs(buttons, camera).exp()
    # forward only .6 * .55 = .33; back only .4 * .45 = .18; none or both .4 * .55 + .6 * .45 = .49
    slot = probs[MINECRAFT.index("forward_back")]
    assert slot.tolist() == pytest.approx([0.49, 0.33, 0.18] + [0] * 8, abs=1e-6)
    # left and right at .1 each: .1 * .9 = .09 each, the rest .82
    slot = probs[MINECRAFT.index("left_right")]
    assert slot.tolist() == pytest.approx([0.82, 0.09, 0.09] + [0] * 8, abs=1e-6)
    assert probs[MINECRAFT.index("attack")].tolist() == pytest.approx([0.3, 0.7] + [0] * 9)
    assert probs[MINECRAFT.index("yaw")].tolist() == pytest.approx([1 / 11] * 11)
    torch.testing.assert_close(probs.sum(-1), torch.ones(9))


def test_decision_follows_vpt_and_differs_from_the_likeliest_slot():
    camera = torch.zeros(2, 11).log_softmax(-1)
    projection, index = SlotProjection(MINECRAFT), MINECRAFT.index("forward_back")

    def decide(**pressed):
        return projection.decide(_button_log_probs(**pressed), camera)[index].item()

    # Each button by itself: forward (.6) is pressed and back (.45) is not, hence class 1, although
    # "none or both" (.49) is the likeliest class of the slot (previous test).
    assert decide(forward=0.6, back=0.45) == 1
    buttons = _button_log_probs(forward=0.6, back=0.45)
    assert projection.log_probs(buttons, camera)[index].argmax() == 0
    assert decide(back=0.9) == 2
    assert decide(forward=0.9, back=0.9) == 0
    assert decide() == 0


WITHOUT_CAMERA = GameActionSpec(
    (Slot("jump", ("none", "pressed")), Slot("move", ("none", "left", "right")), Slot("attack", ("none", "pressed")))
)


@pytest.mark.parametrize("slots", [WITHOUT_CAMERA.slots, WITHOUT_CAMERA.slots[:1], MINECRAFT.slots[-1:]])
def test_other_games_start_from_their_class_shares(slots):
    """A reader of buttons alone, of one button, of one axis: widths are the game's, the heads VPT's."""
    spec = GameActionSpec(slots)
    idm = VPTInverseDynamics(SMALL, spec)
    shares = [[0.1] * (n - 1) + [1 - 0.1 * (n - 1)] for n in spec.num_classes]
    idm.start_from_class_shares(shares)
    log_probs = idm.slot_log_probs(torch.rand(1, 3, 3, 12, 20))
    assert log_probs.shape == (1, 2, len(slots), max(spec.num_classes))
    for slot, row in enumerate(shares):
        # A pair's buttons are independent of one another: .1 left and .8 right give .1 * .2, .8 * .9 and the rest.
        expected = [0.26, 0.02, 0.72] if len(row) == 3 else row
        assert log_probs[0, 0, slot, : len(row)].exp().tolist() == pytest.approx(expected, abs=0.03)
    with pytest.raises(ValueError, match="the slots have"):
        idm.start_from_class_shares(shares[:-1])


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        (Slot("fly", ("none", "pressed")), "slot 'fly' asks for 'fly', no button of VPT; it reads attack, back"),
        (Slot("move", ("none", "left", "up")), "slot 'move' asks for 'up'"),
        (Slot("gait", ("none", "sneak", "sprint", "back")), "slot 'gait' has 4 classes"),
        (Slot("roll", MINECRAFT.slots[-1].classes, is_ordered=True), "11 of each of pitch and yaw"),
        (Slot("yaw", ("-1", "0", "1"), is_ordered=True), "slot 'yaw' has 3 bins; VPT's camera has 11"),
    ],
)
def test_slots_that_vpt_cannot_read_are_named(slot, message):
    with pytest.raises(ValueError, match=message):
        VPTInverseDynamics(SMALL, GameActionSpec((slot,)))


def test_contract_of_the_readings(small_idm):
    frames = torch.rand(2, 3, 6, 3, 12, 20)
    log_probs = small_idm.slot_log_probs(frames)
    assert log_probs.shape == (2, 3, 5, 9, 11) and log_probs.dtype == torch.float32
    assert not log_probs.requires_grad
    counts = torch.tensor(MINECRAFT.num_classes)
    assert torch.equal(log_probs.isfinite().sum(-1), counts.expand(2, 3, 5, 9))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 3, 5, 9))
    inferred = small_idm.infer_game_actions(frames)
    assert inferred.dtype == torch.int64 and (inferred < counts).all() and len(inferred.unique()) > 3
    # One clip alone, without batch dimension, reads the same.
    torch.testing.assert_close(small_idm.slot_log_probs(frames[1, 2]), log_probs[1, 2])
    with pytest.raises(ValueError, match="align"):
        small_idm.slot_log_probs(frames, align="offline")
    with pytest.raises(ValueError, match=r"give \[\.\.\., F, 3, H, W\]"):
        small_idm.slot_log_probs(frames.movedim(-3, -1))
    with pytest.raises(ValueError, match="at least 2 frames"):
        small_idm.slot_log_probs(frames[:, :, :1])


def test_alignments(small_idm):
    frames = torch.rand(2, 6, 3, 12, 20)
    mineworld = small_idm.slot_log_probs(frames[:, 1:], align="mineworld")
    assert mineworld.shape == (2, 5, 9, 11)
    # On the same frames the two differ only in the last reading, which has no next frame.
    transition = small_idm.slot_log_probs(frames[:, 1:], align="transition")
    assert torch.equal(mineworld[:, :-1], transition)


def test_large_batches_are_read_in_chunks(small_idm):
    frames = torch.randint(0, 256, (230, 8, 3, 12, 20), dtype=torch.uint8)  # 441,600 pixels > 512 * 24 * 32
    inferred = small_idm.infer_game_actions(frames)
    assert inferred.shape == (230, 7, 9)
    assert torch.equal(inferred[-1], small_idm.infer_game_actions(frames[-1]))


class CountingIdm(InverseDynamicsModel):
    """Remembers how many clips it was given at a time."""

    spec = GameActionSpec((Slot("jump", ("none", "pressed")),))

    def __init__(self, input_size=None):
        super().__init__()
        self.input_size, self.chunks = input_size, []

    def read_frames(self, frames):
        self.chunks.append(len(frames))
        return GameActionReading(torch.zeros(*frames.shape[:2], 1, 2), torch.zeros(*frames.shape[:2], 1).long())


@pytest.mark.parametrize(
    ("input_size", "frame_size", "chunks"),
    [
        ((24, 32), (40, 56), [32, 8]),  # the preset: 512 frames of 16
        ((48, 64), (40, 56), [8] * 5),  # four times the pixels
        ((128, 128), (40, 56), [1] * 40),  # the published size: 24 frames, which are one clip
        (None, (24, 32), [32, 8]),
        (None, (4, 6), [40]),
    ],
)
def test_chunks_are_counted_in_pixels_of_the_network(input_size, frame_size, chunks):
    idm = CountingIdm(input_size)
    idm.read(torch.zeros(1, 1, 3, *frame_size, dtype=torch.uint8).expand(40, 16, -1, -1, -1))
    assert idm.chunks == chunks


def test_inputs_of_other_types_and_sizes(small_idm):
    frames = torch.randint(0, 256, (1, 4, 3, 24, 36), dtype=torch.uint8)
    log_probs = small_idm.slot_log_probs(frames)
    assert torch.equal(small_idm.slot_log_probs(frames.float() / 255), log_probs)
    resized = resize_like_opencv(frames, (12, 20))
    torch.testing.assert_close(small_idm.slot_log_probs(resized.float() / 255), log_probs)
    # At the right size nothing is quantised: a step below one grey level is seen.
    nudged = (resized.float() / 255 + 1e-3).clamp(0, 1)
    assert not torch.equal(small_idm.slot_log_probs(nudged), small_idm.slot_log_probs(resized))


def test_slot_nll(small_idm):
    frames = torch.rand(2, 5, 3, 12, 20)
    game_action = torch.stack([torch.randint(0, n, (2, 4)) for n in MINECRAFT.num_classes], dim=-1)
    nll = small_idm.slot_nll(frames, game_action)
    assert nll.shape == (2, 4, 9)
    expected = -small_idm.slot_log_probs(frames)[1, 2, 3, game_action[1, 2, 3]]
    assert nll[1, 2, 3].item() == pytest.approx(expected.item(), abs=1e-5)
    nll.mean().backward()
    without_gradient = {n for n, p in small_idm.named_parameters() if p.grad is None}
    used_by_none = ("lastlayer", "r_layer", "b_nd")  # stored in published files, never evaluated
    assert all(any(part in name for part in used_by_none) for name in without_gradient)
    assert all(p.grad.isfinite().all() for p in small_idm.parameters() if p.grad is not None)


def test_what_the_prior_explains_need_not_be_learnt():
    """A model that sees nothing and prefers no class explains a rare one by its frequency alone."""
    shares = [[1 / n] * n for n in MINECRAFT.num_classes]
    jump = MINECRAFT.index("jump")
    shares[jump] = [0.9, 0.1]
    log_prior = torch.zeros(len(shares), max(MINECRAFT.num_classes))
    log_prior[jump, :2] = torch.tensor([0.9, 0.1]).log()
    frames = torch.rand(1, 2, 3, 12, 20)
    game_action = torch.tensor(MINECRAFT.none_classes).repeat(1, 1, 1)
    game_action[..., jump] = 1
    for power, probability in ((1.0, 0.1), (0.0, 0.5)):
        idm = VPTInverseDynamics(SMALL)
        idm.start_from_class_shares(shares, power)
        assert idm.slot_log_probs(frames)[0, 0, jump, 1].exp().item() == pytest.approx(probability, abs=0.02)
    assert idm.slot_nll(frames, game_action, log_prior)[0, 0, jump].exp().item() == pytest.approx(10, rel=0.2)


def test_a_fresh_model_expects_nothing_pressed():
    idm = VPTInverseDynamics(SMALL)
    probs = idm.slot_log_probs(torch.rand(1, 2, 3, 12, 20)).exp()
    # sigmoid(-1) = .269, up to the small random weights of the head
    pressed = 1 / (1 + math.e)
    assert probs[..., MINECRAFT.index("jump"), 1].item() == pytest.approx(pressed, abs=0.02)


def test_runs_under_bfloat16_autocast(small_idm):
    frames = torch.rand(2, 5, 3, 12, 20)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = small_idm.slot_log_probs(frames)
    assert log_probs.dtype == torch.float32
    assert (log_probs.exp() - small_idm.slot_log_probs(frames).exp()).abs().mean() < 0.01


def test_learns_to_read_a_transition():
    """Pressing "jump" makes the left half brighter, else it gets darker: one frame tells nothing."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    jump = MINECRAFT.index("jump")

    def clips(num_clips):
        level = torch.rand(num_clips, 6, generator=generator)
        frames = torch.full((num_clips, 6, 3, 12, 20), 0.5)
        frames[..., :10] = level[:, :, None, None, None]
        game_action = torch.tensor(MINECRAFT.none_classes).repeat(num_clips, 5, 1)
        game_action[..., jump] = level[:, 1:] > level[:, :-1]
        return frames, game_action

    idm = VPTInverseDynamics(SMALL)
    parameters = [p for p in idm.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(60):
        frames, game_action = clips(16)
        idm.slot_nll(frames, game_action).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    frames, game_action = clips(64)
    inferred = idm.infer_game_actions(frames)
    assert (inferred == game_action).float().mean((0, 1)).min() > 0.85  # chance is .5 for jump
    # Against the lines before or after, jump is right in a third of the cases: of three levels in
    # random order the second step repeats the direction of the first with probability 1/3.
    for early, late in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        shifted = (inferred[:, early, jump] == game_action[:, late, jump]).float().mean()
        assert shifted < 0.5
