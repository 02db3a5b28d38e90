"""All that training changes, saved and restored: a resumed run goes on bit for bit."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from common.distributed import Ranks
from common.errors import UserError
from models.puzzle_embedding import PuzzleEmbedding
from models.recursive import TinyRecursiveModel
from models.supervision import Supervision
from training import checkpoints
from training.checkpoints import Checkpoint, CheckpointFolder, Score
from training.optimizers import WeightAverage
from training.run_folder import find_checkpoint

# A run goes on only with these unchanged: its weights and its place in the data hang on them.
FIXED_ON_RESUME = (
    "arch",
    "seed",
    "optim.name",
    "supervision.halting",
    "data.epochs_per_pass",
    "train.global_batch_size",
)

log = logging.getLogger(__name__)


class DataStream(Protocol):
    """Batches that can be continued from a position, a pair of numbers."""

    position: tuple[int, int]


@dataclass
class TrainingState:
    """Weights, optimizer, average, place in the data, and the count of optimizer steps."""

    model: TinyRecursiveModel
    puzzle_embedding: PuzzleEmbedding
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    data: DataStream
    supervision: Supervision
    dataset: dict[str, Any]
    """Fingerprint of the dataset, see `dataset.storage.fingerprint`."""
    step: int = 0

    def save(
        self,
        folder: CheckpointFolder,
        ranks: Ranks,
        config: dict[str, Any],
        score: Score | None,
        wandb_run_id: str | None,
    ) -> None:
        """Write a checkpoint from the main rank; every rank must call this.

        Args:
            folder: where checkpoints of this run go.
            ranks: whose random states are kept.
            config: the resolved configuration.
            score: validation score of this checkpoint; None if not scored.
            wandb_run_id: the W&B run that a resumed run should go on with.
        """
        rng_states = ranks.gather_objects(checkpoints.rng_state(ranks.device))
        # In the order of the global batch, so that another number of ranks can go on.
        carried = {}
        for name, tensor in self.supervision.carried().items():
            joined = ranks.concatenate(tensor)
            if ranks.is_main:  # The states of a large batch are a gigabyte: one copy will do.
                carried[name] = joined.cpu()
        checkpoint = Checkpoint(
            self.model.state_dict(),
            self.average.weights if self.average is not None else None,
            self.puzzle_embedding.weight,
            config,
            self.dataset,
        )
        rest = {
            "step": self.step,
            "position": tuple(self.data.position),
            "optimizer": self.optimizer.state_dict(),
            "carried": carried,
            "rng_states": rng_states,
            "wandb_run_id": wandb_run_id,
        }
        ranks.from_main(lambda: folder.save(self.step, checkpoint, rest, score))

    def restore(self, path: Path, ranks: Ranks, config: dict[str, Any]) -> str | None:
        """Go back to where the checkpoint `path` was written; returns its W&B run id.

        Raises:
            UserError: the checkpoint is damaged, or of a run that this one cannot continue.
        """
        stored = checkpoints.load_checkpoint(path)
        rest = checkpoints.load_training_state(path)
        for key in FIXED_ON_RESUME:
            before, now = _select(stored.config, key), _select(config, key)
            if before != now:
                raise UserError(
                    f"resume: {key}={now} but {path} was trained with {key}={before}; resume with "
                    f"the old value, or start a new run with init_from={path}"
                )
        _log_changes(stored.config, config)
        checkpoints.require_same_dataset(stored.dataset, self.dataset, f"resume: {path}")
        checkpoints.load_weights(self.model, stored.model, str(path))
        checkpoints.load_table(
            self.puzzle_embedding.weight,
            stored.puzzle_embedding,
            str(path),
            "resume with the dataset that the run was started on",
        )
        if self.average is not None:
            weights = stored.ema if stored.ema is not None else stored.model
            self.average.weights = {k: v.to(ranks.device) for k, v in weights.items()}
        # Loading would also bring back the old hyperparameters, and the kernels of another device:
        # those of this run hold.
        groups = zip(rest["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True)
        for saved, current in groups:
            saved.update({key: value for key, value in current.items() if key != "params"})
        self.optimizer.load_state_dict(rest["optimizer"])
        self.data.position = rest["position"]
        self.supervision.restore(
            {
                name: tensor.chunk(ranks.world_size)[ranks.rank]
                for name, tensor in rest["carried"].items()
            }
        )
        self.step = rest["step"]
        # With another number of ranks there is no state to restore for each; what the method
        # itself draws is a function of seed and step, and does not depend on these states.
        if len(rest["rng_states"]) == ranks.world_size:
            checkpoints.set_rng_state(rest["rng_states"][ranks.rank], ranks.device)
        log.info("Resumed from %s at step %d", path, self.step)
        wandb_run_id: str | None = rest["wandb_run_id"]
        return wandb_run_id

    def start_from(self, source: Path, take_puzzle_embedding: bool) -> None:
        """Take the weights of another run at step 0; the averaged ones if it has them.

        Raises:
            UserError: another architecture, or a puzzle-embedding table of another size.
        """
        path = find_checkpoint(source, "init_from")
        stored = checkpoints.load_checkpoint(path)
        checkpoints.load_weights(self.model, stored.ema or stored.model, str(path))
        if take_puzzle_embedding:
            remedy = "init_puzzle_embedding=false leaves them at zero"
            source_name = f"init_from: {path} ({remedy})"
            checkpoints.require_same_dataset(stored.dataset, self.dataset, source_name)
            checkpoints.load_table(
                self.puzzle_embedding.weight,
                stored.puzzle_embedding,
                str(path),
                remedy,
            )
        if self.average is not None:
            self.average = WeightAverage(self.model, self.average.decay)
        log.info("Started from the weights of %s", path)


def _log_changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> None:
    """Say which keys a resumed run changes; where it is and how it was started are no news."""
    for key in sorted({*before, *now} - {"run_dir", "resume", "init_from", "wandb"}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _log_changes(old, new, f"{prefix}{key}.")
        elif old != new:
            log.info("Resuming with %s%s=%s instead of %s", prefix, key, new, old)


def _select(config: dict[str, Any], key: str) -> Any:
    """The value at a dotted key, None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
