"""What every config of a network asks of its numbers, so that a mistake is named before it becomes a shape."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def settle_sizes(config: Any, may_be_zero: Collection[str] = ()) -> None:
    """Accept lists for tuples, as they come from JSON and YAML, and check numbers against the types of their fields.

    Args:
        config: A dataclass whose sizes are declared ``int``, ``float``, or tuples or ``| None`` of these; for its
            ``__post_init__``.
        may_be_zero: Names of numbers for which zero has a meaning.

    Raises:
        ValueError: if an integer or a float is none, or not positive and finite, a switch is neither true nor false, or
            a tuple is of another length.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     widths: tuple[int, ...]
        ...     def __post_init__(self): settle_sizes(self)
        >>> Config([8, 16])
        Config(widths=(8, 16))
        >>> Config([8, 0])
        Traceback (most recent call last):
        ValueError: widths=(8, 0): give positive integers
    """
    hints = get_type_hints(type(config))
    for name in (field.name for field in fields(config)):
        value, kinds = getattr(config, name), _kinds(hints[name])
        if value is None and type(None) in kinds:
            continue
        lengths = [get_args(kind) for kind in kinds if get_origin(kind) is tuple]
        if lengths:
            value = tuple(value) if isinstance(value, list) else value
            object.__setattr__(config, name, value)
            if not isinstance(value, tuple) or not value or (... not in lengths[0] and len(value) != len(lengths[0])):
                count = "at least one" if ... in lengths[0] else len(lengths[0])
                raise ValueError(f"{name}={value!r}: give {count} in a list")
        numbers = value if isinstance(value, tuple) else (value,)
        least = 0 if name in may_be_zero else 1
        if int in kinds and not all(type(number) is int and number >= least for number in numbers):
            raise ValueError(f"{name}={value!r}: give {'positive integers' if least else 'integers from zero on'}")
        if float in kinds and not (_is_number(value) and (value > 0 or least == 0)):
            raise ValueError(f"{name}={value!r}: give a {'positive number' if least else 'number from zero on'}")
        if bool in kinds and type(value) is not bool:
            raise ValueError(f"{name}={value!r}: give true or false")


def config_of(kind: type[Config], sizes: Any) -> Config:
    """Make a config from sizes by name, as a file or a user gives them.

    Args:
        kind: A dataclass.
        sizes: By name; what is not given takes its default.

    Raises:
        ValueError: if they are no mapping, name what the config does not have, or lack what has no default.
    """
    if not isinstance(sizes, Mapping):
        raise ValueError(f"sizes of {kind.__name__} are needed, not {sizes!r}")
    known = {field.name: field.default is MISSING for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(map(str, sizes.keys() - known.keys()))
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")
    missing = [name for name, is_needed in known.items() if is_needed and name not in sizes]
    if missing:
        raise ValueError(f"{kind.__name__} needs {', '.join(missing)}")
    return kind(**sizes)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _kinds(hint: Any) -> set[Any]:
    """A type and all that it is put together from."""
    return {hint}.union(*map(_kinds, get_args(hint)))
