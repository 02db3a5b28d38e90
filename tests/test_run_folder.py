"""Run folders that not all ranks see: nodes that share no file system."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common.errors import UserError
from tiny import ALONE
from training.run_folder import agree_on_start, begin_run


class Nodes:
    """The main rank of three, of which some have another disk."""

    def __init__(self, blind: list[int]) -> None:
        self.blind = blind

    def from_main(self, compute: Any) -> Any:
        return compute()

    def without(self, path: Path) -> list[int]:
        assert path.exists(), "here it is"
        return self.blind


@pytest.mark.parametrize(
    ("blind", "named"), [([], None), ([2], "rank 2:"), ([1, 2], "ranks 1, 2:")]
)
def test_that_ranks_do_not_see_the_run_folder_is_said_when_it_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, blind: list[int], named: str | None
) -> None:
    nodes: Any = Nodes(blind)
    begin_run(tmp_path / "run", {"seed": 3}, nodes)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"seed": 3}
    assert [f"is not there for {named} nodes do not share it" in m for m in caplog.messages] == (
        [] if named is None else [True]
    )


def test_a_checkpoint_that_ranks_do_not_see_cannot_be_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step_00000003").mkdir(parents=True)
    begin_run(tmp_path / "run", {}, ALONE)
    start = tmp_path / "run" / "checkpoints" / "step_00000003"
    together: Any = Nodes([])
    assert agree_on_start(tmp_path / "run", "auto", together) == start
    apart: Any = Nodes([1])
    with pytest.raises(UserError, match=r"step_00000003 is not there for rank 1; all nodes must"):
        agree_on_start(tmp_path / "run", "auto", apart)
    assert agree_on_start(tmp_path / "new", "auto", apart) is None


def test_a_rank_alone_sees_what_there_is(tmp_path: Path) -> None:
    assert ALONE.without(tmp_path) == []
    assert ALONE.without(tmp_path / "missing") == [0]
    assert ALONE.device == torch.device("cpu")
