"""The Inception network of the Frechet Inception Distance, as a table.

It is Inception-v3 (Szegedy et al. 2016) as TensorFlow's graph of 2015-12-05 holds it, on which FID (Heusel et al. 2017)
and the Inception Score are defined. Three things set it apart from torchvision's: 1008 classes; average pooling that
leaves the padding out of its mean; and maximum pooling in the last block's pooling branch. Parameters carry the names
of torch-fidelity's and pytorch-fid's weight files, so that either loads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.errors import InputError
from genflow.files import atomic_path

__all__ = ["LAYERS", "InceptionV3", "random_inception", "save_inception"]

LAYERS = {"64": 64, "192": 192, "768": 768, "2048": 2048, "spatial": 2023}
"""What features can be taken from, and how many they are: the means over the maps after the first and the second
maximum pooling, after Mixed_6e and after Mixed_7c; ``spatial`` is sFID's (Nash et al. 2021): the first 7 channels of
``mixed_6/conv``, the 1x1 branch of Mixed_6d, at all 17x17 places, in ADM's order (row, column, channel)."""

NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7

# A unit is (name, channels out, kernel[, stride]). A stride of 2 goes without padding, a stride of 1 keeps the size,
# but for the two units of the stem in _UNPADDED. A branch is a chain of units; a tuple of units inside it splits the
# chain, and the parts are joined again; "average" and "maximum" pool 3x3 and keep the size, "halve" pools 3x3 by 2.
_Unit = tuple
_STEM: tuple[Sequence, ...] = (
    [("Conv2d_1a_3x3", 32, 3, 2), ("Conv2d_2a_3x3", 32, 3), ("Conv2d_2b_3x3", 64, 3), "halve"],
    [("Conv2d_3b_1x1", 80, 1), ("Conv2d_4a_3x3", 192, 3), "halve"],
)
_UNPADDED = ("Conv2d_2a_3x3", "Conv2d_4a_3x3")


def _grid_35(pool: int) -> list[list]:
    return [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ["average", ("branch_pool", pool, 1)],
    ]


def _grid_17(inner: int) -> list[list]:
    row, column = (1, 7), (7, 1)
    return [
        [("branch1x1", 192, 1)],
        [("branch7x7_1", inner, 1), ("branch7x7_2", inner, row), ("branch7x7_3", 192, column)],
        [
            ("branch7x7dbl_1", inner, 1),
            ("branch7x7dbl_2", inner, column),
            ("branch7x7dbl_3", inner, row),
            ("branch7x7dbl_4", inner, column),
            ("branch7x7dbl_5", 192, row),
        ],
        ["average", ("branch_pool", 192, 1)],
    ]


