"""From a verb and ``key=value`` overrides to plain dicts; hydra ends here.

The YAML files lie in the wheel beside the package, and in ``configs/`` of a checkout.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

Config = dict[str, Any]

FILES = ("world", "tokenizer", "idm", "data")
"""Keys of `rlir train` and its kin that name files of others."""


def config_folder() -> Path:
    """Folder of the YAML files."""
    package = Path(str(files("rlir_agents")))
    installed, checkout = package / "configs", package.parent / "configs"
    return installed if installed.is_dir() else checkout


def compose_config(verb: str, overrides: Sequence[str] = ()) -> Config:
    """The config of a verb, as plain dicts and lists.

    Args:
        verb: name of a YAML file at the top of the configs.
        overrides: ``key=value``, ``group=option`` and the rest of hydra's grammar.

    Raises:
        ValueError: for an override that does not fit; it names what would.
    """
    return _plain(_compose(verb, overrides))


def compose_dry_run(overrides: Sequence[str]) -> tuple[Config, bool]:
    """The config of a dry run of `rlir train`, and whether published shapes stand in it for files.

    Raises:
        ValueError: for an override that does not fit; it names what would.
    """
    shapes = list(_compose("train", overrides)["dry_run"])
    if shapes:
        overrides = [override for override in overrides if override.partition("=")[0] not in FILES]
    return compose_config("train", [*overrides, *shapes]), bool(shapes)


def describe(verb: str, overrides: Sequence[str] = ()) -> str:
    """The groups of a verb with their options, and all keys with their values, as text."""
    config = _compose(verb, overrides)
    folder = config_folder()
    groups = sorted(path.name for path in folder.iterdir() if path.is_dir() and _is_used(folder / f"{verb}.yaml", path))
    lines = ["Groups, for instance reward=balanced:"] if groups else []
    for group in groups:
        options = sorted(path.stem for path in (folder / group).glob("*.yaml"))
        lines.append(f"  {group:<14}{', '.join(options)}")
    lines += ["", "Keys:", *(f"  {line}" for line in OmegaConf.to_yaml(config).splitlines())]
    return "\n".join(lines)


def _is_used(root: Path, group: Path) -> bool:
    defaults = OmegaConf.select(OmegaConf.load(root), "defaults", default=[])
    return any(isinstance(entry, DictConfig) and group.name in entry for entry in defaults)


def _compose(verb: str, overrides: Sequence[str]) -> DictConfig:
    overrides = [_of_file(verb, override) for override in overrides]
    with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
        try:
            return compose(verb, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(_explain(verb, overrides, error)) from error


def _of_file(verb: str, override: str) -> str:
    """``world=PATH``, ``tokenizer=PATH``, ``idm=PATH`` and ``data=PATH`` name files of others (``files``)."""
    key, _, value = override.partition("=")
    if key not in FILES or (config_folder() / key / f"{value}.yaml").is_file():
        return override
    is_group = _is_used(config_folder() / f"{verb}.yaml", config_folder() / key)
    if is_group and not ("/" in value or "." in value or Path(value).exists()):
        return override  # an option that there is not
    quoted = value.replace("'", "\\'")
    return f"files.{key}='{quoted}'"


def _plain(config: DictConfig) -> Config:
    try:
        missing = sorted(OmegaConf.missing_keys(config))
    except InterpolationToMissingValueError:  # what others refer to: look at it alone
        missing = [f"{key}=PATH" for key in config["files"] if OmegaConf.is_missing(config["files"], key)]
        raise ValueError(
            f"give {', '.join(missing)}: a checkpoint, the folder of VPT's 4x_idm.model and .weights, a folder of "
            "recordings (trainer.dry_run=true needs none of them)"
        ) from None
    if missing:
        raise ValueError(f"give {', '.join(f'{key}=...' for key in missing)}")
    try:
        return cast(Config, OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from error


def _explain(verb: str, overrides: Sequence[str], error: Exception) -> str:
    """Hydra's message in one line; for an unknown key, the keys that there are."""
    groups = [override for override in overrides if _names_group(override)]
    try:
        known = compose(verb, groups)
    except (HydraException, OmegaConfBaseException) as wrong_group:
        return " ".join(str(wrong_group).split())
    problems = (_unknown_key(known, override) for override in overrides if override not in groups)
    return next(filter(None, problems), " ".join(str(error).split()))


def _names_group(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+~")
    return (config_folder() / key).is_dir()


def _unknown_key(config: DictConfig, override: str) -> str | None:
    key, separator, _ = override.partition("=")
    if not separator:
        return f"{override!r} is no override; write key=value"
    if key.startswith("files.") and "files" not in config:
        return f"{key.removeprefix('files.')}=PATH goes with world=published, as in experiment=mineworld_300m_rlir"
    node: Any = config
    path = key.lstrip("+~").split(".")
    for depth, name in enumerate(path):
        if not isinstance(node, DictConfig) or name not in node.keys():  # `in` denies what is still to be given
            place = ".".join(path[:depth])
            valid = ", ".join(str(key) for key in node if key != "_target_") if isinstance(node, DictConfig) else "none"
            return f"no key {key.lstrip('+~')!r}; keys of {place or 'this verb'} are {valid}"
        node = node[name] if not OmegaConf.is_missing(node, name) else None
    return None
