"""Rewards: the five ways to turn one reading into a number, worked out by hand."""

import math

import pytest
import torch
from tensordict import TensorDict

from rlir_env.game_actions import GameActionSpec, Slot
from rlir_env.inverse_dynamics import GameActionReading, InverseDynamicsModel
from rlir_env.rewards import BrightnessReward, InverseDynamicsReward, PixelReward, WeightedSum

SPEC = GameActionSpec((Slot("move", ("none", "left", "right")), Slot("jump", ("none", "pressed"))))


class FixedIdm(InverseDynamicsModel):
    """Always reads the same: probabilities of 3 and 2 classes at 2 transitions of one video."""

    spec = SPEC
    probs = (((0.7, 0.2, 0.1), (0.1, 0.9)), ((0.2, 0.3, 0.5), (0.995, 0.005)))

    def read_frames(self, frames):
        rows = [[[*slot, *[0.0] * (3 - len(slot))] for slot in step] for step in self.probs]
        log_probs = torch.tensor([*rows, rows[-1]]).log().expand(len(frames), -1, -1, -1)
        return GameActionReading(log_probs, log_probs.argmax(-1))


def generation(game_action):
    frames = torch.zeros(len(game_action), 3, 3, 4, 4)
    actions = torch.tensor(game_action)
    return TensorDict({"frames": frames, "game_action": actions}, batch_size=[len(actions)])


# The IDM reads (move, jump) = (0, 1), (2, 0). Played: (0, 0), (2, 0): three of four slots match.
PLAYED = generation([[[0, 0], [2, 0]]])


def test_all_slots_is_equation_3():
    paid = InverseDynamicsReward(FixedIdm(), "all_slots")(PLAYED)
    # Transition 0 has one wrong slot, so r = 0; transition 1 is right, r = 1; R = 1/2.
    assert paid["frame_reward"].tolist() == [[0, 1]]
    assert paid["reward"].tolist() == [[0.5]]
    assert paid["frame_match"].tolist() == [[[1, 0], [1, 1]]]
    assert paid["inferred_game_action"].tolist() == [[[0, 1], [2, 0]]]


def test_per_slot_is_the_share_of_slots():
    paid = InverseDynamicsReward(FixedIdm(), "per_slot")(PLAYED)
    assert paid["frame_reward"].tolist() == [[0.5, 1]]
    assert paid["reward"].tolist() == [[0.75]]


def test_slots_choose_what_counts_but_not_what_is_reported():
    paid = InverseDynamicsReward(FixedIdm(), "all_slots", slots=["move"])(PLAYED)
    assert paid["frame_reward"].tolist() == [[1, 1]]
    assert paid["frame_match"].shape == (1, 2, 2)


def test_balanced_weighs_the_true_class():
    frequency = [[0.8, 0.1, 0.1], [0.75, 0.25]]
    reward_fn = InverseDynamicsReward(FixedIdm(), "balanced", class_frequency=frequency)
    # w = (1/f) / (number of classes): move 1/2.4, 1/0.3, 1/0.3; jump 1/1.5, 1/0.5.
    weight = reward_fn.class_weight
    assert weight[0].tolist() == pytest.approx([1 / 2.4, 1 / 0.3, 1 / 0.3])
    assert weight[1].tolist() == pytest.approx([1 / 1.5, 2, 0])
    paid = reward_fn(PLAYED)
    # Transition 0: only move 0 matches; transition 1: move 2 and jump 0 do.
    first, second = 1 / 2.4 / 2, (1 / 0.3 + 1 / 1.5) / 2
    assert paid["frame_reward"][0].tolist() == pytest.approx([first, second])
    assert paid["reward"].item() == pytest.approx((first + second) / 2)


def test_balanced_pays_a_perfect_reader_one_on_average_despite_the_floor():
    # 999 of 1,000 frames without a jump: unfloored weight 500, floored (f >= 0.01) 90.9 or so.
    frequency = [[1, 1, 1], [999, 1]]
    reward_fn = InverseDynamicsReward(FixedIdm(), "balanced", class_frequency=frequency)
    share = torch.tensor([0.999, 0.001])
    weight = reward_fn.class_weight[1, :2]
    assert (share * weight).sum().item() == pytest.approx(1)
    # inverse 1/0.999, 1/0.01; their mean over frames is 1 + 0.1 = 1.1; so 100 / 1.1.
    assert weight[1].item() == pytest.approx(100 / 1.1, rel=1e-4)


def test_a_class_that_never_occurs_does_not_change_the_others():
    frequency = [[0.5, 0.5, 0.0], [1, 1]]
    weight = InverseDynamicsReward(FixedIdm(), "balanced", class_frequency=frequency).class_weight
    assert weight[0, :2].tolist() == pytest.approx([1, 1])


def test_log_prob_is_floored_and_mapped_to_the_unit_interval():
    paid = InverseDynamicsReward(FixedIdm(), "log_prob")(PLAYED)
    floor = math.log(0.01)

    def score(probability):
        return 1 - math.log(probability) / floor

    # Played (0, 0): p = .7 and .1; played (2, 0): p = .5 and .995.
    expected = [(score(0.7) + score(0.1)) / 2, (score(0.5) + score(0.995)) / 2]
    assert paid["frame_reward"][0].tolist() == pytest.approx(expected, rel=1e-5)
    # p = .005 lies below the floor of .01: exactly nothing, beside score(.1) of the other slot.
    low = InverseDynamicsReward(FixedIdm(), "log_prob", slots=["jump"])(generation([[[0, 1], [2, 1]]]))
    assert low["frame_reward"][0].tolist() == pytest.approx([score(0.9), 0], abs=1e-6)


