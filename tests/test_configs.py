"""Every YAML file of every group makes what it names, and a wrong key is answered with the right ones."""

import pytest
import torch
from hydra.utils import get_object

from rlir_agents.commands.assembly import assemble, frozen_parts, make_trainer
from rlir_agents.commands.building import build, keywords_of
from rlir_agents.commands.composition import compose_config, config_folder, describe
from rlir_agents.losses import GRPOLoss
from rlir_agents.policies import LatentValue, TokenValue
from rlir_agents.rollouts import collect

IDENTITY = ["experiment=identity", "num_threads=1"]


def options(group: str) -> list[str]:
    """Names of the YAML files of a group."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def nodes(node):
    """All nodes with a target, innermost first."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from nodes(child)
    if isinstance(node, dict) and "_target_" in node:
        yield node


ROOT_OF_GROUP = {
    **dict.fromkeys(("algorithm", "credit", "env", "experiment", "logger", "policy", "prompts", "reward"), "train"),
    **dict.fromkeys(("grid", "paradigm", "world", "world_model"), "train"),
    **dict.fromkeys(("model", "recordings", "idm", "tokenizer"), "pretrain"),
}
MODEL_OF_GROUP = {"idm": "idm", "tokenizer": "tokenizer", "recordings": "idm"}
MANDATORY = {
    "recordings": ["prompts.folder=x"],
    "checkpoint": ["world_model.path=x"],
    "published": ["files.world=x", "files.idm=x", "files.data=x"],
}


def test_every_group_is_tested():
    assert {path.name for path in config_folder().iterdir() if path.is_dir()} == set(ROOT_OF_GROUP)


@pytest.mark.parametrize("group, option", [(group, option) for group in ROOT_OF_GROUP for option in options(group)])
def test_every_key_is_a_keyword(group, option):
    overrides = [f"{group}={option}"]
    if group in MODEL_OF_GROUP:
        overrides.append(f"model={MODEL_OF_GROUP[group]}")
    if group in ("prompts", "world", "world_model"):
        overrides += MANDATORY.get(option, [])
    if group == "grid":  # env and evaluation have one each
        overrides = ["paradigm=diffusion", f"grid@env.timesteps={option}"]
    if overrides[0] == "world_model=published":  # its path is the world's
        overrides.append("world=published")
    if group == "experiment" and option.endswith(("00m_rlir", "10m_rlir", "74m_rlir")):  # of published models
        overrides += MANDATORY["published"]
    config = compose_config(ROOT_OF_GROUP[group], overrides)
    found = list(nodes(config))
    assert found
    for node in found:
        target = node["_target_"]
        if target.startswith("torchrl.record.loggers."):  # import only what the extra provides
            continue
        keywords = keywords_of(get_object(target))
        if not any(keyword.kind is keyword.VAR_KEYWORD for keyword in keywords.values()):
            assert node.keys() - {"_target_"} <= keywords.keys(), target


@pytest.mark.parametrize("root", ["train", "evaluate", "generate"])
@pytest.mark.parametrize("paradigm", options("paradigm"))
def test_every_command_composes_every_paradigm(root, paradigm):
    config = compose_config(root, [f"paradigm={paradigm}"])
    assert config["paradigm"] == paradigm and list(nodes(config))


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={option}"
        for group in ("reward", "credit", "algorithm", "prompts", "policy", "env")
        for option in options(group)
        if option != "recordings"  # below
    ],
)
def test_every_part_of_training_is_built(override):
    denoising = ["experiment=identity_nfd"]
    extra = {
        "algorithm=ppo": ["credit=gae"],
        "credit=gae": ["algorithm=ppo"],
        "credit=framewise_flat": denoising,
        "env=denoising": denoising,
        "policy=denoising": denoising,
        "policy=flow_matching": [*denoising, "policy.order=1"],  # the toy world takes the steps of an SDE
    }
    config = compose_config("train", [*IDENTITY, override, *extra.get(override, [])])
    assembly = assemble(config)
    assert assembly.parts["optimizer"].param_groups[0]["params"]
    assert torch.isfinite(assembly.parts["env"].rollout(1, assembly.policy)["next", "reward"]).all()


