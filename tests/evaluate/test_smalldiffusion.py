"""The comparison with smalldiffusion, as far as it goes without that package."""

import sys
import types

import pytest
import torch

from genflow.errors import InputError
from genflow.evaluate import smalldiffusion


def test_without_the_package_there_is_one_clear_message(monkeypatch):
    monkeypatch.setattr(smalldiffusion, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps smalldiffusion einops"):
        smalldiffusion.compare_with_smalldiffusion(1)


def test_bad_numbers_are_named_first():
    with pytest.raises(InputError, match="minutes"):
        smalldiffusion.compare_with_smalldiffusion(0)


def test_a_missing_torchvision_is_stood_in_for_and_taken_away_again(monkeypatch, tmp_path):
    (tmp_path / "smalldiffusion.py").write_text(
        "from torchvision import transforms as tf\n"
        "constant = tf.Compose([tf.RandomHorizontalFlip(), tf.ToTensor(), tf.Lambda(lambda t: t)])\n"
    )
    (tmp_path / "einops.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what an absent package looks like to import
    monkeypatch.delitem(sys.modules, "smalldiffusion", raising=False)
    package = smalldiffusion.import_smalldiffusion()
    assert isinstance(package, types.ModuleType)
    assert hasattr(package, "constant")
    assert sys.modules.get("torchvision") is None
    sys.modules.pop("smalldiffusion", None)


def test_an_epoch_visits_each_image_once_in_a_seeded_order():
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    labels = torch.arange(10)
    one, two = (smalldiffusion._Batches(images, labels, 5, seed) for seed in (0, 0))
    first, again = list(one), list(two)
    assert [len(batch) for batch, _ in first] == [5, 5]
    seen = torch.cat([batch_labels for _, batch_labels in first])
    assert sorted(seen.tolist()) == list(range(10))
    assert torch.equal(seen, torch.cat([batch_labels for _, batch_labels in again]))
    assert not torch.equal(seen, torch.cat([batch_labels for _, batch_labels in one]))
    scaled = torch.cat([batch for batch, _ in first]).flatten()
    assert torch.allclose(scaled, seen / 127.5 - 1)
