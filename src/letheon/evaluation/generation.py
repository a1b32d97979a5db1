"""Answers to prompts: raw ones, as the official script gives them to the model, or tokens in the rows' form.

They are greedy, but for those of sampling.py.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.devices import bring, widest
from letheon.engine.patches.rotation import changes_rotation
from letheon.errors import EvaluationError
from letheon.evaluation.batches import StepProgress, position_limit, reading, token_ids
from letheon.evaluation.decoding import Answer, Choose, can_be_batched, decode, likeliest
from letheon.evaluation.matching import can_still_match, decodes_in_order
from letheon.evaluation.transformers_loop import batches_up_to, extend
from letheon.model.loading import context_length
from letheon.processes import shared, shares_by_size

FIRST_CUT = 80
"""New tokens after which rows are regrouped, so that one does not hold up many (models unknown to `decode`)."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model said after a prompt."""

    text: str
    is_cut: bool = False
    """Whether it was left before its end, because however it went on it could not match."""
    has_ended: bool | None = None
    """Whether it ended by itself; None where it was left before that."""


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    exact: bool = False,
    names: Sequence[str] | None = None,
    progress: StepProgress | None = None,
) -> list[str]:
    """Return the whole greedy continuation of each prompt: the texts of `generate`, to which nothing is to match.

    Raises:
        EvaluationError: a prompt has no tokens, or leaves no room in the model's context.
    """
    found = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        exact=exact,
        names=names,
        progress=progress,
    )
    return [generation.text for generation in found]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    to_match: Sequence[str | None] | None = None,
    uncut_tokens: Sequence[int] | None = None,
    guesses: Sequence[str] | None = None,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    exact: bool = False,
    names: Sequence[str] | None = None,
    progress: StepProgress | None = None,
) -> list[Generation]:
    """Return the greedy continuation of each prompt, in the order of `prompts` (see `generate_from`).

    A prompt is tokenised as it is, with the tokenizer's defaults. `guesses` are what the model may say to each prompt
    after a space.

    Raises:
        EvaluationError: a prompt has no tokens, or leaves no room in the model's context.
    """
    rows = token_ids(tokenizer, prompts)
    return generate_from(
        model,
        tokenizer,
        rows,
        to_match=to_match,
        uncut_tokens=uncut_tokens,
        guesses=None if guesses is None else _guessed(tokenizer, prompts, guesses, rows),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        exact=exact,
        names=names,
        progress=progress,
    )


def generate_from(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    *,
    to_match: Sequence[str | None] | None = None,
    uncut_tokens: Sequence[int] | None = None,
    guesses: Sequence[list[int]] | None = None,
    more_ends: Collection[int] = (),
    max_new_tokens: int = 256,
    batch_size: int = 32,
    exact: bool = False,
    names: Sequence[str] | None = None,
    progress: StepProgress | None = None,
) -> list[Generation]:
    """Return the greedy continuation of each prompt, given as tokens, in the order of `rows`.

    The ends of the model's generation settings (or else its end of sequence) and `more_ends` are the only stops; the
    checkpoint's own sampling and repetition settings have no say. New tokens are decoded without special tokens and
    with spaces before punctuation cleaned up. `exact` decodes one row at a time without padding, each to its end;
    otherwise rows share a batch, which gives the same text except where two tokens are equally likely to rounding (seen
    in bfloat16, not in float32). In a model with a learned position table a continuation ends where the table does.

    `to_match` has for each prompt an answer that counts only if it is matched exactly, or None. Such a row is cut as
    soon as nothing that could follow would match (`can_still_match`), so no exact match changes; with a tokenizer whose
    texts may change as they grow no row is cut. `uncut_tokens` has for each prompt how many new tokens it gets before
    it is cut, 1 by default. `guesses` are tokens that the model may say next: the more of them it says, the less time
    it takes; the text is the same. `names` are what an error calls the prompts (row ids). No prompts give no
    generations.

    Raises:
        EvaluationError: a prompt has no tokens, or leaves no room in the model's context.
    """
    answers = answers_from(
        model,
        tokenizer,
        rows,
        to_match=to_match,
        uncut_tokens=uncut_tokens,
        guesses=guesses,
        more_ends=more_ends,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        exact=exact,
        names=names,
        progress=progress,
    )
    return decoded(tokenizer, answers)


