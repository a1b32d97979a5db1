"""Studies: many runs over settings and seeds, searches, and what their scores say."""
