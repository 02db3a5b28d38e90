"""Comparisons as a command: a grid of training runs, and the tables and plots made from them."""
