"""Tokens with a meaning of their own in every dataset of this family."""

from typing import Final

PAD: Final = 0
"""A cell without content: nothing is predicted there."""
MISSING: Final = 255
"""In all cells of a path: the example has none. So a vocabulary has at most 255 tokens."""
