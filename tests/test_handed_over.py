"""Pictures and videos in every form that a program may hold: the same pixels, or one sentence."""

import base64
import gc
import io
import mmap
import os
import re
import tempfile
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from ivlite import media
from ivlite.errors import IvliteError, MediaError, Stopped, UsageError
from ivlite.stop import Stop, using

RNG = np.random.default_rng(5)
RGB = RNG.integers(0, 256, (64, 96, 3), np.uint8)
GREY = RGB[..., 0]
LIMITS = {"min_pixels": 1024, "max_pixels": 1 << 20}
VIDEO = {"fps": 2.0, "min_frames": 1, "max_frames": 64, **LIMITS}
CLIP = Path(__file__).parent / "data" / "golden_media"


def picture(source):
    (pair,) = media.open_image(source, **LIMITS).pairs()
    assert np.array_equal(pair[0], pair[1])
    return pair[0]


def shown(source, **more):
    medium = media.open_video(source, **VIDEO | more)
    return np.concatenate(list(medium.pairs()))[: len(medium.frames)]


def png(pixels=RGB, form="PNG", **more):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **more)
    return out.getvalue()


class Tensor:
    """A tensor of torch as far as anybody needs it: behind a graph, on a device, some without a numpy type."""

    def __init__(self, values, dtype=None, ready=False):
        self.values, self.dtype, self.ready = values, dtype or f"torch.{values.dtype}", ready
        self.shape = values.shape

    def detach(self):
        return Tensor(self.values, self.dtype, False)

    def cpu(self):
        return Tensor(self.values, self.dtype, True)

    def float(self):
        return Tensor(self.values.astype(np.float32), None, self.ready)

    def __array__(self, dtype=None, copy=None):
        if not self.ready or "bfloat16" in self.dtype:
            raise TypeError("can't convert")
        return self.values

    def __iter__(self):
        return iter(self.values)


class OtherArray:
    def __array__(self, dtype=None, copy=None):
        return RGB


UNIT = RGB.astype(np.float64) / 255
FORMS = {
    "array": RGB, "strided": np.asfortranarray(RGB), "read-only": np.frombuffer(RGB.tobytes(), np.uint8).reshape(RGB.shape),
    "channels first": RGB.transpose(2, 0, 1), "float64": UNIT, "float32": UNIT.astype(np.float32), "int64": RGB.astype(np.int64),
    "float first": UNIT.transpose(2, 0, 1), "uint16": RGB.astype(np.uint16) * 257, "tensor": Tensor(RGB.transpose(2, 0, 1)),
    "tensor last": Tensor(RGB), "float tensor": Tensor(UNIT.astype(np.float32).transpose(2, 0, 1)), "other": OtherArray(),
    "rgba": np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)]), "image": Image.fromarray(RGB), "bytes": png(),
    "bytearray": bytearray(png()), "memoryview": memoryview(png()), "file": io.BytesIO(png()), "base64": base64.b64encode(png()).decode(),
    "data": "data:image/png;base64," + base64.b64encode(png()).decode(), "DATA": "DATA:;BASE64," + base64.b64encode(png()).decode(),
    "white space": "data:image/png;base64,\n" + base64.encodebytes(png()).decode(), "percent": "data:image/png," + quote(png()),
    "url-safe": "data:image/png;base64," + base64.urlsafe_b64encode(png()).decode().rstrip("="),
    "percent base64": "data:image/png;base64," + quote(base64.b64encode(png()).decode()), "parameters": "data:image/png;name=a.png;base64," + base64.b64encode(png()).decode(),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_picture(form):
    source = FORMS[form]
    for _ in range(2):  # a file stays where it is
        assert np.array_equal(picture(source), RGB)
    assert np.array_equal(shown([source, source], fps=Fraction(2)), np.stack([RGB, RGB]))
    assert np.array_equal(shown(source), RGB[None])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u2", "u4", "u8", "i2", "i4", "f2", "f4", "f8"])
def test_the_order_of_bytes_changes_nothing(order, kind):
    values = UNIT if kind[0] == "f" else RGB.astype(int) * (257 if kind == "u2" else 1)
    assert np.abs(picture(values.astype(order + kind)).astype(int) - RGB).max() <= (kind == "f2")
    dim = np.full((64, 64), 200, order + "u2")  # of 65535
    assert not picture(dim).any() and not shown([dim]).any()


