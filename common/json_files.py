"""The one reader of JSON files: they are read as they stand, or refused by file and reason.

Files are UTF-8, with a byte-order mark or without. Where there is no `FILE.json` but a
`FILE.json.gz`, that is read. Whatever is not plain data is an error: a key that stands twice in an
object, of which Python would keep the last, or text that cannot be written again.
"""

import difflib
import gzip
import json
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from common.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Half of a character beyond 16 bits; without its other half it is no text."""
_SIMILARITY = 0.7
"""Of names, from 0 to 1, for one to be offered in place of the other: another subset's is."""


def existing(path: Path) -> Path | None:
    """The file that `read_json` reads: `path`, or `path` with `.gz` where only that exists."""
    compressed = path.with_name(f"{path.name}.gz")
    return next((file for file in (path, compressed) if file.exists()), None)


def read_json(path: Path, remedy: str) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: it is missing (then files of similar names are named), unreadable or malformed,
            or a key stands twice in an object; the message ends with the remedy.
    """
    file = existing(path)
    if file is None:
        raise UserError(f"{path} does not exist{_near_misses(path)}: {remedy}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise UserError(f"{file}: '{twice}' stands twice in one object: {remedy}")
        return value

    try:
        content = file.read_bytes()
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # An error if one stands alone.
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file} is a damaged gzip file ({error}): {remedy}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): {remedy}") from error
    except RecursionError as error:
        raise UserError(f"{file} is nested too deeply to be read: {remedy}") from error
    except ValueError as error:  # Also of bytes that are no UTF-8, and of integers without end.
        raise UserError(f"{file} is not valid JSON ({error}): {remedy}") from error
    return value


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """As `read_json`, of a file that must hold an object."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(value).__name__}: {remedy}")
    return value


def _near_misses(path: Path) -> str:
    """A question after the JSON files beside `path` whose names are most like its name."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    names = {file.name.lower(): file.name for file in beside if ".json" in file.name.lower()}
    close = difflib.get_close_matches(path.name.lower(), names, n=3, cutoff=_SIMILARITY)
    return f" (did you mean {' or '.join(names[name] for name in close)}?)" if close else ""
