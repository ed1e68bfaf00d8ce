"""What a decoded frame becomes on the screen: pixel aspect, rotation, transparency, fields, HDR, colour tags."""

from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from ivlite import media
from ivlite.errors import MediaError
from ivlite.media.color import HLG, PQ, tone_mapped
from ivlite.media.display import Display, Interlaced, deinterlaced, with_neighbours

VIDEO = {"fps": 5, "min_frames": 1, "max_frames": 64, "min_pixels": 1024, "max_pixels": 1 << 21}


def opened(path, **more):
    return media.open_video(path, **VIDEO | more)


def first(path, **more):
    return next(opened(path, **more).pairs())[0]


def write(path, frames, codec="ffv1", pix_fmt="bgr0", *, rate=5, aspect=None, rotation=None, options=None, **tags):
    """A video of uint8 or uint16 (h, w, 3 or 4) arrays, or of frames of PyAV."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.options = options or {}
        for i, frame in enumerate(frames):
            if isinstance(frame, np.ndarray):
                format = {3: "rgb", 4: "rgba"}[frame.shape[2]] + {1: {3: "24", 4: ""}, 2: {3: "48le", 4: "64le"}}[
                    frame.itemsize
                ][frame.shape[2]]
                frame = av.VideoFrame.from_ndarray(frame, format=format)
            if i == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                if aspect:
                    stream.codec_context.sample_aspect_ratio = aspect
                if rotation is not None:
                    stream.set_display_rotation(rotation)
                for name, value in tags.items():
                    setattr(stream.codec_context, name, value)
            frame.pts = None
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def disc(height, width, aspect):
    """A white disc, round once pixels are `aspect` times as wide as high."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) * aspect) ** 2 + (y - height / 2) ** 2 < (0.4 * min(height, width * aspect)) ** 2
    return np.where(inside[..., None], 255, np.zeros(3)).astype(np.uint8)


def roundness(picture):
    y, x = np.where(picture[..., 0] > 128)
    return (np.ptp(x) + 1) / (np.ptp(y) + 1)


# ------------------------------------------------------------------------------------------------ shape


@pytest.mark.parametrize("aspect", [Fraction(64, 45), Fraction(8, 9), Fraction(1, 2), Fraction(2), Fraction(4, 3)])
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_pixels_that_are_not_square(tmp_path, name, aspect):
    """In mp4 the container says so, in mkv (as PyAV writes it) the codec."""
    path = write(tmp_path / name, [disc(288, 360, float(aspect))] * 3, "libx264", "yuv420p", aspect=aspect)
    medium = opened(path)
    height, width = medium.size
    assert abs(width / height - 360 * aspect / 288) < 0.15 * width / height
    # sides are multiples of 32, so a disc is as round as the size allows
    assert roundness(next(medium.pairs())[0]) == pytest.approx(width / height / float(360 * aspect / 288), rel=0.04)


@pytest.mark.parametrize("aspect", [Fraction(1000), Fraction(1, 1000), Fraction(0, 1), Fraction(1)])
def test_a_pixel_aspect_that_makes_no_sense_is_ignored(tmp_path, aspect):
    path = write(tmp_path / "a.mov", [disc(64, 96, 1)] * 2, "libx264", "yuv420p", aspect=aspect)
    assert opened(path).size == (64, 96)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pixels_are_stretched_before_the_frame_is_turned(tmp_path, rotation):
    """A phone's anamorphic recording held upright: the stored width is the height on the screen."""
    path = write(
        tmp_path / "a.mp4", [disc(256, 128, 2)] * 2, "libx264", "yuv420p", aspect=Fraction(2), rotation=rotation
    )
    wide = write(
        tmp_path / "b.mp4", [disc(256, 128, 2)] * 2, "libx264", "yuv420p", aspect=Fraction(4), rotation=rotation
    )
    assert opened(path).size == (256, 256) and roundness(first(path)) == pytest.approx(1, abs=0.03)
    assert opened(wide).size == ((512, 256) if rotation in (90, 270) else (256, 512))


