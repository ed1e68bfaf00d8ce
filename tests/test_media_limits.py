"""Limits of media: frame pairs and what repeats, objects in memory, declared lengths, and images too large to decode."""

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ivlite.errors import MediaError, OutOfMemoryError, UsageError
from ivlite.media import medium, memory, stills, video
from ivlite.media.medium import Medium, Seen
from ivlite.media.timeline import Timeline

# ------------------------------------------------------------------------------------------------ frame pairs


class Shown(Medium):
    """Frames in memory, of levels of grey."""

    def __init__(self, levels, temporal=2, times=None, size=(16, 24), content=None):
        times = np.arange(len(levels)) if times is None else times
        super().__init__("video", "a", size, range(len(levels)), times, 9.0, patch_size=8, temporal=temporal)
        self.levels, self.asked, self.made = levels, [], content

    def content(self):
        return self.made

    def pictures(self, first=0):
        self.asked.append(first)
        for level in self.levels[first:]:
            yield np.full((*self.size, 3), level, np.uint8) if np.ndim(level) == 0 else level


@pytest.mark.parametrize(
    "count, temporal, pairs",
    [
        (1, 2, [[0, 0]]),
        (4, 2, [[0, 1], [2, 3]]),
        (5, 2, [[0, 1], [2, 3], [4, 4]]),
        (5, 1, [[0], [1], [2], [3], [4]]),
        (7, 4, [[0, 1, 2, 3], [4, 5, 6, 6]]),
    ],
)
def test_frames_in_pairs(count, temporal, pairs):
    made = Shown(range(count), temporal)
    assert made.grid == (len(pairs), 2, 3)
    got = list(made.pairs())
    assert [pair[:, 0, 0, 0].tolist() for pair in got] == pairs and {p.shape for p in got} == {(temporal, 16, 24, 3)}
    assert [pair[:, 0, 0, 0].tolist() for pair in made.pairs(1)] == pairs[1:] and made.asked == [0, temporal]
    keys = made.pair_keys()
    assert len(set(keys)) == len(pairs) and {len(k) for k in keys} == {16} and made.asked == [0, temporal]


def test_keys_of_pixels_are_those_that_were_seen():
    made = Shown([1, 1, 2, 2, 3])
    assert not made.has_keys() and made.memory() == 0
    list(made.pairs(1))
    assert not made.has_keys()  # the first pair was not seen
    list(made.pairs())
    before = made.pair_keys()
    made.levels = [1, 1, 7, 7, 3]
    list(made.pairs(1))
    assert (
        made.has_keys()
        and made.pair_keys()[0] == before[0]
        and made.pair_keys()[2] == before[2] != made.pair_keys()[1] != before[1]
    )
    assert (
        Shown([1, 1]).pair_keys() != Shown([1, 2]).pair_keys()
        and Shown([1, 1]).pair_keys() == Shown([1, 1]).pair_keys()
    )


def test_keys_of_files_are_of_content_frames_and_size():
    def keys(data=b"x", **more):
        made = Shown([1] * 4, content=medium.Bytes(data), **more)
        assert made.has_keys()
        return made.pair_keys()

    first = keys()
    assert keys() == first and keys(b"y") != first and keys(temporal=1)[0] != first[0] and keys(size=(24, 16)) != first
    assert first[0] != first[1] and len(keys(temporal=4)) == 1
    each = Shown([1] * 4, content=[medium.Bytes(bytes([n])) for n in range(4)])
    assert each.has_keys() and each.pair_keys()[0] != each.pair_keys()[1]
    assert medium.digest(b"ab", b"c") != medium.digest(b"a", b"bc") and len(medium.digest()) == 16


