"""The page in a browser: drop, plan, ask, seek, follow up, stop, reload in the middle, two tabs, exports."""

import io
import json
import re
import time
import zipfile

import pytest

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=120_000)
from serve_asking import CLIP  # noqa: E402

WHAT, WHEN = "What happens?", "When does the red cross appear?"


def until(true):
    """Waits for what the server does."""
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def playing(tab):
    return tab.page.evaluate("document.querySelector('#player video').currentTime")


@pytest.fixture
def ready(tab):
    """A tab with a video that was dropped, and the plan of a question."""
    return tab.open().drop(data=CLIP.read_bytes()).planned()


def test_drop_plan_ask_seek_and_follow_up(ready):
    page = ready.page
    assert re.search(
        r"(about \d+ (s|min)|Ready) · 1\d (of \d+ )?frames, one every [\d.]+ s · \d+ tokens", page.inner_text("#plan")
    )
    turn = ready.ask(WHEN)
    text = ready.answered(turn)
    seconds = float(re.search(r"([\d.]+) seconds", text)[1])
    turn.get_by_role("button", name="Go to").click()
    until(lambda: abs(playing(ready) - seconds) < 0.05)
    second = ready.ask(WHAT)
    assert len(ready.answered(second)) > 10
    known = int(re.search(r"([\d,]+) tokens known already", second.inner_text())[1].replace(",", ""))
    assert known > 100
    expect(page.locator("#sessions a")).to_have_count(1)
    page.reload()
    expect(page.locator(".turn")).to_have_count(2)
    assert page.locator(".turn .answer").first.inner_text() == text
    page.locator(".turn").first.get_by_role("button", name="Go to").click()  # from the server now
    until(lambda: abs(playing(ready) - seconds) < 0.05)
    third = ready.ask("What shape is the red thing?")
    ready.answered(third)


def test_no_work_before_the_question(ready, server):
    assert server.service.open == 0
    text = server.service.metrics.text()
    asked = re.findall(r'ivlite_requests_total{path="(/v1/[^"]+)"', text)
    assert "/v1/plan" in asked and "/v1/uploads" in asked


def test_stop_and_go_on(ready, gate, server):
    page = ready.page
    gate.close(1)
    turn = ready.ask(WHAT)
    until(gate.reached.is_set)
    expect(turn.locator(".answer")).not_to_be_empty()
    expect(turn).to_have_attribute("aria-busy", "true")
    page.get_by_role("button", name="Stop").click()
    expect(turn.get_by_text("Stopped.")).to_be_visible()
    until(lambda: server.service.open == 0)  # the server is free again
    part = turn.locator(".answer").inner_text()
    gate.close(1000)
    turn.get_by_role("button", name="Go on").click()
    whole = ready.answered(page.get_by_role("article", name=WHAT))
    assert whole.startswith(part.rstrip()) and len(whole) > len(part) and not turn.get_by_text("Stopped.").count()


def test_escape_stops(ready, gate, server):
    gate.close(0)
    turn = ready.ask(WHAT)
    until(gate.reached.is_set)
    ready.page.keyboard.press("Escape")
    expect(turn.get_by_text("Stopped.")).to_be_visible()
    until(lambda: server.service.open == 0)


def test_reload_in_the_middle(ready, gate, server):
    page = ready.page
    gate.close(1)
    turn = ready.ask(WHAT)
    until(gate.reached.is_set)
    expect(turn.locator(".answer")).not_to_be_empty()
    until(lambda: ready.kept()[0]["text"])
    page.reload()
    expect(turn.get_by_text("This answer was interrupted.")).to_be_visible()
    until(lambda: server.service.open == 0)
    part = turn.locator(".answer").inner_text()
    assert part
    gate.close(1000)
    turn.get_by_role("button", name="Ask again").click()
    assert ready.answered(page.get_by_role("article", name=WHAT)).startswith(part.rstrip())
    expect(page.locator(".turn")).to_have_count(1)


def test_two_tabs(ready, tabs, gate):
    other = tabs().open()
    other.drop("other.mp4", CLIP.read_bytes()).planned()
    assert other.answered(other.ask(WHEN)) and ready.answered(ready.ask(WHAT))
    for tab in (ready, other):
        expect(tab.page.locator("#sessions a")).to_have_count(2)
    gate.close(1)
    turn = ready.ask("What shape is the red thing?")
    until(gate.reached.is_set)
    other.page.locator("#sessions a", has_text=WHAT).click()  # the session that the first tab is in
    expect(other.page.locator(".turn")).to_have_count(2)
    expect(other.page.get_by_text("Another tab is asking this")).to_be_visible()
    gate.close(1000)
    gate.opened.set()
    text = ready.answered(turn)
    shown = other.page.get_by_role("article", name="What shape is the red thing?")
    assert other.answered(shown) == text
    other.answered(other.ask(WHEN))
    expect(ready.page.locator(".turn")).to_have_count(3)
    for tab in (ready, other):
        tab.page.reload()
        expect(tab.page.locator(".turn")).to_have_count(3)
    other.page.go_back()
    expect(other.page.locator(".turn")).to_have_count(1)


