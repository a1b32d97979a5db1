"""The suites that a model can be scored by."""