# ------------------------------------------------------------------------------------------------ transparency


def hole():
    """Red with a transparent right half, whose hidden colour is black."""
    picture = np.zeros((64, 96, 4), np.uint8)
    picture[:, :48] = 250, 10, 10, 255
    return picture


ALPHA = {
    "qtrle.mov": ("qtrle", "argb"), "png.mov": ("png", "rgba"), "ffv1.mkv": ("ffv1", "bgra"),
    "prores.mov": ("prores_ks", "yuva444p10le"), "yuva.mkv": ("ffv1", "yuva420p"), "gbrap.avi": ("utvideo", "gbrap"),
    "vp9.webm": ("libvpx-vp9", "yuva420p"), "vp8.webm": ("libvpx", "yuva420p"), "a.gif": ("gif", "bgra"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALPHA)
def test_what_is_transparent_is_white(tmp_path, name):
    if ALPHA[name][0] not in av.codecs_available:
        pytest.skip("this FFmpeg lacks the codec")
    if name == "a.gif":
        image = Image.fromarray(hole())
        image.save(tmp_path / name, save_all=True, append_images=[image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)])
    else:
        options = {"auto-alt-ref": "0", "b": "2M"} if "webm" in name else {}
        write(tmp_path / name, [hole()] * 4, *ALPHA[name], options=options)
    for pair in opened(tmp_path / name).pairs():
        for picture in pair:
            assert np.abs(picture[:, :40].astype(int) - (250, 10, 10)).max() < 24
            assert picture[:, 56:].min() > 245


@pytest.mark.parametrize("name, codec", [("a.avi", "png"), ("a.mov", "png"), ("b.avi", "rawvideo")])
def test_videos_with_a_palette(tmp_path, name, codec):
    """As recordings of screens have; FFmpeg converts from palettes, but not to them."""
    indexes = np.zeros((64, 96), np.uint8)
    indexes[:, 48:] = 1
    frame = av.VideoFrame(96, 64, "pal8")
    rows = np.zeros((64, frame.planes[0].line_size), np.uint8)
    rows[:, :96] = indexes
    frame.planes[0].update(rows.tobytes())
    colours = np.zeros(256, np.uint32)
    colours[:2] = 0xFFFF0000, 0xFF0000FF  # opaque red, blue
    frame.planes[1].update(colours.tobytes())
    picture = first(write(tmp_path / name, [frame], codec, "pal8"))
    assert picture[32, 10].tolist() == [255, 0, 0] and picture[32, 80].tolist() == [0, 0, 255]


def test_pixels_that_ffmpeg_cannot_convert_are_named():
    with pytest.raises(MediaError, match="a frame has pixels of the format gray32le"):
        Display(SimpleNamespace(sample_aspect_ratio=None)).shape(av.VideoFrame(64, 64, "gray32le"))


def test_what_is_half_transparent_is_mixed_with_white(tmp_path):
    picture = hole()
    picture[..., 3] = 128
    write(tmp_path / "a.mov", [picture] * 2, "png", "rgba")
    expected = np.asarray(Image.alpha_composite(Image.new("RGBA", (96, 64), "white"), Image.fromarray(picture)))
    assert np.abs(first(tmp_path / "a.mov").astype(int) - expected[..., :3]).max() <= 1


# ------------------------------------------------------------------------------------------------ fields


def woven(count, height=128, width=192):
    """Interlaced frames of a bar that moves from field to field, and the same bar as progressive frames."""
    fields = []
    for i in range(2 * count):
        picture = np.full((height, width, 3), 30, np.uint8)
        picture[:, 8 + 4 * i : 40 + 4 * i] = 220
        fields.append(picture)
    frames = []
    for top, bottom in zip(fields[::2], fields[1::2], strict=True):
        frame = top.copy()
        frame[1::2] = bottom[1::2]
        frames.append(frame)
    return frames, fields[::2]


