"""Hydra YAML, one small file per choice, and the schema that entry points validate against."""
