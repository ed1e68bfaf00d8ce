"""The rules that the settings of a model obey together, at their limits and one beyond; and small sums of the command line."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ivlite.cli import inspect
from ivlite.cli.chat.conversation import Conversation
from ivlite.errors import ModelFileError
from ivlite.evaluate import synthetic
from ivlite.gguf.config import TOKENIZER, Config

TINY = synthetic.config("tiny")  # four layers, rotary dimension 32, vision of four blocks, 96 wide, 64 positions


def text(**more):
    return replace(TINY, text=replace(TINY.text, **more))


def vision(**more):
    return replace(TINY, vision=replace(TINY.vision, **more))


def video(**more):
    return replace(TINY, video=replace(TINY.video, **more))


RULES = [
    (TINY, ""), (text(kv_lora_rank=(96,) * 3), "3 latent ranks for 4 layers"), (text(kv_lora_rank=(96,) * 5), "5 latent ranks"), (text(qk_rope_head_dim=33), "33 is odd"),
    (text(mrope_section=(6, 5, 5)), ""), (text(mrope_section=(7, 5, 5)), "do not add up to half the dimension, 16"), (text(mrope_section=(5, 5, 5)), "do not add up"),
    (text(mrope_section=(7, 4, 5)), ""), (text(mrope_section=(5, 6, 5)), "cannot take turns over 16"), (text(mrope_section=(5, 5, 6)), "cannot take turns"), (text(mrope_section=(5, 6, 5), mrope_interleaved=False), ""),
    (vision(num_heads=5), "5 vision heads do not divide a width of 96"), (vision(num_heads=8), ""), (vision(num_heads=16), "6 dimensions, no multiple of 4"), (vision(num_heads=24), ""),
    (vision(num_position_embeddings=65), "65 vision positions are no square"), (vision(num_position_embeddings=49), ""), (vision(deepstack_indexes=(0, 1, 3)), ""),
    (vision(deepstack_indexes=(0, 1, 4)), "not ascending numbers below 4"), (vision(deepstack_indexes=(0, 1, 1)), "not ascending"), (vision(deepstack_indexes=(1, 0)), "not ascending"), (vision(deepstack_indexes=(0, 1, 2, 3)), ""),
    (replace(vision(depth=9, deepstack_indexes=(0, 1, 2, 3, 4))), "5 DeepStack blocks feed 4 text layers"), (vision(out_hidden_size=127), "gives 127 features and the text takes 128"),
    (video(min_pixels=5000, max_pixels=5000), ""), (video(min_pixels=5001, max_pixels=5000), "video min_pixels 5001 is above max_pixels 5000"), (video(min_frames=9, max_frames=9), ""),
    (video(min_frames=10, max_frames=9), "video min_frames 10 is above max_frames 9"), (replace(TINY, image=replace(TINY.image, min_pixels=10, max_pixels=9)), "image min_pixels 10 is above"),
    (replace(TINY, tokens=replace(TINY.tokens, im_end=447)), ""), (replace(TINY, tokens=replace(TINY.tokens, im_end=448)), r"token id 448 .im_end. is beyond the vocabulary of 448"),
    (replace(TINY, tokens=replace(TINY.tokens, eos=(6, 448))), "token id 448 .eos."), (replace(TINY, tokens=replace(TINY.tokens, eos=(6, 447))), ""),
]  # fmt: skip


@pytest.mark.parametrize("config, words", RULES)
def test_settings_that_contradict_each_other(config, words):
    metadata = config.to_metadata() | {TOKENIZER: "{}"}
    if not words:
        assert Config.from_metadata(metadata, "a file") == config
    else:
        with pytest.raises(ModelFileError, match=f"a file.*{words}"):
            Config.from_metadata(metadata, "a file")


def test_sums_of_the_groups_of_a_model():
    def tensor(name, shape, form, nbytes):
        return SimpleNamespace(name=name, shape=shape, format=form, nbytes=nbytes)

    tensors = [
        tensor("blk.0.attn_q.weight", (4, 8), "q8_0", 34),
        tensor("blk.1.attn_q.weight", (2, 8), "f32", 64),
        tensor("output.weight", (5, 7), "f16", 70),
    ]
    found = inspect.groups(tensors)
    assert (
        sum(entry["bytes"] for entry in found.values()) == 168
        and sum(entry["parameters"] for entry in found.values()) == 32 + 16 + 35
    )
    both = found[inspect.group("blk.0.attn_q.weight")]
    assert both == {"parameters": 48, "bytes": 98, "formats": {"q8_0": 32, "f32": 16}}


@pytest.mark.parametrize("roles, count", [("", 0), ("ua", 1), ("suaua", 2), ("suau", 2), ("suatta", 1)])
def test_questions_are_those_of_the_user(roles, count):
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    session = SimpleNamespace(messages=[{"role": names[r]} for r in roles])
    assert Conversation.questions.fget(SimpleNamespace(session=session)) == count


@pytest.mark.parametrize(
    "count, said", [(1, "a is"), (2, "a, b are"), (4, "a, b, c, d are"), (5, "a, b, c, d, ... are")]
)
def test_what_waits_for_the_next_question(count, said):
    pending = [{"type": "image", "image": name} for name in "abcde"[:count]]
    got = Conversation.waiting(SimpleNamespace(pending=pending))
    assert got.replace("image ", "") == said


@pytest.mark.parametrize(
    "system, before, roles",
    [("S", [], ["system", "user"]), ("S", [{"role": "user"}], ["user"]), (None, [], ["user"]), ("", [], ["user"])],
)
def test_a_system_message_comes_once(system, before, roles):
    chat = SimpleNamespace(pending=[], system=system, session=SimpleNamespace(messages=before))
    assert [message["role"] for message in Conversation.question(chat, "?")] == roles
    chat.pending = [{"type": "image", "image": "a"}]
    assert Conversation.question(chat, "?")[-1]["content"] == [
        {"type": "image", "image": "a"},
        {"type": "text", "text": "?"},
    ]
