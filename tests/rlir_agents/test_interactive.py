"""Playing with the model frame by frame equals a slow and literal account of the demo's loops."""

import pytest
import torch
from literal_llama import BLOCK, COLUMNS, CONFIG, ROWS, WORD, K, LiteralModel
from torch import Tensor

from rlir_agents.world_models import MineWorld, TokenSampler
from rlir_agents.world_models.interactive import InteractiveDecoder

NUM_GIVEN, NUM_MADE, WINDOW = 2, 5, 2
CONTEXT = CONFIG.max_position_embeddings // BLOCK  # 4 frames: play goes on beyond it


@pytest.fixture(scope="module")
def model() -> MineWorld:
    torch.manual_seed(0)
    return MineWorld(CONFIG).eval()


@pytest.fixture(scope="module")
def play() -> tuple[Tensor, Tensor, Tensor]:
    """Given frames [2, n, K], words between them [2, n - 1, A], and words that are pressed [2, F, A]."""
    torch.manual_seed(1)
    words = torch.randint(20, 26, (2, NUM_GIVEN - 1 + NUM_MADE, WORD))
    return torch.randint(20, (2, NUM_GIVEN, K)), words[:, : NUM_GIVEN - 1], words[:, NUM_GIVEN - 1 :]


def played(model: MineWorld, play: tuple[Tensor, Tensor, Tensor], **settings) -> Tensor:
    """Frames ``[B, F, K]``."""
    frames, words, pressed = play
    decoder = InteractiveDecoder(model, frames, words, grid_size=(ROWS, COLUMNS), **settings)
    return torch.stack([decoder.step(word) for word in pressed.unbind(1)], dim=1)


def literal_play(
    model: MineWorld,
    frames: list[list[int]],
    words: list[list[int]],
    pressed: list[list[int]],
    decoding: str,
    kept: int,
) -> list[list[int]]:
    """Section 4.6 of the reference page, greedily, for one video."""
    frames, words, made = list(frames), list(words), []

    def prefill() -> LiteralModel:
        llama = LiteralModel(model)  # with empty caches
        ids = [i for j, frame in enumerate(frames) for i in frame + (words[j] if j < len(words) else [])]
        llama(ids, list(range(len(ids))))
        return llama

    llama = prefill()
    for word in pressed:
        if len(words) >= CONTEXT - 1:
            frames, words = frames[CONTEXT - kept :], words[CONTEXT - kept :]
            llama = prefill()
        start = BLOCK * len(frames)
        cell: dict[tuple[int, int], int] = {}
        llama.num_calls = 0
        cell[0, 0] = int(llama(word, list(range(start - WORD, start)))[-1].argmax())
        if decoding == "naive":
            for place in range(1, K):
                row, column = divmod(place - 1, COLUMNS)
                logits = llama([cell[row, column]], [start + place - 1])
                cell[divmod(place, COLUMNS)] = int(logits[-1].argmax())
        else:
            for step in range(1, (ROWS - 1) * WINDOW + COLUMNS):
                cells = [(r, step - r * WINDOW) for r in range(ROWS) if 0 <= step - r * WINDOW < COLUMNS]
                ids = [cell[r, c - 1] if c > 0 else cell[r - 1, WINDOW - 1] for r, c in cells]
                logits = llama(ids, [start + COLUMNS * r + c - 1 for r, c in cells])
                for at, row_logits in zip(cells, logits, strict=True):
                    cell[at] = int(row_logits.argmax())
        llama([cell[ROWS - 1, COLUMNS - 1]], [start + K - 1])
        assert llama.num_calls == (K + 1 if decoding == "naive" else (ROWS - 1) * WINDOW + COLUMNS + 1)
        frames.append([cell[divmod(place, COLUMNS)] for place in range(K)])
        words.append(word)
        made.append(frames[-1])
    return made


@pytest.mark.parametrize("kept", [1, 2])
@pytest.mark.parametrize("decoding", ["naive", "image_diagonal"])
def test_it_equals_the_literal_account_also_when_the_context_overflows(model, play, decoding, kept):
    made = played(model, play, decoding=decoding, window=WINDOW, greedy=True, num_kept=kept)
    rows = zip(*(part.tolist() for part in play), strict=True)
    expected = [literal_play(model, *row, decoding, kept) for row in rows]
    assert made.tolist() == expected


def test_decodings_and_contexts_differ(model, play):
    settings = {"window": WINDOW, "greedy": True}
    plain = played(model, play, decoding="naive", num_kept=2, **settings)
    assert not torch.equal(plain, played(model, play, decoding="image_diagonal", num_kept=2, **settings))
    assert not torch.equal(plain, played(model, play, decoding="naive", num_kept=1, **settings))


def test_noise_belongs_to_the_place_in_the_whole_video(model, play):
    settings = {"sampler": TokenSampler(top_k=3), "num_kept": 2, "window": WINDOW}
    both = played(model, play, seed=torch.tensor([5, 9]), **settings)
    second = tuple(part[1:] for part in play)
    assert torch.equal(both[1:], played(model, second, seed=torch.tensor([9]), **settings))
    assert not torch.equal(both, played(model, play, seed=torch.tensor([5, 8]), **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid_size": (14, 24)}, "rows and columns of the 12 codes"),
        ({"window": 5}, "1 to 4"),
        ({"decoding": "video_diagonal"}, "choose 'naive' or 'image_diagonal'"),
        ({"num_kept": 4}, "the context holds 4 frames"),
        ({"action_token": torch.zeros(2, 2, WORD)}, "give one word between each two"),
        ({"frame_token": torch.full((2, NUM_GIVEN, K), 10_000)}, "frame_token has ids 10000"),
        ({"action_token": torch.zeros(2, NUM_GIVEN - 1, WORD, dtype=torch.long)}, "action_token has ids 0 to 0"),
    ],
)
def test_what_does_not_fit_is_refused(model, play, settings, message):
    defaults = {"frame_token": play[0], "action_token": play[1], "grid_size": (ROWS, COLUMNS), "window": 1}
    with pytest.raises(ValueError, match=message):
        InteractiveDecoder(model, **{**defaults, "num_kept": 2, **settings})


def test_a_word_must_have_its_length(model, play):
    decoder = InteractiveDecoder(model, *play[:2], grid_size=(ROWS, COLUMNS), window=1, num_kept=2)
    with pytest.raises(ValueError, match=r"give \[2, 2\]"):
        decoder.step(torch.zeros(2, 3))
