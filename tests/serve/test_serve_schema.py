"""The published schema says what the checks do, and every endpoint is in it."""

import re
import subprocess
import sys

import pytest
from serve_asking import asked

from ivlite.errors import UsageError

pytest.importorskip("starlette")
from ivlite.serve import exports  # noqa: E402
from ivlite.serve.fields import AGENT, CHAT, EXPORT, EXPORTS, RESPONSES  # noqa: E402

ODD = [True, False, 0, 1, -1, 0.5, 20, 21, 100, 101, 2**31, 2**31 + 1, 2**40, 2**40 + 1, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 1e300,
       0.01, 0.009, "", " ", "x", "report", "x" * 9000, "disabled", [], ["x"], [""], [5], ["x"] * 16, ["x"] * 17, ["text"], {}, {"a": 1}]  # fmt: skip


def fits(schema, value):
    """Whether a value fits a schema of the keywords that the table uses."""
    if "anyOf" in schema:
        return any(fits(inner, value) for inner in schema["anyOf"])
    if "const" in schema:
        return type(value) is type(schema["const"]) and value == schema["const"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kinds = {"boolean": isinstance(value, bool), "string": isinstance(value, str), "array": isinstance(value, list),
             "object": isinstance(value, dict), "number": number, "integer": number and float(value).is_integer()}  # fmt: skip
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(kinds[kind] for kind in types):
        return False
    if number:
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if isinstance(value, list) and "items" in schema:
        inner = schema["items"]
        return schema.get("minItems", 0) <= len(value) <= schema["maxItems"] and all(
            not inner or fits(inner, item) for item in value
        )
    if not isinstance(value, str):
        return True
    if value not in schema.get("enum", [value]) or not re.search(schema.get("pattern", ""), value):
        return False
    return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))


@pytest.mark.parametrize("name, field", [*CHAT.items(), *RESPONSES.items(), *AGENT.items(), *EXPORT.items()])
def test_checks_are_those_of_the_schema(name, field):
    for value in ODD:
        try:
            field.check(name, value)
            taken = True
        except UsageError as error:
            assert name in str(error)
            taken = False
        assert taken == fits(field.schema, value), value


def test_the_document(http):
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1") and len(document["paths"]) > 12
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            names = {p["name"] for p in operation.get("parameters", ())}
            assert names == set(re.findall(r"{(\w+)}", path))
            url = re.sub(r"{\w+}", "x", path)
            assert (
                http.request(method, url, headers={"content-type": "application/json"}, content=b"{}").status_code
                != 405
            )
    properties = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert set(asked("x")) <= set(properties["properties"])


def test_schemathesis(served):
    """Requests made from the document: none makes the server fail, and answers are those that it names."""
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    checks = [schemathesis.checks.not_a_server_error]
    for found in schema.get_all_operations():
        operation = found.ok()

        @hypothesis.settings(
            max_examples=8, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.seed(18)
        @hypothesis.given(case=operation.as_strategy())
        def ask(case):
            case.call_and_validate(base_url=served.url, checks=checks)

        ask()


def test_exports_are_those_of_the_schema():
    assert EXPORTS == tuple(exports.KINDS)


CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
          "negative_data_rejection", "unsupported_method", "allow_header_conformance", "missing_required_header")  # fmt: skip


def test_requests_made_from_the_document(served, tmp_path):
    """By schemathesis: none is answered otherwise than the document says. That all that it allows is taken, no schema can say."""
    pytest.importorskip("schemathesis")
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{served.url}/openapi.json",
        "--max-examples",
        "4",
        "--seed",
        "1",
    ]
    done = subprocess.run([*command, "--checks", ",".join(CHECKS), "--request-timeout", "120", "--no-color"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert served.thread.is_alive()


def test_methods_that_a_path_does_not_take(http):
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        answer = http.options(re.sub(r"{\w+}", "x", path))
        named = {name for name in re.split(r",\s*", answer.headers["allow"]) if name != "HEAD"}
        assert answer.status_code == 405 and named == {method.upper() for method in methods}, path
