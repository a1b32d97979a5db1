"""Benchmarks: rows as they are published, or made up."""
