"""What the kept state says to rows that it forgot and to rows that it keeps, and a warning where that is gibberish."""

import logging
from collections.abc import Sequence

from letheon.data.sequences import TokenSequence
from letheon.errors import LetheonError
from letheon.evaluation.fluency import Said, answer_losses, fluency
from letheon.evaluation.generation import answers_from
from letheon.model.loading import LoadedModel
from letheon.scores.fluency import Fluencies
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

    What the answers cost the model before is only known where an adapter can be switched off, and of forget rows only
    where the run taught it no other answers: a refusal is unlikely before and still no gibberish. Nothing is returned,
    with a warning, where the model cannot be asked.
    """
    probes = problem.probes
    sides = {"forget": probes.answers[: probes.num_forget_rows], "retain": probes.answers[probes.num_forget_rows :]}
    try:
        return {
            side: _fluency_of(loaded, problem, _drawn(rows), costs=side == "retain" or not _is_taught(problem))
            for side, rows in sides.items()
        }
    except (LetheonError, RuntimeError, TypeError, AttributeError, ValueError, LookupError) as error:
        # A run that is trained is not lost because its architecture cannot generate.
        reason, _, _ = str(error).partition("\n")
        _logger.warning("the answers of the kept state were not looked at (%s: %s)", type(error).__name__, reason)
        return {}


def gibberish_note(found: Fluencies, settings: UnlearnSettings) -> str | None:
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
    prompts = [list(row.input_ids[: row.answer_start]) for row in rows]
    ends = {row.end[-1] for row in rows if row.end}
    answers = answers_from(loaded.model, loaded.tokenizer, prompts, more_ends=ends, max_new_tokens=NEW_TOKENS)
    texts = [answer.new[:-1] if answer.has_ended else answer.new for answer in answers]
    said = [Said(text, has_ended=answer.has_ended) for text, answer in zip(texts, answers, strict=True)]
    losses: list[float | None] = []
    if costs and problem.adapted.is_switchable:
        with problem.adapted.off():
            losses = answer_losses(loaded.model, prompts, texts)
    return fluency(said, losses_before=losses).flat()


def _drawn(rows: Sequence[TokenSequence]) -> Sequence[TokenSequence]:
    return rows[:: -(-len(rows) // NUM_ASKED)]
