"""What benchmarks are made of: FLOPs by the specification, memory and tables by hand."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks.measure import ActivationMemory, Results, positive, step_flops, time_in_turns
from config.loading import load_config
from config.schema import TrainConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(("arch", "teraflops"), [("compact", 11.2), ("medium", 73.4)])
def test_flops_of_a_step_are_those_of_the_specification(arch: str, teraflops: float) -> None:
    """For 512 examples on the whole canvas of 900 cells, to the digits given there."""
    config = load_config("train", TrainConfig, "", [f"arch={arch}"])
    assert step_flops(config.arch, [900] * 512) / 1e12 == pytest.approx(teraflops, rel=0.005)


def test_flops_add_up_over_examples_and_grow_faster_than_their_length() -> None:
    arch = load_config("train", TrainConfig, "", []).arch
    short, long = step_flops(arch, [100]), step_flops(arch, [200])
    assert step_flops(arch, [100, 200]) == short + long
    # The prefix weighs less, and attention more, on the longer one.
    assert 1.8 * short < long < 2.2 * short


def test_cases_take_turns_and_warm_up_first() -> None:
    calls: list[str] = []
    cases = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = time_in_turns(cases, 1, 3, CPU)
    assert "".join(calls) == "ab" + "ababab"
    assert set(seconds) == {"a", "b"}
    assert all(0 <= s < 1 for s in seconds.values())


def test_activation_memory_counts_each_saved_tensor_once_and_no_parameter() -> None:
    weight = torch.ones(8, 4, requires_grad=True)
    x = torch.ones(16, 4, requires_grad=True)
    with ActivationMemory([weight]) as memory:
        hidden = x @ weight.T  # Saves x (256 bytes), and the weight, which does not count.
        (hidden * hidden).sum()  # Saves the product (512 bytes) twice.
    assert memory.bytes == 16 * 4 * 4 + 16 * 8 * 4


def test_results_are_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"case": "plain", "s": 1.23456}, {"case": "fast", "s": 0.5, "note": "x"}]
    path = tmp_path / "new" / "r.json"
    Results("How fast?", "python -m this", {"cpu": "a"}, rows).write(path)
    assert json.loads(path.read_text())["rows"] == rows
    shown = capsys.readouterr().out
    assert "| case | s | note |" in shown
    assert "| plain | 1.23 |  |" in shown


def test_positive_numbers_are_taken_and_others_refused() -> None:
    assert positive("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="0 is not 1 or more"):
        positive("0")
