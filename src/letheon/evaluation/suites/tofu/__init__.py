"""The suite of TOFU."""

from letheon.evaluation.suites.tofu.suite import SUITE as SUITE
