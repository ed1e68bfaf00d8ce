"""Images of every kind and in every state of damage."""

import importlib.util
import io
import os
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from ivlite import media
from ivlite.errors import MediaError

Image.init()
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
    "jpeg header": (broken("jpeg", 0.05), "damaged or cut off"), "png header": (broken("png", 0.002), "damaged"),
    "lab": (lambda path: Image.new("LAB", (64, 64)).save(path, "tiff"), "LAB"),
    **{f"half {s}": (broken(s, 0.5), "damaged or cut off") for s in ("avif", "jpeg2000") if s.upper() in Image.SAVE},
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


# ------------------------------------------------------------------------------------------------ whole and cut off


def png_with(*chunks, image=NOISE):
    """A PNG with chunks (kind, data, whether the checksum is right) behind its header."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    data = out.getvalue()
    extra = b""
    for kind, content, good in chunks:
        check = zlib.crc32(kind + content) ^ (not good)
        extra += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
    return data[:33] + extra + data[33:]


LONG = b"Comment\0\0" + zlib.compress(bytes(3 << 20))
UNUSED = {
    "exif that is none": [(b"eXIf", b"Exif\0\0 or not", True)], "a wrong checksum": [(b"tEXt", b"a\0b", False)],
    "exif with a wrong checksum": [(b"eXIf", b"MM\0*\0\0\0\x08\0\0", False)], "a long text": [(b"zTXt", LONG, True)],
    "a large profile": [(b"iCCP", LONG, True)], "a profile that is none": [(b"iCCP", b"x\0\0" + b"no zlib", True)],
    "much text": [(b"zTXt", b"t\0\0" + zlib.compress(bytes(1 << 20)), True)] * 70,
    "text cut short": [(b"zTXt", b"Comment", True)], "no gamma": [(b"gAMA", b"", True)], "a bad size": [(b"pHYs", b"1", True)],
    "empty animation": [(b"acTL", b"", True)],
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSED)
def test_what_pixels_do_not_need_may_be_wrong(tmp_path, name):
    (tmp_path / "a.png").write_bytes(png_with(*UNUSED[name]))
    medium, picture = first(tmp_path / "a.png")
    assert np.array_equal(picture, NOISE)
    assert all("EXIF" in sentence for sentence in medium.warnings)


def test_good_exif_beside_a_bad_chunk_is_used(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 3
    (tmp_path / "a.png").write_bytes(png_with((b"tEXt", b"a\0b", False), (b"eXIf", exif.tobytes()[6:], True)))
    assert np.array_equal(first(tmp_path / "a.png")[1], NOISE[::-1, ::-1])


def test_transparency_survives_a_bad_chunk(tmp_path):
    image = Image.new("P", (64, 64), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 32, 64))
    image.save(tmp_path / "a.png", transparency=0)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + b"\0\0\0\1tEXtaXXXX" + data[33:])
    picture = first(tmp_path / "a.png")[1]
    assert picture[0, 0].tolist() == [255, 255, 255] and picture[0, 63].tolist() == [0, 0, 255]


SMOOTH = np.repeat(np.repeat(np.random.default_rng(5).integers(0, 256, (8, 12, 3), np.uint8), 16, 0), 16, 1)


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "webp", "lossy webp", "bmp", "tiff", "gif", "ppm"])
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_picture_cut_off_is_shown_as_far_as_it_goes(tmp_path, kind, share):
    options = {"progressive": {"progressive": True, "quality": 95}, "webp": {"lossless": True}, "jpeg": {"quality": 95}}
    noisy = np.clip(SMOOTH.astype(int) + np.random.default_rng(6).integers(-9, 9, SMOOTH.shape), 0, 255)
    format = {"progressive": "jpeg", "lossy webp": "webp"}.get(kind, kind)
    Image.fromarray(noisy.astype(np.uint8)).save(tmp_path / "a", format, **options.get(kind, {}))
    expected = first(tmp_path / "a")[1].astype(int)
    medium, picture = first(cut(tmp_path / "a", share))
    assert any("cut off" in sentence for sentence in medium.warnings)
    rows = slice(64, 128) if kind == "bmp" else slice(0, 48)  # BMP begins at the bottom
    if kind not in ("progressive", "gif"):  # these have rows from everywhere first, then those between
        assert np.abs(picture[rows] - expected[rows]).mean() < 2
    assert np.abs(picture - expected).mean() < 120


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_after_the_first_byte_of_a_marker(tmp_path, progressive):
    noise = np.random.default_rng(7).integers(0, 256, (128, 128, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a", "JPEG", progressive=progressive, quality=95)
    data = (tmp_path / "a").read_bytes()
    for share in (0.4, 0.6, 0.8):
        (tmp_path / "a").write_bytes(data[: data.index(b"\xff\0", int(share * len(data))) + 1])
        assert any("cut off" in sentence for sentence in first(tmp_path / "a")[0].warnings)


@pytest.mark.skipif("AVIF" not in Image.SAVE, reason="Pillow 11.3 writes AVIF")
def test_an_avif_cut_off_is_shown_as_far_as_it_goes_and_said_so(tmp_path):
    pictures = [Image.effect_noise((128, 96), 60).convert("RGB") for _ in range(3)]
    pictures[0].save(tmp_path / "a.avif", save_all=True, append_images=pictures[1:], duration=500)
    medium = first(cut(tmp_path / "a.avif", 0.9))[0]
    assert any("cut off" in sentence for sentence in medium.warnings)


@pytest.mark.parametrize("lossless", [False, True])
def test_an_animated_webp_is_transparent_where_no_frame_covers_it(tmp_path, lossless):
    """Pillow writes no flag of alpha for such files."""
    frames = [Image.new("RGBA", (96, 64)) for _ in range(2)]
    for left, frame in zip((0, 32), frames, strict=True):
        frame.paste((255, 0, 0, 255), (left, 0, left + 32, 64))
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=100, lossless=lossless)
    picture = first(tmp_path / "a.webp")[1]
    assert picture[32, 90].tolist() == [255, 255, 255] and picture[32, 8, 0] > 240 and picture[32, 8, 1] < 20


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "gif"])
def test_an_end_mark_that_is_missing_is_not_missed(tmp_path, kind):
    options = {"progressive": True} if kind == "progressive" else {}
    Image.fromarray(NOISE).save(tmp_path / "a", "gif" if kind == "gif" else "jpeg", **options)
    whole = first(tmp_path / "a")[1]
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:-1] if kind == "gif" else data[:-2])
    medium, picture = first(tmp_path / "a")
    assert np.array_equal(picture, whole) and medium.warnings == []


@pytest.mark.parametrize("suffix", ["dpx", "qoi", "sgi", "pcx", "xwd", "sun"])
def test_formats_that_only_ffmpeg_knows(tmp_path, suffix):
    codec = {"sun": "sunrast"}.get(suffix, suffix)
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height = NOISE.shape[1], NOISE.shape[0]
    encoder.pix_fmt = {"dpx": "rgb24", "sun": "bgr24", "xwd": "rgb24"}.get(suffix, "rgb24")
    encoder.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(NOISE, format="rgb24").reformat(format=encoder.pix_fmt)
    frame.pts = 0
    (tmp_path / "a").write_bytes(b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)]))
    medium, picture = first(tmp_path / "a")
    assert np.array_equal(picture, NOISE) and medium.warnings == []


@pytest.mark.parametrize("kind", ["JPEG2000", "AVIF"])
def test_formats_that_pillow_reads_with_another_library(tmp_path, kind):
    if kind not in Image.SAVE:
        pytest.skip("this Pillow lacks it")
    Image.fromarray(SMOOTH).save(tmp_path / "a", kind, **({"quality": 95} if kind == "AVIF" else {}))
    assert np.abs(first(tmp_path / "a")[1].astype(int) - SMOOTH).mean() < 8


def test_heic(tmp_path):
    """With pillow-heif it is read; without, the error says what to install."""
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    if importlib.util.find_spec("pillow_heif") is None:
        with pytest.raises(MediaError, match=r"pip install 'ivlite\[heif\]'"):
            media.open_image(tmp_path / "a.heic", **IMAGE)
        return
    import pillow_heif

    with pytest.raises(MediaError, match="a.heic is damaged"):
        media.open_image(tmp_path / "a.heic", **IMAGE)
    pillow_heif.from_pillow(Image.fromarray(SMOOTH)).save(tmp_path / "b.heic", quality=95)
    assert np.abs(first(tmp_path / "b.heic")[1].astype(int) - SMOOTH).mean() < 4
    assert not any("heif" in name.lower() or "heic" in name.lower() for name in Image.OPEN), "Pillow is left as it was"


# ------------------------------------------------------------------------------------------------ modes


@pytest.mark.parametrize("values", [[0, 100, 255], [0, 255, 256], [30000, 40000, 65535], [0, 0, 1]])
@pytest.mark.parametrize("how", ["I;16 png", "I;16 tiff", "I;16B tiff", "I;16", "I", "pgm"])
def test_16_bit_grey_is_read_by_its_mode(tmp_path, how, values):
    """Dark pictures stay dark: no value tells how deep the others are."""
    grey = np.repeat(np.array(values, np.uint16), 32)[None].repeat(32, 0)
    mode, _, suffix = how.partition(" ")
    if mode == "I":
        source = Image.fromarray(grey.astype(np.int32))
    elif mode == "pgm":
        source = tmp_path / "a.pgm"
        source.write_bytes(b"P5 96 32 65535\n" + grey.astype(">u2").tobytes())
    else:
        source = Image.fromarray(grey.astype(">u2") if mode == "I;16B" else grey)
    if suffix:
        source.save(tmp_path / f"a.{suffix}")
        source = tmp_path / f"a.{suffix}"
    assert np.array_equal(first(source)[1], np.repeat((grey // 257).astype(np.uint8)[..., None], 3, 2))


def test_grey_values_that_stand_for_transparency(tmp_path):
    grey = np.full((32, 64), 20000, np.uint16)
    grey[:, 32:] = 5
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=5)
    picture = first(tmp_path / "a.png")[1]
    assert (picture[:, 32:] == 255).all() and (picture[:, :32] == 20000 // 257).all()


@pytest.mark.parametrize("scale, shown", [(1, 127), (100, 50)])
def test_floats(scale, shown):
    values = np.full((32, 32), 0.5 * scale, np.float32)
    values[0, :3] = np.nan, np.inf if scale > 1 else 0, -np.inf
    assert first(Image.fromarray(values))[1][5, 5].tolist() == [shown] * 3


TRANSPARENT = [(255, 0, 0, 255), (0, 0, 0, 0)]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P bytes", "P index", "L index", "RGB colour", "RGBa", "La"])
def test_transparency_of_every_kind_is_white(mode):
    image = Image.new("RGBA", (64, 32), TRANSPARENT[0])
    image.paste(TRANSPARENT[1], (32, 0, 64, 32))
    kind, _, clear = mode.partition(" ")
    if kind == "PA":
        image = image.convert("RGB").convert("P").convert("PA")
        image.putalpha(Image.fromarray(np.repeat([[255, 0]], 32, 0).repeat(32, 1).astype(np.uint8)))
    elif clear:
        image = image.convert("RGB").convert(kind)
        dark = image.getpixel((40, 5))
        image.info["transparency"] = bytes(0 if i == dark else 255 for i in range(256)) if clear == "bytes" else dark
    else:
        image = image.convert({"RGBa": "RGBA", "La": "LA"}.get(kind, kind)).convert(kind)
    picture = first(image)[1]
    assert (picture[:, 34:] == 255).all() and picture[:, :30, 1].max() < 100
