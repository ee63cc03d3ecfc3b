"""Pictures at the edges: rounding, modes, grids, records in PNG files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from genflow.errors import InputError
from genflow.images import METADATA_KEY, grid, read_metadata, save_png, to_pil, to_uint8


def test_every_level_comes_back() -> None:
    levels = torch.arange(256).reshape(1, 1, 16, 16)
    for offset in (0.0, 0.4, -0.4):
        array = to_uint8((levels + offset) / 127.5 - 1)
        assert np.array_equal(array.reshape(-1), np.arange(256))


def test_out_of_range_is_clipped_not_wrapped() -> None:
    assert to_uint8(torch.tensor([-7.0, 7.0]).reshape(1, 1, 1, 2)).tolist() == [[[[0], [255]]]]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_modes(channels: int, mode: str) -> None:
    (image,) = to_pil(torch.zeros(1, channels, 4, 6))
    assert (image.mode, image.size) == (mode, (6, 4))


def test_grid_places_images_in_reading_order() -> None:
    tiles = [Image.new("L", (2, 3), color) for color in (10, 20, 30)]
    sheet = np.asarray(grid(tiles, columns=2, padding=1, zoom=2))
    assert sheet.shape == (2 * 7 + 1, 2 * 5 + 1)
    assert sheet[1, 1] == 10
    assert sheet[1, 6] == 20
    assert sheet[8, 1] == 30
    assert sheet[8, 6] == 0


def test_record_round_trip(tmp_path: Path) -> None:
    record = {"seed": 3, "options": {"interval": [0.1, 2.0]}, "prompt": "é 猫"}
    save_png(Image.new("L", (4, 4)), tmp_path / "a.png", record)
    assert read_metadata(tmp_path / "a.png") == record
    save_png(Image.new("L", (4, 4)), tmp_path / "b.png")
    assert read_metadata(tmp_path / "b.png") is None


def test_unreadable_records_are_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match="no such file"):
        read_metadata(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_metadata(path)
    for text in ("[1]", "{"):
        info = PngImagePlugin.PngInfo()
        info.add_text(METADATA_KEY, text)
        Image.new("L", (4, 4)).save(path, pnginfo=info)
        with pytest.raises(InputError, match=r"a\.png"):
            read_metadata(path)
