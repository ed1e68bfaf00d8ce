"""The published schema says what the checks do, and every endpoint is in it."""

import re

import pytest
from serve_asking import asked

from ivlite.errors import UsageError

pytest.importorskip("starlette")
from ivlite.serve.fields import CHAT, RESPONSES  # noqa: E402

ODD = [True, False, 0, 1, -1, 0.5, 20, 21, 100, 101, 2**31, 2**31 + 1, 2**40, 2**40 + 1, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 1e300,
       0.01, 0.009, "", "x", "disabled", [], ["x"], [""], [5], ["x"] * 16, ["x"] * 17, ["text"], {}, {"a": 1}]  # fmt: skip


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
        return len(value) <= schema["maxItems"] and all(fits(schema["items"], item) for item in value)
    return len(value) >= schema.get("minLength", 0) if isinstance(value, str) else True


@pytest.mark.parametrize("name, field", [*CHAT.items(), *RESPONSES.items()])
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
