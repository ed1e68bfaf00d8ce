"""The tokenizer against the library it stands on, and what must never come out of text."""

import json
import random
from pathlib import Path

import pytest
import tokenizers

from ivlite.errors import ContextError, ModelFileError, Stopped, UsageError
from ivlite.gguf.tokenizer import LONGEST, PIECE, Tokenizer
from ivlite.stop import Stop, using

FILE = Path(__file__).parent / "data" / "golden_plain" / "hf" / "tokenizer.json"
TEXT = FILE.read_text()
TEXTS = [
    "", "What comes first?", " two  spaces\n\n\nand lines\r\n", "naïve e\u0301 Ａ ﬁ", "한국어 日本語 العربية",
    "😀👨‍👩‍👧", "\x00\x1f\x7f\u200b\ufeff", "I'd've 12345 x=1;{}", "\t\t a", "<|im_start|>",
    "a<think>b</think>c<|video_pad|>",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TEXT)


@pytest.fixture(scope="module")
def library():
    return tokenizers.Tokenizer.from_str(TEXT)


@pytest.mark.parametrize("text", [t for t in TEXTS if "<" not in t])
def test_plain_text_as_the_library(tokenizer, library, text):
    assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(tokenizer, library, text):
    assert tokenizer.decode(tokenizer.encode(text)) == library.normalizer.normalize_str(text)


ALPHABET = [
    *"aZ09'.,;!? -_<>{}\t\r\n\u00a0\u200b", "'s", "'LL", "  ", "\r\n", "е", "й", "漢", "字", "、", "。", "！", "か", "\u3099", "가", "\u11a8",
    "é", "e\u0301", "\u0301", "²", "½", "٣", "😀", "\u0338", "ſ", "ǅ", "\x00", "word", " word", "1234",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_pieces_of_a_long_text_have_its_ids(tokenizer, library, monkeypatch, seed):
    random.seed(seed)
    monkeypatch.setattr("ivlite.gguf.tokenizer.PIECE", 1 + seed % 5)
    signs = random.sample(ALPHABET, random.randrange(2, len(ALPHABET)))
    for _ in range(50):
        text = "".join(random.choices(signs, k=random.randrange(400)))
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids, text


def test_long_texts_are_read_in_pieces(tokenizer, monkeypatch):
    sizes, read = [], tokenizer._piece
    monkeypatch.setattr(tokenizer, "_piece", lambda text: sizes.append(len(text)) or read(text))
    for text in ("word " * 40_000, "1" * 200_000, "漢字、" * 70_000, "a" * 300_000, " " * 300_000, "\n" * 300_000):
        sizes.clear()
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and sum(sizes) == len(text)
        assert max(sizes) <= (LONGEST if len(set(text)) == 1 and text[0] != "1" else 2 * PIECE)


def test_a_text_of_too_many_tokens_is_not_read_to_its_end(tokenizer, monkeypatch):
    text, read = "word " * 100_000, []
    before = tokenizer._piece
    monkeypatch.setattr(tokenizer, "_piece", lambda text: read.append(text) or before(text))
    with pytest.raises(ContextError, match="500,000 characters .* more than 1,000 tokens"):
        tokenizer.encode(text, most=1000)
    assert len(read) == 1
    assert len(tokenizer.encode("word " * 100, most=1000)) < 1000


def test_reading_a_long_text_can_be_stopped(tokenizer, monkeypatch):
    stop, read = Stop(), []
    before = tokenizer._piece
    monkeypatch.setattr(tokenizer, "_piece", lambda text: (read.append(text), stop.set("enough"), before(text))[-1])
    with using(stop), pytest.raises(Stopped):
        tokenizer.encode("word " * 100_000)
    assert len(read) == 1


def test_a_tokenizer_that_splits_otherwise_reads_whole_texts(monkeypatch):
    data = json.loads(TEXT)
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    monkeypatch.setattr("ivlite.gguf.tokenizer.PIECE", 2)
    text = "1234 and 'more words" * 20
    other = tokenizers.Tokenizer.from_str(json.dumps(data))
    assert Tokenizer(json.dumps(data)).encode(text) == other.encode(text, add_special_tokens=False).ids


def test_text_never_becomes_an_added_token(tokenizer):
    for name in tokenizer.added:
        for text in (name, f"a {name} b", name * 3, f"<|{name}|>"):
            assert not set(tokenizer.encode(text)) & set(tokenizer.added.values())


def test_allowed_tokens_become_tokens_as_the_library_has_it(tokenizer, library):
    text = "<think>hm\n</think>\n\nyes <tool_call>\n{}</tool_call>"
    assert tokenizer.encode(text, set(tokenizer.added)) == library.encode(text).ids
    some = tokenizer.encode(text, {"<think>", "no such token"})
    assert tokenizer.token_id("<think>") in some and tokenizer.token_id("</think>") not in some


def test_an_added_token_in_the_vocabulary_is_not_found_in_text():
    data = json.loads(TEXT)
    data["model"]["ignore_merges"] = True
    for token in data["added_tokens"]:
        data["model"]["vocab"][token["content"]] = token["id"]
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    built = Tokenizer(json.dumps(data))
    assert built.token_id("<|im_end|>") not in built.encode("<|im_end|>")


def test_decode_drops_special_tokens_and_keeps_the_others(tokenizer):
    ids = [tokenizer.token_id(n) for n in ("<|im_start|>", "<think>", "</think>", "<|im_end|>")]
    assert tokenizer.decode(ids) == "<think></think>"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|><think></think><|im_end|>"
    assert tokenizer.decode([10**6, -1]) == ""


def test_vocab_size_counts_added_tokens(tokenizer, library):
    assert tokenizer.vocab_size == library.get_vocab_size()


def test_a_stream_adds_up_and_never_shows_half_a_character(tokenizer):
    for text in TEXTS:
        stream = tokenizer.stream()
        pieces = [stream.push(i) for i in tokenizer.encode(text)]
        assert not any("\ufffd" in p for p in pieces)
        assert "".join(pieces) + stream.flush() == tokenizer.decode(tokenizer.encode(text))


def test_a_stream_of_any_tokens_adds_up(tokenizer):
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(tokenizer.vocab_size + 5) for _ in range(draw.randrange(40))]
        stream = tokenizer.stream()
        assert "".join(stream.push(i) for i in ids) + stream.flush() == tokenizer.decode(ids)


