"""The 400 reference cases, the conflict rules, the quantisers and the way back to events."""

import json

import numpy as np
import pytest

from rlir_env.game_actions import (
    MINECRAFT,
    MINEWORLD_CAMERA,
    VPT_BUTTONS,
    VPT_CAMERA,
    ActionWord,
    CameraQuantizer,
    env_action_to_event,
    env_actions_to_slots,
    event_to_env_action,
)


@pytest.fixture(scope="module")
def cases(fixtures_dir):
    return json.loads((fixtures_dir / "mineworld_actions.json").read_text())


def event(keys=(), buttons=(), dx=0.0, dy=0.0):
    return {
        "mouse": {"dx": dx, "dy": dy, "buttons": list(buttons)},
        "keyboard": {"keys": [f"key.keyboard.{key}" for key in keys]},
    }


def pressed(env_action):
    return {name for name, value in env_action.items() if name != "camera" and value}


def test_events_become_the_reference_env_actions(cases):
    assert len(cases["raw"]) == 200
    for raw, expected, is_null in zip(cases["raw"], cases["raw_env_action"], cases["raw_is_null"], strict=True):
        assert event_to_env_action(raw) == (expected, is_null)


def test_words_of_events_are_the_reference_ids(cases):
    words = ActionWord().encode([event_to_env_action(raw)[0] for raw in cases["raw"]])
    assert words.dtype == np.int64
    np.testing.assert_array_equal(words, cases["raw_tokens"])


def test_words_of_env_actions_are_the_reference_ids(cases):
    assert len(cases["env_action"]) == 200
    np.testing.assert_array_equal(ActionWord().encode(cases["env_action"]), cases["env_action_tokens"])


def test_no_op_word_and_its_size():
    word = ActionWord()
    assert (word.word_length, word.num_ids, word.vocab_size) == (11, 70, 8262)
    no_op = [8257, 8225, 8246, *[8258] * 7, 8259]  # reference 3.4
    assert word.encode([{"camera": [0, 0]}]).tolist() == [no_op]
    assert word.encode([]).shape == (0, 11)


def test_conflicts_cancel_in_mineworlds_order():
    # jump + sneak cancels first; sneak is gone when sprint + sneak is looked at: sprint survives.
    keys = ["space", "left.shift", "left.control", "w", "s"]
    assert pressed(event_to_env_action(event(keys, buttons=[0, 1]))[0]) == {"sprint"}


def test_vpt_keeps_conflicts():
    keys = ["space", "left.shift", "left.control", "w", "s"]
    env_action, _ = event_to_env_action(event(keys, buttons=[0, 1]), cancel_conflicts=False)
    assert pressed(env_action) == {"jump", "sneak", "sprint", "forward", "back", "attack", "use"}


@pytest.mark.parametrize(
    ("line", "is_null"),
    [
        (event(), True),
        (event(["tab"]), True),  # not mapped
        (event(dx=1.0), False),  # moved, although 0.15 degrees truncate to 0
        (event(["w", "e"]), True),  # a menu key makes any action null
        (event(["w", "s"]), False),  # pressed, although both are cancelled
    ],
)
def test_null_actions(line, is_null):
    assert event_to_env_action(line)[1] is is_null


def test_camera_degrees_are_truncated_toward_zero():
    # 37.5 px * 0.15 = 5.625 -> 5; -37.5 -> -5; camera is [pitch, yaw] = [dy, dx]
    assert event_to_env_action(event(dx=37.5, dy=-37.5))[0]["camera"] == [-5, 5]


def test_vpt_camera_bins_of_whole_degrees():
    # Reference 5.5: 0 -> 0, 1 -> 1, 2 -> 2, 3-4 -> 3, 5-7 -> 4, from 8 -> 5 bins off the centre 5.
    offsets = np.array([0, 1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 5])
    np.testing.assert_array_equal(VPT_CAMERA.encode(np.arange(12)), 5 + offsets)
    np.testing.assert_array_equal(VPT_CAMERA.encode(-np.arange(12)), 5 - offsets)
    centres = [-10, -5.809483, -3.215369, -1.609499, -0.615394, 0]
    np.testing.assert_allclose(VPT_CAMERA.decode(np.arange(6)), centres, atol=1e-6)


