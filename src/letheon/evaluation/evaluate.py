"""A model scored by a suite: what the suite measures, aggregated, with how it was measured."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from letheon.evaluation.fluency import answer_fluency
from letheon.evaluation.suite import Asked, Suite, Target
from letheon.model.widening import product_dtype
from letheon.scores.results import Evaluation, PlainResults


def evaluate_suite(
    suite: Suite, target: Target, asked: Asked, *, model_name: str, provenance: Mapping[str, Any]
) -> Evaluation:
    """Measure what the suite asks of a model, and score it.

    Raises:
        EvaluationError: as the suite's own functions.
    """
    start = time.monotonic()
    measured = suite.measure(target, asked)
    settings = {
        "exact": target.exact,
        "whole_generations": target.whole_generations,
        "batch_size": target.batch_size,
        "max_new_tokens": target.max_new_tokens,
        "dtype": str(target.model.dtype).removeprefix("torch."),
        "products": str(product_dtype(target.model)).removeprefix("torch."),
        "device": str(target.model.device),
    }
    blank = PlainResults(suite.name, model_name, settings=settings, provenance=dict(provenance))
    results = suite.aggregate(blank, measured).with_fluency(answer_fluency(measured.in_form or measured.predictions))
    timed = replace(results, duration_s=time.monotonic() - start)  # type: ignore[type-var]
    return Evaluation(timed, measured.predictions, measured.in_form)
