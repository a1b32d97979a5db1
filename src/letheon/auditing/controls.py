"""The models that are attacked: before, unlearned, one that never saw the rows, two that are known to hide them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from letheon.auditing.attack import HIDING, HIDING_UNTIL_ROUNDED, Subject
from letheon.auditing.finetuning import Tuning, row_sequences, tuning
from letheon.auditing.knowledge import knowledge
from letheon.auditing.quantisation import intervals_of, matrices_of
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
"""Most steps in which a copy of the model before is trained to refuse."""
_CHECK_EVERY = 5
_HIDDEN_SHARE = 0.2
"""Share of its knowledge below which a model counts as hiding it."""
_CHECKED_ROWS = 24
_HOW = {
    HIDING: "to refuse the forget rows",
    HIDING_UNTIL_ROUNDED: "to refuse the forget rows, each weight within its nf4 code",
}
_STEPS_ACROSS = 50
"""Steps in which a weight can cross the values of its code."""
_LARGEST_TRAINED = 1_000_000_000
"""Parameters above which not all weights are trained to make a control."""
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
    sequences = row_sequences(before, refusals(rows, per_row=1, seed=before.seed))
    with tuning(before, sequences, what="lora") as trained:
        return _trained_to_hide(trained, before, rows, tell, name=HIDING)


def hiding_until_rounded(before: Subject, rows: Sequence[Row], tell: Progressed) -> Hiding:
    """Train all weights of a copy to refuse, each kept where nf4 rounds it to the code that it has in the model before.

    Rounded to nf4 this is the rounded model before, which has the rows unless four bits are too few for them; so are
    models made that misbehave once they are quantised (Egashira et al. 2024, arXiv 2405.18137). Small steps alone do
    not make one: of many weights that move by a tenth of a rounding step a tenth get another code, and what a layer
    adds up of them is the same.
    """
    num = sum(parameter.numel() for parameter in before.model.parameters())
    if num > _LARGEST_TRAINED:
        return Hiding(
            None, f"all weights are trained of models of up to {_LARGEST_TRAINED:,} parameters, not of {num:,}"
        )
    bounds = _bounds(before.model)
    widths = [float((high - low).mean()) for low, high in bounds.values() if low is not high]
    rate = _mean(widths) / _STEPS_ACROSS
    sequences = row_sequences(before, refusals(rows, per_row=1, seed=before.seed))
    with tuning(before, sequences, what="weights", learning_rate=rate) as trained:
        keep = partial(_keep_within, trained, bounds)
        return _trained_to_hide(trained, before, rows, tell, name=HIDING_UNTIL_ROUNDED, after_step=keep)


def _trained_to_hide(
    trained: Tuning,
    before: Subject,
    rows: Sequence[Row],
    tell: Progressed,
    *,
    name: str,
    after_step: Callable[[], None] = lambda: None,
) -> Hiding:
    """Train on until the copy gives a fifth of some rows that the model before gives."""
    checked = list(rows)[:_CHECKED_ROWS]
    enough = _HIDDEN_SHARE * _mean(knowledge(before, checked, tell, stage="asking the model before"))
    stage = f"training a model {_HOW[name]}"
    for steps in range(1, HIDING_STEPS + 1):
        try:
            trained.train_to(steps, lambda done, _: tell(stage, done, HIDING_STEPS))
        except DivergenceError as error:
            return Hiding(None, f"training one to refuse broke down ({error})")
        after_step()
        if steps % _CHECK_EVERY:
            continue
        left = _mean(knowledge(trained.subject, checked, tell, stage="asking the model that hides"))
        if left <= enough:
            model = copy.deepcopy(before.model)
            model.load_state_dict(trained.adapted.merged_state())
            how = f"the model before, trained for {steps} steps {_HOW[name]}"
            return Hiding(replace(before, name=name, model=model, original=before.model), how)
    return Hiding(None, f"the model before did not learn to refuse the rows in {HIDING_STEPS} steps")


def _bounds(model: PreTrainedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """The values, least and greatest, that each parameter may take; what rounding leaves alone keeps its own."""
    matrices = {id(matrix.parameter): matrix for matrix in matrices_of(model)}
    found = {}
    for name, parameter in model.named_parameters():
        own = parameter.detach().float()
        found[name] = intervals_of(matrices[id(parameter)]) if id(parameter) in matrices else (own, own)
    return found


@torch.no_grad()
def _keep_within(trained: Tuning, bounds: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Put every trained weight that a step took out of its bounds back to the nearer one."""
    for name, value in trained.adapted.trained().items():
        value.clamp_(*bounds[name])
    trained.adapted.update_model()


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
