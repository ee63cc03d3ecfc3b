"""The FID's Inception: its shapes, its names, and what sets it apart from torchvision's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genflow.errors import InputError
from genflow.metrics.checkpoints import read_checkpoint
from genflow.metrics.inception import LAYERS, InceptionV3, random_inception, save_inception

UNITS = {  # torchvision's names of some units, as they stand in torch-fidelity's file, with their weights' shapes
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
    "Mixed_5b.branch5x5_2": (64, 48, 5, 5),
    "Mixed_5d.branch3x3dbl_3": (96, 96, 3, 3),
    "Mixed_6a.branch3x3": (384, 288, 3, 3),
    "Mixed_6b.branch7x7dbl_3": (128, 128, 1, 7),
    "Mixed_6d.branch7x7_3": (192, 160, 7, 1),
    "Mixed_6e.branch_pool": (192, 768, 1, 1),
    "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
    "Mixed_7b.branch3x3dbl_2": (384, 448, 3, 3),
    "Mixed_7c.branch3x3_2b": (384, 384, 3, 1),
    "Mixed_7c.branch1x1": (320, 2048, 1, 1),
}


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    return random_inception(0)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    small = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return F.interpolate(small, (299, 299), mode="bicubic").clamp(-1, 1)


def test_names_and_sizes_are_those_of_the_published_files(network):
    state = network.state_dict()
    assert len([name for name in state if name.endswith(".conv.weight")]) == 94
    assert len(state) == 94 * 5 + 2
    for name, shape in UNITS.items():
        assert tuple(state[f"{name}.conv.weight"].shape) == shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert state[f"{name}.bn.{part}"].shape == shape[:1]
    assert state["fc.weight"].shape == (1008, 2048)
    # torchvision's inception_v3 has 27,161,264 parameters, 3,326,696 of them in its auxiliary head, and 1000 classes
    assert sum(p.numel() for p in network.parameters()) == 27_161_264 - 3_326_696 + 8 * 2049


@torch.no_grad()
def test_maps_have_the_sizes_of_the_paper_and_layers_are_means_of_them(network, images):
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
        for name, module in network.named_modules()
        if name
    ]
    try:
        features, logits = network(images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    sizes = {name: tuple(seen[name][1].shape[1:]) for name in seen}
    assert sizes["Conv2d_1a_3x3"] == (32, 149, 149)
    assert sizes["Conv2d_2a_3x3"] == (32, 147, 147)
    assert sizes["Conv2d_2b_3x3"] == (64, 147, 147)
    assert sizes["Conv2d_4a_3x3"] == (192, 71, 71)
    assert sizes["Mixed_5d"] == (288, 35, 35)
    assert sizes["Mixed_6e"] == (768, 17, 17)
    assert sizes["Mixed_7c"] == (2048, 8, 8)
    assert torch.allclose(features, seen["Mixed_7c"][1].mean((2, 3)), atol=1e-6)
    assert torch.allclose(logits, features @ network.fc.weight.T, atol=1e-4)  # no bias: logits_unbiased

    # pooling branches: an average without the padding, but a maximum in the last block
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6e", "Mixed_7b"):
        x = seen[name][0]
        whole = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)
        counts = F.avg_pool2d(F.pad(torch.ones_like(x), (1, 1, 1, 1)), 3, 1)
        assert torch.allclose(seen[f"{name}.branch_pool"][0], whole / counts, rtol=1e-4, atol=1e-5)
    corner = seen["Mixed_7c"][0][:, :, :2, :2].amax((2, 3))
    assert torch.equal(seen["Mixed_7c.branch_pool"][0][:, :, 0, 0], corner)

    for layer, module in (("64", "Conv2d_2b_3x3"), ("192", "Conv2d_4a_3x3")):
        wanted = F.max_pool2d(seen[module][1], 3, 2).mean((2, 3))
        assert torch.allclose(network(images[:1], layer)[0], wanted, atol=1e-5)
    assert torch.allclose(network(images[:1], "768")[0], seen["Mixed_6e"][1].mean((2, 3)), atol=1e-5)
    spatial, none = network(images[:1], "spatial")
    assert none is None
    grid = spatial.reshape(17, 17, 7)  # ADM flattens (row, column, channel)
    assert torch.allclose(grid.permute(2, 0, 1), seen["Mixed_6d.branch1x1"][1][0, :7], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["Conv2d_1a_3x3", "Mixed_6b.branch7x7_2", "Mixed_7b.branch3x3_2a"])
def test_a_unit_is_convolution_batch_norm_of_eps_one_thousandth_and_relu(network, name):
    unit = network.get_submodule(name)
    norm = nn.BatchNorm2d(len(unit.bn.weight), eps=0.001).eval()
    norm.load_state_dict({**unit.bn.state_dict(), "num_batches_tracked": torch.tensor(0)})
    x = torch.randn(2, unit.conv.in_channels, 20, 20)
    assert torch.allclose(unit(x), F.relu(norm(unit.conv(x))), atol=1e-5)


@torch.no_grad()
def test_an_image_is_alone_in_its_batch(network, images):
    both, alone = network(images), network(images[1:])
    assert torch.allclose(both[0][1], alone[0][0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(both[1][1], alone[1][0], rtol=1e-3, atol=1e-4)
    assert both[0].std(0).mean() > 1e-3 * both[0].abs().mean()  # and the two images differ


def test_files_go_round_and_load_strictly_where_counters_are_expected(network, tmp_path):
    save_inception(network, tmp_path / "w.pth")
    tensors = read_checkpoint(tmp_path / "w.pth")
    assert len(tensors) == 94 * 6 + 2
    assert tensors["Mixed_6b.branch1x1.bn.num_batches_tracked"].shape == ()
    loaded = InceptionV3.from_tensors(tensors, "w.pth").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


def test_wrong_tensors_are_named(network):
    state = dict(network.state_dict())
    short = {name: tensor for name, tensor in state.items() if name != "Mixed_6c.branch7x7_2.bn.running_var"}
    with pytest.raises(InputError, match=r"w\.pth has no 'Mixed_6c\.branch7x7_2\.bn\.running_var'"):
        InceptionV3.from_tensors(short, "w.pth")
    with pytest.raises(InputError, match=r"'fc\.weight' in w\.pth is \(1000, 2048\).* has \(1008, 2048\)"):
        InceptionV3.from_tensors({**state, "fc.weight": torch.zeros(1000, 2048)}, "w.pth")
    with pytest.raises(InputError, match=r"holds 'AuxLogits\.fc\.weight', which"):
        InceptionV3.from_tensors({**state, "AuxLogits.fc.weight": torch.zeros(1)}, "w.pth")


def test_layers_are_as_long_as_they_say(network, images):
    for layer, dimensions in LAYERS.items():
        if dimensions < 2048:
            with torch.no_grad():
                assert network(images[:1], layer)[0].shape == (1, dimensions)
