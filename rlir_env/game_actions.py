"""What the player pressed: VPT events, env actions, slots and words (paper Table 3).

An *event* is a line of a VPT recording (mouse and keyboard as they were). It becomes an *env
action* (a dict of 0/1 buttons and a camera in degrees), the source of two one-way projections:
the *slots*, in which the inverse reward (Eq. 3) and the metrics compare, and MineWorld's *word*
of 11 ids that the world model reads. These game actions are part of the observation; they are
never the RL action, which is what the world model samples.

Letters: N actions, S slots, A word length (11).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

EnvAction = Mapping[str, Any]
Event = Mapping[str, Any]

HOTBAR = tuple(f"hotbar.{k}" for k in range(1, 10))
VPT_BUTTONS = (
    *"attack back forward jump left right sneak sprint use drop inventory".split(),
    *HOTBAR,
)
"""The 20 buttons that VPT's IDM predicts, in its order."""

_BUTTON_OF_KEY = {
    **{"w": "forward", "s": "back", "a": "left", "d": "right", "space": "jump"},
    **{"left.shift": "sneak", "left.control": "sprint", "q": "drop", "f": "swapHands"},
    **{"e": "inventory", "escape": "ESC"},
    **{str(k): f"hotbar.{k}" for k in range(1, 10)},
}
_BUTTON_OF_MOUSE = {0: "attack", 1: "use", 2: "pickItem"}
_KEY_OF_BUTTON = {button: f"key.keyboard.{key}" for key, button in _BUTTON_OF_KEY.items()}
_MOUSE_OF_BUTTON = {button: number for number, button in _BUTTON_OF_MOUSE.items()}
_BUTTONS = (*_BUTTON_OF_KEY.values(), *_BUTTON_OF_MOUSE.values())
_ENV_ACTION_KEYS = frozenset((*_BUTTONS, "camera"))

# MineWorld cancels in this order: jump + sneak goes before sprint + sneak, so that sprint can
# survive a pressed sneak.
_CONFLICTS = (
    ("forward", "back"),
    ("left", "right"),
    ("jump", "sneak"),
    ("sprint", "sneak"),
    ("attack", "use"),
)
_DEGREES_PER_PIXEL = 360 / 2400  # VPT: 2400 pixels of mouse motion are one turn


@dataclass(frozen=True)
class Slot:
    """One component of a game action; the classes of an ordered one are bins around a centre."""

    name: str
    classes: tuple[str, ...]
    is_ordered: bool = False

    @property
    def none_class(self) -> int:
        """The class that means "nothing": 0, or the centre bin of an ordered slot."""
        return len(self.classes) // 2 if self.is_ordered else 0


