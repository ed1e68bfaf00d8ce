"""Judging: the numbers against formulas, a stored reference against a live one, the reports, and every bad input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.cli import eval as command
from ivlite.cli import main, prompts
from ivlite.errors import ModelFileError, OutOfMemoryError, Stopped, UsageError
from ivlite.evaluate import compare, dataset
from ivlite.output import Claim
from ivlite.quantize import quantize

ROOT = Path(__file__).parents[1]
MEDIA = ROOT / "tests/data/golden_media"


@pytest.fixture(scope="module")
def toy(toy_module, tmp_path_factory):
    """A folder with f32.gguf, q8_0.gguf, q4_0.gguf and data.jsonl of a text, an answered text, an image and a video."""
    folder = tmp_path_factory.mktemp("toy")
    toy_module.write_checkpoint(folder / "checkpoint")
    for type in ("f32", "q8_0", "q4_0"):
        quantize(folder / "checkpoint", folder / f"{type}.gguf", type=type)
    answered = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three, I think."}]
    records = [{"prompt": "Hello there"}, {"messages": answered}, {"image": str(MEDIA / "a.png")}]
    records.append({"video": str(MEDIA / "clip.mkv"), "prompt": "What moves?"})
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def evaluate(toy, *args, data="data.jsonl"):
    return main(["eval", *map(str, args), "--data", str(toy / data), "--quiet", "--answer-tokens", "8"])


def softmax(x):
    x = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def test_the_numbers_are_those_of_the_formulas(toy, monkeypatch):
    """A text, the whole vocabulary kept: KL, agreement and perplexity from the logits themselves."""
    monkeypatch.setattr(compare, "TOP", 10**6)
    (sample,) = dataset.read(toy / "data.jsonl")[:1]
    models = [ivlite.load(toy / f"{name}.gguf", kv="f32") for name in ("f32", "q4_0")]
    record = compare.record(models[0], sample, 8)
    got = compare.Scores()
    got.add(compare.score(models[1], sample, record))
    got = got.summary()
    prompt = models[0].prepare(sample.messages)
    stream = models[0].stream(sample.messages, temperature=0, max_new_tokens=8)
    for _ in stream:
        pass
    assert record.answer == stream.reply.token_ids
    p, q = (m.logits(compare.followed(prompt, record.answer)) for m in models)
    kl = (softmax(p) * (np.log(softmax(p)) - np.log(softmax(q)))).sum(1)
    assert got["mean_kl"] == pytest.approx(kl.mean(), rel=1e-4) and got["p99_kl"] == pytest.approx(
        np.quantile(kl, 0.99), rel=1e-4
    )
    assert got["top1"] == (p.argmax(1) == q.argmax(1)).mean()
    text = len(prompt.token_ids) - 1
    for logits, name in ((q, "perplexity"), (p, "reference_perplexity")):
        loss = -np.log(softmax(logits)[np.arange(text), prompt.token_ids[1:]])
        assert got[name] == pytest.approx(np.exp(loss.mean()), rel=1e-4)
    assert got["answer_kl"] == pytest.approx(kl[text:].mean(), rel=1e-4)
    agree = p[text:].argmax(1) == q[text:].argmax(1)
    assert (got["answers"], got["flips"]) == (1, int(not agree.all()))


def test_the_likeliest_and_the_rest_bound_the_divergence(rng):
    p, q = (compare.log_probabilities(3 * rng.standard_normal((50, 1000)).astype(np.float32)) for _ in range(2))
    exact = (np.exp(p.astype(np.float64)) * (p - q)).sum(1)
    before = np.zeros(50)
    for top in (1, 16, 256, 1000):
        ids, logp = compare.likeliest(p, top)
        assert np.array_equal(ids[:, 0], p.argmax(1)) and (np.diff(logp, axis=1) <= 0).all()
        kl = compare.divergence(logp, q, ids)
        assert (kl <= exact + 1e-5).all() and (kl >= before - 1e-5).all()
        assert compare.divergence(logp, p, ids).max() == 0
        before = kl
    assert np.allclose(before, exact, atol=1e-5)


def test_media_are_not_counted(toy):
    model = ivlite.load(toy / "f32.gguf")
    prompt = model.prepare(dataset.read(toy / "data.jsonl")[3].messages)
    positions = compare.counted(prompt, len(prompt.token_ids) + 3)
    following = {prompt.token_ids[t + 1] for t in positions if t + 1 < len(prompt.token_ids)}
    tokens = model.config.tokens
    assert not following & {tokens.video_pad, tokens.vision_start, tokens.vision_end}
    assert len(positions) > 20 and positions[-1] == len(prompt.token_ids) + 2


def test_table_json_and_a_stored_reference_agree(toy, tmp_path, capsys):
    q8, q4, stored = toy / "q8_0.gguf", toy / "q4_0.gguf", tmp_path / "x.ref"
    assert (
        evaluate(toy, toy / "f32.gguf", q8, q4, "--against", toy / "f32.gguf", "--save-reference", stored, "--json")
        == 0
    )
    live = json.loads(capsys.readouterr().out)["models"]
    assert [list(m["kinds"]) for m in live] == [["text", "image", "video", "all"]] * 3
    for s in live[0]["kinds"].values():  # itself
        assert (s["mean_kl"], s["p99_kl"], s["top1"], s["flips"]) == (0, 0, 1, 0) and s["perplexity"] == s[
            "reference_perplexity"
        ]
    everything = [m["kinds"]["all"] for m in live]
    assert [s["prompts"] for s in everything] == [4] * 3 and [s["answers"] for s in everything] == [3] * 3
    assert 0 < everything[1]["mean_kl"] < everything[2]["mean_kl"] and everything[1]["top1"] > everything[2]["top1"]
    assert evaluate(toy, q8, q4, "--against", stored, "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"] == live[1:]
    assert evaluate(toy, q4, "--against", stored) == 0
    table = capsys.readouterr().out.splitlines()
    assert "bits per weight" in table[0] and [line.split()[0] for line in table[2:]] == [
        "text",
        "image",
        "video",
        "all",
    ]
    assert evaluate(toy, "--against", toy / "f32.gguf", "--save-reference", tmp_path / "y.ref") == 0
    assert (tmp_path / "y.ref").read_bytes() == stored.read_bytes()


def test_reports(toy, tmp_path, capsys):
    models = toy / "q8_0.gguf", toy / "q4_0.gguf"
    for name in ("r.html", "r.png"):
        assert evaluate(toy, *models, "--against", toy / "f32.gguf", "--limit", 1, "--report", tmp_path / name) == 0
    page = (tmp_path / "r.html").read_text()
    assert page.count("<circle") == 3 and "q4_0" in page and "http" not in page and "<svg" in page
    from PIL import Image

    assert Image.open(tmp_path / "r.png").size == (1640, 1040)


def test_bad_input_is_one_sentence(toy, tmp_path, capsys):
    def refused(code, word, *args, **more):
        assert evaluate(toy, *args, **more) == code
        err = capsys.readouterr().err
        assert err.count("ivlite: error: ") == 1 and word in err and "Traceback" not in err

    model, stored = toy / "f32.gguf", tmp_path / "x.ref"
    refused(2, "nothing to do", "--against", model)
    refused(2, ".html or .png", model, "--against", model, "--report", "x.pdf")
    refused(2, "no MODEL", "--against", model, "--save-reference", stored, "--report", "x.png")
    refused(3, "no file", model, "--against", toy / "none.gguf")
    for read in (model, toy / "data.jsonl", MEDIA / "a.png"):  # the models, the prompts, what these name
        before = read.read_bytes()
        refused(2, "being read", model, "--against", model, "--save-reference", read)
        assert read.read_bytes() == before
    refused(6, "no folder", model, "--against", model, "--report", tmp_path / "none/x.png")
    assert evaluate(toy, "--against", model, "--save-reference", stored, "--limit", 1) == 0
    capsys.readouterr()
    refused(2, "lacks 3 of the 4", model, "--against", stored)
    refused(2, "already", model, "--against", stored, "--save-reference", tmp_path / "y", "--limit", 1)
    data = bytearray(stored.read_bytes())
    at = data.index(b"\x04" + bytes(7) + b"loss")  # the tensor's name, after its length
    data[at + 8 : at + 12] = b"lost"
    stored.write_bytes(data)
    refused(3, "damaged", model, "--against", stored, "--limit", 1)


def test_another_tokenizer_is_refused(toy):
    model, (sample,) = ivlite.load(toy / "f32.gguf"), dataset.read(toy / "data.jsonl")[:1]
    record = compare.record(model, sample, 2)
    record.tokens[3] += 1
    with pytest.raises(UsageError, match="different tokens"):
        compare.score(model, sample, record)
    assert compare.Reference.load(toy / "f32.gguf") is None
    with pytest.raises(ModelFileError):
        compare.Reference.load(toy / "none")


# ------------------------------------------------------------------------------------------------ hours that are not lost


def test_every_model_is_opened_before_the_work(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "record", lambda *args: pytest.fail("the reference was run"))
    (tmp_path / "text.gguf").write_text("no model")
    for wrong in (tmp_path / "typo.gguf", tmp_path / "text.gguf"):
        assert evaluate(toy, toy / "q4_0.gguf", wrong, "--against", toy / "f32.gguf") == 3
        assert wrong.name in capsys.readouterr().err


def test_what_is_known_is_told_before_a_later_error(toy, tmp_path, monkeypatch, capsys):
    load = prompts.load

    def failing(args, path, *rest):
        if path.endswith("q4_0.gguf"):
            raise OutOfMemoryError("there is no more")
        return load(args, path, *rest)

    monkeypatch.setattr(prompts, "load", failing)
    models = [toy / "q8_0.gguf", toy / "q4_0.gguf", "--against", toy / "f32.gguf", "--limit", 1]
    assert evaluate(toy, *models, "--json", "--report", tmp_path / "r.html") == 5
    out, err = capsys.readouterr()
    (one,) = json.loads(out)["models"]
    assert one["file"].endswith("q8_0.gguf") and "there is no more" in err
    assert "q8_0" in (tmp_path / "r.html").read_text()
    assert evaluate(toy, *models) == 5 and "bits per weight" in capsys.readouterr().out


@pytest.fixture
def stopped_at_the_third(monkeypatch):
    record, calls = compare.record, []

    def stopping(*args):
        calls.append(args)
        if len(calls) == 3:
            raise Stopped.because("interrupted")
        return record(*args)

    monkeypatch.setattr(compare, "record", stopping)


def test_an_interrupted_reference_keeps_what_is_done(toy, tmp_path, stopped_at_the_third, capsys):
    stored = tmp_path / "x.ref"
    assert evaluate(toy, "--against", toy / "f32.gguf", "--save-reference", stored) == 130
    assert "has the first 2 of the 4 prompts: --limit 2" in capsys.readouterr().err
    assert evaluate(toy, toy / "q8_0.gguf", "--against", stored, "--limit", 2) == 0


def test_an_interrupted_reference_replaces_no_other(toy, tmp_path, stopped_at_the_third):
    (tmp_path / "x.ref").write_bytes(b"of all prompts")
    assert evaluate(toy, "--against", toy / "f32.gguf", "--save-reference", tmp_path / "x.ref") == 130
    assert (tmp_path / "x.ref").read_bytes() == b"of all prompts" and len(list(tmp_path.iterdir())) == 1


def test_a_reference_is_written_by_one_process(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "record", lambda *args: pytest.fail("the reference was run"))
    with Claim(tmp_path / "x.ref"):
        assert evaluate(toy, "--against", toy / "f32.gguf", "--save-reference", tmp_path / "x.ref") == 6
    assert "is being written by another process" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ what a reference tells


def test_prompts_that_the_reference_left_out_are_left_out(toy, tmp_path, capsys):
    media, stored = tmp_path / "media", tmp_path / "x.ref"
    media.mkdir()
    (media / "broken.mp4").write_bytes(b"no video")
    (media / "good.png").write_bytes((MEDIA / "a.png").read_bytes())
    assert evaluate(toy, "--against", toy / "f32.gguf", "--save-reference", stored, data=media) == 0
    assert "broken.mp4 is left out" in capsys.readouterr().err
    assert evaluate(toy, toy / "q8_0.gguf", "--against", stored, "--json", data=media) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["models"][0]["kinds"]["image"]["prompts"] == 1 and "1 of the 2 prompts were left out" in err
    (media / "good.png").unlink()
    assert evaluate(toy, toy / "q8_0.gguf", "--against", stored, data=media) == 2
    assert "none of the prompts" in capsys.readouterr().err


def test_the_answers_of_a_reference_are_as_long_as_they_were_made(toy, tmp_path, capsys):
    stored, model = tmp_path / "x.ref", toy / "q8_0.gguf"
    assert evaluate(toy, "--against", toy / "f32.gguf", "--save-reference", stored, "--limit", 1) == 0
    command = [
        "eval",
        str(model),
        "--against",
        str(stored),
        "--data",
        str(toy / "data.jsonl"),
        "--limit",
        "1",
        "--quiet",
    ]
    assert main([*command, "--answer-tokens", "64"]) == 2
    assert "was made with --answer-tokens 8" in capsys.readouterr().err
    assert main(command) == 0  # left open, they are the reference's


def small(vocabulary, key="k", top=1):
    arrays = (
        np.full(3, 7, np.int32),
        np.full((2, 1), top, np.int32),
        np.zeros((2, 1), np.float32),
        np.zeros(2, np.float32),
    )
    return compare.Reference("m", vocabulary, 8, {key: compare.Record(key, "text", 3, *arrays)})


def test_a_larger_vocabulary_of_the_reference_is_refused(toy, tmp_path, monkeypatch, capsys):
    (sample,) = dataset.read(toy / "data.jsonl")[:1]
    small(400, sample.key).save(tmp_path / "x.ref")
    assert evaluate(toy, toy / "q8_0.gguf", "--against", tmp_path / "x.ref", "--limit", 1) == 2
    assert "vocabulary of 288 tokens" in (err := capsys.readouterr().err) and "one of 400" in err
    monkeypatch.setattr(compare, "record", lambda *args: pytest.fail("the reference was run"))
    monkeypatch.setattr(command, "_vocabulary", lambda path: 494 if path.endswith("f32.gguf") else 448)
    assert evaluate(toy, toy / "q8_0.gguf", "--against", toy / "f32.gguf") == 2
    assert "vocabulary of 448 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("vocabulary, top", [(7, 1), (8, 8), (8, -1)])
def test_tokens_beyond_the_vocabulary_are_damage(tmp_path, vocabulary, top):
    small(vocabulary, top=top).save(tmp_path / "x.ref")
    with pytest.raises(ModelFileError, match="damaged"):
        compare.Reference.load(tmp_path / "x.ref")


def test_a_reference_of_many_prompts_is_read_again(tmp_path):
    (record,) = small(8).records.values()
    many = compare.Reference("m", 8, 8, {str(i): replace(record, key=str(i)) for i in range(20_000)}, ["a", "b"])
    many.save(tmp_path / "x.ref")
    again = compare.Reference.load(tmp_path / "x.ref")
    assert list(again.records) == list(many.records) and again.skipped == ["a", "b"] and again.answer_tokens == 8
    for name in compare.ARRAYS:
        assert np.array_equal(getattr(again.records["19999"], name), getattr(record, name))


def test_why_a_card_is_not_used_is_said(toy, monkeypatch, capsys):
    load = ivlite.load

    def remarking(*args, **kwargs):
        model = load(*args, **kwargs)
        model.remarks.append("the CPU computes: the card is lost")
        return model

    monkeypatch.setattr(ivlite, "load", remarking)
    assert evaluate(toy, toy / "q8_0.gguf", "--against", toy / "f32.gguf", "--limit", 1) == 0
    assert "warning: the CPU computes: the card is lost" in capsys.readouterr().err


def test_what_is_damaged_is_said_once(toy, tmp_path, capsys):
    (tmp_path / "media").mkdir()
    data = (MEDIA / "clip.mkv").read_bytes()
    (tmp_path / "media/cut.mkv").write_bytes(data[: len(data) * 3 // 5])
    models = [toy / "q8_0.gguf", toy / "q4_0.gguf", "--against", toy / "f32.gguf"]
    assert evaluate(toy, *models, data=tmp_path / "media") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: cut.mkv: " in line]
    assert any("is cut off" in line or "damaged" in line for line in warnings) and len(warnings) == len(set(warnings))