def decoded(tokenizer: PreTrainedTokenizerBase, answers: Sequence[Answer]) -> list[Generation]:
    """Return answers as text."""
    return [
        Generation(_decode(tokenizer, answer.new), answer.is_cut, None if answer.is_cut else answer.has_ended)
        for answer in answers
    ]


def answers_from(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    *,
    to_match: Sequence[str | None] | None = None,
    uncut_tokens: Sequence[int] | None = None,
    guesses: Sequence[list[int]] | None = None,
    more_ends: Collection[int] = (),
    max_new_tokens: int = 256,
    batch_size: int = 32,
    exact: bool = False,
    names: Sequence[str] | None = None,
    progress: StepProgress | None = None,
    rooms: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> list[Answer]:
    """Return the continuations of `generate_from` as tokens, the end of those that have ended included.

    With a `generator` they are drawn, as in sampling.py, which says what `rooms` are.

    Raises:
        EvaluationError: as `generate_from`.
    """
    _check(rows, names or [f"prompt {i + 1}" for i in range(len(rows))], context_length(model.config))
    with reading(model) as plain_model:
        rooms = _rooms(plain_model, rows, [max_new_tokens] * len(rows) if rooms is None else rooms, max_new_tokens)
        wanted = to_match if to_match is not None and not exact and decodes_in_order(tokenizer) else None
        answers = _begin(rows, rooms, guesses=None if exact else guesses, wanted=wanted, uncut_tokens=uncut_tokens)
        lengths = [len(row) + room for row, room in zip(rows, rooms, strict=True)]
        is_plain = exact or not can_be_batched(plain_model) or changes_rotation(plain_model.config, lengths)
        ends = sorted({*_end_tokens(plain_model, tokenizer), *more_ends})
        run = _Run(plain_model, tokenizer, ends, len(answers), progress, generator)

        def complete(share: Sequence[int]) -> list[Answer]:
            own = [answers[number] for number in share]
            if is_plain:
                run.through_transformers(own, max_new_tokens, batch_size=1 if exact else batch_size, whole=exact)
            else:
                run.in_batches(own, batch_size=batch_size)
            return own

        if generator is not None:  # draws are made one after another
            return complete(range(len(answers)))
        return _completed_together(lengths, complete)


def _rooms(model: PreTrainedModel, rows: Sequence[list[int]], rooms: Sequence[int], max_new_tokens: int) -> list[int]:
    """How many new tokens each row may get: those asked for that the model has positions for."""
    limit = position_limit(model) or inf
    return [int(min(max_new_tokens, room, limit - len(row))) for row, room in zip(rows, rooms, strict=True)]


def _begin(
    rows: Sequence[list[int]],
    rooms: Sequence[int],
    *,
    guesses: Sequence[list[int]] | None,
    wanted: Sequence[str | None] | None,
    uncut_tokens: Sequence[int] | None,
) -> list[Answer]:
    """The answers before their first token."""
    guesses = [[]] * len(rows) if guesses is None else guesses
    wanted = [None] * len(rows) if wanted is None else wanted
    uncut_tokens = uncut_tokens or [1] * len(rows)
    return [
        Answer(row, room, guess=guess[: room - 1], wanted=text, uncut_tokens=uncut)
        for row, room, guess, text, uncut in zip(rows, rooms, guesses, wanted, uncut_tokens, strict=True)
    ]


def _completed_together(lengths: Sequence[int], complete: Callable[[Sequence[int]], list[Answer]]) -> list[Answer]:
    """All answers in order, of which each process completes some."""
    shares = shares_by_size(lengths)
    found: dict[int, Answer] = {}
    for share, own in zip(shares, shared(shares, complete), strict=True):
        found.update(zip(share, own, strict=True))
    return [found[number] for number in range(len(lengths))]


@dataclass(slots=True)
class _Run:
    """One model at work on some answers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: list[int]
    num_answers: int
    progress: StepProgress | None
    generator: torch.Generator | None = None
    num_done: int = 0

    @property
    def choose(self) -> Choose:
        """How the next token is chosen."""
        return likeliest if self.generator is None else partial(draw, generator=self.generator)

    def judge(self, answers: Sequence[Answer]) -> None:
        """Cut the answers that can no longer match."""
        judged = [answer for answer in answers if answer.wanted is not None]
        if not judged:
            return
        # Spaces are not cleaned up: they do not count here.
        texts = self.tokenizer.batch_decode(
            [answer.new for answer in judged], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for answer, text in zip(judged, texts, strict=True):
            is_long_enough = len(answer.new) >= answer.uncut_tokens
            answer.is_cut = is_long_enough and not can_still_match(text, cast("str", answer.wanted))

    def count(self, num_more: int) -> None:
        """Report answers that are complete."""
        self.num_done += num_more
        if self.progress is not None:
            self.progress(self.num_done, self.num_answers)

    def in_batches(self, answers: Sequence[Answer], *, batch_size: int) -> None:
        """Generate in batches that are refilled as answers end."""
        decode(
            self.model, answers, ends=self.ends, batch_size=batch_size, judge=self.judge, on_done=self.count,
            choose=self.choose,
        )  # fmt: skip

    def through_transformers(
        self, answers: Sequence[Answer], max_new_tokens: int, *, batch_size: int, whole: bool
    ) -> None:
        """Generate with transformers' own loop: rows of equal length, until the last of a batch has ended."""
        for cut in (max_new_tokens,) if whole else (min(FIRST_CUT, max_new_tokens), max_new_tokens):
            for batch in batches_up_to(answers, cut, batch_size=batch_size):
                extend(self.model, batch, cut, self.ends, self.generator)
                self.judge([answer for answer in batch if answer.is_open])
                self.count(sum(not answer.is_open for answer in batch))


def _guessed(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], guesses: Sequence[str], rows: Sequence[list[int]]
) -> list[list[int]]:
    """The tokens of each guess where they follow its prompt; none where the two share a token."""
    texts = [
        prompt + guess if prompt[-1:].isspace() else f"{prompt} {guess}"
        for prompt, guess in zip(prompts, guesses, strict=True)
    ]
    joined = token_ids(tokenizer, texts)
    return [tokens[len(row) :] if tokens[: len(row)] == row else [] for tokens, row in zip(joined, rows, strict=True)]


