"""Every kind of source gives the same images; every fault is named."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genflow import data as data_module
from genflow.arrays import read_idx
from genflow.data import FASHION_MNIST_CLASSES, ImageData, load_images
from genflow.errors import InputError

SLICE = Path(__file__).parents[1] / "data" / "fashion-1k-images-idx3-ubyte.gz"


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (6, 5, 4), dtype=np.uint8), np.array([0, 1, 2, 0, 1, 2])


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as stream:
        stream.write(header + array.astype(np.uint8).tobytes())


def test_the_slice_in_the_tests():
    loaded = load_images(SLICE)
    assert loaded.images.shape == (1000, 1, 28, 28)
    assert loaded.num_classes == 10
    assert torch.bincount(loaded.labels).min() > 80


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_pair(tmp_path, arrays, suffix):
    write_idx(tmp_path / f"a-images-idx3-ubyte{suffix}", arrays[0])
    write_idx(tmp_path / f"a-labels-idx1-ubyte{suffix}", arrays[1])
    loaded = load_images(tmp_path / f"a-images-idx3-ubyte{suffix}")
    assert np.array_equal(loaded.images[:, 0], arrays[0])
    assert loaded.labels.tolist() == arrays[1].tolist()
    assert loaded.num_classes == 3


def test_numpy_files(tmp_path, arrays):
    np.save(tmp_path / "a.npy", arrays[0])
    np.savez(tmp_path / "a.npz", arr_0=np.stack([arrays[0]] * 3, axis=-1), labels=arrays[1])
    grey, colour = load_images(tmp_path / "a.npy"), load_images(tmp_path / "a.npz")
    assert np.array_equal(grey.images[:, 0], arrays[0])
    assert grey.labels is None
    assert grey.num_classes is None
    assert colour.images.shape == (6, 3, 5, 4)
    assert colour.labels.tolist() == arrays[1].tolist()


def test_folder_with_classes(tmp_path, arrays):
    for index, (array, label) in enumerate(zip(*arrays, strict=True)):
        folder = tmp_path / "abc"[label]
        folder.mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / f"{index}.png")
    (tmp_path / ".hidden").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / ".hidden" / "x.png")
    loaded = load_images(tmp_path)
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(loaded.images[2, 0], arrays[0][1])


def test_flat_folder_in_colour(tmp_path, arrays):
    Image.fromarray(np.stack([arrays[0][0]] * 3, axis=-1)).save(tmp_path / "a.png")
    Image.fromarray(arrays[0][1]).save(tmp_path / "b.png")  # grey among colour: taken along
    loaded = load_images(tmp_path)
    assert loaded.images.shape == (2, 3, 5, 4)
    assert loaded.labels is None


@pytest.mark.parametrize("content", [b"", b"\x89PNG not really", None])
def test_bad_image_is_named_then_skipped(tmp_path, arrays, content):
    Image.fromarray(arrays[0][0]).save(tmp_path / "a.png")
    bad = tmp_path / "b.png"
    Image.fromarray(arrays[0][1]).save(bad)
    bad.write_bytes(bad.read_bytes()[:50] if content is None else content)
    with pytest.raises(InputError, match=r"b\.png: unreadable image"):
        load_images(tmp_path)
    with pytest.warns(UserWarning, match=r"skipped 1 unreadable image.*b\.png"):
        assert len(load_images(tmp_path, skip_bad=True)) == 1


def test_faults_of_folders(tmp_path, arrays):
    with pytest.raises(InputError, match="holds no image"):
        load_images(tmp_path)
    Image.fromarray(arrays[0][0]).save(tmp_path / "a.png")
    Image.new("L", (7, 7)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png: 7x7 pixels where the first image has 4x5"):
        load_images(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "b.png").rename(tmp_path / "c" / "b.png")
    with pytest.raises(InputError, match="beside the class folders"):
        load_images(tmp_path)


def test_faults_of_files(tmp_path, arrays):
    with pytest.raises(InputError, match="neither a file nor a folder"):
        load_images(tmp_path / "missing")
    with pytest.raises(InputError, match="split: 'training' is not known"):
        load_images(SLICE, "training")
    (tmp_path / "a.idx").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(InputError, match="not an IDX file"):
        load_images(tmp_path / "a.idx")
    write_idx(tmp_path / "short", arrays[0])
    (tmp_path / "short").write_bytes((tmp_path / "short").read_bytes()[:-3])
    with pytest.raises(InputError, match="117 bytes of data where its header promises 120"):
        read_idx(tmp_path / "short")
    (tmp_path / "cut.gz").write_bytes(SLICE.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as IDX"):
        read_idx(tmp_path / "cut.gz")
    np.save(tmp_path / "float.npy", arrays[0].astype(np.float32))
    with pytest.raises(InputError, match="float32 of shape"):
        load_images(tmp_path / "float.npy")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read as a numpy file"):
        load_images(tmp_path / "pickle.npy")
    np.savez(tmp_path / "other.npz", pixels=arrays[0])
    with pytest.raises(InputError, match="no array 'arr_0' or 'images'; it holds: 'pixels'"):
        load_images(tmp_path / "other.npz")


def test_fashion_mnist_from_its_package_or_a_clear_word(tmp_path, monkeypatch):
    for name, array in (("images-idx3", read_idx(SLICE)[:7]), ("labels-idx1", np.arange(7))):
        write_idx(tmp_path / f"t10k-{name}-ubyte.gz", array)
    monkeypatch.setattr(data_module, "_DEBIAN_FASHION_MNIST", tmp_path)
    loaded = load_images("fashion-mnist", "test")
    assert len(loaded) == 7
    assert loaded.class_names == FASHION_MNIST_CLASSES
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match="apt-get install dataset-fashion-mnist"):
        load_images("fashion-mnist", "train")
    with pytest.raises(InputError, match=r"genflow\[data\]"):
        load_images("somebody/pictures")


def test_image_data_checks_itself():
    with pytest.raises(InputError, match="allowed: uint8"):
        ImageData(torch.zeros(2, 1, 3, 3))
    with pytest.raises(InputError, match="labels: got 1 for 2 images"):
        ImageData(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="at least one"):
        ImageData(torch.zeros(0, 1, 3, 3, dtype=torch.uint8))


def test_classes_are_selected_in_the_order_asked_for():
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    data = ImageData(images, torch.tensor([0, 1, 2, 0, 1, 2]), ("cat", "dog", "7"), tuple("uvwxyz"))
    two = data.select(["dog", 0])
    assert two.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
    assert two.labels.tolist() == [1, 0, 1, 0]
    assert two.class_names == ("dog", "cat")
    assert two.names == ("u", "v", "x", "y")
    one = data.select(["7"])  # a name before a number
    assert one.images[:, 0, 0, 0].tolist() == [2, 5]
    assert one.labels is None
    assert one.num_classes is None
    for classes, message in (
        (["dig"], "'dig' is not known.*did you mean 'dog'.*0 to 2, or a name: cat, dog, 7"),
        ([3], "3 is not known"),
        (["cat", 0], "none twice"),
        ([], "one or more"),
    ):
        with pytest.raises(InputError, match=message):
            data.select(classes)
    with pytest.raises(InputError, match="images without labels"):
        one.select([0])
    with pytest.raises(InputError, match="there is no image of"):
        ImageData(images, torch.zeros(6, dtype=torch.int64), ("cat", "dog")).select(["dog"])


def test_a_folder_keeps_names_and_passes_over_grids(tmp_path, arrays):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    Image.new("L", (40, 40)).save(tmp_path / "grid.png")
    loaded = load_images(tmp_path)
    assert loaded.names == ("a/1.png", "a/2.png", "b/1.png")
    assert load_images(tmp_path, classes=["b"]).names == ("b/1.png",)
