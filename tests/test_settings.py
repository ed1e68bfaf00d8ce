"""Every setting of a checkpoint and of a model file, set to values that nobody means: one sentence, or it is used."""

import json
import math
import shutil

import numpy as np
import pytest

from ivlite.errors import IvliteError, ModelFileError
from ivlite.gguf import GGUFFile
from ivlite.gguf.config import TOKENIZER, Config, check_tensors
from ivlite.gguf.tokenizer import Tokenizer, check_ids
from ivlite.models.internvideo3 import tensor_names
from ivlite.quantize import convert, golden, quantize

# What a damaged or hostile file may say instead, as JSON, since Python has no number for some of it.
VALUES = [
    "null", "true", "false", "0", "-1", "1", "2.5", "1e400", "-1e400", "NaN", "1e-320", "9" * 400, "-9223372036854775809",
    '""', '"text"', '"\\ud800"', "[]", "{}", "[[1]]", '["a", null]', "[1, 2, 3, 4, 5, 6, 7]", '{"a": {"b": [1]}}',
]  # fmt: skip


@pytest.fixture(scope="module")
def toy(toy_module, tmp_path_factory):
    """A folder with a checkpoint and a model file of it; tests put back what they change."""
    folder = tmp_path_factory.mktemp("toy")
    toy_module.write_checkpoint(folder / "hf")
    config = json.loads((folder / "hf" / "config.json").read_text())
    config |= {"architectures": ["InternVideo3ForConditionalGeneration"], "_name_or_path": "a/b", "eos_token_id": 256}
    config["text_config"] |= {"kv_lora_rank_list": [64] * 4, "q_lora_rank": None, "qk_latent_layernorm": False}
    (folder / "hf" / "config.json").write_text(json.dumps(config))
    quantize(folder / "hf", folder / "m.gguf", type="q8_0", golden=True)
    return folder


def places(value, path=()):
    """The path of every value in nested JSON, of long lists and tables the first two entries."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[: 2 if len(value) > 40 else None] if items else ():
        yield from places(inner, (*path, key))


def spoilt(data, path, text):
    """The JSON text of data with the value at a path replaced by a JSON text, or removed."""
    sign = "--here--"
    data = json.loads(json.dumps(data))
    if not path:
        return text or ""
    *outer, last = path
    place = data
    for key in outer:
        place = place[key]
    if text is None:
        del place[last]
        return json.dumps(data)
    place[last] = sign
    return json.dumps(data).replace(f'"{sign}"', text)


FILES = (
    "config",
    "generation_config",
    "preprocessor_config",
    "video_preprocessor_config",
    "tokenizer",
    "tokenizer_config",
)


@pytest.mark.parametrize("name", FILES)
def test_every_setting_of_a_checkpoint(toy, name):
    """Nothing is raised but an error of ours, and none of its sentences is long or silent about the folder."""
    file, used, refused = toy / "hf" / f"{name}.json", 0, 0
    before = file.read_text() if file.exists() else None
    data = json.loads(
        before or '{"chat_template": "x", "added_tokens_decoder": {"1": {"content": "x", "special": true}}}'
    )
    try:
        for path in places(data):
            for text in [None, *VALUES]:
                file.write_text(spoilt(data, path, text))
                try:
                    convert.dry_run(toy / "hf", convert.Settings("q8_0"))
                    used += 1
                except ModelFileError as error:
                    refused += 1
                    assert str(toy) in str(error) and len(str(error)) <= 500 and "\n" not in str(error), (path, text)
    finally:
        file.unlink() if before is None else file.write_text(before)
    assert used and (refused or name == "tokenizer_config")


ODD = [
    None, True, 0, -1, 1, 1 << 63, 2.5, math.nan, math.inf, 1e-320, "", "text", [], ["a"], [""] * 5000,
    np.zeros(0, np.uint32), np.arange(1 << 16), np.full(3, np.nan), np.ones(4, np.bool_), np.array([-1]),
]  # fmt: skip


def test_every_setting_of_a_model_file(toy):
    used = 0
    with GGUFFile(toy / "m.gguf") as file:
        for key in file.metadata:
            for value in ODD:
                metadata = {k: v for k, v in file.metadata.items() if k != key} | (
                    {} if value is None else {key: value}
                )
                try:
                    config = Config.from_metadata(metadata, file.path)
                    check_tensors(file.tensors, tensor_names(config), file.path)
                    check_ids(Tokenizer(metadata[TOKENIZER]), config, file.path)
                    golden.stored(metadata, file.path)
                    config.to_metadata()
                    used += 1
                except IvliteError as error:
                    assert len(str(error)) <= 500, (key, value)
    assert used


@pytest.mark.parametrize(
    "key", ["text_config.rope_scaling.rope_theta", "text_config.rms_norm_eps", "generation.temperature"]
)
def test_the_sentence_names_file_and_setting(toy, key):
    name = "generation_config" if key.startswith("generation.") else "config"
    file = toy / "hf" / f"{name}.json"
    before, path = file.read_text(), key.removeprefix("generation.").split(".")
    if path[-1] == "rope_theta":
        path = path[:1] + path[2:]
    try:
        file.write_text(spoilt(json.loads(before), path, "9" * 400))
        with pytest.raises(ModelFileError, match=f"{name}.json: .*{path[-1]} is 999"):
            convert.dry_run(toy / "hf", convert.Settings("q8_0"))
    finally:
        file.write_text(before)


@pytest.mark.parametrize(
    ("file", "place"),
    [
        *(("config.json", f"text_config.{key}") for key in (
            "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "hidden_size", "kv_lora_rank_list",
            "qk_latent_layernorm", "rope_scaling.mrope_section", "rms_norm_eps",
        )),
        ("config.json", "vision_config.deepstack_visual_indexes"),
        ("config.json", "vision_config.depth"),
        ("generation_config.json", "eos_token_id"),
        ("generation_config.json", "top_k"),
        ("preprocessor_config.json", "size.shortest_edge"),
        ("preprocessor_config.json", "image_mean"),
    ],
)  # fmt: skip
def test_a_setting_is_named_as_in_its_file(toy, tmp_path, file, place):
    shutil.copytree(toy / "hf", tmp_path / "hf")
    path = tmp_path / "hf" / file
    data = json.loads(path.read_text()) if path.exists() else {}
    *sections, key = place.split(".")
    section = data
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = "text"
    if key == "eos_token_id" or key == "top_k":
        data["do_sample"] = True
    path.write_text(json.dumps(data))
    with pytest.raises(ModelFileError) as caught:
        quantize(tmp_path / "hf", tmp_path / "m.gguf", type="q8_0")
    assert key in str(caught.value) and "quantize" not in str(caught.value).replace(str(tmp_path), "")
