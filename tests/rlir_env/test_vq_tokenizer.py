"""The VQ tokenizer: equality with diffusers, published shapes, and a codebook that stays alive."""

import json

import pytest
import torch

from rlir_env.checkpoints import load_strict
from rlir_env.tokenizers import CodebookUpdater, Tokenizer, VQConfig, VQTokenizer, code_perplexity
from rlir_env.tokenizers.vq import vq_weights

TINY = {
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 2,
    "latent_channels": 6,
    "vq_embed_dim": 5,
    "num_vq_embeddings": 64,
    "norm_num_groups": 4,
}


def tiny_tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    tokenizer = VQTokenizer.from_config({**TINY, "frame_size": (16, 24)})
    # Codes near the small latents of an untrained encoder, so that many of them are in use.
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight, std=0.3)
    return tokenizer


def as_diffusers(**sizes):
    diffusers = pytest.importorskip("diffusers", reason="the independent implementation")
    levels = len(sizes["block_out_channels"])
    return diffusers.VQModel(
        **sizes,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    ).eval()


@pytest.fixture(scope="module")
def diffusers_model():
    return as_diffusers(**TINY)


def check_equality(tokenizer: VQTokenizer, model: torch.nn.Module, frames: torch.Tensor, atol: float = 1e-5) -> None:
    """Equal ids and pixels on the same weights, of which both know all names."""
    model.load_state_dict(tokenizer.state_dict(), strict=True)
    load_strict(tokenizer, model.state_dict())
    with torch.no_grad():
        latents = model.encode(2 * frames - 1).latents
        ids = model.quantize(latents)[2][2].view(len(frames), -1)
        images = (model.decode(latents).sample + 1) / 2
    codes = tokenizer.encode(frames)
    assert len(codes.unique()) > 5  # or equal ids would say nothing
    assert torch.equal(codes, ids)
    torch.testing.assert_close(tokenizer.decode(codes), images.clamp(0, 1), atol=atol, rtol=0)


def test_equals_diffusers(diffusers_model):
    check_equality(tiny_tokenizer(), diffusers_model, torch.rand(4, 3, 16, 24))


@pytest.mark.slow
def test_equals_diffusers_at_full_width():
    """MineWorld's tokenizer, a frame of 224x384 pixels that is smooth in parts, so that codes differ."""
    torch.manual_seed(0)
    tokenizer = VQTokenizer(VQConfig()).eval()
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 146_244_675
    names = ("block_out_channels", "layers_per_block", "latent_channels", "num_vq_embeddings", "norm_num_groups")
    coarse = torch.rand(1, 3, 14, 24)
    frame = torch.nn.functional.interpolate(coarse, (224, 384)) * torch.rand(1, 3, 224, 384).sqrt()
    with torch.no_grad():  # codes where the latents are
        latents = tokenizer.quant_conv(tokenizer.encoder(2 * frame - 1))
        codebook = tokenizer.quantize.embedding.weight
        codebook.copy_(latents.mean() + latents.std() * torch.randn_like(codebook))
    check_equality(
        tokenizer, as_diffusers(**{name: getattr(tokenizer.config, name) for name in names}), frame, atol=1e-4
    )


def test_reads_the_config_of_diffusers(diffusers_model):
    config = {**diffusers_model.config, "_class_name": "VQModel"}
    assert VQConfig.from_dict({**config, "frame_size": [16, 24]}) == VQConfig((16, 24), (8, 16, 24), 2, 6, 64, 5, 4)


