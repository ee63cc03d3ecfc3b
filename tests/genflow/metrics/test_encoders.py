"""DINOv2, CLIP and other vision models of transformers, with tiny random weights, against their own forward pass."""

import builtins
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

from genflow.errors import InputError  # noqa: E402
from genflow.metrics import create_extractor  # noqa: E402

MEANS = {"dinov2": (0.485, 0.456, 0.406), "clip": (0.48145466, 0.4578275, 0.40821073), "vit": (0.5, 0.5, 0.5)}
STDS = {"dinov2": (0.229, 0.224, 0.225), "clip": (0.26862954, 0.26130258, 0.27577711), "vit": (0.5, 0.5, 0.5)}
SIZES = {"dinov2": 224, "clip": 32, "vit": 32}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Tiny models as ``save_pretrained`` writes them, and their networks."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    vision = {**SHAPE, "intermediate_size": 48, "image_size": 32, "patch_size": 8, "projection_dim": 12}
    text = {**SHAPE, "intermediate_size": 48, "vocab_size": 99, "projection_dim": 12, "bos_token_id": 1}
    text |= {"eos_token_id": 2, "pad_token_id": 0}
    models = {
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE, image_size=70, patch_size=14)),
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        ),
        "vision": transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision)),
        "vit": transformers.ViTModel(transformers.ViTConfig(**SHAPE, intermediate_size=48, image_size=32)),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
    processor = {"image_mean": MEANS["vit"], "image_std": STDS["vit"]}
    (root / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    return root


@pytest.fixture(autouse=True)
def _nothing_found(tmp_path, monkeypatch):
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GENFLOW_WEIGHTS", raising=False)


def picture(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_hand(folder: Path, kind: str, images: list[np.ndarray]) -> torch.Tensor:
    """What the model gives when it is called directly, on images resized by pillow and scaled as its authors do."""
    size = SIZES[kind]
    planes = [
        [np.asarray(Image.fromarray(i[:, :, c].astype(np.float32)).resize((size, size), 3)) for c in range(3)]
        for i in images
    ]
    pixels = torch.from_numpy(np.stack(planes)).clamp(0, 255) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEANS[kind], STDS[kind]))
    pixels = (pixels - mean) / std
    with torch.no_grad():
        if kind == "clip":
            model = transformers.CLIPModel.from_pretrained(folder)
            return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        if kind == "vit":
            return transformers.ViTModel.from_pretrained(folder)(pixel_values=pixels).pooler_output
        return transformers.Dinov2Model.from_pretrained(folder)(pixel_values=pixels).last_hidden_state[:, 0]


@pytest.mark.parametrize("kind", ["dinov2", "clip", "vit"])
def test_features_are_the_models_own(kind, folders):
    images = [picture(0), picture(1, 300, 20), picture(2)]
    wanted = by_hand(folders / kind, kind, images)
    ways = [create_extractor(folders / kind, batch_size=2)]
    if kind != "vit":
        ways.append(create_extractor(kind, weights=folders / kind, batch_size=2))
    for extractor in ways:
        features = extractor(torch.stack([extractor.prepare(image) for image in images]))
        assert features.values.shape == (3, extractor.dimensions) == tuple(wanted.shape)
        assert torch.allclose(features.values, wanted, atol=1e-4)
        assert features.logits is None
        described = extractor.describe()
        assert (described["features"], described["resize"], described["size"]) == (kind, "clean", SIZES[kind])
    assert len({extractor.sha256 for extractor in ways}) == 1


def test_the_vision_half_alone_is_enough(folders):
    assert create_extractor(folders / "vision").dimensions == 12


def test_a_model_is_found_where_it_is_put(folders, tmp_path, monkeypatch):
    shutil.copytree(folders / "dinov2", tmp_path / "cache" / "dinov2-small")
    found = create_extractor("dinov2:small")
    assert found.name == "dinov2:small"
    assert found.sha256 == create_extractor(folders / "dinov2").sha256
    (tmp_path / "cache").rename(tmp_path / "mine")
    monkeypatch.setenv("GENFLOW_WEIGHTS", str(tmp_path / "mine"))
    assert create_extractor("dinov2:small").sha256 == found.sha256


@pytest.mark.parametrize("reachable", [True, False])
def test_the_cache_is_asked_before_the_network_and_only_for_safetensors(reachable, monkeypatch, tmp_path):
    asked = []

    def from_pretrained(model, **options):
        asked.append((model, options))
        raise OSError("We couldn't connect to 'https://huggingface.co'.\nAnd more.")

    monkeypatch.setattr(transformers.Dinov2Model, "from_pretrained", from_pretrained)
    monkeypatch.setattr("genflow.metrics.encoders._reachable", lambda: reachable)
    with pytest.raises(InputError) as caught:
        create_extractor("dinov2")
    assert [model for model, _ in asked] == ["facebook/dinov2-large"] * len(asked)
    assert [options["local_files_only"] for _, options in asked] == ([True, False] if reachable else [True])
    assert all(o["use_safetensors"] is True and o["trust_remote_code"] is False for _, o in asked)
    home = tmp_path / "cache" / "dinov2-large"
    assert str(caught.value) == (
        "features: 'facebook/dinov2-large' cannot be loaded (We couldn't connect to 'https://huggingface.co'): "
        f"put its config.json and model.safetensors into {home}, or name their folder by --weights (weights=)"
    )


def test_transformers_missing_is_one_line(folders, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs transformers: pip install 'genflow\[text\]'"):
        create_extractor("clip", weights=folders / "clip")


def test_wrong_and_damaged_models_are_named(folders, tmp_path):
    with pytest.raises(InputError, match=r"has no 'vision_model.*not a CLIPVisionModelWithProjection"):
        create_extractor("clip", weights=folders / "dinov2")
    home = shutil.copytree(folders / "dinov2", tmp_path / "short")
    tensors = load_file(home / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name != "layernorm.bias"}
    save_file(kept, home / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"short has no 'layernorm\.bias' \(1 are missing\)"):
        create_extractor(home)
    (home / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="short' cannot be loaded") as caught:
        create_extractor(home)
    assert "\n" not in str(caught.value)
    (home / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not readable JSON"):
        create_extractor(home)


def test_another_model_must_say_how_it_is_scaled(folders, tmp_path):
    home = shutil.copytree(folders / "vit", tmp_path / "vit")
    (home / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    with pytest.raises(InputError, match="lacks image_mean or image_std"):
        create_extractor(home)
    (home / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"preprocessor_config\.json does not exist"):
        create_extractor(home)


def test_a_pickled_model_is_not_opened(folders, tmp_path):
    home = shutil.copytree(folders / "dinov2", tmp_path / "pickled")
    torch.save(load_file(home / "model.safetensors"), home / "pytorch_model.bin")
    (home / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors does not exist"):
        create_extractor(home)
    with pytest.raises(InputError, match=r"pickled' cannot be loaded \(.*safetensors"):
        create_extractor("dinov2", weights=home)
