"""What is measured of a model or of its text, whatever the suite."""
