"""Thumbnails: the frame that the model saw, small; and sheets of them."""

import io

import numpy as np
import pytest
from made_videos import bits, numbered, opened, said
from PIL import Image
from test_time import joined, timed

from ivlite import media
from ivlite.errors import MediaError, UsageError
from ivlite.media.thumbnails import Item, contact_sheet, thumbnails
from ivlite.numbers import clock


def read(data):
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_the_frame_that_was_shown_is_the_one_in_the_picture(tmp_path, name):
    path = numbered(tmp_path / name, 120, options={"bf": "2"})
    seen = opened(path, fps=3)
    times = media.probe(path, fps=3).times.times[seen.frames]
    made = thumbnails(path, [round(float(t), 3) for t in times])  # as evidence keeps them
    assert [thumb.index for thumb in made] == seen.frames
    pictures = [picture for pair in seen.pairs() for picture in pair]
    assert [said(read(thumb.jpeg)) for thumb in made] == [said(p) for p in pictures[: len(made)]]


def test_times_in_any_order_and_more_than_once(tmp_path):
    path = timed(tmp_path / "a.mkv", [0, 40, 1000, 1040, 5000], total=9000)
    made = thumbnails(path, [8.9, 0.0, 0.9995, 0.9, 1.039, 100, 0.0])
    assert [thumb.index for thumb in made] == [4, 0, 2, 1, 2, 4, 0]  # 0.9995 is 1.0 that was rounded down
    assert made[0].time == 5 and [said(read(t.jpeg)) for t in made] == [t.index for t in made]
    assert thumbnails(path, []) == []


def test_joined_streams(tmp_path):
    numbers = joined(tmp_path / "a.ts", [60, 60], codec="libx264", gop=20)
    assert [said(read(t.jpeg)) for t in thumbnails(tmp_path / "a.ts", [2.0, 3.0])] == [numbers[50], numbers[75]]


@pytest.mark.parametrize("size, longest, wanted", [
    ((48, 64), 320, (48, 64)), ((480, 640), 320, (240, 320)), ((640, 480), 32, (32, 24)), ((32, 800), 20, (1, 20)),
])  # fmt: skip
def test_sizes(tmp_path, size, longest, wanted):
    numbered(tmp_path / "a.mkv", 3, size=size)
    (thumb,) = thumbnails(tmp_path / "a.mkv", [0.04], longest)
    assert (thumb.height, thumb.width) == wanted == read(thumb.jpeg).shape[:2]


def test_turned_videos_stand_upright(tmp_path):
    numbered(tmp_path / "a.mp4", 3, size=(48, 96), rotation=90)
    (thumb,) = thumbnails(tmp_path / "a.mp4", [0])
    assert (thumb.height, thumb.width) == (96, 48)


def test_an_image_and_an_animated_one(tmp_path):
    pictures = [Image.fromarray(bits(i)) for i in range(6)]
    pictures[5].save(tmp_path / "still.png")
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=500, lossless=True)
    assert [said(read(t.jpeg)) for t in thumbnails(tmp_path / "still.png", [0, 3])] == [5, 5]
    assert [said(read(t.jpeg)) for t in thumbnails(tmp_path / "a.webp", [0.6, 2.4])] == [1, 4]


def test_what_is_refused(tmp_path):
    numbered(tmp_path / "a.mkv", 3)
    for times, longest in (([-1], 320), ([float("nan")], 320), (["x"], 320), ([0], 0), ([0], 1.5)):
        with pytest.raises(UsageError):
            thumbnails(tmp_path / "a.mkv", times, longest)
    with pytest.raises(MediaError):
        thumbnails(tmp_path / "none.mkv", [0])


def picture(color, size=(64, 48)):
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("count, columns, rows", [(1, 1, 1), (5, 5, 1), (6, 6, 1), (7, 6, 2), (40, 6, 7)])
def test_a_sheet_is_a_grid(count, columns, rows):
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sheet = read(contact_sheet([Item(picture(colors[i % 3]), 60.0 * i, i / count) for i in range(count)], 120))
    height, width = (sheet.shape[0] - 8) // rows, (sheet.shape[1] - 8) // columns
    assert width == 128 and height == 90 + 22 + 8
    for i in range(count):
        y, x = 8 + i // columns * height, 8 + i % columns * width
        assert np.abs(sheet[y + 45, x + 60].astype(int) - colors[i % 3]).max() < 40
        assert sheet[y + 92 : y + 110, x : x + 90].max() > 200  # the time
        assert sheet[y + 92 : y + 110, x + 90 : x + 120].max() > 120  # the score


def test_pictures_of_any_shape_and_titles_of_any_kind():
    hostile = ["", "a" * 5000, "\x1b[31m\n\t\0", "夏の夜の夢 🎬", "\udcff", "<b>&"]
    shapes = [(64, 48), (48, 64), (1, 500), (500, 1), (3, 3), (2000, 1000)]
    items = [Item(picture("red", shape), 1e6, None, title) for shape, title in zip(shapes, hostile, strict=True)]
    sheet = read(contact_sheet(items))
    assert sheet.shape[1] == 6 * 248 + 8 and sheet.shape[0] <= 2 * 240 + 44 + 16


def test_a_sheet_of_none_and_of_too_many():
    for count in (0, 401):
        with pytest.raises(UsageError):
            contact_sheet([Item(picture("red"), 0)] * count)


def test_clock():
    assert [clock(t) for t in (0, 2472, 59.9996, 3599.9994, 360000.5, -1)] == [
        "00:00:00.000", "00:41:12.000", "00:01:00.000", "00:59:59.999", "100:00:00.500", "00:00:00.000",
    ]  # fmt: skip


def test_many_moments(tmp_path):
    made = thumbnails(numbered(tmp_path / "a.mkv", 250), np.linspace(0, 9.9, 100), 16)
    assert len(made) == 100 and sum(len(t.jpeg) for t in made) < 100_000
