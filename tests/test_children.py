"""A command that another one starts ends with it, however that ends."""

import signal
import subprocess
import sys

import pytest

from common.children import run_child
from conftest import REPOSITORY

PARENT = """
import sys
from common.children import run_child
from common.errors import exit_cleanly

CHILD = '''
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved", flush=True)))
print("started", flush=True)
time.sleep(600)
'''
exit_cleanly(lambda: run_child([sys.executable, "-c", CHILD]))()
"""


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_childs(code: int) -> None:
    assert run_child([sys.executable, "-c", f"raise SystemExit({code})"]) == code


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGINT,
        pytest.param(
            signal.SIGKILL,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a child"),
        ),
    ],
)
def test_a_child_is_asked_to_end_when_its_parent_ends(number: int) -> None:
    """It has the pipe too, so what it says is at its end when both are gone."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == "started\n"
    parent.send_signal(number)
    said, complaints = parent.communicate(timeout=60)
    assert said == "saved\n"
    assert "Traceback" not in complaints