def combing(picture):
    """How much neighbouring rows differ: teeth of fields from two moments."""
    rows = picture[..., 1].astype(int)
    return np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean()


@pytest.mark.parametrize("name, codec", [("a.ts", "mpeg2video"), ("a.mp4", "libx264"), ("b.mkv", "mpeg4")])
def test_interlaced_frames_are_deinterlaced(tmp_path, name, codec):
    flags = {"flags": "+ildct+ilme", "b": "4M"} | ({"x264-params": "tff=1"} if codec == "libx264" else {})
    frames, _ = woven(12)
    path = write(tmp_path / name, frames, codec, "yuv420p", rate=25, options=flags)
    with av.open(str(path)) as container:
        decoded = [f for f in container.decode(video=0)]
        assert all(f.interlaced_frame for f in decoded)
        stored = [f.to_ndarray(format="rgb24") for f in decoded]
    medium = opened(path, fps=25)
    shown = [p for pair in medium.pairs() for p in pair][: len(medium.frames)]
    assert len(shown) == 12 and medium.warnings == []
    assert min(map(combing, stored[2:])) > 5 * max(map(combing, shown[2:]))
    at = [np.where(p[64, :, 1] > 128)[0].mean() for p in shown]
    assert np.diff(at) == pytest.approx(8, abs=1.5), "every frame shows its own moment"