def test_balanced_log_prob_uses_the_same_weights():
    frequency = [[0.8, 0.1, 0.1], [0.75, 0.25]]
    paid = InverseDynamicsReward(FixedIdm(), "balanced_log_prob", ["move"], class_frequency=frequency)(PLAYED)
    score = 1 - math.log(0.5) / math.log(0.01)
    assert paid["frame_reward"][0, 1].item() == pytest.approx(score / 0.3, rel=1e-5)


def test_a_reward_is_frozen_and_without_gradient():
    idm = FixedIdm()
    idm.extra = torch.nn.Linear(1, 1)
    reward_fn = InverseDynamicsReward(idm)
    assert not any(p.requires_grad for p in reward_fn.parameters())
    frames = torch.zeros(1, 3, 3, 4, 4, requires_grad=True)
    paid = reward_fn(PLAYED.clone().update({"frames": frames}))
    assert not paid["reward"].requires_grad


def test_a_frozen_reader_stays_so_when_its_owner_trains():
    idm = FixedIdm()
    idm.norm = torch.nn.BatchNorm2d(3)
    owner = torch.nn.ModuleList([InverseDynamicsReward(idm)]).train()
    assert not idm.norm.training
    owner.eval().train()
    assert not idm.norm.training


def test_autocast_keeps_the_reading_in_float32():
    paid = InverseDynamicsReward(FixedIdm(), "log_prob", autocast_dtype=torch.bfloat16)(PLAYED)
    assert paid["reward"].dtype == torch.float32


@pytest.mark.parametrize("match", ["all_slots", "per_slot", "log_prob"])
def test_zeros_have_the_shape_of_a_payment(match):
    reward_fn = InverseDynamicsReward(FixedIdm(), match)
    paid, zeros = reward_fn(PLAYED), reward_fn.zeros(1, 2, 2)
    assert set(paid.keys()) == set(zeros.keys())
    for key, value in zeros.items():
        assert value.shape == paid[key].shape and value.dtype == paid[key].dtype
        assert value.eq(0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"match": "exact"}, "use one of all_slots"),
        ({"slots": ["fly"]}, "no slot named 'fly'"),
        ({"slots": []}, "at least one slot"),
        ({"match": "balanced"}, "need class_frequency"),
        ({"match": "balanced", "class_frequency": [[1, 1], [1, 1]]}, "one per slot"),
        ({"match": "balanced", "class_frequency": [[1, 1, 1], [0, 0]]}, "'jump' must be shares"),
        ({"log_prob_floor": 0.5}, "log_prob_floor must be below 0"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        InverseDynamicsReward(FixedIdm(), **arguments)


def test_frames_and_game_actions_must_fit():
    wrong = PLAYED.clone().update({"frames": torch.zeros(1, 4, 3, 4, 4)})
    with pytest.raises(ValueError, match="4 frames have 3 transitions, got 2"):
        InverseDynamicsReward(FixedIdm())(wrong)


def test_weighted_sum_adds_frame_by_frame():
    parts = {"reader": InverseDynamicsReward(FixedIdm(), "per_slot"), "light": BrightnessReward()}
    reward_fn = WeightedSum(parts, {"reader": 1.0, "light": 2.0})
    lit = PLAYED.clone().update({"frames": torch.full((1, 3, 3, 4, 4), 0.25)})
    paid = reward_fn(lit)
    # Reader .5 and 1, light .25 twice: .5 + 2 * .25 = 1 and 1 + .5 = 1.5.
    assert paid["frame_reward"].tolist() == [[1.0, 1.5]]
    assert paid["reward"].tolist() == [[1.25]]
    assert paid["reader_frame_reward"].tolist() == [[0.5, 1]]
    assert paid["light_frame_reward"].tolist() == [[0.25, 0.25]]
    assert set(reward_fn.zeros(1, 2, 2).keys()) == set(paid.keys())


class Telling(BrightnessReward):
    """Has one entry of a given name in its breakdown."""

    def __init__(self, key):
        super().__init__()
        self.key = key

    def breakdown(self, num_transitions, num_slots):
        return {self.key: torch.zeros(num_transitions)}


def test_weighted_sum_refuses_clashes():
    idm_reward = InverseDynamicsReward(FixedIdm())
    with pytest.raises(ValueError, match="equal names"):
        WeightedSum({"reader": idm_reward}, {"coach": 1.0})
    with pytest.raises(ValueError, match="same name"):
        WeightedSum(
            {"one": idm_reward, "two": BrightnessReward(), "three": idm_reward},
            dict.fromkeys(("one", "two", "three"), 1.0),
        )
    light = {"light": BrightnessReward()}
    inner = WeightedSum(light, {"light": 1.0})  # its breakdown has light_frame_reward
    with pytest.raises(ValueError, match=r"same name \(light_frame_reward\)"):
        WeightedSum({**light, "inner": inner}, {"light": 1.0, "inner": 1.0})
    for key in ("reward", "frame_reward"):
        with pytest.raises(ValueError, match=rf"same name \({key}\)"):
            WeightedSum({**light, "other": Telling(key)}, {"light": 1.0, "other": 1.0})


def test_pixel_reward_is_minus_the_distance():
    data = PLAYED.clone().update({"target_frames": torch.full((1, 2, 3, 4, 4), 0.25)})
    assert PixelReward()(data)["frame_reward"].tolist() == [[-0.25, -0.25]]
    # A perceptual distance of 0.5 a frame comes on top (Eq. 6).
    with_lpips = PixelReward(lambda generated, target: torch.full((len(target),), 0.5))
    assert with_lpips(data)["reward"].tolist() == [[-0.75]]
    assert PixelReward.uses_target_frames
