"""Where classes come from: dataset.json, records in PNGs, sub-folders; and how they are numbered."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from genflow.errors import InputError
from genflow.evaluate.sources import open_source
from genflow.evaluate.sources.labels import folder_classes, png_text, record_labels, renumbered
from genflow.images import save_png

NAMES = ("dark", "light")


def pictures(folder, paths) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(folder / path)


def labels(source) -> list[int] | None:
    return None if source.labels is None else source.labels.tolist()


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path) -> None:
    pictures(tmp_path, ["b/1.png", "a/x/2.png", "c/3.png", "a/1.png", "10/1.png"])
    source = open_source(tmp_path)
    assert source.names == ("10/1.png", "a/1.png", "a/x/2.png", "b/1.png", "c/3.png")
    assert source.class_names == ("10", "a", "b", "c")
    assert labels(source) == [0, 1, 1, 2, 3]
    assert source.labels.dtype == torch.int64
    among = open_source(tmp_path, class_names=("c", "b", "z"))
    assert among.class_names == ("c", "b", "z")
    assert labels(among) == [-1, -1, -1, 1, 0]
    assert labels(open_source(tmp_path, class_names=("x", "y"))) is None


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.png", "b/c.png"], None),  # beside folders
        (["only/a.png", "only/b.png"], None),
        (["00000/a.png", "00001/b.png"], None),  # how dataset tools spread files
        (["0/a.png", "1/b.png"], ([0, 1], ("0", "1"))),
        (["set/train/a/1.png", "set/train/b/1.png"], ([0, 1], ("a", "b"))),
        (["set/a/1.png", "set/a/2.png"], None),
        (["a/b/1.png", "a/1.png"], None),
    ],
)
def test_which_folders_count(paths, expected) -> None:
    found = folder_classes(paths, None)
    assert (None if found is None else (found[0].tolist(), found[1])) == expected


def test_folders_by_name_and_by_number_among_given_classes() -> None:
    found = folder_classes(["0/a.png", "1/a.png", "7/a.png", "light/a.png"], NAMES)
    assert found[0].tolist() == [0, 1, -1, 1]
    assert folder_classes(["light/a.png", "light/b.png"], NAMES)[0].tolist() == [1, 1]
    assert folder_classes(["set/light/a.png"], NAMES)[0].tolist() == [1]
    assert folder_classes(["00000/a.png", "00001/b.png"], NAMES)[0].tolist() == [0, 1]
    # a class may have a number for its name: the name counts
    assert folder_classes(["0/a.png", "1/a.png"], ("1", "0"))[0].tolist() == [1, 0]


def test_records_in_pngs_count_before_folders(tmp_path) -> None:
    records = [{"class": 1, "class_name": "light"}, {"class": 0, "class_name": "dark"}, None]
    for index, record in enumerate(records):
        save_png(Image.new("L", (2, 2)), tmp_path / f"{index}" / "a.png", record)
    source = open_source(tmp_path)
    assert (labels(source), source.class_names) == ([1, 0, -1], NAMES)
    assert labels(open_source(tmp_path, class_names=("light", "x"))) == [0, -1, -1]


def test_records_are_read_whatever_their_length_and_neighbours(tmp_path) -> None:
    for index, length in enumerate((0, 3000, 4000, 5000, 300_000)):
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", "x" * length)
        info.add_text("genflow2", "{}")
        info.add_text("genflow", json.dumps({"class": index, "prompt": "y" * length}))
        Image.new("L", (2, 2)).save(tmp_path / f"{index}.png", pnginfo=info)
    Image.new("L", (2, 2)).save(tmp_path / "5.png")
    (tmp_path / "6.png").write_bytes(b"")
    (tmp_path / "7.png").write_bytes((tmp_path / "3.png").read_bytes()[:2000])
    (tmp_path / "8.jpg").write_bytes((tmp_path / "3.png").read_bytes())
    assert labels(open_source(tmp_path)) == [0, 1, 2, 3, 4, -1, -1, -1, -1]


def test_png_text_stops_at_the_pixels() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99), dtype=np.uint8)).save(stream, "PNG")
    data = stream.getvalue()

    def whole() -> bytes:
        raise AssertionError("the beginning suffices")

    assert png_text(data[:200], whole) is None
    assert png_text(b"\xff\xd8 a JPEG", whole) is None


def text(number=None, name=None) -> str:
    return json.dumps({key: value for key, value in (("class", number), ("class_name", name)) if value is not None})


def test_records_with_given_names() -> None:
    texts = [text(7, "light"), text(1), text(2), text(0, "cat"), None, "no json", "[1]", text(-1), text(True), "{}"]
    found, names = record_labels(texts, NAMES)
    assert found.tolist() == [1, 1, -1, -1, -1, -1, -1, -1, -1, -1]
    assert names == NAMES
    assert record_labels([None, "{}", "x"], NAMES) is None


def test_records_without_given_names() -> None:
    found, names = record_labels([text(2, "c"), text(0, "a"), None, text(2, "c")], None)
    assert (found.tolist(), names) == ([2, 0, -1, 2], ("a", "1", "c"))
    found, names = record_labels([text(3), text(0)], None)
    assert (found.tolist(), names) == ([3, 0], None)
    # images of several models, whose numbers mean different things: the names decide
    found, names = record_labels([text(0, "cat"), text(0, "boat"), text(1, "cat"), None], None)
    assert (found.tolist(), names) == ([1, 0, 1, -1], ("boat", "cat"))


def test_a_dataset_json_counts_before_all(tmp_path) -> None:
    pictures(tmp_path, ["00000/img1.png", "00000/img2.png", "00001/img3.png"])
    listing = {"labels": [["00000/img2.png", 5], ["00001/img3.png", 0]]}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    source = open_source(tmp_path)
    assert (labels(source), source.class_names) == ([-1, 5, 0], None)
    source = open_source(tmp_path, class_names=NAMES)
    assert (labels(source), source.class_names) == ([-1, -1, 0], NAMES)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": None}))
    assert labels(open_source(tmp_path)) is None
    for bad in ("{", "[]", "{}", '{"labels": [1]}'):
        (tmp_path / "dataset.json").write_text(bad)
        with pytest.raises(InputError, match=r"dataset\.json: allowed: JSON"):
            open_source(tmp_path).labels  # noqa: B018
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["00000/img1.png", [0.0, 1.0]]]}))
    with pytest.raises(InputError, match=r"dataset\.json: labels that are not class numbers"):
        open_source(tmp_path).labels  # noqa: B018


def test_renumbering_goes_by_name_where_there_are_names() -> None:
    found, names = renumbered(torch.tensor([0, 1, 2, -1, 9]), ("a", "b", "c"), ("c", "a"))
    assert (found.tolist(), names) == ([1, -1, 0, -1, -1], ("c", "a"))
    found, names = renumbered(torch.tensor([0, 1, 2, -1]), None, ("c", "a"))
    assert (found.tolist(), names) == ([0, 1, -1, -1], ("c", "a"))
    found, names = renumbered(torch.tensor([4]), None, None)
    assert (found.tolist(), names) == ([4], None)


def test_a_source_is_turned_to_other_classes_without_opening_it_again(tmp_path, monkeypatch) -> None:
    pictures(tmp_path / "folder", ["a/1.png", "b/1.png", "c/1.png"])
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((3, 2, 2), np.uint8), arr_1=np.array([0, 1, 2]))
    folder, array = open_source(tmp_path / "folder"), open_source(tmp_path / "a.npz")
    assert labels(folder) == labels(array) == [0, 1, 2]
    monkeypatch.setattr("genflow.evaluate.sources.files.image_files", None)
    turned = folder.among(("c", "a"))
    assert (labels(turned), turned.class_names) == ([1, -1, 0], ("c", "a"))
    assert labels(turned.among(("b",)).among(("c", "a"))) == [1, -1, 0]
    assert labels(folder) == [0, 1, 2]
    assert turned.content_hash() == folder.content_hash()
    turned = array.among(("x", "y"))
    assert (labels(turned), turned.class_names) == ([0, 1, -1], ("x", "y"))
    assert labels(array) == [0, 1, 2]
    assert array.class_names is None
