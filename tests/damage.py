"""Ways to damage files, as hypothesis strategies: what a fuzz test does to good ones."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

Files = Mapping[str, bytes]
"""Contents by path inside a folder."""


class Change(dict[str, bytes | None]):
    """What is to stand in place of some files; None: nothing."""

    def __repr__(self) -> str:
        """Short enough to be read where a test fails."""
        return str({name: content and content[:200] for name, content in self.items()})


ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 3, 11, 12, 255, 256, 2**31, 2**63, 2**64, 10**30, 10**400]
) | st.sampled_from([0.0, -0.5, 1.5, 1e308, float("inf"), float("-inf"), float("nan")])
ODD_TEXTS = st.sampled_from(
    ["", " ", "all", "0", "1e5", "<blank>", "a|||t0|||0123456789", "x|||", "../../up", "/", "~/x",
     "$X", "\0", "\n", "\ud800", "é" * 50, "a" * 5000, "null", "auto", "{}", "ema", "nqueens"]
)  # fmt: skip
ODD_VALUES = st.recursive(
    st.none() | st.booleans() | ODD_NUMBERS | ODD_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXTS, inner, max_size=3),
    max_leaves=4,
)
DTYPES = ("int8", "uint16", "int32", "int64", "uint64", "float32", "float64", "bool", "complex64",
          "U3", "S2", "M8[s]", ">i4", "object")  # fmt: skip


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes flipped, inserted, left out or doubled; or the end cut off."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        # Files begin with what says how they are to be read.
        end = draw(st.sampled_from([min(len(damaged), 200), len(damaged)]))
        place = draw(st.integers(0, end))
        how = draw(st.sampled_from(["flip", "insert", "delete", "truncate", "double", "zero"]))
        length = draw(st.sampled_from([1, 2, 8, 64]))
        part = damaged[place : place + length]
        if how == "flip" and place < len(damaged):
            damaged[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            damaged[place:place] = draw(st.binary(min_size=1, max_size=length))
        elif how == "truncate":
            del damaged[place:]
        else:
            new = {"delete": b"", "double": part * 2, "zero": bytes(len(part))}.get(how, part)
            damaged[place : place + length] = new
    return bytes(damaged)


@st.composite
def damaged_value(draw: st.DrawFn, value: Any, odd: st.SearchStrategy[Any] = ODD_VALUES) -> Any:
    """Nested lists and dictionaries with a value at any place swapped, left out or added."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 2)) == 0:
        return draw(odd)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = draw(st.sampled_from(keys))
    changed: Any = value.copy()
    how = draw(st.sampled_from(["inside", "inside", "inside", "without", "more", "twice"]))
    if how == "inside":
        changed[key] = draw(damaged_value(value[key], odd))
    elif how == "without":
        del changed[key]
    elif isinstance(changed, dict):
        changed[draw(ODD_TEXTS)] = value[key] if how == "twice" else draw(odd)
    else:
        changed.insert(key, value[key] if how == "twice" else draw(odd))
    return changed


