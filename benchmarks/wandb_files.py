"""What W&B has recorded offline, read back from its files: the proof of what a run tells it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def offline_files(run: Path) -> list[Path]:
    """Of the processes of a run, oldest first."""
    files = (run / "wandb").glob("offline-run-*/*.wandb")
    return sorted(files, key=lambda file: file.stat().st_mtime)


def records_of(file: Path) -> Iterator[Any]:
    """The records of a file, as W&B's protocol has them."""
    for content in _contents(file.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(content)
        yield record


def history_of(record: Any) -> dict[str, Any]:
    """What a record logs at a step, by name; nothing if it is of another kind."""
    return {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for item in record.history.item
    }


def _contents(content: bytes) -> Iterator[bytes]:
    """The records, to be parsed; the last of a killed process may be missing.

    That is LevelDB's log format behind 7 bytes: blocks of 32 KiB, in which each fragment has a
    checksum, its length, and whether it is whole (1), a first (2), middle (3) or last (4) one.
    """
    place, parts = 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:  # No room for another header.
            place += left
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind, part = content[place + 6], content[place + 7 : place + 7 + length]
        if len(part) < length:
            return
        parts = part if kind in (1, 2) else parts + part
        if kind in (1, 4):
            yield parts
        place += 7 + length
