#!/usr/bin/env bash
# Runs the tests that lean on other packages with exactly the oldest versions that pyproject.toml allows, in an
# environment of their own: a floor that is not true fails here. Takes a Python for which those versions have wheels
# (3.11; PYTHON names another) and what .ci/run takes; arguments go to pytest.
set -euo pipefail

cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" - > "$work/floors.txt" <<'END'
import re
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
for requirement in (*project["dependencies"], *project["optional-dependencies"]["test"]):
    if requirement == "ninja":  # a tool of the build, of which any will do
        continue
    found = re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<[\w.]+)?", requirement)
    assert found, f"{requirement} names no floor"
    print(f"{found[1]}=={found[2]}")
END
"$work/venv/bin/python" -m pip install -q -c "$work/floors.txt" '.[test]'
"$work/venv/bin/python" -m pip freeze | grep -iE "^($(cut -d= -f1 "$work/floors.txt" | paste -sd '|'))==" >&2
"$work/venv/bin/python" -m pytest -q "$@" tests/test_media.py tests/test_media_faults.py tests/test_time.py tests/test_containers.py tests/test_images.py tests/test_large_images.py tests/test_golden.py tests/test_prompt.py \
    tests/test_tokenizer.py tests/test_gguf.py tests/test_quantize.py tests/test_eval.py tests/test_demo.py tests/cli/test_chat.py tests/cli/test_chat_terminal.py tests/test_grammar.py tests/subtitles tests/serve
