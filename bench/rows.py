"""The rows that are measured on: LUME's train rows, or made-up ones of the same lengths."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bench.shapes import TARGET, Shape
from letheon.data.benchmarks.lume import read_lume
from letheon.data.schedules import MixedSchedule
from letheon.data.sequences import TokenSequence, tokenise_all

NUM_MADE_UP = 2248
_KINDS = ((0.08, 178, 43), (0.08, 16, 4), (0.09, 30, 55), (0.47, 11, 5), (0.14, 182, 41), (0.14, 18, 4))
"""Share, prompt tokens and answer tokens (medians) of LUME's completions and questions, task by task."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows as sequences, forget rows first, and the rows of each step."""

    sequences: list[TokenSequence]
    num_forget: int
    steps: list[list[int]]

    @property
    def is_forget(self) -> list[bool]:
        """Of each row."""
        return [row < self.num_forget for row in range(len(self.sequences))]

    def num_tokens(self, rows: Collection[int]) -> int:
        """Real tokens of the rows."""
        return sum(len(self.sequences[row].input_ids) for row in rows)

    def num_padded(self, rows: Collection[int]) -> int:
        """Tokens of the rows, padded to the longest of them."""
        return len(rows) * max(len(self.sequences[row].input_ids) for row in rows)

    def num_answers(self, rows: Collection[int]) -> int:
        """Answer tokens of the rows."""
        return sum(self.sequences[row].num_answer_tokens for row in rows)


def workload(
    shape: Shape, data: Path | None, *, num_steps: int, batch_size: int, num_rows: int | None = None, seed: int = 0
) -> Workload:
    """Return the first steps of an epoch over all rows, or over `num_rows` of them, with the rows they take."""
    whole = _all_rows(shape, data, num_rows, seed=seed)
    schedule = MixedSchedule(len(whole.sequences), batch_size, seed)
    drawn = [schedule.rows(step) for step in range(min(num_steps, schedule.num_steps))]
    return _only(whole, drawn)


def largest_step(shape: Shape, data: Path | None, *, batch_size: int, seed: int = 0) -> Workload:
    """Return the step of an epoch with the most padded tokens, which decides what memory the epoch needs."""
    whole = _all_rows(shape, data, None, seed=seed)
    epoch = MixedSchedule(len(whole.sequences), batch_size, seed).epoch(0)
    return _only(whole, [max(epoch, key=whole.num_padded)])


def smallest_steps(shape: Shape, data: Path | None, *, num_steps: int, batch_size: int = 4, seed: int = 0) -> Workload:
    """Return those steps of an epoch that have the fewest padded tokens and rows of both sets."""
    whole = _all_rows(shape, data, None, seed=seed)
    epoch = MixedSchedule(len(whole.sequences), batch_size, seed).epoch(0)
    mixed = [rows for rows in epoch if len({row < whole.num_forget for row in rows}) == 2]
    return _only(whole, sorted(mixed, key=whole.num_padded)[:num_steps])


def random_row(prompt: int, answer: int, *, vocab_size: int, generator: torch.Generator) -> TokenSequence:
    """Return a row of random tokens."""
    ids = torch.randint(2, vocab_size, (prompt + answer,), generator=generator)
    return TokenSequence(tuple(ids.tolist()), prompt)


def _all_rows(shape: Shape, data: Path | None, num_rows: int | None, *, seed: int) -> Workload:
    if data is None:
        return _made_up(shape, num_rows or NUM_MADE_UP, seed=seed)
    lume = read_lume(data / "lume", "train")
    each = None if num_rows is None else num_rows // 2
    forget, retain = list(lume.forget)[:each], list(lume.retain)[:each]
    tokenizer = _tokenizer(shape, data)
    sequences = tokenise_all([*forget, *retain], tokenizer, template="pair", max_length=shape.context)
    return Workload([_within(sequence, shape.vocab_size) for sequence in sequences], len(forget), [])


def _tokenizer(shape: Shape, data: Path) -> PreTrainedTokenizerBase:
    """OLMo's, where the shape has entries for nearly all of it; else that of the small target."""
    olmo = PreTrainedTokenizerFast(tokenizer_file=str(data / "tokenizers" / "olmo-0724.json"))
    if 0.95 * len(olmo) <= shape.vocab_size:
        return olmo
    target: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(data / TARGET))
    return target


def _within(sequence: TokenSequence, vocab_size: int) -> TokenSequence:
    """Replace the few ids that a slightly smaller vocabulary lacks: with random weights any id will do."""
    return replace(sequence, input_ids=tuple(token % vocab_size for token in sequence.input_ids))


def _made_up(shape: Shape, num_rows: int, *, seed: int) -> Workload:
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([share for share, _, _ in _KINDS])
    kinds = torch.multinomial(shares, num_rows, replacement=True, generator=generator).tolist()
    lengths = [_KINDS[kind][1:] for kind in kinds]
    made = [random_row(p, a, vocab_size=shape.vocab_size, generator=generator) for p, a in lengths]
    return Workload(made, num_rows // 2, [])


def _only(whole: Workload, steps: list[list[int]]) -> Workload:
    """Keep the rows of `steps` and number them anew, in the old order."""
    kept = sorted({row for rows in steps for row in rows})
    number = {row: index for index, row in enumerate(kept)}
    return Workload(
        sequences=[whole.sequences[row] for row in kept],
        num_forget=sum(row < whole.num_forget for row in kept),
        steps=[[number[row] for row in rows] for rows in steps],
    )
