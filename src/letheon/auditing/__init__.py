"""Attacks on an unlearned model: does what was forgotten come back?"""
