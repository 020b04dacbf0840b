"""The KL tokenizer: equality with LIVE's and diffusers' autoencoders, published sizes, scaled latents."""

import copy
import re

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from rlir_env.checkpoints import load_strict
from rlir_env.tokenizers import KLConfig, KLTokenizer, Moments

# Levels of different widths, so that both halves have shortcuts, and a scale that is not 1.
TINY = KLConfig((16, 24), ch=8, ch_mult=(1, 2, 3), num_res_blocks=2, embed_dim=5, norm_num_groups=4, scale_factor=0.5)


def tiny_tokenizer() -> KLTokenizer:
    torch.manual_seed(0)
    return KLTokenizer(TINY)


@pytest.fixture(scope="module")
def fixture(fixtures_dir):
    return torch.load(fixtures_dir / "kl_vae.pt", weights_only=True)


def test_published_files_say_their_sizes(fixture, tmp_path):
    frame_size, scale = tuple(fixture["inputs"]["image"].shape[-2:]), fixture["config"]["scale_factor"]
    for prefix, beside in (("", {}), ("tokenizer.", {"model.x_embedder.proj.weight": torch.ones(1)})):
        weights = {prefix + key: tensor for key, tensor in fixture["state_dict"].items()}
        torch.save({"state_dict": weights | beside}, tmp_path / "vae-kl16.ckpt")
        tokenizer = KLTokenizer.from_pretrained(tmp_path / "vae-kl16.ckpt", frame_size, scale_factor=scale)
        for name in ("ch", "ch_mult", "num_res_blocks", "embed_dim"):
            expected = fixture["config"][name]
            assert getattr(tokenizer.config, name) == (tuple(expected) if name == "ch_mult" else expected)
        decoded = tokenizer.decode(fixture["outputs"]["latent"])
        expected = (fixture["outputs"]["decoded_sample"].clamp(-1, 1) + 1) / 2
        torch.testing.assert_close(decoded, expected, atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def published(fixture):
    config = fixture["config"]
    sizes = {name: config[name] for name in ("ch", "ch_mult", "num_res_blocks", "embed_dim", "scale_factor")}
    tokenizer = KLTokenizer(KLConfig(tuple(fixture["inputs"]["image"].shape[-2:]), **sizes))
    load_strict(tokenizer, fixture["state_dict"])
    return tokenizer


@torch.no_grad()
def test_published_outputs(fixture, published):
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    frames, scale = (inputs["image"] + 1) / 2, published.config.scale_factor

    def assert_near(actual, expected):
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)

    moments = published.moments(frames)
    assert_near(torch.cat(moments, dim=1), outputs["moments"])
    assert_near(published.encode(frames), scale * outputs["mean"])
    assert_near(scale * (moments.mean + (moments.log_variance / 2).exp() * inputs["eps"]), outputs["latent"])
    exact = copy.deepcopy(published).double()  # in float32, convolutions of two CPUs differ by more than the tolerance
    for latent, images in ((outputs["latent"], "decoded_sample"), (scale * outputs["mean"], "decoded_mean")):
        assert_near(exact.decoder(exact.post_quant_conv(latent.double() / scale)), outputs[images].double())
        assert_near(published.decode(latent), ((outputs[images] + 1) / 2).clamp(0, 1))


