"""One model and its rows, made ready for our step and the plain one alike."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.machine import Timing, timed
from bench.plain import PaddedBatch, Weights, pad, plain_loss
from bench.rows import Workload
from letheon.data.packing import NUM_PROBE_ROWS, pack
from letheon.data.rows import Row
from letheon.data.schedules import MixedSchedule
from letheon.engine.paths import build_engine
from letheon.engine.reference import build_reference
from letheon.model.adapters import LoraAdapter, LoraSettings, attach_lora
from letheon.objective.catalogue import get_method
from letheon.objective.methods import resolve
from letheon.objective.parts import Term, needs_of
from letheon.settings import UnlearnSettings
from letheon.training.optimiser import build_optimiser
from letheon.training.step import accumulate
from letheon.unlearning.interim import Probes
from letheon.unlearning.problem import Problem

WEIGHTS = Weights()
LEARNING_RATE = 1e-4
_SETTINGS = UnlearnSettings.model_fields


@dataclass(frozen=True, slots=True)
class Case:
    """A model with an adapter, its rows and steps, and the reference stored of them."""

    adapted: LoraAdapter
    work: Workload
    problem: Problem
    reference_time: Timing
    """Of the pass that filled the reference store."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.adapted.model.device


def terms(weights: Weights) -> tuple[Term, ...]:
    """Return the terms of the paper's loss."""
    method = get_method("low-rank-npo")
    given = {"beta": weights.beta, "gamma": weights.gamma, "delta": weights.delta}
    return method.terms(resolve(method, given))


def adapt(model: PreTrainedModel, *, rank: int = 5) -> LoraAdapter:
    """Return the model with the paper's adapter in it."""
    return attach_lora(model, LoraSettings(rank=rank, alpha=rank), seed=0)


def build_case(adapted: LoraAdapter, work: Workload) -> Case:
    """Let the engine check itself on a few rows, the longest among them, and fill the reference store."""
    device = adapted.model.device
    by_length = sorted(range(len(work.sequences)), key=lambda row: len(work.sequences[row].input_ids))
    probed = [*by_length[:-1][: NUM_PROBE_ROWS - 1], by_length[-1]]
    probe = pack(
        [work.sequences[row] for row in probed], is_forget=[work.is_forget[row] for row in probed], row_index=probed
    )
    engine = build_engine(adapted.model, probe.to(device), adapter_off=adapted.off)
    assert engine.path == "packed", engine.notes
    wanted = terms(WEIGHTS)
    with engine.running():
        reference_time, reference = timed(
            lambda: build_reference(engine, work.sequences, num_forget_rows=work.num_forget, needs=needs_of(wanted)),
            device,
        )
    rows = [Row(f"row {number}", "", "", "", "question") for number in range(len(work.sequences))]
    problem = Problem(
        engine=engine,
        adapted=adapted,
        rows=rows,
        sequences=work.sequences,
        num_forget_rows=work.num_forget,
        reference=reference,
        terms=wanted,
        schedule=MixedSchedule(len(rows), max(map(len, work.steps)), 0),
        probes=Probes(rows, work.sequences, work.num_forget),
        start=None,
    )
    return Case(adapted, work, problem, reference_time)


def padded(work: Workload, rows: list[int], device: torch.device) -> PaddedBatch:
    """Return the rows of a step as the plain step takes them."""
    return pad([work.sequences[row] for row in rows], [work.is_forget[row] for row in rows], device=device)


def our_optimiser(case: Case) -> torch.optim.Optimizer:
    """Return Adam as a run has it."""
    return build_optimiser(case.adapted.parameters(), name="adam", learning_rate=LEARNING_RATE, weight_decay=0.0)


def our_loss(case: Case, rows: list[int]) -> float:
    """Add the gradients of one step to the adapter and return its loss."""
    parts, _ = accumulate(case.problem, rows, max_tokens=_SETTINGS["max_batch_tokens"].default)
    return sum(term.weight * (parts[term.name] or 0.0) for term in case.problem.terms)


def update(case: Case, optimiser: torch.optim.Optimizer) -> None:
    """Measure the gradient's norm, as a run does of each step, and let the optimiser take the step."""
    float(torch.nn.utils.clip_grad_norm_(case.adapted.parameters(), float("inf")))
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def our_step(case: Case, rows: list[int], optimiser: torch.optim.Optimizer) -> float:
    """Take one step as a run does and return the loss before it; the caller holds `engine.running()` open."""
    loss = our_loss(case, rows)
    update(case, optimiser)
    return loss


@dataclass(frozen=True, slots=True)
class Result:
    """What a step computes: its loss and the gradients of the adapter."""

    loss: float
    gradients: list[Tensor]

    def flat(self) -> Tensor:
        """Return all gradients as one vector."""
        return torch.cat([gradient.flatten() for gradient in self.gradients])


def adapter_gradients_by_ours(case: Case) -> list[Result]:
    """Return loss and gradients of each step of the case by our engine."""
    with case.problem.engine.running():
        return [Result(our_loss(case, rows), _taken(case.adapted)) for rows in case.work.steps]


def adapter_gradients_by_plain(adapted: LoraAdapter, work: Workload) -> list[Result]:
    """Return the same by the plain step."""
    found = []
    for rows in work.steps:
        loss = plain_loss(adapted.peft, padded(work, rows, adapted.model.device), WEIGHTS)
        loss.backward()
        found.append(Result(loss.item(), _taken(adapted)))
    return found


def _taken(adapted: LoraAdapter) -> list[Tensor]:
    found = []
    for parameter in adapted.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad)
        parameter.grad = None
    return found
