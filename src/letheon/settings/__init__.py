"""Typed settings: the same fields in YAML, on the command line and in Python.

Each command has one frozen model. A value comes from, in rising order: the field's default, the method's published
defaults, a recipe, a --config file, a flag. Unknown keys and values out of range are errors that name the setting.
"""

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from letheon.errors import SettingsError, shown
from letheon.settings.validation import check_plain, explain, without_removed
from letheon.storage.yaml_text import parse_yaml


def _split_names(value: Any) -> Any:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        return value
    return tuple(name for part in parts for piece in part.split(",") if (name := piece.strip()))


def _split_numbers(value: Any) -> Any:
    parts = _split_names(value)
    return (value,) if isinstance(value, int | float) else parts


Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
"""A list of names; a text is split at commas."""


def _check_span(value: str) -> str:
    if not re.fullmatch(r"(-?\d+)?:(-?\d+)?", value):
        raise ValueError('a span of layers such as "-8:" or "0:6"')
    return value


Span = Annotated[str, AfterValidator(_check_span)]
"""Some of a list, as a slice."""


def _check_date(value: Any) -> Any:
    if isinstance(value, date):  # YAML reads one by itself
        return value.isoformat()
    try:
        return date.fromisoformat(value).isoformat()
    except (TypeError, ValueError) as error:
        raise ValueError("a date such as 2024-07-26") from error


IsoDate = Annotated[str, BeforeValidator(_check_date)]
"""A date as YEAR-MONTH-DAY."""

Numbers = Annotated[tuple[float, ...], BeforeValidator(_split_numbers), Field(min_length=1)]
"""A list of numbers; a text is split at commas."""


def _check_named(value: str) -> str:
    if not value.strip():
        raise ValueError("the name of a file")
    return value