@dataclass(frozen=True)
class GameActionSpec:
    """The slots of a game's action; nothing else in the code knows how many there are.

    Example:
        >>> MINECRAFT.num_classes
        (3, 3, 3, 2, 2, 2, 2, 11, 11)
        >>> MINECRAFT.index("jump")
        5
    """

    slots: tuple[Slot, ...]

    @property
    def num_slots(self) -> int:
        """S."""
        return len(self.slots)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every slot."""
        return tuple(slot.name for slot in self.slots)

    @property
    def num_classes(self) -> tuple[int, ...]:
        """The number of classes of every slot."""
        return tuple(len(slot.classes) for slot in self.slots)

    @property
    def none_classes(self) -> tuple[int, ...]:
        """The class of every slot that means "nothing pressed" or "no motion"."""
        return tuple(slot.none_class for slot in self.slots)

    def class_shares(self, slots: np.ndarray) -> list[np.ndarray]:
        """For every slot the share of each of its classes in int ``[N, S]``; zeros where N is 0."""
        counts = (np.bincount(column, minlength=n) for column, n in zip(slots.T, self.num_classes, strict=True))
        return [count / max(1, len(slots)) for count in counts]

    def index(self, name: str) -> int:
        """Position of a slot.

        Raises:
            ValueError: if there is no such slot.
        """
        if name not in self.names:
            raise ValueError(f"no slot named {name!r}; this game has {', '.join(self.names)}")
        return self.names.index(name)


@dataclass(frozen=True)
class CameraQuantizer:
    """Foveated camera bins by a mu-law, finer around zero; the centre bin means no motion."""

    max_degrees: float
    bin_size: float
    mu: float

    @property
    def num_bins(self) -> int:
        """Bins from ``-max_degrees`` to ``max_degrees``."""
        return round(2 * self.max_degrees / self.bin_size) + 1

    def encode(self, degrees: Any) -> np.ndarray:
        """Degrees of any shape to bins, int64; beyond ``max_degrees`` counts as the last bin."""
        limit = self.max_degrees
        u = np.clip(np.asarray(degrees, dtype=np.float64), -limit, limit) / limit
        compressed = np.sign(u) * np.log(1 + self.mu * np.abs(u)) / np.log(1 + self.mu) * limit
        # np.round rounds halves to even, as the reference does.
        return np.round((compressed + limit) / self.bin_size).astype(np.int64)

    def decode(self, bins: Any) -> np.ndarray:
        """Bins of any shape to the degrees of their centres, float64."""
        u = (np.asarray(bins) * self.bin_size - self.max_degrees) / self.max_degrees
        return self.max_degrees * np.sign(u) * ((1 + self.mu) ** np.abs(u) - 1) / self.mu


VPT_CAMERA = CameraQuantizer(max_degrees=10, bin_size=2, mu=10)
MINEWORLD_CAMERA = CameraQuantizer(max_degrees=90, bin_size=9, mu=11.4887)


def _camera_classes(quantizer: CameraQuantizer) -> tuple[str, ...]:
    return tuple(f"{degrees:+.1f}" for degrees in quantizer.decode(np.arange(quantizer.num_bins)))


_BUTTON_GROUPS = (
    *(("forward", "back"), ("left", "right"), ("sprint", "sneak")),
    *(("use",), ("attack",), ("jump",), ("drop",)),
)
MINECRAFT = GameActionSpec(
    tuple(
        Slot("_".join(group), ("none", *group) if len(group) > 1 else ("none", "pressed")) for group in _BUTTON_GROUPS
    )
    + tuple(Slot(axis, _camera_classes(VPT_CAMERA), is_ordered=True) for axis in ("pitch", "yaw"))
)
"""Table 3's seven groups of buttons, then VPT's 11 camera bins for pitch and yaw."""


def event_to_env_action(event: Event, cancel_conflicts: bool = True) -> tuple[dict[str, Any], bool]:
    """Read one line of a VPT recording.

    Args:
        event: needs ``mouse.{dx, dy, buttons}`` and ``keyboard.keys``; unknown keys and buttons
            are ignored.
        cancel_conflicts: release both of two opposite buttons (MineWorld), or keep them (VPT
            and its IDM).

    Returns:
        The env action, its camera ``[pitch, yaw]`` in whole degrees, and whether it is null, see
        :func:`is_null_action`.

    Raises:
        KeyError: if a needed field is missing.
    """
    mouse, keys = event["mouse"], event["keyboard"]["keys"]
    pressed = {_BUTTON_OF_KEY.get(key.removeprefix("key.keyboard.")) for key in keys}
    pressed |= {_BUTTON_OF_MOUSE.get(button) for button in mouse["buttons"]}
    env_action: dict[str, Any] = {button: int(button in pressed) for button in _BUTTONS}
    # Before degrees are cut and conflicts cancelled: what was pressed is not nothing, whatever is left of it.
    is_null = is_null_action(env_action, (mouse["dy"], mouse["dx"]))
    # Both reference loaders store degrees in an integer array, which truncates toward zero.
    env_action["camera"] = [int(mouse[axis] * _DEGREES_PER_PIXEL) for axis in ("dy", "dx")]
    for first, second in _CONFLICTS if cancel_conflicts else ():
        if env_action[first] and env_action[second]:
            env_action[first] = env_action[second] = 0
    return env_action, is_null


def is_null_action(env_action: EnvAction, motion: Sequence[float]) -> bool:
    """Whether an action is null (MineWorld): nothing is pressed and nothing moves, or a menu key is pressed.

    Args:
        env_action: as pressed, conflicts included; absent buttons are not pressed.
        motion: of mouse or camera, pitch and yaw in any unit; less than a degree is motion too.

    Example:
        >>> is_null_action({"jump": 0}, (0, 0)), is_null_action({"jump": 0}, (0, 0.9))
        (True, False)
    """
    is_idle = not any(env_action.get(button, 0) for button in _BUTTONS) and not any(motion)
    return is_idle or bool(env_action.get("inventory", 0) or env_action.get("ESC", 0))


def env_action_to_event(env_action: EnvAction, tick: int = 0) -> dict[str, Any]:
    """Write an env action as a VPT event, whose reading gives it back in whole degrees.

    Args:
        env_action: absent buttons are not pressed; fractions of a degree are dropped, as
            reading would.
        tick: the number of the line.

    Returns:
        A JSON-able event with the fields that VPT's readers use.
    """
    check_env_action(env_action)
    pressed = [button for button in _BUTTONS if env_action.get(button, 0)]
    # Whole pixels away from zero, so that truncation returns to the same degree.
    dy, dx = (math.copysign(math.ceil(abs(int(d)) / _DEGREES_PER_PIXEL), d) for d in env_action["camera"])
    buttons = [_MOUSE_OF_BUTTON[button] for button in pressed if button in _MOUSE_OF_BUTTON]
    keys = [_KEY_OF_BUTTON[button] for button in pressed if button in _KEY_OF_BUTTON]
    return {
        "mouse": {
            "x": 0.0,
            "y": 0.0,
            "dx": dx,
            "dy": dy,
            "dwheel": 0.0,
            "buttons": buttons,
            "newButtons": [],
        },
        "keyboard": {"keys": keys, "newKeys": [], "chars": ""},
        "isGuiOpen": False,
        "hotbar": 0,
        "tick": tick,
    }


def env_actions_to_slots(env_actions: Sequence[EnvAction]) -> np.ndarray:
    """Project env actions on the slots of :data:`MINECRAFT`.

    Args:
        env_actions: N dicts; absent buttons are not pressed.

    Returns:
        int64 ``[N, S]``; two opposite buttons of a group count as none (MineWorld's evaluation).
    """
    columns = [_one_of(env_actions, group, (*range(1, len(group) + 1), 0)) for group in _BUTTON_GROUPS]
    return np.column_stack([*columns, VPT_CAMERA.encode(_camera(env_actions))])


class ActionWord:
    """MineWorld's 11 ids for one game action: BOS, pitch, yaw, hotbar, six groups of buttons, EOS.

    Example:
        >>> ActionWord(num_codes=0).encode([{"forward": 1, "camera": [0, 0]}]).tolist()
        [[65, 33, 54, 66, 2, 66, 66, 66, 66, 66, 67]]
    """

    word_length = 11
    num_ids = 70  # 68 are used; the published models reserve two more

    # A button's position is its id; those of swapHands, inventory and ESC are never written.
    _names = (
        *("use", "attack", "forward", "back", "left", "right", "jump", "sneak", "sprint"),
        *("drop", "swapHands", "pickItem", "inventory", "ESC"),
        *HOTBAR,
    )
    _groups = (
        *(("forward", "back"), ("left", "right"), ("sprint", "sneak")),
        *(("use", "attack"), ("jump",), ("drop", "pickItem")),
    )
    _pitch, _yaw, _bos, _null, _eos = 23, 44, 65, 66, 67

    def __init__(self, num_codes: int = 8192) -> None:
        """Make a word whose ids follow ``num_codes`` visual codes (0 gives local ids)."""
        self.num_codes = num_codes
        self.vocab_size = num_codes + self.num_ids

    def encode(self, env_actions: Sequence[EnvAction]) -> np.ndarray:
        """Project N env actions (absent buttons are not pressed) on words, int64 ``[N, A]``."""
        bins = MINEWORLD_CAMERA.encode(_camera(env_actions))
        hotbar = _pressed(env_actions, HOTBAR)
        # argmax: the lowest pressed key wins.
        first_hotbar = self._names.index(HOTBAR[0]) + hotbar.argmax(axis=1)
        buttons = [_one_of(env_actions, group, (*map(self._names.index, group), self._null)) for group in self._groups]
        ends = np.full((2, len(env_actions)), [[self._bos], [self._eos]])
        columns = [ends[0], self._pitch + bins[:, 0], self._yaw + bins[:, 1]]
        columns += [np.where(hotbar.any(axis=1), first_hotbar, self._null), *buttons, ends[1]]
        return self.num_codes + np.column_stack(columns)


def check_env_action(env_action: EnvAction) -> None:
    """Refuse what is not an env action.

    Raises:
        ValueError: for an unknown button, one that is neither 0 nor 1, or without a camera of two finite numbers.
    """
    if not env_action.keys() <= _ENV_ACTION_KEYS:
        unknown = sorted(env_action.keys() - _ENV_ACTION_KEYS)
        raise ValueError(f"unknown buttons {unknown} in an env action; known are {sorted(_ENV_ACTION_KEYS)}")
    if "camera" not in env_action:
        raise ValueError("an env action needs 'camera': [pitch, yaw] in degrees")
    flags = {name: value for name, value in env_action.items() if name != "camera"}
    wrong = {name: value for name, value in flags.items() if not isinstance(value, int) or value not in (0, 1)}
    if wrong:
        raise ValueError(f"buttons are 0 or 1, not {wrong}")
    camera = env_action["camera"]
    if len(camera) != 2 or not all(math.isfinite(degrees) for degrees in camera):
        raise ValueError(f"camera is {camera}; it must be [pitch, yaw] in finite degrees")


def _camera(env_actions: Sequence[EnvAction]) -> np.ndarray:
    for env_action in env_actions:
        check_env_action(env_action)
    degrees = np.array([env_action["camera"] for env_action in env_actions], dtype=np.float64)
    return degrees.reshape(-1, 2)  # so that no actions give [0, 2]


def _pressed(env_actions: Sequence[EnvAction], buttons: Sequence[str]) -> np.ndarray:
    pressed = [[bool(action.get(button, 0)) for button in buttons] for action in env_actions]
    return np.array(pressed, dtype=bool).reshape(-1, len(buttons))


def _one_of(env_actions: Sequence[EnvAction], group: Sequence[str], values: Sequence[int]) -> np.ndarray:
    """The value of the one pressed button of a group, else (none or several) the last value."""
    pressed = _pressed(env_actions, group)
    choice = np.where(pressed.sum(axis=1) == 1, pressed.argmax(axis=1), len(group))
    return np.asarray(values, dtype=np.int64)[choice]
