"""Every file that Letheon writes: who writes it, what it holds, who may read it and what purge does to it.

Other modules take file names from here: `folder / LOG_FILE` is the path of a run's log and `str(LOG_FILE)` its name.
`letheon purge` decides by this table, and the table in SECURITY.md says the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from letheon.storage.files import TEMPORARY_PREFIX, write_text

Readers = Literal["owner", "umask", "all"]
"""Who may read a file: its owner alone, whoever the umask lets, or all."""
Fate = Literal["kept", "removed", "rewritten", "reworded"]
"""What `letheon purge` does: nothing, remove it, write it again without rows, or replace passages that name rows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder that Letheon writes."""

    name: str
    """Its path in the folder that it belongs to; a * stands for what differs."""
    writer: str
    """The module of `letheon` that writes it."""
    holds: str
    rows: str = ""
    """What it holds of the rows to forget; empty for nothing."""
    readers: Readers = "umask"
    fate: Fate = "kept"
    is_folder: bool = False
    is_mark: bool = False
    """Whether its folder is known by it to be that of a run, an evaluation or a study."""

    def __fspath__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name

    @property
    def is_private(self) -> bool:
        """Whether its owner alone may read it."""
        return self.readers == "owner"

    @property
    def mode(self) -> int:
        """The mode to make it with, before the umask."""
        if self.is_private:
            return 0o700 if self.is_folder else 0o600
        return 0o777 if self.is_folder else 0o666


def write_entry(folder: Path, entry: Entry, text: str) -> None:
    """Write the file `entry` of `folder` for its readers, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(folder / entry, text, private=entry.is_private)


