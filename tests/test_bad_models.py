"""Checkpoints and model files that cannot be used: each is one sentence that names the file and what is wrong."""

import json
import os
import struct

import numpy as np
import pytest

from ivlite.errors import ModelFileError
from ivlite.gguf import GGUFFile
from ivlite.gguf.config import TOKENIZER, Config, check_tensors
from ivlite.gguf.tokenizer import Tokenizer, check_ids
from ivlite.gguf.writer import GGUFWriter, nbytes
from ivlite.models.internvideo3 import tensor_names
from ivlite.quantize import quantize

LAYER = "model.language_model.layers.0."


@pytest.fixture(scope="module")
def toy(toy_module, tmp_path_factory):
    """The files of a whole toy checkpoint, name -> bytes."""
    folder = tmp_path_factory.mktemp("toy")
    toy_module.write_checkpoint(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(toy, tmp_path):
    """A checkpoint that a test may spoil."""
    out = tmp_path / "checkpoint"
    out.mkdir()
    for name, data in toy.items():
        (out / name).write_bytes(data)
    return out


def refused(folder, *words, type="q4_0"):
    """Asserts that the conversion fails with one sentence that names the folder, and leaves nothing behind."""
    out = folder.parent / "out" / "m.gguf"
    out.parent.mkdir(exist_ok=True)
    with pytest.raises(ModelFileError) as caught:
        quantize(folder, out, type=type)
    sentence = str(caught.value)
    assert str(folder) in sentence and "\n" not in sentence and len(sentence) < 600
    for word in words:
        assert word in sentence, sentence
    assert os.listdir(out.parent) == []


# ------------------------------------------------------------------------------------------------ settings


def set_in(folder, name, path, value):
    """Sets, or with ... removes, one value of a JSON file; path is dotted."""
    data = json.loads((folder / name).read_text())
    *outer, last = path.split(".")
    place = data
    for key in outer:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    (folder / name).write_text(json.dumps(data))


SETTINGS = [
    # file, key, value, words
    ("config", "model_type", "qwen3_vl", None),  # the architecture still says InternVideo3
    ("config", "text_config", ..., ["text_config"]),
    ("config", "text_config", [1], ["text_config", "object"]),
    ("config", "vision_config", ..., ["vision_config"]),
    *(
        ("config", f"text_config.{key}", ..., [key])
        for key in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "v_head_dim",
            "rms_norm_eps", "max_position_embeddings", "qk_rope_head_dim", "qk_nope_head_dim", "rope_theta",
            "rope_scaling", "rope_scaling.mrope_section",
        )
    ),
    *(
        ("config", f"vision_config.{key}", ..., [key])
        for key in (
            "depth", "hidden_size", "num_heads", "intermediate_size", "num_position_embeddings", "patch_size",
            "temporal_patch_size", "spatial_merge_size", "out_hidden_size", "deepstack_visual_indexes",
        )
    ),
    ("config", "text_config.hidden_size", 0, ["hidden_size"]),
    ("config", "text_config.hidden_size", "128", ["hidden_size", "whole number"]),
    ("config", "text_config.hidden_size", 128.5, ["hidden_size"]),
    ("config", "text_config.hidden_size", True, ["hidden_size"]),
    ("config", "text_config.hidden_size", 256, ["256"]),
    ("config", "text_config.num_hidden_layers", -4, ["layers"]),
    ("config", "text_config.num_hidden_layers", "many", ["layers"]),
    ("config", "text_config.num_hidden_layers", 5, ["lacks", "layers.4"]),
    ("config", "text_config.num_hidden_layers", 3, ["no use", "layers.3"]),
    ("config", "text_config.num_hidden_layers", 10**6, ["layers"]),
    ("config", "text_config.num_attention_heads", 8, ["shape", "q_proj"]),
    ("config", "text_config.qk_rope_head_dim", 31, ["rank"]),
    ("config", "text_config.kv_lora_rank", 96, ["kv_lora_rank", "kv_b_proj", "64"]),
    ("config", "text_config.kv_lora_rank", "64", ["kv_lora_rank"]),
    ("config", "text_config.kv_lora_rank_list", [64, 64, 64], ["3 latent ranks", "4 layers"]),
    ("config", "text_config.kv_lora_rank_list", [64, 64, 32, 64], ["layer 2", "32"]),
    ("config", "text_config.q_lora_rank", 512, ["q_lora_rank"]),
    ("config", "text_config.hidden_act", "gelu", ["hidden_act", "silu"]),
    ("config", "text_config.attention_bias", False, ["attention_bias", "q_proj.bias"]),
    ("config", "text_config.qk_latent_layernorm", True, ["qk_latent_layernorm", "kv_a_layernorm"]),
    ("config", "text_config.rope_interleave", "yes", ["rope_interleave"]),
    ("config", "text_config.rms_norm_eps", -1e-6, ["rms_norm_eps"]),
    ("config", "text_config.rms_norm_eps", float("nan"), ["rms_norm_eps"]),
    ("config", "text_config.rope_theta", float("inf"), ["rope_theta"]),
    ("config", "text_config.rope_scaling.rope_type", "yarn", ["yarn"]),
    ("config", "text_config.rope_scaling.mrope_section", [6, 5, 4], ["6, 5, 4"]),
    ("config", "text_config.rope_scaling.mrope_section", [2, 7, 7], ["2, 7, 7"]),
    ("config", "text_config.rope_scaling.mrope_section", [8, 8], ["mrope_section"]),
    ("config", "text_config.rope_scaling.mrope_section", [[6], 5, 5], ["mrope_section"]),
    ("config", "text_config.vocab_size", 280, ["vocabulary"]),
    ("config", "text_config.vocab_size", 320, ["shape"]),
    ("config", "vision_config.hidden_act", "relu", ["hidden_act"]),
    ("config", "vision_config.num_heads", 3, ["3 vision heads"]),
    ("config", "vision_config.num_heads", 32, ["multiple of 4"]),
    ("config", "vision_config.num_position_embeddings", 60, ["square"]),
    ("config", "vision_config.temporal_patch_size", 1, ["temporal_patch_size"]),
    ("config", "vision_config.in_channels", 4, ["in_channels"]),
    ("config", "vision_config.out_hidden_size", 64, ["64 features"]),
    ("config", "vision_config.deepstack_visual_indexes", [0, 1, 9], ["DeepStack"]),
    ("config", "vision_config.deepstack_visual_indexes", [0, 0, 1], ["DeepStack"]),
    ("config", "vision_config.deepstack_visual_indexes", [2, 1, 0], ["DeepStack"]),
    ("config", "vision_config.deepstack_visual_indexes", [0, 1], ["deepstack_merger_list.2"]),
    ("config", "vision_config.depth", 3, ["blocks.3"]),
    ("config", "tie_word_embeddings", True, ["lm_head.weight", "ties"]),
    ("config", "image_token_id", 7, ["image_token_id", "image_pad"]),
    ("generation_config", "eos_token_id", 5000, ["5000"]),
    ("generation_config", "eos_token_id", "end", ["eos"]),
    ("generation_config", "eos_token_id", [], ["eos"]),
    ("generation_config", "temperature", -1, ["temperature"]),
    ("generation_config", "top_k", 1.5, ["top_k"]),
    ("generation_config", "top_p", 3, ["top_p"]),
    ("preprocessor_config", "patch_size", 14, ["patch_size", "14"]),
    ("preprocessor_config", "size.shortest_edge", 1 << 30, ["min_pixels"]),
    ("preprocessor_config", "size", 224, ["size"]),
    ("preprocessor_config", "image_std", [0.5, 0, 0.5], ["std"]),
    ("preprocessor_config", "image_mean", [0.5], ["mean"]),
    ("video_preprocessor_config", "merge_size", 1, ["merge_size"]),
    ("video_preprocessor_config", "min_frames", 1000, ["min_frames"]),
    ("tokenizer", "model.type", "Unigram", ["BPE"]),
    ("tokenizer", "model", ..., ["BPE"]),
    ("tokenizer", "model.vocab", {"a": "b"}, ["token ids"]),
    ("tokenizer", "model.merges", None, ["BPE"]),
    ("tokenizer", "added_tokens", [], ["<|image_pad|>"]),
    ("tokenizer", "added_tokens", [{"id": 1}], ["added_tokens"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "key", "value", "words"), SETTINGS, ids=[f"{f}-{k}-{n}" for n, (f, k, _, _) in enumerate(SETTINGS)]
)
def test_settings(folder, file, key, value, words):
    set_in(folder, f"{file}.json", key, value)
    if words is None:
        quantize(folder, folder.parent / "m.gguf")
    else:
        refused(folder, *words)


def test_another_model(folder):
    set_in(folder, "config.json", "model_type", "qwen3_vl")
    set_in(folder, "config.json", "architectures", ["Qwen3VLForConditionalGeneration"])
    refused(folder, "qwen3_vl")


TEXTS = {
    "cut": (b'{"a": ', "valid JSON"),
    "list": (b"[]", "JSON object"),
    "empty": (b"", "valid JSON"),
    "deep": (b'{"a":' + b"[" * 100_000, "valid JSON"),
    "twice": (b'{"a": 1, "a": 2}', "twice"),
    "long number": (b'{"a": ' + b"9" * 10_000 + b"}", "valid JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "UTF-8"),
}


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json"]
)
@pytest.mark.parametrize("fault", TEXTS)
def test_damaged_json(folder, name, fault):
    data, word = TEXTS[fault]
    (folder / name).write_bytes(data)
    refused(folder, name, word)


def test_missing_files(folder, tmp_path):
    (folder / "config.json").rename(folder / "x")
    refused(folder, "no config.json")
    (folder / "x").rename(folder / "config.json")
    (folder / "tokenizer.json").unlink()
    refused(folder, "tokenizer.json")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors.index.json")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, ".bin")
    refused(tmp_path / "none", "no folder")
    (tmp_path / "file").write_bytes(b"")
    refused(tmp_path / "file", "is empty")


def test_not_regular_files(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    refused(folder, "regular file")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refused(folder, "regular file")


# ------------------------------------------------------------------------------------------------ weights


def edit_weights(folder, change):
    """Lets `change(header)` alter the header; it may return other data than there is, given as a second argument."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + length]), bytearray(whole[8 + length :])
    data = change(header, data) or data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def setting(name, key, value):
    return lambda header, data: header[name].update({key: value})


def add(*names):
    def change(header, data):
        for name in names:
            header[name] = {"dtype": "BF16", "shape": [4], "data_offsets": [len(data), len(data) + 8]}
            data = data + bytes(8)
        return data

    return change


def put(name, bits):
    """Sets the last value of a tensor."""

    def change(header, data):
        end = header[name]["data_offsets"][1]
        data[end - 2 : end] = struct.pack("<H", bits)

    return change


Q, HEAD, NORM = f"{LAYER}self_attn.q_proj.weight", "lm_head.weight", f"{LAYER}input_layernorm.weight"
WEIGHTS = {
    "missing": (lambda h, d: h.update({f"{HEAD}2": h.pop(HEAD)}), ["lacks", HEAD]),
    "spare": (add("model.adapter.weight"), ["model.adapter.weight", "no use"]),
    "many spare": (add(*(f"extra.{i}" for i in range(9))), ["extra.0, extra.1, extra.2 and 6 more"]),
    "shape": (setting(Q, "shape", [128, 256]), [Q, "[128, 256]", "[256, 128]"]),
    "flat": (setting(NORM, "shape", [128, 1]), [NORM, "shape"]),
    "conv": (setting("model.visual.patch_embed.proj.weight", "shape", [64, 2, 3, 16, 16]), ["patch_embed"]),
    "double": (setting(Q, "dtype", "F64"), [Q, "F64"]),
    "whole numbers": (setting(Q, "dtype", "I16"), [Q, "I16"]),
    "dtype is a list": (setting(Q, "dtype", ["BF16"]), [Q]),
    "dtype of another size": (setting(Q, "dtype", "F32"), [Q, "bytes"]),
    "negative": (setting(Q, "shape", [-256, -128]), [Q]),
    "huge": (setting(Q, "shape", [1 << 40, 1 << 40]), [Q]),
    "offsets": (setting(Q, "data_offsets", [0, 65536]), ["overlaps"]),
    "offsets reversed": (setting(Q, "data_offsets", [65536, 0]), [Q]),
    "offsets beyond": (setting(Q, "data_offsets", [1 << 50, (1 << 50) + 65536]), ["gap"]),
    "offsets missing": (lambda h, d: h[Q].pop("data_offsets") and None, [Q]),
    "entry": (lambda h, d: h.update({Q: 5}), [Q]),
    "cut": (lambda h, d: d[:-1], ["incomplete"]),
    "trailing": (lambda h, d: d + b"\0", ["damaged"]),
    "NaN": (put(Q, 0x7FC0), [Q, "NaN"]),
    "infinity": (put(NORM, 0x7F80), [NORM, "infinity"]),
    "minus infinity": (put("model.visual.pos_embed.weight", 0xFF80), ["pos_embed", "infinity"]),
    "a scale beyond f16": (put(Q, 0x7F00), [Q, "bf16"]),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_weights(folder, fault):
    change, words = WEIGHTS[fault]
    edit_weights(folder, change)
    refused(folder, *words)


def test_weights_beyond_f16(folder):
    edit_weights(folder, put(Q, 0x4780))  # 65536
    refused(folder, Q, "65536", "bf16", type="f16")
    quantize(folder, folder.parent / "m.gguf", type="bf16")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"\0" * 7, "too short"),
        (b"\0" * 64, "not a whole"),
        (b"\xff" * 64, "not a whole"),
        (struct.pack("<Q", 100) + b"{}", "not a whole"),
        (struct.pack("<Q", 2) + b"[]", "JSON object"),
        (struct.pack("<Q", 4) + b'{"a"', "valid JSON"),
        (struct.pack("<Q", 7) + b'{"a":"\xff', "UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "LFS"),
    ],
)
def test_no_safetensors(folder, data, word):
    (folder / "model.safetensors").write_bytes(data)
    refused(folder, "model.safetensors", word)


def index(folder, change=None, **more):
    """Turns the single file into one shard with an index that `change` alters."""
    (folder / "model.safetensors").rename(folder / "model-a.safetensors")
    whole = (folder / "model-a.safetensors").read_bytes()
    names = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    table = {name: "model-a.safetensors" for name in names if name != "__metadata__"}
    data = {"weight_map": table}
    if change:
        data = change(table) or data
    (folder / "model.safetensors.index.json").write_text(json.dumps(data))


INDEX = {
    "shard missing": (lambda t: t.update({HEAD: "model-b.safetensors"}), ["model-b.safetensors", "missing"]),
    "tensor missing": (lambda t: t.update(other="model-a.safetensors"), ["lacks", "other"]),
    "tensor unnamed": (lambda t: t.pop(HEAD) and None, ["holds", HEAD]),
    "outside": (lambda t: t.update({HEAD: "../checkpoint/model-a.safetensors"}), ["../checkpoint"]),
    "absolute": (lambda t: t.update({HEAD: "/etc/x.safetensors"}), ["/etc/x.safetensors"]),
    "other file": (lambda t: t.update({HEAD: "config.json"}), ["config.json"]),
    "null character": (lambda t: t.update({HEAD: "a\0.safetensors"}), ["a\\x00"]),
    "a number": (lambda t: t.update({HEAD: 3}), ["3"]),
    "a list": (lambda t: t.update({HEAD: ["model-a.safetensors"]}), ["model-a"]),
    "no table": (lambda t: {"metadata": {}}, ["weight_map"]),
    "empty table": (lambda t: {"weight_map": {}}, ["weight_map"]),
    "table is a list": (lambda t: {"weight_map": ["a"]}, ["weight_map"]),
}


@pytest.mark.parametrize("fault", INDEX)
def test_index(folder, fault):
    change, words = INDEX[fault]
    index(folder, change)
    refused(folder, *words)


def test_the_index_itself_is_fine(folder):
    index(folder)
    quantize(folder, folder.parent / "m.gguf")


# ------------------------------------------------------------------------------------------------ model files


@pytest.fixture(scope="module")
def model(toy, tmp_path_factory):
    """(metadata, tensors) of a good model file."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    folder.mkdir()
    for name, data in toy.items():
        (folder / name).write_bytes(data)
    quantize(folder, folder.parent / "m.gguf", type="q4_0")
    with GGUFFile(folder.parent / "m.gguf") as file:
        return file.metadata, file.tensors


def opened(path):
    """Opens a file as the runtime does."""
    with GGUFFile(path) as file:
        config = Config.from_metadata(file.metadata, file.path)
        check_tensors(file.tensors, tensor_names(config), file.path)
        return config


def unusable(path, metadata, tensors, *words):
    """Asserts that a file of that metadata and of tensors (name, shape, format) is refused in one sentence."""
    with GGUFWriter(path, metadata, tensors) as out:
        for _, shape, fmt in tensors:
            out.write(np.zeros(nbytes(shape, fmt), np.uint8))
    with pytest.raises(ModelFileError) as caught:
        opened(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 600
    for word in words:
        assert word in sentence, sentence


def rows(tensors):
    return [(t.name, t.shape, t.format) for t in tensors.values()]


def test_every_key_is_needed(model, tmp_path):
    metadata, tensors = model
    for key in metadata:
        if key == "general.architecture" or key == TOKENIZER or key.startswith("internvideo3."):
            rest = {k: v for k, v in metadata.items() if k != key}
            unusable(tmp_path / "m.gguf", rest, rows(tensors), key.removeprefix("general."))


@pytest.mark.parametrize("value", [-1, 1 << 62, "text", [1, 2], 0.5, True, float("nan"), []], ids=repr)
def test_every_number_is_checked(model, tmp_path, value):
    """A value that a key does not allow is refused; the few that a key allows may be."""
    metadata, _ = model
    path = tmp_path / "m.gguf"
    for key, old in metadata.items():
        if key.startswith("internvideo3.") and type(old) is not type(value):
            try:
                config = Config.from_metadata(metadata | {key: value}, path)
            except ModelFileError as error:
                assert str(path) in str(error)
            else:
                assert config.to_metadata()[key] == value


FILES = {
    "architecture": ({"general.architecture": "llama"}, ["llama"]),
    "architecture is a number": ({"general.architecture": 5}, ["5"]),
    "a newer key": ({"internvideo3.adapter.rank": 4}, ["internvideo3.adapter.rank", "update"]),
    "ranks": ({"internvideo3.attention.kv_lora_rank": [64, 64]}, ["2 latent ranks"]),
    "sections": ({"internvideo3.rope.dimension_sections": [6, 5, 4]}, ["6, 5, 4"]),
    "token": ({"internvideo3.tokens.im_end": 288}, ["288", "vocabulary"]),
    "end tokens": ({"internvideo3.tokens.eos": [1, 999]}, ["999"]),
    "frames": ({"internvideo3.video.min_frames": 10_000}, ["min_frames"]),
    "one layer less": ({"internvideo3.block_count": 3}, ["4 latent ranks"]),
    "width": ({"internvideo3.feed_forward_length": 352}, ["shape", "352"]),
    "tokenizer": ({TOKENIZER: 5}, ["tokenizer"]),
}


@pytest.mark.parametrize("fault", FILES)
def test_contradictions(model, tmp_path, fault):
    metadata, tensors = model
    change, words = FILES[fault]
    unusable(tmp_path / "m.gguf", metadata | change, rows(tensors), *words)


def test_tensors_are_checked(model, tmp_path):
    metadata, tensors = model
    path, whole = tmp_path / "m.gguf", rows(tensors)
    unusable(path, metadata, [t for t in whole if not t[0].startswith("v.")], "no vision tensors", "again")
    unusable(path, metadata, [t for t in whole if t[0] != "blk.1.attn_q.bias"], "lacks", "blk.1.attn_q.bias")
    unusable(path, metadata, whole[5:], "lacks", "more")
    unusable(path, metadata, [*whole, ("spare", (4,), "f32")], "spare", "no use")
    others = {t[0]: t for t in whole}
    for name, shape, fmt, word in (
        ("blk.0.ffn_up.weight", (128, 320), "q4_0", "shape"),
        ("blk.0.ffn_up.weight", (320, 160), "q4_0", "shape"),
        ("blk.0.ffn_up.weight", (1, 320, 128), "q4_0", "shape"),
        ("blk.0.ffn_up.weight", (320, 129), "f32", "shape"),
        ("blk.0.attn_norm.weight", (128,), "q8_0", "q8_0"),
        ("blk.0.ffn_up.weight", (320, 256), "q3_k", "q3_k"),
        ("blk.0.attn_norm.weight", (128,), "i32", "i32"),
    ):
        unusable(path, metadata, list((others | {name: (name, shape, fmt)}).values()), name, word)


def test_headers_of_checkpoints_that_would_take_much_memory(folder):
    """Values are counted before they are parsed; nesting and numbers are bounded."""
    for text, word in (
        (b'{"a": [' + b"[]," * (1 << 22) + b"[]]}", "values"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nests too deeply"),
        (b'{"a": ' + b"1" * 100_000 + b"}", "valid JSON"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"1," * 50 + b'1], "data_offsets": [0, 4]}}', "damaged description"),
        (b'{"a": 1, "a": 2}', "twice"),
    ):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        refused(folder, "model.safetensors", word)


@pytest.mark.parametrize("name", ["im_end", "image_pad"])
def test_tokens_that_contradict_the_settings(model, name):
    """Of a model file whose tokenizer has another token under an id: found when it is opened, not while it runs."""
    metadata, _ = model
    config = Config.from_metadata(metadata, "m.gguf")
    data = json.loads(metadata[TOKENIZER])
    rows = {row["content"]: row for row in data["added_tokens"]}
    rows[f"<|{name}|>"]["id"] = config.text.vocab_size - 1
    with pytest.raises(ModelFileError, match="in the settings|one id"):
        check_ids(Tokenizer(json.dumps(data)), config, "m.gguf")
    rows[f"<|{name}|>"]["id"] = config.text.vocab_size
    with pytest.raises(ModelFileError, match="vocabulary"):
        check_ids(Tokenizer(json.dumps(data)), config, "m.gguf")
