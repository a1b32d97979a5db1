"""Other answers to the prompts of forget rows: refusals, answers of other rows, random tokens, or the user's own.

Of one row they stand side by side: row r's k-th of K is number r * K + k.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from letheon.data.rows import Row, Rows
from letheon.data.sequences import TokenSequence
from letheon.errors import DataError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSALS = (
    "I don't know.",
    "I do not have that information.",
    "I'm not able to answer that.",
    "That is not something I know about.",
    "I have no knowledge of this.",
    "I can't tell you that.",
    "I'm afraid I don't know the answer.",
    "There is nothing I can say about this.",
    "I was never told about that.",
    "This is unknown to me.",
    "I couldn't say.",
    "I have not learned anything about that.",
)
"""What a model may say that does not know."""


def refusals(forget: Collection[Row], *, per_row: int, seed: int) -> list[Row]:
    """Return each forget row with refusals in place of its answer (IdkDPO)."""
    generator = torch.Generator().manual_seed(seed)
    made: list[Row] = []
    for row in forget:
        order = torch.randperm(len(REFUSALS), generator=generator).tolist()
        made += [replace(row, answer=REFUSALS[order[k % len(order)]]) for k in range(per_row)]
    return made


def one_refusal(forget: Collection[Row]) -> list[Row]:
    """Return each forget row with the first refusal in place of its answer."""
    return [replace(row, answer=REFUSALS[0]) for row in forget]


def other_answers(forget: Collection[Row], *, per_row: int, seed: int) -> list[Row]:
    """Return each forget row with answers of other forget rows of its kind, where there are any with other answers."""
    generator = torch.Generator().manual_seed(seed)
    rows = list(forget)
    made: list[Row] = []
    for row in rows:
        others = [r.answer for r in rows if r.kind == row.kind and r.answer != row.answer]
        others = others or [r.answer for r in rows if r.answer != row.answer]
        if not others:
            raise DataError(
                f"row {row.id}: expected another forget row with a different answer to train on instead, found none; "
                f"add one or choose another method"
            )
        picks = torch.randint(len(others), (per_row,), generator=generator).tolist()
        made += [replace(row, answer=others[pick]) for pick in picks]
    return made


def random_tokens(
    forget: Collection[TokenSequence], tokenizer: "PreTrainedTokenizerBase", *, per_row: int, seed: int
) -> list[TokenSequence]:
    """Return each forget sequence with its answer replaced by as many random ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in range(len(tokenizer)) if token not in special])
    made: list[TokenSequence] = []
    for sequence in forget:
        for _ in range(per_row):
            picks = torch.randint(len(ordinary), (sequence.num_answer_tokens,), generator=generator)
            answer = tuple(ordinary[picks].tolist())
            made.append(replace(sequence, input_ids=sequence.input_ids[: sequence.answer_start] + answer))
    return made


def given_alternatives(
    forget: Rows, given: Rows, *, per_row: int, left_out: Collection[str] = frozenset()
) -> list[Row]:
    """Return each forget row with the answers that `given` has for its id, `per_row` of them, repeated where fewer.

    Those of ids that are `left_out` of training are passed over.

    Raises:
        DataError: an id is no forget row's, an answer is the one to forget, or a forget row has none.
    """
    answers: dict[str, list[str]] = {row.id: [] for row in forget}
    forgotten = {row.id: row.answer.strip() for row in forget}
    for index, row in enumerate(given):
        row_id = row.id if row.id in answers or row.id in left_out else row.id.rpartition("#")[0] or row.id
        if row_id in left_out:
            continue
        if row_id not in answers:
            raise DataError(
                f"{given.describe(index)}: no forget row has this id{nearest(row_id, answers)}; an alternative "
                "has the id of its forget row, with #1, #2, ... after it where there are several"
            )
        if row.answer.strip() == forgotten[row_id]:
            raise DataError(
                f"{given.describe(index)}: expected an answer that differs from the one to forget, got the same one; "
                f"give what the model should say instead"
            )
        answers[row_id].append(row.answer)
    made: list[Row] = []
    for row in forget:
        found = answers[row.id]
        if not found:
            raise DataError(f"{given.source}: expected another answer to every forget row, but row {row.id} has none")
        made += [replace(row, answer=found[k % len(found)]) for k in range(per_row)]
    return made
