"""The scores of a run: its model before and after, taken when the run is over."""