def test_deinterlacing_with_neighbours_is_deinterlacing_all(tmp_path):
    """One frame, deinterlaced alone, has the pixels that bwdif gives it in the whole video."""
    write(tmp_path / "a.ts", woven(8)[0], "mpeg2video", "yuv420p", rate=25, options={"flags": "+ildct+ilme", "b": "4M"})
    with av.open(str(tmp_path / "a.ts")) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        nodes = [graph.add_buffer(template=stream), graph.add("bwdif", "mode=send_frame"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        decoded, expected = list(container.decode(stream)), []
        for frame in [*decoded, None]:
            graph.vpush(frame)
            while True:
                try:
                    expected.append(graph.vpull().to_ndarray(format="rgb24"))
                except (BlockingIOError, EOFError):
                    break
    got = list(with_neighbours(decoded))
    assert len(got) == len(expected) == 8 and all(isinstance(f, Interlaced) for f in got)
    assert [f.pts for f in got] == [f.pts for f in decoded]
    for frame, whole in zip(got, expected, strict=True):
        assert np.array_equal(deinterlaced(frame).to_ndarray(format="rgb24"), whole)


def test_progressive_frames_pass_untouched(tmp_path):
    frames = [np.random.default_rng(i).integers(0, 256, (64, 96, 3), np.uint8) for i in range(5)]
    path = write(tmp_path / "a.mkv", frames)
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    assert list(with_neighbours(iter(decoded))) == decoded
    asked = with_neighbours(iter(decoded))
    assert next(asked) is decoded[0], "without waiting for the next frame"
    shown = [p for pair in opened(path).pairs() for p in pair]
    assert all(np.array_equal(a, b) for a, b in zip(shown, frames, strict=False))


# ------------------------------------------------------------------------------------------------ colours


@pytest.mark.parametrize(
    "transfer, codes, white", [(PQ, 0.5807, 203), (PQ, 0.7518, 1000), (HLG, 0.75, 203), (HLG, 1.0, 1000)]
)
def test_the_curves_levels(transfer, codes, white):
    """BT.2408: 58 % of PQ and 75 % of HLG are 203 cd/m2; the formula of docs/numerics.md gives what is shown."""
    light = white / 203
    expected = min(1, light / (light + 1) * (1 + 203 / 1000)) ** (1 / 2.4) * 255
    got = tone_mapped(np.full((1, 1, 3), round(codes * 65535), np.uint16), transfer, 9)
    assert np.abs(got[0, 0] - expected).max() < 1.5


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_tone_mapping_keeps_order_and_grey(transfer):
    ramp = np.repeat(np.linspace(0, 65535, 500).astype(np.uint16)[None, :, None], 3, 2)
    shown = tone_mapped(ramp, transfer, 9)[0].astype(int)
    assert (np.ptp(shown, 1) <= 1).all() and (np.diff(shown[:, 1]) >= 0).all()
    assert shown[0].max() == 0 and shown[-1].min() == 255


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_videos_are_tone_mapped(tmp_path, transfer):
    """Patches of known light, through BT.2020 YCbCr of 10 bits, turned, and resized."""
    grey = np.repeat(np.kron(np.linspace(0, 1, 12).reshape(3, 4), np.ones((32, 32)))[..., None], 3, 2)
    frame = av.VideoFrame.from_ndarray((grey * 65535).astype(np.uint16), format="rgb48le")
    frame.colorspace = 9
    frame = frame.reformat(format="yuv420p10le", dst_color_range="MPEG")
    tags = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    path = write(tmp_path / "a.mkv", [frame] * 2, "ffv1", "yuv420p10le", **tags)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).color_trc == transfer
    medium = opened(path)
    shown = next(medium.pairs())[0]
    expected = tone_mapped((grey * 65535).astype(np.uint16), transfer, 9)
    assert medium.warnings == [] and medium.size == (96, 128)
    assert np.abs(shown[16::32, 16::32].astype(int) - expected[16::32, 16::32]).max() <= 2
    small = first(path, max_pixels=32 * 64)
    assert small.shape == (32, 32, 3)


COLOURS = {  # matrix and range by the numbers of H.273 and FFmpeg, Kr and Kb
    "601": (6, 1, 0.299, 0.114), "709": (1, 1, 0.2126, 0.0722), "2020": (9, 1, 0.2627, 0.0593),
    "601 full": (6, 2, 0.299, 0.114), "709 full": (1, 2, 0.2126, 0.0722), "untagged": (2, 0, 0.299, 0.114),
}  # fmt: skip


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le"])
@pytest.mark.parametrize("name", COLOURS)
def test_matrices_and_ranges_are_those_of_the_tags(tmp_path, name, pix_fmt):
    """YCbCr by the formula of H.273. What has no tags is BT.601 of limited range, as FFmpeg and the reference read it."""
    matrix, bounds, kr, kb = COLOURS[name]
    rgb = np.kron(np.random.default_rng(3).integers(30, 226, (2, 3, 3)), np.ones((32, 32, 1)))
    r, g, b = (rgb / 255).transpose(2, 0, 1)
    y = kr * r + (1 - kr - kb) * g + kb * b
    planes = np.stack([y, (b - y) / (2 - 2 * kb) + 0.5, (r - y) / (2 - 2 * kr) + 0.5])
    if bounds != 2:
        planes = (
            planes * np.array([219, 224, 224]).reshape(3, 1, 1) / 255 + np.array([16, 16, 16]).reshape(3, 1, 1) / 255
        )
    frame = av.VideoFrame.from_ndarray((planes * 255).round().astype(np.uint8), format="yuv444p")
    frame.colorspace, frame.color_range = matrix, bounds
    path = write(tmp_path / "a.mkv", [frame.reformat(format=pix_fmt)] * 2, "ffv1", pix_fmt,
                 colorspace=matrix, color_range=bounds)  # fmt: skip
    assert np.abs(first(path)[16::32, 16::32] - rgb[16::32, 16::32]).max() <= 4


def grey(pix_fmt, **tags):
    """A frame of mid grey: of any matrix it is the same grey."""
    frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 126, np.uint8), format="rgb24").reformat(format=pix_fmt)
    for name, value in tags.items():
        setattr(frame, name, value)
    return frame


