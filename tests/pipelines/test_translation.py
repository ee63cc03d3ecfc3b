"""TranslationPipeline: saved and loaded, images in and out, labels, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.errors import InputError, NonFiniteError
from genflow.interpolants import EncoderDecoderInterpolant
from genflow.models import LeanUNet2DModel
from genflow.pipelines import ImagePipeline, TranslationPipeline

ROOT = Path(__file__).resolve().parents[2]


def network(channels: int = 1, outputs: int = 2, num_classes: int | None = None) -> LeanUNet2DModel:
    torch.manual_seed(0)
    made = LeanUNet2DModel(
        sample_size=8, in_channels=channels, out_channels=outputs, block_out_channels=(16,), layers_per_block=1,
        attention_levels=(), num_classes=num_classes, time_embed_dim=16,
    )  # fmt: skip
    for parameter in made.parameters():
        if not parameter.any():  # layers that start at zero, which would hide time and class
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def pipeline(channels: int = 1, outputs: int = 2, num_classes: int | None = None, **options) -> TranslationPipeline:
    made = TranslationPipeline(network(channels, outputs, num_classes), default_steps=3, **options)
    made.set_progress_bar_config(disable=True)
    return made


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_saved_and_loaded_to_the_bit(images: torch.Tensor, tmp_path: Path) -> None:
    made = pipeline(
        interpolant=EncoderDecoderInterpolant({"name": "sigmoid", "rate": 8.0}),
        sides=["boots", "shoes"],
        default_epsilon=0.3,
        default_solver="euler",
    )
    before = made(images, generator=seeds(0, 1, 2), output_type="latent").images
    made.save_pretrained(tmp_path / "saved")
    files = {path.suffix for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors"}
    loaded = TranslationPipeline.from_pretrained(tmp_path / "saved")
    after = loaded(images, generator=seeds(0, 1, 2), output_type="latent").images
    assert torch.equal(before, after)
    assert loaded.interpolant == EncoderDecoderInterpolant({"name": "sigmoid", "rate": 8.0})
    assert loaded.config.sides == ["boots", "shoes"]


@pytest.mark.parametrize("way", ["ours", "custom_pipeline"])
def test_loads_in_a_fresh_process(
    way: str, images: torch.Tensor, start_python: Callable[..., Any], tmp_path: Path
) -> None:
    made = pipeline()
    made.save_pretrained(tmp_path / "saved")
    np.save(tmp_path / "images.npy", images.permute(0, 2, 3, 1).numpy())
    load = {
        "ours": "from genflow.pipelines import TranslationPipeline as P; pipe = P.from_pretrained('saved')",
        "custom_pipeline": "from diffusers import DiffusionPipeline as P; pipe = P.from_pretrained('saved', "
        f"custom_pipeline={str(ROOT / 'pipelines' / 'translation.py')!r}, trust_remote_code=True)",
    }[way]
    code = (
        f"import numpy as np; {load}; out = pipe(np.load('images.npy'), direction='backward', output_type='np').images;"
        "np.save('out.npy', out)"
    )
    done = start_python(code).wait()
    assert done.status == 0, done.errors
    here = made(images, direction="backward", output_type="np").images
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), here, atol=1e-5)


def test_an_image_depends_on_itself_and_its_generator(images: torch.Tensor) -> None:
    made = pipeline()
    together = made(images, epsilon=0.5, generator=seeds(4, 5, 6), output_type="latent").images
    alone = made(images[1:2], epsilon=0.5, generator=seeds(5), output_type="latent").images
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)
    other = made(images[1:2], epsilon=0.5, generator=seeds(6), output_type="latent").images
    assert (alone - other).abs().max() > 0.01
    by_ode = [made(images[1:2], generator=seeds(n), output_type="latent").images for n in (5, 6)]
    assert torch.equal(*by_ode)


def test_images_of_every_kind_are_one(images: torch.Tensor) -> None:
    """PIL images, arrays, tensors, bytes and latents; and outputs of every kind."""
    made = pipeline()
    levels = (images * 255).round().to(torch.uint8)
    pil = [Image.fromarray(level[0].numpy()) for level in levels]
    wanted = made(latents=levels.float() / 127.5 - 1, output_type="latent").images
    array = levels.permute(0, 2, 3, 1).numpy()
    for given in (pil, levels, array, array / 255, levels.float() / 255):
        torch.testing.assert_close(made(given, output_type="latent").images, wanted, atol=1e-5, rtol=0)
    single = made(pil[0], output_type="latent").images
    torch.testing.assert_close(single, wanted[:1], atol=1e-5, rtol=0)
    pixels = made(levels, output_type="pt").images
    torch.testing.assert_close(pixels, wanted.clamp(-1, 1) / 2 + 0.5)
    assert made(levels, output_type="np").images.shape == (3, 8, 8, 1)
    assert [image.size for image in made(levels).images] == [(8, 8)] * 3
    (also,) = made(levels, output_type="pt", return_dict=False)
    assert torch.equal(also, pixels)


def test_resizes_only_when_told_to() -> None:
    made = pipeline()
    large = Image.new("RGB", (16, 12), (255, 0, 0))
    with pytest.raises(InputError, match="images: 3 channels of 16x12 pixels; allowed: 1 of 8x8, or resize=True"):
        made(large)
    got = made([large, Image.new("L", (8, 8), 76)], resize=True, output_type="latent").images
    torch.testing.assert_close(got[:1], got[1:], atol=1e-5, rtol=0)  # red is 76 in grey
    tensor = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 12, 16)
    torch.testing.assert_close(made(tensor, resize=True, output_type="latent").images, got[:1], atol=0.02, rtol=0)
    colour = pipeline(3, 6)
    grey = colour(torch.full((1, 1, 8, 8), 0.5), resize=True, output_type="latent").images
    same = colour(torch.full((1, 3, 8, 8), 0.5), output_type="latent").images
    assert torch.equal(grey, same)


def test_labels_by_the_names_of_the_side_they_come_from(images: torch.Tensor) -> None:
    made = pipeline(num_classes=2, class_names=["boot", "pullover"], source_class_names=["pullover", "shirt"])
    assert made.num_classes == 2

    def out(labels, **options) -> torch.Tensor:
        return made(images, class_labels=labels, output_type="latent", **options).images

    zero, one = out(0), out(1)
    assert not torch.equal(zero, one)
    assert torch.equal(out("pullover"), zero)
    assert torch.equal(out("pullover", direction="backward"), out(1, direction="backward"))
    assert torch.equal(out(["shirt", "boot", 1])[0], one[0])
    torch.testing.assert_close(out(torch.tensor([1, 0, 1]))[1], zero[1], atol=1e-5, rtol=0)
    for labels, message in (
        (None, "None; allowed: one of 2"),
        (2, "got 2"),
        ("bot", "'bot'"),
        ([0], "1; allowed: one"),
    ):
        with pytest.raises(InputError, match=f"class_labels: {message}"):
            out(labels)
    with pytest.raises(InputError, match="class_labels: the network is unconditional"):
        pipeline()(images, class_labels=0)


def test_a_callback_and_a_bar_see_every_step(images: torch.Tensor, capfd) -> None:
    made, seen = pipeline(), []
    made.set_progress_bar_config(disable=False)
    end = made(images, callback=lambda *state: seen.append(state), output_type="latent").images
    assert [step for step, *_ in seen] == [0, 1, 2]
    assert seen[-1][1] == 0.0
    assert torch.equal(seen[-1][2], end)
    assert "3/3" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "forwards"}, "direction: 'forwards' is not known.*'forward'"),
        ({"num_inference_steps": 0}, "num_inference_steps: got 0"),
        ({"solver": "dopri5"}, "solver: 'dopri5' is not known"),
        ({"epsilon": -1.0}, "epsilon: got -1.0"),
        ({"output_type": "pill"}, "output_type: 'pill' is not known"),
        ({"generator": seeds(0)}, "generator: 1; allowed"),
        ({"latents": torch.zeros(1, 1, 8, 8)}, "images and latents: allowed: one"),
        ({"images": None}, "images and latents: allowed: one"),
        ({"images": torch.zeros(2, 1, 8, 8) - 0.5}, "numbers outside"),
        ({"images": torch.zeros(0, 1, 8, 8)}, "images: none"),
        ({"images": torch.full((1, 1, 8, 8), torch.nan)}, "numbers outside"),
        ({"images": [Image.new("L", (8, 8)), Image.new("L", (8, 9))]}, "images: several sizes"),
        ({"images": "a.png"}, "images: got str"),
        ({"images": None, "latents": torch.zeros(1, 2, 8, 8)}, r"latents: shape \(1, 2, 8, 8\)"),
        ({"images": None, "latents": torch.full((1, 1, 8, 8), torch.nan)}, "x: the initial state"),
    ],
)
def test_refuses_by_name(images: torch.Tensor, options: dict, message: str) -> None:
    made = pipeline()
    with pytest.raises(InputError, match=message):
        made(**{"images": images, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learns": ["velocity"]}, "unet: 1 channels in and 2 out; allowed: 1 out, 1 for each of velocity"),
        ({"learns": ["flow", "flow"]}, "'flow' stands twice"),
        ({"interpolant": {"interpolant": "liner"}}, "did you mean 'linear'"),
        ({"margin": 0.7}, "margin: got 0.7"),
        ({"margin": 0.0, "learns": ["flow", "denoiser"]}, "margin: 0.0; allowed: > 0"),
        ({"default_solver": "rk4"}, "default_solver"),
    ],
)
def test_cannot_be_put_together(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TranslationPipeline(network(), **options)


def test_models_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is of kind ImagePipeline; allowed: TranslationPipeline"):
        TranslationPipeline.from_pretrained("fashion-mnist")
    pipeline().save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="translates images"):
        ImagePipeline.from_pretrained(tmp_path / "saved")
    weights = tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be loaded"):
        TranslationPipeline.from_pretrained(tmp_path / "saved")


def test_a_network_that_breaks_is_named_with_its_step(images: torch.Tensor) -> None:
    made = pipeline()
    made.unet.output.bias.data.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="step 1 of 3"):
        made(images)
