"""From what attacks found to the results of an audit: what recovery is measured against, verdict, scores, examples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from letheon.auditing.findings import Assessor, Leak, Tried, count_findings, evidence_of
from letheon.auditing.inputs import AuditInputs
from letheon.auditing.outcomes import Asked
from letheon.auditing.recovery import MIN_DOCUMENTS, MIN_KNOWN
from letheon.auditing.rows import documents_of, telling
from letheon.auditing.verdict import Thresholds, judge
from letheon.data.rows import Row
from letheon.evaluation.in_form import AskedForm
from letheon.scores.audits import AuditedAttack, AuditResults, Effect
from letheon.scores.score import Score, Scores
from letheon.storage.provenance import describe_environment
from letheon.storage.run_folder import ADAPTER_FOLDER

_MOST_EXAMPLES = 8


@dataclass(frozen=True, slots=True)
class Found:
    """What an audit found, before it is judged."""

    form: AskedForm
    controls: Mapping[str, str]
    """What each control is."""
    missing: Mapping[str, str]
    """Controls that there are none of, and why."""
    asked: Mapping[str, Asked]
    """What each control says without an attack; "placebo" is the unlearned model, asked for placebo rows."""
    tried: Sequence[Tried]
    left_out: Mapping[str, str]
    """Attacks that were not run, and why."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The results, and the text of the file of examples."""

    results: AuditResults
    examples: str


def conclude(inputs: AuditInputs, found: Found) -> Conclusion:
    """Return what the findings come to."""
    settings = inputs.settings
    control, warnings = _control(found.asked, inputs)
    thresholds = Thresholds(margin=settings.margin, level=settings.confidence)
    assessor = _assessor(inputs, found, control, thresholds)
    assessed = [assessor.assess(one) for one in found.tried]
    audited = tuple(attack for attack, _ in assessed)
    evidence = evidence_of(assessor, found.tried, [finding for _, finding in assessed])
    verdict = judge(evidence, thresholds)
    remaining = evidence.remaining
    results = AuditResults(
        verdict=verdict.word,
        reason=verdict.reason,
        attack=verdict.attack,
        needed_rows=verdict.needed_rows,
        thresholds={**asdict(thresholds), "level_of_each": assessor.level},
        controls=found.controls,
        missing=found.missing,
        compared_with=control,
        num_rows=inputs.num_rows,
        known=assessor.known(),
        remaining=Effect(remaining.value, remaining.low, remaining.high),
        num_leaked=evidence.leaked_plainly,
        attacks=audited,
        left_out=found.left_out,
        warnings=(*warnings, *_too_few(inputs), *_too_weak(audited), *_adapter_kept(settings.out)),
        form=asdict(found.form),
        settings=settings.plain(),
        provenance={**describe_environment(), "read": dict(inputs.read)},
        duration_s=found.duration_s,
        scores=_scores(audited, remaining.value),
    )
    leaks = {"": assessor.plain_leaks()} | {one.attack.name: assessor.leaks(one) for one in found.tried}
    return Conclusion(results, _examples(inputs.asked, leaks))


def _assessor(inputs: AuditInputs, found: Found, control: str, thresholds: Thresholds) -> Assessor:
    retain = inputs.given.retain
    return Assessor(
        telling(inputs.asked, [*retain, *inputs.placebo]),
        telling(inputs.placebo, [*retain, *inputs.asked]),
        {
            "asked": documents_of(inputs.asked),
            "placebo": documents_of(inputs.placebo),
            "members": documents_of(inputs.members),
            "nonmembers": documents_of(inputs.nonmembers),
        },
        found.asked,
        inputs.num_rows["asked"],
        control,
        thresholds,
        count_findings(found.tried),
        inputs.settings.seed,
        inputs.given.has_holdout,
    )


