"""All that training changes, saved and restored: a resumed run goes on bit for bit."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.distributed import Ranks
from common.errors import UserError
from common.settings import Settings, fields_of, select
from models.build import describe
from models.puzzle_embedding import PuzzleEmbedding, PuzzleTable
from models.recursive import TinyRecursiveModel
from models.weights import load_table, load_weights
from training import checkpoints
from training.checkpoints import Checkpoint, CheckpointFolder
from training.optimizers import WeightAverage
from training.run_folder import find_checkpoint

# A run goes on only with these unchanged: its weights and its place in the data hang on them.
FIXED_ON_RESUME = (
    "arch",
    "seed",
    "data.variants",
    "optim.name",
    "optim.update",
    "supervision.halting",
    "train.global_batch_size",
)
OF_PUZZLES = "puzzle_embedding."
"""What the names of factored puzzle embeddings among a model's weights begin with."""
NOT_WORTH_SAYING = ("run_dir", "resume", "init_from", "wandb")
"""Where a run is and how it was started: no news when it is resumed."""

NOT_A_STATE = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError,
               ValueError)  # fmt: skip
"""What comes of restoring what the trainer did not write."""

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Weights, optimizer, average, and the count of optimizer steps."""

    model: TinyRecursiveModel
    puzzle_embedding: PuzzleEmbedding
    optimizers: list[torch.optim.Optimizer]
    average: WeightAverage | None
    dataset: dict[str, Any]
    """Fingerprint of the dataset, see `dataset.storage.fingerprint`."""
    step: int = 0
    seconds: float = 0.0
    """Of training, without evaluations and checkpoints."""

    @property
    def table(self) -> Tensor | None:
        """Of puzzle embeddings; None: factored ones are part of the model."""
        embedding = self.puzzle_embedding
        return embedding.weight if isinstance(embedding, PuzzleTable) else None

    def facts(self) -> dict[str, Any]:
        """What is trained on what: sizes, and the dataset without the names of its tasks."""
        dataset = {key: value for key, value in self.dataset.items() if key != "tasks"}
        return {**describe(self.model, self.puzzle_embedding), "dataset": dataset}

    def norms(self) -> dict[str, float]:
        """Of the network's weights, and the mean over the puzzles' vectors that are not zero.

        Factored vectors are those of tasks. Waits for the device.
        """
        table, own = self.table, self.model.puzzle_embedding
        vectors = table if own is None else own.task.weight
        assert vectors is not None, "puzzles have embeddings of one kind"
        of_puzzles = torch.linalg.vector_norm(vectors.detach(), dim=1)
        trained = of_puzzles.count_nonzero().clamp(min=1)
        weights = [p.detach() for p in self.model.parameters()]
        of_network = torch.stack(torch._foreach_norm(weights)).square().sum().sqrt()
        found = torch.stack([of_network, of_puzzles.sum() / trained]).tolist()
        return dict(zip(("weight_norm", "puzzle_embedding_norm"), found, strict=True))

    def save(
        self,
        folder: CheckpointFolder,
        ranks: Ranks,
        config: Settings,
        position: tuple[int, int],
        under_way: dict[str, Tensor],
        wandb_run_id: str | None,
    ) -> None:
        """Write a checkpoint from the main rank; every rank must call this.

        Args:
            folder: where checkpoints of this run go.
            ranks: whose random states are kept.
            config: the resolved configuration.
            position: of the batch to come, see `dataset.batches`.
            under_way: what the next batch depends on, see `Engine.state_dict`.
            wandb_run_id: the W&B run that a resumed run should go on with.
        """
        rng_states = ranks.gather_objects(_rng_state(ranks.device))
        # In the order of the global batch, so that another number of ranks can go on.
        carried = {}
        order = ranks.concatenate(under_way["rows"]).argsort() if under_way else None
        for name, tensor in under_way.items():
            joined = ranks.concatenate(tensor)
            if ranks.is_main:  # The states of a large batch are a gigabyte: one copy will do.
                carried[name] = joined[order].cpu()
        checkpoint = Checkpoint(
            self.model.state_dict(),
            self.average.weights if self.average is not None else None,
            self.table,
            config.model_dump(mode="json"),
            self.dataset,
        )
        rest = {
            "step": self.step,
            "seconds": self.seconds,
            "next_example": position,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "carried": carried,
            "rng_states": rng_states,
            "wandb_run_id": wandb_run_id,
        }
        ranks.from_main(lambda: folder.save(self.step, checkpoint, rest))

    def restore(
        self, path: Path, ranks: Ranks, config: Settings
    ) -> tuple[tuple[int, int], dict[str, Tensor], str | None]:
        """Go back to where the checkpoint `path` was written.

        Returns the position of the batch to come, what it depends on (see `Engine.carried`), and
        the id of the W&B run.

        Raises:
            UserError: the checkpoint is damaged, or of a run that this one cannot continue.
        """
        stored = checkpoints.load_checkpoint(path)
        rest = checkpoints.load_training_state(path)
        _require_same_run(checkpoints.stored_config(path, type(config)), config, path)
        checkpoints.require_same_dataset(stored.dataset, self.dataset, f"resume: {path}")
        load_weights(self.model, stored.model, str(path))
        remedy = "resume with the dataset that the run was started on"
        load_table(self.table, stored.puzzle_embedding, str(path), remedy)
        if self.average is not None:
            weights = stored.ema if stored.ema is not None else stored.model
            self.average.weights = {k: v.to(ranks.device) for k, v in weights.items()}
        with _damage_named(path):
            self._restore_rest(rest, ranks)
            position = _position_of(rest)
            kept = rest["carried"] if "next_example" in rest else {}
            carried = {name: tensor.detach() for name, tensor in kept.items()}
            wandb_run_id = rest["wandb_run_id"]
        log.info("Resumed from %s at step %d", path, self.step)
        if "seconds" not in rest and select(config, "train.max_minutes") is not None:
            log.info("%s is of an earlier version: train.max_minutes counts from here", path)
        if "next_example" not in rest:
            log.info("%s is of an earlier version: going on at the start of an epoch", path)
        return position, carried, wandb_run_id

    def _restore_rest(self, rest: dict[str, Any], ranks: Ranks) -> None:
        """Optimizers, counts and random states."""
        # Before 0.4.0 there was one optimizer.
        saved_optimizers = rest.get("optimizers") or [rest["optimizer"]]
        for optimizer, saved in zip(self.optimizers, saved_optimizers, strict=True):
            _restore_optimizer(optimizer, saved)
        self.step, self.seconds = int(rest["step"]), float(rest.get("seconds", 0.0))
        # With another number of ranks there is no state to restore for each; what the method
        # itself draws is a function of seed and step, and does not depend on these states.
        if len(rest["rng_states"]) == ranks.world_size:
            rng_state = rest["rng_states"][ranks.rank]
            torch.set_rng_state(rng_state["torch"])
            if ranks.device.type == "cuda" and "cuda" in rng_state:
                torch.cuda.set_rng_state(rng_state["cuda"], ranks.device)

    def start_from(self, source: Path, take_puzzle_embedding: bool) -> None:
        """Take the weights of another run at step 0; the averaged ones if it has them.

        `take_puzzle_embedding`: also its puzzle embeddings.

        Raises:
            UserError: another architecture, or a puzzle-embedding table of another dataset or size.
        """
        path = find_checkpoint(source, "init_from")
        stored = checkpoints.load_checkpoint(path)
        weights = stored.ema or stored.model
        if not take_puzzle_embedding:
            # Of either kind, whichever of the two runs has factored ones.
            own = self.model.state_dict()
            weights = {k: v for k, v in weights.items() if not k.startswith(OF_PUZZLES)}
            weights |= {k: v for k, v in own.items() if k.startswith(OF_PUZZLES)}
        load_weights(self.model, weights, str(path))
        if take_puzzle_embedding:
            remedy = "init_puzzle_embedding=false leaves them at zero"
            source_name = f"init_from: {path} ({remedy})"
            checkpoints.require_same_dataset(stored.dataset, self.dataset, source_name)
            load_table(self.table, stored.puzzle_embedding, str(path), remedy)
        if self.average is not None:
            self.average = WeightAverage(self.model, self.average.decay)
        log.info("Started from the weights of %s", path)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """UserError that names the file where a training state is not as the trainer writes it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except NOT_A_STATE as error:
        raise UserError(
            f"{path / checkpoints.STATE_FILE} is damaged or of another program ({error!r}); remove "
            f"the folder {path}, and resume=auto goes on from the checkpoint before"
        ) from error