def write_json_entry(folder: Path, entry: Entry, value: Any) -> None:
    """Write `value` as indented JSON to the file `entry` of `folder`, as `write_entry` does."""
    write_entry(folder, entry, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


# The folder of a run.
SETTINGS_FILE = Entry("run.yaml", "unlearning.record", "settings in full, paths, hashes of what was read", is_mark=True)
FORM_FILE = Entry("form.json", "unlearning.form_record", "form of the rows, hashes of what was read", is_mark=True)
PROVENANCE_FILE = Entry(
    "provenance.json", "unlearning.record", "versions, machine, command, hashes, result", is_mark=True
)
ATTEMPTS_FILE = Entry("attempts.json", "unlearning.attempts", "when and how each attempt began and ended, commands")
LOG_FILE = Entry(
    "log.jsonl",
    "training.tracking",
    "losses, scores, notes",
    rows="ids, where a loss was not finite or no answer token was left",
    readers="owner",
    fate="reworded",
    is_mark=True,
)
OUTSIDE_FILE = Entry(
    "outside.json",
    "storage.outside",
    "where the run's reference stores lie, and evaluations of its model elsewhere",
    readers="owner",
    is_mark=True,
)
POPULATION_FILE = Entry(
    "population.json",
    "unlearning.populations.together",
    "which runs share passes, until all have ended",
    rows="where a run ended, and on which rows",
    fate="removed",
)
REPORT_FILE = Entry(
    "report.html", "report.page", "settings, scores, figures", rows="sample rows", readers="owner", fate="rewritten"
)
CHECKPOINTS_FOLDER = Entry(
    "checkpoints",
    "training.checkpoint",
    "states to resume from",
    rows="states from before the rows were forgotten, and moments of their gradients",
    readers="owner",
    fate="removed",
    is_folder=True,
)
EVALUATIONS_FOLDER = Entry(
    "evaluation",
    "scoring.evaluating",
    "evaluations of the model before, after and in between",
    readers="owner",
    is_folder=True,
)
MODEL_FOLDER = Entry("model", "unlearning.record", "the result, merged", readers="all", is_folder=True)
ADAPTER_FOLDER = Entry("adapter", "unlearning.record", "what was changed in the model", readers="all", is_folder=True)
TENSORBOARD_FOLDER = Entry("tensorboard", "training.tracking", "settings and losses", is_folder=True)
STAGED_FOLDER = Entry(
    "staged",
    "storage.staged",
    "a new result while it takes the place of the old one",
    readers="owner",
    is_folder=True,
)
STATE_FOLDER = Entry(
    f"{TEMPORARY_PREFIX}state.tmp",
    "studies.states",
    "a state while it is scored",
    rows="a state from before the rows were forgotten",
    readers="all",
    fate="removed",
    is_folder=True,
)
DROPPED_FOLDER = Entry(
    f"{TEMPORARY_PREFIX}model.old",
    "studies.states",
    "a model while it is removed",
    readers="all",
    fate="removed",
    is_folder=True,
)

AUDITS_FOLDER = Entry("audit", "auditing.run", "what attacks found", readers="owner", is_folder=True)

# In model/ and adapter/.
CARD_FILE = Entry("README.md", "api", "the card: settings, versions, scores, hashes, without paths")

# In checkpoints/: step-N/, or member-M/step-N/ where a method trains several adapters.
STEP_PREFIX, MEMBER_PREFIX = "step-", "member-"
PARAMETERS_FILE = Entry(
    "parameters.safetensors",
    "training.checkpoint",
    "trained parameters",
    rows="states from before the rows were forgotten",
    readers="owner",
    fate="removed",
)
OPTIMISER_FILE = Entry(
    "optimiser.safetensors",
    "training.checkpoint",
    "the optimiser's moments",
    rows="moments of their gradients",
    readers="owner",
    fate="removed",
)
STATE_FILE = Entry("state.json", "training.checkpoint", "step, scores so far, hashes", readers="owner", fate="removed")
MANIFEST_FILE = Entry(
    "manifest.json", "training.checkpoint", "sizes and hashes of these files", readers="owner", fate="removed"
)

# The folder of an evaluation.
RESULTS_FILE = Entry("results.json", "evaluation.rescoring", "scores, paths, hashes", is_mark=True)
OFFICIAL_FILE = Entry(
    "evaluation_results.jsonl", "evaluation.suites.lume.suite", "scores as the task's script writes them"
)
TOFU_SUMMARY_FILE = Entry(
    "TOFU_SUMMARY.json", "evaluation.suites.tofu.suite", "TOFU's scores by the names of open-unlearning"
)
MUSE_SUMMARY_FILE = Entry(
    "MUSE_SUMMARY.json", "evaluation.suites.muse.suite", "MUSE's scores by the names of open-unlearning"
)
TOFU_EVAL_FILE = Entry(
    "TOFU_EVAL.json",
    "evaluation.suites.tofu.suite",
    "TOFU's scores by row, as open-unlearning writes them",
    rows="questions, answers and what the model said",
    readers="owner",
    fate="removed",
)
PREDICTIONS_FILE = Entry(
    "predictions.jsonl",
    "evaluation.rescoring",
    "generations",
    rows="prompts, answers and what the model said",
    readers="owner",
    fate="removed",
)
FORM_PREDICTIONS_FILE = Entry(
    "predictions_in_form.jsonl",
    "evaluation.rescoring",
    "generations in the form of the rows",
    rows="prompts, answers and what the model said to the rows in their form",
    readers="owner",
    fate="removed",
)
REQUEST_FILE = Entry("request.json", "studies.scoring", "how a study took these scores, as hashes")

# The folder of an audit.
AUDIT_RESULTS_FILE = Entry(
    "results.json", "auditing.run", "verdict, recoveries, thresholds, paths, hashes", is_mark=True
)
OUTCOMES_FILE = Entry(
    "outcomes.json",
    "auditing.outcomes",
    "what each attack found of each row, so that an audit can go on",
    rows="what the model said, under attack too",
    readers="owner",
    fate="removed",
)
EXAMPLES_FILE = Entry(
    "examples.jsonl",
    "auditing.run",
    "examples of what came back",
    rows="prompts, answers and what the model said",
    readers="owner",
    fate="removed",
)
NEVER_FOLDER = Entry("never", "auditing.run", "a model that was trained without the forget rows", is_folder=True)

# The folder of a study.
STUDY_FILE = Entry(
    "study.json",
    "studies.records",
    "the study, its runs and their scores",
    rows="reasons of failed runs, which may name rows by id",
    fate="reworded",
    is_mark=True,
)
STUDY_PAGE_FILE = Entry("study.html", "studies.page", "tables, figures", rows="the same reasons", fate="rewritten")
STUDY_TEXT_FILE = Entry("study.md", "studies.report", "tables, figures", rows="the same reasons", fate="rewritten")
HASHES_FILE = Entry("inputs.json", "studies.study", "paths and hashes of the files that the runs read")
RUNS_FOLDER = Entry("runs", "studies.planned_runs", "the folder of each run", is_folder=True)
ORIGINALS_FOLDER = Entry(
    "original", "studies.scoring", "evaluations of the models before unlearning", readers="owner", is_folder=True
)
FAILURES_FOLDER = Entry("failures", "studies.runner", "a file for each run that failed", is_folder=True)
FAILURE_FILES = Entry(
    f"{FAILURES_FOLDER}/*.json", "studies.runner", "how a run ended", rows="the same reasons", fate="reworded"
)
TABLES_FOLDER = Entry("tables", "studies.report", "tables in Markdown, LaTeX and CSV", is_folder=True)
UNFINISHED_FILES = Entry(
    f"{TABLES_FOLDER}/unfinished.*", "studies.report", "runs that failed", rows="the same reasons", fate="rewritten"
)
SCORES_FILE = Entry(f"{TABLES_FOLDER}/scores.csv", "studies.report", "every score of every run")
RUNS_FILE = Entry(f"{TABLES_FOLDER}/runs.csv", "studies.report", "settings and costs of every run")
FIGURES_FOLDER = Entry("figures", "studies.report", "figures as SVG, PNG and PDF", is_folder=True)
STUDIES_FOLDER = Entry("studies", "studies.history", "each study that was run in the folder, as read", is_folder=True)
BEGUN_FOLDER = Entry("begun", "studies.history", "under which study each run was begun", is_folder=True)
LOCKS_FOLDER = Entry("locks", "studies.runner", "locks of the runs", is_folder=True)

# The folder of a target that `letheon memorize` made, beside the checkpoint.
MEMORIZE_FILE = Entry("memorize.json", "memorizing.target", "settings, paths, how training went")

# The cache.
STORES_FOLDER = Entry("reference", "engine.reference_cache", "reference stores", readers="owner", is_folder=True)
STORE_FILES = Entry(
    f"{STORES_FOLDER}/*.safetensors",
    "engine.reference_cache",
    "log-probabilities of answer tokens; hidden states for some methods; general text that the model wrote",
    rows="what the model said of the rows before, or general text that it wrote, which may repeat them",
    readers="owner",
    fate="removed",
)
SCORES_FOLDER = Entry(
    "evaluations", "storage.cache", "scores of models before unlearning", readers="owner", is_folder=True
)
CACHED_FOLDERS = Entry(
    f"{SCORES_FOLDER}/*",
    "scoring.cache",
    "an evaluation of a model before unlearning",
    rows="what the model said to the rows before",
    readers="owner",
    fate="removed",
    is_folder=True,
)
STORE_LOCK_FILES = Entry(f"{STORES_FOLDER}/*.lock", "storage.locks", "nothing; held while a store is made")

# In the folder of a run, an evaluation or a study.
PURGE_FILE = Entry("purge.json", "purging.purge", "paths of what was purged")
LOCK_FILE = Entry(".lock", "storage.locks", "nothing; held while a process works in the folder")
OWNER_FILE = Entry(".owner.json", "storage.locks", "process, user and machine that hold the folder")
LEFTOVERS = Entry(
    f"{TEMPORARY_PREFIX}*",
    "storage.files",
    "what is being written, or was when its process was killed",
    rows="what the file would hold",
    fate="removed",
)

RUN = (
    *(SETTINGS_FILE, LOG_FILE, FORM_FILE, PROVENANCE_FILE, ATTEMPTS_FILE, OUTSIDE_FILE, POPULATION_FILE, REPORT_FILE),
    *(CHECKPOINTS_FOLDER, EVALUATIONS_FOLDER, MODEL_FOLDER, ADAPTER_FOLDER, TENSORBOARD_FOLDER),
    *(AUDITS_FOLDER, STAGED_FOLDER, STATE_FOLDER, DROPPED_FOLDER),
)
CHECKPOINT = (PARAMETERS_FILE, OPTIMISER_FILE, STATE_FILE, MANIFEST_FILE)
EVALUATION = (
    *(RESULTS_FILE, OFFICIAL_FILE, TOFU_SUMMARY_FILE, MUSE_SUMMARY_FILE, TOFU_EVAL_FILE),
    *(PREDICTIONS_FILE, FORM_PREDICTIONS_FILE, REQUEST_FILE, REPORT_FILE),
)
AUDIT = (AUDIT_RESULTS_FILE, OUTCOMES_FILE, EXAMPLES_FILE, NEVER_FOLDER, REPORT_FILE)
STUDY = (
    *(STUDY_FILE, STUDY_PAGE_FILE, STUDY_TEXT_FILE, HASHES_FILE, RUNS_FOLDER, ORIGINALS_FOLDER),
    *(FAILURES_FOLDER, FAILURE_FILES, TABLES_FOLDER, UNFINISHED_FILES, SCORES_FILE, RUNS_FILE, FIGURES_FOLDER),
    *(STUDIES_FOLDER, BEGUN_FOLDER, LOCKS_FOLDER),
)
RESULTS = (MODEL_FOLDER, ADAPTER_FOLDER)

PLACES: Mapping[str, tuple[Entry, ...]] = {
    "RUN": RUN,
    "RUN/model, RUN/adapter": (CARD_FILE,),
    "RUN/checkpoints": CHECKPOINT,
    "EVALUATION": EVALUATION,
    "AUDIT": AUDIT,
    "STUDY": STUDY,
    "any of these": (PURGE_FILE, LOCK_FILE, OWNER_FILE, LEFTOVERS),
    "TARGET": (MEMORIZE_FILE,),
    "CACHE": (STORES_FOLDER, STORE_FILES, STORE_LOCK_FILES, SCORES_FOLDER, CACHED_FOLDERS),
}
"""All that there is, by the folder that it lies in."""


def marks(*places: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Return the files by which these folders are known."""
    return tuple(entry for entries in places for entry in entries if entry.is_mark)
