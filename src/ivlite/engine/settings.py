"""The settings of an answer, as `Model.stream` takes them, read and checked."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ivlite.engine.grammar import Grammars, Rules
from ivlite.engine.logprobs import MOST as MOST_LOGPROBS
from ivlite.engine.logprobs import Watched
from ivlite.engine.reply import TokenLogprob
from ivlite.engine.sampling import Sampler, SamplingParams, Told
from ivlite.errors import UsageError
from ivlite.numbers import whole
from ivlite.prompt import Prompt
from ivlite.stop import Stop

RULES = ("response_format", "tool_choice", "parallel_tool_calls", "thinking_budget")  # arguments of Rules.of


@dataclass(frozen=True)
class Settings:
    """What is asked of an answer, beside its prompt.

    params: of sampling. rules: what it must follow. strings, stops: what ends it. most: tokens; None until the context is
    full. logprobs: alternatives that are noted with each token, or None. told: the token ids of an answer that is known.
    """

    params: SamplingParams
    rules: Rules
    strings: list[str]
    stops: list[Stop]
    most: int | None
    logprobs: int | None
    told: list[int] | None

    @classmethod
    def of(cls, given: dict[str, Any], defaults: object, tools: Sequence[str]) -> "Settings":
        """The Settings among the arguments of `Model.stream`, from which it takes those that are not the prompt's.

        defaults: for sampling, of the model file. tools: signatures as JSON texts. Raises UsageError.
        """
        params = SamplingParams.over(defaults, **{f.name: given.pop(f.name) for f in fields(SamplingParams)})
        most, logprobs, told = given["max_new_tokens"], given.pop("logprobs"), given.pop("told", None)
        most = None if most is None else whole("max_new_tokens", most, 1, 2**63)
        rules = Rules.of(tools, **{name: given.pop(name) for name in RULES})
        logprobs = None if logprobs is None else whole("logprobs", logprobs, 0, MOST_LOGPROBS)
        told = None if told is None else [int(token) for token in told]
        return cls(params, rules, *ends(given.pop("stop")), most, logprobs, told)

    def sampler(self, grammars: Grammars, prompt: Prompt, thinking: bool, end: int, noted: list[TokenLogprob]) -> Any:
        """The sampler of an answer. thinking: it may think. end: the token that ends one which is told. noted: gets an entry
        for each token, if logprobs are asked for."""
        follows: Any = None if self.told is None else Told(self.told, end)
        if follows is None:
            sampler = Sampler(self.params, prompt.token_ids)
            follows = grammars.sampler(sampler, self.rules, prompt.thinks, thinking and not prompt.thinks)
        return follows if self.logprobs is None else Watched(follows, self.logprobs, noted)


def ends(stop: str | Stop | Sequence[str | Stop] | None) -> tuple[list[str], list[Stop]]:
    """(strings, Stops) of a `stop` argument: a string, a Stop, a list of both, or None. Raises UsageError."""
    given = [stop] if isinstance(stop, str | Stop) else stop if isinstance(stop, list | tuple) else [stop]
    given = [] if stop is None else given
    if not all(isinstance(s, Stop) or (isinstance(s, str) and s) for s in given):
        raise UsageError("stop must be an ivlite.Stop, a string that is not empty, or a list of these")
    return [s for s in given if isinstance(s, str)], [s for s in given if isinstance(s, Stop)]
