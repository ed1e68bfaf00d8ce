"""Files that are sent once, whole or in parts, and then named by their ids."""

import hashlib
import io
import threading

import pytest
from PIL import Image
from serve_asking import CLIP, TOLD, WHAT, data_uri
from test_serve_guard import refused

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")

DATA = CLIP.read_bytes()


def sent(http, data=DATA, name="clip.mp4", **fields):
    return http.post("/v1/files", files={"file": (name, data)}, data={"purpose": "vision"} | fields)


def test_a_file_is_sent_once(http, ask):
    stored = sent(http).json()
    assert stored["object"] == "file" and stored["bytes"] == len(DATA) and stored["filename"] == "clip.mp4"
    for part in ({"type": "video_url", "video_url": {"url": stored["id"]}}, {"type": "video", "video": stored["id"]},
                 {"type": "file", "file": {"file_id": stored["id"]}}):  # fmt: skip
        answer = ask(part, WHAT)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == TOLD
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    picture = sent(http, data=out.getvalue(), name="a.png").json()
    for part in ({"type": "image_url", "image_url": {"url": picture["id"]}}, {"type": "input_file", "file_id": picture["id"]},
                 {"type": "input_file", "file_data": data_uri(), "filename": "clip.mp4"}):  # fmt: skip
        assert ask(part, WHAT).status_code == 200
    for part in ({"type": "file"}, {"type": "file", "file": {}}, {"type": "input_file", "file_id": 5}):
        refused(ask(part, WHAT), 400, "file_id")
    assert http.get(f"/v1/files/{stored['id']}").json() == stored
    assert stored in http.get("/v1/files").json()["data"]
    assert stored not in http.get("/v1/files", params={"purpose": "batch"}).json()["data"]
    content = http.get(f"/v1/files/{stored['id']}/content")
    assert content.content == DATA and content.headers["content-type"] == "application/octet-stream"
    part = http.get(f"/v1/files/{stored['id']}/content", headers={"range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == DATA[10:20]
    assert http.delete(f"/v1/files/{stored['id']}").json() == {"id": stored["id"], "object": "file", "deleted": True}
    refused(http.get(f"/v1/files/{stored['id']}"), 404)
    refused(ask({"type": "video", "video": stored["id"]}, WHAT), 400, "id")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000, "ü.mp4", ""])
def test_names_become_no_paths(http, served, name):
    answer = sent(http, name=name)
    if answer.status_code == 200:
        assert len(answer.json()["filename"]) <= 255
        files = {path.name for path in served.service.files.folder.iterdir()}
        assert answer.json()["id"] in files and all(path.startswith(("file-", "sent-")) for path in files)
        assert http.get(f"/v1/files/{answer.json()['id']}/content").content == DATA
        http.delete(f"/v1/files/{answer.json()['id']}")
    else:
        refused(answer, 400)


@pytest.mark.parametrize(
    "path", ["file-" + "0" * 32, "file-1", "..", "%2e%2e", "upload-" + "0" * 32, "file-" + "0" * 31 + "%0a", "%00"]
)
def test_ids_that_are_none(http, path):
    for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        assert http.request(method, f"/v1/files/{path}{tail}").status_code == 404
    assert http.get(f"/v1/uploads/{path}").status_code == 404


def test_forms_that_are_wrong(http, served):
    refused(sent(http, purpose="world domination"), 400, "purpose")
    refused(sent(http, data=b""), 400, "empty")
    refused(http.post("/v1/files", files={"other": ("a", b"b")}), 400, "named file")
    refused(http.post("/v1/files", data={"file": "a text"}, files={"x": ("y", b"z")}), 400)
    refused(http.post("/v1/files", json={}), 415)
    for body in (b"", b"--a", b"--a\r\n\r\n", b"--a\r\nContent-Disposition: x\r\n\r\n5\r\n--a--\r\n", b"\0" * 1000):
        refused(http.post("/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=a"}), 400)
    refused(http.post("/v1/files", content=b"--a--", headers={"content-type": "multipart/form-data"}), 400)
    assert not [path for path in served.service.files.folder.iterdir() if path.name.startswith("new-")]


def test_a_file_that_is_too_large(serving):
    import httpx

    with httpx.Client(base_url=serving(file=10_000).url, timeout=60, trust_env=False) as http:
        refused(sent(http, data=bytes(3 << 20)), 413)
        refused(sent(http, data=bytes(20_000)), 413)
        assert sent(http, data=bytes(9_000)).status_code == 200
        refused(http.post("/v1/uploads", json={"bytes": 20_000, "filename": "a", "purpose": "vision"}), 413)


