"""Memory and time of unlearning 1,000 rows with models of 1B to 70B, computed as `letheon unlearn --plan` does.

    python -m bench.needs [--data $LETHEON_DATA] [--shapes 1B 7B 13B 70B] [--rate 400] [--head-rate 40]

Nothing is measured: no weights are made, and the rates (TFLOP/s of matrix products, in the weights' dtype and in
float32) are what is given. The rows are the first 500 forget and 500 retain rows of LUME's train splits as OLMo's
tokenizer cuts them, or made-up ones of such lengths.
"""

import argparse
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, OlmoConfig, PreTrainedConfig

from bench.rows import workload
from bench.shapes import SHAPES
from letheon.data.schedules import MixedSchedule
from letheon.objective.catalogue import get_method
from letheon.settings import UnlearnSettings
from letheon.unlearning.planning.advice import gib
from letheon.unlearning.planning.demand import Data, demand_of
from letheon.unlearning.planning.estimate import Place, Plan, estimate
from letheon.unlearning.planning.machine import Rates
from letheon.unlearning.planning.table import duration
from letheon.unlearning.resolve import resolve_settings, terms_of

NUM_ROWS, EPOCHS = 1000, 20


def _config(kind: type[PreTrainedConfig], **sizes: Any) -> PreTrainedConfig:
    common: dict[str, Any] = {"max_position_embeddings": 4096, "tie_word_embeddings": False}
    return kind(**common, **sizes)


_OLMO: dict[str, Any] = {"vocab_size": 50304, "clip_qkv": 8.0}
MODELS = {
    "1B": _config(
        OlmoConfig, hidden_size=2048, num_hidden_layers=16, num_attention_heads=16, intermediate_size=8192, **_OLMO
    ),
    "7B": _config(
        OlmoConfig, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008, **_OLMO
    ),
    "13B": _config(
        LlamaConfig, hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, num_key_value_heads=40,
        intermediate_size=13824, vocab_size=32000,
    ),
    "70B": _config(
        LlamaConfig, hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28672, vocab_size=128256,
    ),
}  # fmt: skip
"""OLMo-1B and OLMo-7B of July 2024, Llama-2-13B, Llama-3-70B."""

RUNS: dict[str, dict[str, Any]] = {
    "adapter, float32": {},
    "adapter, bfloat16": {"dtype": "bfloat16"},
    "adapter, bfloat16, 4 processes with --shard": {"dtype": "bfloat16", "shard": True},
    "all weights, bfloat16": {"dtype": "bfloat16", "adapt": "weights"},
}
NUM_SHARES = 4
ALL: tuple[Place, ...] = ("device", "host")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rate", type=float, default=400.0, help="TFLOP/s of products in the weights' dtype")
    parser.add_argument("--head-rate", type=float, default=40.0, help="TFLOP/s of products in float32")
    given = parser.parse_args()
    # The lengths of the rows are those of one tokenizer for all models.
    rows = workload(SHAPES["1b"], given.data, num_steps=NUM_ROWS, batch_size=4, num_rows=NUM_ROWS)
    data = Data(rows.sequences, rows.num_forget, NUM_ROWS - rows.num_forget, rows.sequences)
    print(f"{data.count(range(NUM_ROWS)).read:,} tokens, {data.count(range(NUM_ROWS)).answers:,} of them answers\n")
    names = "weights | trained and moments | step | reference | peak, with overhead | 20 epochs, PFLOP | at least"
    print(f"| model | what is trained | {names} |\n|---|---|---|---|---|---|---|---|---|")
    for shape in given.shapes:
        for name, changes in RUNS.items():
            rates = Rates(trunk=given.rate * 1e12, head=given.head_rate * 1e12)
            if "dtype" not in changes:  # float32 all through
                rates = replace(rates, trunk=rates.head)
            print(
                f"| {shape} | {name} | {' | '.join(cells(plan_of(MODELS[shape], data, changes, rates)))} |", flush=True
            )


def plan_of(config: PreTrainedConfig, data: Data, changes: dict[str, Any], rates: Rates) -> Plan:
    """Return the plan of low-rank NPO, or of its loss over all weights."""
    files = {"model": "model", "forget": "forget", "retain": "retain", "out": "run"}
    settings = resolve_settings(UnlearnSettings.of({**files, "epochs": EPOCHS, **changes}))
    method = get_method(settings.method)
    schedule = MixedSchedule(data.num_rows, settings.batch_size, settings.seed, EPOCHS)
    num = NUM_SHARES if settings.shard else 1
    demand = demand_of(settings, data, schedule=schedule, method=method, num_processes=num)
    terms = terms_of(method, settings)
    plan = estimate(config, settings, demand, terms=terms, device="cuda", num_processes=num)
    return replace(plan, rates=rates)


def cells(plan: Plan) -> Collection[str]:
    """Return the cells of one row of the table; memory is that of the GPU but for the reference's values."""
    always = {part.name: part.bytes for part in plan.allocations if part.when == "always" and part.place == "device"}
    weights = sum(size for name, size in always.items() if name.startswith(("weights", "head")))
    device, host = (places for _, places in plan.pools)
    stored = sum(p.bytes for p in plan.allocations if p.name == "values of the reference" and p.place in host)
    return [
        gib(weights),
        gib(sum(always.values()) - weights),
        gib(plan.during("step", device)),
        gib(stored),
        f"{gib(plan.needed(device))} ({plan.peak_stage(device)})",
        f"{plan.flops / 1e15:,.0f}",
        duration(plan.seconds or 0.0),
    ]


if __name__ == "__main__":
    main()
