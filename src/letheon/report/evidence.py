"""What a run's page says of its evidence: which model and rows each score is of, and how the run went on."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

from letheon.report.answers import Reading, general_reading
from letheon.report.files import RunFiles
from letheon.report.pairing import Pairing, read_of
from letheon.report.verdict import Ending
from letheon.scores.fluency import GENERAL
from letheon.scores.results import Results

Facts = tuple[tuple[str, str], ...]

_UNKNOWN = "not recorded"
_TOLD = ("model", "weights", "tokenizer", "forget", "retain")
"""What an evaluation read that is told of in other words."""


def run_ending(run: RunFiles) -> Ending | None:
    """Return how the run ended, by its attempts, its log and provenance.json; None where none of them is there."""
    result = _part(run.provenance, "result")
    end = (run.log.end if run.log else None) or {}
    if run.attempts:
        last = run.attempts[-1]
        if last.get("ended") is None or last.get("last_step") is None:
            return Ending(_text(last.get("reason")), None, is_over=False)
    elif not result and not end:
        return Ending(None, None, is_over=False) if run.log else None
    steps = result.get("num_steps", end.get("step"))
    num_steps = int(steps) if isinstance(steps, int | float) and math.isfinite(steps) else None
    return Ending(_text(result.get("reason") or end.get("reason")), num_steps)


def general_of(run: RunFiles) -> tuple[Reading, ...]:
    """Return whether the model's other answers have changed, by provenance.json; nothing where that is unknown."""
    general = {name: _number(value) for name, value in _part(_part(run.provenance, "fluency"), GENERAL).items()}
    return general_reading(
        {GENERAL: general}, _number(_part(_part(run.provenance, "result"), "kept").get("general_kl"))
    )


def evaluation_facts(run: RunFiles) -> tuple[tuple[str, Facts], ...]:
    """Return what each evaluation of a run says it scored, those that do not belong to it included."""
    if run.is_evaluation_only:
        return (("This evaluation", _facts(run.after.results)),) if run.after else ()
    return tuple((_heading(one), (*_facts(one.results), *_findings(one))) for one in run.pairings)


def coverage(run: RunFiles) -> Facts:
    """Return how many rows were given, trained on, without answer token and scored, by side."""
    found = []
    for side in ("forget", "retain"):
        facts = _part(run.provenance, side)
        if "num_rows" not in facts:
            continue
        given, trained = facts.get("num_given", facts["num_rows"]), facts["num_rows"]
        text = f"{given} given, {trained} trained on"
        if "num_without_answer" in facts:
            text += f" ({facts['num_without_answer']} of them without an answer token)"
        for name, evaluation in (("before", run.before), ("after", run.after)):
            scored = evaluation.results.num_rows.get(side) if evaluation else None
            if scored:
                text += f", {sum(scored.values())} scored {name}"
        found.append((f"{side} rows", text))
    return tuple(found)


def history(run: RunFiles) -> Facts:
    """Return one line for each attempt at the run."""
    return tuple((f"attempt {number}", _attempt(one)) for number, one in enumerate(run.attempts, 1))


def result_facts(run: RunFiles) -> Facts:
    """Return the fingerprints of the result of the run, and what merging into dequantised weights changed."""
    result = _part(run.provenance, "result")
    merging = _text(_part(result, "merging").get("sentence"))
    return (*_fingerprints(result), *(() if merging is None else (("merging", merging),)))


def _fingerprints(result: Mapping[str, Any]) -> Facts:
    return tuple(
        (name, str(result[key]))
        for name, key in (("model/", "model_sha256"), ("adapter/", "adapter_sha256"))
        if result.get(key)
    )


def _heading(pairing: Pairing) -> str:
    if pairing.differences:
        return f"{pairing.place}: not of this run"
    return f"{pairing.place}: {'cannot be checked' if pairing.unchecked else 'of this run'}"


def _findings(pairing: Pairing) -> Facts:
    return (
        *(("differs", text) for text in pairing.differences),
        *(("cannot be checked", text) for text in pairing.unchecked),
    )


def _facts(results: Results) -> Facts:
    read, provenance = read_of(results), results.provenance
    form = results.form
    asked = (
        _UNKNOWN
        if form is None
        else f"'{form.template}', date {form.date}{'' if form.differs else ' (as raw prompts)'}"
    )
    facts = [
        ("scored at", str(provenance.get("created_at", _UNKNOWN))),
        ("model", f"{results.model}, sha256 {read.get('model_sha256', _UNKNOWN)}"),
        ("form", asked),
    ]
    for side in ("forget", "retain"):
        source = _part(provenance, side).get("source", _UNKNOWN)
        facts.append((f"{side} rows", f"{source}, sha256 {read.get(f'{side}_sha256', _UNKNOWN)}"))
    others = [name.removesuffix("_sha256") for name in read if name.endswith("_sha256")]
    facts += [(name, f"sha256 {read[f'{name}_sha256']}") for name in others if name not in _TOLD]
    return tuple(facts)


def _attempt(one: Mapping[str, Any]) -> str:
    first, last, command = one.get("first_step"), one.get("last_step"), one.get("command")
    ended, reason = one.get("ended"), one.get("reason")
    if ended is None:
        text = (
            f"from {one.get('started')}, after step {first}; its end is not recorded: it was killed, or still goes on"
        )
    elif last == first and first:
        text = f"from {one.get('started')} to {ended}: nothing was left to train after step {first}"
    else:
        steps = f"from step {first} to {last}" if last is not None else f"after step {first}"
        text = f"from {one.get('started')} to {ended}, {steps}, ended because: {reason}"
    return f"{text}; {shlex.join(map(str, command))}" if isinstance(command, list) else text


def _part(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = mapping.get(name)
    return found if isinstance(found, Mapping) else {}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
