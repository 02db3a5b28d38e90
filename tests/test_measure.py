"""What benchmarks are made of: FLOPs by the specification, commands, and tables by hand."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.measure import flops_of, run_python, time_in_turns, write_results
from common.errors import UserError
from config.loading import load_config
from config.schema import TrainConfig


@pytest.mark.parametrize(("arch", "teraflops"), [("compact", 11.2), ("medium", 73.4)])
def test_flops_of_a_step_are_those_of_the_specification(arch: str, teraflops: float) -> None:
    """For 512 examples on the whole canvas of 900 cells, to the digits given there."""
    config = load_config("train", TrainConfig, "", [f"arch={arch}"]).arch
    assert flops_of(config, [900] * 512) / 1e12 == pytest.approx(teraflops, rel=0.005)
    short, long = flops_of(config, [100]), flops_of(config, [200])
    assert flops_of(config, [100, 200]) == short + long


def test_cases_take_turns() -> None:
    calls: list[str] = []
    cases = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = time_in_turns(cases, 3, torch.device("cpu"))
    assert "".join(calls) == "ababab"
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert all(0 <= s < 1 for times in seconds.values() for s in times)


def test_a_command_gives_what_it_prints_or_its_last_complaint(tmp_path: Path) -> None:
    code = "import os; print(os.environ['WORD'], os.getcwd(), end='')"
    assert run_python("-c", code, checkout=tmp_path, WORD="here") == f"here {tmp_path}"
    code = "import sys; sys.exit('first\\nerror: no such thing')"
    for words in (["-c", code], ["-m", "benchmarks.usage", "-c", code]):
        with pytest.raises(UserError, match=r"^no such thing \(python "):
            run_python(*words)


def test_the_usage_of_a_command_is_its_own() -> None:
    work = "import time; x = b'x' * 300_000_000; time.sleep(0.2)"
    seconds, cpu_seconds, peak = json.loads(run_python("-m", "benchmarks.usage", "-c", work))
    assert seconds > 0.2
    assert 0 < cpu_seconds < seconds
    assert 300e6 < peak < 400e6


def test_results_are_a_table_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/this.py", "--flag"])
    rows = [{"case": "plain", "s": 1.23456}, {"case": "fast", "s": 0.5, "note": "x"}]
    path = tmp_path / "new" / "r.json"
    write_results(path, {"cpu": "a"}, rows)
    command = "python -m benchmarks.this --flag"
    written = json.loads(path.read_text())
    assert written == {"command": command, "machine": {"cpu": "a"}, "rows": rows}
    shown = capsys.readouterr().out
    assert shown.startswith(f"{command}\ncpu a\n\n| case | s | note |\n")
    assert "| plain | 1.23 |  |" in shown
