"""Saving a pipeline and finding it again, and what is said when that fails."""

import json
import logging

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers import UNet2DModel

from genflow import assets
from genflow.errors import InputError
from genflow.pipelines import ImagePipeline, locate
from genflow.schedulers import RectifiedFlowScheduler


def network(**options):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=3, **options,
    ).eval()  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    pipe = ImagePipeline(
        network(), RectifiedFlowScheduler(shift=2.0, solver="heun"), class_names=["cat", "dog"], default_steps=3,
        default_guidance_scale=2.5, default_guidance_interval=[0.1, None],
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def image(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe("dog", generator=torch.Generator().manual_seed(0), output_type="pt").images


def test_round_trip(folder):
    pipe = ImagePipeline.from_pretrained(folder)
    assert pipe.config.class_names == ["cat", "dog"]
    assert pipe.config.default_steps == 3
    assert pipe.config.default_guidance_scale == 2.5
    assert pipe.config.default_guidance_interval == [0.1, None]
    assert pipe.vae is None
    assert pipe.null_label == 2
    assert isinstance(pipe.scheduler, RectifiedFlowScheduler)
    assert (pipe.scheduler.config.solver, pipe.scheduler.config.shift) == ("heun", 2.0)
    again = ImagePipeline.from_pretrained(str(folder))
    assert torch.equal(image(pipe), image(again))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["genflow.schedulers.rectified_flow", "RectifiedFlowScheduler"]
    assert not list(folder.rglob("*.bin"))


def test_loads_without_a_word(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="diffusers"):
        ImagePipeline.from_pretrained(folder)
    assert not caplog.records


def test_components_can_be_replaced_on_loading(folder):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = ImagePipeline.from_pretrained(folder, scheduler=scheduler, torch_dtype=torch.bfloat16)
    assert pipe.scheduler is scheduler
    assert pipe.unet.dtype == torch.bfloat16


def test_half_precision_files_load_in_single(folder):
    pipe = ImagePipeline.from_pretrained(folder)
    pipe.to(torch.float16).save_pretrained(folder)
    assert ImagePipeline.from_pretrained(folder).unet.dtype == torch.float32


def test_a_shipped_name(folder, monkeypatch):
    monkeypatch.setattr(assets, "models", lambda: ["tiny"])
    monkeypatch.setattr(assets, "path", lambda name: folder)
    assert ImagePipeline.from_pretrained("tiny").config.class_names == ["cat", "dog"]
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        ImagePipeline.from_pretrained("tyni")


def test_a_hub_id(folder, monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    pipe = ImagePipeline.from_pretrained("someone/model", revision="main")
    assert pipe.config.default_steps == 3
    assert (asked["name"], asked["revision"]) == ("someone/model", "main")
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["allow_patterns"])

    def no_network(name, **options):
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(InputError, match=r"someone/model .*no route to host") as caught:
        ImagePipeline.from_pretrained("someone/model")
    assert "\n" not in str(caught.value)


def test_diffusers_own_unconditional_pipeline(tmp_path):
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    pipe = ImagePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(num_inference_steps=2, batch_size=2).images) == 2


def test_dit_pipeline(tmp_path):
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipe = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())
    pipe.register_to_config(id2label={"0": "tench", "1": "goldfish, Carassius auratus"})
    pipe.save_pretrained(tmp_path)
    loaded = ImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert len(loaded([1, 0], guidance_scale=2.0, num_inference_steps=2).images) == 2
    assert loaded.null_label == 2
    loaded.save_pretrained(tmp_path / "ours")
    assert ImagePipeline.from_pretrained(tmp_path / "ours").null_label == 2


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def drop_key(path, key):
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))


DAMAGE = {
    "truncated weights": lambda folder: truncate(next(folder.glob("unet/*.safetensors"))),
    "empty weights": lambda folder: next(folder.glob("unet/*.safetensors")).write_bytes(b""),
    "no weights": lambda folder: next(folder.glob("unet/*.safetensors")).unlink(),
    "no index": lambda folder: (folder / "model_index.json").unlink(),
    "truncated index": lambda folder: truncate(folder / "model_index.json"),
    "an index that is a list": lambda folder: (folder / "model_index.json").write_text("[]"),
    "no network in the index": lambda folder: drop_key(folder / "model_index.json", "unet"),
    "truncated config": lambda folder: truncate(folder / "unet" / "config.json"),
    "no scheduler": lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
    "a scheduler's config out of range": lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text(
        '{"shift": -1.0, "flow_shift": -1.0}'
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_gives_one_line(folder, damage):
    DAMAGE[damage](folder)
    with pytest.raises(InputError) as caught:
        ImagePipeline.from_pretrained(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "a/b/c", "nowhere", "../x", ""])
def test_a_missing_folder(name):
    with pytest.raises(InputError, match="allowed"):
        locate(name)


def test_a_file_instead_of_a_folder(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match="is a file"):
        locate(path)
