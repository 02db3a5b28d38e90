"""Measurements as commands: each answers one question, by ratios within one run."""
