"""Removing what holds forgotten rows."""
