"""MineWorld's decoding: the plain one is the model's argmax, the diagonal ones equal a slow and literal account."""

import pytest
import torch
from literal_llama import BLOCK, COLUMNS, CONFIG, NUM_FRAMES, ROWS, WORD, K, LiteralModel
from torch import Tensor

from rlir_agents.world_models import MineWorld, TokenSampler
from rlir_agents.world_models.decoding import generate
from rlir_agents.world_models.diagonal_decoding import diagonal_schedule
from rlir_env.layout import TokenLayout


@pytest.fixture(scope="module")
def model() -> MineWorld:
    torch.manual_seed(0)
    return MineWorld(CONFIG).eval()


@pytest.fixture(scope="module")
def prompt() -> tuple[Tensor, Tensor]:
    """Codes of the given frame [2, K] and action words [2, F, A]."""
    torch.manual_seed(1)
    return torch.randint(20, (2, K)), torch.randint(20, 26, (2, NUM_FRAMES, WORD))


def literal_image_diagonal(llama: LiteralModel, given: list[int], words: list[list[int]], window: int) -> list[int]:
    """Section 4.5 of the reference page, greedily, for one video."""
    made: list[int] = []
    for f, word in enumerate(words):
        start = BLOCK * (f + 1)
        frame: dict[tuple[int, int], int] = {}
        if f == 0:
            ids, positions = given + word, list(range(BLOCK))
        else:
            ids, positions = [made[-1], *word], list(range(start - WORD - 1, start))
        frame[0, 0] = int(llama(ids, positions)[-1].argmax())
        for step in range(1, (ROWS - 1) * window + COLUMNS):
            active = [row for row in range(ROWS) if 0 <= step - row * window <= COLUMNS - 1]
            cells = [(row, step - row * window) for row in active]
            ids = [frame[r, c - 1] if c > 0 else given[COLUMNS * r - 1] for r, c in cells]
            logits = llama(ids, [start + COLUMNS * r + c - 1 for r, c in cells])
            for cell, row_logits in zip(cells, logits, strict=True):
                frame[cell] = int(row_logits.argmax())
        made += [frame[r, c] for r in range(ROWS) for c in range(COLUMNS)]
    return made


def literal_video_diagonal(llama: LiteralModel, given: list[int], words: list[list[int]], window: int) -> list[int]:
    """Section 4.7: a row starts when the one above it, of whichever frame, has ``window`` cells."""
    video: list[dict[int, int]] = [{} for _ in range(ROWS * NUM_FRAMES)]
    video[0][0] = int(llama(given + words[0], list(range(BLOCK)))[-1].argmax())
    for step in range(1, (ROWS * NUM_FRAMES - 1) * window + COLUMNS):
        ids: list[int] = []
        positions: list[int] = []
        answers: list[tuple[int, int, int]] = []
        for row, cells in enumerate(video):
            column = step - row * window
            if not 0 <= column <= COLUMNS - 1:
                continue
            f, r = row // ROWS, row % ROWS
            start = BLOCK * (f + 1)
            if column > 0:
                ids.append(cells[column - 1])
                positions.append(start + COLUMNS * r + column - 1)
            elif r > 0:
                ids.append(given[COLUMNS * r - 1])
                positions.append(start + COLUMNS * r - 1)
            else:
                ids += words[f]
                positions += range(start - WORD, start)
            answers.append((len(ids) - 1, row, column))
        logits = llama(ids, positions)
        for place, row, column in answers:
            video[row][column] = int(logits[place].argmax())
    return [cells[column] for cells in video for column in range(COLUMNS)]


LITERAL = {"image_diagonal": literal_image_diagonal, "video_diagonal": literal_video_diagonal}


def literal(model: MineWorld, prompt: tuple[Tensor, Tensor], decoding: str, window: int) -> Tensor:
    rows = zip(*(part.tolist() for part in prompt), strict=True)
    return torch.tensor([LITERAL[decoding](LiteralModel(model), given, words, window) for given, words in rows])


def test_plain_decoding_is_the_argmax_of_the_model(model, prompt):
    made = generate(model, *prompt, greedy=True, grid_size=(ROWS, COLUMNS))
    layout = TokenLayout(K, NUM_FRAMES + 1, WORD)
    token = torch.zeros(2, layout.sequence_length, dtype=torch.long)
    token[:, :K], token[:, layout.word_positions] = prompt[0], prompt[1]
    token[:, layout.action_positions] = made
    with torch.no_grad():
        logits = model(token, layout.action_positions - 1)
    assert made.shape == (2, NUM_FRAMES * K)
    assert torch.equal(logits[..., :20].argmax(-1), made)