def _grid_8(pooling: str) -> list[list]:
    row, column = (1, 3), (3, 1)
    return [
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), (("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column))],
        [
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            (("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)),
        ],
        [pooling, ("branch_pool", 192, 1)],
    ]


_MIXED: dict[str, list[list]] = {
    "Mixed_5b": _grid_35(32),
    "Mixed_5c": _grid_35(64),
    "Mixed_5d": _grid_35(64),
    "Mixed_6a": [
        [("branch3x3", 384, 3, 2)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
        ["halve"],
    ],
    "Mixed_6b": _grid_17(128),
    "Mixed_6c": _grid_17(160),
    "Mixed_6d": _grid_17(160),
    "Mixed_6e": _grid_17(192),
    "Mixed_7a": [
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
        [
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, 2),
        ],
        ["halve"],
    ],
    "Mixed_7b": _grid_8("average"),
    "Mixed_7c": _grid_8("maximum"),
}


def _pool(x: Tensor, kind: str) -> Tensor:
    if kind == "halve":
        return F.max_pool2d(x, 3, 2)
    if kind == "maximum":
        return F.max_pool2d(x, 3, 1, 1)
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _Normalization(nn.Module):
    """Batch normalization by kept statistics alone: this network is never trained here."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3)


class _ConvUnit(nn.Module):
    """Convolution, normalization, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel: int | tuple[int, int], stride: int, pad: bool) -> None:
        super().__init__()
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (rows // 2, columns // 2) if pad else 0
        self.conv = nn.Conv2d(channels_in, channels, (rows, columns), stride, padding, bias=False)
        self.bn = _Normalization(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _add_unit(module: nn.Module, unit: _Unit, channels_in: int) -> int:
    name, channels, kernel, *stride = unit
    step = stride[0] if stride else 1
    module.add_module(name, _ConvUnit(channels_in, channels, kernel, step, step == 1 and name not in _UNPADDED))
    return channels


def _add_branch(module: nn.Module, branch: Sequence, channels: int) -> int:
    """Make the units of a branch in ``module``; returns how many channels come out."""
    for step in branch:
        if isinstance(step, str):
            continue
        split = isinstance(step[0], tuple)
        channels = (
            sum(_add_unit(module, unit, channels) for unit in step) if split else _add_unit(module, step, channels)
        )
    return channels


def _run_branch(module: nn.Module, branch: Sequence, x: Tensor) -> Tensor:
    for step in branch:
        if isinstance(step, str):
            x = _pool(x, step)
        elif isinstance(step[0], tuple):
            x = torch.cat([getattr(module, unit[0])(x) for unit in step], 1)
        else:
            x = getattr(module, step[0])(x)
    return x


class _Mixed(nn.Module):
    """Branches side by side, their channels joined."""

    def __init__(self, branches: list[list], channels: int) -> None:
        super().__init__()
        self.branches = branches
        self.channels = sum(_add_branch(self, branch, channels) for branch in branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([_run_branch(self, branch, x) for branch in self.branches], 1)


class InceptionV3(nn.Module):
    """``(B, 3, 299, 299)`` scaled images to features and logits. See the module's text for what is particular."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for branch in _STEM:
            channels = _add_branch(self, branch, channels)
        for name, branches in _MIXED.items():
            block = _Mixed(branches, channels)
            self.add_module(name, block)
            channels = block.channels
        self.fc = nn.Linear(channels, NUM_CLASSES)

    def forward(self, images: Tensor, layer: str = "2048") -> tuple[Tensor, Tensor | None]:
        """Features ``(B, D)`` of ``layer`` (a key of :data:`LAYERS`), and of the last also the logits ``(B, 1008)``.

        The logits are without the last layer's bias, as the Inception Score takes them (torch-fidelity's
        ``logits_unbiased``); of an earlier layer they are None, since nothing above it is computed.
        """
        x = images.contiguous(memory_format=torch.channels_last)
        for branch, name in zip(_STEM, ("64", "192"), strict=True):
            x = _run_branch(self, branch, x)
            if name == layer:
                return x.mean((2, 3)), None
        for name in _MIXED:
            block = getattr(self, name)
            if name == "Mixed_6d" and layer == "spatial":
                return block.branch1x1(x)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1), None
            x = block(x)
            if name == "Mixed_6e" and layer == "768":
                return x.mean((2, 3)), None
        features = x.mean((2, 3))
        return features, F.linear(features, self.fc.weight)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], source: str) -> "InceptionV3":
        """The network with the weights of a file, which messages call ``source``; in evaluation mode, frozen.

        Raises:
            InputError: a tensor is missing, of another shape, or unknown; the first is named.
        """
        with torch.device("meta"):
            network = cls()
        own = network.state_dict()
        for name, tensor in own.items():
            if name not in tensors:
                raise InputError(f"weights: {source} has no {name!r}: these are not weights of the FID's Inception")
            if tensors[name].shape != tensor.shape:
                got, wanted = tuple(tensors[name].shape), tuple(tensor.shape)
                raise InputError(f"weights: {name!r} in {source} is {got}; the FID's Inception has {wanted}")
        for name in tensors:
            if name not in own and not name.endswith(".num_batches_tracked"):
                raise InputError(f"weights: {source} holds {name!r}, which the FID's Inception has not")
        network.load_state_dict({name: tensors[name].float() for name in own}, assign=True)
        # this order of numbers is 1.5 times as fast on a CPU, measured
        return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def random_inception(seed: int = 0) -> InceptionV3:
    """A network whose features vary as a trained one's do, though they mean nothing: for tests and for parity.

    Convolutions keep the variance (He et al. 2015); kept means, variances, scales and shifts are all at work.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in InceptionV3().state_dict().items()}
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            tensors[name] = torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            tensors[name] = 0.7 + 0.6 * torch.rand(shape, generator=generator)
        else:
            tensors[name] = 0.1 * torch.randn(shape, generator=generator)
    return InceptionV3.from_tensors(tensors, f"seed {seed}")


def save_inception(network: InceptionV3, path: str | Path) -> None:
    """Write the file that torch-fidelity (``feature_extractor_weights_path``) and pytorch-fid load, atomically.

    It holds the network's state dict, with the counters of batches that their normalizations expect.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if name.endswith("running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    with atomic_path(path) as temporary:
        torch.save(tensors, temporary)
