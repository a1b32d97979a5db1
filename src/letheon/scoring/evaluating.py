"""The scoring of a checkpoint, from its settings to the files."""

from collections.abc import Callable, Mapping
from pathlib import Path

from letheon.evaluation.outputs import check_no_other_scores
from letheon.evaluation.rescoring import write_evaluation
from letheon.model.fingerprint import fingerprint
from letheon.model.loading import load_config, load_model_of, stored_dtype
from letheon.model.precision import choose_precision
from letheon.model.quantised import described
from letheon.processes import here, in_turn, on_first
from letheon.scores.results import Evaluation
from letheon.scoring.inputs import EvaluatedInputs, read_evaluated
from letheon.settings import EvaluateSettings
from letheon.settings.suites import brings_rows
from letheon.signals import finishing
from letheon.storage.files import open_folder_outside
from letheon.storage.outside import note_evaluation
from letheon.storage.run_folder import EVALUATIONS_FOLDER
from letheon.storage.staged import finish_staged

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""
_ELSEWHERE = "choose another --out"


def evaluate_model(
    settings: EvaluateSettings,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    replace: bool = False,
) -> Evaluation:
    """Score a model, in all processes that work together, and write its scores (see `letheon.api.evaluate`).

    Raises:
        LetheonError: as `letheon.api.evaluate`.
    """
    inputs = in_turn(lambda: _evaluated(settings, note=note, replace=replace))
    config = load_config(settings.model, trust_remote_code=settings.trust_remote_code)
    stored = stored_dtype(settings.model, config)
    chosen = choose_precision(stored, asked=settings.dtype, device=settings.device, is_sharded=settings.shard)
    loaded = load_model_of(settings, tokenizer=inputs.tokenizer, shard=settings.shard)
    provenance = inputs.describe(
        weights_sha256=fingerprint(loaded.model), precision=f"{chosen.line}{described(config, settings.quantise)}"
    )
    evaluation = inputs.score(loaded, provenance=provenance, progress=progress)
    on_first(lambda: _write_evaluation(evaluation, settings.out))
    return evaluation


def _evaluated(settings: EvaluateSettings, *, note: Callable[[str], None] | None, replace: bool) -> EvaluatedInputs:
    """Read what an evaluation asks, once it is seen that its scores may be written; make their folder."""
    has_own_rows = brings_rows(settings.suite)
    if not replace and not has_own_rows:
        _check_replaced(settings, {"forget": settings.forget, "retain": settings.retain}, note)
    if here().is_first:
        finish_staged(Path(settings.model).absolute().parent, note=note or _ignore)
    inputs = read_evaluated(settings, note=note)
    if not replace and has_own_rows:
        _check_replaced(
            settings, {name: inputs.source_of(name) for name in ("forget", "retain") if name in inputs.asked.rows}, note
        )
    if here().is_first:
        open_folder_outside(settings.model, settings.out, advice=_ELSEWHERE, private=EVALUATIONS_FOLDER.is_private)
        note_evaluation(settings.model, settings.out)
    return inputs


def _write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    with finishing():
        write_evaluation(evaluation, folder)


def _check_replaced(settings: EvaluateSettings, sources: Mapping[str, str], note: Callable[[str], None] | None) -> None:
    replaced = check_no_other_scores(settings.out, model=settings.model, rows=sources)
    if replaced is not None and note is not None:
        note(replaced)


def _ignore(_: str) -> None:
    """Hear a note that nobody waits for."""
