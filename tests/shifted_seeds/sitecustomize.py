"""Python runs this when it starts, in every process of `pytest --shift-seeds N` (see conftest.py).

Every `torch.manual_seed` gets another seed, so that all networks are others. Torch is not imported
for it: the function is replaced when its module is.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SHIFT = int(os.environ["SHIFT_SEEDS"])
MODULE = "torch.random"


def shift(module: ModuleType) -> None:
    real = module.manual_seed
    module.manual_seed = lambda seed: real(int(seed) + SHIFT)


class ShiftingFinder:
    """Finds the one module, and changes it once it has been executed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == MODULE else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                shift(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, ShiftingFinder)
