"""Each resize mode against its formula, and what a preparation makes of channels and sizes."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genflow.errors import InputError
from genflow.metrics.resize import Preparation, resize_clean, resize_legacy, resize_legacy_pytorch

SIZES = st.integers(1, 40)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def tf1_reference(image: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow 1's resize_bilinear, output pixel by output pixel: source = i * in / out, the next pixel clamped."""
    height, width = image.shape
    out = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            y, x = np.float32(row) * np.float32(height / size), np.float32(column) * np.float32(width / size)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = image[y0, x0] + (image[y0, x1] - image[y0, x0]) * (x - x0)
            bottom = image[y1, x0] + (image[y1, x1] - image[y1, x0]) * (x - x0)
            out[row, column] = top + (bottom - top) * (y - y0)
    return out


@given(SIZES, SIZES, st.integers(1, 24))
def test_legacy_is_the_formula_of_tensorflow_1(height, width, size):
    image = picture(height, width, 1)[:, :, 0].astype(np.float64)
    ours = resize_legacy(torch.from_numpy(image)[None], size)[0]
    assert np.abs(ours.numpy() - tf1_reference(image, size)).max() < 1e-3


def test_the_two_legacies_and_clean_differ_by_half_a_pixel_on_a_ramp():
    """On x -> x, TF1 reads s * i, torch reads s * (i + 1/2) - 1/2: closed forms away from the border."""
    ramp = torch.arange(32, dtype=torch.float32).expand(1, 1, 32, 32)
    columns = torch.arange(64, dtype=torch.float32)
    assert torch.equal(resize_legacy(ramp, 64)[0, 0, 5, :62], columns[:62] / 2)
    centred = (columns + 0.5) / 2 - 0.5
    assert torch.allclose(resize_legacy_pytorch(ramp, 64)[0, 0, 5, 1:-1], centred[1:-1], atol=1e-5)
    clean = resize_clean(ramp[0].permute(1, 2, 0).numpy().astype(np.uint8), 64)
    assert torch.allclose(clean[0, 5, 4:-4], centred[4:-4], atol=1e-4)  # a cubic filter keeps straight lines


def test_clean_filters_before_it_reduces_and_legacy_does_not():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 254
    assert (resize_clean(stripes, 16)[0, :, 2:-2] - 127).abs().max() < 1.0
    assert resize_legacy(torch.from_numpy(stripes[:, :, 0])[None], 16).unique().tolist() == [254.0]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30))
def test_clean_is_pillow_channel_by_channel_in_float(height, width, size):
    image = picture(height, width)
    ours = resize_clean(image, size)
    for channel in range(3):
        plane = Image.fromarray(image[:, :, channel].astype(np.float32))
        assert plane.mode == "F"
        wanted = np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255)
        assert np.array_equal(ours[channel].numpy(), wanted)


def test_clean_clips_the_overshoot_and_keeps_fractions():
    edge = np.zeros((16, 16, 1), np.uint8)
    edge[:, 8:] = 255
    out = resize_clean(edge, 37)
    assert out.min() == 0
    assert out.max() == 255
    assert ((out - out.round()).abs() > 0.1).any()


def test_legacy_pytorch_is_interpolate():
    images = torch.from_numpy(picture(20, 31)).permute(2, 0, 1)[None]
    wanted = F.interpolate(images.float(), size=(48, 48), mode="bilinear", align_corners=False, antialias=False)
    assert torch.equal(resize_legacy_pytorch(images, 48), wanted)


@pytest.mark.parametrize("mode", ["clean", "legacy", "legacy-pytorch"])
def test_the_right_size_is_left_alone(mode):
    image = picture(24, 24)
    prepared = Preparation("net", mode, 24, 3)(image)
    assert prepared.dtype == torch.float32
    assert np.array_equal(prepared.permute(1, 2, 0).numpy(), image)


@pytest.mark.parametrize("mode", ["clean", "legacy", "legacy-pytorch"])
@pytest.mark.parametrize("shape", [(7, 90, 3), (24, 24, 3), (24, 24, 1), (1, 1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_comes_out_alike(mode, shape, channels):
    prepared = Preparation("net", mode, 24, channels)(picture(*shape))
    assert prepared.shape == (channels, 24, 24)
    assert prepared.dtype == torch.float32
    assert prepared.is_contiguous()
    assert prepared.min() >= 0
    assert prepared.max() <= 255


def test_colour_becomes_grey_as_pillow_does_it_and_grey_becomes_colour_by_repetition():
    image = picture(9, 9)
    grey = Preparation("net", "none", 9, 1)(image)
    assert np.array_equal(grey[0].numpy(), np.asarray(Image.fromarray(image).convert("L")))
    levels = image.astype(float) @ [0.299, 0.587, 0.114]  # Rec. 601
    assert np.abs(grey[0].numpy() - levels).max() <= 1
    three = Preparation("net", "none", 9, 3)(image[:, :, :1])
    assert all(torch.equal(plane, torch.from_numpy(image[:, :, 0])) for plane in three)


@pytest.mark.parametrize("mode", ["legacy", "legacy-pytorch"])
def test_a_batch_is_resized_as_its_images_are(mode):
    images = np.stack([picture(13, 21, seed=seed) for seed in range(3)])
    preparation = Preparation("net", mode, 30, 3)
    single = torch.stack([preparation(image) for image in images])
    assert torch.equal(preparation.resize(torch.from_numpy(images).permute(0, 3, 1, 2)), single)


def test_other_sizes_and_shapes_are_refused():
    exact = Preparation("net", "none", 24, 3)
    with pytest.raises(InputError, match="image: got 30x20; net takes 24x24, or choose how to resize"):
        exact(picture(20, 30))
    assert Preparation("net", "none", None, 3)(picture(20, 30)).shape == (3, 20, 30)
    for image in (picture(8, 8).astype(np.float32), picture(8, 8)[:, :, 0], picture(8, 8, 4), picture(0, 8)):
        with pytest.raises(InputError, match=r"allowed: uint8 \(H, W, 1\) or \(H, W, 3\)"):
            exact(image)
    with pytest.raises(InputError, match="prepare\\(\\) resizes one image"):
        Preparation("net", "clean", 24, 3).resize(torch.zeros(2, 3, 8, 8))


def test_a_preparation_travels_to_workers():
    preparation = Preparation("net", "clean", 12, 3)
    sent = pickle.dumps(preparation)
    assert len(sent) < 500
    assert torch.equal(pickle.loads(sent)(picture(5, 6)), preparation(picture(5, 6)))
