"""Memorising: a job of the training loop that makes targets for unlearning."""
