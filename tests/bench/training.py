"""Row 2: a member of several folds and seeds against the usual trainer and its own products."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import Row, Sizes, alternate, compare, made_up_features, made_up_labels
from sklearn.model_selection import StratifiedKFold
from torch import nn
from usual_trainer import ClipFiles, UsualSettings, train_usual, write_clip_files

from bsdkit.heads.mlp import MLPHead
from bsdkit.heads.registry import make_head
from bsdkit.heads.training.losses import as_output
from bsdkit.members import Inputs, MemberPlan, MemberResult, Task, train_members
from bsdkit.onednn import is_faster, linear
from bsdkit.splits import OFFICIAL_SEED, Split, inner_validation
from bsdkit.taxonomy import BST

HIDDEN, BATCH = 512, 64
# All of it stands here, so that a changed default of the head cannot move the figures.
SETTINGS: dict[str, object] = {
    "hidden": HIDDEN,
    "dropout": 0.3,
    "batch_size": BATCH,
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "label_smoothing": 0.1,
}
VALIDATION = 0.2


class UsualNetwork(nn.Module):
    """The head's network behind the layer normalisation that its inputs get."""

    def __init__(self, network: nn.Module, dim: int) -> None:
        super().__init__()
        self.normalize = nn.LayerNorm(dim, elementwise_affine=False)
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return as_output(self.network(self.normalize(x)))["logits"]


def matrix_products(
    n_replicas: int, n_rows: int, dim: int, n_classes: int, epochs: int
) -> Callable[[], None]:
    """The products of a stack's training steps and nothing else: no gather, update or score.

    A step multiplies forward, for the gradient of each weight, and for the gradient of the
    hidden layer. The first layer's input needs none: nothing before it is learned. The products
    go through the library that the trainer uses on this processor.

    Args:
        n_replicas: networks in the stack.
        n_rows: rows that each fits on; the last batch of an epoch is smaller.
        dim: features.
        n_classes: outputs.
        epochs: how often the rows are passed over.
    """
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator)
    first, second = draw(n_replicas, HIDDEN, dim), draw(n_replicas, n_classes, HIDDEN)
    inputs, outputs = draw(n_replicas, BATCH, dim), draw(n_replicas, BATCH, n_classes)
    widths = [min(BATCH, n_rows - start) for start in range(0, n_rows, BATCH)]

    def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if not is_faster():
            return torch.bmm(x, weight.mT)
        return torch.stack([linear(x[i], weight[i], None) for i in range(n_replicas)])

    def run() -> None:
        for width in widths * epochs:
            x, gradient = inputs[:, :width], outputs[:, :width]
            hidden = multiply(x, first)
            torch.bmm(hidden, second.mT)
            torch.bmm(gradient.mT, hidden)
            hidden_gradient = torch.bmm(gradient, second)
            if is_faster():
                for i in range(n_replicas):
                    linear(hidden_gradient[i].t().contiguous(), x[i].t(), None)
            else:
                torch.bmm(hidden_gradient.mT, x)

    return run


def training_rows(sizes: Sizes) -> list[Row]:
    """Times a member end to end, one network of the usual trainer, and the products alone."""
    with tempfile.TemporaryDirectory(prefix="bsdkit-bench-") as folder:
        return _training_rows(sizes, Path(folder))


def _training_rows(sizes: Sizes, folder: Path) -> list[Row]:
    rng = np.random.default_rng(20)
    labels = made_up_labels(sizes.n_clips, rng)
    X = made_up_features(labels, sizes.dim, rng)
    ids = [str(i) for i in range(sizes.n_clips)]
    write_clip_files(folder, ids, X)
    is_present = np.ones(sizes.n_clips, bool)
    fold = np.zeros(sizes.n_clips, np.int64)
    folds = StratifiedKFold(sizes.n_folds, shuffle=True, random_state=OFFICIAL_SEED)
    for k, (_, test) in enumerate(folds.split(X, labels)):
        fold[test] = k
    split = Split("official", fold, sizes.n_folds, OFFICIAL_SEED)
    blocks, seeds = (sizes.dim,), tuple(range(sizes.n_seeds))

    def member(epochs: int, seeds: tuple[int, ...]) -> MemberResult:
        plan = MemberPlan(
            "mlp", "mlp", {**SETTINGS, "epochs": epochs}, ("clap.audio",), seeds, VALIDATION
        )
        inputs = {plan.features: Inputs(X, blocks, is_present)}
        return train_members([plan], inputs, Task(labels, BST, split))["mlp"]

    fit, validation = inner_validation(split.train(0), labels, None, fraction=VALIDATION)
    rows = (fit, validation, split.test(0))

    def usual(epochs: int) -> float:
        head = make_head("mlp", SETTINGS, blocks=blocks)
        assert isinstance(head, MLPHead)
        probabilities = train_usual(
            lambda: UsualNetwork(head.build(sizes.dim, len(BST)), sizes.dim),
            lambda rows: ClipFiles(folder, ids, labels, rows),
            rows,
            UsualSettings(epochs, BATCH, 1e-3, 1e-2, 0.1, sizes.n_workers, seed=0),
        )
        return float((probabilities.argmax(axis=1) == labels[rows[2]]).mean())

    n_networks = sizes.n_folds * sizes.n_seeds
    products = matrix_products(n_networks, len(fit), sizes.dim, len(BST), sizes.epochs)
    # Both trainers have to learn the same thing, or the times mean nothing; this warms up too.
    usual_accuracy = usual(sizes.epochs)
    test = rows[2]
    ours = member(sizes.epochs, seeds).probabilities[0, test]
    accuracy = float((ours.argmax(axis=1) == labels[test]).mean())

    seconds = alternate(
        {
            "usual": lambda: usual(sizes.epochs),
            "member": lambda: member(sizes.epochs, seeds),
            "products": products,
        },
        sizes.n_rounds,
    )
    all_usual = [value * n_networks for value in seconds["usual"]]
    what = (
        f"a member of {sizes.n_folds} folds x {sizes.n_seeds} seeds on "
        f"{sizes.n_clips:,} x {sizes.dim:,}"
    )
    return [
        compare(
            f"{what} against the usual trainer",
            seconds["member"],
            all_usual,
            f"{sizes.epochs} epochs on both sides, predictions of the test folds included. Usual: "
            f"one fold and one seed measured ({statistics.median(seconds['usual']):.2f} s), times "
            f"{n_networks}; one .npy a clip (warm page cache), {sizes.n_workers} DataLoader "
            f"workers. Accuracy on that fold: bsdkit {accuracy:.3f}, usual {usual_accuracy:.3f}",
            is_speedup=True,
            target=15,
        ),
        compare(
            f"{what} against its matrix products alone",
            seconds["member"],
            seconds["products"],
            f"the products (forward, dW, hidden dX) of its {-(-len(fit) // BATCH) * sizes.epochs} "
            "training steps on the same stacked shapes, by the library that the trainer uses; "
            "those of validation and prediction are not counted to them",
            is_speedup=False,
            target=2,
        ),
    ]
