"""From a config to objects: ``_target_`` names a constructor, the other keys are its keywords.

What a constructor asks for by name and the config does not give comes from the run: ``policy``, ``idm``, ``optimizer``
and the like, called `parts` here. So a YAML file holds numbers and names only, and a new reward, loss or world model
needs no line in any command.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_object


def build(node: Any, parts: Mapping[str, Any], name: str = "config") -> Any:
    """Build a node of a config, innermost first.

    Args:
        node: plain dicts, lists and values.
        parts: objects of the run, by the names under which constructors ask for them.
        name: of the node, for errors.

    Returns:
        The object; dicts and lists without ``_target_`` stay what they are, their entries built.

    Raises:
        ValueError: for a keyword that a constructor does not have, or one that is missing.

    Example:
        >>> build({"_target_": "rlir_agents.trainer_config.TrainerConfig", "num_iterations": 3}, {"seed": 7}).seed
        7
    """
    if isinstance(node, list):
        return [build(entry, parts, f"{name}[{index}]") for index, entry in enumerate(node)]
    if not isinstance(node, dict):
        return node
    given = {key: build(value, parts, f"{name}.{key}") for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return given
    target = get_object(node["_target_"])
    arguments = _arguments(target, given, parts, name)
    try:
        return target(**arguments)
    except TypeError as error:  # what a value of another type, such as lr=fast, ends in where nobody checks
        shown = ", ".join(f"{key}={value!r}" for key, value in given.items() if not isinstance(value, dict))
        raise ValueError(f"{name}: {target.__name__} does not take {shown}: {error}") from error


def _arguments(target: Any, given: dict[str, Any], parts: Mapping[str, Any], name: str) -> dict[str, Any]:
    keywords = keywords_of(target)
    named = {key: keyword for key, keyword in keywords.items() if keyword.kind is not keyword.VAR_KEYWORD}
    unknown = given.keys() - named.keys()
    if unknown and len(named) == len(keywords):
        raise ValueError(f"{name}: {target.__name__} has no {', '.join(sorted(unknown))}; it has {', '.join(named)}")
    # A part that a run goes without, such as a critic, is None: it fills a keyword that may be left out, no other.
    is_optional = {key: keyword.default is not keyword.empty for key, keyword in named.items()}
    offered = {key: parts[key] for key in named if key in parts and (is_optional[key] or parts[key] is not None)}
    arguments = offered | given
    missing = [key for key in named if not is_optional[key] and key not in arguments]
    if missing:
        raise ValueError(f"{name}: {target.__name__} needs {', '.join(missing)}")
    return arguments


def keywords_of(target: Any) -> dict[str, inspect.Parameter]:
    """The keywords of a function or constructor, by name."""
    # Of a class the initialiser: a metaclass with a __call__, as TorchRL's, would hide it from inspect.
    function = target.__init__ if inspect.isclass(target) else target
    parameters = dict(inspect.signature(function).parameters)
    if inspect.isclass(target):
        parameters.pop(next(iter(parameters)))  # self
    return {key: keyword for key, keyword in parameters.items() if keyword.kind is not keyword.VAR_POSITIONAL}
