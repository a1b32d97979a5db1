"""What one model says to its rows, asked in their form, and what the text of a file costs it.

python -m bench.real.ask --model DIR --before DIR --forget FILE --retain FILE --template FORM --text FILE --json FILE
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel

from bench.text import text_loss
from letheon.data.alternatives import REFUSALS
from letheon.data.rows import Row, read_rows
from letheon.data.sequences import TokenSequence, tokenise_all
from letheon.evaluation.fluency import Said, answer_losses, fluency
from letheon.evaluation.generation import answers_from
from letheon.evaluation.predicting import predict
from letheon.model.loading import LoadedModel, load_model
from letheon.storage.files import write_json

_UNLIMITED = 2**31


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model said to some rows."""

    texts: list[str]
    fluency: dict[str, float | None]
    """Numbers of `Fluency` by name."""

    @property
    def num_refused(self) -> int:
        """How many answers are the refusal that a run teaches, word for word."""
        return sum(text == REFUSALS[0] for text in self.texts)


def main(arguments: list[str] | None = None) -> None:
    """Ask one model and write what it said and scored."""
    given = _parse(arguments)
    loaded = load_model(given.model, dtype="auto")
    before = load_model(given.before, dtype="auto").model
    sides = {"forget": list(read_rows(given.forget)), "retain": list(read_rows(given.retain))}
    found: dict[str, Any] = {
        name: ask_rows(loaded, before, rows, name, template=given.template, max_new_tokens=given.max_new_tokens)
        for name, rows in sides.items()
    }
    found["text"] = text_loss(loaded, given.text, num_tokens=given.text_tokens)
    write_json(given.json, found)


def ask_rows(
    loaded: LoadedModel, before: PreTrainedModel, rows: Sequence[Row], side: str, *, template: str, max_new_tokens: int
) -> dict[str, Any]:
    """Return the recall of rows asked in their form: mean ROUGE-L recall, and the share given word for word."""
    answered = answers_to(loaded, before, rows, template=template, max_new_tokens=max_new_tokens)
    scored = [predict(row, side, text) for row, text in zip(rows, answered.texts, strict=True)]
    return {
        "num_rows": len(rows),
        "recall": fmean(one.rouge_l_recall for one in scored),
        "whole": fmean(one.exact_match for one in scored),
        "num_refused": answered.num_refused,
        **answered.fluency,
        "answers": [{"id": one.id, "prompt": one.prompt, "answer": one.generation} for one in scored],
    }


def answers_to(
    loaded: LoadedModel, before: PreTrainedModel, rows: Sequence[Row], *, template: str, max_new_tokens: int
) -> Answered:
    """Return what a model says to rows in a form, decoded greedily, and how fluent the model `before` finds it."""
    sequences = tokenise_all(rows, loaded.tokenizer, template=template, max_length=_UNLIMITED)
    prompts = [list(one.input_ids[: one.answer_start]) for one in sequences]
    answers = answers_from(
        loaded.model, loaded.tokenizer, prompts, more_ends=_ends(sequences), max_new_tokens=max_new_tokens
    )
    new = [answer.new[:-1] if answer.has_ended else answer.new for answer in answers]
    said = [Said(ids, has_ended=answer.has_ended) for ids, answer in zip(new, answers, strict=True)]
    texts = [str(loaded.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in new]
    return Answered(texts, fluency(said, losses_before=answer_losses(before, prompts, new)).flat())


def _ends(sequences: Sequence[TokenSequence]) -> set[int]:
    return {one.end[-1] for one in sequences if one.end}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--before", required=True, help="the model whose loss says how fluent answers are")
    parser.add_argument("--forget", required=True)
    parser.add_argument("--retain", required=True)
    parser.add_argument("--template", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--text-tokens", type=int, default=16384)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
