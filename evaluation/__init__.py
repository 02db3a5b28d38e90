"""Predictions to votes to scores to pages. Imports of ours: `common`, `dataset`, `models`."""
