"""The suite of LUME and SemEval-2025 Task 4, to the letter of the official script."""

from letheon.evaluation.suites.lume.suite import SUITE as SUITE
