"""A long prediction in parts, each kept as soon as it is done: what is cut off goes on there.

    OUTPUT_DIR.unfinished/0/facts.json      what is predicted: of which checkpoint, how, on what
    OUTPUT_DIR.unfinished/0/00003.npz       the answers of one shard of its rows

A folder for each checkpoint that votes. When the results are written the whole folder goes.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.distributed import Ranks
from common.files import atomic_file, atomic_write, read_arrays
from common.json_files import read_object
from evaluation.predict import Answers, join
from evaluation.test_set import Rows

UNFINISHED_SUFFIX = ".unfinished"
FACTS_FILE = "facts.json"
ROWS_PER_SHARD = 20_000
"""Some seconds of a GPU."""
REMEDY = "remove the folder, and what it holds is predicted again"

log = logging.getLogger(__name__)


def unfinished_folder(output_dir: Path) -> Path:
    """Where the shards of results lie that are not complete yet."""
    return output_dir.with_name(f"{output_dir.name}{UNFINISHED_SUFFIX}")


def drop_unfinished(output_dir: Path) -> None:
    """Remove shards beside complete results: their process was killed before it could."""
    shutil.rmtree(unfinished_folder(output_dir), ignore_errors=True)


def predict_in_shards(
    predict: Callable[[Rows], Answers | None],
    num_rows: int,
    folder: Path,
    facts: dict[str, Any],
    ranks: Ranks,
) -> Answers | None:
    """Predict what is not kept already; all ranks must call this.

    Args:
        predict: answers some rows on the main rank, with the help of all; None elsewhere.
        num_rows: of the test set.
        folder: for the shards; it must be this process's own, see `common.locks`.
        facts: JSON, what the answers depend on: shards of others are dropped.
        ranks: that take part.

    Returns:
        All answers in the order of the test set on the main rank, None elsewhere.
    """
    shards = np.array_split(np.arange(num_rows), max(1, -(-num_rows // ROWS_PER_SHARD)))
    paths = [folder / f"{number:05}.npz" for number in range(len(shards))]
    kept = ranks.from_main(lambda: _prepare(folder, facts, paths))
    for path, rows in zip(paths, shards, strict=True):
        if path.name not in kept:
            answers = predict(rows)
            ranks.from_main(partial(_save, path, answers))
    return join([_load(path) for path in paths]) if ranks.is_main else None


def _prepare(folder: Path, facts: dict[str, Any], paths: list[Path]) -> set[str]:
    """Make the folder, or drop shards of something else; the names of those that serve."""
    facts_path = folder / FACTS_FILE
    if facts_path.is_file() and read_object(facts_path, REMEDY) != facts:
        log.info("%s holds answers of another evaluation, which are dropped", folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(facts_path, json.dumps(facts))
    kept = {path.name for path in paths if path.is_file()}
    if kept:
        log.info("Going on after %d of %d shards that are predicted already", len(kept), len(paths))
    return kept


def _save(path: Path, answers: Answers | None) -> None:
    assert answers is not None, "the main rank has them"
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **vars(answers))


def _load(path: Path) -> Answers:
    names = [field.name for field in fields(Answers)]
    arrays: dict[str, Any] = read_arrays(path, names, str(path), REMEDY)
    arrays["metric_names"] = tuple(arrays["metric_names"].tolist())
    arrays["whole_canvas_again"] = int(arrays["whole_canvas_again"])
    return Answers(**arrays)
