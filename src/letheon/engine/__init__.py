"""From a packed batch to what the losses see: trunk, head, reference."""
