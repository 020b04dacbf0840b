"""What the README and `examples/` promise: scripts run and learn, extensions keep their contracts, snippets are true.

To put a world model of yours through the same tests, add it to `WORLD_MODELS`.
"""

import importlib.util
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from PIL import Image
from small_policies import small_mineworld, small_policy
from tensordict import TensorDict

import rlir_env.assets
from rlir_agents import GRPOLoss, SequenceCredit, Trainer, TrainerConfig, collect
from rlir_agents.commands.building import build
from rlir_agents.commands.composition import compose_config
from rlir_agents.rollouts import collect_stepwise
from rlir_agents.scoring import sequence_log_prob
from rlir_agents.world_models import TokenWorldModel
from rlir_env.envs import TokenGenerationEnv
from rlir_env.testing import check_generation_env, identity_world

ROOT = Path(__file__).parents[1]
EXTENDING = ROOT / "examples" / "extending"
MODELS = ("tokenizer", "coach", "mineworld")

needs_assets = pytest.mark.skipif(
    not all((Path(rlir_env.assets.__file__).parent / "doom" / f"{name}.safetensors").is_file() for name in MODELS),
    reason="the doom world's assets are not here",
)


def load(path: str) -> ModuleType:
    """A file of the examples as a module, which YAML finds by its bare name, as from its own folder."""
    name = Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


# The two scripts


def test_gymnasium_agent(tmp_path):
    rewards = load("gymnasium_agent.py").main(["--folder", str(tmp_path)])
    # 3 transitions of 2 slots: by chance a third of `move` and a half of `jump` are right, 0.42.
    assert rewards["obedient"] == 1.0
    assert rewards["random"] < 0.9
    with Image.open(tmp_path / "identity_obedient.gif") as picture:
        assert picture.size == (240, 120)  # 8 x 4 pixels, enlarged


def test_torchrl_loop_learns():
    path = ROOT / "examples" / "torchrl_ppo_loop.py"
    assert len(path.read_text().splitlines()) < 100
    rewards = load("torchrl_ppo_loop.py").main([])
    assert rewards[0] < 0.6  # 0.42 by chance
    assert rewards[-1] > 0.9


@needs_assets
def test_gymnasium_agent_in_the_shipped_world(tmp_path):
    rewards = load("gymnasium_agent.py").main(["--world", "doom", "--folder", str(tmp_path)])
    assert set(rewards) == {"random", "base_model"} and all(0 <= value <= 1 for value in rewards.values())
    assert (tmp_path / "doom_base_model.gif").is_file()


@needs_assets
def test_torchrl_loop_in_the_shipped_world():
    arguments = ["--world", "doom", "--iterations", "1", "--prompts", "1", "--group", "2"]
    assert len(load("torchrl_ppo_loop.py").main(arguments)) == 1


# A reward


def test_smoothness_by_hand():
    reward_fn = build_extension("reward/smoothness", scale=2.0)
    frames = torch.zeros(1, 3, 3, 2, 2)
    frames[:, 1], frames[:, 2] = 0.25, 0.5
    frames[:, 2, :, 0] = 0.25  # half of the pixels stand still
    generation = TensorDict({"frames": frames, "game_action": torch.zeros(1, 2, 9).long()}, [1])
    paid = reward_fn(generation)
    # Changes 0.25 and 0.125, twice each: 1 - 0.5 and 1 - 0.25.
    assert paid["frame_reward"].tolist() == [[0.5, 0.75]]
    assert paid["reward"].tolist() == [[0.625]]


def test_smoothness_keeps_the_contract_and_rises(tmp_path):
    reward_fn = build_extension("reward/smoothness")
    env = env_with(reward_fn)
    check_generation_env(env)
    policy = small_policy(env)
    rewards = train(env, policy, GRPOLoss(policy), tmp_path, num_iterations=12)
    # Two grey levels out of six, drawn at random, are 70 / 36 levels apart on average: 1 - 70 / 36 / 5 = 0.61.
    assert rewards[0] == pytest.approx(0.61, abs=0.1)
    assert rewards[-1] > rewards[0] + 0.1


