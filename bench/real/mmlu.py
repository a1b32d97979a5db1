"""MMLU by likelihood, on an even sample of its questions.

python -m bench.real.mmlu --model DIR --mmlu DIR --questions N --shots N --json FILE
"""

import argparse
from pathlib import Path

from letheon.evaluation.metrics.mmlu import read_mmlu, sample_mmlu, score_mmlu
from letheon.model.loading import load_model
from letheon.storage.files import write_json


def main(arguments: list[str] | None = None) -> None:
    """Ask one model and write its accuracy."""
    given = _parse(arguments)
    loaded = load_model(given.model, dtype="auto")
    subjects = sample_mmlu(read_mmlu(given.mmlu), given.questions, num_shots=given.shots)
    scores = score_mmlu(loaded.model, loaded.tokenizer, subjects)
    found = {"accuracy": scores.accuracy, "num_questions": scores.num_questions, "num_shots": scores.num_shots}
    write_json(given.json, found)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--mmlu", type=Path, required=True)
    parser.add_argument("--questions", type=int, required=True)
    parser.add_argument("--shots", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
