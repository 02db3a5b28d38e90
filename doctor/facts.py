"""What the doctor asks of the machine and the dataset."""

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import UserError

if TYPE_CHECKING:
    import torch

REPOSITORY = Path(__file__).resolve().parent.parent


class DataFacts(NamedTuple):
    """Of a dataset, as far as memory and cost depend on it."""

    vocab_size: int = 12
    num_cells: int = 900
    num_puzzles: int = 876_695
    examples_per_epoch: float = 3984
    """The defaults are those of ARC-AGI-1 and ConceptARC with 1000 variants."""


def data_facts(data: Path) -> DataFacts:
    """Of the dataset, or what they will be once it is built."""
    from dataset.splits import open_split

    if not data.is_dir():
        return DataFacts()
    try:
        split = open_split(data, "train")
    except UserError:  # That is for the check of the dataset to say.
        return DataFacts()
    found = split.metadata
    return DataFacts(
        found.vocab_size, found.seq_len, found.num_puzzle_identifiers, split.examples_per_epoch
    )


def device_here() -> "torch.device":
    """Where a run with device=auto would compute."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def free_memory() -> int | None:
    """Bytes that are free for a program on the CPU; None where the system does not tell."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]


def driver_version() -> str | None:
    """Of the NVIDIA driver; None: there is none."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    words = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().partition("\n")[0] or None


def pinned() -> dict[str, str]:
    """Packages that the programs import, the first paragraph of requirements.txt -> version."""
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").partition("\n\n")[0]
    pairs = (line.partition("==") for line in lines.splitlines() if not line.startswith("#"))
    return {name: version for name, _, version in pairs}