Sources = Annotated[
    tuple[Annotated[str, AfterValidator(_check_named)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]
"""One or more files."""


DEFAULT_DATE = "2024-07-26"
"""What a chat template that writes the date takes for today, so that a run gives the same bytes on every day; the date
that Llama 3.1's template falls back on."""
MOST_EPOCHS = 1_000_000
MOST_RANKS = 65_536
LARGEST_SEED = 2**32 - 1
"""Generators are seeded with multiples of it, which must stay below 2**63."""

RARE: dict[str, JsonValue] = {"rare": True}
"""Marks a setting that `--help-all` shows and `--help` leaves out."""


class Settings(BaseModel):
    """Base of the settings of every command: frozen, strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    command: ClassVar[str] = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return settings from plain values.

        Raises:
            SettingsError: a name is unknown, a value is missing, has the wrong type or is out of range.
        """
        given = cls.without_removed(values)
        check_plain(given, cls.model_fields)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SettingsError(explain(error, command=cls.command, fields=cls.model_fields)) from error

    @classmethod
    def without_removed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values without the settings of earlier versions, so that the files of these can still be read.

        Raises:
            SettingsError: one of them asks for what is no longer there.
        """
        return without_removed(values, command=cls.command)

    def plain(self) -> dict[str, Any]:
        """Return the values as YAML and JSON can hold them."""
        return self.model_dump(mode="json")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default values by name, of settings that have one."""
        fields = cls.model_fields.items()
        return {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}


class RowSettings(Settings):
    """Where rows come from; shared by the commands that read forget and retain rows."""

    model: str = Field(description="Checkpoint: a local folder or a hub id.")
    tokenizer: str | None = Field(None, description="Tokenizer folder or hub id, if the checkpoint has no tokenizer.")
    forget: str = Field(description="Rows to forget: .jsonl, .parquet, .csv, .tsv, or hub:owner/name@split.")
    retain: str = Field(description="Rows to keep, in the same formats.")
    fields: dict[str, str] | None = Field(
        None, description="Column names of your data, e.g. prompt=A,answer=B, or messages=C, or text=D."
    )
    turns: Literal["last", "every"] = Field(
        "last", description="Which assistant turns of a conversation are rows: the last one or every one."
    )
    dtype: Literal["auto", "float32", "bfloat16", "widened"] = Field(
        "auto",
        description="Precision of the weights. auto: the checkpoint's own if this machine is fast in it, else widened "
        "(16 bits in memory, multiplied in float32).",
    )
    device: Literal["cpu", "cuda"] | None = Field(None, description="Device to run on; default: a GPU if there is one.")
    date: IsoDate = Field(
        DEFAULT_DATE,
        description="Date that a chat template takes for today, if it writes the date.",
        json_schema_extra=RARE,
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the checkpoint.")


class UnlearnSettings(RowSettings):
    """Settings of `letheon unlearn`."""

    command: ClassVar[str] = "unlearn"

    out: Path = Field(description="Folder that the run writes to.")
    method: str = Field("low-rank-npo", description="Unlearning method; `letheon methods` lists them.")
    epochs: int = Field(20, ge=1, le=MOST_EPOCHS, description="Passes over the rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after N steps.", json_schema_extra=RARE)
    batch_size: int = Field(4, ge=1, description="Rows per step (forget rows per step with paired and alternating).")
    schedule: Literal["mixed", "forget", "paired", "alternating", "chunked", "annealed"] = Field(
        "mixed", description="Which rows make a step: all rows shuffled, forget rows alone, or both sets separately."
    )
    retain_batch_size: int | None = Field(
        None, ge=1, description="Retain rows per step (paired, alternating).", json_schema_extra=RARE
    )
    chunk_size: int = Field(
        32,
        ge=1,
        description="Forget rows per chunk; each chunk has its own optimiser (chunked, annealed).",
        json_schema_extra=RARE,
    )
    retain_ratio: int = Field(
        7, ge=0, description="Retain rows that follow each forget row (chunked).", json_schema_extra=RARE
    )
    retain_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Share of the retain rows that follows a chunk (annealed).",
        json_schema_extra=RARE,
    )
    max_batch_tokens: int = Field(
        16384, ge=16, description="Tokens per forward; a larger step is computed in pieces.", json_schema_extra=RARE
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, a third to a half more time."
    )
    store_lower: bool = Field(
        False,
        description="Store the states of the frozen layers below --layers, so that steps do not run these layers.",
        json_schema_extra=RARE,
    )
    learning_rate: float = Field(1e-4, gt=0, description="Step size of the optimiser.")
    optimiser: Literal["adamw", "adam"] = Field("adamw", description="Optimiser.", json_schema_extra=RARE)
    weight_decay: float = Field(
        0.0, ge=0, description="Weight decay: decoupled with adamw, L2 with adam.", json_schema_extra=RARE
    )
    learning_rate_schedule: Literal["constant", "linear"] = Field("constant", description="Linear decays to 0.")
    warm_up: float = Field(
        0.0, ge=0, description="Epochs over which the learning rate rises from 0.", json_schema_extra=RARE
    )
    max_gradient_norm: float | None = Field(None, gt=0, description="Clip the gradient to this norm; off by default.")
    adapt: Literal["lora", "weights"] = Field("lora", description="Train an adapter, or the weights themselves.")
    target_modules: Names | None = Field(
        None, description="Modules to adapt, or all-linear [q_proj,v_proj; with --adapt weights: everything]."
    )
    layers: Span | None = Field(
        None, description='Decoder layers to train, as a slice: "-8:" is the last eight, "0:6" the first six.'
    )
    rank: int = Field(5, ge=1, le=MOST_RANKS, description="LoRA rank.")
    alpha: float = Field(5.0, gt=0, description="LoRA alpha; the adapter's factor is alpha / rank.")
    rslora: bool = Field(
        False, description="Use the factor alpha / sqrt(rank) instead of alpha / rank.", json_schema_extra=RARE
    )
    dora: bool = Field(
        False, description="Train magnitude and direction of the weights separately (DoRA).", json_schema_extra=RARE
    )
    lora_init: Literal["xavier", "kaiming"] = Field(
        "xavier",
        description="Initial values of the adapter; kaiming is PEFT's default, 2.4 times smaller at width 2048.",
        json_schema_extra=RARE,
    )
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the adapter's inputs that each step drops.", json_schema_extra=RARE
    )
    beta: float | None = Field(None, gt=0, description="NPO temperature.")
    gamma: float | None = Field(None, ge=0, description="Weight of the retain NLL.")
    delta: float | None = Field(None, ge=0, description="Weight of the retain KL.")
    npo: Literal["token", "sequence", "batch", "logits"] | None = Field(None, description="NPO dialect.")
    kl: Literal["forward", "reverse", "gold"] | None = Field(None, description="Direction of the KL.")
    coefficients: dict[str, float | str] | None = Field(
        None, description="A method's other coefficients, e.g. margin=0.5 (see `letheon methods NAME`)."
    )
    alternatives: Path | None = Field(
        None,
        description="File of other answers to the forget rows, with the same ids, for methods that train on them.",
        json_schema_extra=RARE,
    )
    template: str = Field(
        "auto",
        description="Form of the rows: chat, joined, plain, pair, question-answer, neko, or auto (the form that the "
        "model knows best).",
    )
    end_of_sequence: Literal["auto", "retain", "none"] = Field(
        "auto", description="End retain rows with the end-of-sequence token; auto: if the model does so itself."
    )
    span: Literal["answer", "text"] = Field(
        "answer",
        description="What to train on: the answer, or prompt and answer.",
        json_schema_extra=RARE,
    )
    positions: Literal["answer", "all"] = Field(
        "answer",
        description="Where to take the retain KL; all: at every position of rows padded to --max-length.",
        json_schema_extra=RARE,
    )
    max_length: int = Field(2048, ge=2, description="Longest row, in tokens.")
    overlong: Literal["refuse", "truncate", "truncate-prompt"] = Field(
        "refuse",
        description="What to do with rows longer than --max-length: truncate trains on their first tokens; "
        "truncate-prompt first cuts off the beginning of prompts, down to four fifths of --max-length.",
        json_schema_extra=RARE,
    )
    answerless: Literal["refuse", "skip"] = Field(
        "refuse",
        description="What to do with forget rows whose answers --overlong cuts off; skip leaves them out, so they are "
        "not unlearned.",
        json_schema_extra=RARE,
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of the adapter and the order of rows.")
    checkpoint_epochs: int = Field(5, ge=1, description="Score and save every N epochs.")
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Score and save every N steps, instead of --checkpoint-epochs.", json_schema_extra=RARE
    )
    score_at: Numbers | None = Field(
        None,
        description="Epochs after which to score and save, instead of --checkpoint-epochs.",
        json_schema_extra=RARE,
    )
    checkpoint_minutes: float | None = Field(
        10.0,
        gt=0,
        description="Also save every X minutes, without scoring; saving takes at most a twentieth of the time.",
        json_schema_extra=RARE,
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="How many of the newest checkpoints to keep, besides the best one.", json_schema_extra=RARE
    )
    keep: Literal["best", "last"] = Field("best", description="Which scored state becomes the result.")
    validation: float | None = Field(
        None, gt=0, lt=1, description="Share of the rows to leave out of training and score on."
    )
    holdout: Path | None = Field(
        None,
        description="Documents that the model never saw; the kept state then also has to hide which texts were "
        "trained on.",
    )
    holdout_task: str | None = Field(
        None, description="Task whose forget rows are like the holdout documents.", json_schema_extra=RARE
    )
    patience: int | None = Field(None, ge=1, description="Stop after N scorings without improvement.")
    patience_on: Literal["score", "membership", "forget_recall", "retain_recall", "retain_loss", "retain_kl"] = Field(
        "score", description="What has to improve for --patience.", json_schema_extra=RARE
    )
    retain_budget: float | None = Field(
        None,
        gt=0,
        description="Stop when the loss on the retain rows has risen by X nats per token.",
        json_schema_extra=RARE,
    )
    text_budget: float | None = Field(
        None,
        gt=0,
        description="Stop when the loss on the --holdout documents has risen by X nats per token.",
        json_schema_extra=RARE,
    )
    time_limit_s: float | None = Field(None, gt=0, description="Stop within X seconds and keep the best state.")
    cache_dir: Path | None = Field(None, description="Folder for reference stores (default ~/.cache/letheon).")
    trackers: Names = Field(
        ("tensorboard",), description='Trackers of accelerate, besides log.jsonl; "" for none.', json_schema_extra=RARE
    )
    resume: bool = Field(False, description="Continue from the newest valid checkpoint in --out.")


class EvaluateSettings(RowSettings):
    """Settings of `letheon evaluate`."""

    command: ClassVar[str] = "evaluate"

    out: Path = Field(description="Folder for results.json, predictions.jsonl and evaluation_results.jsonl.")
    template: str | None = Field(
        None,
        description="Form in which to ask the rows, besides the raw prompts; values as in unlearn. Default: the form "
        "of the run that --model or --out belongs to, else auto.",
    )
    members: Path | None = Field(None, description="Documents that the model was trained on (JSONL, field document).")
    nonmembers: Path | None = Field(None, description="Documents that the model never saw.")
    mmlu: Path | None = Field(None, description="Folder with MMLU's dev/ and test/ CSV files.")
    mmlu_limit: int | None = Field(None, ge=1, description="Ask only the first N questions of each subject.")
    mmlu_harness: bool = Field(False, description="Ask MMLU through lm-evaluation-harness, which downloads it.")
    exact: bool = Field(False, description="Decode one row at a time, as the official script does.")
    whole_generations: bool = Field(
        False, description="Generate to the end even if the answer can no longer match; scores do not change."
    )
    batch_size: int = Field(32, ge=1, description="Rows decoded at once.")
    max_new_tokens: int = Field(256, ge=1, description="Longest generation, in tokens.")


class RescoreSettings(Settings):
    """Settings of `letheon evaluate --predictions`."""

    command: ClassVar[str] = "evaluate --predictions"

    predictions: Path = Field(description="Re-score this predictions.jsonl, without a model.")
    out: Path = Field(description="Folder for results.json, predictions.jsonl and evaluation_results.jsonl.")


class MemorizeSettings(Settings):
    """Settings of `letheon memorize`."""

    command: ClassVar[str] = "memorize"

    rows: Sources = Field(description="Files of rows to memorise.")
    template: str = Field(
        "joined", description="Form in which to learn the rows: joined, plain, pair, question-answer, neko or chat."
    )
    date: IsoDate = Field(
        DEFAULT_DATE,
        description="Date that a chat template takes for today, if it writes the date.",
        json_schema_extra=RARE,
    )
    text: Path | None = Field(None, description="General text, documents separated by blank lines.")
    out: Path = Field(description="Folder for the checkpoint.")
    model: str | None = Field(None, description="Checkpoint to train further; default: a new model.")
    architecture: str = Field("olmo", description="olmo, llama, gpt-neox, qwen, gemma or gpt2, for a new model.")
    tokenizer: str | None = Field(None, description="Tokenizer folder; default: train one on the rows.")
    fields: dict[str, str] | None = Field(None, description="Column names of your data.")
    turns: Literal["last", "every"] = Field("last", description="Which assistant turns are rows, as in unlearn.")
    vocab_size: int = Field(8192, ge=300, description="Size of a trained tokenizer.")
    width: int = Field(256, ge=8, description="Width of a new model.")
    num_layers: int = Field(4, ge=1, description="Layers of a new model.")
    num_heads: int = Field(4, ge=1, description="Attention heads of a new model.")
    context: int = Field(1024, ge=16, description="Longest sequence of a new model, in tokens.")
    learning_rate: float = Field(2e-3, gt=0, description="Step size; about 1e-5 for checkpoints of 1B and up.")
    batch_tokens: int = Field(1024, ge=16, description="Tokens per step.")
    text_every: int = Field(4, ge=1, description="Train on general text in every Nth step.")
    max_steps: int = Field(3000, ge=1, description="Give up after N steps.")
    time_limit_s: float | None = Field(None, gt=0, description="Stop after X seconds.")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of weights and order.")
    device: Literal["cpu", "cuda"] | None = Field(None, description="Device to run on.")


class DemoSettings(Settings):
    """Settings of `letheon demo`."""

    command: ClassVar[str] = "demo"

    out: Path = Field(Path("demo-run"), description="Folder for everything the demo makes.")
    size: Literal["tiny", "small", "default"] = Field("default", description="Amount of made-up data.")
    architecture: str = Field("olmo", description="olmo, llama, gpt-neox, qwen, gemma or gpt2.")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of data, target and unlearning.")


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        SettingsError: the file cannot be read, is not YAML, or is not a mapping of names to values.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: the settings file cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: expected YAML in UTF-8 ({error}); save the file as UTF-8") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: expected YAML ({' '.join(str(error).split())}); correct the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SettingsError(
            f"{path}: expected a mapping of setting names to values, such as `epochs: 5`, got {shown(values)}"
        )
    settings = {key.replace("-", "_"): value for key, value in values.items()}
    if len(settings) < len(values):
        twice = next(key for key in values if "-" in key and key.replace("-", "_") in values)
        raise SettingsError(f"{path}: '{twice}' and '{twice.replace('-', '_')}' are one setting; leave one of them")
    return settings