# An algorithm


def test_gspo_by_hand():
    class TwoCodes(torch.nn.Module):
        """Gives code 1 the logit of its only weight, code 0 the logit 0."""

        in_keys = ["position"]

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def get_dist(self, tensordict):
            logits = torch.stack([torch.zeros(()), self.weight]).expand(*tensordict.shape, 2, 2)
            return torch.distributions.Categorical(logits=logits)

    loss = build_extension("algorithm/gspo", {"actor_network": TwoCodes()}, clip_epsilon=0.1)
    # Two rollouts of one step of two tokens; all have log p = log 0.5. Log-ratios: mean of (0.1, 0.3) = 0.2 and of
    # (-0.2, 0.2) = 0; the first is clipped at 1.1, and 1.1 < e^0.2.
    old = torch.tensor(0.5).log() - torch.tensor([[[0.1, 0.3]], [[-0.2, 0.2]]])
    rollout = TensorDict(
        {
            "action": torch.ones(2, 1, 2).long(),
            "action_log_prob": old,
            "advantage": torch.tensor([1.0, -3.0]).reshape(2, 1, 1),
        },
        [2, 1],
    )
    losses = loss(rollout)
    assert losses["loss_objective"].item() == pytest.approx(-(1.1 - 3.0) / 2)
    assert losses["clip_fraction"].item() == 0.5
    losses["loss_objective"].backward()
    # The clipped rollout has no gradient. The other: d/dw of -(-3 * exp(log p(w) - ...)) / 2 at ratio 1, where
    # d log p(code 1) / dw = 1 - 0.5: 3 / 2 * 0.5.
    assert next(loss.parameters()).grad.item() == pytest.approx(0.75)


def test_gspo_learns(tmp_path):
    env = identity_env()
    policy = small_policy(env)
    load("extending/algorithm/gspo.py")
    (block,) = blocks_of(EXTENDING / "algorithm" / "README.md", "python")  # for the learning test, which calls it so:
    exec(compile(block, "snippet", "exec"), names := {})
    # A toy policy moves far in an update; the default clip is for large models and many tokens.
    loss, _ = names["gspo"](policy, 0.2)
    rewards = train(env, policy, loss, tmp_path)
    assert rewards[0] < 0.6  # 0.42 by chance
    assert rewards[-1] >= 0.95


# A world model


def gru(num_codes: int, vocab_size: int, max_length: int) -> TokenWorldModel:
    """The one of `examples/extending/world_model`."""
    load("extending/world_model/gru.py")
    config = {"num_codes": num_codes, "vocab_size": vocab_size, "max_position_embeddings": max_length}
    return build_extension("world_model/gru", config={"_target_": "gru.GRUConfig", **config})


WORLD_MODELS = [small_mineworld, gru]  # the one that ships is the yardstick


