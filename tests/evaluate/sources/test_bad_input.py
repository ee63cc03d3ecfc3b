"""Everything that is no set of images is one line that names it."""

import io
import os
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.errors import InputError
from genflow.evaluate.sources import decode, holds_images, is_statistics_file, open_source
from genflow.images import UnreadableImageError


def prepare(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def png(value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


def refused(path: Path | str, message: str, **options) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_source(path, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(options.get("argument", "samples") + ": ")


def test_what_is_not_there(tmp_path) -> None:
    refused(tmp_path / "none", "neither a folder nor a file here")
    refused(tmp_path / "none", "^--reference: '", argument="--reference")
    refused("", "got an empty name")
    refused("none.zip", "neither a folder nor a file here")
    refused("./none", "neither a folder nor a file here")
    refused("a/b/c", "neither a folder nor a file here")
    refused("fashion-mnist:validation", "split: 'validation' is not known; allowed: train, test")
    refused("fashion-mnist", "split: 'all' is not known", split="all")


def test_folders_without_images(tmp_path) -> None:
    refused(tmp_path, "holds no image")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(png())
    (tmp_path / ".folder").mkdir()
    (tmp_path / ".folder" / "a.png").write_bytes(png())
    (tmp_path / "grid.png").write_bytes(png())
    refused(tmp_path, "holds no image")


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png())
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    refused(tmp_path, r"closed: cannot be listed \(Permission denied\)")


def test_files_that_hold_no_images(tmp_path) -> None:
    for name, data, message in (
        ("a.txt", b"text", "is no file of images; allowed: .zip, .tar"),
        ("a.bin", b"", "is an empty file"),
        ("a.png", png(), "is one image; allowed: a folder"),
        ("a.idx", b"\0\0\x0d\x03rest", "is no file of images"),
        ("a.safetensors", b"x", "statistics of features, no images"),
        ("a.npy", b"x", "cannot be read as a numpy file"),
        ("a.npz", b"x", "cannot be read as a numpy file"),
        ("a.zip", b"x", "damaged or no archive"),
        ("a.tar", b"x", "damaged or no archive"),
        ("a.tgz", b"\x1f\x8bxxxxxxxxxxxxxxx", "damaged or no archive"),
    ):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, message)


def test_arrays_that_hold_no_images(tmp_path) -> None:
    images = np.zeros((3, 4, 4), np.uint8)

    def saved(message: str, *, labels=None, **arrays) -> None:
        np.savez(tmp_path / "a.npz", **arrays, **({} if labels is None else {"arr_1": labels}))
        refused(tmp_path / "a.npz", message)

    saved("no array 'arr_0' or 'images'; it holds: 'x'", x=images)
    saved(r"float32 of shape \(3, 4, 4\); allowed: uint8", arr_0=images.astype(np.float32))
    saved(r"uint8 of shape \(4, 4\); allowed", arr_0=images[0])
    saved(r"shape \(3, 3, 8, 8\); allowed: .*, transpose it", arr_0=np.zeros((3, 3, 8, 8), np.uint8))
    saved("holds no image", arr_0=images[:0])
    saved("holds no image", arr_0=images[:, :0])
    saved(r"labels are int64 of shape \(2,\); allowed: integers \(3,\)", arr_0=images, labels=np.zeros(2, np.int64))
    saved(r"labels are float64", arr_0=images, labels=np.zeros(3))
    saved("cannot be read as a numpy file", arr_0=np.array([{}], dtype=object))
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(tmp_path / "a.npy", "cannot be read as a numpy file")
    np.save(tmp_path / "b.npy", images)
    data = (tmp_path / "b.npy").read_bytes()
    for length in (3, 50, len(data) - 1):
        (tmp_path / "b.npy").write_bytes(data[:length])
        refused(tmp_path / "b.npy", r"b\.npy: cannot be read")
    np.savez(tmp_path / "c.npz", arr_0=images)
    data = (tmp_path / "c.npz").read_bytes()
    for length in (10, 100, len(data) - 1):
        (tmp_path / "c.npz").write_bytes(data[:length])
        refused(tmp_path / "c.npz", r"c\.npz: cannot be read")


def test_statistics_files_are_told_by_what_is_in_them(tmp_path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.zeros(2), sigma=np.eye(2))
    np.savez(tmp_path / "both.npz", mu=np.zeros(2), sigma=np.eye(2), arr_0=np.zeros((3, 4, 4), np.uint8))
    np.savez(tmp_path / "i.npz", arr_0=np.zeros((3, 4, 4), np.uint8))
    (tmp_path / "f.safetensors").write_bytes(b"")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    found = [is_statistics_file(tmp_path / name) for name in ("s.npz", "both.npz", "i.npz", "f.safetensors")]
    assert found == [True, True, False, True]
    assert not is_statistics_file(tmp_path / "broken.npz")
    assert not is_statistics_file(tmp_path)
    assert not is_statistics_file("fashion-mnist")
    refused(tmp_path / "s.npz", "holds statistics of features, no images")
    assert [holds_images(tmp_path / name) for name in ("s.npz", "both.npz", "i.npz", "broken.npz")] == [
        False,
        True,
        True,
        False,
    ]
    assert len(open_source(tmp_path / "both.npz")) == 3


def test_one_bad_image_among_many_is_named_or_counted(tmp_path) -> None:
    for index in range(60):
        (tmp_path / f"{index:03d}.png").write_bytes(png(index))
    bad = {
        "007.png": (noise("PNG")[:500], "truncated"),
        "011.png": (b"", "empty file"),
        "013.png": (b"just text\n", "no known format"),
        "050.jpg": (noise()[:1200], "truncated"),
    }
    for name, (data, why) in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImageError, match=rf"{name}: unreadable image \(.*({why}).*--skip-bad"):
            list(decode(open_source(tmp_path), range(len(open_source(tmp_path))), prepare))
        (tmp_path / name).write_bytes(png())
    for name, (data, _) in bad.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "055.png").unlink()
    os.symlink(tmp_path / "nowhere", tmp_path / "055.png")
    source = open_source(tmp_path)
    assert len(source.content_hash()) == 64
    batches = list(decode(source, range(len(source)), prepare, batch_size=7, skip_bad=True))
    assert [place for batch in batches for place, _ in batch.bad] == [
        f"{tmp_path}/{name}" for name in ("007.png", "011.png", "013.png", "050.jpg", "055.png")
    ]
    assert sum(len(batch.positions) for batch in batches) == len(source) - 5 == 56
    assert all("No such file" in why for batch in batches for place, why in batch.bad if "055" in place)


