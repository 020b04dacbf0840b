"""The evaluator and its controls on the identity world, whose right videos are known."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from paradigms import PARADIGMS, frames_that_show
from tensordict import TensorDictBase
from torchrl.envs.utils import step_mdp

from rlir_agents.controls import ShuffledGameActions, best_of, derangement
from rlir_agents.evaluator import Evaluator
from rlir_agents.policies import TokenPolicy
from rlir_agents.prompt_choice import FirstPrompts
from rlir_agents.rollouts import collect, collect_stepwise
from rlir_agents.video_makers import NoReward, real_frames
from rlir_agents.world_models.mineworld import MineWorld, MineWorldConfig
from rlir_env.envs import TokenGenerationEnv
from rlir_env.metrics import action_following_scores, confusion_matrices
from rlir_env.prompts import ClipPrompts
from rlir_env.testing import identity_world, right_codes

WORLD = identity_world(num_prompts=16, num_frames=6)
PROMPTS = WORLD.prompts["test"]


def make_env(prompts, num_prompts: int = 4) -> TokenGenerationEnv:
    return TokenGenerationEnv(
        prompts,
        WORLD.tokenizer,
        NoReward(),
        num_prompts=num_prompts,
        tokens_per_step="frame",
        num_word_ids=WORLD.num_word_ids,
    )


def make_evaluator(rows: int = 4, **kwargs) -> Evaluator:
    kwargs.setdefault("collect_fn", collect_stepwise)  # takes any policy
    readers = {"judge": WORLD.coach, "coach": WORLD.coach}
    return Evaluator(partial(make_env, num_prompts=rows), PROMPTS, readers, **kwargs)


class Obedient:
    """Shows the right game action with some probability, else noise fixed by the episode's seed."""

    def __init__(self, obedience: float) -> None:
        self.obedience = obedience

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        frame = tensordict["frame_index"] - 1  # the game action that leads to the frame to be made
        game_action = tensordict["game_action"].gather(1, frame[..., None].expand(-1, 1, 2))
        right = right_codes(game_action[:, 0], WORLD.tokenizer)  # [B, K]
        seeds = (tensordict["episode_seed"] + tensordict["position"]).flatten().tolist()
        noise = [torch.Generator().manual_seed(seed % 2**40) for seed in seeds]
        codes = torch.stack([torch.randint(6, (2,), generator=one) for one in noise])
        is_right = torch.stack([torch.rand(1, generator=one) < self.obedience for one in noise])
        action = torch.where(is_right, right, codes)
        return tensordict.update({"action": action, "action_log_prob": torch.zeros(action.shape)})


def test_the_figures_follow_obedience():
    evaluator = make_evaluator()
    obedient, half, noise = (evaluator.evaluate(Obedient(p)) for p in (1.0, 0.5, 0.0))
    assert obedient.f1("judge") == 1.0
    assert (obedient.psnr > 40).all()  # the real frames are uint8, hence not 100
    assert 1.0 > half.f1("judge") > noise.f1("judge") + 0.1
    assert half.psnr.mean() > noise.psnr.mean()


def test_an_offset_of_one_lowers_f1():
    result = make_evaluator().evaluate(Obedient(1.0))
    read, pressed = result.inferred_game_action["judge"], result.game_action
    for ours, theirs in ((read[:, 1:], pressed[:, :-1]), (read[:, :-1], pressed[:, 1:])):
        counts = confusion_matrices(ours, theirs, result.spec).sum(0)
        assert action_following_scores(counts, result.spec)["f1"] < 0.7


def test_ceilings_and_copy_of_the_last_frame():
    evaluator = make_evaluator(batch_size=5)
    ceiling, reconstruction = evaluator.ceiling(), evaluator.reconstruction(WORLD.tokenizer)
    assert ceiling.f1("judge") == reconstruction.f1("judge") == 1.0  # the identity tokenizer loses nothing
    assert (ceiling.psnr == 100).all() and (reconstruction.psnr > 40).all()
    copy = evaluator.copy_last_frame()
    assert copy.f1("judge") < 0.7 and copy.psnr.mean() < 20
    assert (copy.frames == copy.frames[:, :1]).all()
    assert torch.equal(copy.game_action, ceiling.game_action)


def test_batches_do_not_change_the_videos():
    # 16 prompts in batches of 16, and of 5: the last batch is filled up with copies that are thrown
    # away.
    whole, parts = (make_evaluator(rows).evaluate(Obedient(0.5)) for rows in (16, 5))
    assert torch.equal(whole.inferred_game_action["judge"], parts.inferred_game_action["judge"])
    assert torch.equal(whole.psnr, parts.psnr)
    assert torch.equal(whole.frames, parts.frames)
    assert len(parts.psnr) == 16 and parts.frames.shape == (8, 6, 3, 4, 8)


