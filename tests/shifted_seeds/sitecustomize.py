"""Python runs this when it starts, in every process of `pytest --shift-seeds N` (see conftest.py).

Every `torch.manual_seed` gets another seed, so that all networks are others.
"""

import os

import torch

SHIFT = int(os.environ["SHIFT_SEEDS"])
manual_seed = torch.manual_seed


def shifted_manual_seed(seed: int) -> torch.Generator:
    return manual_seed(int(seed) + SHIFT)


torch.manual_seed = shifted_manual_seed