def noise(form: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, form)
    return stream.getvalue()


def test_encrypted_archives_are_refused_by_name(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/a.png", png())
    data = bytearray((tmp_path / "a.zip").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path / "a.zip", r"a\.zip: x/a\.png is encrypted")


def test_truncated_archives_are_refused_and_damaged_members_named(tmp_path) -> None:
    files = {f"{index}.png": noise() for index in range(9)}
    for name, mode in (("a.tar", "w"), ("a.tgz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            for path, data in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        data = (tmp_path / name).read_bytes()
        member = 512 + -(-len(noise()) // 512) * 512
        for length in (0, 100, 512, 700, len(data) // 2, member, 2 * member, 9 * member, 9 * member - 512):
            (tmp_path / name).write_bytes(data[:length])
            if length < len(data):
                refused(tmp_path / name, rf"{name}.* (damaged|is an empty file)")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "cut.zip", r"cut\.zip: damaged")
    data[data.index(files["4.png"]) + 100] ^= 255  # the first of equal files
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UnreadableImageError, match=r"a\.zip/0\.png: unreadable image \(in its archive: Bad CRC"):
        list(decode(open_source(tmp_path / "a.zip"), range(9), prepare))
    (batch,) = decode(open_source(tmp_path / "a.zip"), range(9), prepare, skip_bad=True)
    assert [place for place, _ in batch.bad] == [f"{tmp_path}/a.zip/0.png"]


def test_damaged_bytes_anywhere_never_end_in_another_error(tmp_path) -> None:
    generator = np.random.default_rng(0)
    files = {f"a/{index}.png": png(index) for index in range(3)} | {"dataset.json": b'{"labels": [["a/1.png", 3]]}'}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / f"{method}.zip", "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    for name, mode in (("a.tar", "w"), ("a.tgz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            for path, data in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    arrays = {"arr_0": np.zeros((4, 3, 3, 3), np.uint8), "arr_1": np.arange(4)}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    np.save(tmp_path / "a.npy", arrays["arr_0"])
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    refusals = 0
    for _ in range(40):
        for path, data in whole.items():
            damaged = bytearray(data)
            for place in generator.integers(0, len(data), int(generator.integers(1, 6))):
                damaged[place] = generator.integers(0, 256)
            path.write_bytes(damaged if generator.random() < 0.8 else damaged[: generator.integers(0, len(data))])
            try:
                source = open_source(path)
                source.content_hash()
                _ = source.labels
                list(decode(source, range(len(source)), prepare, workers=0, skip_bad=True))
            except InputError:
                refusals += 1
    assert refusals > 100


def test_members_that_claim_to_be_huge_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("genflow.evaluate.sources.archives._LARGEST", 5_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10_000))
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = 10_000
        archive.addfile(info, io.BytesIO(bytes(10_000)))
    for name in ("a.zip", "a.tgz"):
        with pytest.raises(UnreadableImageError, match="claims to be of 10000 bytes"):
            open_source(tmp_path / name).read(0)


def test_paths_in_archives_lead_nowhere(tmp_path) -> None:
    names = ("../../evil.png", "/tmp/evil.png", "C:\\evil.png", "a/../b.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, png())
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(png())
            archive.addfile(info, io.BytesIO(png()))
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "/etc/passwd")):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for kind, name in ((tarfile.FIFOTYPE, "fifo.png"), (tarfile.DIRTYPE, "folder.png")):
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
    before = set(tmp_path.rglob("*"))
    for name in ("a.zip", "a.tar"):
        source = open_source(tmp_path / name)
        assert all(source.read(index).shape == (4, 4, 1) for index in range(len(source)))
        assert source.names == ("../../evil.png", "C:/evil.png", "a/../b.png", "tmp/evil.png")
    assert set(tmp_path.rglob("*")) == before


def test_archives_without_images(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
        archive.writestr("dataset.json", "{}")
    refused(tmp_path / "a.zip", "holds no image")
    tarfile.open(tmp_path / "a.tar", "w").close()
    refused(tmp_path / "a.tar", "holds no image")


class _Column(dict):
    """A table of ``datasets`` as far as sources read it."""

    def __init__(self, features, columns) -> None:
        super().__init__(columns)
        self.features = features

    def __len__(self) -> int:
        return len(next(iter(self.values())))

    def cast_column(self, name, feature) -> "_Column":
        assert feature.decode is False
        return self

    def __getitem__(self, key):
        if isinstance(key, str):
            return super().__getitem__(key)
        return {name: values[key] for name, values in self.items()}


@pytest.fixture
def library(monkeypatch) -> types.ModuleType:
    class Feature:
        def __init__(self, decode=True, names=()) -> None:
            self.decode, self.names = decode, list(names)

    module = types.ModuleType("datasets")
    module.Image = type("Image", (Feature,), {})
    module.ClassLabel = type("ClassLabel", (Feature,), {})
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_a_data_set_is_read_as_its_files_are_stored(tmp_path, library) -> None:
    (tmp_path / "b.png").write_bytes(png(7))
    rows = [{"bytes": png(5), "path": None}, {"bytes": None, "path": str(tmp_path / "b.png")}, None]
    rows += [{"bytes": None, "path": str(tmp_path / "none.png")}]
    features = {"picture": library.Image(), "kind": library.ClassLabel(names=["cat", "boat"])}
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return _Column(features, {"picture": rows, "kind": [1, 0, None, -1]})

    library.load_dataset = load_dataset
    source = open_source("owner/name", split="validation")
    assert asked == [("owner/name", "validation")]
    assert (len(source), source.labels.tolist(), source.class_names) == (4, [1, 0, -1, -1], ("cat", "boat"))
    assert [int(source.read(index)[0, 0, 0]) for index in (0, 1)] == [5, 7]
    for index, why in ((2, "no image here"), (3, "No such file")):
        with pytest.raises(UnreadableImageError, match=rf"owner/name/validation\[{index}\].*{why}"):
            source.read(index)
    named = open_source("owner/name", class_names=("boat",))
    assert named.labels.tolist() == [0, -1, -1, -1]
    assert source.content_hash([1]) == open_source(write(tmp_path / "f", png(7))).content_hash()


def write(folder: Path, data: bytes) -> Path:
    folder.mkdir()
    (folder / "x.png").write_bytes(data)
    return folder


def test_data_sets_that_cannot_be_had(library) -> None:
    def fails(name, split):
        raise ConnectionError("no network")

    library.load_dataset = fails
    refused("owner/name", "'owner/name' cannot be loaded .*no network")
    library.load_dataset = lambda name, split: _Column({"text": object()}, {"text": ["a"]})
    refused("owner/name", "has no image column; its columns: text")
    library.load_dataset = lambda name, split: _Column({"image": library.Image()}, {"image": []})
    refused("owner/name", "holds no image")


def test_without_the_library_a_data_set_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("owner/name", r"'owner/name' is no file or folder here; .*pip install 'genflow\[data\]'")
    monkeypatch.setattr("genflow.evaluate.sources.opening.fashion_mnist_file", lambda split: None)
    refused("fashion-mnist", "apt-get install dataset-fashion-mnist")
