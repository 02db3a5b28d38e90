"""Raw puzzles to tensors on disk to batches. Imports nothing of ours but `common`."""