def test_files_that_are_still_being_written(tmp_path):
    data, clip = png(), next(iter(sorted(CLIP.glob("*.mkv"))))
    for mode in ("w+b", "wb"):
        for cut in (0, len(data) // 2):  # nothing of it is on the disk, or half
            with open(tmp_path / f"{mode}{cut}.png", mode, buffering=1 << 20) as file:
                file.write(data[:cut])
                file.flush()
                file.write(data[cut:])
                assert np.array_equal(picture(file), RGB) and np.array_equal(shown(file), RGB[None])
                assert np.array_equal(shown([file]), RGB[None]) and file.tell() == len(data)
    with tempfile.NamedTemporaryFile(suffix=".mkv") as file:
        file.write(clip.read_bytes())
        assert np.array_equal(shown(file), shown(clip))


def test_paths_of_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for source in (os.fsencode(tmp_path / "a.png"), b"~/a.png", os.fsencode((tmp_path / "a.png").as_uri())):
        assert np.array_equal(picture(source), RGB) and np.array_equal(shown(source), RGB[None])
    for source in (b"none.png", b"folder/none", os.fsencode(tmp_path / "none.mp4"), b"\xc3\xb8.png"):
        for call in (lambda s=source: picture(s), lambda s=source: shown(s), lambda s=source: shown([s])):
            with pytest.raises(MediaError, match="(none|ø).*does not exist"):
                call()
    for source in (b"0123456789", png()[:40], b"x" * 2000 + b".png"):
        with pytest.raises(MediaError) as caught:
            picture(source)
        assert "exist" not in str(caught.value)


def test_null_values_of_a_frame_are_none():
    frames = [{"t": 0, "image": RGB, "type": None}, {"t": 2.0, "time": None, "image": RGB, "detail": None}]
    assert np.array_equal(shown(frames), np.stack([RGB, RGB]))
    with pytest.raises(UsageError, match="must be"):
        shown([{"t": None, "image": RGB}])


def test_grey_masks_half_floats_and_transparency():
    three = np.repeat(GREY[..., None], 3, 2)
    for grey in (GREY, GREY[..., None], GREY[None], Tensor(GREY[None])):
        assert np.array_equal(picture(grey), three)
    mask = GREY > 99
    assert np.array_equal(picture(mask)[..., 0], np.where(mask, 255, 0))
    assert np.abs(picture(Tensor(UNIT.astype(np.float16), "torch.bfloat16")).astype(int) - RGB).max() <= 1
    clear = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    assert (picture(clear) == 255).all() and (picture(clear.astype(np.float32) / 255) == 255).all()
    assert np.array_equal(picture(UNIT * 1.002 - 0.001), picture(np.clip(UNIT * 1.002 - 0.001, 0, 1)))


@pytest.mark.parametrize("values", [
    RGB.astype(np.float32), UNIT - 0.1, np.where(UNIT > 0.5, np.nan, UNIT), np.full((64, 64), np.inf), RGB.astype(np.int64) - 1,
    RGB.astype(np.int32) + 1, RGB.astype(np.complex64), RGB.astype(object), RGB.astype("S3"), RGB[0, 0], RGB[None, None],
    RGB[..., :2], np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0), np.uint8), np.array(5), np.float64(5), np.int8(3), Tensor(np.array(5)),
    Tensor(RGB.astype(np.float32)), np.zeros(4, np.dtype([("a", int)])),
])  # fmt: skip
def test_arrays_that_are_refused(values):
    for call in (lambda: picture(values), lambda: shown([values])):
        with pytest.raises(UsageError) as caught:
            call()
        assert len(str(caught.value)) < 250 and str(caught.value).isprintable()


def test_videos_that_are_arrays():
    clip = RNG.integers(0, 256, (5, 64, 96, 3), np.uint8)
    for form in (clip, list(clip), tuple(clip), iter(clip), (f for f in clip), clip.transpose(0, 3, 1, 2), clip / 255.0,
                 Tensor(clip.transpose(0, 3, 1, 2)), map(Image.fromarray, clip), [png(f) for f in clip]):  # fmt: skip
        assert np.array_equal(shown(form), clip)
    assert np.array_equal(shown(clip[..., 0])[..., 1], clip[..., 0])
    assert np.array_equal(shown(RGB), RGB[None]) and np.array_equal(shown(Image.fromarray(RGB)), RGB[None])
    uri = "data:video/jpeg;base64," + ",".join(base64.b64encode(png(f, "JPEG", quality=95)).decode() for f in clip)
    assert len(shown(uri)) == 5


