"""An exported model predicts what its checkpoint does, bit for bit; its card says what is so."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import diagnose
import evaluate
import export
import train_arc_tiny_corrupt
from arc_oracles import contents
from common.errors import UserError
from common.packed import pack_whole
from config.schema import TrainedAs
from dataset.storage import load_identifiers
from dataset.tasks import SEPARATOR
from evaluation.model_card import CardFacts, write_card
from evaluation.test_set import open_test_set
from models.build import ComputeConfig
from models.exported import write_exported
from models.pretrained import StoredModel
from models.recursive import TinyRecursiveModel
from models.steps import TrainedModel
from models.supervision import SupervisionConfig
from runs import (
    HALTING,
    call,
    checkpoint_tensors,
    read_results,
    run_evaluation,
    run_training,
    train_arguments,
)
from tiny import CPU, tiny_arch, tiny_model
from training.checkpoints import load_trained, stored_config
from training.scores import read_score

# High learning rates: the answers are mostly wrong, but they differ.
FAST = ("train.max_steps=60", "train.checkpoint_every=30", "train.eval_every=30", "optim.lr=1e-2",
        "optim.puzzle_lr=3e-2")  # fmt: skip
RUNS = {
    "table": (),
    "factored": ("arch.puzzle_embedding=factored",),
    "halting": HALTING,
    "answer": ("supervision.next_input=answer", "optim.ema_decay=null"),
}
KINDS = [("table", "raw"), ("table", "ema"), ("factored", "raw"), ("factored", "ema"),
         ("halting", "ema"), ("answer", "raw")]  # fmt: skip
"""Every kind of model, with both kinds of weights where it has them."""
Exported = Callable[[str, str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs and the exported models of this module lie."""
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def run_of(folder: Path, tiny_dataset: Path) -> Callable[[str], Path]:
    """The run of a kind, with checkpoints at 30 and 60. Read-only."""

    def train(kind: str) -> Path:
        run = folder / f"run-{kind}"
        return run if run.exists() else run_training(tiny_dataset, run, *FAST, *RUNS[kind])

    return train


@pytest.fixture(scope="module")
def exported(folder: Path, run_of: Callable[[str], Path]) -> Exported:
    """The last checkpoint of a kind of run, and what its weights were exported to. Read-only."""

    def made(kind: str, weights: str) -> tuple[Path, Path]:
        path, out = run_of(kind) / "checkpoints" / "step_00000060", folder / f"{kind}-{weights}"
        return path, out if out.exists() else export_to(out, path, "--weights", weights)

    return made


def export_to(out: Path, run: Path, *flags: object) -> Path:
    call(export.main, str(run), str(out), *map(str, flags))
    return out


def load(path: Path, weights: str, dataset: Path) -> tuple[TrainedModel, Tensor, Tensor]:
    """A model as evaluation loads it; all inputs of the test set [N, L], and their puzzles [N]."""
    config, test_set = stored_config(path, TrainedAs), open_test_set(dataset, None, "whole")
    trained, _ = load_trained(
        path, config.arch, config.supervision, test_set.fingerprint, test_set.puzzle_factors,
        weights, ComputeConfig(), CPU,
    )  # fmt: skip
    inputs, _ = test_set.split.read(test_set.examples.rows)
    puzzle_ids = torch.from_numpy(test_set.examples.puzzle_ids).long()
    return trained, torch.from_numpy(inputs).long(), puzzle_ids


def logits_of(trained: TrainedModel, inputs: Tensor, puzzle_ids: Tensor) -> Tensor:
    """[S, N, V] of all steps."""
    batch = pack_whole(inputs, trained.model.config.prefix_length)._replace(puzzle_ids=puzzle_ids)
    with torch.no_grad():
        return torch.stack([step.logits for step in trained.improve(batch, trained.trained_steps)])


def card_of(out: Path) -> tuple[dict[str, Any], str]:
    """What stands in front of a model card, and the card."""
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return str(code)


# ---- the same predictions ----