def test_several_videos_and_sessions(ready):
    page = ready.page
    ready.drop("second.mp4", CLIP.read_bytes())
    expect(page.locator("#videos li")).to_have_count(2)
    expect(page.locator("#plan strong")).to_be_visible()
    ready.answered(ready.ask(WHAT))
    page.get_by_role("button", name="Show 1 clip.mp4").click()
    expect(page.locator("#videos li").first).to_have_class(re.compile("now"))
    page.get_by_role("button", name="New session").click()
    expect(page.locator(".hero")).to_be_visible()
    page.locator("#sessions a").click()
    expect(page.locator(".turn")).to_have_count(1)
    page.get_by_role("button", name="Delete What happens?").click()
    page.get_by_role("button", name="Delete? What happens?").click()
    expect(page.locator("#sessions a")).to_have_count(0)
    expect(page.locator(".hero")).to_be_visible()


def saved(page, turn, name):
    turn.locator("summary", has_text="Export").click()
    with page.expect_download() as waited:
        turn.get_by_role("button", name=name).click()
    download = waited.value
    return download.suggested_filename, open(download.path(), "rb").read()


def test_exports_of_an_answer(ready):
    turn = ready.ask(WHEN)
    text = ready.answered(turn)
    name, report = saved(ready.page, turn, "Report (HTML)")
    assert name == "report.html" and text.split(" at ")[0].encode() in report and b"data:image/jpeg" in report
    name, chapters = saved(ready.page, turn, "Chapters for ffmpeg")
    assert name == "chapters.ffmeta" and b"[CHAPTER]" in chapters
    name, clip = saved(ready.page, turn, "Clips")
    assert name.endswith(".mp4") and b"ftyp" in clip[:32]
    assert saved(ready.page, turn, "Text")[1].decode().strip().endswith(text)
    ready.allowed = ("400",)
    turn.locator("summary", has_text="Export").click()
    turn.get_by_role("button", name="Chapters for video sites").click()
    expect(ready.page.get_by_role("alert")).to_contain_text("3 chapters")


@pytest.fixture
def scripted(monkeypatch):
    """The agent says what a script says; everything else of it is real."""
    from agent_scripts import Scripted, call, finish

    replies = [
        call("watch", windows=[{"start": 5.0, "end": 7.0}], question="What appears?", detail="low"),
        finish("A red cross appears [E2] and <b>moves</b> left.", claims=[
            {"text": "A red cross appears", "evidence": ["E2"]}, {"text": "<img src=x onerror=alert(1)> moves", "evidence": ["E1", "E2"]}]),
    ]  # fmt: skip
    monkeypatch.setattr(
        "ivlite.serve.agent.Agent", lambda model, films, **more: Scripted(model, films, list(replies), **more)
    )


def test_the_agent(ready, scripted):
    page = ready.page
    turn = ready.ask(WHEN, agent=True)
    proofs = turn.locator(".proof")
    expect(turn.get_by_text("Medium confidence")).to_be_visible()
    expect(turn.locator(".claims li")).to_have_count(2)
    assert (
        "<b>moves</b> left" in turn.locator(".answer").inner_text()
        and not turn.locator(".answer b, .claims img").count()
    )
    expect(proofs.locator("img").nth(1)).to_have_attribute("src", re.compile("^data:image/jpeg"))
    turn.locator("summary", has_text="Steps").click()
    expect(turn.get_by_text("Watches")).to_be_visible()
    proofs.nth(1).click()
    until(lambda: 4.9 < playing(ready) < 5.6)
    turn.locator(".answer").get_by_role("button", name="E2").click()
    name, report = saved(page, turn, "Report (HTML)")
    assert b"What appears?" in report and b"<img src=x" not in report
    name, archive = saved(page, turn, "Clips")
    names = zipfile.ZipFile(io.BytesIO(archive)).namelist() if name.endswith(".zip") else [name]
    assert any(n.startswith("E2_") for n in names)
    page.reload()
    expect(proofs.locator("img").nth(1)).to_have_attribute("src", re.compile("^data:image/jpeg"))
    assert turn.locator(".claims li").count() == 2
    assert ready.answered(ready.ask(WHAT))


def test_the_agent_of_the_model_itself(ready):
    turn = ready.ask("What moves?", agent=True)
    turn.locator(".foot .row").wait_for()
    assert "failed" not in turn.locator(".foot").inner_html()


def test_times_of_a_text(ready):
    """Times of an answer become buttons where they are times of the video; what a model writes is never markup."""
    text = ("From 2 to 4.5 seconds, at 0:03, 1 s, **6.1 s**, and 1:02:03; 12 shapes, 3:2 ratio.\n\n- <script>alert(1)</script>\n"
            "- [x](javascript:alert(1)) at 0:07.5\n\n```\ncode 0:01\n```\n`0:02` ![y](http://evil.example/z.png) 99 s")  # fmt: skip
    chunk = {"choices": [{"delta": {"content": text}}]}
    usage = {
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "ivlite": {"seconds": {"generate": 1}}},
    }
    body = "".join(f"data: {json.dumps(item)}\n\n" for item in (chunk, usage)) + "data: [DONE]\n\n"
    ready.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    turn = ready.ask(WHAT)
    ready.answered(turn)
    assert turn.locator(".answer .time").all_inner_texts() == ["2", "4.5 seconds", "0:03", "1 s", "6.1 s", "0:07.5"]
    labels = [b.get_attribute("aria-label") for b in turn.locator(".answer .time").all()]
    assert labels == [f"Go to {b.inner_text()}" for b in turn.locator(".answer .time").all()]
    assert (
        "<script>alert(1)</script>" in turn.inner_text() and not turn.locator("script, .answer a, .answer img").count()
    )