def test_a_file_that_changes_while_it_is_seen(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    made = Shown([1] * 6, content=medium.Content(path))
    before = made.pair_keys()
    list(made.pairs(1))
    assert made.pair_keys() == before
    path.write_bytes(b"22")
    list(made.pairs(1))
    assert made.pair_keys()[0] == before[0] and made.pair_keys()[1:] != before[1:] and len(made.pair_keys()) == 3
    assert made.content().changed() and medium.Content(path).digest() != medium.Content(path, b"more").digest()
    gone = medium.Content(tmp_path / "none")
    assert gone.small() and gone.digest() != medium.Content(tmp_path / "none").digest()


@pytest.mark.parametrize("size, small", [((32 << 20) - 1, True), (32 << 20, False)])
def test_a_large_file_is_not_read_for_a_look(monkeypatch, tmp_path, size, small):
    path = tmp_path / "a"
    with open(path, "wb") as file:
        file.truncate(size)
    assert medium.Content(path).small() == small


def test_pictures_that_are_nearly_the_last_one():
    """Six levels in the mean of a square of 8: those of the last pair that differed count, not those in between."""
    levels = [100, 100, 106, 106, 100, 107, 94, 100, 93, 93, 99, 99, 100, 100]
    assert list(Shown(levels).repeats()) == [False, True, False, False, False, True, False]
    corner = np.full((16, 24, 3), 50, np.uint8)
    for change, repeats in (
        ((slice(8, 16), slice(16, 24), 2, 57), False),
        ((slice(8, 16), slice(16, 24), 2, 56), True),
        ((slice(8, 16), slice(16, 20), 1, 62), True),
        ((slice(8, 16), slice(16, 20), 1, 63), False),
    ):
        other = corner.copy()
        *at, value = change
        other[tuple(at)] = value
        assert list(Shown([corner, corner, other, corner]).repeats()) == [False, repeats]
        assert list(Shown([corner, corner, corner, other]).repeats()) == [False, repeats]


def test_some_of_the_pairs():
    made = Shown(range(7), times=[0.0, 0.5, 2.0, 2.5, 4.0, 4.5, 6.0])
    made.warn("x")
    made.warn("x")
    assert made.only([0, 1, 2, 3]) is made and made.warnings == ["x"]
    some = made.only([1, 3])
    assert (some.frames, some.grid, some.timestamps) == ([2, 3, 6], (2, 2, 3), [made.timestamps[1], made.timestamps[3]])
    some.warn("y")
    assert made.warnings == ["x"] and some.warnings == ["x", "y"] and not some.has_keys()


def test_a_medium_that_was_seen():
    made = Shown([1, 1, 2])
    waiting = Seen.of(made)
    assert not waiting.has_keys() and waiting.medium is made and Seen.of(waiting) is waiting
    assert waiting.pair_keys() == made.pair_keys() and waiting.medium is None and waiting.has_keys()
    again = Seen.of(made)
    assert again.medium is None and (again.grid, again.size, again.frames, again.temporal, again.duration) == (
        (2, 2, 3),
        (16, 24),
        [0, 1, 2],
        2,
        9.0,
    )
    with pytest.raises(MediaError, match="no longer there"):
        again.pictures()


# ------------------------------------------------------------------------------------------------ arrays


def grey(values, **more):
    return np.asarray(memory.Pixels(np.asarray(values), "image", **more).image())


@pytest.mark.parametrize("values, shown", [
    (np.array([[0, 128, 255]], np.uint8), [0, 128, 255]), (np.array([[0, 256, 257, 65535]], np.uint16), [0, 0, 1, 255]), (np.array([[True, False]]), [255, 0]),
    (np.array([[0, 128, 255]], np.int32), [0, 128, 255]), (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]), (np.array([[-1 / 512, 1 + 1 / 512]]), [0, 255]),
    (np.array([[0.0, 0.00195]], np.float16), [0, 0]), (np.array([[0.00197]]), [1]), (np.array([[0.0, 1.0]], np.float32), [0, 255]),
])  # fmt: skip
def test_values_of_an_array(values, shown):
    assert grey(values)[0].tolist() == shown


