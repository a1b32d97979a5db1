"""The submission interface of SemEval-2025 Task 4: one function, one hour, a complete model at any time."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from letheon.data.benchmarks.lume import read_sets
from letheon.errors import OutputError
from letheon.launcher import check_alone
from letheon.model.checkpoint_files import check_checkpoint
from letheon.model.loading import LoadedModel, load_config, load_tokenizer, save_model
from letheon.model.quantised import check_not_quantised
from letheon.recipes import recipe_settings
from letheon.settings import UnlearnSettings
from letheon.storage.files import replace_folder
from letheon.unlearning.run import unlearn as run

TIME_LIMIT_S = 3600.0
RECIPE = "atyaephyra-7b"


def unlearn(
    model_path: str | Path,
    output_path: str | Path,
    forget_dir: str | Path,
    retain_dir: str | Path,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    overrides: dict[str, Any] | None = None,
) -> Path:
    """Unlearn within the task's hour, leaving a model in `output_path`, and return that path.

    The directories hold the forget and retain rows as .parquet or .jsonl. From the beginning on `output_path` holds a
    complete model: first the one that came, then, each time an interim score beats all before it, the new best one. A
    process that is killed therefore always leaves the best state it knew. Settings are those of the recipe
    `atyaephyra-7b` with keep "best", scored every epoch; `overrides` changes any of them.

    Raises:
        LetheonError: what is given cannot be used.
    """
    check_alone("the submission")
    model_path, output_path = Path(model_path), Path(output_path)
    forget, retain = read_sets(forget_dir, "forget"), read_sets(retain_dir, "retain")
    check_checkpoint(str(model_path))
    check_not_quantised(load_config(str(model_path)), source=str(model_path))
    _copy_model(model_path, output_path)
    with tempfile.TemporaryDirectory(prefix="letheon-") as scratch:
        settings = UnlearnSettings.of(
            {
                **recipe_settings(RECIPE),
                "checkpoint_epochs": 1,
                **(overrides or {}),
                "keep": "best",
                "model": str(model_path),
                "forget": forget.source,
                "retain": retain.source,
                "out": Path(scratch) / "run",
                "cache_dir": Path(scratch) / "cache",
                "time_limit_s": time_limit_s,
            }
        )

        def publish(loaded: LoadedModel, state: dict[str, Any]) -> None:
            save_model(loaded.model, loaded.tokenizer, output_path, state=state)

        run(settings, on_best=publish)
    return output_path


def _copy_model(model_path: Path, output_path: Path) -> None:
    """Lay the untouched model at the output, whole."""
    if output_path.exists() and any(output_path.iterdir()):
        raise OutputError(f"{output_path}: already holds files; give an empty folder or a new one")
    load_tokenizer(str(model_path))
    with replace_folder(output_path) as temporary:
        shutil.copytree(model_path, temporary, dirs_exist_ok=True)