@pytest.mark.parametrize("prefix", ["", "model.", "tokenizer.model."])
def test_published_files(diffusers_model, tmp_path, prefix):
    weights = {prefix + key: tensor for key, tensor in tiny_tokenizer().state_dict().items()}
    torch.save({"state_dict": weights | {"loss.discriminator.weight": torch.ones(1)}}, tmp_path / "vae.ckpt")
    config = {**diffusers_model.config, "frame_size": [16, 24]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    frames = torch.rand(2, 3, 16, 24)
    for given in (config, tmp_path / "config.json"):
        tokenizer = VQTokenizer.from_pretrained(given, tmp_path / "vae.ckpt")
        assert torch.equal(tokenizer.encode(frames), tiny_tokenizer().encode(frames))
    sizes = VQConfig.from_weights(vq_weights(weights), frame_size=(16, 24), norm_num_groups=4)
    assert VQTokenizer(sizes).state_dict().keys() == tokenizer.state_dict().keys()
    assert sizes.code_dim == tokenizer.config.code_dim and sizes.num_vq_embeddings == tokenizer.num_codes
    torch.save({**weights, "lpips.weight": torch.ones(1)}, tmp_path / "vae.ckpt")
    if prefix:  # a file of a training: what stands outside is another's
        with pytest.warns(UserWarning, match=f"outside of {prefix} is left out: lpips"):
            VQTokenizer.from_pretrained(config, tmp_path / "vae.ckpt")
    else:
        with pytest.raises(ValueError, match="belong to nothing that is known: lpips.weight"):
            VQTokenizer.from_pretrained(config, tmp_path / "vae.ckpt")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mid_block_add_attention": True}, "mid_block_add_attention=False only"),
        ({"num_embeddings": 8}, "unknown fields"),
        ({"norm_num_groups": 5}, "must divide"),
        ({"frame_size": (18, 24)}, "multiple of the stride 4"),
    ],
)
def test_wrong_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        VQConfig.from_dict({**TINY, "frame_size": (16, 24), **config})


