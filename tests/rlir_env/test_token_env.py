"""The token MDP: contract at every granularity, words at their places, resets, errors."""

import pytest
import torch
from torchrl.envs.utils import step_mdp

from rlir_env.envs import PromptOrder, TokenGenerationEnv
from rlir_env.prompts import ClipPrompts
from rlir_env.rewards import BrightnessReward
from rlir_env.testing import (
    RandomTokenPolicy,
    check_generation_env,
    identity_world,
    right_codes,
)

WORLD = identity_world()


def play(env, state, actions):
    """Step through actions ``[B, T, k]``; returns all of TorchRL's step outputs."""
    steps = []
    for t in range(actions.shape[1]):
        state["action"] = actions[:, t]
        steps.append(env.step(state))
        state = step_mdp(steps[-1])
    return steps


def right_actions(env, state):
    codes = right_codes(state["game_action"], env.tokenizer)
    return codes.reshape(len(codes), env.num_steps, env.tokens_per_step)


@pytest.mark.parametrize("tokens_per_step", [1, 2, "frame"])
@pytest.mark.parametrize(("num_prompts", "group_size"), [(1, 1), (2, 3)])
def test_env_keeps_the_contract(tokens_per_step, num_prompts, group_size):
    env = WORLD.env(num_prompts=num_prompts, group_size=group_size, tokens_per_step=tokens_per_step)
    check_generation_env(env)


def test_words_stand_behind_their_frames():
    # K = 2, A = 2, F = 3: i i w w i i w w i i, L = 10; 6 codes, so word ids start at 6.
    env = identity_world(num_frames=3).env()
    state = env.reset()
    context, words = state["token"][0, :2].tolist(), state["game_action_word"][0].tolist()
    assert state["token"][0].tolist() == [*context, *words[0], -1, -1, -1, -1, -1, -1]
    assert (state["position"].item(), state["frame_index"].item()) == (4, 1)
    steps = [step["next"] for step in play(env, state, torch.tensor([[[3], [1], [0], [5]]]))]
    tokens = [step["token"][0].tolist() for step in steps]
    start = [*context, *words[0]]
    assert tokens[0] == [*start, 3, -1, -1, -1, -1, -1]
    assert tokens[1] == [*start, 3, 1, *words[1], -1, -1]
    assert tokens[2] == [*start, 3, 1, *words[1], 0, -1]
    assert tokens[3] == [*start, 3, 1, *words[1], 0, 5]
    assert [step["position"].item() for step in steps] == [5, 8, 9, 10]
    assert [step["frame_index"].item() for step in steps] == [1, 2, 2, 2]
    assert [step["terminated"].item() for step in steps] == [False, False, False, True]
    # Line 0 moved `move` by words[0][0] - 6 classes, `jump` by words[0][1] - 9.
    first = state["game_action"][0, 0].tolist()
    assert words[0] == [6 + first[0], 9 + first[1]]


def test_right_codes_are_paid_one_and_codes_of_the_next_line_less():
    env = WORLD.env(num_prompts=8, tokens_per_step="frame")
    state = env.reset()
    actions = right_actions(env, state)
    last = play(env, state.clone(), actions)[-1]["next"]
    assert last["reward"].eq(1).all() and last["frame_match"].eq(1).all()
    assert (last["inferred_game_action"] == state["game_action"]).all()
    shifted = play(env, state.clone(), actions.roll(-1, dims=1))[-1]["next"]
    assert shifted["reward"].mean() < 0.8


def test_granularity_changes_neither_video_nor_reward():
    actions = torch.randint(6, (2, 6), generator=torch.Generator().manual_seed(0))
    ends = []
    for tokens_per_step in (1, 2, "frame"):
        env = WORLD.env(num_prompts=2, tokens_per_step=tokens_per_step)
        chunks = actions.reshape(2, env.num_steps, env.tokens_per_step)
        ends.append(play(env, env.reset(), chunks)[-1]["next"])
    for end in ends[1:]:
        assert (end["token"] == ends[0]["token"]).all()
        assert (end["reward"] == ends[0]["reward"]).all()