@pytest.mark.parametrize("world_model", WORLD_MODELS, ids=lambda make: make.__name__)
def test_a_world_model_has_equal_modes(world_model):
    env = identity_env(num_prompts=2, group_size=3)
    policy = small_policy(env, world_model)
    state = env.reset()
    rollout = collect(env, policy, state.clone())
    stepwise = collect_stepwise(env, policy, state.clone())
    assert (rollout["action"] == stepwise["action"]).all()
    assert all(len(siblings.flatten(1).unique(dim=0)) > 1 for siblings in rollout["action"])  # of every prompt
    log_prob = sequence_log_prob(policy, rollout.flatten(0, 1), micro_batch_size=6)
    torch.testing.assert_close(log_prob.unflatten(0, (2, 3)), rollout["action_log_prob"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("world_model", WORLD_MODELS[1:], ids=lambda make: make.__name__)
def test_a_world_model_learns(world_model, tmp_path):
    env = identity_env()
    policy = small_policy(env, world_model)
    rewards = train(env, policy, GRPOLoss(policy), tmp_path)
    assert rewards[0] < 0.6  # 0.42 by chance
    assert rewards[-1] >= 0.95


# What is written in Markdown


def blocks_of(path: Path, language: str) -> list[str]:
    """Fenced blocks of a Markdown file, those inside of lists too."""
    pattern = rf"^( *)```{language}\n(.*?)^\1```"
    found = re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


def snippets() -> list[tuple[str, str]]:
    """All Python of the READMEs, by file and number."""
    paths = (ROOT / "README.md", *sorted(EXTENDING.glob("*/README.md")))
    return [
        (f"{path.relative_to(ROOT)}:{number}", block)
        for path in paths
        for number, block in enumerate(blocks_of(path, "python"))
    ]


@pytest.mark.parametrize(
    "snippet",
    [
        pytest.param(code, id=name, marks=[needs_assets] if "policy_from_assets" in code else [])
        for name, code in snippets()
    ],
)
def test_snippets_run(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("reward/smoothness.py", "algorithm/gspo.py", "world_model/gru.py"):
        load(f"extending/{path}")
    exec(compile(snippet, "snippet", "exec"), {"__name__": "snippet"})


def test_a_sum_of_rewards_in_yaml():
    load("extending/reward/smoothness.py")
    world = identity_world()
    (block,) = blocks_of(EXTENDING / "reward" / "README.md", "yaml")
    reward_fn = build(yaml.safe_load(block), {"idm": world.coach, "slots": None})
    entries = reward_fn.zeros(1, 3, 2)
    assert {"reader_frame_reward", "quiet_frame_reward", "frame_match"} <= set(entries.keys())


def test_the_readme_names_what_exists():
    """Every `path:name` of the paper-to-code table, and every path that is linked."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.(?:py|yaml|md))(?::([\w.]+))?`", text)
    assert len(named) > 20
    for path, name in named:
        assert (ROOT / path).is_file(), path
        for part in name.split(".") if name else ():
            assert re.search(rf"\b{part}\b", (ROOT / path).read_text(encoding="utf-8")), f"{path}: {part}"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("override", ["reward=smoothness", "algorithm=gspo", "world_model=gru"])
def test_extensions_can_be_named_on_the_command_line(override):
    group, name = override.split("=")
    config = compose_config("train", ["experiment=identity", f"hydra.searchpath=[file://{EXTENDING}]", override])
    node = config[group].get("loss", config[group])
    assert node["_target_"].split(".")[0] == name


# Helpers


def build_extension(path: str, parts: dict | None = None, **changes) -> torch.nn.Module:
    """What the YAML of an extension describes, as `rlir train` builds it, with changed keywords."""
    load(f"extending/{path}.py")
    node = yaml.safe_load((EXTENDING / f"{path}.yaml").read_text())
    return build(node.get("loss", node) | changes, parts or {})


def identity_env(num_prompts: int = 8, group_size: int = 8) -> TokenGenerationEnv:
    return identity_world().env(num_prompts=num_prompts, group_size=group_size, tokens_per_step="frame")


def env_with(reward_fn) -> TokenGenerationEnv:
    world = identity_world()
    return TokenGenerationEnv(
        world.prompts["dev"],
        world.tokenizer,
        reward_fn,
        num_prompts=4,
        group_size=8,
        tokens_per_step="frame",
        num_word_ids=world.num_word_ids,
    )


def train(env, policy, loss, run_dir: Path, num_iterations: int = 40) -> list[float]:
    """Mean reward of every iteration."""
    config = TrainerConfig(num_iterations=num_iterations, num_epochs=2, num_minibatches=2)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    trainer = Trainer(env, policy, loss, SequenceCredit(), optimizer, config, run_dir)
    return [trainer.run_iteration()["reward/mean"] for _ in range(num_iterations)]
