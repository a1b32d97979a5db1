"""The main job: a run from settings to a folder, alone or in a population."""