@pytest.mark.parametrize("values, words", [
    (np.array([[256]]), "from 256 to 256, and int64 is 0..255"), (np.array([[-1]], np.int8), "int8 is 0..255"), (np.array([[1.002]]), "floats are 0..1"), (np.array([[-0.002]]), "floats are"),
    (np.array([[np.nan]]), "floats"), (np.array([[np.inf]]), "floats"), (np.array([[1j]]), "array of complex128"), (np.array([["x"]]), "array of"), (np.zeros((0, 3)), r"\(0, 3\)"),
    (np.zeros(3), r"\(3,\); it must be \(height"), (np.zeros((2, 2, 2, 3)), "must be"), (np.zeros((5, 4, 2)), "1, 3 or 4 channels"), (np.zeros((2, 5, 4)), None), (np.zeros((2, 5, 5)), "channels"),
])  # fmt: skip
def test_arrays_that_are_no_picture(values, words):
    if words is None:
        assert memory.Pixels(values, "image").shape == (2, 5)
    else:
        with pytest.raises(UsageError, match=words):
            memory.Pixels(values, "image")


@pytest.mark.parametrize("shape, torch, size, mode", [
    ((5, 6), False, (5, 6), "L"), ((5, 6, 1), False, (5, 6), "L"), ((5, 6, 3), False, (5, 6), "RGB"), ((5, 6, 4), False, (5, 6), "RGBA"), ((1, 5, 6), False, (5, 6), "L"), ((3, 5, 6), False, (5, 6), "RGB"),
    ((4, 5, 6), False, (5, 6), "RGBA"), ((3, 5, 4), False, (3, 5), "RGBA"), ((3, 5, 4), True, (5, 4), "RGB"), ((5, 3, 4), True, (5, 3), "RGBA"), ((1, 1, 1), False, (1, 1), "L"), ((5, 6, 3), True, (5, 6), "RGB"),
])  # fmt: skip
def test_channels_first_and_last(shape, torch, size, mode):
    made = memory.Pixels(np.zeros(shape, np.uint8), "image", torch)
    assert made.shape == size and made.image().mode == mode and made.image().size == size[::-1]


@pytest.mark.parametrize("shape, torch, frames, shapes", [
    ((5, 6), False, 1, (5, 6)), ((5, 6, 3), False, 1, (5, 6, 3)), ((3, 5, 6), False, 1, (3, 5, 6)), ((9, 5, 6), False, 9, (5, 6)), ((2, 5, 6, 3), False, 2, (5, 6, 3)), ((2, 3, 5, 6), False, 2, (5, 6, 3)),
    ((2, 1, 5, 6), False, 2, (5, 6, 1)), ((2, 4, 5, 3), True, 2, (5, 3, 4)),
])  # fmt: skip
def test_frames_of_an_array(shape, torch, frames, shapes):
    got = memory.array_frames(np.zeros(shape), torch)
    assert len(got) == frames and {f.shape for f in got} == {shapes}


@pytest.mark.parametrize("shape", [(2,), (2, 5, 6, 2), (0, 5, 6, 3), (1, 2, 3, 4, 5)])
def test_arrays_that_are_no_video(shape):
    with pytest.raises(UsageError, match="the video is an array"):
        memory.array_frames(np.zeros(shape), False)


def test_frames_with_their_times():
    def frames(*times, **more):
        return memory.as_frames([{"t": t, "image": n} | more for n, t in enumerate(times)])

    assert frames(0, 1.5, 2).times == [0.0, 1.5, 2.0] and frames(0).items == [0]
    for times, words in (
        ((0, 0), r"frame 1 is at 0 s, not after the one before it \(0 s\)"),
        ((0, 2, 1), "frame 2 is at 1 s"),
        ((-1,), "t of frame 0"),
        ((0, "x"), "t of frame 1"),
    ):
        with pytest.raises(UsageError, match=words):
            frames(*times)
    for item in ({"t": 0}, {"image": 1}, {"t": 0, "time": 1, "image": 1}, {"t": 0, "image": 1, "x": 2}):
        with pytest.raises(UsageError, match="frame 0 is"):
            memory.as_frames([item])
    assert memory.as_frames([{"timestamp": 3, "image": 1, "type": "image"}]).times == [3.0]
    with pytest.raises(UsageError, match="with and without times"):
        memory.as_frames([{"t": 0, "image": 1}, 5])
    assert memory.as_frames({1, 2}) is None and memory.as_frames(5) is None and memory.as_frames("a.mp4") is None
    parts = memory.as_frames("data:video/jpeg;base64,AAA,BBB")
    assert parts.items == ["data:image/jpeg;base64,AAA", "data:image/jpeg;base64,BBB"]


