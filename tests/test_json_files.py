"""JSON files are read as they stand, or refused by file and reason with the remedy."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from common.json_files import existing, read_json, read_object

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: bytes, name: str = "file.json") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / "file.json"

    return to_file


def test_utf_8_is_read_with_a_byte_order_mark_or_without(write: Write) -> None:
    content = '{"a": [1, "é\\ud83d\\ude00\\\\ud83d"]}'.encode()
    expected = {"a": [1, "é😀\\ud83d"]}
    for mark in (b"", b"\xef\xbb\xbf"):
        path = write(mark + content)
        assert read_json(path, "") == read_object(path, "") == expected
    assert read_json(write(b"[1]"), "") == [1]
    with pytest.raises(UserError, match=r"file\.json must hold a JSON object, not a list: again"):
        read_object(write(b"[1]"), "again")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"is not valid JSON \(Expecting value"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", r"is not valid JSON \('utf-8' codec"),
        (b'["\xe9"]', r"is not valid JSON \('utf-8' codec"),
        (b'["\\ud83d"]', r"is not valid JSON \(.* surrogates not allowed\)"),
        (b'{"\\uDC00": 1}', r"is not valid JSON \(.* surrogates not allowed\)"),
        (b"[" * 200_000, "is nested too deeply to be read"),
        (b"[" + b"1" * 5000 + b"]", r"is not valid JSON \(Exceeds the limit"),
        (b'{"t1": 1, "t2": 2, "t1": 1}', "'t1' stands twice in one object"),
        (b'[{"t": {"in": [], "in": []}}]', "'in' stands twice in one object"),
        (gzip.compress(b"{}", mtime=0)[:-9], "is a damaged gzip file"),
        (gzip.compress(b"{}", mtime=0)[:-8] + bytes(8), "is a damaged gzip file"),
        (gzip.compress(b"{}", mtime=0)[:10] + b"\xff" * 20, "is a damaged gzip file"),
        (gzip.compress(b"{", mtime=0), "is not valid JSON"),
    ],
)
def test_what_is_no_plain_data_is_refused(write: Write, content: bytes, complaint: str) -> None:
    with pytest.raises(UserError, match=rf"file\.json:? {complaint}.*: again$"):
        read_json(write(content), "again")


def test_a_compressed_file_is_read_where_the_plain_one_is_missing(write: Write) -> None:
    path = write(gzip.compress(b"[1]", mtime=0), "file.json.gz")
    assert existing(path) == path.with_name("file.json.gz")
    assert read_json(path, "") == read_json(path.with_name("file.json.gz"), "") == [1]
    write(b"[2]")
    assert existing(path) == path
    assert read_json(path, "") == [2]


def test_a_missing_file_is_named_with_those_that_may_be_meant(write: Write) -> None:
    with pytest.raises(UserError, match=r"file\.json does not exist: again"):
        read_json(write(b"", "other.json"), "again")
    path = write(b"", "arc-agi_training_challenges.json")
    for wrong in ("ARC-AGI_training_challenges.json", "arc_agi_evaluation_challenges.json"):
        with pytest.raises(UserError, match=r"\(did you mean arc-agi_training_challenges\.json"):
            read_json(path.with_name(wrong), "again")
    assert existing(path) is None
    with pytest.raises(UserError, match=r"nowhere/file\.json does not exist: again"):
        read_json(path.parent / "nowhere" / "file.json", "again")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\): again"):
        read_json(tmp_path, "again")


def test_reading_does_not_change_what_was_written(write: Write) -> None:
    value = {"a": [[1, 2], [3]], "b": {"c": None, "d": 0.5, "e": "\x00\u2028"}}
    assert read_json(write(json.dumps(value).encode()), "") == value
