"""One rule for each mode of pictures, on files as pillow writes them."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from genflow.evaluate.sources import open_source
from genflow.evaluate.sources.pixels import ALPHA_DROPPED, Picture, picture_of
from genflow.images import FIRST_FRAME, SIXTEEN_BITS, UnreadableImageError, decode_image

GREY = np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4)
RGB = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def read(data: bytes) -> Picture:
    return picture_of(*decode_image(data, "here"), "here")


def attempt(data: bytes) -> Picture | UnreadableImageError:
    try:
        return read(data)
    except UnreadableImageError as error:
        return error


def png_of_sixteen_bits(rows: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits a channel of any colour type, which pillow itself cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    height, width = rows.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, colour, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_grey_has_one_channel_and_colour_three() -> None:
    for form in ("PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM"):
        picture = read(encode(Image.fromarray(RGB), form, **({"lossless": True} if form == "WEBP" else {})))
        assert picture.array.shape == (3, 4, 3), form
        assert picture.array.dtype == np.uint8
        assert picture.array.flags.writeable
        assert picture.notes == ()
        if form != "GIF":  # GIF has a palette
            assert np.array_equal(picture.array, RGB), form
    grey = read(encode(Image.fromarray(GREY)))
    assert np.array_equal(grey.array, GREY[..., None])
    assert grey.notes == ()
    bits = read(encode(Image.fromarray(GREY > 100)))
    assert np.array_equal(bits.array, np.where(GREY > 100, 255, 0)[..., None])


def test_a_palette_becomes_rgb() -> None:
    image = Image.new("P", (4, 3))
    image.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
    image.putdata([0, 1, 2] * 4)
    picture = read(encode(image))
    assert picture.array.reshape(-1, 3)[:3].tolist() == [[0, 0, 0], [10, 20, 30], [200, 100, 50]]
    assert picture.notes == ()
    transparent = read(encode(image, transparency=1))
    assert np.array_equal(transparent.array, picture.array)  # dropped, not laid over a background
    assert transparent.notes == (ALPHA_DROPPED,)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_dropped_as_pillow_drops_it_and_noted_where_there_is_some(form) -> None:
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    for alpha, noted in ((255, False), (254, True), (0, True)):
        rgba = np.dstack([RGB, np.full((3, 4), 255, np.uint8)])
        rgba[1, 2, 3] = alpha
        picture = read(encode(Image.fromarray(rgba), form, **options))
        assert np.array_equal(picture.array, RGB)
        assert np.array_equal(picture.array, np.asarray(Image.fromarray(rgba).convert("RGB")))
        assert (ALPHA_DROPPED in picture.notes) == noted


def test_grey_with_transparency_stays_grey() -> None:
    picture = read(encode(Image.fromarray(np.dstack([GREY, GREY])).copy()))
    assert np.array_equal(picture.array, GREY[..., None])
    assert picture.notes == (ALPHA_DROPPED,)
    keyed = read(encode(Image.fromarray(GREY), transparency=20))
    assert np.array_equal(keyed.array, GREY[..., None])
    assert keyed.notes == (ALPHA_DROPPED,)
    absent = read(encode(Image.fromarray(GREY), transparency=21))
    assert absent.notes == ()


@pytest.mark.parametrize(
    ("mode", "form"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("YCbCr", "TIFF"), ("LAB", "TIFF")]
)
def test_other_colour_spaces_go_to_rgb_by_pillow(mode, form) -> None:
    data = encode(Image.fromarray(RGB).convert(mode), form)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    picture = read(data)
    assert np.array_equal(picture.array, expected)
    assert np.abs(picture.array.astype(int).mean() - RGB.mean()) < 30
    assert picture.notes == ()


WIDE = np.array([[0, 1, 255, 256], [257, 1000, 32768, 65535], [40000, 65280, 65279, 511]], np.uint16)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_the_upper_eight(form) -> None:
    picture = read(encode(Image.fromarray(WIDE), form))
    assert np.array_equal(picture.array[..., 0], WIDE >> 8)
    assert picture.array.shape == (3, 4, 1)
    assert picture.notes == (SIXTEEN_BITS,)
    for factor in (256, 257):  # the two ways in which eight bits are widened come back exactly
        widened = GREY.astype(np.uint16) * factor
        assert np.array_equal(read(encode(Image.fromarray(widened), form)).array[..., 0], GREY)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_every_kind_of_png_are_treated_alike(colour, channels) -> None:
    rows = np.random.default_rng(1).integers(0, 65536, (3, 5, channels), dtype=np.uint16)
    picture = read(png_of_sixteen_bits(rows, colour))
    expected = (rows >> 8)[..., : channels - (channels % 2 == 0)]
    if colour == 4:  # which pillow reads as RGBA
        expected = expected.repeat(3, axis=2)
    assert np.array_equal(picture.array, expected)
    assert SIXTEEN_BITS in picture.notes
    assert (ALPHA_DROPPED in picture.notes) == (channels % 2 == 0)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_are_refused_and_never_clipped(dtype) -> None:
    with pytest.raises(UnreadableImageError, match="32 bits a channel"):
        read(encode(Image.fromarray(WIDE.astype(dtype)), "TIFF"))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken_and_noted(form) -> None:
    first, second = (Image.new("RGB", (4, 3), colour) for colour in ("red", "blue"))
    picture = read(encode(first, form, save_all=True, append_images=[second]))
    assert np.abs(picture.array.astype(int) - [255, 0, 0]).max() < 3
    assert picture.notes == (FIRST_FRAME,)
    assert read(encode(first, form)).notes == ()


def test_an_orientation_is_not_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for form in ("PNG", "JPEG"):
        assert read(encode(Image.fromarray(RGB), form, exif=exif)).array.shape == (3, 4, 3)


def test_a_suffix_does_not_decide_the_format(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(GREY), "BMP"))
    assert np.array_equal(open_source(tmp_path).read(0)[..., 0], GREY)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_file_cut_short_anywhere_is_named_or_whole(form) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), form)
    whole = read(data).array
    lengths = [0, 1, 8, 20, *range(30, len(data), max(1, len(data) // 40))]
    came = [attempt(data[:length]) for length in lengths]
    errors = [error for error in came if isinstance(error, UnreadableImageError)]
    assert all(error.place == "here" and "\n" not in str(error) for error in errors)
    assert all(np.array_equal(picture.array, whole) for picture in came if isinstance(picture, Picture))
    assert len(errors) > 30


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bytes_never_end_in_another_error(monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)  # a damaged size costs no time then
    generator = np.random.default_rng(3)
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"):
        data = encode(Image.fromarray(RGB), form)
        for _ in range(60):
            damaged = bytearray(data)
            for place in generator.integers(0, len(data), 3):
                damaged[place] = generator.integers(0, 256)
            came = attempt(bytes(damaged))
            assert isinstance(came, UnreadableImageError) or came.array.ndim == 3


def test_a_bomb_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"here.*exceeds limit of 200 pixels"):
        read(encode(Image.new("L", (20, 20))))


def test_formats_that_run_programs_are_not_tried() -> None:
    with pytest.raises(UnreadableImageError, match="no known format"):
        read(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\nshowpage\n")


def test_text_chunks_do_not_hurt() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("genflow", "not json")
    assert np.array_equal(read(encode(Image.fromarray(GREY), pnginfo=info)).array[..., 0], GREY)
