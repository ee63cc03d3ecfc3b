"""Teachers for distillation: one whose flow is known, and tiny networks with random weights on every kind of path."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genflow.models import LeanUNet2DModel
from genflow.pipelines import ImagePipeline
from genflow.schedulers import RectifiedFlowScheduler

MEANS = (-0.4, 0.1, 0.6)
STD = 0.5


@pytest.fixture(scope="session")
def closed_form() -> Any:
    """The module ``closed_form.py``."""
    name = "genflow_closed_form"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("closed_form.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def gaussian_teacher(closed_form: Any, tmp_path: Path) -> Path:
    """A saved pipeline whose ODE carries noise z of class c to ``MEANS[c] + STD z``."""
    network = closed_form.GaussianFlow2DModel(4, 1, STD, MEANS, len(MEANS))
    ImagePipeline(network, RectifiedFlowScheduler(solver="rk4"), default_steps=16).save_pretrained(tmp_path / "gauss")
    return tmp_path / "gauss"


@pytest.fixture
def make_teacher(tmp_path: Path) -> Callable[..., Path]:
    """``(name, scheduler, **options) -> folder`` of a tiny U-Net with random weights and three classes."""

    def make(name: str = "tiny", scheduler: Any = None, classes: int | None = 3, **options: Any) -> Path:
        torch.manual_seed(0)
        network = LeanUNet2DModel(
            sample_size=8, in_channels=1, block_out_channels=(16, 16), layers_per_block=1, attention_head_dim=16,
            num_classes=classes,
        )  # fmt: skip
        for parameter in network.parameters():  # its last layer begins at zero
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        scheduler = RectifiedFlowScheduler(solver="heun") if scheduler is None else scheduler
        options = {"default_steps": 8, **options}
        ImagePipeline(network, scheduler, **options).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
