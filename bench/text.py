"""What general text costs a model.

python -m bench.text --model DIR --text FILE [--tokens 16384] --json FILE
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from letheon.data.sequences import text_ids
from letheon.model.loading import LoadedModel, load_model
from letheon.storage.files import write_json

_WINDOW_TOKENS = 512


def main(arguments: list[str] | None = None) -> None:
    """Measure one model and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16384, help="how many of the file's, from its beginning")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args(arguments)
    write_json(given.json, text_loss(load_model(given.model), given.text, num_tokens=given.tokens))


@torch.no_grad()
def text_loss(loaded: LoadedModel, path: Path, *, num_tokens: int) -> dict[str, Any]:
    """Return the mean token cross-entropy, nats, of the first `num_tokens` tokens of a file, in windows of 512."""
    ids = text_ids(loaded.tokenizer, [path.read_text(encoding="utf-8")])[0][:num_tokens]
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, _WINDOW_TOKENS):
        window = torch.tensor([ids[start : start + _WINDOW_TOKENS]], device=loaded.model.device)
        if window.shape[1] < 2:
            continue
        logits: Any = loaded.model(input_ids=window, use_cache=False).logits
        total += float(cross_entropy(logits[0, :-1].float(), window[0, 1:], reduction="sum"))
        count += window.shape[1] - 1
    return {"loss": total / count, "num_tokens": count}


if __name__ == "__main__":
    main()
