"""What becomes of an answer that a client sends: reports, chapters, captions, clips; pictures of a video."""

import base64
import io
import time
import zipfile

import pytest
from serve_asking import CLIP
from test_serve_guard import refused

pytest.importorskip("starlette")

CLAIMS = [
    {"text": "It begins.", "evidence": ["E1"]},
    {"text": "<b>It</b> ends & is over", "evidence": ["E2"], "confirmed": False},
]
EVIDENCE = [
    {"id": "E1", "video": "v1", "start": 0.5, "end": 1.5, "kind": "frames", "frames": [0.5, 1, 1.5], "text": "a start"},
    {"id": "E2", "video": "v1", "start": 3, "end": 3, "kind": "frames", "frames": [3]},
    {"id": "E3", "video": "v1", "start": 5, "end": 6, "kind": "note", "text": "that nothing names"},
]
ANSWER = {"answer": "Here [E1] and there [E2].", "claims": CLAIMS, "evidence": EVIDENCE, "confidence": "mid", "steps": [
    {"type": "thought", "text": "where?"}, {"type": "call", "number": 1, "name": "look", "arguments": {"start": 1}},
    {"type": "result", "number": 1, "text": "{}", "evidence": EVIDENCE[:1]}, {"type": "said", "claim": CLAIMS[0]},
], "usage": {"rounds": 2}, "unknown": {"passed": "over"}, "videos": [{"path": "/etc/passwd"}]}  # fmt: skip


@pytest.fixture(scope="module")
def video(served):
    import httpx

    with httpx.Client(base_url=served.url, timeout=120, trust_env=False) as client:
        sent = client.post(
            "/v1/files", files={"file": ("my <clip>.mp4", CLIP.read_bytes())}, data={"purpose": "vision"}
        )
        return sent.json()["id"]


def export(http, video, what, **more):
    body = {"kind": what, "question": "What <i>happens</i>?", "videos": [video], "answer": ANSWER}
    return http.post("/v1/exports", json=body | more)


def test_a_report(http, video, served):
    answer = export(http, video, "report")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == 'attachment; filename="report.html"'
    assert answer.text.count("data:image/jpeg;base64,") >= 4 and "What &lt;i&gt;happens" in answer.text
    assert "my &lt;clip&gt;.mp4" in answer.text and "<b>It" not in answer.text and "/etc/passwd" not in answer.text
    assert str(served.service.files.folder) not in answer.text


def test_captions_and_chapters(http, video):
    assert "00:00:00,500 --> 00:00:02,500\nIt begins." in export(http, video, "srt").text
    assert export(http, video, "vtt").text.startswith("WEBVTT")
    assert "title=It begins." in export(http, video, "ffmetadata").text
    body = refused(export(http, video, "chapters"), 400)  # video sites want three, of ten seconds each
    assert body["message"].startswith("chapters.txt is not written") or "3 chapters" in body["message"]
    assert "/tmp" not in body["message"]


def test_clips(http, video, served):
    answer = export(http, video, "clips")
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = archive.namelist()
        assert [name.partition("_")[0] for name in names] == ["E1", "E2"] and archive.testzip() is None
        assert all(b"ftyp" in archive.read(name)[:32] for name in names)
    one = export(http, video, "clips", answer=ANSWER | {"answer": "", "claims": CLAIMS[:1]})
    assert one.status_code == 200 and b"ftyp" in one.content[:32]
    refused(export(http, video, "clips", answer={"answer": "nothing"}), 400)
    until = time.monotonic() + 60
    while list(served.service.files.folder.glob("export-*")):  # it goes once the last byte is sent
        assert time.monotonic() < until
        time.sleep(0.02)


def evidence(**more):
    return {"answer": {"answer": "x", "evidence": [EVIDENCE[0] | more]}}


@pytest.mark.parametrize("more", [
    {"kind": "other"}, {"kind": None}, {"videos": []}, {"videos": None}, {"videos": [5]}, {"videos": ["/etc/passwd"]}, {"answer": None},
    {"videos": ["file-" + "0" * 32]}, {"answer": {"answer": 5}}, {"answer": {}}, {"answer": {"answer": "x", "claims": 5}},
    {"answer": {"answer": "x", "claims": [{"text": "x"}]}}, {"answer": {"answer": "x", "claims": [{"text": "x", "evidence": [5]}]}},
    evidence(id="../../x"), evidence(id=""), evidence(video="v2"), evidence(start=-1), evidence(start="0"), evidence(end=1e300),
    evidence(frames=["x"]), evidence(frames=[0] * 5000), evidence(start=True), evidence(text=None), {"answer": {"answer": "x", "steps": [{"type": "answered"}]}},
    {"answer": {"answer": "x", "steps": [{"type": {}}]}}, {"answer": {"answer": "x", "steps": [5]}}, {"question": 5},
    {"answer": {"answer": "x", "usage": []}}, {"answer": {"answer": "x", "steps": [{"type": "result", "number": 0.5, "text": "x"}]}},
])  # fmt: skip
def test_requests_that_are_wrong(http, video, more):
    refused(export(http, video, "report", **more), 400)


def test_frames(http, video):
    answer = http.get(f"/v1/files/{video}/frames", params={"times": "0,2.5,1e6", "longest": 64}).json()
    times = [item["time"] for item in answer["data"]]
    assert times[0] == 0 and abs(times[1] - 2.5) < 0.6 and times[2] > 2.5
    assert all(max(item["width"], item["height"]) <= 64 for item in answer["data"])
    assert base64.b64decode(answer["data"][0]["image"].partition(",")[2])[:2] == b"\xff\xd8"
    refused(http.get("/v1/files/file-x/frames"), 404)
    for wrong in ("x", "", "-1", "nan", "inf", ",".join(["0"] * 65)):
        refused(http.get(f"/v1/files/{video}/frames", params={"times": wrong}), 400)


def test_a_file_that_is_no_video(http):
    sent = http.post("/v1/files", files={"file": ("x.mp4", b"nothing")}, data={"purpose": "vision"}).json()["id"]
    refused(http.get(f"/v1/files/{sent}/frames"), 400)
    refused(export(http, sent, "report"), 400)