def _position_of(rest: dict[str, Any]) -> tuple[int, int]:
    """Epoch and example to go on from; ValueError if there can be none such."""
    # Before 0.3.0 batches were cut within passes, and ended with these.
    found = rest["next_example"] if "next_example" in rest else (rest["position"][0], 0)
    epoch, example = map(int, found)
    if min(epoch, example) < 0:
        raise ValueError(f"position {found}")
    return epoch, example


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Go on from a stored state."""
    # Loading would also bring back the old hyperparameters, and the kernels of another device:
    # those of this run hold.
    for old, current in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        old.update({key: value for key, value in current.items() if key != "params"})
    optimizer.load_state_dict(saved)


def _require_same_run(before: Settings, now: Settings, path: Path) -> None:
    """Raise UserError if a key changed that must not; say which others did."""
    for key, _ in fields_of(type(now)):
        old, new = select(before, key), select(now, key)
        if old == new or key.startswith(NOT_WORTH_SAYING):
            continue
        if key.startswith(FIXED_ON_RESUME):
            raise UserError(
                f"resume: {key}={new} but {path} was trained with {key}={old}; resume with the old "
                f"value, or start a new run with init_from={path}"
            )
        log.info("Resuming with %s=%s instead of %s", key, new, old)


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of this process's global random number generators."""
    state = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
