"""The authors' step, written plainly (bench/plain.py), for as many epochs as asked, on a checkpoint and its rows.

python -m bench.real.plain --model DIR --forget FILE --retain FILE --template FORM --out DIR
"""

import argparse
from pathlib import Path

import torch

from bench.plain import Weights, pad, plain_step
from letheon.data.rows import read_rows
from letheon.data.schedules import MixedSchedule
from letheon.data.sequences import tokenise_all
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.loading import load_model, save_model


def main(arguments: list[str] | None = None) -> None:
    """Train and save."""
    given = _parse(arguments)
    loaded = load_model(given.model, dtype="auto")
    rows = [read_rows(given.forget), read_rows(given.retain)]
    sequences = tokenise_all(
        [*rows[0], *rows[1]], loaded.tokenizer, template=given.template, max_length=given.max_length
    )
    lora = LoraSettings(rank=given.rank, alpha=given.rank, targets=tuple(given.target_modules.split(",")))
    adapted = attach_lora(loaded.model, lora, seed=given.seed)
    optimiser = torch.optim.Adam(adapted.parameters(), lr=given.learning_rate)
    schedule = MixedSchedule(len(sequences), given.batch_size, given.seed)
    for step in range(given.epochs * schedule.steps_per_epoch):
        taken = schedule.rows(step)
        batch = pad([sequences[row] for row in taken], [row < len(rows[0]) for row in taken])
        loss = plain_step(adapted.peft, batch, optimiser=optimiser, weights=Weights())
        print(f"step {step + 1}: loss {loss:.6g}", flush=True)
    save_model(adapted.model, loaded.tokenizer, given.out, state=adapted.merged_state())


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--forget", required=True)
    parser.add_argument("--retain", required=True)
    parser.add_argument("--template", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--rank", type=int, default=5)
    parser.add_argument("--target-modules", default="q_proj,v_proj")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