def test_published_shapes(fixtures_dir):
    path = fixtures_dir.parent / "reference" / "checkpoint_shapes.json"
    if not path.is_file():
        pytest.skip(f"no published shapes at {path}")
    with torch.device("meta"):
        tokenizer = VQTokenizer(VQConfig())
    shapes = {key: list(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
    assert shapes == json.loads(path.read_text())["vae_amused_config__unprefixed"]
    assert tokenizer.grid_size == (14, 24) and tokenizer.tokens_per_frame == 336


def test_leading_dimensions_ranges_and_bytes():
    tokenizer = tiny_tokenizer()
    frames = torch.randint(0, 256, (2, 3, 3, 16, 24), dtype=torch.uint8)
    codes = tokenizer.encode(frames)
    assert codes.shape == (2, 3, 24) and codes.dtype == torch.int64  # (16 / 4) * (24 / 4) = 24
    assert torch.equal(tokenizer.encode(frames.float() / 255), codes)
    assert torch.equal(tokenizer.encode(frames[1, 2]), codes[1, 2])
    decoded = tokenizer.decode(codes.int())
    assert decoded.shape == frames.shape and not decoded.requires_grad
    assert decoded.min() >= 0 and decoded.max() <= 1
    with pytest.raises(ValueError, match="resize them first"):
        tokenizer.encode(frames[..., :20])
    with pytest.raises(ValueError, match="24 codes"):
        tokenizer.decode(codes[..., :5])


class CountingTokenizer(Tokenizer):
    """Remembers how many frames it was given at a time; a frame is its first pixel."""

    num_codes, grid_size = 256, (1, 1)

    def __init__(self, frame_size):
        super().__init__()
        self.frame_size, self.chunks = frame_size, []

    def encode_frames(self, frames):
        self.chunks.append(len(frames))
        return (frames[:, 0, 0, :1] * 255).round().long()

    def decode_codes(self, codes):
        self.chunks.append(len(codes))
        return (codes / 255)[:, :, None, None].expand(-1, 3, *self.frame_size)


@pytest.mark.parametrize(
    ("frame_size", "chunks"),
    [
        ((40, 56), [256, 4]),  # the preset
        ((80, 112), [64] * 4 + [4]),  # four times the pixels
        ((224, 384), [6] * 43 + [2]),  # MineWorld: 573,440 pixels a chunk are 6.7 frames
    ],
)
def test_chunks_are_counted_in_pixels(frame_size, chunks):
    tokenizer = CountingTokenizer(frame_size)
    codes = torch.arange(260).reshape(2, 130, 1) % 256
    frames = codes[..., None, None].byte().expand(-1, -1, 3, *frame_size)
    assert torch.equal(tokenizer.encode(frames), codes)
    assert tokenizer.chunks == chunks
    tokenizer.chunks.clear()
    assert tokenizer.decode(codes[:1, :9]).shape == (1, 9, 3, *frame_size)
    assert tokenizer.chunks == ([9] if chunks[0] > 9 else [6, 3])


def test_gradients_pass_straight_through_the_codes():
    tokenizer = tiny_tokenizer()
    output = tokenizer(torch.rand(2, 3, 16, 24))
    output.reconstruction.square().mean().backward(retain_graph=True)
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0
    # In the forward pass the decoder sees the codes themselves.
    decoded = tokenizer.decode(output.codes)
    torch.testing.assert_close(output.reconstruction.clamp(0, 1), decoded, atol=1e-5, rtol=0)
    embedding = tokenizer.quantize.embedding.weight
    assert embedding.grad is None
    output.codebook_loss.backward(retain_graph=True)
    assert embedding.grad.abs().sum() > 0
    tokenizer.zero_grad()
    output.commitment_loss.backward()
    assert embedding.grad is None and tokenizer.quant_conv.weight.grad.abs().sum() > 0


def test_codes_become_moving_averages():
    codebook = torch.nn.Embedding(2, 1)
    updater = CodebookUpdater(codebook, decay=0.5)
    generator = torch.Generator().manual_seed(0)
    updater.update(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), generator)
    # The first update puts both codes, each counted once (2 latents / 2 codes), on 1 and 3.
    assert sorted(codebook.weight.flatten().tolist()) == [1.0, 3.0]
    low, high = codebook.weight.flatten().argsort().tolist()
    updater.update(torch.tensor([[5.0], [3.0]]), torch.tensor([low, high]), generator)
    # count .5 * 1 + .5 * 1 = 1; total .5 * 1 + .5 * 5 = 3: the code moves half way from 1 to 5.
    assert codebook.weight.flatten()[[low, high]].tolist() == [3.0, 3.0]
    assert updater.num_restarted == 0 and not codebook.weight.requires_grad


def test_unused_codes_restart_where_the_latents_are():
    """Three clusters, four codes, all latents near one code at first: every cluster gets a code."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([[-5.0], [0.0], [5.0]])
    codebook = torch.nn.Embedding(4, 1)
    updater = CodebookUpdater(codebook, decay=0.9)
    num_restarted = 0
    for _ in range(300):
        noise = 0.1 * torch.randn(60, 1, generator=generator)
        latents = centres.repeat(20, 1) + noise
        codes = (latents - codebook.weight.T).abs().argmin(1)
        updater.update(latents, codes, generator)
        num_restarted += updater.num_restarted
    assert num_restarted >= 4
    assert ((centres - codebook.weight.T).abs().min(1).values < 0.2).all()


def test_updater_resumes_exactly():
    def train(updater, codebook, generator, num_steps):
        for _ in range(num_steps):
            latents = torch.randn(20, 2, generator=generator)
            codes = torch.cdist(latents, codebook.weight).argmin(1)
            updater.update(latents, codes, generator)
        return codebook.weight.clone()

    codebook, generator = torch.nn.Embedding(8, 2), torch.Generator().manual_seed(0)
    updater = CodebookUpdater(codebook)
    train(updater, codebook, generator, 5)
    saved = updater.state_dict(), codebook.state_dict(), generator.get_state()
    saved = {k: v.clone() for k, v in saved[0].items()}, codebook.weight.clone(), saved[2].clone()
    expected = train(updater, codebook, generator, 5)
    resumed_codebook, resumed_generator = torch.nn.Embedding(8, 2), torch.Generator()
    resumed = CodebookUpdater(resumed_codebook)
    resumed.load_state_dict(saved[0])
    resumed_codebook.weight.data.copy_(saved[1])
    resumed_generator.set_state(saved[2])
    assert torch.equal(train(resumed, resumed_codebook, resumed_generator, 5), expected)


def test_pre_training_learns_and_uses_the_codebook():
    """Flat frames of 12 colours: reconstruction improves tenfold and the codes do not collapse."""
    torch.manual_seed(0)
    config = {**TINY, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 1}
    tokenizer = VQTokenizer.from_config({**config, "frame_size": (4, 4)})
    updater = CodebookUpdater(tokenizer.quantize.embedding)
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(12, 3, 1, 1).expand(-1, -1, 4, 4)
    parameters = [p for p in tokenizer.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    errors = []
    for _ in range(150):
        output = tokenizer(colours)
        error = (output.reconstruction - colours).square().mean()
        (error + 0.25 * output.commitment_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        updater.update(output.latents, output.codes, generator)
        errors.append(error.item())
    assert errors[-1] < errors[0] / 10
    assert code_perplexity(tokenizer.encode(colours), tokenizer.num_codes) > 6


def test_code_perplexity():
    # Shares 1/2, 1/4, 1/4: entropy ln 2 / 2 + 2 * ln 4 / 4 = 1.5 ln 2, so 2 ** 1.5 codes.
    assert code_perplexity(torch.tensor([[0, 0], [1, 2]]), 8) == pytest.approx(2**1.5)
