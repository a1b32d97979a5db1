"""The scores of MUSE's suite, what it asks, and what differs between the two codes that define it."""

from collections.abc import Mapping

from letheon.scores.score import Score

VERBMEM, FORGET_QUESTIONS, RETAIN_QUESTIONS = "verbatim_memory", "knowmem_forget", "knowmem_retain"
SETS = (VERBMEM, FORGET_QUESTIONS, RETAIN_QUESTIONS)
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
MEMORISATION = ("exact_memorisation", "extraction_strength", "extraction_strength_from_0")
PARITIES = ("open-unlearning", "original")
"""Whose definitions the scores can follow; the first by default."""
ORIGINAL = PARITIES[1]
PUBLISHED_AUC: Mapping[str, float] = {"news": 0.47719999999999996, "books": 0.5392999999999999}
"""How often MUSE's own retrained Llama 2 finds the text held out likelier, by Min-K: the original's constants."""
DEFAULT_AUC = 0.5

KNOWN = (
    Score(VERBMEM, "Verbatim memorisation", "lower", "forgetting", is_headline=True),
    Score(FORGET_QUESTIONS, "Forget knowledge", "lower", "forgetting", is_headline=True),
    Score(RETAIN_QUESTIONS, "Retain knowledge", "higher", "retention", is_headline=True),
    Score("exact_memorisation", "Exact memorisation", "lower", "forgetting"),
    Score("extraction_strength", "Extraction strength", "lower", "forgetting"),
    Score("extraction_strength_from_0", "Extraction strength from 0", "lower", "forgetting"),
    Score("mia.loss", "MIA AUC, loss", 0.5, "privacy"),
    Score("mia.zlib", "MIA AUC, zlib", 0.5, "privacy"),
    Score("mia.min_k", "MIA AUC, Min-K", 0.5, "privacy"),
    Score("mia.min_k_plus_plus", "MIA AUC, Min-K++", 0.5, "privacy"),
    Score("mia.reference", "MIA AUC, reference", 0.5, "privacy"),
    Score("privacy_leak", "Privacy leak (%)", 0.0, "privacy", bounds=None, is_headline=True),
)
SUMMARY_NAMES: Mapping[str, str] = {
    VERBMEM: "forget_verbmem_ROUGE",
    FORGET_QUESTIONS: "forget_knowmem_ROUGE",
    RETAIN_QUESTIONS: "retain_knowmem_ROUGE",
    "exact_memorisation": "exact_memorization",
    "extraction_strength": "extraction_strength",
    **{f"mia.{name}": f"mia_{name}" for name in (*ATTACKS, "reference")},
    "privacy_leak": "privleak",
}
"""What open-unlearning calls each score."""
ORIGINAL_NAMES: Mapping[str, str] = {
    VERBMEM: "verbmem_f",
    "privacy_leak": "privleak",
    FORGET_QUESTIONS: "knowmem_f",
    RETAIN_QUESTIONS: "knowmem_r",
}
"""What MUSE's own code calls them; all but privacy leak it gives in percent."""
