"""Imports go one way (design, section 3): this walks the syntax trees of all modules and holds it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up; a module may import its own layer and those below it. The first prefix that fits counts.
LAYERS = [
    ("rlir_env.game_actions", "rlir_env.layout", "rlir_env.schedules", "rlir_env.noise", "rlir_env.sizes"),
    ("rlir_env.atomic_files", "rlir_env.checkpoints", "rlir_env.resize"),
    ("rlir_env.recordings",),
    ("rlir_env.prompts",),
    ("rlir_env.tokenizers", "rlir_env.inverse_dynamics", "rlir_env.metrics"),
    ("rlir_env.rewards",),
    ("rlir_env.envs",),
    ("rlir_env.assets", "rlir_env.testing"),
    ("rlir_env.gym",),
    ("rlir_agents.hardware", "rlir_agents.world_models"),
    ("rlir_agents.policies", "rlir_agents.advantages", "rlir_agents.generalized_advantage", "rlir_agents.losses"),
    ("rlir_agents.rollouts",),
    ("rlir_agents.commands", "rlir_agents.cli"),  # before the rest of rlir_agents, which is the layer below
]
_REST = len(LAYERS) - 1  # trainer, evaluator, report, pretraining, ...: between rollouts and commands

# What a package may not know at all, whatever the layer.
FORBIDDEN = {
    "rlir_env": ("rlir_agents", "hydra", "omegaconf"),
    "rlir_agents.world_models": ("torchrl", "tensordict", "gymnasium"),
    "rlir_agents.losses": ("rlir_env", "rlir_agents.world_models", "rlir_agents.policies"),
    "rlir_agents.advantages": ("torchrl", "rlir_env"),
}
# Of rlir_env a world model may know these, and nothing else: no env, no reward, no prompt.
KNOWN_TO_WORLD_MODELS = tuple(
    f"rlir_env.{name}" for name in ("game_actions", "layout", "checkpoints", "schedules", "noise", "sizes")
)
# Only these may import what others must be able to do without.
ONLY_IN = {
    "hydra": ("rlir_agents.commands",),
    "omegaconf": ("rlir_agents.commands",),
    "gymnasium": ("rlir_env.gym", "rlir_env.__init__"),
}
# Optional or heavy: imported inside the function that uses it, so that everything else works without.
LAZY = ("av", "vizdoom", "lpips", "torchvision", "cv2", "transformers", "diffusers", "wandb", "tensorboard")


def module_names() -> list[str]:
    paths = [path for package in ("rlir_env", "rlir_agents") for path in (ROOT / package).rglob("*.py")]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)


def imports(module: str, at_import_time: bool = False) -> set[str]:
    """Modules that a module imports, anywhere or while it is being imported; those for type checking do not count."""
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    found: set[str] = set()
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            stack += node.orelse
            continue
        elif at_import_time and isinstance(node, (ast.FunctionDef, ast.Lambda)):
            continue
        stack += ast.iter_child_nodes(node)
    return found


def is_below(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def layer(module: str) -> float | None:
    """Height of a module; None for what is not ours and for the bare packages."""
    for height, prefixes in enumerate(LAYERS):
        if any(is_below(module, prefix) for prefix in prefixes):
            return height if height < _REST else height + 1
    return _REST if module.startswith("rlir_agents.") and module != "rlir_agents.__init__" else None


@pytest.mark.parametrize("module", module_names())
def test_imports_go_one_way(module):
    own = layer(module)
    for imported in imports(module):
        theirs = layer(imported)
        if own is not None and theirs is not None and imported.count(".") >= 1:
            assert theirs <= own, f"{module} imports {imported}, which stands above it"
    for package, names in FORBIDDEN.items():
        if is_below(module, package):
            known = [one for one in imports(module) for name in names if is_below(one, name)]
            assert not known, f"{module} must not know {known}"
    if is_below(module, "rlir_agents.world_models"):
        of_env = [one for one in imports(module) if is_below(one, "rlir_env")]
        unknown = [one for one in of_env if not any(is_below(one, known) for known in KNOWN_TO_WORLD_MODELS)]
        assert not unknown, f"{module}: a world model must not know {unknown}"
    for name, places in ONLY_IN.items():
        if not any(is_below(module, place) for place in places):
            assert not any(is_below(one, name) for one in imports(module)), f"{module} imports {name}"
    lazy = [one for one in imports(module, at_import_time=True) for name in LAZY if is_below(one, name)]
    assert not lazy, f"{module}: import {lazy} in the function that uses it"


def test_the_walk_sees_imports():
    assert "rlir_env.layout" in imports("rlir_agents.policies.token")
    assert layer("rlir_agents.trainer") > layer("rlir_agents.rollouts") > layer("rlir_agents.policies.token")
    assert layer("rlir_agents.commands.train") > layer("rlir_agents.trainer") > layer("rlir_env.gym")
    assert "av" not in imports("rlir_env.recordings.recording", at_import_time=True)
    assert "av" in imports("rlir_env.recordings.recording")