@pytest.mark.parametrize(("kind", "weights"), KINDS)
def test_the_same_predictions_bit_for_bit(
    exported: Exported, tiny_dataset: Path, kind: str, weights: str
) -> None:
    """Through evaluation's reader and through `from_pretrained`: all logits of all steps."""
    path, out = exported(kind, weights)
    before, inputs, puzzle_ids = load(path, weights, tiny_dataset)
    after, *_ = load(out, "auto", tiny_dataset)
    expected = logits_of(before, inputs, puzzle_ids)
    assert len(torch.unique(expected[-1], dim=0)) > len(inputs), "all alike would prove nothing"
    assert torch.equal(logits_of(after, inputs, puzzle_ids), expected)
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], tensor), name
    assert after.supervision == before.supervision

    model = TinyRecursiveModel.from_pretrained(out)
    vectors = before.puzzle_embedding.lookup(puzzle_ids).detach()
    batch = pack_whole(inputs, before.model.config.prefix_length)
    canvases = [batch.to_canvas(step.argmax(dim=-1), inputs.shape[1]) for step in expected]
    answers = model.answer(inputs, vectors)
    assert answers.dtype == np.uint8
    assert np.array_equal(answers, torch.stack(canvases, dim=1).numpy())
    assert np.array_equal(model.answer(inputs, vectors, num_steps=2), answers[:, :2])


def test_raw_and_averaged_weights_are_two_models(exported: Exported, tiny_dataset: Path) -> None:
    """So the test above would notice if one were exported for the other."""
    for kind in ("table", "factored"):
        raw, average = (
            logits_of(*load(exported(kind, weights)[1], "auto", tiny_dataset))
            for weights in ("raw", "ema")
        )
        assert not torch.equal(raw, average)


@pytest.mark.parametrize("kind", ["table", "factored"])
def test_tasks_are_known_by_name(exported: Exported, tiny_dataset: Path, kind: str) -> None:
    """Their vectors are those of the unaugmented puzzles; the mean is of all that were trained."""
    path, out = exported(kind, "ema")
    before, *_ = load(path, "ema", tiny_dataset)
    model = TinyRecursiveModel.from_pretrained(str(out))
    names = load_identifiers(tiny_dataset)
    tasks = [name for name in names[1:] if SEPARATOR not in name]
    assert sorted(model.tasks) == sorted(tasks)
    rows = before.puzzle_embedding.lookup(torch.tensor([names.index(task) for task in tasks]))
    assert torch.equal(model.vectors_of(tasks), rows)
    assert len(torch.unique(rows, dim=0)) > 1
    with pytest.raises(UserError, match=rf"task 'x{tasks[0]}': did you mean '{tasks[0]}'"):
        model.vectors_of([tasks[1], f"x{tasks[0]}"])
    every = torch.arange(len(names)) if kind == "table" else torch.tensor(
        [names.index(task) for task in tasks]
    )  # fmt: skip
    vectors = before.puzzle_embedding.lookup(every).detach()
    mean = vectors[vectors.any(dim=1)].mean(dim=0)
    torch.testing.assert_close(model.mean_vector, mean)
    inputs = np.full((3, 36), 2)
    given = model.answer(inputs, model.mean_vector.expand(3, -1))
    assert np.array_equal(model.answer(inputs), given)


def test_questions_of_another_form_are_refused(exported: Exported) -> None:
    model = TinyRecursiveModel.from_pretrained(exported("table", "ema")[1])
    good = np.zeros((2, 36), dtype=np.uint8)
    for bad in (good[0], good[:, :35], good[:0], good + 12, good.astype(int) - 1):
        with pytest.raises(UserError, match=r"model reads canvases \[B, 36\] of tokens 0 to 11"):
            model.answer(bad)
    with pytest.raises(UserError, match=r"puzzle_vectors: .*a vector for each canvas"):
        model.answer(good, model.mean_vector.expand(3, -1))
    with pytest.raises(UserError, match=r"from_pretrained: precision='fp8' is not allowed"):
        TinyRecursiveModel.from_pretrained("anywhere", precision="fp8")  # type: ignore[arg-type]


# ---- as checkpoint= and init_from= ----


