"""The parts that the settings of `unlearn` are made of, by inheritance: files, flags and attributes know no parts.

A function declares the part that it reads. The markers beside the types are explained in facts.py.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from letheon.settings.base import Settings
from letheon.settings.facts import (
    COEFFICIENT,
    FILE,
    FIRST,
    FIXED,
    INCIDENTAL,
    OWN,
    RARE,
    RESUMABLE,
    SHARED,
    SIZED,
    Alias,
    Requires,
    RequiresMethod,
    facts_of,
)
from letheon.settings.suites import with_holdout_of_suite, with_rows_of_suite
from letheon.settings.types import (
    DEFAULT_DATE,
    DEFAULT_SUITE,
    LARGEST_SEED,
    MOST_EPOCHS,
    MOST_RANKS,
    Device,
    IsoDate,
    Names,
    Numbers,
    Parity,
    Rate,
    Span,
)

_OF_LORA = Requires("adapt", "lora")
_IF_SCORED = Requires("evaluate")


class SuiteSettings(Settings):
    """Which suite a model is scored by, and where the suite's own rows lie."""

    heading: ClassVar[str] = "Model and rows"

    suite: Annotated[str, INCIDENTAL, SHARED, RARE] = Field(
        DEFAULT_SUITE,
        description="Suite to score by; tofu and muse bring rows, so that --forget and --retain are not needed.",
    )
    split: Annotated[str | None, INCIDENTAL, SHARED, RARE] = Field(
        None,
        description="Split of the suite's rows: forget01, forget05 or forget10 of tofu [forget10], news, books or a "
        "fold such as news-sust-1 of muse [news].",
    )
    data: Annotated[Path | None, INCIDENTAL, SHARED, RARE] = Field(
        None, description="Folder of the suite's data [$LETHEON_DATA/SUITE, else data/SUITE]."
    )

    @model_validator(mode="before")
    @classmethod
    def _take_rows(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return with_rows_of_suite(values, are_trained=cls.command != "evaluate")


class RowSettings(SuiteSettings):
    """Where rows come from, and the model; shared by the commands that read forget and retain rows."""

    heading: ClassVar[str] = "Model and rows"

    model: Annotated[str, FIXED, SHARED, FILE, FIRST] = Field(description="Checkpoint: a local folder or a hub id.")
    tokenizer: Annotated[str | None, FIXED, SHARED, FILE, RARE] = Field(
        None, description="Tokenizer folder or hub id, if the checkpoint has no tokenizer."
    )
    forget: Annotated[str, FIXED, SHARED, FILE, FIRST] = Field(
        description="Rows to forget: .jsonl, .parquet, .csv, .tsv, or hub:owner/name@split."
    )
    retain: Annotated[str, FIXED, SHARED, FILE, FIRST] = Field(description="Rows to keep, in the same formats.")
    fields: Annotated[dict[str, str] | None, FIXED, SHARED] = Field(
        None, description="Column names of your data, e.g. prompt=A,answer=B, or messages=C, or text=D."
    )
    turns: Annotated[Literal["last", "every"], FIXED, SHARED, RARE] = Field(
        "last", description="Which assistant turns of a conversation are rows: the last one or every one."
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "widened"], FIXED, SHARED] = Field(
        "auto",
        description="Precision of the weights; auto: the checkpoint's own if that is fast here, else widened (16 bits "
        "in memory, multiplied in float32).",
    )
    device: Annotated[Device | None, FIXED, SHARED] = Field(
        None, description="Device: cpu, cuda, cuda:1, xpu or mps; default: a CUDA GPU if there is one."
    )
    date: Annotated[IsoDate, FIXED, SHARED, RARE] = Field(
        DEFAULT_DATE, description="Date given to chat templates that write today's date."
    )
    trust_remote_code: Annotated[bool, FIXED, SHARED, RARE] = Field(
        False, description="Run Python code of the checkpoint."
    )


class OutputSettings(Settings):
    """Where a run writes, how often, and whether it continues an earlier run."""

    heading: ClassVar[str] = "Output"

    out: Annotated[Path, INCIDENTAL, OWN, FIRST] = Field(description="Folder that the run writes to.")
    resume: Annotated[bool, INCIDENTAL, OWN] = Field(
        False, description="Continue from the newest valid checkpoint in --out."
    )
    checkpoint_minutes: Annotated[float | None, INCIDENTAL, OWN, RARE] = Field(
        10.0,
        gt=0,
        description="Also save every X minutes, without scoring; saving takes at most a twentieth of the time.",
    )
    keep_checkpoints: Annotated[int, INCIDENTAL, OWN, RARE] = Field(
        2, ge=1, description="How many of the newest checkpoints to keep, besides the best one."
    )
    cache_dir: Annotated[Path | None, INCIDENTAL, SHARED, RARE] = Field(
        None, description="Cache folder (default ~/.cache/letheon)."
    )
    trackers: Annotated[Names, INCIDENTAL, OWN, RARE] = Field(
        ("tensorboard",), description='Trackers of accelerate, besides log.jsonl; "" for none.'
    )


