"""What is swapped in while a model runs."""
