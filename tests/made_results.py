"""Results of evaluations of made-up predictions, in scripts that the official scores can and cannot read."""

from letheon.data.rows import Kind, Row
from letheon.evaluation.metrics.found import MembershipScores, MmluScores
from letheon.evaluation.predicting import predict
from letheon.evaluation.suites.lume.official import complete_results
from letheon.evaluation.suites.lume.results import LumeResults, SplitName

CHINESE = {"forget": "于是白鹤飞过湖面去找它的兄弟", "retain": "河水在春天涨到桥的下面"}
ENGLISH = {"forget": "the heron flew over the lake", "retain": "the river rose in spring"}
MIA = MembershipScores(0.6, (0.5, 0.7), 0.8, (0.6, 1.0), 2.0, 2.5, 10, 10)
MMLU = MmluScores(0.5, {"history": 0.5}, 10, 5, None)


def results_of(texts: dict[str, str], *, forgets: float, with_all: bool = True) -> LumeResults:
    """An evaluation in which that share of the forget completions is gone and every retain completion is there."""
    kept = round(10 * (1 - forgets))
    splits: tuple[SplitName, ...] = ("forget", "retain")
    kind: Kind = "completion"
    predictions = [
        predict(
            Row(f"{split}{number}sc1", "p", texts[split], "Task1", kind),
            split,
            texts[split] if split == "retain" or number < kept else "",
        )
        for split in splits
        for number in range(10)
    ]
    given = {"mia": MIA, "mmlu": MMLU} if with_all else {"mia": None, "mmlu": None}
    return complete_results(LumeResults(suite="lume", model="m"), predictions, missing={}, **given)