def test_half_a_character_appears_at_the_flush(tokenizer):
    stream, ids = tokenizer.stream(), tokenizer.encode("😀")
    assert len(ids) > 1 and "".join(stream.push(i) for i in ids[:-1]) == ""
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize("text", ["A", " ", "\n", "漢", "e\u0301", "😀", " \n", "'"])
def test_long_runs_neither_crash_nor_crawl(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text * 50_000)).count(text[-1]) in (0, 50_000)


def test_text_that_is_not_unicode_is_refused(tokenizer):
    with pytest.raises(UsageError, match="UTF-8"):
        tokenizer.encode("a\udc80b")


def test_a_missing_token_is_named(tokenizer):
    with pytest.raises(ModelFileError, match="<no such>"):
        tokenizer.token_id("<no such>")


def damaged(change):
    data = json.loads(TEXT)
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize("text", [
    "", "{}", "[]", "null", "not json", TEXT[: len(TEXT) // 2], '{"model": {"vocab": []}}', "[" * 100_000,
    damaged(lambda d: d.pop("model")), damaged(lambda d: d["model"].pop("vocab")),
    damaged(lambda d: d["model"].update(merges=["no such"])), damaged(lambda d: d["model"].update(type="Magic")),
    damaged(lambda d: d.update(added_tokens=[{"content": "<x>"}])), damaged(lambda d: d.update(added_tokens=7)),
    damaged(lambda d: d.update(added_tokens=[{"content": "", "id": 1}])),
    damaged(lambda d: d.update(added_tokens=[{"content": "<x>", "id": -1}])),
    damaged(lambda d: d.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"})),
])  # fmt: skip
def test_a_damaged_file_is_a_sentence(text):
    with pytest.raises(ModelFileError, match="convert the checkpoint again") as caught:
        Tokenizer(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(("change", "words"), [
    (lambda d: d["model"].update(continuing_subword_prefix="x" * 10), "continuing_subword_prefix"),
    (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    (lambda d: d["model"]["merges"].append(["no", "such"]), "not in the vocabulary"),
    (lambda d: d["model"]["merges"].append([["a"], "b"]), "no pair"),
    (lambda d: d["model"]["vocab"].update(new=max(d["model"]["vocab"].values())), "one id"),
    (lambda d: d["model"]["vocab"].update(new=1 << 40), "whole numbers"),
    (lambda d: d["model"]["vocab"].update({"\ud800": 1 << 20}), "surrogates"),
    (lambda d: d.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "damaged"),
    (lambda d: d.update(pre_tokenizer=5), "damaged"),
])  # fmt: skip
def test_parts_that_the_library_trusts(change, words, capfd):
    """None of them ends in the library's panic, which is no Exception, nor in its lines on standard error."""
    with pytest.raises(ModelFileError, match=words):
        Tokenizer(damaged(change))
    assert capfd.readouterr().err == ""


def test_a_panic_is_an_error_and_an_interrupt_is_none(monkeypatch, tokenizer):
    class PanicException(BaseException):
        pass

    def raising(error):
        def encode(*args, **more):
            raise error

        return encode

    for error, wanted in (
        (PanicException("index out of range"), ModelFileError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(tokenizer, "_core", type("Core", (), {"encode": staticmethod(raising(error))}))
            with pytest.raises(wanted):
                tokenizer.encode("x")