def test_limits_of_lists_and_files(monkeypatch):
    monkeypatch.setattr(memory, "MOST_FRAMES", 3)
    assert len(memory.as_frames(iter(range(3))).items) == 3 and len(memory.as_frames([1] * 9).items) == 9
    with pytest.raises(UsageError, match="more than 3 frames"):
        memory.as_frames(iter(range(4)))
    monkeypatch.setattr(memory, "available_memory", lambda: 2000)
    assert len(memory.as_frames(bytes(500) for _ in range(2)).items) == 2
    with pytest.raises(OutOfMemoryError, match="take more than"):
        memory.as_frames(bytes(n) for n in (500, 501))
    monkeypatch.setattr(memory, "MOST_BYTES", 5)
    assert (
        memory.file_data(bytearray(5), "image").name == "<5 bytes>"
        and memory.file_data(io.BytesIO(b"12345"), "image").content == b"12345"
    )
    for source in (bytearray(6), io.BytesIO(b"123456"), "data:image/png;base64,MTIzNDU2", "data:image/png,123456"):
        with pytest.raises(MediaError, match="in memory: give the path"):
            memory.file_data(source, "image")
    for source in (bytearray(), io.BytesIO(), "data:image/png,"):
        with pytest.raises(MediaError, match="is empty"):
            memory.file_data(source, "image")
    sizes = [
        (Image.new("L", (3, 5)), 60),
        ({"image": b"123"}, 3),
        ("1234", 4),
        (np.zeros(3), 24),
        (object(), 0),
        ({}, 0),
    ]
    assert [memory.size_of(frame) for frame, _ in sizes] == [size for _, size in sizes]


@pytest.mark.parametrize("text", ["MTIzNDU2", "MTIz\nNDU2", "MTIzNDU2====", "MTIzNDU2%3D", "MTIz NDU2"])
def test_base64_of_every_kind(text):
    assert memory.decoded(text, "image", "text") == b"123456"
    assert memory.decoded("-_8", "image", "text") == memory.decoded("+/8=", "image", "text") == b"\xfb\xff"
    for bad in ("M", "MTI*", "é", "MTIzN"):
        with pytest.raises(MediaError, match="base64 is damaged"):
            memory.decoded(bad, "image", "text")


# ------------------------------------------------------------------------------------------------ declared lengths


def opened(seconds, rate, whole=None, form="matroska", guessed=None, begins=None):
    stream = SimpleNamespace(
        duration=seconds and int(seconds * 1000), time_base=0.001, average_rate=rate, guessed_rate=guessed, metadata={}
    )
    named = SimpleNamespace(flags=0, name=form)
    return SimpleNamespace(format=named, streams=[stream, 2], duration=whole, start_time=begins), stream