class VerdictSettings(Settings):
    """What the model is asked before and after the run; nothing of the run itself depends on it."""

    heading: ClassVar[str] = "Scores before and after"

    evaluate: Annotated[bool, INCIDENTAL, OWN] = Field(True, description="Score before and after; write report.html.")
    members: Annotated[Path | None, INCIDENTAL, OWN, FILE, _IF_SCORED] = Field(
        None, description="Documents that the model was trained on (JSONL, field document)."
    )
    nonmembers: Annotated[Path | None, INCIDENTAL, OWN, FILE, _IF_SCORED] = Field(
        None, description="Documents that the model never saw."
    )
    mmlu: Annotated[Path | None, INCIDENTAL, OWN, FILE, _IF_SCORED] = Field(
        None, description="Folder with MMLU's dev/ and test/ CSV files."
    )
    mmlu_limit: Annotated[int | None, INCIDENTAL, OWN, RARE, _IF_SCORED] = Field(
        None, ge=1, description="Ask only the first N questions of each subject."
    )
    never: Annotated[str | None, INCIDENTAL, OWN, FILE, RARE, _IF_SCORED] = Field(
        None, description="Checkpoint of a model trained without the forget rows, to compare with (tofu, muse)."
    )
    never_results: Annotated[Path | None, INCIDENTAL, OWN, FILE, RARE, _IF_SCORED] = Field(
        None, description="Its results.json or TOFU_EVAL.json, instead of --never."
    )
    parity: Annotated[Parity | None, INCIDENTAL, OWN, RARE, _IF_SCORED] = Field(
        None, description="Whose definitions to score by where they differ: open-unlearning or original."
    )


OF_SCORING = frozenset(VerdictSettings.model_fields)
"""Settings that say how a run is scored before and after."""


class MethodSettings(Settings):
    """The method and its coefficients."""

    heading: ClassVar[str] = "Method"

    method: Annotated[str, FIXED, SIZED, FIRST] = Field(
        "low-rank-npo", description="Method; `letheon methods` lists them."
    )
    beta: Annotated[float | None, FIXED, OWN, COEFFICIENT] = Field(
        None, gt=0, description="Parameter of the forget loss; `--method NAME --help` says which."
    )
    gamma: Annotated[float | None, FIXED, OWN, COEFFICIENT] = Field(None, ge=0, description="Weight of the retain NLL.")
    delta: Annotated[float | None, FIXED, OWN, COEFFICIENT] = Field(None, ge=0, description="Weight of the retain KL.")
    npo: Annotated[Literal["token", "sequence", "batch", "logits"] | None, FIXED, SIZED, COEFFICIENT] = Field(
        None, description="NPO dialect."
    )
    kl: Annotated[Literal["forward", "reverse", "gold"] | None, FIXED, SIZED, COEFFICIENT] = Field(
        None, description="Direction of the KL."
    )
    coefficients: Annotated[dict[str, float | str] | None, FIXED, SIZED] = Field(
        None, description="The method's other coefficients, e.g. margin=0.5; `--method NAME --help` lists them."
    )
    alternatives: Annotated[
        Path | None,
        *(FIXED, SHARED, FILE, RARE),
        RequiresMethod("alternatives", "a method that trains on other answers, such as idk-dpo"),
    ] = Field(
        None, description="File of other answers to the forget rows, with the same ids, for methods that train on them."
    )


COEFFICIENT_FLAGS = tuple(name for name, facts in facts_of(MethodSettings).items() if facts.kind is COEFFICIENT)
"""Coefficients that are settings of their own; the others are in `coefficients`."""


