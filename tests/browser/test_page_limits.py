"""The page in a browser: limits, faults, keys, the keyboard alone, a phone's width, what axe finds."""

import re
from pathlib import Path

import pytest

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=120_000)
from page_servers import served  # noqa: E402
from serve_asking import CLIP  # noqa: E402

WHAT, WHEN = "What happens?", "When does the red cross appear?"
BUSY = {
    "error": {"message": "64 requests run or wait: try again in 7 seconds", "type": "x", "param": None, "code": "busy"}
}


def alert(tab):
    return tab.page.get_by_role("alert")


def test_a_file_over_the_limit(tab):
    tab.allowed = ("413",)
    tab.open().drop("film.mp4", size=(1 << 20) + 1)
    expect(alert(tab)).to_contain_text("film.mp4: The file is larger than the 1,048,576 bytes that there is room for.")
    expect(tab.page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    tab.page.get_by_role("button", name="Remove film.mp4").click()
    expect(tab.page.locator("#videos li")).to_have_count(0)
    tab.drop("fits.mp4", CLIP.read_bytes()).planned()
    expect(tab.page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_a_file_that_is_no_video_and_names_that_are_markup(tab):
    tab.allowed = ("400",)
    name = "<img src=x onerror=alert(1)>.mp4"
    tab.open().drop(name, size=1000)
    expect(alert(tab)).to_contain_text("cannot be used")
    expect(tab.page.locator("#videos .name")).to_contain_text(name)
    assert not tab.page.locator("img[src=x]").count()
    tab.page.get_by_role("button", name=f"Remove {name}").click()
    tab.drop("empty.mp4", b"")
    expect(alert(tab)).to_contain_text("empty.mp4 is empty")


def test_an_upload_goes_on(tab):
    """A part that does not arrive is sent again; one that has arrived is not."""
    tab.allowed, tries = ("ERR_FAILED",), []

    def breaks(route):
        tries.append(route.request.url)
        return route.abort() if len(tries) == 1 else route.continue_()

    tab.page.route("**/v1/uploads/*/parts", breaks)
    tab.open().drop(data=CLIP.read_bytes()).planned()
    assert len(tries) == 2 and tries[0] == tries[1]


def test_a_reload_in_an_upload(tab):
    tab.allowed, blocked = ("ERR_FAILED", "ERR_ABORTED"), []
    tab.page.route("**/v1/uploads/*/parts", lambda route: blocked.append(route))  # it hangs
    tab.open().drop(data=CLIP.read_bytes())
    tab.page.wait_for_url("**#s=*")
    expect(tab.page.locator("#videos progress")).to_be_visible()
    tab.page.reload()
    expect(tab.page.get_by_text("The upload was interrupted: choose the file again to go on.")).to_be_visible()
    tab.page.unroute("**/v1/uploads/*/parts")
    tab.drop(data=CLIP.read_bytes()).planned()
    expect(tab.page.locator("#videos li")).to_have_count(1)


def test_a_busy_server(tab):
    tab.allowed = ("429",)
    tab.open().drop(data=CLIP.read_bytes()).planned()
    tab.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=429, json=BUSY, headers={"retry-after": "7"})
    )
    turn = tab.ask(WHAT)
    expect(turn.get_by_text("64 requests run or wait: try again in 7 seconds")).to_be_visible()
    tab.page.unroute("**/v1/chat/completions")
    turn.get_by_role("button", name="Ask again").click()
    tab.answered(turn)