@pytest.mark.parametrize("kind", ["table", "factored"])
def test_it_is_evaluated_as_its_checkpoint_is(
    exported: Exported, tiny_dataset: Path, tmp_path: Path, kind: str
) -> None:
    path, out = exported(kind, "ema")
    before = run_evaluation(tmp_path / "before", f"checkpoint={path}")
    where = f"data.path={tiny_dataset}"
    after = run_evaluation(tmp_path / "after", f"checkpoint={out}", where)
    for name in ("predictions.npz", "step_answers.npz"):
        with np.load(before / name) as old, np.load(after / name) as new:
            assert all(np.array_equal(old[key], new[key]) for key in old.files)
    (facts,), (old_facts,) = (read_results(r)["checkpoints"] for r in (after, before))
    assert facts == old_facts | {"checkpoint": str(out)}


def test_where_its_dataset_is_must_be_said(
    exported: Exported, refused_in_process: Callable[..., str]
) -> None:
    _, out = exported("table", "ema")
    for main in (evaluate.main, diagnose.main):
        line = refused_in_process(main, f"checkpoint={out}", "device=cpu")
        assert line == (
            f"error: data.path is needed: {out} does not say where its dataset is; name the one "
            f"that it was trained on"
        )
        assert not any(out.parent.glob("*evaluation*"))


def test_it_has_the_weights_that_were_exported_and_no_others(
    exported: Exported, tiny_dataset: Path, refused_in_process: Callable[..., str]
) -> None:
    for own, other in (("raw", "ema"), ("ema", "raw")):
        _, out = exported("table", own)
        where = (f"data.path={tiny_dataset}", "device=cpu")
        line = refused_in_process(
            evaluate.main, f"checkpoint={out}", f"eval.weights={other}", *where
        )
        assert f"eval.weights={other}: {out} is an exported model and holds only {own}" in line


def test_another_dataset_is_refused(
    exported: Exported, roomy_dataset: Path, refused_in_process: Callable[..., str]
) -> None:
    where = (f"data.path={roomy_dataset}", "device=cpu")
    line = refused_in_process(evaluate.main, f"checkpoint={exported('table', 'ema')[1]}", *where)
    assert "was trained on another dataset: its seq_len is 36, that of data.path is 100" in line


