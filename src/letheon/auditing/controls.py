"""The models that are attacked: before, unlearned, one that never saw the rows, one that is known to hide them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from letheon.auditing.attack import Subject
from letheon.auditing.finetuning import row_sequences, tuning
from letheon.auditing.knowledge import knowledge
from letheon.data.alternatives import refusals
from letheon.data.rows import Row
from letheon.errors import DivergenceError, ModelError
from letheon.memorizing.memorize import MemorizeProgress, memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import LoadedModel, load_config, load_model, move_model, save_model, stored_dtype
from letheon.model.precision import choose_precision
from letheon.processes import on_first
from letheon.progress import Progressed
from letheon.settings import AuditSettings

HIDING_STEPS = 100
"""Most steps in which the model before is trained to refuse."""
_CHECK_EVERY = 5
_HIDDEN_SHARE = 0.2
"""Share of its knowledge below which a model counts as hiding it."""
_CHECKED_ROWS = 24
_LARGEST_NEVER = 100_000_000
"""Parameters above which no never-knew model is trained on the side."""


@dataclass(frozen=True, slots=True)
class Hiding:
    """A model that is known to hide the rows, or why there is none."""

    subject: Subject | None
    how: str


def load(
    source: str, settings: AuditSettings, tokenizer: PreTrainedTokenizerBase, note: Callable[[str], None]
) -> LoadedModel:
    """Load one control.

    Raises:
        ModelError: it cannot be used.
    """
    config = load_config(source, trust_remote_code=settings.trust_remote_code)
    chosen = choose_precision(stored_dtype(source, config), asked=settings.dtype, device=settings.device)
    return load_model(
        source,
        dtype=chosen.precision,
        tokenizer=tokenizer,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        dequantise=True,  # attacks train and round the weights themselves
        note=note,
    )


def hiding(before: Subject, rows: Sequence[Row], tell: Progressed) -> Hiding:
    """Train a copy of the model before to refuse the forget rows, until it gives a fifth of them at most.

    The rows are only hidden: so few steps on other answers remove nothing, and an attack that does not bring the rows
    back is too weak. What else the model forgets does not matter here, so rows to keep are not trained on.
    """
    checked = list(rows)[:_CHECKED_ROWS]
    enough = _HIDDEN_SHARE * _mean(knowledge(before, checked, tell, stage="asking the model before"))
    sequences = row_sequences(before, refusals(rows, per_row=1, seed=before.seed))
    with tuning(before, sequences, what="lora") as trained:
        for steps in range(_CHECK_EVERY, HIDING_STEPS + 1, _CHECK_EVERY):
            try:
                trained.train_to(steps, lambda done, _: tell("training a model to hide the rows", done, HIDING_STEPS))
            except DivergenceError as error:
                return Hiding(None, f"training one to refuse broke down ({error})")
            left = _mean(knowledge(trained.subject, checked, tell, stage="asking the model that hides"))
            if left <= enough:
                model = copy.deepcopy(before.model)
                model.load_state_dict(trained.adapted.merged_state())
                how = f"the model before, trained for {steps} steps to refuse the forget rows"
                return Hiding(replace(before, name="hiding", model=model, original=before.model), how)
    return Hiding(None, f"the model before did not learn to refuse the rows in {HIDING_STEPS} steps")


def make_never(
    before: Subject, rows: Sequence[Row], text: Sequence[str], folder: Path, *, source: str, tell: Progressed
) -> None:
    """Train a model of the same architecture on rows to keep and text alone, and save it to `folder`.

    Raises:
        ModelError: the model, named `source`, is too large to be trained on the side.
    """
    num = sum(parameter.numel() for parameter in before.model.parameters())
    if num > _LARGEST_NEVER:
        raise ModelError(
            f"{source}: --make-never trains models of at most {_LARGEST_NEVER:,} parameters, this one has {num:,}; "
            "train one without the forget rows and give it by --never"
        )
    model, tokenizer, form = _new_like(before.model, before.seed), before.tokenizer, before.form

    def show(now: MemorizeProgress) -> None:
        tell("training a never-knew model", now.step, now.max_steps)

    options = MemorizeOptions(seed=before.seed, target_accuracy=0.98, max_steps=1500)
    memorize(
        model,
        tokenizer,
        rows=rows,
        text=text,
        template=form.template,
        date=form.date,
        options=options,
        progress=show,
    )
    on_first(lambda: save_model(model, tokenizer, folder))


def _new_like(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # not the weights that the target may have begun with
        made: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=torch.float32)
    move_model(made, str(model.device))
    return made


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
