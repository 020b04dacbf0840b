"""Game actions as vectors: by hand, and lined up with frames."""

import pytest
import torch

from rlir_agents.world_models import NFDGroups, Oasis25
from rlir_agents.world_models.action_encoders import OASIS_NAMES
from rlir_env.game_actions import MINECRAFT, VPT_CAMERA, GameActionSpec, Slot, env_actions_to_slots

# forward and left together with sneak and attack, looking up by 3 degrees and right by more than VPT can tell.
ENV_ACTION = {"forward": 1, "left": 1, "sneak": 1, "attack": 1, "hotbar.3": 1, "camera": [-3, 25]}


def slots_of(*env_actions: dict) -> torch.Tensor:
    return torch.as_tensor(env_actions_to_slots(env_actions))


def test_groups_by_hand() -> None:
    encoder = NFDGroups(MINECRAFT)
    (vector,) = encoder(slots_of(ENV_ACTION))
    assert encoder.dim == len(vector) == 3 * 3 + 4 * 2 + 2 * 11
    # Groups start at 0, 3, 6 (three classes each), 9, 11, 13, 15 (two each), 17, 28 (eleven bins). forward is class 1,
    # left 1, sneak 2, use 0, attack 1, jump 0, drop 0; -3 degrees are bin 2 (its centre is -3.2), 25 are bin 10.
    assert vector.nonzero().flatten().tolist() == [0 + 1, 3 + 1, 6 + 2, 9 + 0, 11 + 1, 13 + 0, 15 + 0, 17 + 2, 28 + 10]
    assert vector.dtype == torch.float32 and set(vector.tolist()) == {0.0, 1.0}


def test_oasis_by_hand() -> None:
    encoder = Oasis25(MINECRAFT)
    (vector,) = encoder(slots_of(ENV_ACTION))
    assert encoder.dim == len(vector) == 25
    numbers = dict(zip(OASIS_NAMES, vector.tolist(), strict=True))
    # The hotbar is not in the slots. Pitch stands at cameraX: the centre of bin 2 is -3.22 degrees, and Oasis has
    # 20 log(1 + 2.7 * 3.22 / 20) / log(3.7) = 5.51, which is 11 bins of 0.5: -11 / 40. Yaw, at most 10 degrees:
    # 20 log(1 + 2.7 / 2) / log(3.7) = 13.06, 26 bins, 26 / 40.
    assert VPT_CAMERA.decode(2) == pytest.approx(-3.22, abs=0.01)
    expected = {"forward": 1, "left": 1, "sneak": 1, "attack": 1, "cameraX": -11 / 40, "cameraY": 26 / 40}
    assert {name: value for name, value in numbers.items() if value} == pytest.approx(expected)
    assert OASIS_NAMES.index("cameraX") == 15 and OASIS_NAMES.index("drop") == 24
    assert encoder(slots_of({"camera": [0, 0]})).count_nonzero() == 0


@pytest.mark.parametrize("encoder", [NFDGroups(MINECRAFT), Oasis25(MINECRAFT)])
def test_frame_j_has_the_action_before_it(encoder) -> None:
    slots = slots_of({"forward": 1, "camera": [0, 0]}, {"jump": 1, "camera": [0, 0]}, {"camera": [0, 5]})
    slots = torch.stack([slots, slots.flip(0)])  # [2, F-1, S]
    vectors = encoder.of_frames(slots)
    assert vectors.shape == (2, 4, encoder.dim)
    assert vectors[:, 0].count_nonzero() == 0
    for frame in (1, 2, 3):
        assert torch.equal(vectors[:, frame], encoder(slots[:, frame - 1]))
    with pytest.raises(ValueError, match="has 9 slots"):
        encoder(slots[..., :8])


def test_other_games() -> None:
    spec = GameActionSpec((Slot("jump", ("none", "pressed")), Slot("fly", ("none", "up", "down"))))
    assert NFDGroups(spec)(torch.tensor([0, 2])).tolist() == [1, 0, 0, 0, 1]
    with pytest.raises(ValueError, match="no button down, up"):
        Oasis25(spec)
    roll = GameActionSpec((Slot("roll", ("-1.0", "+0.0", "+1.0"), is_ordered=True),))
    with pytest.raises(ValueError, match="no camera axis roll"):
        Oasis25(roll)
