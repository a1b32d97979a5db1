"""The experiment on a real language model (`python -m bench.real`)."""
