"""extract(): what it gives, what it says of images that are bad, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from genflow_tiny_extraction import TinyExtractor, kept_files, same, stop_after, tiny_images, tiny_source
from PIL import Image

from genflow.errors import InputError, NonFiniteError
from genflow.evaluate.extraction import draw_indices, extract
from genflow.evaluate.sources import open_source
from genflow.evaluate.sources.pixels import ALPHA_DROPPED

HERE = Path(__file__).parent


def test_features_statistics_labels_and_protocol() -> None:
    network = TinyExtractor()
    labels = np.arange(21) % 3 - 1
    found = extract(tiny_source(21, labels=labels), network, cache=False)
    direct = TinyExtractor()(torch.from_numpy(tiny_images(21).transpose(0, 3, 1, 2)))
    assert torch.equal(found.features, direct.values)
    assert torch.equal(found.predicted, direct.predicted)
    assert torch.equal(found.logits, direct.logits)
    assert found.labels.tolist() == labels.tolist()
    assert found.names == tuple(f"[{i}]" for i in range(21))
    expected = np.cov(direct.values.double().numpy().T)
    assert found.statistics.count == 21
    np.testing.assert_allclose(found.statistics.covariance, expected, rtol=1e-12)
    contrast = tiny_images(21).reshape(21, -1).std(1)
    assert found.images["contrast"].shape == (21,)
    assert np.corrcoef(found.images["contrast"], contrast)[0, 1] > 0.999
    protocol = dict(found.protocol)
    assert len(protocol.pop("content_sha256")) == 64
    assert protocol == {
        **network.describe(),
        "source": "tiny",
        "count": 21,
        "available": 21,
        "seed": None,
        "skipped": [],
        "notes": {},
    }
    json.dumps(found.protocol, allow_nan=False)


def test_labels_that_are_all_unknown_are_none() -> None:
    assert extract(tiny_source(4, labels=np.full(4, -1)), TinyExtractor(), cache=False).labels is None


def test_the_draw_is_the_one_that_evaluation_always_made() -> None:
    expected = np.sort(np.random.default_rng(7).permutation(100)[:30])
    assert draw_indices(100, 30, 7) == expected.tolist()
    assert draw_indices(5, None, 0) == [0, 1, 2, 3, 4]
    found = extract(tiny_source(100), TinyExtractor(), count=30, seed=7, cache=False)
    whole = extract(tiny_source(100), TinyExtractor(), cache=False)
    assert torch.equal(found.features, whole.features[expected])
    assert found.protocol["seed"] == 7
    assert (found.protocol["count"], found.protocol["available"]) == (30, 100)
    assert [found.images[name].tolist() for name in found.images] == [
        whole.images[name][expected].tolist() for name in whole.images
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 11}, "count: got 11; there are 10 samples"),
        ({"count": 0}, "count: got 0"),
        ({"count": 1}, "samples: 1 of tiny can be judged; at least 2 are needed"),
        ({"count": 3, "seed": -1}, "seed: got -1"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_refused_before_any_work(options, message, tmp_path) -> None:
    network = TinyExtractor()
    with pytest.raises(InputError, match=message):
        extract(tiny_source(10), network, cache=tmp_path / "c", **options)
    assert network.seen == 0
    assert not (tmp_path / "c").exists()


def test_one_image_is_too_few() -> None:
    with pytest.raises(InputError, match="1 of tiny can be judged; at least 2"):
        extract(tiny_source(1), TinyExtractor(), cache=False)


def test_a_bad_image_is_named_then_left_out_and_found_again(tmp_path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(tiny_images(12)):
        Image.fromarray(image[:, :, 0]).save(folder / f"{index:02d}.png")
    (folder / "05.png").write_bytes(b"no image")
    network, cache = TinyExtractor(batch_size=4), tmp_path / "c"
    with pytest.raises(InputError, match=r"05\.png"):
        extract(open_source(folder), network, cache=cache)
    assert kept_files(cache)  # what came before it is kept
    found = extract(open_source(folder), network, cache=cache, skip_bad=True)
    assert network.seen == 11
    assert found.protocol["skipped"] == [str(folder / "05.png")]
    assert found.protocol["count"] == found.statistics.count == len(found.features) == len(found.names) == 11
    assert "05.png" not in found.names
    assert same(found, extract(open_source(folder), network, cache=cache, skip_bad=True))
    with pytest.raises(InputError, match=r"05\.png"):  # the cache hides nothing
        extract(open_source(folder), network, cache=cache)
    assert network.seen == 11
    for path in folder.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of 12 images can be read; the first: .*00\.png"):
        extract(open_source(folder), network, cache=cache, skip_bad=True)


def test_features_that_are_nan_name_the_first_image(tmp_path) -> None:
    network = TinyExtractor(broken=13)
    with pytest.raises(InputError, match=r"features: those of tiny\[13\] by tiny are NaN or infinite"):
        extract(tiny_source(20), network, cache=tmp_path)
    mended = TinyExtractor()
    extract(tiny_source(20), mended, cache=tmp_path)
    assert mended.seen == 12  # the first batch was kept


def test_a_network_that_fails_while_it_samples_says_so(tmp_path) -> None:
    class Broken(type(tiny_source(2))):
        def picture(self, index):
            if index == 9:
                raise NonFiniteError("step 3 gave NaN")
            return super().picture(index)

    network = TinyExtractor(batch_size=4)
    with pytest.raises(NonFiniteError, match="step 3"):
        extract(Broken(tiny_images(12), "tiny"), network, cache=tmp_path)
    assert network.seen == 8


def test_what_a_source_says_of_itself_and_its_files_is_in_the_protocol(tmp_path) -> None:
    class Sampled(type(tiny_source(2))):
        def describe(self):
            return {"sampling": {"model": "m", "steps": 4}}

    assert extract(Sampled(tiny_images(4), "s"), TinyExtractor(), cache=False).protocol["sampling"]["steps"] == 4
    for index, image in enumerate(tiny_images(20)):
        alpha = np.full_like(image, 128 if index in (3, 11, 17) else 255)
        Image.fromarray(np.concatenate([image, alpha], 2), "LA").save(tmp_path / f"{index:02d}.png")
    cache = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        extract(open_source(tmp_path), TinyExtractor(batch_size=4, after=stop_after(8)), cache=cache)
    for batch in (4, 3):  # the second time all is kept
        found = extract(open_source(tmp_path), TinyExtractor(batch_size=batch), cache=cache)
        assert found.protocol["notes"] == {ALPHA_DROPPED: 3}