def test_published_sizes():
    with torch.device("meta"):
        tokenizer = KLTokenizer(KLConfig())
    shapes = {key: tuple(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
    # diffusion_grpo.md, section 1.1: 312 tensors of 265.82 MB in float32.
    assert len(shapes) == 312 and sum(p.numel() for p in tokenizer.parameters()) == 66_456_019
    assert tokenizer.latent_shape == (16, 14, 24)
    assert shapes["encoder.conv_out.weight"] == (32, 512, 3, 3) and shapes["decoder.conv_in.weight"] == (512, 16, 3, 3)
    assert shapes["quant_conv.weight"] == (32, 32, 1, 1) and shapes["post_quant_conv.weight"] == (16, 16, 1, 1)
    assert {key.split(".block")[0] for key in shapes if "encoder" in key and "shortcut" in key} == {
        "encoder.down.2",
        "encoder.down.4",
    }


def as_diffusers_key(key: str) -> str:
    """Our key, LDM's, as diffusers' AutoencoderKL has it; there the decoder's levels count from the lowest."""
    last = len(TINY.ch_mult) - 1
    key = re.sub(r"up\.(\d)\.", lambda match: f"up_blocks.{last - int(match[1])}.", key)
    for pattern, replacement in (
        *((r"\bdown\.", "down_blocks."), (r"\bblock\.", "resnets."), (r"\battn\.", "attentions.")),
        *(
            (r"\b(up|down)sample\.", r"\1samplers.0."),
            ("nin_shortcut", "conv_shortcut"),
            (r"\bnorm_out", "conv_norm_out"),
        ),
        *((r"\bmid\.block_1", "mid_block.resnets.0"), (r"\bmid\.block_2", "mid_block.resnets.1")),
        *((r"\bmid\.attn_1", "mid_block.attentions.0"), (r"(attentions\.\d)\.norm\b", r"\1.group_norm")),
        *((r"(attentions\.\d)\.([qkv])\b", r"\1.to_\2"), (r"(attentions\.\d)\.proj_out", r"\1.to_out.0")),
    ):
        key = re.sub(pattern, replacement, key)
    return key


@torch.no_grad()
def test_equals_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="the independent implementation")
    tokenizer = tiny_tokenizer()
    levels = len(TINY.ch_mult)
    model = diffusers.AutoencoderKL(
        block_out_channels=TINY.widths[1:],
        down_block_types=("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=TINY.num_res_blocks,
        latent_channels=TINY.embed_dim,
        norm_num_groups=TINY.norm_num_groups,
    ).eval()
    weights = {as_diffusers_key(key): tensor for key, tensor in tokenizer.state_dict().items()}
    # Its attention has linear layers where LDM has 1x1 convolutions.
    weights = {key: x.flatten(1) if ".to_" in key and x.ndim == 4 else x for key, x in weights.items()}
    model.load_state_dict(weights, strict=True)
    frames = torch.rand(3, 3, 16, 24)
    posterior = model.encode(2 * frames - 1).latent_dist
    moments = tokenizer.moments(frames)
    torch.testing.assert_close(moments.mean, posterior.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(moments.log_variance, posterior.logvar, atol=1e-5, rtol=0)
    torch.testing.assert_close(moments.kl_divergence(), posterior.kl(), atol=1e-3, rtol=0)
    images = (model.decode(posterior.mean).sample + 1) / 2
    torch.testing.assert_close(tokenizer(frames).reconstruction, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ch_mult": ()}, "ch_mult=.*at least one"),
        ({"norm_num_groups": 5}, "must divide all widths"),
        ({"frame_size": [40, 60]}, r"frame_size \(40, 60\) must be a multiple of the stride 16"),
        ({"scale_factor": 0.0}, "scale_factor=.*positive"),
    ],
)
def test_wrong_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        KLConfig(**config)


def test_leading_dimensions_ranges_and_bytes():
    tokenizer = tiny_tokenizer()
    frames = torch.randint(0, 256, (2, 3, 3, 16, 24), dtype=torch.uint8)
    latents = tokenizer.encode(frames)
    assert latents.shape == (2, 3, 5, 4, 6) and latents.dtype == torch.float32  # a stride of 4
    assert tokenizer.latent_shape == tokenizer.code_shape == (5, 4, 6) and not latents.requires_grad
    assert torch.equal(tokenizer.encode(frames.float() / 255), latents)  # no noise: the mean
    torch.testing.assert_close(tokenizer.encode(frames[1, 2]), latents[1, 2])
    decoded = tokenizer.decode(latents)
    assert decoded.shape == frames.shape and decoded.dtype == torch.float32 and not decoded.requires_grad
    assert decoded.min() >= 0 and decoded.max() <= 1
    channels_last = latents.movedim(2, -1).contiguous().movedim(-1, 2)
    torch.testing.assert_close(tokenizer.decode(channels_last), decoded)
    torch.testing.assert_close(tokenizer.decode(latents.half()), decoded, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="resize them first"):
        tokenizer.encode(frames[..., :20])
    with pytest.raises(ValueError, match="5 x 4 x 6 codes"):
        tokenizer.decode(latents.flatten(2))


def test_samples_are_draws_from_the_posterior():
    tokenizer = tiny_tokenizer()
    frames = torch.rand(2, 3, 3, 16, 24)
    sample = tokenizer.sample_latents(frames, torch.Generator().manual_seed(1))
    noise = torch.randn(6, 5, 4, 6, generator=torch.Generator().manual_seed(1)).view(2, 3, 5, 4, 6)
    # Scaled by .5 as the mean is: what is left is .5 * deviation * noise.
    deviation = (tokenizer.moments(frames.flatten(0, 1)).log_variance / 2).exp().view_as(noise)
    torch.testing.assert_close(sample - tokenizer.encode(frames), 0.5 * deviation * noise, atol=1e-6, rtol=0)
    assert not sample.requires_grad


def test_the_divergence_is_the_closed_form():
    mean, log_variance = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).sum((1, 2, 3))
    torch.testing.assert_close(Moments(mean, log_variance).kl_divergence(), expected)


def test_gradients_reach_both_moments():
    tokenizer = tiny_tokenizer()
    frames = torch.rand(2, 3, 16, 24)
    output = tokenizer(frames, torch.Generator().manual_seed(0))
    output.reconstruction.square().mean().backward(retain_graph=True)
    mean_gradient, variance_gradient = tokenizer.quant_conv.bias.grad.chunk(2)
    assert mean_gradient.abs().min() > 0 and variance_gradient.abs().min() > 0
    tokenizer.zero_grad()
    output.kl_divergence.mean().backward()
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0
    assert tokenizer.decoder.conv_in.weight.grad is None
    # What is decoded is what is returned, and without a generator it is the mean.
    torch.testing.assert_close(output.reconstruction.clamp(0, 1), tokenizer.decode(output.latents), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokenizer(frames).latents, tokenizer.encode(frames))


def test_a_fitted_scale_changes_latents_but_no_frame():
    tokenizer = tiny_tokenizer()
    frames = torch.rand(4, 2, 3, 16, 24)
    before = tokenizer.encode(frames)
    decoded = tokenizer.decode(before)
    weights = {key: tensor.clone() for key, tensor in tokenizer.state_dict().items()}
    tokenizer.fit_scale(frames)
    after = tokenizer.encode(frames)
    assert after.std().item() == pytest.approx(1, abs=1e-5)
    # Latents were scaled by .5, and their spread tells by how much more they had to be.
    assert tokenizer.config.scale_factor == pytest.approx(0.5 / before.std().item(), rel=1e-5)
    torch.testing.assert_close(after, before / before.std())
    torch.testing.assert_close(tokenizer.decode(after), decoded, atol=1e-5, rtol=0)
    load_strict(tokenizer, weights)  # the scale is none of the weights
    assert f"scale_factor={tokenizer.config.scale_factor}" in repr(tokenizer)  # caches of latents are named by it
    with pytest.raises(ValueError, match="train the tokenizer first"):
        torch.nn.init.zeros_(tokenizer.quant_conv.weight)
        torch.nn.init.zeros_(tokenizer.quant_conv.bias)
        tokenizer.fit_scale(frames)


def test_pre_training_learns():
    """Flat frames of 12 colours: the error of what the means decode to falls tenfold, whatever the noise."""
    torch.manual_seed(0)
    tokenizer = KLTokenizer(KLConfig((4, 4), 8, (1, 2), 1, 4, norm_num_groups=1))
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(12, 3, 1, 1).expand(-1, -1, 4, 4)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)

    @torch.no_grad()
    def error() -> float:
        return (tokenizer(colours).reconstruction - colours).square().mean().item()

    first = error()
    for _ in range(150):
        output = tokenizer(colours, generator)
        loss = (output.reconstruction - colours).square().mean() + 1e-5 * output.kl_divergence.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert error() < first / 10