@pytest.mark.parametrize("given, frames", [
    ((10, 25), 250), ((10, None, None, "matroska", 5), 50), ((None, 25, 2_000_000), 50), ((0.01, 25), 1), ((10, 25, None, "h264"), None), ((10, None), None), ((None, 25), None), ((None, 25, 0), None),
    ((400 * 24 * 3600 - 1, 0.001), 34560), ((400 * 24 * 3600, 0.001), None), ((100_000, 1000), 4_000_000),
    ((100, 90_000), 3000), ((100, None, None, "mpegts", 90_000), 3000), ((100, 1000), 100_000),
    ((66, 25, None, "matroska,webm", None, 60_000_000), 150), ((66, 25, None, "mov,mp4", None, 60_000_000), 1650), ((60, 25, None, "flv", None, 60_000_000), None),
])  # fmt: skip
def test_what_a_container_declares(given, frames):
    got = video.declared(*opened(*given))
    assert (None if got is None else len(got.times)) == frames
    if frames and frames > 1:
        assert (
            got.times[1] == pytest.approx(1 / got.rate)
            and got.interval == 1 / got.rate
            and got.keys.tolist() == [0]
            and got.pts is None
        )


@pytest.mark.parametrize("there, declared, interval, warned", [
    (98, 100.0, 1.0, False), (97, 100.0, 1.0, True), (98, 100.1, 1.0, True), (9, 10.0, 0.5, False), (9, 10.01, 0.5, True), (9, 10.2, 0.6, False), (9, 0.0, 0.5, False),
])  # fmt: skip
def test_a_file_that_lacks_its_end(there, declared, interval, warned):
    times = Timeline(np.arange(float(there)), None, np.zeros(1), 1.0, interval, declared=declared, notes=("first",))
    said = list(video.remarks("a", times))
    assert said[0] == "first" and len(said) == 1 + warned
    if warned:
        assert said[1] == f"video a is cut off: only the first {there:.1f} of {declared:.1f} seconds are there"


# ------------------------------------------------------------------------------------------------ images


def large(mode="RGB", size=(1000, 1000), **info):
    return SimpleNamespace(mode=mode, width=size[0], height=size[1], info=info)


@pytest.mark.parametrize("pixels, image, fine", [
    (250_000_000, large(), True), (250_000_001, large(), False), (10**9, large("L"), True), (10**9 + 1, large("L"), False), (5 * 10**8, large("I;16"), True), (5 * 10**8 + 1, large("I;16"), False),
    (249_250_000, large(progression=1), True), (249_250_001, large(progression=1), False),
])  # fmt: skip
def test_images_of_a_gigabyte(monkeypatch, pixels, image, fine):
    monkeypatch.setattr(stills, "available_memory", lambda: None)
    if fine:
        return stills.check_memory(pixels, image, "a")
    with pytest.raises(MediaError, match="a is 1000x1000, and decoded it takes 1.00 GB, beyond the limit of 1.00 GB"):
        stills.check_memory(pixels, image, "a")


@pytest.mark.parametrize(
    "pixels, free, fine",
    [
        (1 << 24, 0, True),
        ((1 << 24) + 1, 0, False),
        ((1 << 24) + 1, (1 << 26) + 4, True),
        ((1 << 24) + 1, (1 << 26) + 3, False),
    ],
)
def test_images_that_take_more_than_is_free(monkeypatch, pixels, free, fine):
    monkeypatch.setattr(stills, "available_memory", lambda: free)
    if fine:
        return stills.check_memory(pixels, large(), "a")
    with pytest.raises(OutOfMemoryError, match="a takes 67 MB of memory"):
        stills.check_memory(pixels, large(), "a")


def codestream(levels, before=b""):
    """The beginning of JPEG 2000: SIZ, and COD with so many levels."""
    return (
        before
        + b"\xff\x4f\xff\x51"
        + bytes(30)
        + b"\xff\x52"
        + struct.pack(">HBBHBB", 12, 0, 0, 1, 0, levels)
        + bytes(20)
    )