@pytest.mark.parametrize("window", [1, 2, COLUMNS])
@pytest.mark.parametrize("decoding", LITERAL)
def test_diagonal_decoding_equals_the_literal_account(model, prompt, decoding, window):
    made = generate(model, *prompt, decoding, window, greedy=True, grid_size=(ROWS, COLUMNS))
    assert torch.equal(made, literal(model, prompt, decoding, window))
    plain = generate(model, *prompt, greedy=True, grid_size=(ROWS, COLUMNS))
    assert not torch.equal(made, plain)  # an approximation, also greedily


def test_the_published_script_sees_what_is_left_of_the_last_video(model, prompt):
    given, words = (part.tolist() for part in prompt)
    llama = LiteralModel(model)
    expected = [literal_image_diagonal(llama, given[row], words[row], window=1) for row in range(2)]
    cache = model.decoding_weights(torch.float32).new_positioned_cache(1, CONFIG.max_position_embeddings)
    made = [
        generate(
            model, prompt[0][[row]], prompt[1][[row]], "image_diagonal", 1, True, grid_size=(ROWS, COLUMNS), cache=cache
        )
        for row in range(2)
    ]
    assert torch.cat(made).tolist() == expected
    alone = generate(model, prompt[0][[1]], prompt[1][[1]], "image_diagonal", 1, True, grid_size=(ROWS, COLUMNS))
    assert made[1].tolist() != alone.tolist()  # or this would say nothing


@pytest.mark.parametrize("window", [1, 2, 4, 8, 24])
def test_numbers_of_passes_at_the_published_size(window):
    layout = TokenLayout(336, 16, 11)
    image = list(diagonal_schedule(layout, (14, 24), window, "image_diagonal"))
    assert len(image) == 15 * (13 * window + 24)
    assert max(len(one.targets) for one in image) == min(14, -(-24 // window))
    video = list(diagonal_schedule(layout, (14, 24), window, "video_diagonal"))
    assert len(video) == (14 * 15 - 1) * window + 24
    for schedule in (image, video):
        targets = [target for one in schedule for target in one.targets]
        assert sorted(targets) == layout.action_positions.tolist()  # each code once
        assert all(list(one.positions) == sorted(set(one.positions)) for one in schedule)
    # What image_diagonal never feeds: the ends of all rows but the last, whose places hold substitutes.
    fed_as_themselves = {
        place for one in image for place, source in zip(one.positions, one.sources, strict=True) if place == source
    }
    ends = {start + 24 * row + 23 for start in layout.frame_starts.tolist()[1:] for row in range(13)}
    assert not ends & fed_as_themselves


def test_noise_belongs_to_the_place(model, prompt):
    sampler = TokenSampler(top_k=3)
    settings = {"sampler": sampler, "grid_size": (ROWS, COLUMNS), "seed": torch.tensor([5, 9])}
    both = generate(model, *prompt, "image_diagonal", **settings)
    alone = generate(model, prompt[0][1:], prompt[1][1:], "image_diagonal", **{**settings, "seed": torch.tensor([9])})
    assert torch.equal(both[1:], alone)
    assert not torch.equal(
        both, generate(model, *prompt, "image_diagonal", **{**settings, "seed": torch.tensor([5, 8])})
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid_size": (14, 24)}, "rows and columns of the 12 codes"),
        ({"window": 5}, "trails the one above by 1 to 4 columns"),
        ({"decoding": "diagonal"}, "choose 'naive', 'image_diagonal' or 'video_diagonal'"),
        ({"action_token": torch.full((2, 9, WORD), 20)}, "more than max_position_embeddings=56"),
        ({"action_token": torch.zeros(2, 1, WORD)}, "action_token has ids 0 to 0: they are 20 to 25"),
        ({"action_token": torch.zeros(2, WORD)}, r"give codes \[B, K\] and words"),
    ],
)
def test_what_does_not_fit_is_refused(model, prompt, settings, message):
    defaults = {"decoding": "image_diagonal", "grid_size": (ROWS, COLUMNS), "action_token": prompt[1]}
    with pytest.raises(ValueError, match=message):
        generate(model, prompt[0], **{**defaults, **settings})
