"""The same images give the same arrays, order, labels and hash, whatever holds them."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genflow.evaluate.sources import decode, open_source

DATA = Path(__file__).parents[2] / "data"


def prepare(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(stream, "PNG")
    return stream.getvalue()


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_idx(path: Path, array: np.ndarray) -> Path:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@st.composite
def sets_of_images(draw) -> tuple[np.ndarray, np.ndarray]:
    count, height, width = draw(st.integers(1, 13)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = generator.integers(0, 256, (count, height, width, draw(st.sampled_from([1, 3]))), dtype=np.uint8)
    return images, generator.integers(0, 3, count)


@settings(max_examples=15, deadline=None)
@given(case=sets_of_images())
def test_every_kind_of_source_gives_the_same(tmp_path_factory, case) -> None:
    images, labels = case
    home = tmp_path_factory.mktemp("same")
    files = {f"{index}.png": png(image) for index, image in enumerate(images)}  # natural order: 9 before 10
    backwards = dict(reversed(files.items()))
    listed = {"dataset.json": json.dumps({"labels": [[name, int(n)] for name, n in zip(files, labels, strict=True)]})}
    listed = {name: text.encode() for name, text in listed.items()}
    np.save(home / "a.npy", images)
    np.savez(home / "a.npz", arr_0=images, arr_1=labels)
    np.savez_compressed(home / "b.npz", images=images, labels=labels)
    encoded = [
        write_folder(home / "folder", files | listed),
        write_zip(home / "a.zip", backwards | listed),
        write_zip(home / "b.zip", files | listed, zipfile.ZIP_DEFLATED),
        write_tar(home / "a.tar", backwards | listed),
        write_tar(home / "a.tar.gz", files | listed, "w:gz"),
        write_tar(home / "a.tgz", backwards | listed, "w:gz"),
    ]
    arrays = [home / "a.npz", home / "b.npz", home / "a.npy"]
    write_idx(home / "a-labels-idx1-ubyte", labels)
    arrays.append(write_idx(home / "a-images-idx3-ubyte", images[..., 0] if images.shape[3] == 1 else images))
    hashes = {}
    for path in (*encoded, *arrays):
        source = open_source(path)
        assert len(source) == len(source.names) == len(images), path
        assert source.names[-1].startswith((str(len(images) - 1), f"[{len(images) - 1}]"))
        (batch,) = decode(source, range(len(images)), prepare, batch_size=100, workers=0)
        assert batch.images.dtype == torch.uint8
        assert np.array_equal(batch.images.permute(0, 2, 3, 1), images), path
        assert np.array_equal(source.read(len(images) - 1), images[-1])
        if path.suffix == ".npy":
            assert source.labels is None
        else:
            assert source.labels.dtype == torch.int64
            assert source.labels.tolist() == labels.tolist(), path
        hashes[path] = source.content_hash()
        assert source.content_hash(range(len(images))) == hashes[path]
        again = pickle.loads(pickle.dumps(source))  # as a worker process gets it
        assert np.array_equal(again.read(0), images[0])
    assert len({hashes[path] for path in encoded}) == 1
    assert len({hashes[path] for path in arrays}) == 1


def test_the_hash_is_of_bytes_and_order_not_of_names(tmp_path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 1), dtype=np.uint8)
    data = [png(image) for image in images]
    first = open_source(write_folder(tmp_path / "a", dict(zip(["1.png", "2.png", "3.png"], data, strict=False))))
    renamed = open_source(write_folder(tmp_path / "b", dict(zip(["x/1.png", "x/y.png", "z.png"], data, strict=False))))
    swapped = open_source(write_folder(tmp_path / "c", {"1.png": data[1], "2.png": data[0], "3.png": data[2]}))
    other = open_source(write_folder(tmp_path / "d", {"1.png": data[0], "2.png": data[1], "3.png": data[3]}))
    assert first.content_hash() == renamed.content_hash()
    assert len({source.content_hash() for source in (first, swapped, other)}) == 3
    assert first.content_hash([0, 1]) == other.content_hash([0, 1]) != first.content_hash([1, 0])
    np.save(tmp_path / "grey.npy", images)
    np.save(tmp_path / "flat.npy", images[..., 0])
    np.save(tmp_path / "wide.npy", images.reshape(4, 1, 9, 1))
    grey, flat, wide = (open_source(tmp_path / f"{name}.npy") for name in ("grey", "flat", "wide"))
    assert grey.content_hash() == flat.content_hash() != wide.content_hash()
    assert (
        grey.content_hash([2, 0])
        == open_source(tmp_path / "grey.npy").content_hash([2, 0])
        != grey.content_hash([0, 2])
    )
    assert grey.content_hash([1, 2]) != grey.content_hash([1, 3])


def test_arrays_stay_on_the_disk(tmp_path) -> None:
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", other=np.zeros(3), arr_0=images)
    np.savez(tmp_path / "f.npz", arr_0=np.asfortranarray(images))
    np.savez_compressed(tmp_path / "c.npz", arr_0=images)
    for name, mapped in (("a.npy", True), ("a.npz", True), ("f.npz", True), ("c.npz", False)):
        source = open_source(tmp_path / name)
        base = source.array
        while base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap) == mapped, name
        assert np.array_equal(source.read(3), images[3])
        assert source.read(3).flags.writeable
        assert source.content_hash() == open_source(tmp_path / "a.npy").content_hash()


def test_idx_and_fashion_mnist_have_their_labels() -> None:
    source = open_source(DATA / "fashion-1k-images-idx3-ubyte.gz")
    assert len(source) == len(source.labels) == 1000
    assert source.read(0).shape == (28, 28, 1)
    named = open_source(DATA / "fashion-1k-images-idx3-ubyte.gz", class_names=("a", "b", "c"))
    assert torch.equal(named.labels, torch.where(source.labels < 3, source.labels, -1))


def test_hidden_files_grids_and_others_are_passed_over(tmp_path) -> None:
    image = png(np.zeros((2, 2, 1), np.uint8))
    files = {"a.png": image, "b/C.JPG": image, ".hidden.png": b"x", ".d/e.png": b"x", "__MACOSX/a.png": b"x"}
    files |= {"grid.png": b"x", "b/grid.png": b"x", "notes.txt": b"x", "b/._C.JPG": b"x", "./c.png": image}
    for source in (
        write_folder(tmp_path / "folder", files),
        write_zip(tmp_path / "a.zip", files),
        write_tar(tmp_path / "a.tar", files),
    ):
        assert open_source(source).names == ("a.png", "b/C.JPG", "c.png"), source


def test_a_source_is_not_read_when_it_is_opened(tmp_path) -> None:
    write_folder(tmp_path / "folder", {"a.png": b"", "b.png": b"text"})
    source = open_source(tmp_path / "folder")
    assert len(source) == 2
    assert source.labels is None
    assert source.class_names is None


def test_a_thousand_small_files_are_hashed_in_a_fifth_of_a_second(tmp_path) -> None:
    import time

    write_folder(tmp_path, {f"{index}.png": bytes(600) for index in range(1000)})
    source = open_source(tmp_path)
    begun = time.process_time()
    source.content_hash()
    assert time.process_time() - begun < 0.2


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_of_a_tar_can_be_read_in_any_order_by_many_threads(tmp_path, mode) -> None:
    from concurrent.futures import ThreadPoolExecutor

    generator = np.random.default_rng(0)
    files = {
        f"{index:03d}.png": generator.bytes(int(size)) for index, size in enumerate(generator.integers(0, 9000, 90))
    }
    source = open_source(write_tar(tmp_path / ("a.tar" if mode == "w" else "a.tgz"), files, mode))
    order = generator.permutation(90).tolist()
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(source.read_bytes, order))
    assert read == [files[source.names[index]] for index in order]