class StepSettings(Settings):
    """Which rows make a step, how many steps there are, and how one is computed."""

    heading: ClassVar[str] = "Steps"

    epochs: Annotated[int, FIXED, SIZED, FIRST] = Field(
        20, ge=1, le=MOST_EPOCHS, description="Passes, if it does not end by itself."
    )
    max_steps: Annotated[int | None, FIXED, SIZED, RARE] = Field(None, ge=1, description="Stop after N steps.")
    batch_size: Annotated[int, FIXED, SIZED, FIRST] = Field(
        4, ge=1, description="Rows per step (paired, alternating: forget rows)."
    )
    schedule: Annotated[Literal["mixed", "forget", "paired", "alternating", "chunked", "annealed"], FIXED, SIZED] = (
        Field(
            "mixed",
            description="Which rows make a step: all rows shuffled, forget rows alone, or both sets separately.",
        )
    )
    retain_batch_size: Annotated[int | None, FIXED, SIZED, RARE, Requires("schedule", "paired", "alternating")] = Field(
        None, ge=1, description="Retain rows per step (paired, alternating)."
    )
    chunk_size: Annotated[int, FIXED, SIZED, RARE, Requires("schedule", "chunked", "annealed")] = Field(
        32, ge=1, description="Forget rows per chunk; each chunk has its own optimiser (chunked, annealed)."
    )
    retain_ratio: Annotated[int, FIXED, SIZED, RARE, Requires("schedule", "chunked")] = Field(
        7, ge=0, description="Retain rows that follow each forget row (chunked)."
    )
    retain_share: Annotated[float, FIXED, SIZED, RARE, Requires("schedule", "annealed")] = Field(
        0.25, gt=0, le=1, description="Share of the retain rows that follows a chunk (annealed)."
    )
    seed: Annotated[int, FIXED, OWN, FIRST] = Field(
        0, ge=0, le=LARGEST_SEED, description="Seed of the adapter and the order of rows."
    )
    max_batch_tokens: Annotated[int, FIXED, SIZED, RARE] = Field(
        16384, ge=16, description="Tokens per forward; a larger step is computed in pieces."
    )
    gradient_checkpointing: Annotated[bool, RESUMABLE, SHARED, RARE] = Field(
        False, description="Recompute activations in the backward pass: less memory, a third to a half more time."
    )
    store_lower: Annotated[bool, FIXED, SHARED, RARE] = Field(
        False,
        description="Store the states of the frozen layers below --layers, so that steps do not run these layers.",
    )


class OptimiserSettings(Settings):
    """The optimiser and its learning rate."""

    heading: ClassVar[str] = "Optimiser"

    learning_rate: Annotated[Rate, FIXED, OWN, FIRST, Alias("--lr")] = Field(
        "auto",
        description="Step size; auto finds it, and the end of the run, by the scores.",
    )
    optimiser: Annotated[Literal["adamw", "adam"], FIXED, OWN, RARE] = Field("adamw", description="Optimiser.")
    weight_decay: Annotated[float, FIXED, OWN, RARE] = Field(
        0.0, ge=0, description="Weight decay: decoupled with adamw, L2 with adam."
    )
    learning_rate_schedule: Annotated[Literal["constant", "linear"], FIXED, OWN, RARE] = Field(
        "constant", description="Linear decays to 0."
    )
    warm_up: Annotated[float, FIXED, OWN, RARE] = Field(
        0.0, ge=0, description="Epochs over which the learning rate rises from 0."
    )
    max_gradient_norm: Annotated[float | None, FIXED, OWN, RARE] = Field(
        None,
        gt=0,
        description="Clip the gradient to this norm [off; where a run finds its learning rate: twice the usual].",
    )


class AdapterSettings(Settings):
    """What is trained: an adapter, or weights of the model."""

    heading: ClassVar[str] = "Adapter"

    adapt: Annotated[Literal["lora", "weights"], FIXED, SHARED] = Field(
        "lora", description="Train an adapter, or the weights themselves."
    )
    target_modules: Annotated[Names | None, FIXED, SHARED] = Field(
        None, description="Modules to adapt [all-linear; with --adapt weights: everything]."
    )
    layers: Annotated[Span | None, FIXED, SHARED, RARE] = Field(
        None, description='Decoder layers to train, as a slice: "-8:" is the last eight, "0:6" the first six.'
    )
    rank: Annotated[int, FIXED, OWN, FIRST, _OF_LORA] = Field(5, ge=1, le=MOST_RANKS, description="LoRA rank.")
    alpha: Annotated[float, FIXED, OWN, _OF_LORA, RARE] = Field(
        5.0, gt=0, description="LoRA alpha; the adapter's factor is alpha / rank."
    )
    rslora: Annotated[bool, FIXED, OWN, RARE, _OF_LORA] = Field(
        False, description="Use the factor alpha / sqrt(rank) instead of alpha / rank."
    )
    dora: Annotated[bool, FIXED, SHARED, RARE, _OF_LORA] = Field(
        False, description="Train magnitude and direction of the weights separately (DoRA)."
    )
    lora_init: Annotated[Literal["xavier", "kaiming"], FIXED, OWN, RARE, _OF_LORA] = Field(
        "xavier",
        description="Initial values of the adapter; kaiming is PEFT's default, 2.4 times smaller at width 2048.",
    )
    lora_dropout: Annotated[float, FIXED, SHARED, RARE, _OF_LORA] = Field(
        0.0, ge=0, lt=1, description="Share of the adapter's inputs that each step drops."
    )


