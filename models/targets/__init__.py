"""Target generators: a target for every improvement step (DIS, arXiv 2511.16886 §4).

To add one, write a class with `__call__(request)` in a file of its own here, see `request`, and
give it a line below; `supervision.targets=<name>` selects it.
"""

from models.targets.edits import ColourEdits, ComponentEdits, RowEdits
from models.targets.linear import FinalTargets, LinearTargets
from models.targets.noise import MaskTargets, ReplaceTargets
from models.targets.request import TargetGenerator
from models.targets.stored import StoredTargets

TARGETS: dict[str, TargetGenerator] = {
    "linear": LinearTargets(),
    "final": FinalTargets(),
    "mask": MaskTargets(),
    "replace": ReplaceTargets(),
    "edits_by_row": RowEdits(),
    "edits_by_component": ComponentEdits(),
    "edits_by_colour": ColourEdits(),
    "file": StoredTargets(),
}
