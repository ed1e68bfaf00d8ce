"""Thinking has a budget, and calls come after it."""

import numpy as np
import pytest
from call_tools import ASK, TOOLS, ZOOM, rules

from ivlite.engine.grammar import Constrained
from ivlite.engine.sampling import Sampler, SamplingParams


@pytest.mark.parametrize("budget", [0, 1, 5, 1000])
@pytest.mark.parametrize(
    "more",
    [{}, {"tools": TOOLS, "tool_choice": "required"}, {"response_format": {"type": "choice", "choices": ["ok"]}}],
)
def test_thinking_has_a_budget_and_the_answer_goes_on(demo, budget, more):
    tools = {"tools": more["tools"], "tool_choice": "none"} if "tools" in more else {}
    free = demo.chat(ASK, enable_thinking=True, temperature=0, max_new_tokens=400, **tools)
    reply = demo.chat(ASK, enable_thinking=True, thinking_budget=budget, temperature=0, max_new_tokens=400, **more)
    closing = demo.tokenizer.token_id("</think>")
    if budget == 1000 and closing not in free.token_ids:
        # tools that it does not know: on some processors it thinks for ever
        assert reply.token_ids == free.token_ids and len(free.token_ids) == 400
        return
    end = reply.token_ids.index(closing)
    assert reply.finish_reason != "length" and reply.text + str(reply.tool_calls or "")
    if budget < 1000:
        assert free.thinking.startswith(reply.thinking) and budget <= end <= budget + 1
        assert demo.tokenizer.decode(reply.token_ids[: end + 2]).endswith(
            "\n</think>\n\n" if budget else "</think>\n\n"
        )
        assert reply.token_ids[:budget] == free.token_ids[:budget]
    else:
        assert reply.thinking == free.thinking


def test_a_model_that_opens_its_thinking_itself(demo, vocabulary):
    """Chat templates of hybrid models leave <think> to the model."""
    think, end = (demo.tokenizer.token_id(name) for name in ("<think>", "</think>"))
    hm, eos = demo.tokenizer.encode("hm")[0], demo.config.tokens.eos[0]
    follows = rules(ZOOM, tool_choice="required")

    def drawn(likely, **settings):
        sampler = Constrained(Sampler(SamplingParams()), vocabulary, vocabulary.following(follows), False, **settings)
        out = []
        for token in likely:
            logits = np.zeros(demo.config.text.vocab_size, np.float32)
            logits[token] = 9
            out.append(sampler(logits))
        return demo.tokenizer.decode(out)

    assert drawn([think, hm, eos, end, hm, hm], may_think=True).endswith("</think><tool_call>\n")
    assert drawn([hm, hm], may_think=True) == drawn([think, hm]) == "<tool_call>\n"
    closed = drawn([think, *[hm] * 7], may_think=True, budget=2)
    assert closed.startswith(f"<think>{demo.tokenizer.decode([hm] * 2)}\n</think>\n\n<tool_call>")
