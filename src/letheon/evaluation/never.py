"""The model that never knew the rows, where a suite compares with one."""

from dataclasses import replace
from pathlib import Path

from letheon.evaluation.suite import Asked, Target
from letheon.model.loading import load_model


def never_model(target: Target, asked: Asked, source: str | Path) -> Target:
    """Return the model at `source`, asked as `target` is and lying where that lies.

    Raises:
        ModelError: the checkpoint cannot be used.
    """
    loaded = load_model(
        str(source),
        dtype=asked.options.get("dtype", "float32"),
        tokenizer=target.tokenizer,
        device=str(target.model.device),
        trust_remote_code=bool(asked.options.get("trust_remote_code")),
    )
    return replace(target, model=loaded.model)
