"""Memory and time of a run, from the model's configuration, the rows and the settings; no weights are read.

Notation: P parameters, P_t trained ones, b bytes of a weight (4 in float32, 2 in bfloat16), V vocabulary, D width,
A answer tokens (A_f to forget, A_r to keep).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from letheon.devices import has_own_memory
from letheon.engine.engine import Engine
from letheon.engine.head import Head, head_of
from letheon.engine.values import STATES
from letheon.model.adapted import Adapted
from letheon.model.codes import matrix_shape, stored_bytes
from letheon.model.loading import move_model
from letheon.model.merging import adapted_weights
from letheon.model.precision import resolved_precision
from letheon.model.quantised_layers import kind_of, quantised_layers, saved_bytes
from letheon.model.sharding import held_bytes
from letheon.model.widening import product_dtype, saved_dtype
from letheon.objective.parts import Term, needs_of
from letheon.objective.values import Needs
from letheon.settings import StepSettings, UnlearnSettings
from letheon.unlearning.planning.demand import Demand, Piece, Tokens
from letheon.unlearning.planning.machine import Rates
from letheon.unlearning.planning.operations import Work, rough_work, work_of
from letheon.unlearning.planning.trace import (
    PassBytes,
    StepBytes,
    empty_engine,
    empty_model,
    trace_check,
    trace_merging,
    trace_reference,
    trace_scoring,
    trace_step,
)
from letheon.unlearning.prepare import adapt
from letheon.unlearning.resolve import most_checkpoints

When = Literal["always", "loading", "self-check", "gradient check", "reference pass", "step", "scoring", "saving"]
Place = Literal["device", "host", "disk"]

OVERHEAD = 0.05
"""What allocators lose between blocks of memory, as a share of all."""
WORKSPACE = {"cpu": 320 * 2**20, "cuda": 640 * 2**20, "xpu": 640 * 2**20, "mps": 640 * 2**20}
"""What kernels take for themselves (packed copies of a matrix, cuBLAS) and what is imported late, bytes."""

_OF_RETAIN_KL = Needs(kl="forward")


@dataclass(frozen=True, slots=True)
class Allocation:
    """Something that takes memory or disk."""

    name: str
    bytes: int
    place: Place
    when: When = "always"
    """Allocations of one stage are there together, beside those that always are; stages come one after the other."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs."""

    device: str
    num_parameters: int
    num_trained: int
    demand: Demand
    allocations: tuple[Allocation, ...]
    work: tuple[Work, ...]
    process: int
    """Bytes that the program itself holds before a model is loaded; in main memory."""
    rates: Rates | None = None
    notes: tuple[str, ...] = ()
    """What the numbers leave out, in words."""
    num_processes: int = 1
    """How many share the rows; memory is that of one of them."""
    is_sharded: bool = False
    """Whether they also share the frozen weights."""

    @property
    def pools(self) -> tuple[tuple[str, tuple[Place, ...]], ...]:
        """The memories of the machine by name, and the places that lie in each."""
        return (("GPU memory", ("device",)), ("memory", ("host",))) if has_own_memory(self.device) else (
            ("memory", ("device", "host")),
        )  # fmt: skip

    def during(self, when: When, places: Collection[Place]) -> int:
        """Return the bytes that are allocated in one stage alone."""
        return sum(one.bytes for one in self.allocations if one.when == when and one.place in places)

    def peak_stage(self, places: Collection[Place]) -> When:
        """Return the stage that takes most."""
        stages = dict.fromkeys(one.when for one in self.allocations if one.when != "always")
        return max(stages, key=lambda stage: self.during(stage, places))

    def least(self, places: Collection[Place]) -> int:
        """Return the bytes without which the run cannot be: what its tensors take at the peak, nothing else."""
        return self.during("always", places) + self.during(self.peak_stage(places), places)

    def needed(self, places: Collection[Place]) -> int:
        """Return the bytes to count with: `least`, 5% that allocators lose, and the workspace of kernels."""
        workspace = WORKSPACE[self.device] if "device" in places else 0
        return round(self.least(places) * (1 + OVERHEAD)) + workspace

    @property
    def flops(self) -> float:
        """Operations of the whole run."""
        return sum(work.flops for work in self.work)

    @property
    def seconds(self) -> float | None:
        """How long they take at full rate: the least that the run can take; None without rates."""
        rates = self.rates
        return None if rates is None else sum(work.seconds(rates) for work in self.work) / self.num_processes


