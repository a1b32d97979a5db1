"""The dial: how much of what was trained is kept, chosen after training."""
