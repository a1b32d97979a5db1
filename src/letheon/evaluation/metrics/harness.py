"""MMLU through lm-evaluation-harness, for numbers that compare with other publications; optional extra `harness`."""

from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.errors import EvaluationError, MissingExtraError
from letheon.evaluation.metrics.found import MmluScores
from letheon.evaluation.metrics.mmlu import NUM_SHOTS

_PREFIX = "mmlu_"


def check_harness() -> None:
    """Check that lm-evaluation-harness is there.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec("lm_eval") is None:
        raise MissingExtraError("MMLU through lm-evaluation-harness", "harness")


def mmlu_with_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 32,
    limit_per_subject: int | None = None,
) -> MmluScores:
    """Return five-shot MMLU as lm-evaluation-harness scores it (task `mmlu`, which it downloads).

    Differs from `score_mmlu`, the official one, in prompt details and in comparing the letters' log-likelihoods, so the
    two accuracies differ slightly.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        EvaluationError: it returned no subject.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise MissingExtraError("MMLU through lm-evaluation-harness", "harness") from error
    output: dict[str, Any] = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=["mmlu"],
        num_fewshot=NUM_SHOTS,
        limit=limit_per_subject,
    )
    return _scores(output, limit_per_subject)


def _scores(output: dict[str, Any], limit_per_subject: int | None) -> MmluScores:
    # The results also hold groups ("mmlu", "mmlu_stem"), which have no samples of their own.
    counts = {
        task: int(number["effective"]) for task, number in output["n-samples"].items() if task.startswith(_PREFIX)
    }
    total = sum(counts.values())
    if total == 0:
        raise EvaluationError("lm-evaluation-harness returned no MMLU subject; is its version at least 0.4.9?")
    accuracies = {task: float(output["results"][task]["acc,none"]) for task in counts}
    return MmluScores(
        accuracy=sum(accuracies[task] * count for task, count in counts.items()) / total,
        subjects={task.removeprefix(_PREFIX): accuracy for task, accuracy in sorted(accuracies.items())},
        num_questions=total,
        num_shots=NUM_SHOTS,
        limit_per_subject=limit_per_subject,
    )