def test_a_world_model_is_evaluated_with_the_fused_collector():
    # 16 prompts in rows of 6: the last batch is filled up, and fused is stepwise there too.
    torch.manual_seed(0)
    config = MineWorldConfig(
        num_codes=6,
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    policy = TokenPolicy(MineWorld(config), make_env(PROMPTS).layout, "frame")
    fused, stepwise = (make_evaluator(rows=6, collect_fn=fn).evaluate(policy) for fn in (collect, collect_stepwise))
    assert torch.equal(fused.frames, stepwise.frames)
    assert torch.equal(fused.psnr, stepwise.psnr)
    assert fused.num_clips == 16 and fused.frames.float().std() > 0


def test_seeds_and_siblings_have_their_own_noise():
    evaluator = make_evaluator()
    again = evaluator.evaluate(Obedient(0.5)).inferred_game_action["judge"]
    assert torch.equal(again, evaluator.evaluate(Obedient(0.5)).inferred_game_action["judge"])
    for other in (
        evaluator.evaluate(Obedient(0.5), sibling=1),
        make_evaluator(seed=1).evaluate(Obedient(0.5)),
    ):
        assert not torch.equal(again, other.inferred_game_action["judge"])


def test_a_model_that_obeys_does_worse_under_shuffled_game_actions():
    evaluator = make_evaluator()
    shuffled = evaluator.evaluate_under(ShuffledGameActions(PROMPTS), Obedient(1.0))
    assert shuffled.f1("judge") < 0.7
    assert torch.equal(shuffled.game_action, evaluator.ceiling().game_action)  # scored against the true ones
    ignorant = [
        evaluator.evaluate(Obedient(0.0)),
        evaluator.evaluate_under(ShuffledGameActions(PROMPTS), Obedient(0.0)),
    ]
    assert ignorant[0].f1("judge") == ignorant[1].f1("judge")


def test_shuffling_takes_what_it_is_told_from_another_prompt():
    index = torch.arange(PROMPTS.num_prompts)
    true, other = PROMPTS.get(index), derangement(PROMPTS.num_prompts, seed=3)
    assert sorted(other.tolist()) == index.tolist() and (other != index).all()
    both = ShuffledGameActions(PROMPTS, seed=3).get(index)
    assert torch.equal(both.game_action, true.game_action[other])
    assert torch.equal(both.game_action_word, true.game_action_word[other])
    assert torch.equal(both.context_frames, true.context_frames)
    misrewarded = ShuffledGameActions(PROMPTS, seed=3, is_reward_only=True).get(index[4:6])
    assert torch.equal(misrewarded.rewarded_game_action, true.game_action[other[4:6]])
    assert torch.equal(misrewarded.game_action, true.game_action[4:6])
    assert torch.equal(misrewarded.game_action_word, true.game_action_word[4:6])
    with pytest.raises(ValueError, match="at least two prompts"):
        ShuffledGameActions(FirstPrompts(PROMPTS, 1))


@pytest.mark.parametrize("name", PARADIGMS)
def test_the_control_is_told_one_thing_and_paid_for_another(name):
    paradigm, index = PARADIGMS[name], torch.arange(4)
    world = replace(WORLD, prompts={"dev": ShuffledGameActions(WORLD.prompts["dev"], is_reward_only=True)})
    make_env = {"autoregressive": world.env, "diffusion": partial(world.denoising_env, num_denoising_steps=2)}[name]
    env = make_env(num_prompts=4, **paradigm.frame)
    told = WORLD.prompts["dev"].get(index).game_action
    paid = world.prompts["dev"].get(index).rewarded_game_action
    rewards = []
    for shown in (told, paid):
        state = env.initial_state(index, index)
        assert torch.equal(state["game_action"], told)  # what every policy reads, as it is or as words
        for frame in range(env.num_steps):
            action = paradigm.pieces(frames_that_show(shown[:, frame]))
            state = step_mdp(env.step(state.set("action", action)), exclude_reward=False)
        rewards.append(state["reward"])
    assert (rewards[1] == 1).all() and (rewards[0] < 1).any()


def test_best_of_many_is_better_and_starts_from_the_same_video():
    evaluator = make_evaluator()
    one = evaluator.evaluate(Obedient(0.5))
    assert torch.equal(best_of(evaluator, Obedient(0.5), 1, by="coach").psnr, one.psnr)
    best = best_of(evaluator, Obedient(0.5), 4, by="coach")
    assert best.f1("judge") > one.f1("judge") + 0.05
    siblings = [evaluator.evaluate(Obedient(0.5), sibling).psnr for sibling in range(4)]
    assert (best.psnr == torch.stack(siblings)).any(0).all()  # every clip is one of the four
    with pytest.raises(ValueError, match="no best of them"):
        best_of(evaluator, Obedient(1.0), 2, by="coach")  # it has one answer


def test_psnr_leaves_the_given_frame_out():
    # Copying the given frame: PSNR of the 5 generated frames only, -10 log10(MSE) each, then mean.
    prompt = PROMPTS.get(torch.arange(1))
    error = (prompt.target_frames.double() - prompt.context_frames.double()) / 255
    expected = (-10 * error.square().mean((-3, -2, -1)).log10()).mean()
    assert (prompt.target_frames != prompt.context_frames).flatten(2).any(-1).all()  # none is equal
    assert make_evaluator().copy_last_frame().psnr[0].item() == pytest.approx(expected.item(), abs=1e-4)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least one reader"):
        Evaluator(make_env, PROMPTS, {})
    prompt = PROMPTS.get(torch.arange(3))
    blind = ClipPrompts(real_frames(prompt), prompt.game_action, prompt.game_action_word, has_targets=False)
    with pytest.raises(ValueError, match="target frames"):
        Evaluator(make_env, blind, {"judge": WORLD.coach})
    with pytest.raises(ValueError, match="pass as many"):
        make_evaluator().evaluate_under(WORLD.prompts["test"].__class__(WORLD.tokenizer, num_prompts=3), Obedient(1.0))
