"""Figures of single images: closed forms, Pillow's HSV and grey as reference, invariances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genflow.errors import InputError
from genflow.images import to_uint8
from genflow.metrics import (
    SD_LATENT_MEAN,
    SD_LATENT_STD,
    channel_statistics,
    clipped_share,
    colourfulness,
    contrast,
    magnitude_score,
    picture_statistics,
    rms_distance,
    saturation,
)

IMAGE_FIGURES = (saturation, contrast, colourfulness, clipped_share)


def flat(*channels: float) -> torch.Tensor:
    """One 4x4 image of one colour, its channels in [0, 1]."""
    return (2 * torch.tensor(channels, dtype=torch.float32) - 1).view(1, -1, 1, 1).expand(1, -1, 4, 4)


def noise(channels: int, seed: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 8, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((1.0, 0, 0), 1.0),
        ((0.5, 0, 0), 1.0),
        ((0.8, 0.4, 0.6), 0.5),
        ((0.3, 0.3, 0.3), 0),
        ((0, 0, 0), 0),
        ((1, 1, 1), 0),
    ],
)
def test_saturation_of_one_colour(colour, expected):
    assert saturation(flat(*colour)).item() == pytest.approx(expected, abs=1e-6)


def test_saturation_and_contrast_are_those_of_pillow():
    images = noise(3, 0)
    pictures = [Image.fromarray(array) for array in to_uint8(images)]
    hsv = [np.asarray(picture.convert("HSV"))[:, :, 1].mean() / 255 for picture in pictures]
    luma = [np.asarray(picture.convert("L"), dtype=float).std() / 255 for picture in pictures]
    assert saturation(images).tolist() == pytest.approx(hsv, abs=4e-3)  # Pillow rounds down to 8 bits
    assert contrast(images).tolist() == pytest.approx(luma, abs=2e-3)


def test_half_black_and_half_white():
    image = torch.ones(1, 3, 4, 4)
    image[:, :, :2] = -1
    assert contrast(image).item() == pytest.approx(0.5)
    assert contrast(image[:, :1]).item() == pytest.approx(0.5)
    assert clipped_share(image).item() == 1
    assert clipped_share(0.99 * image).item() == 0
    assert clipped_share(0.999 * image).item() == 1  # rounds to 0 and to 255


def test_colourfulness_in_closed_form():
    # rg = 255, yb = 127.5 everywhere: no spread, a mean
    assert colourfulness(flat(1, 0, 0)).item() == pytest.approx(0.3 * 255 * math.sqrt(1.25), rel=1e-5)
    # red and green in equal parts: rg = +-255, yb = 127.5
    image = flat(1, 0, 0).clone()
    image[:, :, :2] = flat(0, 1, 0)[:, :, :2]
    assert colourfulness(image).item() == pytest.approx(255 + 0.3 * 127.5, rel=1e-5)
    assert colourfulness(flat(0.4, 0.4, 0.4)).item() == pytest.approx(0, abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_grey_is_the_same_in_one_channel_and_in_three(seed):
    grey = noise(1, seed)
    rgb = grey.expand(-1, 3, -1, -1)
    for figure in IMAGE_FIGURES:
        torch.testing.assert_close(figure(rgb), figure(grey), atol=1e-4, rtol=1e-4)
    assert saturation(rgb).abs().max() == 0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.1, 1))
def test_invariances(seed, factor):
    images = noise(3, seed)
    darker = (images / 2 + 0.5) * factor * 2 - 1
    torch.testing.assert_close(saturation(darker), saturation(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(contrast(darker), factor * contrast(images), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(colourfulness(darker), factor * colourfulness(images), atol=1e-3, rtol=1e-4)
    for figure in IMAGE_FIGURES:  # of each image by itself, wherever its pixels are
        torch.testing.assert_close(figure(images.flip(0).transpose(2, 3)), figure(images).flip(0))
    assert ((saturation(images) >= 0) & (saturation(images) <= 1)).all()


@pytest.mark.parametrize("figure", IMAGE_FIGURES)
@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 2, 4, 4),
        torch.zeros(3, 4, 4),
        torch.zeros(0, 3, 4, 4),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        torch.full((1, 3, 4, 4), 1.5),
        torch.full((1, 3, 4, 4), float("nan")),
    ],
    ids=["channels", "dimensions", "none", "bytes", "range", "nan"],
)
def test_other_images_are_refused(figure, images):
    with pytest.raises(InputError, match="images: "):
        figure(images)


def test_half_precision_is_welcome():
    for figure in IMAGE_FIGURES:
        torch.testing.assert_close(figure(noise(3, 0).bfloat16()), figure(noise(3, 0)), atol=0.5, rtol=0.02)


def test_magnitude_score_in_closed_form():
    latents = torch.zeros(2, 4, 8, 8)
    latents[0, 2, 0, 0] = -5.0  # one of four cells
    latents[0, 1, 7, 7] = 2.9  # below the threshold
    latents[1, 3, 3, 3], latents[1, 0, 3, 3] = 4.0, 6.0  # one cell, the larger counts
    latents[1, 3, 4, 3] = 3.0  # at the threshold
    assert magnitude_score(latents, 0.0, 1.0).tolist() == pytest.approx([5 / 4, (6 + 3) / 4])
    assert magnitude_score(latents, 0.0, 1.0, threshold=0).tolist() == pytest.approx([(5 + 2.9) / 4, (6 + 3) / 4])
    assert magnitude_score(latents, 0.0, 1.0, pool=8).tolist() == pytest.approx([5, 6])
    assert magnitude_score(latents, 0.0, 2.0).tolist() == pytest.approx([0, 3 / 4])


def test_magnitude_score_normalises_by_channel():
    mean, std = torch.tensor(SD_LATENT_MEAN).view(1, 4, 1, 1), torch.tensor(SD_LATENT_STD).view(1, 4, 1, 1)
    z = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2
    expected = magnitude_score(z, 0.0, 1.0)
    torch.testing.assert_close(magnitude_score(z * std + mean), expected)
    assert (expected > 0).all()
    found = channel_statistics(z)
    whitened = (z - found[0].view(1, 4, 1, 1)) / found[1].view(1, 4, 1, 1)
    torch.testing.assert_close(magnitude_score(z, *found), magnitude_score(whitened, 0.0, 1.0))


def test_magnitude_score_of_odd_sizes_leaves_nothing_out():
    latents = torch.zeros(1, 1, 7, 7)
    latents[..., 6, 6] = 8.0
    assert magnitude_score(latents, 0.0, 1.0).item() == pytest.approx(8 / 4)
    assert math.isnan(magnitude_score(torch.full((1, 1, 4, 4), float("nan")), 0.0, 1.0).item())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), factor=st.floats(1, 5))
def test_magnitude_score_grows_with_magnitude(seed, factor):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2
    assert (magnitude_score(latents * factor, 0.0, 1.0) >= magnitude_score(latents, 0.0, 1.0)).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mean": (0.0, 0.0)}, "mean: got shape"),
        ({"std": 0.0}, "std: got"),
        ({"threshold": -1.0}, "threshold: got -1.0"),
        ({"pool": 0}, "pool: got 0"),
    ],
)
def test_magnitude_score_refuses(options, says):
    with pytest.raises(InputError, match=says):
        magnitude_score(torch.zeros(1, 4, 8, 8), **options)
    with pytest.raises(InputError, match="latents: got shape"):
        magnitude_score(torch.zeros(4, 8, 8))


def test_channel_statistics_refuses_a_constant_channel():
    with pytest.raises(InputError, match="every channel has to vary"):
        channel_statistics(torch.zeros(2, 1, 4, 4))


def test_rms_distance():
    first, second = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    second[1, 0, 0] = 2.0
    assert rms_distance(first, second).tolist() == pytest.approx([0, math.sqrt(2)])
    with pytest.raises(InputError, match="reference: got shape"):
        rms_distance(first, second[:1])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    levels=st.sampled_from([1, 2, 256]),
)
def test_figures_of_bytes_are_those_of_floats(seed, channels, size, levels) -> None:
    generator = torch.Generator().manual_seed(seed)
    step = 255 // max(levels - 1, 1)
    pictures = torch.randint(0, levels, (4, channels, *size), generator=generator) * step
    pictures = pictures.to(torch.uint8)
    found = picture_statistics(pictures)
    for figure in IMAGE_FIGURES:
        torch.testing.assert_close(
            found[figure.__name__], figure(pictures / 127.5 - 1), rtol=1e-5, atol=1e-5, msg=figure.__name__
        )
    assert set(found) == {figure.__name__ for figure in IMAGE_FIGURES}


def test_figures_of_one_colour_are_exact() -> None:
    found = picture_statistics(torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).repeat(1, 1, 300, 300))
    assert found["contrast"].item() < 1e-6
    assert found["saturation"].item() == pytest.approx(0.75, rel=1e-6)
    assert found["colourfulness"].item() == pytest.approx(0.3 * math.hypot(100, 100), rel=1e-5)
    assert found["clipped_share"].item() == 0


@pytest.mark.parametrize(
    "pictures",
    [torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.uint8), torch.zeros(0, 3, 2, 2, dtype=torch.uint8)],
)
def test_what_are_no_pictures_is_refused(pictures) -> None:
    with pytest.raises(InputError, match="pictures: got"):
        picture_statistics(pictures)
