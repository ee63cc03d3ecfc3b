"""A student's pipeline: its evaluations, its refusals, and that it loads wherever a diffusers pipeline does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genflow.cli import main
from genflow.errors import InputError
from genflow.images import read_metadata
from genflow.models.unet import LeanUNet2DModel
from genflow.pipelines import ImagePipeline, OneStepPipeline
from genflow.schedulers import OneStepScheduler

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {1: [1.0], 2: [1.0, 0.5]}


def student(levels: list[float], num_classes: int | None = 3) -> OneStepPipeline:
    torch.manual_seed(0)
    network = LeanUNet2DModel(
        sample_size=8, num_classes=num_classes, block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=16
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    names = ["cat", "dog", "owl"] if num_classes else None
    return OneStepPipeline(network, OneStepScheduler(student_times=levels), class_names=names)


@pytest.fixture(scope="module", params=LEVELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students") / f"levels-{request.param}"
    student(LEVELS[request.param]).save_pretrained(folder)
    return folder


def levels_of(folder: Path) -> list[float]:
    return LEVELS[int(folder.name[-1])]


def test_one_evaluation_a_level(folder: Path) -> None:
    pipeline = OneStepPipeline.from_pretrained(folder)
    timesteps = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: timesteps.append(inputs[1].tolist()))
    pipeline.set_progress_bar_config(disable=True)
    pipeline(class_labels=[0, 1])
    assert timesteps == [[1000 * t] * 2 for t in levels_of(folder)]
    with pytest.raises(InputError, match="trained for"):
        pipeline(class_labels=[0], num_inference_steps=3)


def test_one_step_is_the_networks_x0() -> None:
    pipeline = student([1.0])
    noise = torch.randn(2, 1, 8, 8)
    images = pipeline(class_labels=[0, 2], latents=noise, output_type="latent").images
    with torch.no_grad():
        output = pipeline.unet(noise, torch.tensor(1000.0), torch.tensor([0, 2])).sample
    torch.testing.assert_close(images, noise - output)


def test_other_pipelines_load_it_and_make_the_same_images(folder: Path, tmp_path: Path) -> None:
    mine, plain = OneStepPipeline.from_pretrained(folder), ImagePipeline.from_pretrained(folder)
    arguments = {"class_labels": [0, 1, 2], "output_type": "pt"}
    expected = mine(generator=[torch.Generator().manual_seed(s) for s in range(3)], **arguments).images
    images = plain(generator=[torch.Generator().manual_seed(s) for s in range(3)], **arguments).images
    assert torch.equal(images, expected)
    alone = mine(class_labels=[1], generator=[torch.Generator().manual_seed(1)], output_type="pt").images
    torch.testing.assert_close(alone, expected[1:2], rtol=1e-5, atol=1e-5)
    mine.save_pretrained(tmp_path / "again")
    again = OneStepPipeline.from_pretrained(tmp_path / "again")
    assert again.config.default_steps == len(levels_of(folder))


OURS = """
from genflow.pipelines import OneStepPipeline
pipe = OneStepPipeline.from_pretrained(sys.argv[1])
"""
CUSTOM = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[2], trust_remote_code=True)
"""


@pytest.mark.parametrize("code", [OURS, CUSTOM], ids=["ours", "custom_pipeline"])
def test_loads_in_a_fresh_process(code: str, start_python: Callable[..., Any], tmp_path: Path) -> None:
    student([1.0]).save_pretrained(tmp_path / "student")
    code = f"import sys\n{code}\nprint(type(pipe).__name__, pipe(class_labels=[1]).images[0].size)"
    done = start_python(code, tmp_path / "student", ROOT / "pipelines" / "one_step.py").wait()
    assert done.out == "OneStepPipeline (8, 8)\n", done.errors


@pytest.mark.parametrize(
    "arguments",
    [{"guidance_scale": 2.0}, {"guidance": "apg", "guidance_scale": 3.0}, {"guidance_scale": [1.0, 2.0]}],
)
def test_guidance_is_refused(arguments: dict) -> None:
    with pytest.raises(InputError, match="guidance"):
        student([1.0])(class_labels=[0, 1], **arguments)


def test_what_else_is_refused() -> None:
    pipeline = student([1.0])
    with pytest.raises(InputError, match="class_labels: None; a student knows no null class; allowed: 0 to 2"):
        pipeline()
    with pytest.raises(InputError, match="default_guidance_scale"):
        OneStepPipeline(pipeline.unet, pipeline.scheduler, default_guidance_scale=1.5)
    assert len(student([1.0], None)(batch_size=2).images) == 2
    assert len(pipeline(class_labels=["owl", "cat"], guidance_scale=1.0).images) == 2


def generate(*arguments: str) -> int:
    return main.run(["generate", *arguments])


def test_generate_and_make_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert generate("--model", str(folder), "--seeds", "0-3", "--out", str(out)) == 0
    record = read_metadata(out / "000002.png")
    assert (record["scheduler"], record["steps"]) == ("one-step", len(levels_of(folder)))
    assert record["class_name"] == "owl"
    assert generate("--like", str(out / "000002.png"), "--exact", "--out", str(again)) == 0
    assert generate("--model", str(folder), "--seeds", "0", "--guidance-scale", "2", "--out", str(again)) == 2
    assert "its teacher's built in" in capsys.readouterr().err
    assert generate("--model", str(folder), "--seeds", "0", "--steps", "3", "--out", str(again)) == 2
    assert "this student was trained for" in capsys.readouterr().err
