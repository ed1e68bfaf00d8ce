"""Large pictures, what decoding leaves of the process, and errors by their cause."""

import errno
import io
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin
from test_images import IMAGE, NOISE, SMOOTH, cut, first, png_with

from ivlite import media
from ivlite.errors import MediaError, OutOfMemoryError, UsageError
from ivlite.media import resize, stills
from ivlite.media.color import to_rgb

# ------------------------------------------------------------------------------------------------ large pictures


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("size", [(64, 96), (32, 224), (256, 32), (101, 150), (150, 101)])
def test_pictures_are_resized_as_pillow_does(monkeypatch, orientation, mode, size):
    """Ordinary ones bit for bit; large ones, in bands, within what the order of rows and columns rounds away."""
    image = Image.fromarray(np.dstack([SMOOTH, SMOOTH[::-1, :, 0]]))
    image = (image if mode == "RGBA" else image.convert("RGB")).convert(mode).resize((150, 101))
    image.getexif()[0x112] = orientation
    turned = ImageOps.exif_transpose(image)
    if mode == "RGBA":
        white = Image.new("RGB", turned.size, "white")
        white.paste(turned, mask=turned.getchannel("A"))
        turned = white
    narrow = turned.convert("RGB").resize((size[1], turned.height), Image.Resampling.BICUBIC)
    turn, convert = stills.picture(image, image.size, "it").turn, to_rgb(image)
    expected = np.asarray(turned.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC))
    assert np.array_equal(resize.shown(image, size, turn, convert), expected)
    monkeypatch.setattr(resize, "WHOLE", 150)
    monkeypatch.setattr(resize, "BAND", 150 * 7)
    expected = np.asarray(narrow.resize(size[::-1], Image.Resampling.BICUBIC))
    assert np.array_equal(resize.shown(image, size, turn, convert), expected)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_large_pictures_are_decoded_reduced(tmp_path, monkeypatch, kind):
    if kind not in Image.SAVE:
        pytest.skip("this Pillow lacks it")
    big = np.kron(np.random.default_rng(8).integers(0, 256, (13, 17, 3), np.uint8), np.ones((64, 64, 1), np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(big).save(tmp_path / "a", kind, **({"quality": 95, "exif": exif} if kind == "JPEG" else {}))
    medium, expected = first(tmp_path / "a", max_pixels=1 << 14)
    sizes, picture = [], stills.picture
    monkeypatch.setattr(stills, "MAX_PIXELS", 1 << 18)
    monkeypatch.setattr(stills, "picture", lambda image, *more: sizes.append(image.size) or picture(image, *more))
    reduced, got = first(tmp_path / "a", max_pixels=1 << 14)
    assert reduced.size == medium.size and np.abs(got.astype(int) - expected).mean() < 6
    assert all(width < 17 * 64 / 2 for width, _ in sizes)
    assert max(sizes)[0] >= 2 * min(medium.size), "no less than twice what is needed"


def test_only_large_webp_goes_to_ffmpeg(tmp_path, monkeypatch):
    """Pillow holds four copies of a WebP in memory; other formats, small and animated ones are its own."""
    asked, decode = [], stills.by_ffmpeg
    monkeypatch.setattr(stills, "WHOLE", 64 * 48)
    monkeypatch.setattr(stills, "by_ffmpeg", lambda *args: asked.append(args[1]) or decode(*args))
    small, large = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 49), "red")
    for name, image in {"small.webp": small, "large.webp": large, "large.png": large, "large.bmp": large}.items():
        image.save(tmp_path / name)
        first(tmp_path / name, max_pixels=1 << 12)
    assert [what for what in asked if "large.webp" not in what] == [] and asked


@pytest.mark.parametrize("kind, reduces", [("JPEG2000", True), ("PNG", False)])
def test_only_large_pictures_of_some_formats_are_reduced(tmp_path, monkeypatch, kind, reduces):
    if kind not in Image.SAVE:
        pytest.skip("this Pillow lacks it")
    seen, halvings = [], stills.halvings
    monkeypatch.setattr(stills, "halvings", lambda *args: seen.append(args[1]) or halvings(*args))
    Image.new("RGB", (512, 512), "blue").save(tmp_path / "a", kind)
    first(tmp_path / "a", max_pixels=1 << 12)
    assert not seen, "it is small"
    monkeypatch.setattr(stills, "MAX_PIXELS", 1 << 16)
    first(tmp_path / "a", max_pixels=1 << 12)
    assert bool(seen) == reduces


def test_memory_is_what_limits_the_size(tmp_path, monkeypatch):
    Image.new("RGB", (3000, 2000)).save(tmp_path / "a.png")
    monkeypatch.setattr(stills, "MAX_BYTES", 20_000_000)
    with pytest.raises(MediaError, match="24 MB, beyond the limit of 20 MB"):
        media.open_image(tmp_path / "a.png", **IMAGE)
    Image.new("L", (3000, 2000)).save(tmp_path / "a.png")
    assert media.open_image(tmp_path / "a.png", **IMAGE).size
    monkeypatch.undo()
    Image.new("RGB", (5000, 5000)).save(tmp_path / "b.png")
    monkeypatch.setattr(stills, "available_memory", lambda: 50_000_000)
    with pytest.raises(OutOfMemoryError, match="100 MB of memory when it is decoded, and 50 MB are free"):
        media.open_image(tmp_path / "b.png", **IMAGE)


