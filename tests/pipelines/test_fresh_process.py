"""A saved pipeline loads in a process that has imported nothing of genflow's networks and schedulers yet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

OURS = """
from genflow.pipelines import ImagePipeline
pipe = ImagePipeline.from_pretrained(sys.argv[1])
"""
CUSTOM = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[2], trust_remote_code=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from genflow.models.unet import LeanUNet2DModel
    from genflow.pipelines import ImagePipeline
    from genflow.schedulers import RectifiedFlowScheduler

    torch.manual_seed(0)
    network = LeanUNet2DModel(
        sample_size=8, num_classes=3, block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=16
    )
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    ImagePipeline(network, RectifiedFlowScheduler()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("code", [OURS, CUSTOM], ids=["ours", "custom_pipeline"])
def test_loads(code: str, folder: Path, start_python: Callable[..., Any]) -> None:
    code = f"import sys\n{code}\nprint(pipe(class_labels=[1], num_inference_steps=1).images[0].size)"
    done = start_python(code, folder, ROOT / "pipelines" / "image.py").wait()
    assert done.out == "(8, 8)\n", done.errors
