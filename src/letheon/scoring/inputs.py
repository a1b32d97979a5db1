"""What an evaluation reads before it is given a model, checked, with its fingerprints."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from letheon.data.ends import bare_rows
from letheon.data.forms import AUTO, check_form, render
from letheon.data.rows import Rows, check_disjoint, hash_rows
from letheon.data.system_message import under_system
from letheon.devices import check_device
from letheon.evaluation.evaluate import evaluate_suite
from letheon.evaluation.in_form import AskedForm
from letheon.evaluation.registry import suite_of
from letheon.evaluation.suite import Asked, Progress, Target
from letheon.model.checkpoint_files import check_checkpoint
from letheon.model.companions import local_folder
from letheon.model.loading import LoadedModel, check_vocabulary, load_config, load_tokenizer
from letheon.model.quantised import check_loadable
from letheon.model.shard_loading import check_sharding
from letheon.report.files import read_mapping, read_settings
from letheon.scores.results import Evaluation
from letheon.settings import DEFAULT_DATE, EvaluateSettings
from letheon.settings.suites import brings_rows, files_of
from letheon.storage.fingerprints import hash_checkpoint, hash_values
from letheon.storage.provenance import describe_environment
from letheon.storage.run_folder import FORM_FILE, SETTINGS_FILE
from letheon.unlearning.form_record import hash_tokenizer

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EvaluatedInputs:
    """What an evaluation reads before it loads weights."""

    settings: EvaluateSettings
    asked: Asked
    tokenizer: PreTrainedTokenizerBase
    form: AskedForm

    def in_form(self, form: AskedForm) -> Self:
        """Return the same inputs, asked in another form."""
        return replace(self, form=form)

    def describe(self, *, weights_sha256: str, precision: str) -> dict[str, Any]:
        """Return the provenance of the scores: this process, the model with these weights, rows and documents.

        `precision` says in words how the weights lie and are multiplied.
        """
        settings, asked = self.settings, self.asked
        read = {
            "model_sha256": hash_checkpoint(local_folder(settings.model)),
            "weights_sha256": weights_sha256,
            "tokenizer_sha256": hash_tokenizer(self.tokenizer),
            **{f"{name}_sha256": hash_rows(rows) for name, rows in {**asked.rows, **asked.trained}.items()},
            **{f"{name}_sha256": hash_values(map(_plain, found)) for name, found in asked.others.items()},
        }
        return {
            **describe_environment(),
            "model": {
                "source": settings.model,
                "sha256": weights_sha256,
                "trust_remote_code": settings.trust_remote_code,
                "precision": precision,
            },
            **{
                name: {
                    "source": self.source_of(name),
                    "sha256": hash_rows(rows),
                    "num_rows": len(rows),
                }
                for name, rows in asked.rows.items()
            },
            "read": read,
        }

    def source_of(self, name: str) -> str:
        """Return where the set of rows `name` comes from: as it was given, or the suite's own file."""
        given = None if brings_rows(self.settings.suite) else getattr(self.settings, name, None)
        return str(self.asked.rows[name].source if given is None else given)

    def score(self, loaded: LoadedModel, *, provenance: dict[str, Any], progress: Progress | None = None) -> Evaluation:
        """Score a model that is loaded; `progress` hears of each stage.

        Raises:
            EvaluationError: as the suite's own functions.
        """
        settings = self.settings
        target = Target(
            loaded.model,
            loaded.tokenizer,
            self.form,
            exact=settings.exact,
            whole_generations=settings.whole_generations,
            batch_size=settings.batch_size,
            max_new_tokens=int(self.asked.options.get("max_new_tokens", settings.max_new_tokens)),
            progress=progress,
        )
        return evaluate_suite(
            suite_of(settings.suite), target, self.asked, model_name=settings.model, provenance=provenance
        )


def read_evaluated(settings: EvaluateSettings, *, note: Note | None = None) -> EvaluatedInputs:
    """Read and check all that an evaluation reads before it loads weights; `note` as in `evaluate`.

    Raises:
        LetheonError: as `evaluate`.
    """
    suite = suite_of(settings.suite)
    suite.check_taken(settings)
    asked = suite.ask(settings, note)
    check_device(settings.device)
    check_checkpoint(settings.model)
    tokenizer = load_tokenizer(settings.tokenizer or settings.model, trust_remote_code=settings.trust_remote_code)
    config = load_config(settings.model, trust_remote_code=settings.trust_remote_code)
    check_vocabulary(config, tokenizer, source=settings.model)
    check_loadable(config, source=settings.model, quantise=settings.quantise)
    if settings.shard:
        check_sharding(config, dtype=settings.dtype, quantise=settings.quantise)
    bare = {name: bare_rows(rows, tokenizer, note=note) for name, rows in asked.rows.items()}
    forget, retain = bare.get("forget"), bare.get("retain")
    if forget is not None and retain is not None:
        check_disjoint(forget, retain)
    form = form_of(settings, forget, retain)
    check_form(form.template)
    if form.template != AUTO:
        for row in [row for rows in bare.values() for row in rows][:1]:
            render(row, form.template, tokenizer, date=form.date)  # says that a chat template is missing
    files = files_of(settings.suite)
    trained = {name: bare_rows(rows, tokenizer) for name, rows in asked.trained.items()}
    if files is not None and files.are_questions:
        trained = {name: under_system(rows, tokenizer, settings.template) for name, rows in trained.items()}
    return EvaluatedInputs(settings, Asked(bare, asked.others, asked.options, trained), tokenizer, form)


def _plain(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def form_of(settings: EvaluateSettings, forget: Rows | None, retain: Rows | None) -> AskedForm:
    """Return the form in which an evaluation asks the rows: the one set, that of the run it belongs to, or "auto".

    It belongs to the run whose model/ is evaluated, or whose folder `out` lies in, if it asks that run's rows: other
    rows may be known in another form. A side that the suite does not ask is None.

    Raises:
        EvaluationError: the run.yaml or form.json of that run cannot be read.
    """
    if settings.template is not None:
        return AskedForm(settings.template, settings.date, "--template")
    folders = [Path(settings.model).absolute().parent, *settings.out.absolute().parents[:2]]
    run = next((folder for folder in folders if (folder / SETTINGS_FILE).is_file()), None)
    if run is None:
        return AskedForm(AUTO, settings.date, "chosen by a probe: the model knows the rows best in it")
    recorded, hashes = read_settings(run), read_mapping(run / FORM_FILE)
    for side, rows in (("forget", forget), ("retain", retain)):
        if rows is not None and hashes.get(f"{side}_sha256", known := hash_rows(rows)) != known:
            return AskedForm(
                AUTO, settings.date, f"chosen by a probe, because the {side} rows are not those of the run in {run}"
            )
    date = recorded.get("date", settings.date) if settings.date == DEFAULT_DATE else settings.date
    return AskedForm(str(recorded.get("template", AUTO)), str(date), f"the run in {run}")
