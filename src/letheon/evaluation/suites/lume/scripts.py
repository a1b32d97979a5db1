"""What the official scores miss of a script: they know the letters a-z and digits, and compare code points."""

from typing import TYPE_CHECKING

from letheon.evaluation.metrics.found import RougeDrops

if TYPE_CHECKING:
    from letheon.evaluation.suites.lume.results import SplitScores

_KINDS = ("regurgitation", "knowledge")
_MISSES = "the official score misses a part of this script"


def script_notes(forget: "SplitScores | None", retain: "SplitScores | None") -> dict[str, dict[str, str]]:
    """Say by split and kind what the official scores miss; a kind of which nothing is missed is left out.

    What they miss of one split concerns both, which are compared with each other.
    """
    splits = {name: scores for name, scores in (("forget", forget), ("retain", retain)) if scores is not None}
    own = {name: _notes(name, scores) for name, scores in splits.items()}
    missed = [kind for kind in _KINDS if any(_misses(scores, kind) for scores in splits.values())]
    found = {kind: next((notes[kind] for notes in own.values() if kind in notes), _MISSES) for kind in missed}
    return {name: {kind: own.get(name, {}).get(kind, found[kind]) for kind in missed} for name in ("forget", "retain")}


def script_warnings(split: str, scores: "SplitScores") -> list[str]:
    """Say what the official scores of `split` miss of its script; nothing for English."""
    return list(_notes(split, scores).values())


def _misses(scores: "SplitScores", kind: str) -> bool:
    if kind == "regurgitation":
        return scores.rouge_drops is not None and scores.rouge_drops.matters
    return any(task.unicode_knowledge not in (None, task.knowledge) for task in scores.tasks.values())


def _notes(split: str, scores: "SplitScores") -> dict[str, str]:
    found = {}
    if scores.rouge_drops is not None and scores.rouge_drops.matters:
        found["regurgitation"] = f"{split}: {_what_is_dropped(scores.rouge_drops)}; the Unicode variant is beside it"
    official, variant = scores.overall.knowledge, scores.overall.unicode_knowledge
    if official is not None and variant is not None and official != variant:
        num_more = round((variant - official) * scores.overall.num_questions)
        found["knowledge"] = (
            f"{split}: exact match compares characters after lower(): {num_more} of {scores.overall.num_questions} "
            "questions are answered rightly only up to NFKC and case folding; the Unicode variant is beside it"
        )
    return found


def _what_is_dropped(drops: RougeDrops) -> str:
    text = (
        "ROUGE keeps only a-z and 0-9: it drops "
        f"{_percent(drops.num_dropped / drops.num_letters)} of the letters of the references"
    )
    if not drops.num_emptied:
        return text
    return (
        f"{text} ({drops.num_emptied} of {drops.num_answers} completions have none left, which score 0 whatever the "
        "model says)"
    )


def _percent(share: float) -> str:
    """A share as a whole number of percent, but 100% only for all of it and 0% only for none."""
    return "less than 1%" if 0 < share < 0.01 else f"{min(round(100 * share), 99) if share < 1 else 100}%"