def test_prompts_come_from_own_recordings(tmp_path):
    write_gameplay(tmp_path)
    config = compose_config("train", [*IDENTITY, "prompts=recordings", f"prompts.folder={tmp_path}"])
    prompts = build(config["prompts"], frozen_parts(config), "prompts")
    assert prompts.get([0]).context_frames.shape == (1, 1, 3, 4, 8)  # at the size of the world's tokenizer


@pytest.mark.parametrize("algorithm", [["algorithm=clipped"], ["algorithm=ppo", "credit=gae"]])
def test_a_denoising_loss_averages_over_the_steps_that_count(algorithm):
    overrides = ["experiment=identity_nfd", *algorithm, "policy.selected_fraction=0.4"]
    parts = assemble(compose_config("train", overrides)).parts
    rollout = collect(parts["env"], parts["policy"]).flatten(0, 1)
    counted = rollout["loss_mask"]
    assert counted.float().mean() < 0.5
    rollout["advantage"] = torch.rand(*rollout.shape, 1) + 0.5
    rollout["value_target"] = torch.zeros(*rollout.shape, 1)
    objective = -rollout["advantage"].expand_as(counted)[counted].mean()  # before the first update all ratios are 1
    torch.testing.assert_close(parts["loss"](rollout)["loss_objective"].detach(), objective)


@pytest.mark.parametrize("experiment", ["identity", "identity_nfd"])
def test_the_leash_starts_slack(experiment, tmp_path):
    once = ["trainer.num_epochs=1", "trainer.num_minibatches=1", "trainer.evaluate_every=0"]
    config = compose_config("train", [f"experiment={experiment}", "algorithm=grpo", *once, f"run_dir={tmp_path}"])
    trainer = make_trainer(assemble(config), evaluate=None)
    first, second = trainer.run_iteration(), trainer.run_iteration()
    assert abs(first["train/kl_to_ref"]) < 1e-6 < second["train/kl_to_ref"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["experiment=identity_nfd", "world_model=mineworld_identity"], "take an NFD"),
        (["experiment=identity", "world_model=nfd_identity"], "take a MineWorld"),
        (["experiment=identity", "policy=flow_matching"], "take an NFD"),
        (["experiment=identity", "credit=framewise_flat"], "no denoising steps to weigh"),
    ],
)
def test_a_part_of_the_other_paradigm_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        assemble(compose_config("train", overrides))


@pytest.mark.parametrize("experiment", ["identity", "identity_nfd"])
@pytest.mark.parametrize("with_critic", [False, True])
def test_experiments_without_assets_are_built(experiment, with_critic):
    overrides = ["algorithm=ppo", "credit=gae"] if with_critic else []
    assembly = assemble(compose_config("train", [f"experiment={experiment}", *overrides]))
    assert (assembly.parts["critic"] is not None) == with_critic
    if with_critic:  # its own trunk: the two must not share weights
        kind = {"identity": TokenValue, "identity_nfd": LatentValue}[experiment]
        assert isinstance(assembly.parts["critic"], kind)
        assert assembly.parts["critic"].world_model is not assembly.policy.world_model


def test_the_leash_has_its_own_copy_of_the_base_model():
    parts = assemble(compose_config("train", [*IDENTITY, "algorithm=grpo"])).parts
    assert isinstance(parts["loss"], GRPOLoss) and parts["loss"].kl_coeff == 0.05
    assert not any(p.requires_grad for p in parts["reference_policy"].parameters())
    assert all(p.requires_grad for p in parts["policy"].parameters())
    assembly = assemble(compose_config("train", [*IDENTITY, "algorithm=grpo", "trainer.sync_reference_every=8"]))
    assert assembly.parts["reference_policy"] is not assembly.base  # which is evaluated at the end, as it was


