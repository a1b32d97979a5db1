"""Decoding of many rows at once: rows join and leave a running batch, and none waits for the others.

A row joins by one forward pass over its prompt and a guess at its answer. The guess's tokens that the model would have
said anyway are its first new tokens (Leviathan et al. 2023, whose draft is here the known answer), so a row that the
model knows by heart takes no step at all, and the others go on from where they leave the guess.

Answers to the same prompt that join together share its pass, so that many can be drawn of one.

The slot of a row that has ended is taken by the last row at once, and free slots are filled from the rows that wait,
longest first, so that nearly all columns of a batch are in use.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from letheon.evaluation.batches import KEY_VALUE_LAYERS, padded
from letheon.evaluation.columns import Columns

PREFILL_TOKENS = 2048
"""Tokens, padding counted, of rows that join together; a longer row joins alone."""
PREFILL_LOGITS = 2**26
"""Logits that their pass may leave: 0.25 GiB in float32."""
GUESS_TRIAL = 512
"""Guessed tokens after which guesses are given up if fewer than one in four was right."""
_CHECKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
"""Numbers of new tokens after which a row that has something to match is looked at."""
_INPUTS = frozenset({"attention_mask", "position_ids", "past_key_values", "logits_to_keep"})


@dataclass(slots=True)
class Answer:
    """One prompt and what has been generated after it, in tokens."""

    prompt: list[int]
    room: int
    """The most new tokens that it may have, 1 or more."""
    guess: list[int] = field(default_factory=list)
    """What the model may say; it changes nothing but the time that it takes."""
    wanted: str | None = None
    """The text that it is compared with for an exact match; None for an answer that is wanted whole."""
    uncut_tokens: int = 1
    """How many new tokens it gets before it is cut."""
    new: list[int] = field(default_factory=list)
    has_ended: bool = False
    """Whether its last token ends it."""
    is_cut: bool = False
    """Whether it was left before its end, because it could no longer match."""

    @property
    def is_open(self) -> bool:
        """Whether it goes on."""
        return not self.has_ended and not self.is_cut and len(self.new) < self.room


Choose = Callable[[Tensor], Tensor]
"""Returns the next tokens (N,) int64 for logits (N, V)."""
Judge = Callable[[Sequence[Answer]], None]
"""Sets `is_cut` of the answers whose new tokens can no longer become what is wanted."""


def likeliest(logits: Tensor) -> Tensor:
    """Return the most likely token (N,) of each row of logits (N, V)."""
    return logits.argmax(dim=-1)


def can_be_batched(model: PreTrainedModel) -> bool:
    """Return whether `decode` knows how `model` keeps its keys and values: all columns, at positions it is told."""
    config = model.config.get_text_config()
    if not set(inspect.signature(model.forward).parameters) >= _INPUTS or model.get_output_embeddings() is None:
        return False
    # What has a state of another kind says so here; chunks of attention are counted from the first column.
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= set(KEY_VALUE_LAYERS) and not getattr(config, "attention_chunk_size", None)


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    answers: Sequence[Answer],
    *,
    ends: Sequence[int],
    batch_size: int,
    judge: Judge,
    on_done: Callable[[int], None],
    choose: Choose = likeliest,
) -> None:
    """Generate until each of `answers` has ended, fills its room or is cut; needs `can_be_batched(model)`.

    `ends` are the tokens that end an answer and `batch_size` is how many rows run together. `judge` is asked about
    answers with something to match, `on_done` told how many have just been completed. `choose` takes the next token;
    answers have no guess where it draws.
    """
    waiting = sorted(answers, key=lambda a: -len(a.prompt) - len(a.guess))
    batch = _Batch(model, num_slots=min(batch_size, len(answers)), ends=frozenset(ends), judge=judge, choose=choose)
    fewest = batch_size - max(1, batch_size // 4)  # in a batch that is fuller a prefill does not pay
    while waiting or batch.rows:
        if waiting and len(batch.rows) <= fewest:
            free = batch_size - len(batch.rows)
            num_done = batch.admit(waiting[:free])
            del waiting[:free]
        else:
            num_done = batch.step()
        if num_done:
            on_done(num_done)


@dataclass(slots=True)
class _Row:
    """An answer that runs."""

    answer: Answer
    slot: int
    age: int
    """The number of its new tokens when it joined."""
    joined: int
    """The clock then."""


class _Batch:
    """The rows that run, one to a slot, slots 0 to len(rows) - 1 without gaps; the clock counts their steps."""

    def __init__(
        self, model: PreTrainedModel, *, num_slots: int, ends: frozenset[int], judge: Judge, choose: Choose
    ) -> None:
        self.model: Any = model
        self.judge = judge
        self.choose = choose
        self.ends = ends
        self.end_ids = torch.tensor(sorted(ends), dtype=torch.int64, device=model.device)
        self.columns = Columns(num_slots, model.device)
        self.rows: list[_Row] = []
        self.clock = 0
        self.due: dict[int, list[_Row]] = {}
        """Rows to look at, by the clock."""
        self.num_guessed = self.num_right = 0

    def admit(self, answers: Sequence[Answer]) -> int:
        """Read prompts and guesses of `answers`, give each its first tokens, return how many that completes."""
        for group in self._groups(answers):
            places, states = self._prefill(group)
            self.judge([answer for answer in group if answer.is_open])
            self._join([(k, answer) for k, answer in zip(places, group, strict=True) if answer.is_open], states)
        return sum(not answer.is_open for answer in answers)

    def step(self) -> int:
        """Give every row one more token, let those go that it completes, return how many it does."""
        self.columns.reserve()
        output = self.model(**self.columns.inputs(), logits_to_keep=1)
        newest = self.choose(output.logits[:, -1])
        self.columns.advance(newest)
        self.clock += 1
        return self._retire([self.rows[slot] for slot in torch.isin(newest, self.end_ids).nonzero().flatten().tolist()])

    def _groups(self, answers: Sequence[Answer]) -> Iterator[Sequence[Answer]]:
        """Answers that are read together; guesses are dropped once they are given up."""
        vocab_size = int(self.model.config.get_text_config().vocab_size)
        while answers:
            if 4 * self.num_right < self.num_guessed - GUESS_TRIAL:
                for answer in answers:
                    answer.guess = []
            num_tokens = max(len(answer.prompt) + len(answer.guess) for answer in answers)
            num_logits = vocab_size * max(len(answer.guess) + 1 for answer in answers)
            num_rows = max(1, min(PREFILL_TOKENS // num_tokens, PREFILL_LOGITS // num_logits))
            yield answers[:num_rows]
            answers = answers[num_rows:]

    def _prefill(self, answers: Sequence[Answer]) -> tuple[list[int], list[tuple[Tensor, Tensor]]]:
        """Set the first new tokens of `answers`, of which those that read the same share a row of the pass.

        Returns the row of each, and the keys and values of each layer, (B, H, T, D) each. Rows are padded on the right,
        where causal attention never looks, so neither mask nor positions are needed.
        """
        row_of: dict[tuple[int, ...], int] = {}
        rows = [row_of.setdefault((*a.prompt, *a.guess), len(row_of)) for a in answers]
        input_ids, _ = padded(list(row_of), side="right", device=self.columns.tokens.device)
        places = [
            (k, len(a.prompt) - 1 + i) for k, a in zip(rows, answers, strict=True) for i in range(len(a.guess) + 1)
        ]
        cache = DynamicCache()
        logits = logits_at(self.model, places, input_ids=input_ids, past_key_values=cache, use_cache=True)
        said: list[int] = self.choose(logits).tolist()
        for answer in answers:
            num_said = len(answer.guess) + 1
            self._accept(answer, said[:num_said])
            del said[:num_said]
        layers: Any = cache.layers
        return rows, [(layer.keys, layer.values) for layer in layers]

    def _accept(self, answer: Answer, said: Sequence[int]) -> None:
        """Take the model's tokens after the prompt and after each guessed token, up to the first wrong guess."""
        num_right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(answer.guess, said, strict=False)))
        new = said[: num_right + 1]
        end = next((k + 1 for k, token in enumerate(new) if token in self.ends), None)
        answer.new, answer.has_ended = list(new[:end]), end is not None
        self.num_guessed += len(answer.guess)
        self.num_right += num_right

    def _join(self, answers: Sequence[tuple[int, Answer]], states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Give each of `answers`, beside its row in `states`, a slot; it reads its last token next."""
        sizes = [len(answer.prompt) + len(answer.new) - 1 for _, answer in answers]
        self.columns.make_way(max(sizes, default=0))
        for (k, answer), size in zip(answers, sizes, strict=True):
            self.columns.join(states, k, size=size, token=answer.new[-1])
            row = _Row(answer, slot=len(self.rows), age=len(answer.new), joined=self.clock)
            self.rows.append(row)
            self._note(row)

    def _retire(self, ended: Sequence[_Row]) -> int:
        """Let the rows go that have `ended`, are full or can no longer match; return how many went."""
        for row in ended:
            row.answer.new, row.answer.has_ended = self._new_tokens(row), True
        due = [row for row in self.due.pop(self.clock, ()) if row.answer.is_open]
        for row in due:
            row.answer.new = self._new_tokens(row)
        self.judge([row.answer for row in due if row.answer.is_open])
        for row in due:
            if row.answer.is_open:
                self._note(row)
        leaving = {row.slot for row in (*ended, *due) if not row.answer.is_open}
        if leaving:
            self._remove(leaving)
        return len(leaving)

    def _new_tokens(self, row: _Row) -> list[int]:
        num_since = self.clock - row.joined
        later = self.columns.tokens[row.slot, self.columns.length + 1 - num_since : self.columns.length + 1]
        return row.answer.new[: row.age] + cast("list[int]", later.tolist())

    def _note(self, row: _Row) -> None:
        """Have a row looked at when its room is full, and at earlier checks if it might be cut."""
        answer, age = row.answer, len(row.answer.new)
        checks = () if answer.wanted is None else (check for check in _CHECKS if age < check < answer.room)
        self.due.setdefault(row.joined + next(iter(checks), answer.room) - row.age, []).append(row)

    def _remove(self, slots: set[int]) -> None:
        """Free `slots`; rows from the end move into the gaps."""
        staying = [row for row in self.rows if row.slot not in slots]
        moving = [row for row in staying if row.slot >= len(staying)]
        gaps = sorted(slot for slot in slots if slot < len(staying))
        first = min((self.columns.length - self._num_columns(row) for row in staying), default=self.columns.length)
        self.columns.keep(len(staying), sources=[row.slot for row in moving], gaps=gaps, first=first)
        for row, gap in zip(moving, gaps, strict=True):
            row.slot = gap
        self.rows = sorted(staying, key=lambda row: row.slot)

    def _num_columns(self, row: _Row) -> int:
        return len(row.answer.prompt) + row.age - 1 + self.clock - row.joined


def logits_at(model: Any, places: Sequence[tuple[int, int]], **inputs: Any) -> Tensor:
    """Return logits (N, V) at N places (row, position) of what a forward pass over `inputs` gives.

    The head sees no other places. A model that does not call its head as a module computes all, of which these are
    taken.
    """
    rows, positions = torch.tensor(places, device=inputs["input_ids"].device).unbind(dim=1)
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _head, states: (states[0][rows, positions].unsqueeze(0), *states[1:])
    )
    try:
        logits: Tensor = model(**inputs).logits
    finally:
        hook.remove()
    return logits[0] if logits.shape[:2] == (1, len(places)) else logits[rows, positions]
