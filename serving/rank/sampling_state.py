"""What a rank that draws tokens keeps of a request: its parameters, and as tensors what changes its logits.

The tensors are made with the first token, so that an error in them shows while the request's own row is sampled.
"""

import math
from collections import deque
from collections.abc import Iterable
from functools import cached_property

import torch

from splitrank.serving.grammar.matcher import Matchers, TokenMatcher
from splitrank.serving.protocol.sampling_params import SamplingParams


class TokenCounts:
    """Distinct tokens and how often each was added. ``add`` changes one element in place."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._places = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
        self._ids = torch.tensor(list(self._places), dtype=torch.int64)
        self._counts = torch.ones(len(self._ids))

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):  # full: double the size
            room = max(16, place)
            self._ids = torch.cat((self._ids, torch.zeros(room, dtype=torch.int64)))
            self._counts = torch.cat((self._counts, torch.zeros(room)))
        self._ids[place] = token
        self._counts[place] += 1

    @property
    def ids(self) -> torch.Tensor:
        """[n] int64."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> torch.Tensor:
        """[n] float32."""
        return self._counts[: len(self._places)]


class SamplingState:
    """``seed`` and ``num_output`` determine the next draw. The prompt is kept only for a repetition penalty.
    ``matchers`` make what follows a grammar, which none but a rank that draws needs."""

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        eos_token_ids: tuple[int, ...],
        matchers: Matchers | None = None,
    ) -> None:
        self.params = params
        self._matchers = matchers
        self.num_output = 0
        self._has_repetition = params.repetition_penalty != 1.0
        self._has_counts = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self._prompt = prompt if self._has_repetition else []
        # What a bad word of several tokens may have begun with.
        longest = max(map(len, params.bad_words_token_ids), default=1)
        self._recent: deque[int] = deque(maxlen=longest - 1)
        # Banned before ``min_tokens``, since they would end the request.
        self._stop_ids = (*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids))

    @property
    def is_greedy(self) -> bool:
        return self.params.temperature == 0.0

    @property
    def seed(self) -> int:
        seed = self.params.seed
        assert seed is not None or self.is_greedy, "the front gives every sampled request a seed"
        return seed or 0

    @property
    def changes_logits(self) -> bool:
        params = self.params
        restricts = params.grammar or params.bad_words_token_ids or params.allowed_token_ids
        return bool(params.logit_bias or restricts or self._has_repetition or self._has_counts or self._bans_stops)

    @property
    def needs_host(self) -> bool:
        """Whether the host must see the logits: a device only draws."""
        return self.changes_logits or self.params.logprobs is not None

    def append(self, token: int) -> None:
        self.num_output += 1
        self._recent.append(token)
        if self._has_repetition:
            self._seen.add(token)
        if self._has_counts:
            self._output.add(token)
        if self.params.grammar:
            self._matcher.advance(token)

    def adjust_(self, logits: torch.Tensor) -> None:
        """Applies bias, the three penalties, the bans (of stop tokens before ``min_tokens``, of bad words), the grammar
        and the allowed tokens to logits [vocab]. Raises ``GrammarError``.

        Logits that hold NaN or infinity are not changed: a change could hide that the row must fail.
        """
        if not math.isfinite(logits.amax()):
            return
        params = self.params
        if params.logit_bias:
            logits.index_add_(0, *self._bias)
        if self._has_repetition:  # over prompt and output (Keskar et al., "CTRL", 2019)
            self._penalize_repetition(logits)
        if self._has_counts:  # over the output (OpenAI's)
            penalty = params.presence_penalty + params.frequency_penalty * self._output.counts
            logits.index_add_(0, self._output.ids, penalty, alpha=-1)
        if self._bans_stops:
            logits[list(self._stop_ids)] = -torch.inf
        if params.bad_words_token_ids:
            logits[self._ends_of_bad_words()] = -torch.inf
        if params.grammar:
            self._keep_to_grammar(logits)
        # Kept finite, also if every token is banned or a tiny penalty overflows: sampling subtracts the largest logit.
        limits = torch.finfo(logits.dtype)
        logits.clamp_(limits.min, limits.max)
        if params.allowed_token_ids:  # last: one of them is chosen, though all of them may be banned
            self._keep_allowed(logits)

    def _penalize_repetition(self, logits: torch.Tensor) -> None:
        values, penalty = logits.index_select(0, self._seen.ids), self.params.repetition_penalty
        changed = torch.where(values > 0, values / penalty, values * penalty)
        logits.index_copy_(0, self._seen.ids, changed)

    def _keep_to_grammar(self, logits: torch.Tensor) -> None:
        """Bans the tokens that the grammar does not allow, by arithmetic: filling under a mask takes ten times as long
        where allowed and other tokens alternate."""
        allowed = torch.from_numpy(self._matcher.allowed(len(logits))).float()
        largest = torch.finfo(logits.dtype).max
        logits.clamp_(min=-largest).add_(allowed - 1, alpha=largest)
        if logits.amax() < -largest / 2:  # nothing may follow but what min_tokens bans: the grammar goes first
            logits.add_(allowed, alpha=largest)

    def _ends_of_bad_words(self) -> list[int]:
        """Tokens that would complete one."""
        recent = tuple(self._recent)
        return [
            word[-1] for word in self.params.bad_words_token_ids if recent[len(recent) - len(word) + 1 :] == word[:-1]
        ]

    def _keep_allowed(self, logits: torch.Tensor) -> None:
        kept = logits.index_select(0, self._allowed)
        logits.fill_(-torch.inf).index_copy_(0, self._allowed, kept)

    @property
    def _bans_stops(self) -> bool:
        return self.num_output < self.params.min_tokens and bool(self._stop_ids)

    @cached_property
    def _bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        bias = self.params.logit_bias
        return torch.tensor(list(bias), dtype=torch.int64), torch.tensor(list(bias.values()), dtype=torch.float32)

    @cached_property
    def _allowed(self) -> torch.Tensor:
        return torch.tensor(self.params.allowed_token_ids, dtype=torch.int64)

    @cached_property
    def _matcher(self) -> TokenMatcher:
        assert self._matchers is not None, "this rank draws no tokens"
        return self._matchers.matcher(self.params.grammar)

    @cached_property
    def _seen(self) -> TokenCounts:
        seen = TokenCounts(self._prompt)
        self._prompt = []
        return seen

    @cached_property
    def _output(self) -> TokenCounts:
        return TokenCounts()
