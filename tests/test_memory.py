"""What training is said to take: against what the compiler's partitioner keeps, and by hand."""

import pytest
import torch

from common.errors import UserError
from config.loading import load_config
from config.schema import TrainConfig
from models.objective import stablemax_cross_entropy
from models.recursive import ArchConfig, TinyRecursiveModel
from training.memory import MemoryEstimate, bytes_per_token, estimate_memory, require_memory

LENGTHS = (100, 60)


def kept_bytes(arch: ArchConfig) -> float:
    """Per token, of one step of a network that is partitioned as for compilation."""
    model = TinyRecursiveModel(arch, 12, 100, torch.bfloat16)
    model.compile(backend="aot_eager_decomp_partition", dynamic=False)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    num_tokens = int(offsets[-1])
    sequence = torch.repeat_interleave(torch.tensor(LENGTHS))
    cells = torch.arange(num_tokens) - offsets[sequence] - arch.prefix_length
    inputs = torch.where(cells >= 0, 3, -1)
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(
            model.initial_state(num_tokens), inputs,
            torch.zeros(2, arch.hidden_size, requires_grad=True), torch.tensor(1),
            cells, sequence, offsets.int(),
        )  # fmt: skip
        loss = stablemax_cross_entropy(output.conditional_logits, inputs).sum()
    assert loss.requires_grad
    for parameter in model.parameters():
        sizes.pop(parameter.untyped_storage().data_ptr(), None)
    # Weights are kept in the precision of activations too; they do not grow with the tokens.
    return (sum(sizes.values()) - 2 * model.num_parameters) / num_tokens


@pytest.mark.parametrize(
    "given",
    [
        ("arch=compact",),
        ("arch=medium",),
        ("arch.short_convolution=true",),
        ("arch.num_recursions=2", "arch.num_recursions_with_gradient=2"),
    ],
    ids=str,
)
def test_activations_are_what_the_partitioner_keeps(given: tuple[str, ...]) -> None:
    arch = load_config("train", TrainConfig, "", given).arch
    assert bytes_per_token(arch, torch.bfloat16) == pytest.approx(kept_bytes(arch), rel=0.1)


def test_only_cycles_with_a_gradient_keep_anything() -> None:
    arch = ArchConfig()
    more_cycles = arch.model_copy(update={"num_recursions": 3})
    more_updates = arch.model_copy(update={"num_latent_updates": 5})
    base = bytes_per_token(arch, torch.float32)
    assert bytes_per_token(more_cycles, torch.float32) == base
    assert bytes_per_token(more_updates, torch.float32) == 2 * base
    assert bytes_per_token(arch, torch.bfloat16) == base / 2


def test_the_parts_add_up() -> None:
    arch = ArchConfig(hidden_size=32, num_heads=2)
    estimate = estimate_memory(
        arch, torch.float32, num_parameters=100, puzzle_parameters=10, is_averaged=True,
        batch_tokens=1000, tokens_at_a_time=500,
    )  # fmt: skip
    assert estimate.weights == 100 * 4 * 5
    assert estimate.puzzle_embedding == 10 * 4
    assert estimate.batch == 2 * 1000 * (2 * 32 * 4 + 7 * 12 + 7 * 8)
    assert estimate.activations == 500 * bytes_per_token(arch, torch.float32)
    assert estimate.total == sum(estimate)
    assert "weights 0.00" in str(estimate)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    estimate = MemoryEstimate(weights=10**9, puzzle_embedding=10**9, batch=0, activations=10**10)
    require_memory(estimate, 1000, 100, available=13_100_000_000)
    # 0.92 of 8 GB are 7.36, of which 2 are taken: 5.36 of 10 GB, so 536 of 1000 tokens.
    with pytest.raises(UserError, match=r"train.micro_batch_tokens=536 would fit"):
        require_memory(estimate, 1000, 100, available=8 * 10**9)
    with pytest.raises(UserError, match="not even one sequence"):
        require_memory(estimate, 1000, 600, available=8 * 10**9)
