"""What an audit would do, without weights: attacks, controls and rows."""

from letheon.auditing.inputs import Note, read_audited
from letheon.auditing.recovery import fewest_documents
from letheon.settings import AuditSettings


def plan_audit(settings: AuditSettings, *, note: Note) -> list[str]:
    """Return, line by line, which attacks would be run on what, the cheapest first, and which would not and why.

    Raises:
        LetheonError: models, rows or settings are not usable or do not go together.
    """
    inputs = read_audited(settings, note=note)
    counts, left_out = inputs.num_rows, inputs.left_out
    controls = ["the model before", "the unlearned model", "a model made to hide the rows"]
    controls += ["one made to hide them until its weights are rounded"] if inputs.has_rounding else []
    controls += ["a never-knew model"] if inputs.given.has_never else []
    source = "of --holdout" if inputs.given.has_holdout else "made up"
    wanted = [attack for attack in inputs.attacks if attack.name not in left_out]
    fewest = fewest_documents(settings.margin)
    enough = "enough" if counts["documents"] >= fewest else "too few"
    lines = [
        f"models: {', '.join(controls)}",
        f"rows: {counts['asked']} of {counts['forget']} forget rows, as many placebo rows ({source})",
        f"documents: {counts['documents']}, {enough} for the verdict gone, which takes at least {fewest} with a margin "
        f"of {settings.margin:g}",
        f"attacks, the cheapest first: {len(wanted)}, about {sum(a.passes for a in wanted):.0f} times the cost of "
        "asking these rows of each model",
    ]
    lines += [f"  {a.name}: {a.title} (about {a.passes:g} times; {a.source})" for a in wanted]
    lines += ["left out:", *(f"  {name}: {reason}" for name, reason in left_out.items())] if left_out else []
    return lines