TIFFS = [
    ("1", "group4"),
    ("L", "tiff_lzw"),
    ("L", "raw"),
    ("P", "packbits"),
    ("RGB", "tiff_adobe_deflate"),
    ("I;16", "raw"),
]


@pytest.mark.parametrize("limit", [96 * 64 - 1, 96 * 64 // 2 - 1])  # of which Pillow warns, and which it refuses
@pytest.mark.parametrize("mode, compression", TIFFS)
def test_the_size_of_a_tiff_is_judged_once(monkeypatch, mode, compression, limit):
    image = Image.fromarray(np.resize(SMOOTH, (64, 96, 3)))
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    image.getexif()[0x112] = 6
    out = io.BytesIO()
    image.save(out, "TIFF", compression=compression, exif=image.getexif())
    expected = np.asarray(stills.read(out, "it", 1.0).image)
    broken = io.BytesIO(out.getvalue()[: len(out.getvalue()) * 2 // 3])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = stills.read(out, "it", 1.0)
        assert np.array_equal(np.asarray(found.image), expected) and not found.notes and found.image.mode == mode
        try:
            assert stills.read(broken, "it", 1.0).notes
        except MediaError as error:
            assert "bomb" not in str(error)


def test_a_size_that_pillow_refuses_is_no_damage(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    def refuse(file, what, least):
        Image._decompression_bomb_check((100, 100))

    for name in ("whole", "patched", "begun", "foreign"):
        monkeypatch.setattr(stills, name, refuse)
    with pytest.raises(MediaError, match="^it is beyond Pillow's limit .*1000 pixels.*make the image smaller$"):
        stills.read(io.BytesIO(b""), "it", 1.0)
    out = io.BytesIO()
    Image.new("L", (100, 100)).save(out, "TIFF")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    given = Image.open(out)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MediaError, match="is beyond Pillow's limit"):
        media.open_image(given, **IMAGE)


# ------------------------------------------------------------------------------------------------ the process


def test_nothing_of_the_process_is_changed(tmp_path):
    """Threads that open good and bad images leave Python's warning filters and Pillow's limits alone."""
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png_with((b"tEXt", b"a\0b", False)))
    Image.fromarray(NOISE).save(tmp_path / "c.jpg")
    cut(tmp_path / "c.jpg", 0.7)

    def state():
        return list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, sorted(Image.OPEN)

    first(tmp_path / "a.png")
    before, seen = state(), []

    def work():
        for _ in range(20):
            for name in ("a.png", "b.png", "c.jpg"):
                first(tmp_path / name)
                seen.append(state())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 240 and all(s == before for s in seen) and state() == before


def test_libraries_write_nothing_of_their_own(tmp_path):
    """libtiff prints about damage by itself; a process shows it on the real standard error."""
    code = f"""
import io, numpy as np
from PIL import Image, features
from ivlite import media
from ivlite.errors import MediaError
rng = np.random.default_rng(1)
for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 96, 3), np.uint8)).save(out, "TIFF", compression=compression)
    for _ in range(20):
        data = bytearray(out.getvalue())
        for at in rng.integers(8, len(data), 6):
            data[at] = rng.integers(256)
        open({str(tmp_path / "a")!r}, "wb").write(data)
        try:
            next(media.open_image({str(tmp_path / "a")!r}, min_pixels=1024, max_pixels=1 << 20).pairs())
        except MediaError:
            pass
"""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


# ------------------------------------------------------------------------------------------------ errors by their cause


FAULTS = {
    errno.EMFILE: "Too many open files", errno.EACCES: "Permission denied", errno.EIO: "Input/output error",
    errno.ENOENT: "No such file",
}  # fmt: skip


@pytest.mark.parametrize("number", FAULTS)
def test_faults_of_the_system_are_named(tmp_path, monkeypatch, number):
    def refuse(*args, **more):
        raise OSError(number, os.strerror(number))

    Image.fromarray(NOISE).save(tmp_path / "a.png")
    monkeypatch.setattr("ivlite.media.image.open", refuse, raising=False)
    with pytest.raises(MediaError, match=f"a.png cannot be read .{FAULTS[number]}"):
        media.open_image(tmp_path / "a.png", **IMAGE)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_memory_that_runs_out_is_no_damage(tmp_path, monkeypatch, error):
    Image.fromarray(NOISE).save(tmp_path / "a.png")

    def fail(self):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(OutOfMemoryError, match="not enough memory to decode image .*a.png"):
        media.open_image(tmp_path / "a.png", **IMAGE)


def test_images_of_pillow_in_every_state():
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, "PNG")
    closed = Image.open(io.BytesIO(out.getvalue()))
    closed.close()
    with pytest.raises(UsageError, match="closed"):
        media.open_image(closed, **IMAGE)
    with pytest.raises(MediaError, match="cut off"):
        media.open_image(Image.open(io.BytesIO(out.getvalue()[:2000])), **IMAGE)
    bad = Image.open(io.BytesIO(png_with((b"eXIf", b"no exif", True))))
    assert np.array_equal(first(bad)[1], NOISE)
    assert np.array_equal(first(Image.fromarray(NOISE))[1], NOISE)
