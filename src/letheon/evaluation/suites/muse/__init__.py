"""The suite of MUSE."""

from letheon.evaluation.suites.muse.suite import SUITE as SUITE
