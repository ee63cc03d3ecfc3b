"""Tiny saved pipelines of each kind that the command line runs, with random weights: 8x8 pixels, made in a moment."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from genflow.cli import main

Run = Callable[..., tuple[int, str, str]]


def _wake(network: nn.Module) -> nn.Module:
    """Give layers that start at zero some weight, so that images differ by class and by seed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


@pytest.fixture(scope="session")
def class_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """genflow's own pipeline with three named classes; 4 steps and guidance 1.5 by default."""
    from genflow.models.unet import LeanUNet2DModel
    from genflow.pipelines import ImagePipeline
    from genflow.schedulers import RectifiedFlowScheduler

    torch.manual_seed(0)
    network = LeanUNet2DModel(
        sample_size=8,
        num_classes=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=16,
        time_embed_dim=32,
    )
    pipeline = ImagePipeline(
        _wake(network),
        RectifiedFlowScheduler(),
        class_names=["cat", "dog", "owl"],
        default_steps=4,
        default_guidance_scale=1.5,
    )
    folder = tmp_path_factory.mktemp("models") / "classes"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """diffusers' unconditional DDPM pipeline."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("models") / "plain"
    DDPMPipeline(_wake(network), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dit_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """diffusers' DiT pipeline: latent, 1000 classes, of which two have names."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)
    names = {0: "tench, Tinca tinca", 1: "goldfish"}
    folder = tmp_path_factory.mktemp("models") / "dit"
    DiTPipeline(_wake(network), vae, DDIMScheduler(), id2label=names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline whose tokenizer spells."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    spelling = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (spelling / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (spelling / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(spelling / "vocab.json"), str(spelling / "merges.txt"), model_max_length=16)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, **sizes)
    network = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=_wake(network),
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("models") / "text"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def genflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``genflow("generate", ...) -> (status, stdout, stderr)``, run in this process in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
