"""What the parity run feeds to every tool alike: folders of images, and an Inception network at random weights.

Images are made, not taken: noise with the spectrum of natural images, in correlated colours, with shapes on it. The
published weights of Inception are not needed either: a network of its kind with random weights, its batch norms set to
the statistics of images that pass through it, gives features of order one that differ from image to image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from genflow.files import atomic_folder, atomic_path

__all__ = [
    "MOST_IMAGES",
    "SETS",
    "WEIGHTS",
    "ImageSet",
    "TorchScriptInception",
    "calibrate",
    "make_folder",
    "make_weights",
    "pictures",
    "random_state",
]

WEIGHTS_NAMES = (
    "weights-inception-2015-12-05-6726825d.pth",  # torch-fidelity's name for the file
    "pt_inception-2015-12-05-6726825d.pth",  # pytorch-fid's and clean-fid's name for the same
)
CHECKPOINTS = Path("hub", "checkpoints")  # below TORCH_HOME, where both look before they download
WEIGHTS = CHECKPOINTS / WEIGHTS_NAMES[0]  # the file that ours is told to take
TORCHSCRIPT_NAME = "inception-2015-12-05.pt"  # what clean-fid looks for
MOST_IMAGES = 1000  # as many as a subset of KID takes: all of them, and nothing in it is chance
MODES = ("RGB", "L", "P", "RGBA")


@dataclass(frozen=True)
class ImageSet:
    """Two folders of ``count`` images each, of one size (the reference tools stack what they read)."""

    name: str
    width: int
    height: int
    count: int
    suffix: str = ".png"
    modes: tuple[str, ...] = ("RGB",)

    @property
    def key(self) -> str:
        """The name as a part of a file's name."""
        return self.name.replace(" ", "-")


SETS = (
    ImageSet("32x32 png", 32, 32, 300),
    ImageSet("64x64 jpeg", 64, 64, 30, ".jpg"),
    ImageSet("256x256 jpeg", 256, 256, 30, ".jpg"),
    ImageSet("480x360 png", 480, 360, 30),  # larger than the network's 299: antialiasing tells
    ImageSet("80x48 modes", 80, 48, 32, modes=MODES),
)
"""The first is the main one, on which every figure of every tool is compared."""


def pictures(count: int, width: int, height: int, *, seed: int, shifted: bool) -> list[np.ndarray]:
    """``count`` uint8 ``(height, width, 3)`` images; ``shifted`` ones are smoother, brighter and have fewer shapes."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    made = []
    for _ in range(count):
        slope = random.uniform(1.3, 2.0) if shifted else random.uniform(0.8, 1.5)
        spectrum = np.fft.rfft2(random.standard_normal((3, height, width))) / np.maximum(frequency, 1) ** slope
        noise = np.fft.irfft2(spectrum, s=(height, width))
        noise /= noise.std((1, 2), keepdims=True) + 1e-9
        mixing = 0.8 * random.standard_normal((3, 1)) + 0.5 * random.standard_normal((3, 3))
        colours = np.einsum("ij,jhw->hwi", mixing, noise) * (24 if shifted else 36)
        colours += random.uniform(110, 220, 3) if shifted else random.uniform(70, 185, 3)
        picture = Image.fromarray(np.clip(np.rint(colours), 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for _ in range(random.integers(0, 2 if shifted else 4)):
            x0, y0 = random.uniform(-0.2, 0.8, 2) * (width, height)
            x1, y1 = (x0, y0) + random.uniform(0.2, 0.6, 2) * (width, height)
            shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
            shape((x0, y0, x1, y1), fill=tuple(int(value) for value in random.integers(0, 256, 3)))
        made.append(np.array(picture))
    return made


def make_folder(folder: str | Path, images: ImageSet, *, shifted: bool) -> Path:
    """Write a set's images into ``folder``, or leave them where they are already."""
    folder, count = Path(folder), images.count
    if folder.is_dir() and len(list(folder.iterdir())) == count:
        return folder
    seed = 2 * images.width + shifted
    with atomic_folder(folder) as temporary:
        for index, values in enumerate(pictures(count, images.width, images.height, seed=seed, shifted=shifted)):
            picture = Image.fromarray(values).convert(images.modes[index % len(images.modes)])
            options = {"quality": 90} if images.suffix == ".jpg" else {}
            picture.save(temporary / f"{index:05d}{images.suffix}", **options)
    return folder


