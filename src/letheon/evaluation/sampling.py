"""Many answers to one prompt, drawn at temperature 1."""

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.evaluation.batches import StepProgress
from letheon.evaluation.decoding import Answer
from letheon.evaluation.generation import Generation, answers_from, decoded
from letheon.processes import shared

BATCHES_AT_ONCE = 8
"""Batches of answers that are drawn by one generator."""
_NEXT_SEED = 1_000_003
"""Between the seeds of two generators."""


def samples_from(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    *,
    num_samples: int,
    seed: int,
    to_match: Sequence[str | None] | None = None,
    rooms: Sequence[int] | None = None,
    more_ends: Collection[int] = (),
    max_new_tokens: int = 256,
    batch_size: int = 32,
    names: Sequence[str] | None = None,
    progress: StepProgress | None = None,
) -> list[list[Generation]]:
    """Return `num_samples` continuations of each prompt, drawn at temperature 1 from the whole vocabulary.

    Samples of one prompt that run together share the pass over it. `seed` fixes all of them for one batch size and any
    number of processes; `rooms` are the most new tokens of each prompt, where that is less than `max_new_tokens`. All
    else is as in `generate_from`.

    Raises:
        EvaluationError: as `generate_from`.
    """

    def drawn(start: int) -> list[Answer]:
        """Return all samples of the prompts from `start` on that go together."""
        places = [place for place in range(len(rows))[start : start + num_prompts] for _ in range(num_samples)]
        return answers_from(
            model,
            tokenizer,
            [rows[place] for place in places],
            to_match=None if to_match is None else [to_match[place] for place in places],
            rooms=None if rooms is None else [rooms[place] for place in places],
            more_ends=more_ends,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            names=None if names is None else [names[place] for place in places],
            generator=torch.Generator().manual_seed(seed + _NEXT_SEED * start),
        )

    # One generator for all would have to draw in order: no process could begin before another has ended.
    num_prompts = max(1, BATCHES_AT_ONCE * batch_size // num_samples)
    starts = range(0, len(rows), num_prompts)
    counts = [num_samples * len(range(len(rows))[start : start + num_prompts]) for start in starts]
    said = decoded(
        tokenizer, [answer for part in shared(starts, drawn, counts=counts, progress=progress) for answer in part]
    )
    return [said[start : start + num_samples] for start in range(0, len(said), num_samples)]