def estimate(
    config: PreTrainedConfig,
    settings: UnlearnSettings,
    demand: Demand,
    *,
    terms: tuple[Term, ...],
    device: str,
    process: int = 0,
    counts_work: bool = True,
    num_processes: int = 1,
) -> Plan:
    """Return what one of the processes of a run needs; its operations, those of the whole run, only if `counts_work`,
    since these take a second run without values.

    Always in the device's memory:
        weights: b P, and buffers; of a quantised matrix 1/2 and 4/64 a number in nf4, 1 in int8 and 4 a row
        trained: 4 P_t, an adapter's own or float32 copies of bfloat16 weights; 0 where the weights are float32
        moments: 8 P_t, Adam's two
        head as it was: 4 V D where a trained head's reference is needed
    and in main memory the reference's values: 4 A, for a forward KL (4 D + 8) A_r, else b D a stored state, and
    as much for each token of general text; with patience on the retain KL those of the scored retain rows once more.
    Weights in shares count as a share, the largest layer (or embeddings, or head) and what is in none.
    In one stage after the other: loading (to a GPU: b P in main memory), the self-check (the model's own logits of the
    longest row; the gradients of four rows), the reference pass and a scoring (at most
    4096 tokens at once), a step (see `StepBytes`; 4 P_t more where gradients of earlier
    pieces lie beside), saving (the merged matrices in float32, and in b; quantised ones in main memory, all that is
    saved). On disk: the model, checkpoints of 12 P_t
    (see `most_checkpoints`), and the reference's values.

    Operations: see `work_of`.

    Raises:
        ModelError: transformers makes no model of this configuration, or its modules do not fit the settings.
    """
    model = empty_model(
        config,
        resolved_precision(settings.dtype),
        trust_remote_code=settings.trust_remote_code,
        quantise=settings.quantise,
    )
    weights = _weights(model, num_sharing=num_processes if settings.shard else None)
    adapted = _adapted(model, settings)
    num_trained = sum(parameter.numel() for parameter in adapted.parameters())
    traced = _trace(model, adapted, settings, terms, demand)
    allocations = _allocations(model, settings, demand, traced, device, weights=weights, num_trained=num_trained)
    work: tuple[Work, ...] = ()
    if counts_work:
        work = rough_work(model, demand) if traced.engine is None else work_of(traced.engine, demand, terms)
    return Plan(
        device=device,
        num_parameters=weights.num_parameters,
        num_trained=num_trained,
        demand=demand,
        allocations=tuple(one for one in allocations if one.bytes),
        work=work,
        process=process,
        notes=traced.notes,
        num_processes=num_processes,
        is_sharded=settings.shard,
    )


@dataclass(frozen=True, slots=True)
class _Weights:
    """A model's weights and buffers without an adapter: bytes that one process holds, and bytes that are saved."""

    num_parameters: int
    held: int
    saved: int


def _weights(model: PreTrainedModel, *, num_sharing: int | None) -> _Weights:
    """The size of weights that so many processes hold in shares, or that each process holds whole (None)."""
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    whole = sum(map(stored_bytes, model.parameters()))
    return _Weights(
        num_parameters=sum(matrix_shape(parameter).numel() for parameter in model.parameters()),
        held=(whole if num_sharing is None else held_bytes(model, num_sharing)) + buffers,
        saved=saved_bytes(model) + buffers,
    )


def _adapted(model: PreTrainedModel, settings: UnlearnSettings) -> Adapted:
    """Attach what is trained, also without values."""
    with torch.random.fork_rng(devices=[]):  # PEFT draws values of its own
        adapted = adapt(model, settings)
    move_model(model, "meta")
    return adapted