def draw(logits: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return a token (N,) drawn from the softmax of each row of logits (N, V); a broken row gives any token.

    `generator` is one of the host, so that the same logits give the same tokens on every device.
    """
    # Ten times as fast on a CPU as torch.multinomial. Without float64 a sum over a large vocabulary would be too rough.
    sums = widest(logits).float().nan_to_num(nan=0.0).softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    places = bring(torch.rand(len(sums), 1, generator=generator, dtype=torch.float64), sums.device) * sums[:, -1:]
    drawn = torch.searchsorted(sums, places, right=True).squeeze(-1).clamp(max=sums.shape[-1] - 1)
    return bring(drawn, logits.device)


def _check(rows: Sequence[Sequence[int]], names: Sequence[str], context: int | None) -> None:
    for row, name in zip(rows, names, strict=True):
        if not row:
            raise EvaluationError(f"{name}: the prompt has no tokens, so nothing can be generated; give it some text")
        if context is not None and len(row) >= context:
            raise EvaluationError(
                f"{name}: the prompt has {len(row)} tokens, but the model's context is {context} tokens, and the "
                f"answer needs some of them; shorten the prompt, leave the row out, or evaluate a model with a longer "
                "context"
            )


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    settings: Any
    for settings in (model.generation_config, model.config, tokenizer):
        found = getattr(settings, "eos_token_id", None)
        if found is not None:
            return list(found) if isinstance(found, (list, tuple)) else [int(found)]
    return []


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    text = cast("str", tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    # transformers 5 ignores clean_up_tokenization_spaces=True for BPE tokenizers; that of the official script did not.
    return tokenizer.clean_up_tokenization(text)