def test_rows_may_be_reset_at_different_times():
    env = WORLD.env(num_prompts=2, tokens_per_step="frame")
    state = env.reset()
    for _ in range(2):
        state = step_mdp(env.step(env.rand_action(state)))
    before = state.clone()
    state["_reset"] = torch.tensor([[True], [False]])
    state = env.reset(state)
    assert state["position"].flatten().tolist() == [4, before["position"][1].item()]
    assert state["group_id"].flatten().tolist() == [2, 1]  # groups 0 and 1 were drawn first
    assert (state["token"][1] == before["token"][1]).all()
    outcome = env.step(env.rand_action(state))["next"]  # row 1 ends, row 0 goes on
    assert outcome["terminated"].flatten().tolist() == [False, True]
    assert outcome["frame_reward"][0].eq(0).all()
    assert torch.isclose(outcome["reward"][1], outcome["frame_reward"][1].mean())


def test_siblings_cannot_be_reset_alone():
    env = WORLD.env(group_size=2)
    state = env.reset()
    state["_reset"] = torch.tensor([[True], [False]])
    with pytest.raises(ValueError, match="whole groups"):
        env.reset(state)


def test_unfinished_frames_are_black_and_finished_ones_decoded():
    env = WORLD.env(tokens_per_step="frame")
    state = env.reset()
    state = play(env, state, torch.full((1, 1, 2), 5))[0]["next"]  # code 5 of 0..5 is white
    frames = env.frames_of(state)
    assert frames.shape == (1, 4, 3, 4, 8) and frames.dtype == torch.float32
    assert frames[0, 1].eq(1).all() and frames[0, 2:].eq(0).all()
    assert env.num_finished_frames(state).item() == 2
    assert env.frames_of(state, 2).shape[1] == 2


def test_every_prompt_comes_once_per_epoch_and_a_count_resumes_the_order():
    env = WORLD.env(num_prompts=4)
    drawn = [env.reset()["prompt_index"].flatten().tolist() for _ in range(8)]
    for epoch in (drawn[:4], drawn[4:]):  # 16 prompts, 4 a reset
        assert sorted(sum(epoch, [])) == list(range(16))
    assert drawn[:4] != drawn[4:]
    resumed = WORLD.env(num_prompts=4)
    resumed.num_groups_drawn = 28  # seven resets of four groups
    state = resumed.reset()
    assert state["prompt_index"].flatten().tolist() == drawn[7]
    assert state["group_id"].flatten().tolist() == [28, 29, 30, 31]


def test_noise_seeds_do_not_depend_on_the_batch():
    # Group 2 of a run has the same seeds whether groups come one, two or three at a time.
    seeds = []
    for num_prompts, num_resets in ((1, 3), (3, 1)):
        env = WORLD.env(num_prompts=num_prompts, group_size=2, seed=7)
        for _ in range(num_resets):
            state = env.reset()
        seeds.append(state[-2:].select("prompt_index", "prompt_seed", "episode_seed", "group_id"))
    assert (seeds[0] == seeds[1]).all()