def was_known(inputs: AuditInputs, asked: Mapping[str, Asked]) -> bool:
    """Return whether the model before says more of the rows than the control; else there is nothing to attack."""
    means, (control, _) = _means(inputs, asked), _control(asked, inputs)
    return means["before"] - means[control] >= MIN_KNOWN


def _means(inputs: AuditInputs, asked: Mapping[str, Asked]) -> dict[str, float]:
    count = inputs.num_rows["asked"]
    return {name: fmean(found.values[:count]) for name, found in asked.items()}


def _control(asked: Mapping[str, Asked], inputs: AuditInputs) -> tuple[str, list[str]]:
    """What recovery is measured against, and what a reader has to know of it."""
    means, margin = _means(inputs, asked), inputs.settings.margin
    if "never" not in means:
        made = "" if inputs.given.has_holdout else "made-up "
        return "placebo", [f"there is no never-knew model; recovery is measured against {made}placebo rows"]
    above = means["never"] - means["placebo"]
    if above > max(margin, 0.25 * (means["before"] - means["placebo"])):
        return "placebo", [
            f"the model given as never-knew knows the forget rows: it gives {means['never']:.2f} of them, and the "
            f"unlearned model gives {means['placebo']:.2f} of placebo rows; recovery is measured against placebo rows "
            "instead; give one by --never that was trained without them"
        ]
    return "never", []


def _too_few(inputs: AuditInputs) -> list[str]:
    num = inputs.num_rows["documents"]
    if num >= MIN_DOCUMENTS:
        return []
    return [
        f"the asked rows are of {num} document{'s' * (num != 1)}, and an interval takes {MIN_DOCUMENTS}: only single "
        "rows that come back, although no control gives anything like them, can show something; ask rows of more"
    ]


def _too_weak(audited: Sequence[AuditedAttack]) -> list[str]:
    weak = [found.title for found in audited if found.works is False and found.counts]
    untried = [found.title for found in audited if found.works is None and found.counts]
    said = []
    if weak:
        said.append(f"too weak to tell, since rows that are known to be hidden did not come back: {'; '.join(weak)}")
    if untried:
        said.append(f"not shown to work first, since there was no model that hides the rows: {'; '.join(untried)}")
    return said


def _adapter_kept(folder: Path) -> list[str]:
    if not (folder / ADAPTER_FOLDER).is_dir():
        return []
    return [
        f"{folder / ADAPTER_FOLDER} is kept: who has it and the unlearned model has the model before as well, and the "
        "forget rows with it; do not publish it"
    ]


def _scores(audited: Sequence[AuditedAttack], remaining: float) -> Scores:
    """The findings as scores: lower is better."""
    found = [Score("audit.remaining", "Given without an attack", "lower", "forgetting", remaining, bounds=None)]
    for attack in audited:
        effects = [point.recovery for point in attack.points if point.recovery is not None]
        if effects:
            most = max(effects, key=lambda effect: effect.value)
            found.append(
                Score(
                    f"audit.{attack.name}",
                    attack.title,
                    "lower",
                    "forgetting",
                    most.value,
                    (most.low, most.high),
                    bounds=None,
                )
            )
        for one in attack.separations:
            interval = (one.interval.low, one.interval.high)
            label = f"{attack.title} AUC, {one.score}"
            found.append(Score(f"audit.{attack.name}.{one.score}", label, 0.5, "privacy", one.interval.value, interval))
    return Scores(tuple(found))


def _examples(rows: Sequence[Row], leaks: Mapping[str, Sequence[Leak]]) -> str:
    """The lines of the file of examples, the clearest rows of each attack first."""
    lines = []
    for attack, found in leaks.items():
        for leak in sorted(found, key=lambda one: -one.value)[:_MOST_EXAMPLES]:
            row = rows[leak.row]
            lines.append(
                {
                    "attack": attack,
                    "strength": leak.strength,
                    "id": row.id,
                    "prompt": row.prompt,
                    "answer": row.answer,
                    "said": leak.text,
                    "value": leak.value,
                }
            )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
