"""How large the jobs of `bench.real` are, and the settings of every command in them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bench.audits import ATTACKS
from bench.real.questions import CHAT_QUESTIONS, SMALL_QUESTIONS

Settings = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Plan:
    """How large a job is, and the settings of every command in it."""

    memorize: Settings
    ours: Settings
    plain: Settings
    ask: Settings
    chat: Settings
    mmlu: Settings
    audit: Settings
    num_lume_rows: int
    """Rows of each side."""
    num_records: int
    """Customer records of each side."""
    num_holdout: int
    seeds: tuple[int, ...]
    """Of ours; everything else has the first."""
    methods: tuple[str, ...]
    """Other methods, as bench.methods tuned them."""
    tokens: int | None = None
    """Of the rows, on which other methods train; by default as many as the first run of ours took in all."""


ADAPTER: Settings = {"target_modules": "all-linear", "rank": 16}

REAL = Plan(
    memorize={
        **ADAPTER,
        "adapt": "lora",
        "alpha": 16,
        "learning_rate": 2e-3,
        "batch_tokens": 512,
        # The last tokens cost another cool-down each time one of them is missed.
        "target_accuracy": 0.99,
        "max_steps": 1200,
    },
    ours={"general": "auto", "instead": "refusal"},
    # The step size and the epochs that forgot customer records in a trial; ours finds its own.
    plain={**ADAPTER, "learning_rate": 3e-3, "epochs": 14},
    ask={"text_tokens": 16384, "max_new_tokens": 96},
    chat={"questions": len(CHAT_QUESTIONS), "max_new_tokens": 64},
    mmlu={"questions": 500, "shots": 5},
    audit={"attacks": ",".join(ATTACKS), "samples": 8},
    num_lume_rows=30,
    num_records=20,
    num_holdout=24,
    seeds=(0, 1, 2),
    # The five with the highest task aggregate where nothing was tuned either (bench.goal, alone).
    methods=("pdu", "wga", "stat", "low-rank-npo", "adaptive-rmu"),
)

SMALL = replace(
    REAL,
    memorize={**REAL.memorize, "learning_rate": 5e-3, "target_accuracy": 1.0, "max_steps": 600},
    ours={**REAL.ours, **ADAPTER, "learning_rate": 5e-3, "epochs": 8},
    plain={**REAL.plain, "learning_rate": 5e-3, "epochs": 8},
    ask={"text_tokens": 1024, "max_new_tokens": 48},
    chat={"questions": SMALL_QUESTIONS, "max_new_tokens": 48},
    mmlu={"questions": 8, "shots": 1},
    audit={"attacks": "extraction-strength,quantisation"},
    num_records=4,
    seeds=(0,),
    methods=("wga",),
)
"""Of a model that is made on the spot."""
