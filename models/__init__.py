"""Batch to logits to loss. Imports nothing of ours but `common`."""
