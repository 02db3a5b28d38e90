"""`benchmarks.golden` tells equal results from others."""

import json
from pathlib import Path

import numpy as np

from benchmarks.golden import differences


def write_results(folder: Path, loss: float, name: str) -> Path:
    """A folder as a checkout's commands leave it, as far as it takes to tell two apart."""
    (folder / "data").mkdir(parents=True)
    np.save(folder / "data" / "inputs.npy", np.arange(3))
    (folder / "data" / "identifiers.json").write_text(json.dumps(["<blank>", name]))
    np.savez(folder / "predictions.npz", canvas=np.ones(2), confidence=np.full(2, loss))
    line = {"train/loss": loss, "train/grad_norm": 1.0, "train/steps_per_second": loss}
    (folder / "metrics.jsonl").write_text(json.dumps(line))
    return folder


def test_equal_results_are_counted_and_each_difference_is_named(tmp_path: Path) -> None:
    before = write_results(tmp_path / "before", 1.0, "a")
    same = write_results(tmp_path / "same", 1.0, "a")
    assert differences(before, same) == (6, [])

    after = write_results(tmp_path / "after", 1.25, "b")
    (after / "data" / "inputs.npy").unlink()
    np.save(after / "extra.npy", np.zeros(1))
    assert differences(before, after) == (
        2,
        [
            "data/identifiers.json: differs",
            "data/inputs.npy: only before",
            "extra.npy: only now",
            "metrics.jsonl: train/loss: differs by up to 0.25",
            "predictions.npz: confidence: differs by up to 0.25",
        ],
    )
