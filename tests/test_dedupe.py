"""--dedupe: pairs that show nearly what the one before shows are left out; the rest is as if they were there."""

from pathlib import Path

import av
import numpy as np
import pytest

import ivlite
from ivlite import media
from ivlite.cli import main
from ivlite.gguf import SHIPPED

needs_demo = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
VIDEO = {"fps": 5, "min_frames": 1, "max_frames": 100, "min_pixels": 1024, "max_pixels": 1 << 16}
RNG = np.random.default_rng(11)
SCENE = RNG.integers(0, 256, (8, 8, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8)  # 128 x 128


def noisy(picture, levels=3):
    """The picture with noise in every pixel, as compression leaves."""
    return np.clip(picture + RNG.integers(-levels, levels + 1, picture.shape), 0, 255).astype(np.uint8)


def repeats(frames):
    return list(media.open_video(np.stack(frames), **VIDEO).repeats())


def test_a_still_scene_is_one_pair():
    assert repeats([SCENE] * 8) == [False, True, True, True]
    assert repeats([noisy(SCENE) for _ in range(7)]) == [False, True, True, True]


@pytest.mark.parametrize("size", [8, 12, 20])
def test_small_things_count(size):
    """A letter that appears, a thing that moves: where a square of 8 pixels changes, the pair stays."""
    changed = SCENE.copy()
    changed[40 : 40 + size, 50 : 50 + size] = 255 - changed[40, 50]
    assert repeats([SCENE, SCENE, SCENE, SCENE, changed, changed, changed, changed]) == [False, True, False, True]
    assert repeats([SCENE, SCENE, SCENE, changed, changed, changed]) == [False, False, False]  # in one frame of two


def test_slow_changes_add_up():
    """Each frame differs little from the one before and much from the first."""
    ramp = [np.full((64, 64, 3), 100 + i, np.uint8) for i in range(40)]
    found = repeats(ramp)
    assert 4 <= found.count(False) <= 8 and found[0] is False


def clip(path, scenes):
    """An H.264 video of 4 frames a second: each scene stays for its seconds."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = 128, 128, "yuv420p"
        for picture, seconds in scenes:
            for _ in range(4 * seconds):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return str(path)


@pytest.fixture(scope="module")
def model():
    with ivlite.load("demo", context=4096) as model:
        yield model


@pytest.fixture
def slides(tmp_path):
    """Three slides of 10, 2 and 8 seconds."""
    return clip(tmp_path / "slides.mp4", [(SCENE, 10), (255 - SCENE, 2), (SCENE.swapaxes(0, 1), 8)])


def asking(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What happens?"}]}]


@needs_demo
def test_the_rest_keeps_its_time_marks_and_positions(model, slides):
    part = {"type": "video", "video": slides, "fps": 1}
    image = {"type": "image", "image": SCENE}
    messages = asking(part, image, part)
    whole, few = model.prepare(messages), model.prepare(messages, dedupe=True)
    assert whole.grid_thw[0, 0] == 10 and few.grid_thw[0, 0] == few.grid_thw[2, 0] == 3
    chosen = [0, 5, 6]
    for medium in (0, 2):
        assert few.timestamps[medium] == [whole.timestamps[medium][pair] for pair in chosen]
        assert few.frames[medium] == [f for pair in chosen for f in whole.frames[medium][2 * pair : 2 * pair + 2]]
    marks = [model.tokenizer.encode(f"<{t:.1f} seconds>") for t in few.timestamps[0]]
    text = model.tokenizer.decode(few.token_ids, skip_special=False)
    assert text.count("seconds>") == 6 and text.endswith(
        model.tokenizer.decode(whole.token_ids[-10:], skip_special=False)
    )
    assert len(marks) == 3 and few.next_position == whole.next_position
    # Token by token: what stays is where it was.
    at = dict(zip(zip(*whole.positions.tolist(), strict=True), whole.token_ids, strict=True))
    for place, token in zip(zip(*few.positions.tolist(), strict=True), few.token_ids, strict=True):
        assert at[place] == token
    pads = {model.config.tokens.video_pad, model.config.tokens.image_pad}
    assert [i for i, token in enumerate(few.token_ids) if token in pads] == [
        i for _, first, count in few.spans for i in range(first, first + count)
    ]
    said = [w for w in few.warnings if "7 of 10 frame pairs" in w]
    assert len(said) == 2 and "slides.mp4" in said[0] and not whole.warnings


@needs_demo
def test_features_are_those_of_the_pairs_that_stay(model, slides):
    part = {"type": "video", "video": slides, "fps": 1}
    whole, few = model.prepare(asking(part)), model.prepare(asking(part), dedupe=True)
    every, some = list(whole.media[0].pairs()), list(few.media[0].pairs())
    assert all(np.array_equal(a, every[pair]) for a, pair in zip(some, [0, 5, 6], strict=True))
    assert few.keys == [whole.keys[pair] for pair in (0, 5, 6)]
    assert len(model.encode_vision(few)[0]) == sum(count for _, _, count in few.spans)


@needs_demo
def test_answers_sessions_and_reuse_go_with_it(model, slides):
    seen = []
    settings = {"temperature": 0, "max_new_tokens": 8, "dedupe": True, "progress": lambda *p: seen.append(p)}
    reply = model.chat(asking({"type": "video", "video": slides, "fps": 1}), **settings)
    assert reply.usage["frames"] == 6 and any("left out" in w for w in reply.warnings)
    assert [p for p in seen if p[0] == "dedupe"][-1] == ("dedupe", 20, 20)
    again = model.chat(asking({"type": "video", "video": slides, "fps": 1}), **settings)
    assert again.usage["cached_tokens"] == again.usage["prompt_tokens"] and again.text == reply.text
    with model.session() as session:
        for n in range(3):
            stream = session.ask("What happens?", [{"type": "video", "video": slides, "fps": 1}], **settings)
            for _ in stream:
                pass
            assert stream.reply.usage["frames"] == 6 * (n + 1) and len(stream.reply.warnings) == 1
        assert session.state().positions.shape == (3, session.tokens)


@needs_demo
def test_the_plan_is_of_what_stays(model, slides, capsys):
    image, part = {"type": "image", "image": SCENE}, {"type": "video", "video": slides, "fps": 1}
    few = model.prepare(asking(image, part), dedupe=True)
    for plan in (few.plan, model.plan(asking(image, part), dedupe=True)):
        assert plan.prompt_tokens == len(few.token_ids) and plan.fits
        assert plan.vision_tokens == sum(count for _, _, count in few.spans)
        (video,) = plan.videos
        assert (video.frames, video.possible, video.by) == (6, 20, "repeats")
        assert video.tokens == sum(count for owner, _, count in few.spans if owner == 1)
    whole = model.plan(asking(image, part))
    assert plan.wait is None or plan.seconds["vision"] < whole.seconds["vision"]
    assert plan.cache_bytes < whole.cache_bytes
    assert main(["plan", "demo", "--video", slides, "--fps", "1", "--dedupe"]) == 0
    assert "6 of 20 possible frames" in capsys.readouterr().out
    assert model.plan(asking(image), dedupe=True).videos == ()


@needs_demo
def test_nothing_to_leave_out_changes_nothing(model):
    clip = str(Path(__file__).parents[1] / "examples" / "clip.mp4")
    parts = ({"type": "video", "video": clip}, {"type": "image", "image": SCENE})
    whole, few = model.prepare(asking(*parts)), model.prepare(asking(*parts), dedupe=True)
    if few.grid_thw[0, 0] == whole.grid_thw[0, 0]:
        assert few.token_ids == whole.token_ids and np.array_equal(few.positions, whole.positions)
    text = [{"role": "user", "content": "Hi"}]
    assert model.prepare(text, dedupe=True).token_ids == model.prepare(text).token_ids
