"""LeanUNet2DModel: shapes, labels, the start at zero, saving, and the attention's two forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.models import LeanUNet2DModel
from genflow.models.unet import _SelfAttention

SMALL = {"block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": 16, "time_embed_dim": 32}


def randomized(**options):
    torch.manual_seed(0)
    network = LeanUNet2DModel(**{**SMALL, **options})
    with torch.no_grad():
        for parameter in network.parameters():  # the zero-initialized layers would hide everything
            parameter.normal_(0, 0.1)
    return network.eval()


@settings(deadline=None, max_examples=15)
@given(
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    channels=st.integers(1, 4),
    patch=st.sampled_from([1, 2, 4]),
    levels=st.integers(1, 3),
)
def test_any_size_and_channel_count(size, channels, patch, levels):
    network = LeanUNet2DModel(
        in_channels=channels, patch_size=patch, block_out_channels=(16,) * levels, layers_per_block=1,
        attention_levels=(levels - 1,), attention_head_dim=8, time_embed_dim=16,
    )  # fmt: skip
    x = torch.randn(2, channels, *size)
    assert network(x, 500.0).sample.shape == x.shape


def test_starts_as_zero_and_out_channels():
    network = LeanUNet2DModel(**SMALL, out_channels=3)
    output = network(torch.randn(2, 1, 28, 28), torch.tensor([1.0, 999.0])).sample
    assert output.shape == (2, 3, 28, 28)
    assert torch.equal(output, torch.zeros_like(output))


def test_images_of_a_batch_do_not_see_each_other():
    network = randomized(num_classes=3)
    x, t, labels = torch.randn(4, 1, 12, 12), torch.rand(4) * 1000, torch.tensor([0, 1, 2, 3])
    together = network(x, t, labels).sample
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], labels[i : i + 1]).sample for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_time_and_class_matter_and_tuple_output():
    network = randomized(num_classes=3)
    x, labels = torch.randn(1, 1, 12, 12), torch.tensor([1])
    base = network(x, 500, labels).sample
    assert not torch.allclose(base, network(x, 400, labels).sample)
    assert not torch.allclose(base, network(x, 500, torch.tensor([3])).sample)
    assert torch.equal(base, network(x, torch.tensor(500), labels, return_dict=False)[0])


def test_labels_missing_or_unexpected():
    x = torch.randn(1, 1, 8, 8)
    with pytest.raises(InputError, match="class_labels: missing"):
        LeanUNet2DModel(**SMALL, num_classes=3)(x, 1.0)
    with pytest.raises(InputError, match="class_labels: given"):
        LeanUNet2DModel(**SMALL)(x, 1.0, torch.tensor([0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers_per_block": (1, 2, 3)}, "layers_per_block"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"attention_levels": (2,)}, "attention_levels: got 2"),
        ({"attention_head_dim": 24}, "24 does not divide the 32 channels"),
    ],
)
def test_bad_architectures(options, message):
    with pytest.raises(InputError, match=message):
        LeanUNet2DModel(**{**SMALL, **options})


def test_saved_and_loaded(tmp_path):
    network = randomized(num_classes=3, layers_per_block=(1, 2))
    network.save_pretrained(tmp_path, safe_serialization=True)
    again = LeanUNet2DModel.from_pretrained(tmp_path)
    x, labels = torch.randn(1, 1, 12, 12), torch.tensor([1])
    assert torch.equal(network(x, 10, labels).sample, again(x, 10, labels).sample)


def test_bfloat16_is_near_float32():
    network = randomized(num_classes=3)
    x, labels = torch.randn(2, 1, 12, 12), torch.tensor([1, 2])
    exact = network(x, 500, labels).sample
    rough = network.to(torch.bfloat16)(x.bfloat16(), 500, labels).sample
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_attention_forms_agree():
    torch.manual_seed(0)
    attention = _SelfAttention(32, 16)
    with torch.no_grad():
        attention.out.weight.normal_()
    x = torch.randn(2, 32, 5, 5)
    fused = attention(x)
    parts = attention.to(torch.bfloat16)(x.bfloat16()).float()
    assert (parts - fused).norm() < 0.02 * fused.norm()
