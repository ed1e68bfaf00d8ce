"""Converting checkpoints: every weight arrives, in the format its recipe says, from every layout of the files."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ivlite import _C
from ivlite.gguf import GGUFFile
from ivlite.gguf.config import TOKENIZER, Config, check_tensors
from ivlite.models.internvideo3 import tensor_names
from ivlite.quantize import encode, quantize
from ivlite.quantize.checkpoint import Checkpoint
from ivlite.quantize.recipes import TYPES, named, plan

ROOT = Path(__file__).parents[1]
GOLDEN = [ROOT / "tests" / "data" / f"golden_{name}" / "hf" for name in ("plain", "variant")]


@pytest.fixture(scope="module")
def toy(toy_module, tmp_path_factory):
    """The folder of a checkpoint; tests do not change it."""
    folder = tmp_path_factory.mktemp("toy") / "checkpoint"
    toy_module.write_checkpoint(folder)
    return folder


def weights_of(folder):
    """name -> float32 array of a single safetensors file, read independently of the converter."""
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    out = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            raw = data[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]]
            kind = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[entry["dtype"]]
            x = np.frombuffer(raw, kind)
            x = (x.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else x.astype("<f4")
            out[name] = x.reshape(entry["shape"])
    return out


def write_weights(folder, tensors, dtype="BF16", parts=1):
    """Writes name -> float32 array as one file or as shards with an index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = list(tensors)
    index = {}
    for part in range(parts):
        header, blobs, at = {}, [], 0
        file = "model.safetensors" if parts == 1 else f"model-any-{part}-save_rank0.safetensors"
        for name in names[part::parts]:
            x = tensors[name].astype("<f4")
            raw = {"BF16": (x.view("<u4") >> 16).astype("<u2"), "F16": x.astype("<f2"), "F32": x}[dtype].tobytes()
            header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [at, at + len(raw)]}
            blobs, at, index[name] = [*blobs, raw], at + len(raw), file
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    if parts > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def copy(source, target, **settings):
    """A copy of a checkpoint's folder; settings replace values of text_config."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    config["text_config"] |= settings
    (target / "config.json").write_text(json.dumps(config))
    return target


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("folder", GOLDEN, ids=["plain", "variant"])
def test_every_weight_arrives(folder, type, tmp_path):
    out = tmp_path / "model.gguf"
    done = quantize(folder, out, type=type)
    assert (done.nbytes, done.tensors) == (out.stat().st_size, len(weights_of(folder)))
    weights = weights_of(folder)
    with GGUFFile(out) as file:
        config = Config.from_metadata(file.metadata, out)
        specs = tensor_names(config)
        check_tensors(file.tensors, specs, out)
        assert len(specs) == len(weights)
        for spec, choice in zip(specs, plan(specs, named(type)), strict=True):
            info, x = file.tensors[spec.gguf], weights[spec.hf].reshape(spec.shape)
            assert (info.format, info.shape) == (choice.format, choice.shape)
            got = _C.decode(info.format, file.read(spec.gguf), math.prod(info.shape)).reshape(info.shape)
            padding = got[..., x.shape[-1] :]
            assert not padding.any()
            got, limit = got[..., : x.shape[-1]], {"q8_0": 1 / 230, "q4_0": 1 / 7.9, "f16": 1e-3}.get(info.format, 0)
            assert np.abs(got - x).max() <= limit * np.abs(x).max(), spec.gguf


def test_the_gguf_package_agrees(toy, tmp_path):
    gguf = pytest.importorskip("gguf")
    quantize(toy, tmp_path / "m.gguf", type="q4_0")
    weights = weights_of(toy)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.get_field("general.architecture").contents() == "internvideo3"
    with GGUFFile(tmp_path / "m.gguf") as file:
        config = Config.from_metadata(file.metadata, file.path)
        hf = {spec.gguf: spec for spec in tensor_names(config)}
        assert [t.name for t in reader.tensors] == list(file.tensors)
        for tensor in reader.tensors:
            info, spec = file.tensors[tensor.name], hf[tensor.name]
            x = weights[spec.hf].reshape(spec.shape)
            expected = gguf.quantize(x, tensor.tensor_type)
            assert np.array_equal(file.read(tensor.name), expected.reshape(-1).view(np.uint8)), tensor.name
            values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
            assert np.array_equal(_C.decode(info.format, file.read(tensor.name), len(values)), values)


def test_padding_is_zeros(toy, tmp_path):
    """4304 / 4320 in small: rows of 1596 become 1600."""
    rng = np.random.default_rng(0)
    folder = copy(toy, tmp_path / "odd", intermediate_size=1596)
    weights = weights_of(toy)
    for name in weights:
        if ".mlp." in name and "language_model" in name:
            shape = (128, 1596) if "down" in name else (1596, 128)
            weights[name] = rng.standard_normal(shape, np.float32)
    write_weights(folder, weights, "F32")
    quantize(folder, tmp_path / "m.gguf", type="q4_0")
    with GGUFFile(tmp_path / "m.gguf") as file:
        info = file.tensors["blk.0.ffn_down.weight"]
        assert (info.format, info.shape) == ("q4_0", (128, 1600))
        got = _C.decode("q4_0", file.read(info.name), 128 * 1600).reshape(128, 1600)
        assert not got[:, 1596:].any()
        x = weights["model.language_model.layers.0.mlp.down_proj.weight"]
        assert np.abs(got[:, :1596] - x).max() < np.abs(x).max() / 7.9


# ------------------------------------------------------------------------------------------------ layouts of files


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_shards_and_types_give_the_same_file(toy, tmp_path, parts, dtype):
    quantize(toy, tmp_path / "one.gguf", type="q8_0")
    folder = copy(toy, tmp_path / "checkpoint")
    write_weights(folder, weights_of(toy), dtype, parts)
    quantize(folder, tmp_path / "other.gguf", type="q8_0")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_half_precision(toy, tmp_path):
    folder, weights = copy(toy, tmp_path / "half"), weights_of(toy)
    write_weights(folder, weights, "F16")
    quantize(folder, tmp_path / "m.gguf", type="f16")
    with GGUFFile(tmp_path / "m.gguf") as file:
        got = file.read("output.weight").view(np.float16)
    assert np.array_equal(got, weights["lm_head.weight"].reshape(-1).astype(np.float16))


def test_slices_of_any_size_give_the_same_file(toy, tmp_path, monkeypatch):
    quantize(toy, tmp_path / "one.gguf")
    monkeypatch.setattr(encode, "SLICE", 1000)
    calls = []
    quantize(toy, tmp_path / "many.gguf", progress=lambda *args: calls.append(args))
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()
    stages, done, totals = zip(*calls, strict=True)
    assert set(stages) == {"convert"} and len(set(totals)) == 1 and len(calls) > 500
    assert list(done) == sorted(done) and done[-1] == totals[0]


# ------------------------------------------------------------------------------------------------ settings


def converted(folder, out):
    quantize(folder, out, type="bf16")
    with GGUFFile(out) as file:
        return Config.from_metadata(file.metadata, out), file.metadata


def test_settings(toy, tmp_path):
    config, metadata = converted(toy, tmp_path / "m.gguf")
    assert config.name == "checkpoint" and config.text.kv_lora_rank == (64,) * 4
    assert config.text.attention_bias and not config.text.latent_norm and not config.text.tie_word_embeddings
    assert (config.vision.depth, config.vision.deepstack_indexes) == (4, (0, 1, 2))
    assert (config.image.min_pixels, config.image.max_pixels) == (4096, 16777216)
    # the model card's: frames per second, and pixels per frame where the checkpoint gives a budget per video
    assert (config.video.fps, config.video.min_frames, config.video.max_frames) == (1, 4, 768)
    assert (config.video.min_pixels, config.video.max_pixels) == (131072, 131072)
    assert (config.generation.temperature, config.generation.top_k, config.generation.top_p) == (0.7, 20, 0.8)
    assert config.tokens.eos == (config.tokens.im_end, 256)
    assert metadata[TOKENIZER] == (toy / "tokenizer.json").read_text()
    assert (metadata["general.file_type"], metadata["general.quantization_version"]) == (32, 2)


@pytest.mark.parametrize("template, manner", [
    ("{{ messages }}", "none"),
    ("{% if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}", "close"),
    ("{% if enable_thinking %}{{ '<think>\\n' }}{% endif %}", "open"),
])  # fmt: skip
def test_the_chat_template_says_how_the_model_thinks(toy, tmp_path, template, manner):
    folder = copy(toy, tmp_path / "new")
    assert converted(folder, tmp_path / "before.gguf")[0].generation.thinking == "none"
    (folder / "chat_template.jinja").write_text(template)
    assert converted(folder, tmp_path / "m.gguf")[0].generation.thinking == manner


def test_the_variant_in_everything(tmp_path):
    text = converted(GOLDEN[1], tmp_path / "m.gguf")[0].text
    assert text.kv_lora_rank == (48, 64, 32, 48) and text.latent_norm and text.tie_word_embeddings
    assert not text.attention_bias and not text.rope_interleave


def test_settings_in_the_manner_of_transformers_5(toy, tmp_path):
    folder = copy(toy, tmp_path / "new")
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    for key in ("kv_lora_rank", "attention_bias", "qk_latent_layernorm", "rope_interleave"):
        del text[key]
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    parts = {
        part: json.loads((folder / name).read_text())
        for part, name in (
            ("image_processor", "preprocessor_config.json"),
            ("video_processor", "video_preprocessor_config.json"),
        )
    }
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "generation_config.json"):
        (folder / name).unlink()
    (folder / "processor_config.json").write_text(json.dumps(parts))
    old, new = converted(toy, tmp_path / "old.gguf")[0], converted(folder, tmp_path / "new.gguf")[0]
    assert (new.text, new.vision, new.image, new.video) == (old.text, old.vision, old.image, old.video)
    assert new.tokens == old.tokens and new.generation.temperature == 0


def test_a_tokenizer_of_vocab_and_merges_is_the_same(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = copy(GOLDEN[0], tmp_path / "parts")
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {t["id"]: {k: v for k, v in t.items() if k != "id"} for t in whole["added_tokens"]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    _, metadata = converted(folder, tmp_path / "decoder.gguf")
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({t["content"]: t["id"] for t in whole["added_tokens"]}))
    _, simple = converted(folder, tmp_path / "simple.gguf")
    expected = tokenizers.Tokenizer.from_str(json.dumps(whole))
    for built in (metadata, simple):
        got = tokenizers.Tokenizer.from_str(built[TOKENIZER])
        for text in ("Describe the picture, please.", "<|im_start|>user\nIt's 12 o'clock; ﬁ é 日本 \t\n\n x<think>y"):
            ids = expected.encode(text).ids
            assert got.encode(text).ids == ids
            assert got.decode(ids) == expected.decode(ids)


def test_reading_is_in_slices(toy):
    with Checkpoint(toy) as checkpoint:
        x = weights_of(toy)["lm_head.weight"].reshape(-1)
        raw = checkpoint.raw("lm_head.weight", 10, 1400)
        assert np.array_equal(_C.decode("bf16", raw, 700), x[5:705])


def test_as_a_module(toy, tmp_path):
    command = [sys.executable, "-m", "ivlite.quantize", str(toy), "-o", "m.gguf", "--type", "f16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bits per weight" in done.stderr and done.stdout == "" and (tmp_path / "m.gguf").exists()