def random_state(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state dict for ``network``: convolutions by He's rule, gains and biases of norms around one and zero."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("bn.weight"):
            value = 0.7 + 0.6 * torch.rand(tensor.shape, generator=generator)
        elif name.endswith("bn.bias"):
            value = 0.3 * torch.randn(tensor.shape, generator=generator)
        elif tensor.ndim > 1:
            value = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        else:  # running statistics, which the images set, and the classifier's bias
            value = torch.ones_like(tensor) if name.endswith("running_var") else torch.zeros_like(tensor)
        state[name] = value
    return state


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Set the running statistics of torch-fidelity's Inception to those of uint8 ``images`` ``(N, 3, H, W)``.

    The classifier then gets rows without the features' mean, so that classes differ between images, and logits of a
    spread of two.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    network(images)
    for norm in norms:
        norm.eval()
        norm.momentum = 0.1
    features = dict(zip(network.features_list, network(images), strict=True))["2048"]
    mean = features.mean(0)
    weight = network.fc.weight.data
    weight -= torch.outer(weight @ mean, mean) / mean.square().sum()
    weight *= 2 / (features @ weight.T).std()
    network.fc.bias.data.copy_(0.1 * torch.randn(len(weight), generator=torch.Generator().manual_seed(1)))


class TorchScriptInception(nn.Module):
    """Inception with the face of the TorchScript file that clean-fid loads: ``layers``, and a forward that resizes.

    ``layers`` takes what is 299x299 and normalized already. The forward takes values from 0 to 255 of any size,
    resizes them as TensorFlow 1 does (bilinear, pixel i at ``i * in / out``) and returns features ``(N, 2048)``.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*blocks)

    def forward(self, images: Tensor, return_features: bool = True) -> Tensor:
        rows = self.interpolation(images.shape[2])
        columns = self.interpolation(images.shape[3])
        resized = torch.einsum("yh,nchw,xw->ncyx", rows, images.to(torch.float32), columns)
        return self.layers((resized - 128) / 128).flatten(1)

    def interpolation(self, size: int) -> Tensor:
        """``(299, size)``: row i holds the weights of the two pixels around ``i * size / 299``."""
        place = torch.arange(299, dtype=torch.float32) * (size / 299)
        low = place.floor().to(torch.int64)
        high = (low + 1).clamp_max(size - 1)
        share = (place - low)[:, None]
        eye = torch.eye(size)
        return eye[low] * (1 - share) + eye[high] * share


def blocks_of(network: Any) -> list[nn.Module]:
    """The layers of torch-fidelity's Inception up to the pooled features, in the order in which it runs them."""
    mixed = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    stem = (
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "MaxPool_1",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "MaxPool_2",
    )
    return [getattr(network, name) for name in (*stem, *(f"Mixed_{name}" for name in mixed), "AvgPool")]


def save_torchscript(blocks: list[nn.Module], path: str | Path) -> None:
    """Compile :class:`TorchScriptInception` around ``blocks`` and write it."""
    scripted = torch.jit.script(TorchScriptInception(blocks).eval())
    with atomic_path(path) as temporary:
        torch.jit.save(scripted, str(temporary))


def make_weights(folder: str | Path, seed: int = 0) -> Path:
    """Write one random Inception in every format and under every name that the tools look for; return ``folder``.

    Needs torch-fidelity. Its tools find the files without a download when TORCH_HOME is ``folder``.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchvision.models import inception_v3

    folder = Path(folder)
    if folder.is_dir():
        return folder
    # torch-fidelity's class loads weights as it is made, so the first ones take the shapes of pytorch-fid's base.
    with atomic_folder(folder) as temporary:
        first, second = (temporary / CHECKPOINTS / name for name in WEIGHTS_NAMES)
        _save(random_state(_fid_shapes(inception_v3), seed), first)
        layers = ["2048", "logits_unbiased"]
        network = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=str(first))
        calibrate(network, _sample())
        _save(network.state_dict(), second)
        _save(network.state_dict(), first, zipped=False)  # as torch wrote files when the published one was made
        save_torchscript(blocks_of(network), temporary / TORCHSCRIPT_NAME)
    return folder


def _sample(each: int = 8) -> Tensor:
    """Some images of every set at the network's size, uint8 ``(N, 3, 299, 299)``: detail differs from set to set."""
    found = [
        np.asarray(Image.fromarray(values).resize((299, 299)))
        for images in SETS
        for shifted in (False, True)
        for values in pictures(each, images.width, images.height, seed=1000 + shifted, shifted=shifted)
    ]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def _fid_shapes(inception_v3: Any) -> nn.Module:
    """torchvision's Inception with the classes of the FID network; pools differ, shapes do not."""
    return inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)


def _save(state: dict[str, Tensor], path: Path, zipped: bool = True) -> None:
    with atomic_path(path) as temporary:
        torch.save(state, temporary, _use_new_zipfile_serialization=zipped)
