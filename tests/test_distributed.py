"""Ranks: alone without a launcher, and together under torchrun."""

import re
import time
from pathlib import Path

import pytest
import torch

from common.distributed import peak_memory, start_ranks
from common.errors import UserError
from runs import torchrun, train_arguments
from tiny import ALONE, CPU


def test_a_plain_process_is_the_only_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its collectives return what they are given."""
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with start_ranks("cpu") as ranks:
        assert ranks == ALONE
        assert ranks.is_main
    values = torch.tensor([1.0, 2.0])
    assert ALONE.sum(values) is ALONE.concatenate(values) is values
    assert ALONE.gather_objects("a") == ["a"]
    assert ALONE.from_main(lambda: 3) == 3


@pytest.mark.parametrize("error", [UserError("bad"), OSError(28, "full")])
def test_what_the_main_rank_meets_is_raised(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        ALONE.from_main(fail)


def told(stderr: str) -> list[str]:
    """The lines in which ranks say what is wrong; the launcher's own report says other things."""
    return [line for line in stderr.splitlines() if re.match(r"(\[rank \d+\] )?error: ", line)]


def test_an_error_that_only_the_main_rank_can_see_ends_all_ranks(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """The run folder is taken: nobody waits for a collective that never comes."""
    (tmp_path / "thesis.txt").write_text("mine")
    process = torchrun(2, "train_arc_tiny_corrupt.py", *train_arguments(tiny_dataset, tmp_path))
    assert process.returncode != 0
    (line,) = told(process.stderr)
    assert "exists already" in line


LONELY = """
import sys
from common.distributed import start_ranks
from common.errors import UserError, exit_cleanly

@exit_cleanly
def main():
    with start_ranks("cpu") as ranks:
        ranks.max(1)  # Until all are connected, the library itself tells of one that goes.
        if ranks.rank == int(sys.argv[1]):
            raise {"mine": UserError("my data is bad"), "bug": ValueError("a bug")}[sys.argv[2]]
        ranks.max(1)

main()
"""


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["mine", "bug"])
def test_what_one_rank_meets_ends_the_job_within_seconds_and_is_told_once(
    tmp_path: Path, rank: int, kind: str
) -> None:
    """While the others wait for it in a collective, and fail because it has."""
    script = tmp_path / "lonely.py"
    script.write_text(LONELY)
    started = time.monotonic()
    process = torchrun(2, str(script), str(rank), kind)
    assert time.monotonic() - started < 60
    assert process.returncode != 0
    prefix = "[rank 1] " if rank else ""
    if kind == "mine":
        assert told(process.stderr) == [f"{prefix}error: my data is bad"]
    else:
        assert process.stderr.count("ValueError: a bug") == 1
        assert f"{prefix}Traceback" in process.stderr
    assert "closed by peer" not in process.stderr.lower()


def test_peak_memory_is_that_of_the_process_in_bytes() -> None:
    before = peak_memory(CPU)
    assert 1e8 < before < 1e11, "a process that has loaded torch"
    # More than the process has ever held, whatever ran before in it.
    block = bytearray(before + 50_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_memory(CPU) >= before + 50_000_000


@pytest.mark.parametrize(
    ("device", "ranks", "message"),
    [
        ("cuda:2", 1, r"device=cuda:2: only 2 CUDA device\(s\) here, counted from 0"),
        ("cuda:1", 2, "device=cuda:1: each of several ranks takes a GPU of its own"),
        ("cuda", 3, r"--nproc_per_node=3: only 2 CUDA device\(s\) here"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, ranks: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    with pytest.raises(UserError, match=message), start_ranks(device):
        pass


@pytest.mark.parametrize(
    ("device", "local_rank", "index"), [("cuda:1", 0, 1), ("cuda", 0, 0), ("auto", 1, 1)]
)
def test_a_rank_takes_the_gpu_of_its_number_or_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, device: str, local_rank: int, index: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.delenv("RANK", raising=False)
    with start_ranks(device) as ranks:
        assert ranks.device == torch.device("cuda", index)
    assert chosen == [index]


def test_full_memory_of_a_gpu_is_a_mistake_with_a_remedy() -> None:
    with (
        pytest.raises(
            UserError, match=r"cpu: tried 3 GiB\. Try half the train\.micro_batch_tokens"
        ),
        start_ranks("cpu"),
    ):
        raise torch.OutOfMemoryError("tried 3 GiB.\nMore about it")