@pytest.mark.parametrize("matrix", [*range(20), 65, 255])
@pytest.mark.parametrize("kind", ["plain", "alpha", "hdr", "fields", "range"])
def test_any_matrix_is_shown(matrix, kind):
    """swscale refuses frames with tags that it does not know: something near stands in."""
    tags = {"colorspace": matrix, "color_range": 7 if kind == "range" else 1, "color_trc": PQ if kind == "hdr" else 1}
    frame = grey("yuva420p" if kind == "alpha" else "yuv420p", **tags)
    frame = Interlaced(None, frame, None) if kind == "fields" else frame
    display = Display(SimpleNamespace(sample_aspect_ratio=None))
    assert display.shape(frame) == (32, 48)
    shown = display.rgb(frame, (32, 48)).astype(int)
    if matrix and kind not in ("hdr", "range"):
        assert np.abs(shown - 126).max() <= 3
    known = matrix in (0, 1, 2, 4, 5, 6, 7, 9)
    assert len(list(display.notes("a.mp4"))) == (not known)


def test_the_nearest_matrix_stands_in():
    red = np.kron(np.array([[[200, 60, 40]]], np.uint8), np.ones((32, 48, 1), np.uint8))
    display = Display(SimpleNamespace(sample_aspect_ratio=None))
    for given, primaries, near in ((10, 9, 9), (12, 1, 1), (12, 9, 9), (13, 1, 1), (8, 2, 2), (12, 2, 2)):
        frames = []
        for matrix in (given, near):
            frame = av.VideoFrame.from_ndarray(red, format="rgb24").reformat(format="yuv444p", dst_colorspace="ITU709")
            frame.colorspace, frame.color_primaries = matrix, primaries
            frames.append(display.rgb(frame, (32, 48)))
        assert np.array_equal(*frames)
    assert len(list(display.notes("a.mp4"))) == 1


@pytest.mark.parametrize("name", ["bt2020c", "YCgCo", "ICtCp", "smpte2085", "chroma-derived-nc", "chroma-derived-c"])
def test_videos_of_rare_matrices_are_shown_with_one_note(tmp_path, name):
    plain = write(tmp_path / "a.ts", [disc(64, 96, 1)] * 5, "libx264", "yuv420p")
    rare = write(
        tmp_path / "b.ts", [disc(64, 96, 1)] * 5, "libx264", "yuv420p", options={"x264-params": f"colormatrix={name}"}
    )
    joint = tmp_path / "c.ts"
    joint.write_bytes(plain.read_bytes() + rare.read_bytes())
    for path, count in ((rare, 5), (joint, 10)):
        medium = opened(path)
        pictures = [p for pair in medium.pairs() for p in pair]
        assert len(medium.frames) == count and abs(pictures[-1].mean() - pictures[0].mean()) < 12
        assert len([w for w in medium.warnings if "matrix" in w]) == len(medium.warnings) == 1


@pytest.mark.parametrize(
    "error", [OSError(95, "Operation not supported"), ValueError("odd"), av.error.EOFError(1, "end")]
)
@pytest.mark.parametrize("fields", [False, True])
def test_what_ffmpeg_raises_while_it_converts_is_a_sentence(monkeypatch, error, fields):
    frame = grey("yuv420p")
    frame = Interlaced(None, frame, None) if fields else frame
    display = Display(SimpleNamespace(sample_aspect_ratio=None))

    def fails(*given):
        raise error

    monkeypatch.setattr("ivlite.media.display.deinterlaced" if fields else "ivlite.media.display.in_rgb", fails)
    with pytest.raises(MediaError, match="of the format yuv420p, which FFmpeg cannot convert .*: convert"):
        display.rgb(frame, (32, 48))


def test_every_frame_of_a_stream_is_shown_alike(tmp_path):
    """Display is asked by several passes over the same file, and keeps none of them open."""
    path = write(tmp_path / "a.mkv", [disc(64, 96, 1)] * 2)
    with av.open(str(path)) as container:
        display = Display(container.streams.video[0])
        frames = list(container.decode(video=0))
    assert all(np.array_equal(display.rgb(f, (64, 96)), disc(64, 96, 1)) for f in frames)
