"""Results as data: scores with their names, directions and roles, predictions, result files; without torch."""
