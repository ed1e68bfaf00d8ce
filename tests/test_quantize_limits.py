"""The quantizer's small decisions, one by one: layers of a recipe, formats and padding, defaults of settings, golden values."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ivlite.errors import ModelFileError, UsageError
from ivlite.gguf.config import TokenIds
from ivlite.models.internvideo3 import TensorSpec
from ivlite.quantize import encode, golden, hf_config, recipe_file, recipes, tokenizer

DOCS = Path(__file__).parents[1] / "docs"

# ------------------------------------------------------------------------------------------------ recipes


def test_file_types_are_those_of_the_documentation():
    line = re.search(
        r"`general.file_type` \| u32 \| as llama.cpp numbers it: (.*) \|", (DOCS / "gguf_keys.md").read_text()
    )[1]
    known = {name: int(number) for name, number in (pair.split() for pair in line.split(", "))}
    assert {name: recipe.file_type for name, recipe in recipes.TYPES.items()} == known
    assert recipes.WRITTEN == {f: known.get(f, known.get(f"{f}_m")) for f in recipes.WRITTEN}


@pytest.mark.parametrize(
    "text, count, layers",
    [
        ("first 4", 36, [0, 1, 2, 3]), ("first 4", 2, [0, 1]), ("last 2", 5, [3, 4]), ("last 9", 3, [0, 1, 2]), ("first 0", 5, []),
        ("first 1/8", 16, [0, 1]), ("first 1/8", 15, [0]), ("last 1/8", 7, [6]), ("last 3/8", 8, [5, 6, 7]), ("last 1/8", 16, [14, 15]),
        ("every 3", 9, [2, 5, 8]), ("every 1", 3, [0, 1, 2]), ("every 3", 8, [2, 5]), ("0-3", 9, [0, 1, 2, 3]), ("2-9", 4, [2, 3]),
        ("1", 4, [1]), ("7", 4, []), ("0, 2-3 , last 1", 9, [0, 2, 3, 8]),
    ],
)  # fmt: skip
def test_layers(text, count, layers):
    assert sorted(recipes._layers(text, count)) == layers


@pytest.mark.parametrize(
    "text", ["", "first", "every 0", "every 1/2", "first 1/0", "3-", "all, first 1", "first 4;", "1" * 41, "-1"]
)
def test_layers_that_are_none(text):
    with pytest.raises(UsageError, match="are none of"):
        recipes._layers(text, 4)
    assert recipes._layers("all", 4) is None and recipes._layers("1" * 40, 4) == set()


def chosen(fmt, columns, kind="matrix"):
    made = recipes._choose(TensorSpec("hf", "blk.0.x.weight", (8, columns), kind), fmt)
    return made.format, made.shape, made.note


@pytest.mark.parametrize(
    "fmt, columns, expected",
    [
        ("q4_k", 256, ("q4_k", (8, 256), "")), ("q8_0", 32, ("q8_0", (8, 32), "")), ("q8_0", 4304, ("q8_0", (8, 4320), "padded from 4304")),
        ("q4_k", 896, ("q8_0", (8, 896), "promoted from q4_k: rows of 896")), ("q8_0", 33, ("bf16", (8, 33), "promoted from q8_0: rows of 33")),
        ("q4_k", 12544, ("q4_k", (8, 12544), "")), ("q4_k", 12550, ("q4_k", (8, 12800), "padded from 12550")),
        ("q4_k", 12545, ("q8_0", (8, 12576), "promoted from q4_k: rows of 12545, padded from 12545")), ("f32", 7, ("f32", (8, 7), "")),
    ],
)  # fmt: skip
def test_formats_that_rows_can_have(fmt, columns, expected):
    assert chosen(fmt, columns) == expected


def test_matrices_that_stay_in_floats():
    assert chosen("q8_0", 64, "float_matrix") == ("bf16", (8, 64), "kept in floats")
    for fmt in recipes.FLOATS:
        assert chosen(fmt, 64, "float_matrix") == (fmt, (8, 64), "")


def specs(layers):
    names = [
        f"blk.{i}.{part}.weight" for i in range(layers) for part in ("attn_q", "attn_kv_b", "attn_output", "ffn_down")
    ]
    names += ["output.weight", "token_embd.weight", "v.blk.0.ffn_up.weight", "v.blk.1.ffn_up.weight"]
    return [TensorSpec(name, name, (512, 512)) for name in names] + [
        TensorSpec("n", "blk.0.attn_norm.weight", (512,), "vector")
    ]


def test_what_a_mixed_type_spends_its_bits_on():
    plan = {c.spec.gguf: c.format for c in recipes.plan(specs(16), recipes.named("Q4_K_M"))}
    assert {plan[n] for n in plan if "kv_b" in n or n.startswith("v.")} == {"q8_0"} and plan[
        "blk.0.attn_norm.weight"
    ] == "f32"
    assert plan["output.weight"] == plan["token_embd.weight"] == "q6_k"
    assert [i for i in range(16) if plan[f"blk.{i}.ffn_down.weight"] == "q6_k"] == [0, 1, 2, 5, 8, 11, 14, 15]
    assert [i for i in range(16) if plan[f"blk.{i}.attn_output.weight"] == "q6_k"] == [0, 1, 14, 15]
    assert plan["blk.5.attn_output.weight"] == "q5_k" and plan["blk.3.ffn_down.weight"] == "q4_k"
    assert [i for i in range(16) if plan[f"blk.{i}.attn_q.weight"] == "q5_k"] == [0, 15] and plan[
        "blk.1.attn_q.weight"
    ] == "q4_k"


def test_rows_of_a_person_come_first():
    made = recipes.adjusted(recipes.named("q4_0"), ["ffn_down=Q6_K", "a=b=f16"], "bf16")
    assert [(r.pattern, r.format) for r in made.rows[:4]] == [
        ("ffn_down", "q6_k"),
        ("a=b", "f16"),
        (r"^v\.", "bf16"),
        ("attn_kv_[ab]", "q8_0"),
    ]
    assert made.own == 3 and recipes.adjusted(made, ["x=f32"]).own == 4 and recipes.adjusted(made) is made
    for text in ("ffn_down", "=q8_0", "x=q9", "(=q8_0"):
        with pytest.raises(UsageError):
            recipes.adjusted(made, [text])
    recipes.check_used(specs(2), made.rows[:1])
    for pattern in ("attn_norm", "nowhere"):  # a vector has no format to choose
        with pytest.raises(UsageError, match="fits no tensor"):
            recipes.check_used(specs(2), [recipes.Row(pattern, "all", "f32")])


def test_the_file_type_is_that_of_most_weights():
    spec = TensorSpec("a", "a", (4, 64))
    choices = [
        recipes.Choice(spec, "q8_0", (4, 64)),
        recipes.Choice(spec, "f32", (8, 64)),
        recipes.Choice(spec, "q8_0", (5, 64)),
    ]
    assert recipes.file_type(recipes.Recipe("r", ()), choices) == 7
    assert recipes.file_type(recipes.Recipe("r", (), 15), choices) == 15


def test_recipes_as_text():
    made = recipe_file.parsed({"base": "q4_0", "rows": [["x", "all", "Q8_0"]]}, "p", "n")
    assert (made.name, made.file_type, made.own, made.rows[0]) == ("n", 2, 1, recipes.Row("x", "all", "q8_0"))
    assert (
        recipe_file.parsed(
            {"rows": [["x", "all", "f16"]], "file_type": 2**32 - 1, "name": "a" * 200}, "p", "n"
        ).file_type
        == 2**32 - 1
    )
    again, _ = recipe_file.from_text(recipe_file.text(made))
    assert (again.name, again.rows) == (made.name, made.rows)
    row = ["x", "all", "f16"]
    for data in ({"rows": [row], "file_type": 2**32}, {"rows": [row], "file_type": -1}, {"rows": [row], "file_type": True}, {"rows": []},
                 {"rows": [row], "name": "a" * 201}, {"rows": [row], "name": 5}, {"rows": [row[:2]]}, {"rows": [[1, 2, 3]]}, {"rows": row},
                 {"other": 1}, [row]):  # fmt: skip
        with pytest.raises(UsageError):
            recipe_file.parsed(data, "p", "n")


# ------------------------------------------------------------------------------------------------ encoding


@pytest.mark.parametrize(
    "fmt, limit",
    [("f16", 65520.0), ("q8_0", 65520.0 * 127), ("q4_0", 65520.0 * 4), ("q6_k", 65520.0 * 1016), ("q5_k", 65520.0 * 31), ("q4_k", 65520.0 * 31),
     ("bf16", 3.396e38)],
)  # fmt: skip
def test_what_is_beyond_a_format(fmt, limit):
    assert encode.OVERFLOW[fmt] == limit

    def encoded(value):
        data = np.full((1, 256), value, np.float32)
        source = SimpleNamespace(name="t", file="f", format="f32", nbytes=data.nbytes, shape=data.shape)
        plan = encode.Plan(source, "t", 1, 256, fmt, (1, 256))
        weights = SimpleNamespace(raw=lambda name, first, count: data.reshape(-1).view(np.uint8)[first : first + count])
        return encode._C.decode(fmt, encode.Encoder(weights).encode(plan, 0, 1), 256)

    for value in (0.999 * limit, -0.999 * limit, limit / 1000):
        got = encoded(value)
        assert np.isfinite(got).all() and np.allclose(got, value, rtol=0.3)
    for value in (1.001 * limit, -1.001 * limit):
        with pytest.raises(ModelFileError, match=f"beyond {fmt}"):
            encoded(value)


def test_slices_cover_all_rows():
    for rows, columns in ((1, 1), (7, 1 << 19), (5, 1 << 21), (1000, 4096), (257, 4096)):
        plan = SimpleNamespace(rows=rows, columns=columns)
        parts = encode.slices(plan)
        assert parts[0][0] == 0 and sum(n for _, n in parts) == rows
        assert all(a + n == b for (a, n), (b, _) in zip(parts, parts[1:], strict=False))
        assert all(n * columns <= max(encode.SLICE, columns) for _, n in parts) and (
            columns > 4096 or len(parts) == -(-rows * columns // encode.SLICE)
        )


# ------------------------------------------------------------------------------------------------ settings of a checkpoint


def section(data, prefix=""):
    return hf_config.Section(Path("config.json"), data, prefix)


def test_values_of_a_section():
    s = section({"a": None, "b": 0, "c": {"d": [1]}, "t": "x", "l": ["y"]}, "p.")
    assert not s.has("a") and s.has("b") and not s.has("z") and s.get("b") == 0 and s.get("a", 5) == 5
    assert (
        s.listed("b") == [0]
        and s.listed("z") == []
        and s.section("c").listed("d") == [1]
        and s.section("c").prefix == "p.c."
    )
    assert s.text("t") == "x" and s.text("z") == "" and s.texts("l") == ["y"] and s.texts("z") == []
    for call in (
        lambda: s.get("a"),
        lambda: s.section("b"),
        lambda: s.text("b"),
        lambda: s.texts("t"),
        lambda: section({"l": [1]}).texts("l"),
    ):
        with pytest.raises(ModelFileError, match="p\\.|l is"):
            call()
    s.only("b", 0, 1)
    s.only("z")
    for allowed in ((), (1,), ("0",)):
        with pytest.raises(ModelFileError, match="ivlite takes"):
            s.only("b", *allowed)


@pytest.mark.parametrize(
    "value, good",
    [(1, True), (1 << 16, True), (0, False), ((1 << 16) + 1, False), (True, False), (1.0, False), (None, False)],
)
def test_counts(value, good):
    assert hf_config._count(value) is good


@pytest.mark.parametrize(
    "path, data, name",
    [
        ("/a/InternVideo3", {}, "InternVideo3"), ("/hub/models--Open--Intern--8B/snapshots/0123456789ab", {}, "Intern--8B"),
        ("/x/0123456789ab", {"_name_or_path": "o/Name/"}, "Name"), ("/x/0123456789ab", {}, "0123456789ab"), ("/x/0123456789a", {"_name_or_path": "o/N"}, "0123456789a"),
        ("/x/" + "f" * 64, {"_name_or_path": "N"}, "N"), ("/x/" + "f" * 65, {"_name_or_path": "N"}, "f" * 65), ("/models--a--b/other/n", {}, "n"),
        ("/x/" + "n" * 201, {}, "n" * 200),
    ],
)  # fmt: skip
def test_what_a_model_is_called(path, data, name):
    assert hf_config._name(Path(path), section(data)) == name


class Folder:
    """A checkpoint of JSON files."""

    def __init__(self, **files):
        self.folder, self.files, self.tensors = Path("/c"), files, {}

    def json(self, name, required=True):
        return self.files.get(name.removesuffix(".json"), {})

    def text(self, name, required=True):
        return self.files.get(name.split(".")[0])


TOP = section({"vision_config": {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2}})


def test_defaults_of_media():
    image, video = hf_config._image(Folder(), TOP), hf_config._video(Folder(), TOP)
    assert (image.min_pixels, image.max_pixels, image.mean, image.std) == (65536, 16777216, (0.5,) * 3, (0.5,) * 3)
    assert (video.fps, video.min_frames, video.max_frames, video.min_pixels, video.max_pixels) == (
        1,
        4,
        768,
        131072,
        131072,
    )
    given = {
        "size": {"shortest_edge": 1024, "longest_edge": 2048},
        "image_mean": [0.1, 0.2, 0.3],
        "min_frames": 2,
        "max_frames": 9,
        "merge_size": 2,
    }
    image = hf_config._image(Folder(preprocessor_config=given), TOP)
    assert (image.min_pixels, image.max_pixels, image.mean) == (1024, 2048, (0.1, 0.2, 0.3))
    assert hf_config._image(Folder(processor_config={"image_processor": {"min_pixels": 4096}}), TOP).min_pixels == 4096
    assert hf_config._video(Folder(video_preprocessor_config=given), TOP).max_frames == 9
    for key in ("patch_size", "temporal_patch_size", "merge_size"):
        with pytest.raises(ModelFileError, match="different models"):
            hf_config._image(Folder(preprocessor_config={key: 3}), TOP)


def test_defaults_of_generation():
    made = hf_config._generation(Folder())
    assert (made.temperature, made.top_k, made.top_p, made.min_p, made.repetition_penalty, made.thinking) == (
        0,
        0,
        1,
        0,
        1,
        "none",
    )
    made = hf_config._generation(Folder(generation_config={"do_sample": True}))
    assert (made.temperature, made.top_k) == (1, 50)
    made = hf_config._generation(Folder(generation_config={"do_sample": False, "temperature": 0.7, "top_k": 20}))
    assert (made.temperature, made.top_k) == (0, 20)
    with pytest.raises(ModelFileError, match="do_sample"):
        hf_config._generation(Folder(generation_config={"do_sample": "yes"}))


@pytest.mark.parametrize(
    "template, kind",
    [
        ("", "none"),
        ("{% if enable_thinking %}<think>\\n", "open"),
        ("enable_thinking <think>\\n\\n</think>\\n\\n", "close"),
        ("<think>\\n", "none"),
    ],
)
def test_how_a_template_thinks(template, kind):
    assert hf_config._thinking(Folder(chat_template=template)) == kind
    if template:
        config = Folder(tokenizer_config={"chat_template": template})
        assert hf_config._thinking(config) == kind


ADDED = {
    f"<|{n}|>": i
    for i, n in enumerate(("image_pad", "video_pad", "vision_start", "vision_end", "im_start", "im_end", "endoftext"))
}


def test_ids_of_tokens():
    made = hf_config._tokens(Folder(), section({"image_token_id": 0, "vision_end_token_id": 3}), section({}), ADDED)
    assert made == TokenIds(image_pad=0, video_pad=1, vision_start=2, vision_end=3, im_start=4, im_end=5, eos=(5, 6))
    for where in ({"generation_config": {"eos_token_id": 9}}, {}):
        made = hf_config._tokens(
            Folder(**where), section({"eos_token_id": [7, 8]}), section({"eos_token_id": 3}), ADDED
        )
        assert made.eos == ((9,) if where else (7, 8))
    assert hf_config._tokens(Folder(), section({}), section({"eos_token_id": 3}), ADDED).eos == (3,)
    for top, added in (({"video_token_id": 5}, ADDED), ({}, {k: v for k, v in ADDED.items() if k != "<|im_end|>"})):
        with pytest.raises(ModelFileError):
            hf_config._tokens(Folder(), section(top), section({}), added)


# ------------------------------------------------------------------------------------------------ tokenizers


def test_added_tokens_without_a_table_of_their_kinds():
    texts = {"<|im_end|>": 7, "<|fim_pad|>": 3, "<think>": 5, "<|repo_name|>": 4}
    made = tokenizer._added_tokens(Folder(added_tokens=texts))
    assert [(t["id"], t["special"]) for t in made] == [(3, False), (4, False), (5, False), (7, True)]
    entry = {"content": "x", "special": True, "lstrip": True, "normalized": 1}
    made = tokenizer._added_tokens(
        Folder(tokenizer_config={"added_tokens_decoder": {"999999999": entry, "2": {"content": "y"}}})
    )
    assert made[1] == {
        "id": 999999999,
        "content": "x",
        "single_word": False,
        "lstrip": True,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    for bad in ({"1000000000": entry}, {"x": entry}, {"1": 5}, {"²": entry}):
        with pytest.raises(ModelFileError, match="damaged"):
            tokenizer._added_tokens(Folder(tokenizer_config={"added_tokens_decoder": bad}))


def test_a_tokenizer_is_built_from_vocabulary_and_merges():
    vocab = {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "c": 4}
    made = tokenizer._build(Folder(vocab=vocab, merges="#version: 0.2\na b\r\n\n"))
    assert made["model"]["merges"] == ["a b"] and made["model"]["vocab"] == vocab
    flags = {k: v for k, v in made["model"].items() if isinstance(v, bool)}
    assert flags == {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    (split, level) = made["pre_tokenizer"]["pretokenizers"]
    assert (split["behavior"], split["invert"]) == ("Isolated", False)
    assert (level["add_prefix_space"], level["trim_offsets"], level["use_regex"]) == (False, False, False)
    for merges in ("a", "a b c"):
        with pytest.raises(ModelFileError, match="no pair"):
            tokenizer._build(Folder(vocab=vocab, merges=merges))
    text, loaded = tokenizer.read(Folder(vocab=vocab, merges="a b"))
    assert loaded.encode("ab c") == [2, 3, 4] and json.loads(text)["model"]["type"] == "BPE"


# ------------------------------------------------------------------------------------------------ golden values


def test_the_golden_picture():
    made = golden.picture(64, 96)
    assert made.shape == (2, 64, 96, 3) and (made[0] == made[1]).all() and made.dtype == np.uint8
    red, green, squares = (made[0, ..., i].astype(int) for i in range(3))
    assert (red == np.arange(96) * 255 // 96).all() and (green == (np.arange(64) * 255 // 64)[:, None]).all()
    assert (
        set(np.unique(squares)) == {0, 255}
        and squares[0, 7] == 0
        and squares[0, 8] == 255
        and squares[8, 8] == 0
        and squares[8, 7] == 255
    )


def test_golden_distances():
    logits = np.log(np.array([[1, 3], [2, 6]], np.float32))
    assert np.allclose(golden.log_sums(logits), np.log([4, 8]))
    expected, got = np.array([3.0, 4.0], np.float32), np.array([[3.0, 9.0]])
    assert golden._relative(got, expected) == pytest.approx(1.0) and golden._relative(got * 0, expected * 0) == 0
    p, q = np.log([[0.5, 0.25]]), np.log([[0.25, 0.25]])
    exact = 0.5 * np.log(2) + 0.25 * np.log(0.25 / 0.5)
    assert golden.divergence(p, q) == pytest.approx(exact) and golden.divergence(p, p) == 0
    sure = np.log([[1.0, 1e-9]])
    assert np.isfinite(golden.divergence(sure, q))


def test_the_limit_is_that_of_the_worst_format_of_a_tenth():
    def file(**sizes):
        return SimpleNamespace(
            tensors={n: SimpleNamespace(name=f"v.{n}", format=n, shape=(size,)) for n, size in sizes.items()}
        )

    assert golden._limit(file(q8_0=9, q4_0=1), "v.", 0) == 0.6 and golden._limit(file(q8_0=10, q4_0=1), "v.", 0) == 0.06
    assert golden._limit(file(q8_0=10, f32=1), "v.", 1) == 0.01
