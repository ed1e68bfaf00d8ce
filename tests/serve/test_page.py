"""The page at /: its files are built from web/, hold nothing from elsewhere, and are served as they should be."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_serve_guard import refused

pytest.importorskip("starlette")
from ivlite.serve import page  # noqa: E402

WEB = Path(__file__).parents[2] / "web"
BUILT = json.loads((page.FOLDER / "sources.json").read_text())
REBUILD = "build the page again: npm ci && npm run build in web/"


def digests(folder, *left_out):
    found = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    names = [p for p in found if p.parts[0] not in left_out]
    return {p.as_posix(): hashlib.sha256((folder / p).read_bytes()).hexdigest() for p in names}


def test_the_built_files_are_of_these_sources():
    assert digests(WEB, "node_modules") == BUILT["sources"], REBUILD
    assert digests(page.FOLDER, "sources.json") == BUILT["built"], REBUILD


def test_another_build_gives_the_same_files(tmp_path):
    packages = {p["name"]: p for p in map(package, (WEB / "node_modules").glob("*/package.json"))}
    locked = json.loads((WEB / "package-lock.json").read_text())["packages"]
    wanted = {name: locked[f"node_modules/{name}"]["version"] for name in ("vite", "rolldown", "typescript")}
    if shutil.which("npx") is None or {n: packages.get(n, {}).get("version") for n in wanted} != wanted:
        pytest.skip("the packages that web/package-lock.json names are not installed in web/")
    for command in (["tsc", "--noEmit"], ["vite", "build", "--outDir", str(tmp_path), "--emptyOutDir"]):
        done = subprocess.run(["npx", "--no-install", *command], cwd=WEB, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    assert digests(tmp_path) == digests(page.FOLDER)


def package(path):
    return json.loads(path.read_text())


def test_it_is_small_and_needs_nothing_else():
    names = {name for name, _ in page.FILES.values()} | {"sources.json"}
    assert {p.name for p in page.FOLDER.iterdir()} == names
    assert sum(p.stat().st_size for p in page.FOLDER.iterdir()) < 300_000
    for name in names - {"sources.json"}:
        text = (page.FOLDER / name).read_text()
        assert not re.findall(r"""(?:https?:)?//(?!www\.w3\.org/)[\w-]+\.\w+""", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name


@pytest.mark.parametrize("path", page.FILES)
def test_headers(http, path):
    answer = http.get(path)
    assert answer.status_code == 200 and answer.content == (page.FOLDER / page.FILES[path][0]).read_bytes()
    assert answer.headers["content-type"] == page.FILES[path][1]
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-cache"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy and "script-src 'self';" in policy
    again = http.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    assert http.get(path, headers={"if-none-match": '"other"'}).status_code == 200
    assert http.head(path).status_code == 200


def test_a_key_protects_what_the_page_asks_for(serving):
    import httpx

    with httpx.Client(base_url=serving(key="a-long-secret", loopback=False).url, trust_env=False) as client:
        assert all(client.get(path).status_code == 200 for path in page.FILES)
        for path in ("/v1/models", "/v1/files", "/metrics", "/sources.json", "/page.js/x"):
            refused(client.get(path), 401)
        assert client.get("/v1/models", headers={"authorization": "Bearer a-long-secret"}).status_code == 200


def test_links_of_other_sites_lead_to_the_page_alone(http):
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert http.get("/", headers=link).status_code == 200
    refused(http.get("/v1/files", headers=link), 403)
    for other in ({"sec-fetch-dest": "iframe"}, {"sec-fetch-mode": "no-cors"}, {"origin": "http://evil.example"}):
        refused(http.get("/", headers=link | other), 403)
    refused(http.get("/", headers=link | {"host": "evil.example"}), 403)


def test_progress_as_events(http):
    from serve_asking import WHAT, asked, data_uri

    body = asked({"type": "video", "video": data_uri()}, WHAT, stream=True, stream_options={"include_progress": True})
    text = http.post("/v1/chat/completions", json=body).text
    for block in re.findall(r"event: progress\ndata: (.*)\n\n", text):
        found = json.loads(block)
        assert found["object"] == "progress" and found["stage"] in {"waiting", *found["stages"]}
    assert text.rstrip().endswith("data: [DONE]")