def test_frames_with_their_own_times():
    times = [0.5, 1, Fraction(7, 2), np.float32(10)]
    frames = [{"t": t, "image": RGB} for t in times]
    medium = media.open_video(iter(frames), **VIDEO | {"nframes": 4})
    assert medium.timestamps == [0.75, 6.75] and medium.frames == [0, 1, 2, 3]
    assert media.open_video(frames, **VIDEO | {"start": 1, "end": 4}).frames == [1, 2]
    with pytest.raises(UsageError, match=r"^end \(0.3 s\) is before the first frame of .* \(0.5 s\)$"):
        media.open_video(frames, **VIDEO | {"end": 0.3})


@pytest.mark.parametrize("frames, words", [
    ([{"t": 1, "image": RGB}, {"t": 1, "image": RGB}], "sort"), ([{"t": 2, "image": RGB}, {"t": 1, "image": RGB}], "sort"),
    ([{"t": -1, "image": RGB}], "t of frame 0 is -1"), ([{"t": "1", "image": RGB}], "t of frame 0 is '1'"),
    ([{"t": float("nan"), "image": RGB}], "nan"), ([{"t": 1}], "frame 0"), ([{"image": RGB}], "frame 0"), ([{}], "frame 0"),
    ([{"t": 1, "image": RGB}, RGB], "with and without"), ([RGB, {"t": 1, "image": RGB}], "with and without"),
    ([{"t": True, "image": RGB}], "True"), ([{"t": 1, "image": 3}], "is a int"), ([{"t": 1, "time": 1, "image": RGB}], "frame 0"),
    ([None], "NoneType"), ([[RGB]], "list"), ({1, 2}, "set"), ({"t": 1, "image": RGB}, "dict"), (5, "int"), (None, "NoneType"), (iter([]), "empty"),
    (np.zeros((2, 3, 4, 5, 6)), "array"), (np.zeros((2, 8, 8, 7), np.uint8), "array"), (np.zeros(3), "array"),
])  # fmt: skip
def test_frames_that_are_refused(frames, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        media.open_video(frames, **VIDEO)


def test_frames_without_an_end_are_refused(monkeypatch):
    def endless():
        while True:
            yield RGB

    monkeypatch.setattr("ivlite.media.memory.available_memory", lambda: 100 * RGB.nbytes)
    with pytest.raises(IvliteError, match="fewer"):
        media.open_video(endless(), **VIDEO)
    monkeypatch.setattr("ivlite.media.memory.available_memory", lambda: None)
    monkeypatch.setattr("ivlite.media.memory.MOST_FRAMES", 50)
    with pytest.raises(IvliteError, match="fewer"):
        media.open_video(endless(), **VIDEO)


def test_frames_and_animations_can_be_stopped():
    stop = Stop()

    def frames():
        for n in range(100):
            if n == 3:
                stop.set()
            assert n < 5
            yield RGB

    with using(stop), pytest.raises(Stopped):
        media.open_video(frames(), **VIDEO)
    with using(stop), pytest.raises(Stopped):
        media.open_video(animation("PNG", [100] * 9), **VIDEO)


@pytest.fixture(scope="module")
def clip():
    return next(CLIP.glob("*.mkv"))


def test_videos_in_memory(clip):
    expected = shown(clip)
    content = clip.read_bytes()
    uri = "data:video/x-matroska;base64," + base64.b64encode(content).decode()
    before = set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    for source in (
        content,
        io.BytesIO(content),
        uri,
        uri.replace("data:", "Data:"),
        base64.b64encode(content).decode(),
    ):
        medium = media.open_video(source, **VIDEO)
        assert np.array_equal(np.concatenate(list(medium.pairs()))[: len(medium.frames)], expected)
        assert medium.source == f"<{len(content)} bytes>" and os.path.exists(path := os.fspath(medium.held))
        del medium
        gc.collect()
        assert not os.path.exists(path)
    with open(clip, "rb") as file:
        file.seek(100)
        medium = media.open_video(file, **VIDEO)
        assert medium.source == str(clip) and file.tell() == 100
    assert before is None or set(os.listdir("/proc/self/fd")) == before


def test_open_files_keep_their_place(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    with open(tmp_path / "a.png", "rb") as file:
        file.seek(7)
        assert np.array_equal(picture(file), RGB) and file.tell() == 7
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")  # leaves it at its end
    at = buffer.tell()
    assert np.array_equal(picture(buffer), RGB) and buffer.tell() == at
    read, write = os.pipe()
    with open(write, "wb") as out:
        out.write(png(RGB[:32, :32]))
    with open(read, "rb") as pipe:
        assert picture(pipe).shape == (32, 32, 3)
    for bad in (io.StringIO("x"), io.TextIOWrapper(io.BytesIO(png())), file, open(tmp_path / "b", "wb")):
        with pytest.raises((UsageError, MediaError)):
            picture(bad)
        bad.close()


@pytest.mark.parametrize("name", ["a b.png", "100%.png", "a#b?c.png", "ø%20.png", "x&y=1.png"])
def test_paths_and_file_uris(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(png())
    monkeypatch.setenv("HOME", str(tmp_path))
    sources = [path, str(path), os.fsencode(path), path.as_uri(), "file://localhost" + quote(str(path)), f"file://{path}", f"~/{name}",
               "FILE://" + quote(str(path)), "file:" + quote(str(path)), Path(f"file://{path}")]  # fmt: skip
    for source in sources:
        assert np.array_equal(picture(source), RGB), source


@pytest.mark.parametrize("source, words", [
    ("http://a/b.png", "download"), ("HTTPS://a/b.png", "download"), (Path("https://a/b.png"), "download"), ("s3://a/b", "download"),
    ("file://other/a.png", "another machine"), ("file:///none.png", "not exist"), ("", "empty"), ("data:image/png;base64,!!!", "base64"),
    ("data:image/png;base64,iVBORw0KGgo", "not an image"), ("data:,", "empty"), ("data:image/png;base64,", "empty"), (b"", "empty"), (b"x" * 5000, "not an image"),
    ("\ud800.png", "not exist"), ("a\0b", "not exist"), ("x" * 5_000_000, "reached"), ("data:image/png;base64," + "é" * 99, "base64"),
    ("/9j/" + "A" * 5_000_000 + "*", "base64"), (io.BytesIO(), "empty"), (io.BytesIO(b"abc"), "not an image"), ("~nobody-by-this-name/a.png", "not exist"),
])  # fmt: skip
def test_sources_that_are_refused(source, words):
    for call in (lambda: media.open_image(source, **LIMITS), lambda: media.open_video(source, **VIDEO)):
        with pytest.raises(MediaError) as caught:
            call()
        assert len(str(caught.value)) <= 500 and str(caught.value).isprintable()
        assert words in str(caught.value) or words == "not an image"


class Evil:
    def __getattr__(self, name):
        raise RuntimeError(name)


def test_odd_objects(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for source in (mapped, np.str_(path), np.bytes_(path), np.ma.array(RGB), RGB.view(np.recarray)):
            for _ in range(2):
                assert np.array_equal(picture(source), RGB) and np.array_equal(shown(source), RGB[None])
    big_endian = (RGB.astype(">u2") * 257, UNIT.astype(">f4"), np.ascontiguousarray(RGB[::-1])[::-1])
    assert all(np.array_equal(picture(source), RGB) for source in big_endian)
    for source in (
        Evil(),
        [Evil()],
        {"image": Evil()},
        int,
        print,
        True,
        5,
        None,
        object(),
        range(3),
        zip([RGB], [1], strict=True),
    ):
        for call in (lambda s=source: media.open_image(s, **LIMITS), lambda s=source: media.open_video(s, **VIDEO)):
            with pytest.raises(UsageError):
                call()


@pytest.mark.parametrize("name", ["fps", "nframes", "start", "end", "stream", "min_frames", "max_pixels"])
def test_settings_of_every_kind_are_taken_or_refused(clip, name):
    odd = [True, "2", "x" * 10**6, b"2", np.float32(2), np.array([2]), np.array(2), 2j, [], {}, float("nan"), float("inf"), -1, 0,
           10**400, 1e308, 5e-324, Fraction(1, 3), Decimal("2"), Decimal("1e999999999"), np.datetime64("2020"), Evil(), np.uint8(200)]  # fmt: skip
    file = {key: VIDEO[key] for key in ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels")}
    taken = 0
    for value in odd:
        given = {name: value}
        for source in ([RGB] * 3, [{"t": n, "image": RGB} for n in range(3)], clip):
            more = {} if name in file else given
            try:
                media.open_video(source, **media.limits(given, file), **more)
                taken += 1
            except IvliteError as error:
                assert len(str(error)) <= 500 and str(error).isprintable()
    assert taken >= (2 if name != "stream" else 1)


# ------------------------------------------------------------------------------------------------ animated images


def animation(form, durations, size=(64, 64), **more):
    """The bytes of an animated image whose frame n is of the grey n * 10; its frames."""
    frames = [Image.new("RGB", size, (n * 10,) * 3) for n in range(len(durations))]
    out = io.BytesIO()
    frames[0].save(out, form, save_all=True, append_images=frames[1:], duration=durations, loop=0, **more)
    return out.getvalue()


@pytest.mark.parametrize("form, more", [("WEBP", {"lossless": True}), ("PNG", {}), ("GIF", {})])
def test_animated_images_are_videos(tmp_path, form, more):
    content = animation(form, [500, 1500, 200, 800, 3000], **more)
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(content)
    for source in (path, content, io.BytesIO(content), "data:;base64," + base64.b64encode(content).decode()):
        medium = media.open_video(source, **VIDEO | {"nframes": 5})
        grey = [round(float(p.mean())) for pair in medium.pairs() for p in pair][:5]
        assert grey == [0, 10, 20, 30, 40] and medium.frames == [0, 1, 2, 3, 4]
        assert [round(t, 6) for t in medium.timestamps] == [0.25, 2.1, 3.0]
        again = [round(float(p.mean())) for pair in medium.pairs() for p in pair][:5]
        assert again == grey
    first = media.open_image(path, **LIMITS)
    assert "animated" in first.warnings[0] and np.concatenate(list(first.pairs())).max() == 0


def test_a_frame_of_an_apng_that_is_undone_is(tmp_path):
    """Blended frames after which the one before comes back: each shows its own spot alone."""
    frames = [Image.new("RGBA", (64, 64), (0, 200, 0, 255)), *(Image.new("RGBA", (64, 64)) for _ in range(3))]
    for i, frame in enumerate(frames[1:]):
        frame.paste((200, 0, 0, 255), (16 * i, 16 * i, 16 * i + 16, 16 * i + 16))
        frame.putpixel((63, 0), (0, 0, 0, 1 + i))  # so that frames cover more than their spots
    options = {"blend": 1, "disposal": [0, 2, 2, 2], "duration": 100}
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], **options)
    for i, picture in enumerate(shown(tmp_path / "a.png", nframes=4)[1:4]):
        spots = [picture[16 * j + 8, 16 * j + 8, 0] > 100 for j in range(3)]
        assert spots == [j == i for j in range(3)]


def test_animations_are_composed(tmp_path):
    """Frames that cover a part only, and blend with what was there."""
    base = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    spot = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    spot.paste((0, 0, 200, 255), (0, 0, 32, 32))
    base.save(tmp_path / "a.png", save_all=True, append_images=[spot], duration=[100, 100], blend=1, disposal=0)
    base.putpixel((63, 63), (0, 0, 0, 0))
    base.save(tmp_path / "a.webp", save_all=True, append_images=[spot], duration=[100, 100], lossless=True)
    second = shown(tmp_path / "a.png", nframes=2)[1]
    assert second[5, 5].tolist() == [0, 0, 200] and second[50, 50].tolist() == [200, 0, 0]
    assert (shown(tmp_path / "a.webp", nframes=2)[1][50, 50] == 255).all()  # transparent, on white


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "JPEG2000"])
def test_a_still_image_is_a_video_of_one_frame(tmp_path, form):
    path = tmp_path / f"a.{ {'JPEG2000': 'jp2'}.get(form, form.lower()) }"
    Image.fromarray(RGB).save(path, form)
    for source in (path, Path(path).read_bytes()) if form != "BMP" and form != "PPM" else (path,):
        medium = media.open_video(source, **VIDEO | {"min_frames": 4})
        assert medium.frames == [0] and medium.grid[0] == 1 and len(list(medium.pairs())) == 1
        assert medium.source == (str(path) if source is path else f"<{len(source)} bytes>")
    if form == "PNG":
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(MediaError, match=f"^video {re.escape(str(path))} is damaged"):
            media.open_video(path, **VIDEO)


def test_an_animation_cut_off_is_shown_as_far_as_it_goes(tmp_path):
    content = animation("PNG", [100] * 20, (200, 200))
    noise = [Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(12)]
    out = io.BytesIO()
    noise[0].save(out, "PNG", save_all=True, append_images=noise[1:], duration=100)
    for whole in (content, out.getvalue()):
        for share in (0.3, 0.6, 0.9):
            try:
                medium = media.open_video(whole[: int(len(whole) * share)], **VIDEO | {"nframes": 64})
            except MediaError:
                continue
            assert sum(1 for _ in medium.pairs()) == medium.grid[0] <= 10
    medium = media.open_video(out.getvalue()[: int(len(out.getvalue()) * 0.6)], **VIDEO | {"nframes": 64})
    assert 5 <= len(medium.frames) <= 8 and "damaged or cut off" in medium.warnings[0]