@pytest.mark.parametrize("levels, size, most", [
    (5, (4096, 4096), 9), (5, (4096, 4096), 2), (0, (4096, 4096), 9), (5, (4096, 4095), 9), (5, (4096, 4097), 9), (5, (4096, 4099), 9), (5, (4102, 4096), 9), (5, (3, 3), 9), (3, (77, 1), 9),
])  # fmt: skip
def test_how_often_decoding_can_halve(levels, size, most):
    def fits(n):  # Pillow rounds to the nearest, OpenJPEG up
        return all((side + (1 << n >> 1)) >> n == -(-side >> n) for side in size)

    expected = max(n for n in range(min(levels, most) + 1) if fits(n))
    assert stills.halvings(io.BytesIO(codestream(levels)), size, most) == expected
    assert stills.halvings(io.BytesIO(codestream(levels, bytes(100))), size, most) == expected
    assert (
        stills.halvings(io.BytesIO(codestream(levels)[:43]), size, most)
        == 0
        == stills.halvings(io.BytesIO(b""), size, most)
    )


def chunk(kind, data, good=True):
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data) + (not good))


def test_a_png_without_spare_chunks():
    head, parts = (
        b"\x89PNG\r\n\x1a\n",
        [chunk(kind, b"1234") for kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")],
    )
    spare = [chunk(kind, bytes(50)) for kind in (b"tEXt", b"iCCP", b"zzzz")]
    mixed = head + b"".join(part + other for part, other in zip(parts, spare * 2, strict=True))
    assert stills.trimmed(io.BytesIO(mixed)).read() == head + b"".join(parts)
    wrong = [chunk(b"eXIf", b"1234", good=False), chunk(b"IDAT", b"1234", good=False)]
    assert stills.trimmed(io.BytesIO(head + b"".join(wrong))).read() == head + wrong[1]
    assert stills.trimmed(io.BytesIO(head + parts[0] + parts[1][:7])).read() == head + parts[0]
    file = io.BytesIO(b"GIF89a....")
    file.seek(5)
    assert stills.trimmed(file) is None and file.tell() == 0


def test_nothing_decoded_is_no_picture():
    for image, blank in (
        (Image.new("RGB", (4, 4), 7), True),
        (Image.new("L", (4, 4)), True),
        (Image.linear_gradient("L"), False),
    ):
        found = stills.Picture(image, (4, 4))
        if blank:
            with pytest.raises(ValueError):
                stills.damaged(found, "a")
        else:
            assert stills.damaged(found, "a").notes == ["a is damaged or cut off: what is missing of it is shown blank"]
    one = Image.new("RGB", (4, 4), 7)
    one.putpixel((0, 0), (7, 7, 8))
    assert stills.damaged(stills.Picture(one, (4, 4)), "a").notes


@pytest.mark.parametrize(
    "value, upright",
    [
        (1, (2, 3)),
        (2, (2, 3)),
        (3, (2, 3)),
        (4, (2, 3)),
        (5, (3, 2)),
        (6, (3, 2)),
        (7, (3, 2)),
        (8, (3, 2)),
        (9, (2, 3)),
    ],
)
def test_the_orientation_of_a_photograph(value, upright):
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), (255, 0, 0))
    image.getexif()[0x0112] = value
    found = stills.picture(image, image.size, "a")
    assert found.shape == upright
    turned = image if found.turn is None else image.transpose(found.turn)
    corner = {1: (0, 0), 2: (2, 0), 3: (2, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 2), 8: (0, 2), 9: (0, 0)}[value]
    assert turned.size == upright[::-1] and turned.getpixel(corner) == (255, 0, 0)


@pytest.mark.parametrize(
    "pixels, least, size",
    [(0, 0.3, (100, 60)), (-1, 0.3, (30, 18)), (-1, 0.31, (31, 19)), (-1, 1.0, (100, 60)), (-1, 0.01, (1, 1))],
)
def test_frames_scaled_down_by_ffmpeg(monkeypatch, pixels, least, size):
    import av

    monkeypatch.setattr(stills, "WHOLE", 100 * 60 + pixels)
    frame = av.VideoFrame.from_ndarray(np.zeros((60, 100, 3), np.uint8), format="rgb24")
    got = stills.reduced(frame, least)
    assert (got.width, got.height) == size and (got is frame) == (size == (100, 60))
