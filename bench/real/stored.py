"""A model in the dtype in which another checkpoint lies on disk, as models are given away.

python -m bench.real.stored --model DIR --like DIR --out DIR
"""

import argparse
from pathlib import Path
from typing import Any

from letheon.model.checkpoint_files import stored_dtype_of
from letheon.model.loading import load_model, save_model


def main(arguments: list[str] | None = None) -> None:
    """Load the model in float32, round it and save it."""
    given = _parse(arguments)
    loaded = load_model(given.model)
    model: Any = loaded.model  # transformers hides the arguments of `to`
    save_model(model.to(stored_dtype_of(given.like)), loaded.tokenizer, given.out)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--like", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
