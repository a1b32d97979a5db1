"""How an answer to one of RWKU's probes is scored."""

from letheon.evaluation.metrics.distinct_words import distinct_rouge_l
from letheon.evaluation.suites.rwku.prompts import NO_ANSWER
from letheon.scores.predictions import Prediction


def recall_of(prediction: Prediction) -> float:
    """Return the ROUGE-L recall of an answer to a probe, over distinct words; an empty one counts as "NOANSWER"."""
    return distinct_rouge_l(prediction.generation.strip() or NO_ANSWER, prediction.answer)