def begun(http, **more):
    body = {"bytes": len(DATA), "filename": "clip.mp4", "purpose": "vision", "mime_type": "video/mp4"} | more
    return http.post("/v1/uploads", json=body)


def add(http, upload, data):
    return http.post(f"/v1/uploads/{upload}/parts", files={"data": ("part", data)})


def test_an_upload_in_parts_goes_on_where_it_broke(http, ask):
    upload = begun(http).json()["id"]
    cut = [DATA[:5000], DATA[5000:12000], DATA[12000:]]
    ids = {}
    for n in (2, 0):  # in any order
        ids[n] = add(http, upload, cut[n]).json()["id"]
    known = http.get(f"/v1/uploads/{upload}").json()
    assert known["status"] == "pending" and known["parts"] == [
        {"id": ids[2], "bytes": len(cut[2])}, {"id": ids[0], "bytes": len(cut[0])},
    ]  # fmt: skip
    refused(http.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [ids[0], ids[2]]}), 400, "bytes")
    ids[1] = add(http, upload, cut[1]).json()["id"]
    order = [ids[0], ids[1], ids[2]]
    refused(http.post(f"/v1/uploads/{upload}/complete", json={"part_ids": order, "md5": "0" * 32}), 400, "MD5")
    done = http.post(
        f"/v1/uploads/{upload}/complete", json={"part_ids": order, "md5": hashlib.md5(DATA).hexdigest()}
    ).json()
    assert done["status"] == "completed" and done["file"]["bytes"] == len(DATA)
    assert ask({"type": "video", "video": done["file"]["id"]}, WHAT).json()["choices"][0]["message"]["content"] == TOLD
    refused(add(http, upload, b"more"), 400, "completed")
    http.delete(f"/v1/files/{done['file']['id']}")


def test_uploads_that_are_wrong(http, served):
    for more in ({"bytes": 0}, {"bytes": -1}, {"bytes": "x"}, {"bytes": None}, {"filename": 5}, {"purpose": "x"}):
        refused(begun(http, **more), 400)
    upload = begun(http, bytes=10).json()["id"]
    refused(add(http, upload, b"01234567890"), 413)
    part = add(http, upload, b"0123456789").json()["id"]
    for parts in ([], [part, part], ["part-" + "0" * 32], ["../x"], "x", None, [5]):
        refused(http.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts}), 400)
    assert http.post(f"/v1/uploads/{upload}/cancel").json()["status"] == "cancelled"
    refused(http.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [part]}), 400, "cancelled")
    assert not [path for path in served.service.files.folder.iterdir() if path.name.startswith("part-")]


def test_uploads_that_have_ended_are_forgotten(served, http, monkeypatch):
    from ivlite.serve import files

    monkeypatch.setattr(files, "MOST_FILES", len(served.service.files.uploads) + 3)

    def begin():
        return http.post("/v1/uploads", json={"bytes": 3, "filename": "a", "purpose": "vision", "mime_type": "x"})

    for _ in range(8):
        found = begin()
        assert found.status_code == 200
        assert http.post(f"/v1/uploads/{found.json()['id']}/cancel", json={}).json()["status"] == "cancelled"
    pending = []
    while (found := begin()).status_code == 200:
        pending.append(found.json()["id"])
    assert found.status_code == 413
    for one in pending:  # none of these was forgotten
        assert http.post(f"/v1/uploads/{one}/cancel", json={}).status_code == 200


def test_files_end_with_the_server(serving):
    import httpx

    served = serving()
    with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as http:
        sent(http)
    folder = served.service.files.folder
    assert folder.stat().st_mode & 0o777 == 0o700 and list(folder.iterdir())
    served.service.close()
    assert not folder.exists()


def test_a_file_that_is_deleted_while_it_is_read(http, ask):
    """Its reader gets an answer or a sentence."""
    answers = []

    def reader(file_id):
        answers.append(ask({"type": "video", "video": file_id}, WHAT).status_code)

    for _ in range(3):
        stored = sent(http).json()["id"]
        thread = threading.Thread(target=reader, args=(stored,))
        thread.start()
        http.delete(f"/v1/files/{stored}")
        thread.join()
    assert set(answers) <= {200, 400}
