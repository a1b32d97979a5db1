"""The suite of RWKU."""

from letheon.evaluation.suites.rwku.suite import SUITE as SUITE
