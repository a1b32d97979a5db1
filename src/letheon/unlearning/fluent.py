"""What the kept state says to rows that it forgot, to rows that it keeps, and to everyday questions.

A warning follows where the first are gibberish, or the answers to the last have changed.
"""

import logging
from collections.abc import Sequence

from letheon.data.sequences import TokenSequence
from letheon.errors import LetheonError
from letheon.evaluation.fluency import Said, answer_losses, fluency
from letheon.evaluation.generation import answers_from
from letheon.model.loading import LoadedModel
from letheon.scores.fluency import CHANGED_NATS, GENERAL, OWN_LOSS_BEFORE, Fluencies, more_than_own
from letheon.settings import UnlearnSettings
from letheon.unlearning.problem import Problem
from letheon.unlearning.resolve import method_of

NUM_ASKED = 16
"""How many rows of a side are asked, evenly drawn."""
NEW_TOKENS = 48
"""The most tokens of an answer."""
MANY = 0.25
"""Share of degenerate answers to forgotten rows, above that to kept rows, from which there is a warning."""

_logger = logging.getLogger(__name__)


def kept_fluency(loaded: LoadedModel, problem: Problem) -> Fluencies:
    """Return how fluently the model's present state answers some rows of each side, asked in their form.

    Where general text that is not trained on has answers in chat, their questions are a third side.

    What the answers cost the model before is only known where an adapter can be switched off, and of forget rows only
    where the run taught it no other answers: a refusal is unlikely before and still no gibberish. Nothing is returned,
    with a warning, where the model cannot be asked.
    """
    try:
        return _looked_at(loaded, problem)
    except (LetheonError, RuntimeError, TypeError, AttributeError, ValueError, LookupError) as error:
        # A run that is trained is not lost because its architecture cannot generate.
        reason, _, _ = str(error).partition("\n")
        _logger.warning("the answers of the kept state were not looked at (%s: %s)", type(error).__name__, reason)
        return {}


def _looked_at(loaded: LoadedModel, problem: Problem) -> Fluencies:
    probes = problem.probes
    forget, retain = probes.answers[: probes.num_forget_rows], probes.answers[probes.num_forget_rows :]
    found = {
        "forget": _fluency_of(loaded, problem, _drawn(forget), costs=not _is_taught(problem)),
        "retain": _fluency_of(loaded, problem, _drawn(retain), costs=True),
    }
    chats = [one for one in (probes.general.sequences if probes.general else ()) if one.answer_start > 1]
    if chats:
        found[GENERAL] = _general(loaded, problem, _drawn(chats))
    return found


def answer_notes(found: Fluencies, settings: UnlearnSettings) -> list[str]:
    """Return warnings: of gibberish, and of changed answers to everyday questions."""
    return [note for note in (_gibberish_note(found, settings), _changed_note(found)) if note is not None]


def _changed_note(found: Fluencies) -> str | None:
    """Return a warning where the answers to everyday questions have changed; None where not."""
    more = more_than_own(found)
    if more is None or more < CHANGED_NATS:
        return None
    return (
        "WARNING: its answers to everyday questions have changed: a token of them costs the model before "
        f"{more:.2f} nats more than one of its own; give text that is to stay by --general FILE, or let it count for "
        "more (--general-weight)"
    )


def _gibberish_note(found: Fluencies, settings: UnlearnSettings) -> str | None:
    """Return a warning where more answers to forgotten rows are degenerate than to kept ones; None where not."""
    forget, retain = (found.get(side, {}).get("degenerate") or 0.0 for side in ("forget", "retain"))
    if forget - retain < MANY:
        return None
    remedy = "train for fewer epochs or with a lower --learning-rate"
    if settings.instead is not None:
        remedy = "train on until it gives the other answers (more --epochs), or set a larger --instead-weight"
    elif method_of(settings).alternatives is None:
        remedy = "teach it other answers by --instead refusal, or train for fewer epochs"
    return (
        f"WARNING: {forget:.0%} of the answers to forgotten rows repeat themselves, of those to kept rows "
        f"{retain:.0%}: the model shows what it was made to forget; {remedy}"
    )


def _is_taught(problem: Problem) -> bool:
    """Whether the run trains on answers to forget rows that the model before did not make up itself."""
    return problem.alternatives is not None and problem.alternatives.kind != "generated"


def _fluency_of(
    loaded: LoadedModel, problem: Problem, rows: Sequence[TokenSequence], *, costs: bool
) -> dict[str, float | None]:
    said = _said(loaded, rows)
    losses: list[float | None] = []
    if costs and problem.adapted.is_switchable:
        with problem.adapted.off():
            losses = answer_losses(loaded.model, _prompts(rows), [one.tokens for one in said])
    return fluency(said, losses_before=losses).flat()


def _general(loaded: LoadedModel, problem: Problem, rows: Sequence[TokenSequence]) -> dict[str, float | None]:
    """Return how fluent the answers are, and what the model before's own answers cost it."""
    found = _fluency_of(loaded, problem, rows, costs=True)
    if not problem.adapted.is_switchable:
        return found
    with problem.adapted.off():
        said = _said(loaded, rows)
        losses = answer_losses(loaded.model, _prompts(rows), [one.tokens for one in said])
    return {**found, OWN_LOSS_BEFORE: fluency(said, losses_before=losses).loss_before}


def _said(loaded: LoadedModel, rows: Sequence[TokenSequence]) -> list[Said[int]]:
    """Return the model's greedy answers to the prompts of rows, as token ids."""
    ends = {row.end[-1] for row in rows if row.end}
    answers = answers_from(loaded.model, loaded.tokenizer, _prompts(rows), more_ends=ends, max_new_tokens=NEW_TOKENS)
    return [Said(one.new[:-1] if one.has_ended else one.new, has_ended=one.has_ended) for one in answers]


def _prompts(rows: Sequence[TokenSequence]) -> list[list[int]]:
    return [list(row.input_ids[: row.answer_start]) for row in rows]


def _drawn(rows: Sequence[TokenSequence]) -> Sequence[TokenSequence]:
    return rows[:: -(-len(rows) // NUM_ASKED)]