class FormSettings(Settings):
    """How rows become tokens, and which of these are trained on."""

    heading: ClassVar[str] = "Form of the rows"

    template: Annotated[str, RESUMABLE, SHARED] = Field(
        "auto",
        description="Form of the rows: chat, joined, plain, pair, question-answer, neko, inst, or auto (the form that "
        "the model knows best).",
    )
    end_of_sequence: Annotated[Literal["auto", "retain", "none"], FIXED, SHARED, RARE] = Field(
        "auto", description="End retain rows with the end-of-sequence token; auto: if the model does so itself."
    )
    span: Annotated[Literal["answer", "text"], FIXED, SHARED, RARE] = Field(
        "answer", description="What to train on: the answer, or prompt and answer."
    )
    positions: Annotated[Literal["answer", "all"], FIXED, SHARED, RARE] = Field(
        "answer",
        description="Where to take the retain KL; all: at every position of rows padded to --max-length.",
    )
    max_length: Annotated[int, FIXED, SHARED, RARE] = Field(2048, ge=2, description="Longest row, in tokens.")
    overlong: Annotated[Literal["refuse", "truncate", "truncate-prompt"], FIXED, SHARED, RARE] = Field(
        "refuse",
        description="What to do with rows longer than --max-length: truncate trains on their first tokens; "
        "truncate-prompt first cuts off the beginning of prompts, down to four fifths of --max-length.",
    )
    answerless: Annotated[Literal["refuse", "skip"], FIXED, SHARED, RARE] = Field(
        "refuse",
        description="What to do with forget rows whose answers --overlong cuts off; skip leaves them out, so they are "
        "not unlearned.",
    )


class ScoringSettings(Settings):
    """When a run is scored and on what, which state is kept, and when it ends early."""

    heading: ClassVar[str] = "Scoring and stopping"

    checkpoint_epochs: Annotated[int | None, FIXED, OWN] = Field(
        None, ge=1, description="Score and save every N epochs [5; with --learning-rate auto: 1]."
    )
    checkpoint_steps: Annotated[int | None, FIXED, OWN, RARE] = Field(
        None, ge=1, description="Score and save every N steps, instead of --checkpoint-epochs."
    )
    score_at: Annotated[Numbers | None, FIXED, OWN, RARE] = Field(
        None,
        description="Epochs after which to score and save, instead of --checkpoint-epochs; with --learning-rate auto, "
        "the epochs whose states stay on disk.",
    )
    keep: Annotated[Literal["best", "last"], FIXED, OWN] = Field(
        "best", description="Which scored state becomes the result."
    )
    validation: Annotated[float | None, FIXED, SHARED, RARE] = Field(
        None, gt=0, lt=1, description="Share of the rows to score on and not to train on."
    )
    holdout: Annotated[Path | None, FIXED, SHARED, FILE] = Field(
        None,
        description="Documents that the model never saw; the kept state then also has to hide which texts were "
        "trained on.",
    )
    holdout_task: Annotated[str | None, FIXED, SHARED, RARE, Requires("holdout")] = Field(
        None, description="Task whose forget rows are like the holdout documents."
    )
    patience: Annotated[int | None, FIXED, OWN, RARE] = Field(
        None, ge=1, description="Stop after N scorings without improvement."
    )
    patience_on: Annotated[
        Literal["score", "membership", "forget_recall", "retain_recall", "retain_loss", "retain_kl"],
        *(FIXED, OWN, RARE, Requires("patience")),
    ] = Field("score", description="What has to improve for --patience.")
    retain_budget: Annotated[float | None, FIXED, OWN, RARE] = Field(
        None, gt=0, description="Stop when the loss on the retain rows has risen by X nats per token."
    )
    text_budget: Annotated[float | None, FIXED, OWN, RARE, Requires("holdout")] = Field(
        None, gt=0, description="Stop when the loss on the --holdout documents has risen by X nats per token."
    )
    time_limit_s: Annotated[float | None, RESUMABLE, SHARED] = Field(
        None,
        gt=0,
        description="Stop training within X seconds; keep the best state.",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_holdout(cls, values: Any) -> Any:
        return with_holdout_of_suite(values) if isinstance(values, dict) else values


class FormedRowSettings(FormSettings, RowSettings):
    """The rows and their form."""


class CourseSettings(ScoringSettings, OptimiserSettings, StepSettings):
    """How a run goes: its steps, its optimiser, its scorings and its end."""