def test_mineworld_camera_bins_at_their_edges():
    edges = np.array(
        [
            1.05408,
            3.60683,
            6.89276,
            11.12248,
            16.56703,
            23.57536,
            32.5966,
            44.20888,
            59.15641,
            78.39713,
        ]
    )
    np.testing.assert_array_equal(MINEWORLD_CAMERA.encode(edges - 1e-4), 10 + np.arange(10))
    np.testing.assert_array_equal(MINEWORLD_CAMERA.encode(edges + 1e-4), 10 + np.arange(1, 11))
    assert MINEWORLD_CAMERA.encode([-1000, 1000]).tolist() == [0, 20]


@pytest.mark.parametrize("camera", [VPT_CAMERA, MINEWORLD_CAMERA])
def test_decoding_then_encoding_is_the_identity_on_bins(camera):
    bins = np.arange(camera.num_bins)
    np.testing.assert_array_equal(camera.encode(camera.decode(bins)), bins)


def test_halves_round_to_even():
    # u = 1/3 and mu = 3 give ln 2 / ln 4 = 1/2: 1 degree is bin 1.5 -> 2, -1 degree 0.5 -> 0.
    assert CameraQuantizer(max_degrees=3, bin_size=3, mu=3).encode([1.0, -1.0]).tolist() == [2, 0]


def test_slots_follow_table_3():
    actions = [
        {"camera": [0, 0]},
        {"forward": 1, "right": 1, "sneak": 1, "use": 1, "camera": [8, -1]},
        {
            "forward": 1,
            "back": 1,
            "left": 1,
            "sprint": 1,
            "attack": 1,
            "jump": 1,
            "drop": 1,
            "camera": [-3, 5],
        },
    ]
    expected = [
        [0, 0, 0, 0, 0, 0, 0, 5, 5],  # none_classes
        [1, 2, 2, 1, 0, 0, 0, 10, 4],
        [0, 1, 1, 0, 1, 1, 1, 2, 9],  # both forward and back: none
    ]
    slots = env_actions_to_slots(actions)
    assert slots.dtype == np.int64
    assert slots.tolist() == expected
    assert MINECRAFT.none_classes == tuple(expected[0])
    assert env_actions_to_slots([]).shape == (0, 9)


def test_spec_names_its_slots():
    assert MINECRAFT.names == (
        *("forward_back", "left_right", "sprint_sneak", "use", "attack", "jump", "drop"),
        *("pitch", "yaw"),
    )
    assert MINECRAFT.num_classes == (3, 3, 3, 2, 2, 2, 2, 11, 11)
    assert MINECRAFT.slots[0].classes == ("none", "forward", "back")
    assert [slot.is_ordered for slot in MINECRAFT.slots] == [False] * 7 + [True] * 2
    assert MINECRAFT.index("yaw") == 8
    with pytest.raises(ValueError, match="forward_back"):
        MINECRAFT.index("hotbar")


def test_vpt_buttons_are_the_twenty_of_the_idm():
    assert len(VPT_BUTTONS) == 20
    assert VPT_BUTTONS[:3] == ("attack", "back", "forward")
    assert VPT_BUTTONS[9:12] == ("drop", "inventory", "hotbar.1")


def test_writing_an_event_and_reading_it_gives_the_env_action_back(cases):
    for env_action in cases["raw_env_action"]:
        line = json.loads(json.dumps(env_action_to_event(env_action)))
        assert event_to_env_action(line, cancel_conflicts=False)[0] == env_action


def test_every_whole_degree_survives_the_round_trip():
    for degrees in range(-180, 181):
        line = env_action_to_event({"camera": [degrees, -degrees]}, tick=3)
        assert event_to_env_action(line)[0]["camera"] == [degrees, -degrees]
        assert line["tick"] == 3


def test_a_misspelt_button_is_an_error():
    with pytest.raises(ValueError, match="foward"):
        env_action_to_event({"foward": 1, "camera": [0, 0]})
    with pytest.raises(ValueError, match="camera"):
        ActionWord().encode([{"forward": 1}])
