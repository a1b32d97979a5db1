"""The settings of each command."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from letheon.settings.base import Settings
from letheon.settings.beyond import DialSettings, GeneralSettings, WeightSettings
from letheon.settings.facts import FILE, FIXED, INCIDENTAL, OWN, RARE, RESUMABLE, Alias
from letheon.settings.parts import (
    AdapterSettings,
    CourseSettings,
    FormedRowSettings,
    MethodSettings,
    OutputSettings,
    RowSettings,
    VerdictSettings,
)
from letheon.settings.suites import with_learnt_rows
from letheon.settings.types import (
    DEFAULT_DATE,
    DEFAULT_SUITE,
    LARGEST_SEED,
    MOST_RANKS,
    Device,
    Duration,
    IsoDate,
    Names,
    Parity,
    Sources,
)


class UnlearnSettings(  # the settings of the last base come first
    VerdictSettings,
    DialSettings,
    CourseSettings,
    AdapterSettings,
    GeneralSettings,
    MethodSettings,
    OutputSettings,
    WeightSettings,
    FormedRowSettings,
):
    """Settings of `letheon unlearn`."""

    command: ClassVar[str] = "unlearn"


class RedialSettings(DialSettings):
    """Settings of `letheon dial`."""

    command: ClassVar[str] = "dial"

    dial: Annotated[Literal["membership", "forgotten", "none"], RESUMABLE, OWN] = Field(
        default_factory=lambda: "none",  # no default that help could show: the run decides
        description="How to scale what was trained: membership makes membership attacks on the run's --holdout fail "
        "(the default with --holdout), forgotten takes the smallest scale that still forgets (the default without), "
        "none undoes the scaling.",
    )


class EvaluateSettings(WeightSettings, RowSettings):
    """Settings of `letheon evaluate`."""

    command: ClassVar[str] = "evaluate"
    heading: ClassVar[str] = "Evaluation"

    out: Annotated[Path, INCIDENTAL] = Field(
        description="Folder for results.json, predictions.jsonl and evaluation_results.jsonl."
    )
    template: Annotated[str | None, FIXED] = Field(
        None,
        description="Form in which to ask the rows, besides the raw prompts; values as in unlearn. Default: the form "
        "of the run that --model or --out belongs to, else auto.",
    )
    suite: Annotated[str, FIXED] = Field(
        DEFAULT_SUITE,
        description="Suite to score by: lume, or tofu, muse, wmdp or rwku, which bring their own rows.",
    )
    split: Annotated[str | None, FIXED] = Field(
        None,
        description="Split of the suite's rows: forget01, forget05 or forget10 of tofu [forget10], news or books of "
        "muse [news], a person of rwku [everyone].",
    )
    data: Annotated[Path | None, FIXED] = Field(
        None, description="Folder of the suite's data [$LETHEON_DATA/SUITE, else data/SUITE]."
    )
    never: Annotated[str | None, FIXED, FILE] = Field(
        None, description="Checkpoint of a model trained without the forget rows, to compare with (tofu, muse)."
    )
    never_results: Annotated[Path | None, FIXED, FILE] = Field(
        None, description="Its results.json or TOFU_EVAL.json, instead of --never."
    )
    parity: Annotated[Parity | None, FIXED] = Field(
        None,
        description="Whose definitions to follow where they differ: open-unlearning or original, the benchmark's own "
        "code [tofu, muse: open-unlearning].",
    )
    members: Annotated[Path | None, FIXED, FILE] = Field(
        None, description="Documents that the model was trained on (JSONL, field document)."
    )
    nonmembers: Annotated[Path | None, FIXED, FILE] = Field(None, description="Documents that the model never saw.")
    mmlu: Annotated[Path | None, FIXED, FILE] = Field(None, description="Folder with MMLU's dev/ and test/ CSV files.")
    mmlu_limit: Annotated[int | None, FIXED] = Field(
        None, ge=1, description="Ask only the first N questions of each subject."
    )
    mmlu_harness: Annotated[bool, FIXED] = Field(
        False, description="Ask MMLU through lm-evaluation-harness, which downloads it."
    )
    exact: Annotated[bool, FIXED] = Field(False, description="Decode one row at a time, as the official script does.")
    whole_generations: Annotated[bool, FIXED] = Field(
        False, description="Generate to the end even if the answer can no longer match; scores do not change."
    )
    batch_size: Annotated[int, FIXED] = Field(32, ge=1, description="Rows decoded at once.")
    max_new_tokens: Annotated[int, FIXED] = Field(
        256, ge=1, description="Longest generation, in tokens; for tofu the default is 200."
    )
    sound: Annotated[bool, FIXED] = Field(
        True,
        description="Also take scores without the faults of a suite's own code, where these change what the model is "
        "given (tofu, muse, rwku).",
    )


class AuditSettings(RowSettings):
    """Settings of `letheon audit`."""

    command: ClassVar[str] = "audit"
    heading: ClassVar[str] = "Audit"

    before: Annotated[str, FIXED, FILE] = Field(description="The model before unlearning.")
    out: Annotated[Path, INCIDENTAL] = Field(description="Folder that audit/ is written to; of a RUN: its own.")
    never: Annotated[str | None, FIXED, FILE] = Field(
        None, description="A model that never saw the forget rows, of the same vocabulary."
    )
    make_never: Annotated[bool, FIXED] = Field(
        False, description="Train such a model on --retain and --text (small models only)."
    )
    holdout: Annotated[str | None, FIXED, FILE] = Field(
        None, description="Placebos: rows like the forget rows that no model saw; default: made-up rows."
    )
    text: Annotated[Path | None, FIXED, FILE] = Field(
        None, description="General text, for relearning on it and for --make-never."
    )
    template: Annotated[str | None, FIXED] = Field(
        None,
        description="Form of the rows; values as in unlearn. Default: that of the RUN, else the one that the model "
        "before knows them in.",
    )
    attacks: Annotated[Names, FIXED] = Field(
        (), description="Attacks to run, by name or beginning of a name; default: all but the slow ones."
    )
    full: Annotated[bool, FIXED] = Field(False, description="Run the slow attacks too.")
    rows: Annotated[int, FIXED] = Field(
        100, ge=2, description="Most forget rows, and most retain rows, that an attack asks."
    )
    samples: Annotated[int, FIXED] = Field(32, ge=1, description="Answers per row in attacks that sample.")
    max_new_tokens: Annotated[int | None, FIXED, RARE] = Field(
        None, ge=1, description="Longest answer, in tokens; default: a quarter more than the longest row has."
    )
    batch_size: Annotated[int, FIXED, RARE] = Field(32, ge=1, description="Rows decoded at once.")
    margin: Annotated[float, FIXED] = Field(
        0.05, gt=0, lt=0.5, description="Recovery, share or shift of an AUC up to which a finding counts as none."
    )
    confidence: Annotated[float, FIXED, RARE] = Field(
        0.95, gt=0.5, lt=1, description="Level of all intervals of an audit together."
    )
    seed: Annotated[int, FIXED] = Field(0, ge=0, le=LARGEST_SEED, description="Seed of samples and training.")
    budget: Annotated[Duration | None, INCIDENTAL] = Field(
        None, description="Time for the attacks, e.g. 10m: the cheapest come first, the others are left out."
    )
    fail_on: Annotated[Names, INCIDENTAL] = Field(
        (), description="End with exit code 1 on these verdicts: hidden, not-forgotten, unclear."
    )
    show_secrets: Annotated[bool, INCIDENTAL] = Field(
        False, description="Show what came back in the report, which masks it otherwise."
    )


class RescoreSettings(Settings):
    """Settings of `letheon evaluate --predictions`."""

    command: ClassVar[str] = "evaluate --predictions"
    heading: ClassVar[str] = "Without a model"

    predictions: Path = Field(description="Re-score this predictions.jsonl, without a model.")
    out: Path = Field(description="Folder for results.json, predictions.jsonl and evaluation_results.jsonl.")


class NewModelSettings(Settings):
    """What a new model looks like."""

    heading: ClassVar[str] = "New model"

    architecture: str = Field("olmo", description="olmo, llama, gpt-neox, qwen, gemma or gpt2, for a new model.")
    tokenizer: str | None = Field(None, description="Tokenizer folder; default: train one on the rows.")
    vocab_size: int = Field(8192, ge=300, description="Size of a trained tokenizer.")
    width: int = Field(256, ge=8, description="Width of a new model.")
    num_layers: int = Field(4, ge=1, description="Layers of a new model.")
    num_heads: int = Field(4, ge=1, description="Attention heads of a new model.")
    context: int = Field(1024, ge=16, description="Longest sequence of a new model, in tokens.")


class LearningSettings(Settings):
    """How long and how fast to memorise."""

    heading: ClassVar[str] = "Training"

    learning_rate: Annotated[float, Alias("--lr")] = Field(
        2e-3, gt=0, description="Step size; about 1e-5 for checkpoints of 1B and up."
    )
    batch_tokens: int = Field(1024, ge=16, description="Tokens per step.")
    text_every: int = Field(4, ge=1, description="Train on general text in every Nth step.")
    target_accuracy: float = Field(
        1.0, gt=0, le=1, description="Stop once this share of the answer tokens is recalled."
    )
    max_steps: int = Field(3000, ge=1, description="Give up after N steps.")
    time_limit_s: float | None = Field(None, gt=0, description="Stop after X seconds.")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of weights and order.")
    device: Device | None = Field(None, description="Device to run on, as in unlearn.")


class LearntRowSettings(Settings):
    """What is memorised."""

    heading: ClassVar[str] = "Model and rows"

    rows: Sources = Field(description="Files of rows to memorise.")
    suite: str | None = Field(None, description="Suite whose rows to memorise, in the form that it asks in: tofu.")
    split: str | None = Field(
        None, description="Rows of the suite: full, or retain90 for a model that never knew forget10 [full]."
    )
    data: Path | None = Field(None, description="Folder of the suite's data [$LETHEON_DATA/SUITE, else data/SUITE].")
    text: Path | None = Field(None, description="General text, documents separated by blank lines.")
    out: Path = Field(description="Folder for the checkpoint.")
    model: str | None = Field(None, description="Checkpoint to train further; default: a new model.")
    template: str = Field(
        "joined",
        description="Form in which to learn the rows: joined, plain, pair, question-answer, neko, inst or chat.",
    )
    date: Annotated[IsoDate, RARE] = Field(
        DEFAULT_DATE, description="Date given to chat templates that write today's date."
    )
    fields: dict[str, str] | None = Field(None, description="Column names of your data.")
    turns: Literal["last", "every"] = Field("last", description="Which assistant turns are rows, as in unlearn.")

    @model_validator(mode="before")
    @classmethod
    def _take_rows(cls, values: Any) -> Any:
        return with_learnt_rows(values) if isinstance(values, dict) else values


class LearntAdapterSettings(Settings):
    """What of a checkpoint is trained to memorise."""

    heading: ClassVar[str] = AdapterSettings.heading

    adapt: Literal["lora", "weights"] = Field(
        "weights",
        description="Train the weights themselves, or an adapter, which is merged into the checkpoint at the end.",
    )
    target_modules: Names | None = Field(
        None, description="Modules to adapt, or all-linear [all-linear; with --adapt weights: everything]."
    )
    rank: int = Field(16, ge=1, le=MOST_RANKS, description="LoRA rank.")
    alpha: float = Field(16.0, gt=0, description="LoRA alpha; the adapter's factor is alpha / rank.")


class MemorizeSettings(LearningSettings, LearntAdapterSettings, NewModelSettings, LearntRowSettings):
    """Settings of `letheon memorize`."""

    command: ClassVar[str] = "memorize"


class DemoSettings(Settings):
    """Settings of `letheon demo`."""

    command: ClassVar[str] = "demo"
    heading: ClassVar[str] = "Demo"

    out: Path = Field(Path("demo-run"), description="Folder for everything the demo makes.")
    size: Literal["tiny", "small", "default"] = Field("default", description="Amount of made-up data.")
    architecture: str = Field("olmo", description="olmo, llama, gpt-neox, qwen, gemma or gpt2.")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of data, target and unlearning.")
