"""The maker of the shipped model, on an untrained network and with its training and scoring stood in for."""

import json

import numpy as np
import torch

from genflow.evaluate import shipped_model
from genflow.models import LeanUNet2DModel
from genflow.pipelines import ImagePipeline
from genflow.schedulers import RectifiedFlowScheduler


def tiny_pipeline():
    network = LeanUNet2DModel(num_classes=10, block_out_channels=(16,), layers_per_block=1, attention_levels=())
    names = list("abcdefghij")
    return ImagePipeline(network, RectifiedFlowScheduler(), class_names=names, default_steps=2)


def test_samples_depend_on_their_seeds_alone(tmp_path, monkeypatch):
    shipped_model.sample_to_file(tiny_pipeline(), 13, tmp_path / "a.npz")
    monkeypatch.setattr(shipped_model, "_BATCH", 5)
    shipped_model.sample_to_file(tiny_pipeline(), 13, tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a["arr_0"].shape == (13, 28, 28, 1)
        assert a["labels"].tolist() == [seed % 10 for seed in range(13)]
        assert np.array_equal(a["arr_0"], b["arr_0"])


def test_packs_scores_and_describes(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    row = {"step": 5, "images": 640, "loss": 0.5, "seconds": 60.0, "cpu_seconds": 59.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(run / "pipeline")
    monkeypatch.setattr("genflow.training.train", lambda name, out: run / "pipeline")
    monkeypatch.setattr(shipped_model, "evaluate", lambda *a, **k: {"metrics": {"fd": 1.25, "precision": 0.5}})
    shipped_model.main(run, count=3, out=tmp_path / "asset")
    card = (tmp_path / "asset" / "card.md").read_text(encoding="utf-8")
    for words in (
        "640 images seen",
        "python -m genflow.evaluate.shipped_model",
        "| default settings | 1.2500 | 0.5000 |",
    ):
        assert words in card
    assert (tmp_path / "asset" / "samples.png").is_file()
    packed = ImagePipeline.from_pretrained(tmp_path / "asset")
    assert packed.unet.dtype == torch.float32
    size = (tmp_path / "asset" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 2.2 * sum(p.numel() for p in pipeline.unet.parameters())