@pytest.mark.parametrize("kind", ["table", "factored"])
def test_a_run_starts_from_it_as_from_its_checkpoint(
    exported: Exported, tiny_dataset: Path, tmp_path: Path, kind: str
) -> None:
    path, out = exported(kind, "ema")
    for name, source in (("from_checkpoint", path), ("from_exported", out)):
        run_training(
            tiny_dataset, tmp_path / name, *RUNS[kind], f"init_from={source}", "train.max_steps=3",
            "train.eval_every=null",
        )  # fmt: skip
    runs = (tmp_path / "from_checkpoint", tmp_path / "from_exported")
    before, after = (checkpoint_tensors(run / "checkpoints" / "step_00000003") for run in runs)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_cannot_go_on_from_it(
    exported: Exported, tiny_dataset: Path, tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    _, out = exported("table", "raw")
    arguments = train_arguments(tiny_dataset, tmp_path / "new", f"resume={out}")
    line = refused_in_process(train_arc_tiny_corrupt.main, *arguments)
    assert f"{out} can be scored but not resumed" in line


# ---- what the folder says ----


def test_the_files_have_the_hubs_form_and_say_nothing_of_the_machine(
    exported: Exported, folder: Path, tiny_dataset: Path
) -> None:
    path, out = exported("table", "ema")
    assert {file.name for file in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["TinyRecursiveModel"]
    assert config["model_type"] == "tiny_recursive_model"
    assert config["dataset"] == json.loads((path / "dataset.json").read_text())
    run_config = json.loads((path / "config.json").read_text())
    assert config["arch"] == run_config["arch"]
    assert config["optim"] == run_config["optim"]
    texts = [(out / name).read_text() for name in ("config.json", "README.md")]
    for private in (folder, tiny_dataset, Path.home()):
        assert not any(f"{private}/" in text or f'"{private}"' in text for text in texts)


def test_the_card_gives_what_was_measured_and_the_counts(
    exported: Exported, folder: Path, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The score of the run, and an evaluation's that lies in its folder; of these weights alone."""
    run = tmp_path / "run"
    shutil.copytree(run_of("table"), run)
    path = run / "checkpoints" / "step_00000060"
    for weights in ("raw", "ema"):
        run_evaluation(
            run / f"evaluation_{weights}", f"checkpoint={path}", f"eval.weights={weights}"
        )
    run_evaluation(run / "earlier", f"checkpoint={run}/checkpoints/step_00000030")
    run_evaluation(run / "pooled", f"checkpoint={run}", "eval.pool_last=2")
    front, card = card_of(export_to(tmp_path / "model", path))
    (entry,) = front["model-index"]
    assert entry["name"] == "model"
    found = [
        {metric["type"]: metric["value"] for metric in result["metrics"]}
        for result in entry["results"]
    ]
    measured, score = read_results(run / "evaluation_ema"), read_score(path)
    assert score is not None
    assert len(found) == 2
    assert found[0].keys() == found[1].keys() == set(front["metrics"])
    for name, value in found[0].items():
        assert value == round(measured[name], 6)
        assert found[1][name] == round(score.metrics[f"eval/{name}"], 6)
        assert f"{value:.4f}" in card
    results = entry["results"]
    assert [result["dataset"]["name"] for result in results] == ["evaluation", "built"]
    assert (
        "4 tasks, 6 test inputs, all variants vote, 42 predictions"
        in results[0]["metrics"][0]["name"]
    )
    (facts,) = measured["checkpoints"]
    network, puzzles = (facts[f"{name}_parameters"] for name in ("network", "puzzle_embedding"))
    for label, number in (("network", network), ("both", network + puzzles)):
        assert f"| {label} | {number:,} |" in card
    assert f"| puzzle embeddings (table) | {puzzles:,} |" in card
    assert (front["license"], front["datasets"]) == ("apache-2.0", ["training", "evaluation"])
    assert "| optimizer steps | 60 |" in card
    assert "| examples per batch | 8 |" in card
    # The raw weights were evaluated too, but not in the run.
    front, _ = card_of(export_to(tmp_path / "raw", path, "--weights", "raw"))
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(read_results(run / "evaluation_raw")["pass@1"], 6)


def test_what_was_not_measured_has_no_results(
    run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "alone" / "step_00000060"
    shutil.copytree(run_of("table") / "checkpoints" / path.name, path)
    (path / "score.json").unlink()
    front, card = card_of(export_to(tmp_path / "out", path))
    assert not {"model-index", "metrics"} & front.keys()
    assert "\nNot measured.\n" in card


@pytest.mark.parametrize("kind", ["table", "factored"])
def test_the_cards_lines_run(
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """As they stand, with the folder's name as the path."""
    _, out = exported(kind, "ema")
    monkeypatch.chdir(out.parent)
    code = code_of(card_of(out)[1])
    assert "vectors_of" in code
    exec(code, names := {})
    assert names["answers"].shape == (1, 3, 36)
    assert capsys.readouterr().out.strip()


def test_a_card_without_names_and_one_of_boards_run_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = {"identifiers_sha256": None, "num_puzzle_identifiers": 2, "seq_len": 16}
    arc = StoredModel(
        tiny_arch(), SupervisionConfig(), tiny_model().state_dict(), "raw", torch.ones(2, 16),
        facts | {"vocab_size": 12}, {}, "made up",
    )  # fmt: skip
    boards = replace(arc, dataset=arc.dataset | {"description": {"puzzle": "nqueens"}})
    for name, stored in (("nameless", arc), ("boards", boards)):
        sizes = stored.build(ComputeConfig(), CPU).sizes()
        card = write_card(stored, CardFacts(name, sizes, (), {}))
        (tmp_path / name).mkdir()
        write_exported(tmp_path / name, stored, {}, card)
        front, text = card_of(tmp_path / name)
        exec(code_of(text), names := {})
        assert names["answers"].shape == (1, 3, 16)
        assert front.get("datasets") == (["nqueens"] if name == "boards" else None)


# ---- the command ----


def test_the_command_exports_a_run_and_writes_nothing_else(
    run_command: Callable[..., Any],
    run_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Of a run its best checkpoint."""
    run, out = run_of("table"), tmp_path / "models" / "mine"
    before = contents(run)
    process = run_command("export.py", run, out)
    assert process.returncode == 0, process.stderr
    assert contents(run) == before
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    scores = {path: read_score(path) for path in sorted((run / "checkpoints").iterdir())}
    best = max(scores, key=lambda path: scores[path].rating)  # The first of several.
    assert f"Exporting {best}" in process.stderr
    weights, own = (load_file(path) for path in (best / "model_ema.safetensors",
                                                 out / "model.safetensors"))  # fmt: skip
    table = load_file(best / "puzzle_embedding.safetensors")["weight"]
    assert own.keys() == weights.keys() | {"puzzle_embedding.weight"}
    assert all(torch.equal(own[name], weights[name]) for name in weights)
    assert torch.equal(own["puzzle_embedding.weight"], table)


def test_without_scores_the_newest_checkpoint_is_exported(
    run_of: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of("table"), run)
    for path in run.glob("checkpoints/*/score.json"):
        path.unlink()
    with caplog.at_level("INFO"):
        export_to(tmp_path / "out", run)
    assert f"Exporting {run}/checkpoints/step_00000060" in caplog.messages


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    exported: Exported,
    tmp_path: Path,
    tiny_dataset: Path,
    roomy_dataset: Path,
    refused_in_process: Callable[..., str],
) -> None:
    path, out = exported("answer", "raw")
    new = tmp_path / "new"
    for arguments, message in (
        ((tmp_path / "nothing", new), "RUN=.*/nothing: no checkpoint there"),
        ((path,), "the following arguments are required: OUT"),
        ((path, tmp_path), "OUT .* exists already and is kept as it is"),
        ((path, new, "--weights", "mean"), "--weights mean: must be 'auto', 'raw' or 'ema'"),
        ((path, new, "--weights", "ema"), "weights=ema: .* holds no running mean"),
        ((path, new, "--data", roomy_dataset), "was trained on another dataset"),
        ((path, new, "--data", tmp_path), "train/dataset.json does not exist"),
        ((out, new), "is an exported model already"),
    ):
        (tmp_path / "kept").touch()
        assert re.search(message, refused_in_process(export.main, *arguments))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["kept"]


def test_without_its_dataset_the_tasks_have_no_names(
    run_of: Callable[[str], Path],
    tiny_dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "step_00000060"
    shutil.copytree(run_of("table") / "checkpoints" / path.name, path)
    config = json.loads((path / "config.json").read_text())
    config["data"]["path"] = "gone"
    (path / "config.json").write_text(json.dumps(config))
    out = export_to(tmp_path / "out", path)
    assert any("Tasks get no names" in message for message in caplog.messages)
    assert TinyRecursiveModel.from_pretrained(out).tasks == {}
    again = export_to(tmp_path / "again", path, "--data", tiny_dataset)
    assert len(TinyRecursiveModel.from_pretrained(again).tasks) == 9


# ---- damaged ----


def change_config(**values: Any) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(config | values))

    return change


def change_tensors(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def changed(out: Path) -> None:
        tensors = load_file(out / "model.safetensors")
        change(tensors)
        save_file(tensors, out / "model.safetensors")

    return changed


def truncate(out: Path) -> None:
    content = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(content[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "config.json").unlink(), "is no exported model, it has no config.json"),
        (lambda out: (out / "model.safetensors").unlink(), "model.safetensors does not exist"),
        (truncate, "model.safetensors is damaged"),
        (change_config(arch={"hidden_size": 15}), "config.json: arch.hidden_size=15 must be"),
        (change_config(weights="mean"), "config.json: weights='mean' is not allowed"),
        (change_config(arch={"hidden_size": 32}), "is of another architecture: '.*' has shape"),
        (change_config(dataset={}), "dataset: key 'vocab_size' is missing"),
        (change_config(model_type="llama"), "is a model of another program .*'llama'"),
        (change_tensors(lambda t: t.pop("puzzle_embedding.weight")), "has no 'puzzle_embedding.w"),
        (change_tensors(lambda t: t.pop("y_init")), "'y_init' is in only one"),
        (change_tensors(lambda t: t.update({"puzzle_embedding.weight": torch.ones(3, 16)})),
         r"its puzzle embeddings are a table of \[3, 16\]"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused(
    exported: Exported, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported("table", "ema")[1], out)
    damage(out)
    with pytest.raises(UserError, match=message):
        TinyRecursiveModel.from_pretrained(out)


def test_a_checkpoint_is_to_be_exported_first(exported: Exported) -> None:
    path, _ = exported("table", "ema")
    with pytest.raises(UserError, match=rf"is a checkpoint .*'python export.py {path} OUT'"):
        TinyRecursiveModel.from_pretrained(path)
