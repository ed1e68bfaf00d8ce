"""Images of every kind and in every state of damage."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ivlite import media
from ivlite.errors import MediaError

IMAGE = {"min_pixels": 1024, "max_pixels": 1 << 20}
NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def write(content):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def first(path, **more):
    medium = media.open_image(path, **IMAGE | more)
    pairs = list(medium.pairs())
    assert len(pairs) == 1 and medium.kind == "image" and medium.timestamps == [] and medium.duration is None
    assert np.array_equal(pairs[0][0], pairs[0][1])
    return medium, pairs[0][0]


@pytest.mark.parametrize("suffix, error", [("png", 0), ("bmp", 0), ("tiff", 0), ("webp", 0), ("jpg", 40)])
def test_image_formats(tmp_path, suffix, error):
    path = tmp_path / f"a.{suffix}"
    smooth = np.repeat(np.repeat(NOISE[::16, ::16], 16, 0), 16, 1)
    Image.fromarray(smooth).save(path, **{"lossless": True} if suffix == "webp" else {"quality": 95})
    assert np.abs(first(path)[1].astype(int) - smooth).mean() <= error / 4


def coloured(mode):
    image = Image.new("RGBA", (64, 32), (200, 100, 50, 255))
    image.paste((0, 0, 0, 0), (32, 0, 64, 32))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode, left, right", [
    ("RGBA", (200, 100, 50), (255, 255, 255)), ("LA", (124,) * 3, (255,) * 3), ("RGB", (200, 100, 50), (0, 0, 0)),
    ("L", (124,) * 3, (0,) * 3), ("1", None, (0,) * 3), ("P", None, None),
])  # fmt: skip
def test_image_modes(tmp_path, mode, left, right):
    coloured(mode).save(tmp_path / "a.png")
    picture = first(tmp_path / "a.png")[1]
    for expected, got in ((left, picture[16, 8]), (right, picture[16, 56])):
        assert expected is None or np.abs(got.astype(int) - expected).max() <= 1


def test_deep_and_printed_colours(tmp_path):
    Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(tmp_path / "a.png")
    assert np.unique(first(tmp_path / "a.png")[1]).tolist() == [40000 // 257]
    Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(tmp_path / "a.tiff")
    assert np.unique(first(tmp_path / "a.tiff")[1]).tolist() == [127]
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert np.abs(first(tmp_path / "a.jpg")[1].astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=exif)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    kept = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
    medium, picture = first(tmp_path / "a.png")
    assert medium.size == ((96, 64) if orientation > 4 else (64, 96))
    method = kept.get(orientation, Image.Transpose(turn.get(orientation, 0)))
    expected = Image.fromarray(NOISE) if orientation == 1 else Image.fromarray(NOISE).transpose(method)
    assert np.array_equal(picture, np.asarray(expected))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animated_image_is_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (64, 64), (c, 0, 0)) for c in (255, 0)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    medium, picture = first(tmp_path / f"a.{suffix}")
    assert "animated" in medium.warnings[0] and picture[0, 0, 0] > 250


def test_resizing_is_bicubic_with_antialiasing(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    medium, picture = first(tmp_path / "a.png", max_pixels=2048)
    assert medium.size == (32, 32) and medium.grid == (1, 2, 2)
    assert np.array_equal(picture, np.asarray(Image.fromarray(NOISE).resize((32, 32), Image.Resampling.BICUBIC)))


def png(width, height):
    """A PNG that claims that size and holds little."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def broken(suffix, share):
    def make(path):
        Image.fromarray(NOISE).save(path, suffix)
        cut(path, share)

    return make


BAD_IMAGES = {
    "missing": (lambda path: None, "does not exist"), "empty": (write(b""), "empty"), "pipe": (os.mkfifo, "regular"),
    "folder": (lambda path: path.mkdir(), "folder"), "text": (write("x" * 99), "not an image"),
    "svg": (write('<svg xmlns="http://www.w3.org/2000/svg"/>'), "not an image"),
    "eps": (write("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image"),
    "16000": (write(png(16000, 16000)), "limit of 1.00 GB"), "2^31": (write(png(2**31 - 1, 2**31 - 1)), "limit"),
    "short": (write(png(500, 500)), "damaged"),
    "thin": (lambda path: Image.new("L", (2010, 10)).save(path, "png"), "200 times"),
    **{f"cut {s}": (broken(s, 0.02), "damaged or cut off") for s in ("jpeg", "png", "webp", "bmp", "tiff", "gif")},
    **{f"half {s}": (broken(s, 0.5), "damaged or cut off") for s in ("avif", "jpeg2000")},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_a_sentence(tmp_path, name):
    make, words = BAD_IMAGES[name]
    make(tmp_path / f"{name}.png")
    with pytest.raises(MediaError) as caught:
        media.open_image(tmp_path / f"{name}.png", **IMAGE)
    assert words in str(caught.value) and f"{name}.png" in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_is_not_enlarged_without_bounds():
    with pytest.raises(MediaError, match="megapixels"):
        media.open_image(NOISE, min_pixels=1 << 40, max_pixels=1 << 40)