# The published sizes: reference page, sections 1.1 and 2.2. The preset: 10 MB in float16 are 5,000,000 parameters.
SIZES = {
    "world_model=mineworld_300m": 321_049_600,
    "world_model=mineworld_700m": 725_985_280,
    "world_model=mineworld_1200m": 1_229_301_760,
    "tokenizer=vq_mineworld": 146_244_675,
}


@pytest.mark.parametrize("override, num_parameters", SIZES.items())
def test_published_sizes(override, num_parameters):
    group = override.partition("=")[0]
    model = {"world_model": "mineworld", "tokenizer": "tokenizer"}[group]
    with torch.device("meta"):
        built = build(compose_config("pretrain", [f"model={model}", override])["network"], {})
    assert sum(p.numel() for p in built.parameters()) == num_parameters


BUDGET = {"tokenizer": 3e6, "kl_tokenizer": 3e6, "idm": 3e6, "mineworld": 10e6, "nfd": 10e6}  # bytes, stored in float16


@pytest.mark.parametrize("model, budget", BUDGET.items())
def test_presets_fit_the_budget(model, budget):
    with torch.device("meta"):
        built = build(compose_config("pretrain", [f"model={model}"])["network"], {})
    assert 2 * sum(p.numel() for p in built.parameters()) < budget


def test_judge_and_coach_differ_in_maps_and_seed_only():
    coach, judge = (compose_config("pretrain", ["model=idm", f"idm={name}"]) for name in ("coach", "judge"))
    assert coach["network"] == judge["network"]
    assert (coach["training"], judge["training"]) == ("coach", "judge")
    assert coach["seed"] != judge["seed"] and coach["pretraining"]["seed"] == coach["seed"]
    assert coach["run_dir"] != judge["run_dir"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["trainer.num_iteration=3"], "keys of trainer are num_iterations, num_epochs"),
        (["lr=3"], "keys of this verb are"),
        (["reward=inverse"], "Available options in 'reward'"),
        (["experiment=none_such"], "Available options in 'experiment'"),
        (["prompts=recordings"], "give prompts.folder=..."),
        (["nonsense"], "write key=value"),
    ],
)
def test_a_wrong_override_is_answered_with_the_right_ones(overrides, message):
    with pytest.raises(ValueError, match="(?s)" + message.replace(".", r"\.")):
        compose_config("train", overrides)


def test_a_wrong_keyword_is_answered_with_the_right_ones():
    with pytest.raises(ValueError, match="reward: InverseDynamicsReward has no mach; it has idm, match"):
        build({"_target_": "rlir_env.rewards.InverseDynamicsReward", "mach": "x"}, {}, "reward")
    with pytest.raises(ValueError, match="needs idm"):
        build({"_target_": "rlir_env.rewards.InverseDynamicsReward"}, {}, "reward")


def test_what_the_config_gives_wins_over_the_run():
    node = {"_target_": "rlir_agents.trainer_config.TrainerConfig", "num_iterations": 3}
    built = build(node, {"num_iterations": 5, "seed": 7})
    assert (built.num_iterations, built.seed) == (3, 7)


def test_help_names_groups_and_keys():
    text = describe("train")
    assert "equation_3" in text and "num_iterations" in text and "doom_paper" in text


def write_gameplay(folder, num_frames=16, size=(4, 8)):
    """A recording that fits the identity world's frames."""
    pytest.importorskip("av")
    import numpy as np

    from rlir_env.game_actions import env_action_to_event
    from rlir_env.recordings import write_recording

    noise = np.random.default_rng(0)
    frames = noise.integers(0, 255, (num_frames, *size, 3), np.uint8)
    keys = noise.integers(0, 2, num_frames)
    events = [env_action_to_event({"forward": int(k), "jump": 1 - int(k), "camera": [0, 3]}) for k in keys]
    write_recording(folder / "play.mp4", frames, events, fps=6)
