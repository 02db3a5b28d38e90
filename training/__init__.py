"""What a run needs around the model. Imports of ours: `common` and `models`."""