_SHARED = ", a share and the largest layer"
_WEIGHTS = {"widened": "16 bits", "auto": "float32"}


def _kinds(model: PreTrainedModel, dtype: str) -> str:
    """How weights lie, such as "nf4 and 16 bits"."""
    return " and ".join(filter(None, (kind_of(model), _WEIGHTS.get(dtype, dtype))))


_on_device = partial(Allocation, place="device")


def _allocations(
    model: PreTrainedModel,
    settings: UnlearnSettings,
    demand: Demand,
    traced: "_Traced",
    device: str,
    *,
    weights: _Weights,
    num_trained: int,
) -> list[Allocation]:
    """All that a run allocates."""
    return [
        *_constant_parts(model, settings, traced, num_held=weights.held, num_trained=num_trained),
        *_passing_allocations(traced, demand, num_trained=num_trained),
        *_saving_parts(model, settings, traced, device, num_saved=weights.saved),
        *_host_and_disk_parts(
            device,
            weights=weights,
            num_trained=num_trained,
            num_checkpoints=most_checkpoints(settings),
            store=_store_bytes(traced.reference.stored, demand.reference),
            kept=_store_bytes(traced.kept, demand.kept),
        ),
    ]


def _constant_parts(
    model: PreTrainedModel, settings: UnlearnSettings, traced: "_Traced", *, num_held: int, num_trained: int
) -> list[Allocation]:
    head, stored = head_of(model), traced.reference.stored.keys() | traced.kept.keys()
    is_lora, is_rounded = settings.adapt == "lora", settings.dtype == "bfloat16"
    holds_head = not head.is_frozen and any(name in stored for name in STATES)
    return [
        _on_device(f"weights in {_kinds(model, settings.dtype)}{_SHARED if settings.shard else ''}", num_held),
        _on_device("adapter", 4 * num_trained if is_lora else 0),
        _on_device("float32 copies of trained weights", 4 * num_trained if is_rounded and not is_lora else 0),
        _on_device("moments of the optimiser", 8 * num_trained),
        _on_device("head as it was", _head_bytes(head) if holds_head else 0),
    ]


def _passing_allocations(traced: "_Traced", demand: Demand, *, num_trained: int) -> list[Allocation]:
    step, at_once = traced.step, max(demand.largest.num_tokens, 1)
    of_probe = step.activations * demand.probe_tokens // at_once
    return [
        _on_device("logits of the longest row", traced.check, when="self-check"),
        _on_device("activations of four rows", of_probe, when="gradient check"),
        _on_device("forward without gradients", traced.reference.peak, when="reference pass"),
        _on_device("activations", step.activations, when="step"),
        _on_device("head and objective", step.terms, when="step"),
        _on_device("backward pass", step.backward, when="step"),
        _on_device("gradients of earlier pieces", 4 * num_trained if demand.is_split else 0, when="step"),
        _on_device("forward without gradients", traced.scoring, when="scoring"),
    ]


def _saving_parts(
    model: PreTrainedModel, settings: UnlearnSettings, traced: "_Traced", device: str, *, num_saved: int
) -> list[Allocation]:
    """What merging and writing take: one matrix at a time where it lies, and what is saved in main memory.

    Of weights in shares nothing else is there at once. On a CPU the matrices that are not merged are those in memory.
    """
    moved = Allocation("weights on their way to disk", num_saved if has_own_memory(device) else 0, "host", "saving")
    if settings.adapt == "weights":
        return [_on_device("merged weights", traced.merging, when="saving"), moved]
    largest = max(matrix_shape(weight).numel() for _, weight in adapted_weights(model))
    one = _on_device("one merged matrix", (3 * 4 + saved_dtype(model).itemsize) * largest, when="saving")
    if settings.shard:
        return [
            one,
            _on_device("one weight on its way to disk", max(p.nbytes for p in model.parameters()), when="saving"),
        ]
    if moved.bytes:
        return [one, moved]
    if quantised_layers(model):
        return [one, _on_device("merged weights", num_saved, when="saving")]
    return [_on_device("merged weights", traced.merging, when="saving")]


