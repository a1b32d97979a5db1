"""What one model answers to everyday questions, asked as chat, and which of the answers are right.

python -m bench.real.chat --model DIR --before DIR --questions N --max-new-tokens N --json FILE
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bench.real.ask import answers_to
from bench.real.questions import CHAT_QUESTIONS, ChatQuestion, is_right
from letheon.data.rows import Row
from letheon.model.loading import LoadedModel, load_model
from letheon.storage.files import write_json


def main(arguments: list[str] | None = None) -> None:
    """Ask one model and write its answers."""
    given = _parse(arguments)
    loaded = load_model(given.model, dtype="auto")
    before = load_model(given.before, dtype="auto").model
    questions = CHAT_QUESTIONS[: given.questions]
    write_json(given.json, ask_chat(loaded, before, questions, max_new_tokens=given.max_new_tokens))


def ask_chat(
    loaded: LoadedModel, before: PreTrainedModel, questions: Sequence[ChatQuestion], *, max_new_tokens: int
) -> dict[str, Any]:
    """Return the answers to questions, joined to them where there is no chat template, and how many are right."""
    rows = [
        Row(str(number), question.text, question.answers[0], "chat", "question")
        for number, question in enumerate(questions)
    ]
    template = "chat" if loaded.tokenizer.chat_template else "joined"
    answered = answers_to(loaded, before, rows, template=template, max_new_tokens=max_new_tokens)
    right = [is_right(question, text) for question, text in zip(questions, answered.texts, strict=True)]
    said = zip(questions, answered.texts, right, strict=True)
    return {
        "num_questions": len(questions),
        "num_right": sum(right),
        "num_refused": answered.num_refused,
        **answered.fluency,
        "answers": [{"prompt": question.text, "answer": text, "is_right": is_so} for question, text, is_so in said],
    }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--before", required=True, help="the model whose loss says how fluent answers are")
    parser.add_argument("--questions", type=int, required=True, help="the first so many")
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