def test_epochs_of_different_seeds_differ():
    first, second = (PromptOrder(100, seed).draw(100) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_initial_state_gives_the_chosen_prompts():
    env = WORLD.env(num_prompts=3, tokens_per_step="frame")
    index, seeds = torch.tensor([4, 4, 9]), torch.tensor([1, 2, 3])
    state = env.initial_state(index, seeds)
    assert state["prompt_index"].flatten().tolist() == [4, 4, 9]
    assert state["episode_seed"].flatten().tolist() == [1, 2, 3]
    assert state["group_id"].flatten().tolist() == [4, 4, 9]
    assert (state["game_action"] == WORLD.prompts["dev"].get(index).game_action).all()
    policy = RandomTokenPolicy(6, tokens_per_step=2)
    rollout = env.rollout(env.num_steps, policy, auto_reset=False, tensordict=state)
    assert rollout.shape == (3, 3) and rollout["next", "terminated"][:, -1].all()
    with pytest.raises(ValueError, match=r"must be in 0\.\.15"):
        env.initial_state(torch.tensor([16]), torch.tensor([0]))


def test_another_reward_is_one_class():
    env = TokenGenerationEnv(
        WORLD.prompts["dev"],
        WORLD.tokenizer,
        BrightnessReward(),
        tokens_per_step="frame",
        num_word_ids=WORLD.num_word_ids,
    )
    check_generation_env(env)
    # Codes 5, 5 are white (1), codes 0, 0 black: frames of 1, 0 and 1 have mean 2/3.
    end = play(env, env.reset(), torch.tensor([[[5, 5], [0, 0], [5, 5]]]))[-1]["next"]
    assert end["frame_reward"].tolist() == [[1, 0, 1]]
    assert end["reward"].item() == pytest.approx(2 / 3)


@pytest.mark.filterwarnings("ignore:Creating .* inherits from WeightUpdaterBase:DeprecationWarning")
def test_torchrl_collector_runs_it():
    from torchrl.collectors import Collector  # warns about itself, which only a test can filter

    env = WORLD.env(num_prompts=2, group_size=2)
    policy = RandomTokenPolicy(env.num_codes)
    collector = Collector(env, policy, frames_per_batch=24, total_frames=48, auto_register_policy_transforms=False)
    batches = list(collector)
    collector.shutdown()
    assert [batch.shape for batch in batches] == [(4, 6), (4, 6)]
    assert all(batch["next", "terminated"][:, -1].all() for batch in batches)
    first, second = (batch["group_id"][:, 0].flatten().tolist() for batch in batches)
    # A collector resets after the last step of a batch, so the second one starts with new prompts.
    assert first == [0, 0, 1, 1] and second == [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.tensor([[6]]), r"0\.\.5"),  # id of a word
        (torch.tensor([[-1]]), r"0\.\.5"),
        (torch.tensor([[0.0]]), "integer codes"),
        (torch.tensor([[0, 0]]), r"expected \[B, k\] = \(1, 1\)"),
    ],
)
def test_wrong_actions_are_refused(action, message):
    env = WORLD.env()
    state = env.reset()
    state["action"] = action
    with pytest.raises(ValueError, match=message):
        env.step(state)


def test_a_complete_video_cannot_be_continued():
    env = WORLD.env(tokens_per_step="frame")
    end = env.rollout(3, break_when_any_done=True)
    state = step_mdp(end[:, -1])
    with pytest.raises(ValueError, match="already complete"):
        env.step(env.rand_action(state))


def test_wrong_set_ups_are_refused():
    with pytest.raises(ValueError, match="tokens_per_step=3"):
        WORLD.env(tokens_per_step=3)
    with pytest.raises(ValueError, match="group_size=0"):
        WORLD.env(group_size=0)
    with pytest.raises(ValueError, match="2 context frames"):
        env_of(prompts_with_word(0, num_context_frames=2))


def prompts_with_word(word, **options):
    """Two black clips whose words all have this local id."""
    frames = torch.zeros(2, 4, 3, 4, 8, dtype=torch.uint8)
    return ClipPrompts(frames, torch.zeros(2, 3, 2).long(), torch.full((2, 3, 2), word), **options)


def env_of(prompts):
    return TokenGenerationEnv(prompts, WORLD.tokenizer, WORLD.env().reward_fn, num_word_ids=5)


@pytest.mark.parametrize("word", [-1, 5])
def test_words_outside_of_the_vocabulary_are_refused(word):
    with pytest.raises(ValueError, match=r"outside 0\.\.4"):
        env_of(prompts_with_word(word)).reset()


@pytest.mark.parametrize("word", [0, 4])
def test_the_first_and_the_last_word_fit(word):
    # 6 codes; word 0 stands behind the two codes of frame 0.
    assert env_of(prompts_with_word(word)).reset()["token"][0, 2:4].tolist() == [6 + word] * 2