def _host_and_disk_parts(
    device: str,
    *,
    weights: _Weights,
    num_trained: int,
    num_checkpoints: int,
    store: int,
    kept: int,
) -> list[Allocation]:
    # Quantised weights go to the GPU one by one.
    moved = weights.held if has_own_memory(device) and weights.saved == weights.held else 0
    return [
        Allocation("weights on their way to the GPU", moved, "host", "loading"),
        Allocation("values of the reference", store, "host"),
        Allocation("values of the reference for the KL of scorings", kept, "host"),
        Allocation("values of the reference, put together", max(store, kept), "host", "reference pass"),
        Allocation("model", weights.saved, "disk"),
        Allocation("checkpoints", num_checkpoints * 12 * num_trained, "disk"),
        Allocation("values of the reference", store, "disk"),
    ]


@dataclass(frozen=True, slots=True)
class _Traced:
    """What was found by running on tensors without values."""

    step: StepBytes
    reference: PassBytes
    scoring: int
    merging: int
    check: int
    engine: Engine | None = None
    """Of the path that could be run; None if none could."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """What a token of the rows for the retain KL gives to keep, as `PassBytes.stored`."""
    notes: tuple[str, ...] = ()


def _trace(
    model: PreTrainedModel, adapted: Adapted, settings: StepSettings, terms: tuple[Term, ...], demand: Demand
) -> _Traced:
    reasons: list[str] = []
    for is_packed in (True, False):
        engine = empty_engine(model, adapted, settings, is_packed=is_packed)
        try:
            first = trace_step(engine, terms, demand.largest)
            return _Traced(
                # A second backward finds the gradients of the first in place.
                step=trace_step(engine, terms, demand.largest) if demand.is_split else first,
                reference=trace_reference(engine, needs_of(terms), demand.reference_group),
                scoring=trace_scoring(engine, demand.scoring_group),
                merging=0 if quantised_layers(model) else trace_merging(adapted),
                check=trace_check(engine, demand.longest),
                engine=engine,
                kept=trace_reference(engine, _OF_RETAIN_KL, demand.reference_group).stored if demand.kept.read else {},
            )
        except (RuntimeError, TypeError, AttributeError, AssertionError, ValueError, LookupError) as error:
            # Whatever an unknown architecture trips over without values, the guess below serves it, and says so.
            reasons.append(str(error).partition("\n")[0])
    note = (
        f"{type(model).__name__} cannot run on tensors without values ({'; '.join(reasons)}), so the memory of "
        "activations is a rough guess, that of the head, the objective and the reference's values is left out, and "
        "operations are estimated from the number of parameters"
    )
    return _Traced(StepBytes(_rough_activations(model, demand.largest), 0, 0), PassBytes(0, {}), 0, 0, 0, notes=(note,))


def _rough_activations(model: PreTrainedModel, piece: Piece) -> int:
    """20 numbers of the width a token and layer, what LoRA keeps where the MLP is four times as wide; rows padded."""
    config = model.config.get_text_config()
    longest = max((len(sequence.input_ids) for sequence in piece.sequences), default=0)
    padded = longest * len(piece.sequences)
    return int(padded * config.num_hidden_layers * 20 * config.hidden_size * product_dtype(model).itemsize)


def _store_bytes(stored: dict[str, Tensor], tokens: Tokens) -> int:
    """Return the bytes of the reference's values: what a token of each role takes, times such tokens."""
    roles = {"log_probs": tokens.answers, "is_likeliest": tokens.answers, "lower": tokens.read}
    roles |= {"forget_states": tokens.forget, "forget_norms": 0}
    roles |= dict.fromkeys(("general_embedding", "general_offset", "general_states"), tokens.general)
    total = 4 if "forget_norms" in stored else 0  # their mean
    for name, values in stored.items():
        per_token = values.element_size() * math.prod(values.shape[1:])
        total += per_token * roles.get(name, tokens.retain)
    return total


def _head_bytes(head: Head) -> int:
    """Return 4 V D, and 4 V more for a bias."""
    return 4 * (head.weight.numel() + (0 if head.bias is None else head.bias.numel()))
