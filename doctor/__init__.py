"""The machine before the first run: what is there, what is missing, what it would cost."""
