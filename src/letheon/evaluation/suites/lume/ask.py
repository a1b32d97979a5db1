"""What LUME's suite asks: rows, documents for the attack, questions of MMLU; read and checked without a model."""

from letheon.data.benchmarks.lume import check_membership_sets
from letheon.data.repeats import check_unseen
from letheon.data.rows import check_disjoint, read_documents, read_rows
from letheon.errors import EvaluationError
from letheon.evaluation.metrics.harness import check_harness
from letheon.evaluation.metrics.membership import check_members
from letheon.evaluation.metrics.mmlu import read_mmlu
from letheon.evaluation.suite import Asked, Note
from letheon.settings import EvaluateSettings


def ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    """Read and check all that the suite asks; `note` hears what was understood of the files of rows.

    Raises:
        DataError: rows or documents are not usable.
        EvaluationError: only one of --members and --nonmembers is given, or MMLU's folder is not one.
    """
    sources = (settings.forget, settings.retain)
    forget, retain = (read_rows(s, fields=settings.fields, turns=settings.turns, note=note) for s in sources)
    check_disjoint(forget, retain)
    documents = _documents(settings)
    check_members(documents.get("members", []), retain)
    check_unseen(documents.get("nonmembers", []), (forget, retain), source=f"nonmembers: {settings.nonmembers}")
    if settings.mmlu_harness:
        check_harness()
    if settings.mmlu_limit is not None and settings.mmlu is None and not settings.mmlu_harness:
        raise EvaluationError(
            "mmlu_limit: has no effect without --mmlu or --mmlu-harness; leave it out, or set one of them"
        )
    questions = {}
    if settings.mmlu is not None:
        questions["mmlu"] = read_mmlu(settings.mmlu, limit_per_subject=settings.mmlu_limit)
    return Asked(
        {"forget": forget, "retain": retain},
        {**documents, **questions},
        {"mmlu_limit": settings.mmlu_limit, "mmlu_harness": settings.mmlu_harness},
    )


def _documents(settings: EvaluateSettings) -> dict[str, list[str]]:
    if settings.members is None and settings.nonmembers is None:
        return {}
    if settings.members is None or settings.nonmembers is None:
        raise EvaluationError("the membership attack needs both --members and --nonmembers, but one of them is missing")
    if settings.members.exists() and settings.members.resolve() == settings.nonmembers.resolve():
        raise EvaluationError(
            f"nonmembers: {settings.nonmembers} is also --members; give documents that the model never saw"
        )
    members, nonmembers = read_documents(settings.members), read_documents(settings.nonmembers)
    check_membership_sets(members, nonmembers)
    return {"members": members, "nonmembers": nonmembers}
