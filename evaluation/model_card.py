"""The model card: what an exported model is, what was measured of it, and how it is used.

Markdown with YAML in front, as the Hugging Face hub reads it. Only what was measured stands in it;
`model_card.md.j2` holds its words.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from pydantic import BaseModel

from common.json_files import read_object
from common.settings import validate
from dataset.canvas import VOCAB_SIZE
from evaluation.results import METRICS_FILE
from models.pretrained import StoredModel

SHOWN = (
    "pass@1",
    "pass@2",
    "pass@2_test_inputs",
    "solved",
    "exact_accuracy",
    "cell_accuracy",
)
"""Metrics of the card, as far as they were measured."""
LIBRARY = "deep-improvement-supervision"
TAGS = ("arc-agi", "recursive-reasoning", "tiny-recursive-model", LIBRARY)


@dataclass(frozen=True)
class Measured:
    """Scores, and what they are over."""

    name: str
    """Of the test set."""
    split: str
    how: str
    """In words: how much was predicted, and what of it is not as by default."""
    metrics: Mapping[str, float]
    """Those of `SHOWN` that there are."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides what the model itself tells."""

    name: str
    sizes: Mapping[str, int]
    """See `models.build.describe`."""
    measured: Sequence[Measured]
    training: Mapping[str, str]
    """How it was trained: name -> value."""
    imported_from: str | None = None
    """Whose checkpoint it was; None: of this project."""


def write_card(stored: StoredModel, facts: CardFacts) -> str:
    """The text of the card."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found = stored.facts()
    words = _words(stored)
    is_arc = found.vocab_size == VOCAB_SIZE and "puzzle" not in words
    known = found.tasks or tuple(stored.tasks)
    front = yaml.safe_dump(_front_matter(stored, facts), sort_keys=False, allow_unicode=True)
    return environment.get_template("model_card.md.j2").render(
        front=front.rstrip(),
        facts=facts,
        library=LIBRARY,
        arch=stored.arch,
        supervision=stored.supervision,
        kind=stored.kind,
        found=found,
        side=math.isqrt(found.seq_len),
        is_arc=is_arc,
        known=known,
        words={name: _text(value) for name, value in words.items()},
        digest=stored.dataset.get("identifiers_sha256"),
        columns=[name for name in SHOWN if any(name in m.metrics for m in facts.measured)],
    )


def _words(stored: StoredModel) -> dict[str, Any]:
    words = stored.dataset.get("description")
    return words if isinstance(words, dict) else {}


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _front_matter(stored: StoredModel, facts: CardFacts) -> dict[str, Any]:
    words = _words(stored)
    datasets = words.get("subsets", words.get("puzzle"))
    results = [
        {
            "task": {"type": "other", "name": "abstract reasoning puzzles"},
            "dataset": {"name": measured.name, "type": "other", "split": measured.split},
            "metrics": [
                {"type": name, "name": f"{name} ({measured.how})", "value": round(value, 6)}
                for name, value in measured.metrics.items()
            ],
        }
        for measured in facts.measured
    ]
    named = sorted({name for measured in facts.measured for name in measured.metrics})
    front: dict[str, Any] = {
        # Whose weights they are decides on those of another code base.
        "license": "apache-2.0" if facts.imported_from is None else "other",
        "library_name": LIBRARY,
        "tags": list(TAGS),
    }
    if datasets:
        front["datasets"] = list(map(str, datasets if isinstance(datasets, list) else [datasets]))
    if results:
        front["metrics"] = named
        front["model-index"] = [{"name": facts.name, "results": results}]
    return front


def shown(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of the card, in its order."""
    return {
        name: float(metrics[name]) for name in SHOWN if isinstance(metrics.get(name), int | float)
    }


class _Checkpoint(BaseModel):
    checkpoint: str
    weights: str


class _TestSet(BaseModel):
    name: str
    split: str = "test"  # Earlier versions had no other.
    tasks: int | None = None
    test_inputs: int | None = None


class _Options(BaseModel):
    max_variants: int | None = None
    guidance_weight: float = 1.0
    num_supervision_steps: int | None = None
    puzzle_id: str = "own"


class _Evaluation(BaseModel):
    """What a metrics.json says of how its scores came about."""

    checkpoints: list[_Checkpoint] = []  # A recount has none.
    test_set: _TestSet
    num_predictions: int
    options: _Options = _Options()

    def is_of(self, checkpoint: Path, weights: str) -> bool:
        """Whether it is of this checkpoint alone, and of these weights."""
        # Runs may have been moved since, but they keep the names of their checkpoints.
        place = checkpoint.resolve().parts[-2:]
        found = [(Path(c.checkpoint).parts[-2:], c.weights) for c in self.checkpoints]
        return found == [(place, weights)]

    def how(self) -> str:
        """See `Measured`."""
        parts, options = [], self.options
        if self.test_set.tasks is not None:
            parts.append(f"{self.test_set.tasks} tasks, {self.test_set.test_inputs} test inputs")
            most = options.max_variants
            parts.append("all variants vote" if most is None else f"up to {most} variants vote")
        parts.append(f"{self.num_predictions:,} predictions")
        if options.guidance_weight != 1.0:
            parts.append(f"guidance weight {options.guidance_weight:g}")
        if options.num_supervision_steps is not None:
            parts.append(f"{options.num_supervision_steps} steps")
        if options.puzzle_id != "own":
            parts.append("told no puzzle")
        return ", ".join(parts)


def measured_beside(run_dir: Path, checkpoint: Path, weights: str) -> Iterator[Measured]:
    """What evaluations in the run folder have found for one checkpoint's `weights`, by name.

    Those of pooled checkpoints are left out: they are no model's.

    Raises:
        UserError: one is damaged.
    """
    for path in sorted(run_dir.glob(f"*/{METRICS_FILE}")):
        document = read_object(path, "remove that evaluation, or evaluate again")
        found = validate(_Evaluation, document, str(path))
        if found.is_of(checkpoint, weights) and (metrics := shown(document)):
            yield Measured(found.test_set.name, found.test_set.split, found.how(), metrics)
