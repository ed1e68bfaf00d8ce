"""What a caller gets who says nothing, in one table: a change here changes the API, and belongs in the changelog.

Every help text that names a default names the right one, and what is handed around stays as it was made.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import inspect
import re

import pytest
from test_tables import modules

import ivlite
from ivlite import cli, quantize
from ivlite.gguf import config
from ivlite.model import MediaLimits

ASKING = {"enable_thinking": False, "add_vision_id": False, "continue_final_message": False, "dedupe": False}

API = {  # of parameters whose default is not None
    ivlite.load: {"device": "auto", "kv": "q8", "vit": "file", "load": "repack", "store": False},
    ivlite.Model: {"kv": "q8", "media": MediaLimits()},
    ivlite.Model.room: {"held": 0},
    ivlite.Model.prepare: ASKING | {"max_new_tokens": 256}, ivlite.Model.plan: ASKING | {"max_new_tokens": 256},
    ivlite.Model.stream: ASKING | {"max_new_tokens": 256, "tool_choice": "auto", "parallel_tool_calls": True},
    ivlite.Model.logprobs: ASKING | {"top": 0}, ivlite.Engine: {"most": 8},
    ivlite.Model.each_logits: {"rows": 64},
    ivlite.SamplingParams: {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0},
    ivlite.Session.ask: {"videos": (), "images": ()}, ivlite.Session.plan: {"videos": (), "images": ()},
    ivlite.Session.save: {"replace": True},
    ivlite.Stop.set: {"reason": "interrupted"},
    quantize.quantize: {"type": "q4_k_m", "tensor_types": (), "golden": False, "allow_nan": False, "resume": False},
}  # fmt: skip


def defaults(function):
    """{parameter: default} of those whose default is not None."""
    given = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    return {name: value for name, value in given.items() if value not in (inspect.Parameter.empty, None)}


def test_defaults_of_the_api():
    assert {function: defaults(function) for function in API} == API


def test_all_of_the_api_is_in_the_table():
    """Functions and methods of what `import ivlite` offers that have such defaults; errors and a Reply are not called."""
    for name in set(ivlite.__all__) - {"Reply", "Stopped", "IvliteError"}:
        offered = getattr(ivlite, name)
        public = (
            [f for n, f in vars(offered).items() if not n.startswith("_")] if inspect.isclass(offered) else [offered]
        )
        for function in filter(inspect.isfunction, public):
            assert function in API or not defaults(function), function.__qualname__


def parsers(parser=None, path=("ivlite",)):
    parser = parser or cli.parser()
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from parsers(inner, (*path, name))


def options():
    for path, parser in parsers():
        for action in parser._actions:
            if action.option_strings and not isinstance(action, argparse._HelpAction | argparse._VersionAction):
                yield pytest.param(action, id=" ".join((*path[1:], action.option_strings[-1])))


@pytest.mark.parametrize("action", list(options()))
def test_helps_name_the_right_defaults(action):
    """ "(default: X)" where X is a value; else it says what is done without the option, and the default is None."""
    said = re.search(r"\(default: (-?[\d.]+)[);,]", action.help or "")
    if action.default not in (None, False, argparse.SUPPRESS) and "default" in (action.help or ""):
        assert str(action.default).strip("(,)") in action.help
    if said and action.default is not None:
        assert float(said[1]) == float(str(action.default).strip("(,)"))


DEFAULTS = {  # of every option that has one, whichever command it belongs to
    "--kv": "q8", "--device": "auto", "--vit": "file", "--load": "repack", "--max-new-tokens": 1024, "--seed": 0,
}  # fmt: skip


def test_options_with_one_name_have_one_default():
    for path, parser in parsers():
        for action in parser._actions:
            for flag in set(action.option_strings) & DEFAULTS.keys():
                if path[1] == "chat" and flag == "--kv":
                    assert action.default is None  # left open, it is the session file's
                elif path[1] in ("run", "chat"):
                    assert action.default == DEFAULTS[flag], (path, flag)


# ------------------------------------------------------------------------------------------------ values stay as they are

# Made step by step, or changed by their owner.
MUTABLE = """
    Reply Record Scores Reference Importance Data Frames Packets Picture Prompt Part Message SessionState Table
    Spent Found Indexed Member Line Known Counts
""".split()
MUTABLE += ["Upload", "Request"] * (importlib.util.find_spec("starlette") is not None)  # of the server, an extra
BY_IDENTITY = ["Turn", "Mark"]  # equal only to themselves


def dataclasses_of_the_package():
    for module in modules():
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        yield from filter(dataclasses.is_dataclass, classes)


def test_what_is_handed_around_is_frozen():
    found = list(dataclasses_of_the_package())
    assert sorted(c.__qualname__ for c in found if not c.__dataclass_params__.frozen) == sorted(MUTABLE)
    assert [c.__qualname__ for c in found if not c.__dataclass_params__.eq] == BY_IDENTITY


FIELDS = {  # what is meant where nobody says it; those of a Config are in docs/gguf_keys.md
    "engine.reply.Delta": {"thinking": False}, "engine.reply.Reply": {"text": "", "thinking": "", "unfinished": "", "finish_reason": "", "thought": 0}, "engine.calls.ToolCall": {"text": ""}, "engine.calls.Calls": {"begins": False, "many": True}, "engine.sampling.SamplingParams": API[ivlite.SamplingParams],
    "evaluate.compare.Scores": {"prompts": 0, "answers": 0, "flips": 0}, "gguf.formats.Format": {"runs": False}, "media.timeline.Timeline": {"declared": 0.0, "ordered": False, "notes": ()},
    "models.internvideo3.TensorSpec": {"kind": "matrix", "optional": False}, "plan.Plan": {"fits": True, "problem": "", "nearest": (), "held": 0, "linear": 1.0},
    "plan.measure.Sample": {"part": 1.0, "byte": 0.0, "each": 0.0}, "plan.nearest.Limits": {"longest": 1}, "plan.speeds.Speeds": {"each": 0.0, "byte": 0.0, "few": 1},
    "prompt.budget.Choice": {"stated": (), "by": "", "estimated": False}, "prompt.layout.Prompt": {"thinks": False, "opened": 0.0},
    "quantize.convert.Settings": {"tensor_types": (), "golden": False, "allow_nan": False, "resume": False}, "quantize.convert.Summary": {"resumed": 0, "warnings": ()},
    "quantize.recipes.Recipe": {"help": "", "own": 0}, "session.state.SessionState": {"rows": 0, "tail": ""},
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_defaults_of_fields(name):
    module, _, made = f"ivlite.{name}".rpartition(".")
    fields = dataclasses.fields(getattr(importlib.import_module(module), made))
    assert {f.name: f.default for f in fields if f.default not in (dataclasses.MISSING, None)} == FIELDS[name]


def test_settings_of_a_model_are_named():
    """Two whole numbers that change places would be another model."""
    for part in (
        config.TextConfig,
        config.VisionConfig,
        config.ImageConfig,
        config.VideoConfig,
        config.TokenIds,
        config.GenerationConfig,
    ):
        kinds = {p.kind for p in inspect.signature(part).parameters.values()}
        assert kinds == {inspect.Parameter.KEYWORD_ONLY}, part
