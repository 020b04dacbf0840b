"""Clips as token sequences: frames and words in their places, encoded once, never with another tokenizer's codes."""

import pytest
import torch
from tiny_assets import FRAME_SIZE, TOKENIZER, write_gameplay

from rlir_agents.pretraining import TokenizedGameplay, encoded_gameplay
from rlir_env.layout import TokenLayout
from rlir_env.recordings import ClipFilter, FrameArchive, list_recordings
from rlir_env.tokenizers import KLConfig, KLTokenizer, VQTokenizer


@pytest.fixture
def archive(tmp_path):
    write_gameplay(tmp_path / "recordings", 40, seed=0)
    return FrameArchive.build(
        list_recordings(tmp_path / "recordings"), FRAME_SIZE, tmp_path / "archives", ClipFilter.keep_all()
    )


@pytest.fixture
def num_encodings(monkeypatch):
    """A list that grows with every encoding of the frames."""
    calls = []
    encode_all = encoded_gameplay._encode_all
    monkeypatch.setattr(encoded_gameplay, "_encode_all", lambda *args: calls.append(args) or encode_all(*args))
    return calls


def tokenizer(seed):
    torch.manual_seed(seed)
    return VQTokenizer(TOKENIZER).eval()


def test_sequences_hold_codes_and_words(archive):
    coder = tokenizer(0)
    layout = TokenLayout(coder.tokens_per_frame, num_frames=5)
    gameplay = TokenizedGameplay(archive, coder, layout)
    starts = gameplay.starts[[3, 20]]
    clips = archive.clips(starts, 5)
    sequences = gameplay.sequences(starts)
    assert torch.equal(sequences[:, layout.frame_positions], coder.encode(clips.frames))
    assert torch.equal(sequences[:, layout.word_positions], clips.game_action_word + coder.num_codes)


def test_frames_are_encoded_once_a_tokenizer_and_precision(archive, num_encodings):
    layout = TokenLayout(tokenizer(0).tokens_per_frame)

    def sequences(seed, dtype=None):
        # As a new process would: from the files.
        gameplay = TokenizedGameplay(FrameArchive(archive.folder, archive.clip_filter), tokenizer(seed), layout, dtype)
        return gameplay.sequences(gameplay.starts)

    first = sequences(seed=0)
    assert torch.equal(sequences(seed=0), first)
    assert len(num_encodings) == 1
    other = sequences(seed=1)
    assert len(num_encodings) == 2 and not torch.equal(other, first)
    sequences(seed=0, dtype=torch.bfloat16)
    assert len(num_encodings) == 3
    assert torch.equal(sequences(seed=0), first) and torch.equal(sequences(seed=1), other)
    assert len(num_encodings) == 3


def test_a_killed_encoding_is_made_again(archive, num_encodings):
    layout = TokenLayout(tokenizer(0).tokens_per_frame)
    TokenizedGameplay(archive, tokenizer(0), layout)
    (codes,) = archive.folder.glob("codes-*.npy")
    codes.rename(codes.with_suffix(".part"))  # what is left where writing was cut off
    TokenizedGameplay(archive, tokenizer(0), layout)
    assert len(num_encodings) == 2 and codes.is_file()


def test_a_tokenizer_without_ids_is_refused(archive, num_encodings):
    latents = KLTokenizer(KLConfig(FRAME_SIZE, ch=8, ch_mult=(1, 1), norm_num_groups=1))
    with pytest.raises(ValueError, match="a KLTokenizer makes latents, no tokens; give a VQ tokenizer"):
        TokenizedGameplay(archive, latents, TokenLayout(8))
    assert not num_encodings
