"""Image files: the same kinds everywhere, shown upright, refused when cut or too large."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from skipconv_jax.data import images

KINDS = {"PNG": {}, "JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True},
         "BMP": {}, "TIFF": {}}  # fmt: skip


def _picture(height=24, width=40):
    """Four quarters of different colours."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (250, 10, 10)
    image[: height // 2, width // 2 :] = (10, 250, 10)
    image[height // 2 :, : width // 2] = (10, 10, 250)
    return image


def _encode(image, kind, orientation=None, **options):
    stored = Image.fromarray(image)
    if orientation is not None:
        exif = stored.getexif()
        exif[0x112] = orientation
        options["exif"] = exif
    out = io.BytesIO()
    stored.save(out, kind, **KINDS[kind], **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [("BMP", 1), *((kind, n) for kind in KINDS for n in range(1, 9) if kind != "BMP")],
)
def test_every_kind_is_shown_upright(tmp_path, kind, orientation):
    picture = _picture()
    # The stored pixels whose picture this is, by the other library's reading of the standard.
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    stored = np.ascontiguousarray(images.orient(picture, undo))
    data = _encode(stored, kind, None if kind == "BMP" else orientation)
    shown = images.decode(data, "x")
    with Image.open(io.BytesIO(data)) as opened:
        from PIL import ImageOps

        want = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    np.testing.assert_allclose(shown.astype(int), want.astype(int), atol=2)
    np.testing.assert_allclose(shown.astype(int), picture.astype(int), atol=40)
    (tmp_path / "x").write_bytes(data)
    assert images.header(data, "x") == images.peek(tmp_path / "x")
    assert images.peek(tmp_path / "x").shown == picture.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_positions_turn_with_their_pixels(orientation):
    stored = np.arange(6 * 10).reshape(6, 10)
    head = images.Header("JPEG", 6, 10, orientation)
    shown = images.orient(stored, orientation)
    assert shown.shape == head.shown
    points = np.array([[x, y] for y in range(6) for x in range(10)], float)
    for (x, y), (u, v) in zip(points, images.orient_points(points, head, 1), strict=True):
        assert stored[int(y), int(x)] == shown[int(v), int(u)]
    corners = images.orient_points(np.array([[0.0, 0], [10, 6]]), head, 0)
    assert corners.min() == 0
    assert sorted(corners.max(axis=0)) == [6, 10]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_refused_and_a_trailer_is_not(kind):
    data = _encode(np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8), kind)
    whole = images.decode(data, "x")
    for trailer in (b"\0" * 20, b"\xff" * 9, b"MotionPhoto" * 50):
        np.testing.assert_array_equal(images.decode(data + trailer, "x"), whole)
    for part in (0.5, 0.9):
        with pytest.raises(images.ImageError, match=r"^x .*(cut short|no PNG)"):
            images.decode(data[: int(len(data) * part)], "x")


def test_a_progressive_jpeg_with_restarts_is_whole():
    picture = np.random.default_rng(1).integers(0, 255, (40, 56, 3), np.uint8)
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    data = cv2.imencode(".jpg", picture, flags)[1].tobytes()
    assert images.decode(data, "x").shape == picture.shape
    with pytest.raises(images.ImageError):
        images.decode(data[:-2], "x")


def _png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("width", [100_000, 0, 2**31 - 1])
def test_a_header_that_promises_too_much_costs_nothing(width):
    body = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", body)
    data += _png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _png_chunk(b"IEND", b"")
    with pytest.raises(images.ImageError, match=rf"x has a header of {width} x {width} pixels"):
        images.decode(data, "x")


def test_every_flipped_bit_of_a_png_is_noticed():
    data = _encode(_picture(8, 8), "PNG")
    for k in range(8, len(data)):
        damaged = bytearray(data)
        damaged[k] ^= 4
        with pytest.raises(images.ImageError):
            images.decode(bytes(damaged), "x")


def test_names_that_are_no_frames(tmp_path):
    names = ["._a.jpg", ".a.png", "a.txt", "a.JPG", "-b.tiff", "c#d:%41?.webp"]
    found = [name for name in names if images.is_frame(tmp_path / name)]
    assert found == ["a.JPG", "-b.tiff", "c#d:%41?.webp"]