@st.composite
def damaged_json(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON of another content; seldom nested very deeply."""
    if draw(st.integers(0, 30)) == 0:
        return b"[" * 50_000 + b"]" * 50_000
    return json.dumps(draw(damaged_value(json.loads(content)))).encode()


@st.composite
def damaged_array(draw: st.DrawFn, array: np.ndarray) -> np.ndarray:
    """Another value, dtype, shape or order."""
    how = draw(st.sampled_from(["value", "value", "dtype", "shape", "order"]))
    if how == "value" and array.size and array.dtype.kind in "iufb":
        changed = array.copy()
        limits = [0, 1, 2, 11, 12, 127] if array.dtype.kind == "b" else _extremes(array.dtype)
        changed.reshape(-1)[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(limits))
        return changed
    if how == "dtype":
        with np.errstate(all="ignore"):
            try:
                return array.astype(draw(st.sampled_from(DTYPES)))
            except ValueError:  # Text is no number.
                return array.astype(object)
    if how == "order":
        flipped = array[::-1] if array.ndim else array
        return draw(st.sampled_from([flipped, np.asfortranarray(array), array.T]))
    shapes = [array.ravel(), array[None], array[..., None], array[:0], array[: len(array) // 2],
              array.ravel()[:1].reshape(()), np.concatenate([array, array])]  # fmt: skip
    return draw(st.sampled_from([*shapes, array[:, :-1] if array.ndim == 2 else array[:1]]))


def _extremes(dtype: np.dtype) -> list[Any]:
    if dtype.kind == "f":
        return [np.nan, np.inf, -1.0]
    return [0, 1, 2, 11, 12, 100, np.iinfo(dtype).min, np.iinfo(dtype).max]


def saved_array(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@st.composite
def damaged_npy(draw: st.DrawFn, content: bytes) -> bytes:
    return saved_array(draw(damaged_array(np.load(io.BytesIO(content)))))


@st.composite
def damaged_npz(draw: st.DrawFn, content: bytes) -> bytes:
    """One array is another one, missing, or added."""
    arrays = dict(np.load(io.BytesIO(content)))
    name = draw(st.sampled_from(sorted(arrays)))
    how = draw(st.sampled_from(["change", "change", "change", "drop", "swap", "shorten all"]))
    if how == "change":
        arrays[name] = draw(damaged_array(arrays[name]))
    elif how == "drop":
        del arrays[name]
    elif how == "swap":
        arrays[name] = arrays[draw(st.sampled_from(sorted(arrays)))]
    else:
        rows = draw(st.integers(0, 2))
        arrays = {key: array[:rows] for key, array in arrays.items()}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@st.composite
def damaged_tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """Safetensors with one tensor of another kind, missing, or under another name."""
    tensors = load(content)
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors.pop(name)
    others = [tensor.half(), tensor.long(), tensor[None], tensor.flatten(), tensor[:0],
              tensor * float("nan"), torch.zeros(()), tensor > 0]  # fmt: skip
    how = draw(st.sampled_from(["change", "change", "drop", "rename"]))
    if how == "change":
        tensors[name] = draw(st.sampled_from(others)).contiguous()
    elif how == "rename":
        tensors["another"] = tensor
    return save(tensors)


@st.composite
def damaged_state(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of `torch.save` with another value at any place."""
    odd = ODD_VALUES | st.sampled_from([torch.zeros(0), torch.ones(3), torch.zeros(2).bool()])
    file = io.BytesIO()
    torch.save(draw(damaged_value(torch.load(io.BytesIO(content), weights_only=True), odd)), file)
    return file.getvalue()


@st.composite
def damaged_lines(draw: st.DrawFn, content: bytes) -> bytes:
    """Text in lines, with another character, cell or line."""
    lines = content.decode().split("\n")
    row = draw(st.integers(0, len(lines) - 1))
    odd = ["", ",", '"', ",,,,,,", "\0", "x" * 200_000, "é", "\r", "{}", '{"step": "x"}', "[1]",
           "question,answer", "S" * 36, lines[row][1:], lines[row] * 2]  # fmt: skip
    lines[row] = draw(st.sampled_from(odd))
    return "\n".join(lines).encode()


BY_KIND = {
    ".json": damaged_json,
    ".npy": damaged_npy,
    ".npz": damaged_npz,
    ".safetensors": damaged_tensors,
    ".pt": damaged_state,
    ".csv": damaged_lines,
    ".jsonl": damaged_lines,
}


@st.composite
def damage(draw: st.DrawFn, files: Files, chosen: Sequence[str]) -> Change:
    """Another content of one or two of the `chosen` files, or two of them swapped, or one gone."""
    name = draw(st.sampled_from(chosen))
    how = draw(st.sampled_from(["content", "content", "content", "bytes", "bytes", "swap", "gone"]))
    if how == "gone":
        return Change({name: None})
    if how == "swap":
        other = draw(st.sampled_from(chosen))
        return Change({name: files[other], other: files[name]})
    suffix = name[name.rindex(".") :]
    if how == "bytes":
        return Change({name: draw(damaged_bytes(files[name]))})
    return Change({name: draw(BY_KIND[suffix](files[name]))})