def test_a_server_that_has_gone_and_one_that_was_started_anew(tabs, engine):
    with served(engine) as first:
        tab = tabs(first.url)
        tab.allowed = ("ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "404", "ERR_CONNECTION_RESET")
        tab.open().drop(data=CLIP.read_bytes()).planned()
        first.service.files.delete(first.service.files.listed()[0].id)  # as if it had been started anew
        tab.page.reload()
        expect(tab.page.get_by_text("The server no longer has this file: choose it again.")).to_be_visible()
        tab.drop(data=CLIP.read_bytes()).planned()
        first.stop()
        turn = tab.ask(WHAT)
        expect(turn.get_by_text("The server does not answer: check that “ivlite serve” is running.")).to_be_visible()


def test_a_key(tabs, engine):
    with served(engine, key="a-long-secret") as locked:
        tab = tabs(locked.url)
        tab.allowed = ("401",)
        tab.page.goto(locked.url)
        dialog = tab.page.get_by_role("dialog")
        for key in ("wrong-secret", "a-long-secret"):
            dialog.get_by_label("API key").fill(key)
            dialog.get_by_role("button", name="Continue").click()
            if key == "wrong-secret":
                expect(dialog.get_by_text("That key was not right.")).to_be_visible()
        expect(dialog).to_have_count(0)
        tab.drop(data=CLIP.read_bytes()).planned()
        tab.page.reload()  # the tab has the key; the player takes the video with it
        expect(tab.page.locator("#player video")).to_have_attribute("src", re.compile("^blob:"))
        assert not tab.page.get_by_role("dialog").count()


def test_a_film_that_the_browser_cannot_play(tab, tmp_path):
    """MPEG-4 of the older kind: times show pictures that the server makes."""
    from agent_scripts import film

    with open(film(tmp_path / "film.mp4", seconds=8), "rb") as file:
        tab.open().drop("film.mp4", file.read()).planned()
    expect(tab.page.get_by_text("This browser cannot play this file.")).to_be_visible()
    chunk = 'data: {"choices": [{"delta": {"content": "At 0:03 and 0:07."}}]}\n\ndata: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n'
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=chunk, content_type="text/event-stream"))
    turn = tab.ask(WHAT)
    for time in ("0:03", "0:07"):
        turn.get_by_role("button", name=f"Go to {time}").click()
        expect(tab.page.get_by_role("img", name=f"film.mp4 at {time}")).to_be_visible()


def test_the_keyboard_alone(tab):
    page = tab.open().page
    page.on("filechooser", lambda chooser: chooser.set_files(CLIP))

    def tabbed(name, role="button"):
        """Presses Tab until the control of that name has the focus."""
        wanted = page.get_by_role(role, name=name, exact=True)
        for _ in range(40):
            page.keyboard.press("Tab")
            if wanted.count() and wanted.first.evaluate("node => node === document.activeElement"):
                return wanted.first
        raise AssertionError(f"{name} cannot be reached")

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the question")).to_be_focused()
    tabbed("Choose a video")
    page.keyboard.press("Enter")
    tab.planned()
    tabbed("Question", "textbox")
    page.keyboard.type(WHEN)
    page.keyboard.press("Enter")
    turn = page.get_by_role("article", name=WHEN)
    tab.answered(turn)
    page.locator("#fresh").focus()
    focused = tabbed(turn.locator(".time").get_attribute("aria-label"))
    page.keyboard.press("Enter")
    page.locator("#player video").wait_for()
    assert focused.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    tabbed("Answer", "radio")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Agent")).to_be_checked()


def test_a_phone(tab):
    page = tab.page
    page.set_viewport_size({"width": 360, "height": 740})
    tab.open().drop(
        "a_very_long_name_of_a_film_without_any_space_in_it_at_all_2026_11_29.mp4", CLIP.read_bytes()
    ).planned()
    turn = tab.ask(WHAT)
    tab.answered(turn)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.locator("#question")).to_be_in_viewport()
    turn.locator("summary", has_text="Export").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert not tab.faults()
    page.get_by_role("button", name="Sessions").click()
    expect(page.locator("#sessions a")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Sessions")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_axe_finds(tabs, scheme):
    tab = tabs(color_scheme=scheme).open()
    assert not tab.faults()
    tab.drop(data=CLIP.read_bytes()).planned()
    tab.agent_says(Path(__file__).parent / "agent_events.json")
    tab.answered(tab.ask(WHEN))
    turn = tab.ask("What moves?", agent=True)
    expect(turn.locator(".proof img")).to_have_count(3)
    turn.locator("summary", has_text="Steps").click()
    turn.locator("summary", has_text="Export").click()
    assert not tab.faults()
    color = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", color)[:3])) < 300) == (scheme == "dark")
