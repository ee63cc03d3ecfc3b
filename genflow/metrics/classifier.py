"""The small classifier of 28x28 grey images whose penultimate features are genflow's default evaluation features.

A residual network (He et al. 2016) behind a pixel-unshuffle, sized so that it trains in about twenty minutes on
one core. It is kept as ``config.json`` plus ``model.safetensors`` in half precision, and always runs in float32.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from genflow.errors import InputError
from genflow.files import atomic_folder, write_json

__all__ = ["ClassifierConfig", "ImageClassifier", "load_classifier", "save_classifier"]


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of an :class:`ImageClassifier`. ``stages`` holds (channels, blocks) pairs, each at half the size before."""

    sample_size: int = 28
    in_channels: int = 1
    num_classes: int = 10
    stages: tuple[tuple[int, int], ...] = ((64, 1), (128, 2))
    class_names: tuple[str, ...] | None = None


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a skip; stride 2 halves the size."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.skip = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.norm1(self.conv1(x)))
        return nn.functional.relu(self.skip(x) + self.norm2(self.conv2(hidden)))


class ImageClassifier(nn.Module):
    """``(B, C, H, W)`` float images in [-1, 1] to ``(B, num_classes)`` logits.

    :meth:`features` gives the ``(B, D)`` input of the last layer, D being the channels of the last stage.
    """

    def __init__(self, config: ClassifierConfig | None = None) -> None:
        super().__init__()
        self.config = config or ClassifierConfig()
        channels = self.config.stages[0][0]
        self.stem = nn.Conv2d(4 * self.config.in_channels, channels, 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        blocks = []
        for index, (width, count) in enumerate(self.config.stages):
            for block in range(count):
                blocks.append(_Block(channels, width, stride=2 if index > 0 and block == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, self.config.num_classes)

    @property
    def num_features(self) -> int:
        """Length of one feature vector."""
        return self.head.in_features

    def features(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` in [-1, 1] to ``(B, num_features)``: the mean over the last feature map, all >= 0."""
        x = nn.functional.relu(self.stem_norm(self.stem(nn.functional.pixel_unshuffle(images, 2))))
        return self.blocks(x).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def save_classifier(network: ImageClassifier, folder: str | Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` (convolutions and head in float16, batch norm in float32).

    The files appear together or not at all; other files that were in the folder (its card) are kept.
    """
    folder = Path(folder)
    tensors = {
        name: (tensor.half() if tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    with atomic_folder(folder) as temporary:
        if folder.is_dir():
            for kept in folder.iterdir():
                if kept.is_file():
                    shutil.copy2(kept, temporary / kept.name)
        write_json(temporary / "config.json", {"class": "ImageClassifier", **asdict(network.config)})
        (temporary / "model.safetensors").write_bytes(save(tensors))


def load_classifier(folder: str | Path) -> ImageClassifier:
    """The classifier kept in ``folder``, in float32 and evaluation mode, its weights frozen.

    Raises InputError naming the file where one is missing, damaged or of another network.
    """
    config_file, weights_file = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise InputError(f"classifier: {file} does not exist")
    try:
        settings = json.loads(config_file.read_text(encoding="utf-8"))
        settings.pop("class", None)
        settings["stages"] = tuple((width, count) for width, count in settings["stages"])
        if settings.get("class_names") is not None:
            settings["class_names"] = tuple(settings["class_names"])
        network = ImageClassifier(ClassifierConfig(**settings))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"classifier: {config_file} is not a classifier's configuration ({error})") from error
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(weights_file).items()}
        missing = network.load_state_dict(tensors, strict=False)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(f"classifier: cannot read {weights_file} ({str(error).splitlines()[0]})") from error
    absent = [name for name in missing.missing_keys if not name.endswith("num_batches_tracked")]
    if absent or missing.unexpected_keys:
        odd = f"missing {absent}, unknown {missing.unexpected_keys}"
        raise InputError(f"classifier: {weights_file} does not fit {config_file} ({odd})")
    return network.eval().requires_grad_(False)
