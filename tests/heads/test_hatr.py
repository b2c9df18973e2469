from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from torch import nn

from bsdkit.errors import HeadError
from bsdkit.heads import make_head
from bsdkit.heads.hatr import HATRHead, HATRNetwork
from bsdkit.heads.training import Replica, TrainingData, train_replicas
from bsdkit.heads.training.engine import Score
from bsdkit.splits import make_split
from bsdkit.store import Store

ROOT = Path(__file__).resolve().parents[2]


def hatr(blocks: tuple[int, ...], **settings: object) -> HATRHead:
    head = make_head("hatr", settings, blocks=blocks)
    assert isinstance(head, HATRHead)
    return head


# --- the network


def test_the_widths_are_the_baseline_s() -> None:
    encoder = [(512, 512), *[(512, 1024), (1024, 512)] * 3, (512, 256), (256, 128)]
    tail = [(128, 256), (256, 128), (128, 64), *[(64, 128), (128, 64)] * 2, (64, 32), (32, 23)]
    norms = [512, *[1024, 512] * 3, 128]
    encoder_dropout = [0.1] * 5  # after the first layer, in each block, between the last two
    tail_dropout = [0.1, 0.1, 0.05, 0.05, 0.05, 0.025]
    torch.manual_seed(0)
    for n_inputs, fusion, fusion_dropout in ((2, [(256, 128), (128, 2)], [0.1]), (1, [], [])):
        module = hatr((512,) * n_inputs).build(512 * n_inputs, 23)
        kinds = list(module.modules())
        linear = [m for m in kinds if isinstance(m, nn.Linear)]
        shapes = [(m.in_features, m.out_features) for m in linear]
        assert shapes == [*encoder * n_inputs, *fusion, *tail]
        widths = [m.num_features for m in kinds if isinstance(m, nn.BatchNorm1d)]
        assert widths == [*norms * n_inputs, *[128, 64] * 2]
        rates = [m.p for m in kinds if isinstance(m, nn.Dropout)]
        assert rates == [*encoder_dropout * n_inputs, *fusion_dropout, *tail_dropout]
        for layer in linear:  # Xavier's uniform rule fills a symmetric interval
            bound = math.sqrt(6 / (layer.in_features + layer.out_features))
            assert float(layer.weight.detach().abs().max()) == pytest.approx(bound, rel=0.05)


def test_the_output_is_what_the_parts_say() -> None:
    torch.manual_seed(0)
    net = HATRNetwork((6, 4), 32, 0.1, 3)
    x = torch.randn(50, 10)
    net(x)  # fills the running statistics
    net.eval()
    state = net.state_dict()

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return (x - mean) / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + (
            state[f"{name}.bias"]
        )

    def leaky(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.01 * x)

    def residual(name: str, x: torch.Tensor) -> torch.Tensor:
        inner = leaky(norm(f"{name}.layers.1", linear(f"{name}.layers.0", x)))
        return leaky(x + norm(f"{name}.layers.5", linear(f"{name}.layers.4", inner)))

    def encode(name: str, x: torch.Tensor) -> torch.Tensor:
        x = leaky(linear(f"{name}.1", norm(f"{name}.0", x)))
        for block in (4, 5, 6):
            x = residual(f"{name}.{block}", x)
        return norm(f"{name}.11", linear(f"{name}.10", leaky(linear(f"{name}.7", x))))

    a, b = encode("encoders.0", x[:, :6]), encode("encoders.1", x[:, 6:])
    score = linear("fusion.attention.2", linear("fusion.attention.0", torch.cat([a, b], 1)).tanh())
    share = score.exp() / score.exp().sum(1, keepdim=True)
    z = share[:, :1] * a + share[:, 1:] * b
    for layer in (0, 3, 6):
        z = leaky(linear(f"projector.{layer}", z))
    for block in (9, 10):
        z = residual(f"projector.{block}", z)
    output = net(x)
    torch.testing.assert_close(output["embedding"], z)
    logits = linear("classifier.3", leaky(linear("classifier.0", z)))
    torch.testing.assert_close(output["logits"], logits)


def test_faults_are_one_line() -> None:
    X, y = blobs()
    with pytest.raises(HeadError, match=r"^hidden is 8, expected 16 or more$"):
        hatr((6, 4), hidden=8).fit(X, y)
    with pytest.raises(HeadError, match=r"^dropout is 1.0, expected 0 to below 1$"):
        hatr((6, 4), dropout=1.0).fit(X, y)


# --- the stack, number by number


def blobs(n: int = 240, dim: int = 10, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    X, y = make_blobs(n, dim, centers=n_classes, cluster_std=3.0, random_state=0)
    return X.astype(np.float32), y.astype(np.int64)


# A bias in front of batch normalisation has no gradient but rounding noise, which Adam scales up
# to full steps; with a decay that drowns the noise, every number can be compared.
DECAY = 0.01


def same_order(replica: Replica, size: int) -> Callable[[], Iterator[np.ndarray]]:
    """Epoch by epoch, the full batches that the replica's seed gives."""
    stream = np.random.SeedSequence(replica.seed).spawn(3)[0]
    order = np.random.Generator(np.random.SFC64(stream))
    n = len(replica.fit_rows)

    def epoch() -> Iterator[np.ndarray]:
        shuffled = replica.fit_rows[order.permutation(n)]
        return (shuffled[start : start + size] for start in range(0, n - size + 1, size))

    return epoch


def test_a_stack_is_the_plain_loop_from_a_fresh_and_from_a_trained_state() -> None:
    X, y = blobs()
    data = TrainingData(X, y, 4)
    rows = [np.arange(0, 200), np.arange(100, 197), np.arange(200, 240)]  # 6, 3 and 1 steps
    replicas = [Replica(r, r[:0], seed) for seed, r in enumerate(rows)]
    for epochs in (4, 1):
        head = hatr(
            (6, 4), hidden=32, epochs=epochs, batch_size=32, step_epochs=3, weight_decay=DECAY,
            dropout=0.0, noise=0.0, mask=0.0,
        )  # fmt: skip
        stack = train_replicas([head], data, replicas)
        for replica, trained in zip(replicas, stack, strict=True):
            torch.manual_seed(replica.seed)
            plain = PlainTraining(head, X, y, weight_decay=DECAY, step_epochs=3)
            if replica.initial is not None:
                plain.module.load_state_dict(replica.initial)
            batches = same_order(replica, 32)
            for _ in range(epochs):
                plain.epoch(batches())
            state = plain.module.state_dict()
            assert sum("running_" in name for name in state) == 2 * (2 * 8 + 4)
            for name, value in state.items():
                if not name.endswith("num_batches_tracked"):  # nothing depends on it
                    torch.testing.assert_close(trained.state[name], value, atol=1e-4, rtol=1e-4)
        replicas = [replace(r, initial=t.state) for r, t in zip(replicas, stack, strict=True)]


def accuracy(name: str) -> Score:
    assert name == "accuracy"
    return lambda y_true, y_pred: float((y_true == y_pred).mean())


def test_a_replica_is_the_same_alone_and_stopping_disturbs_nobody() -> None:
    X, y = blobs()
    head = hatr((6, 4), hidden=32, epochs=9, batch_size=32, patience=2, weight_decay=DECAY)
    held_out, nothing = np.arange(200, 240), np.arange(0)
    replicas = [
        Replica(np.arange(0, 200), nothing, 0),  # 6 steps
        Replica(np.arange(0, 40), held_out, 3),  # 1 step
        Replica(np.arange(100, 197), held_out, 2),  # 3 steps
        Replica(np.arange(0, 190), nothing, 1),  # 5 steps
    ]
    data = TrainingData(X, y, 4)
    stack = train_replicas([head], data, replicas, score=accuracy)
    n_epochs = [len(trained.losses) for trained in stack]
    assert n_epochs[0] == n_epochs[3] == 9 and n_epochs[1] < n_epochs[2] < 9
    for trained in stack[1:3]:
        assert len(trained.losses) == len(trained.validation_scores) == trained.best_epoch + 2
    for replica, trained in zip(replicas, stack, strict=True):
        (alone,) = train_replicas([head], data, [replica], score=accuracy)
        assert alone.best_epoch == trained.best_epoch
        assert alone.validation_scores == trained.validation_scores
        np.testing.assert_allclose(alone.losses, trained.losses, atol=1e-5)
        for name, value in alone.state.items():
            torch.testing.assert_close(trained.state[name], value, atol=1e-5, rtol=1e-5)


# --- the protocol, against torch's own parts


class PlainTraining:
    """The baseline's training of one network, as anyone would write it."""

    def __init__(
        self,
        head: HATRHead,
        X: np.ndarray,
        y: np.ndarray,
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
        step_epochs: int = 20,
    ) -> None:
        self.module = head.build(X.shape[1], int(y.max()) + 1)
        self.X, self.y = torch.from_numpy(X), torch.from_numpy(y)
        self.optimizer = torch.optim.Adam(
            self.module.parameters(), lr=learning_rate, weight_decay=weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, step_epochs, gamma=0.5)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.01)

    def epoch(
        self,
        batches: Iterable[np.ndarray],
        augment: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    ) -> None:
        self.module.train()
        for batch in batches:
            self.optimizer.zero_grad()
            logits = self.module(augment(self.X[batch]))["logits"]
            self.criterion(logits, self.y[batch]).backward()
            self.optimizer.step()
        self.schedule.step()

    def accuracy(self, rows: np.ndarray) -> float:
        self.module.eval()
        with torch.no_grad():
            predicted = self.module(self.X[rows])["logits"].argmax(dim=1)
        return float((predicted == self.y[rows]).double().mean())


def baseline_augmentation(x: torch.Tensor, blocks: tuple[int, ...]) -> torch.Tensor:
    """Noise, then of each input of each clip 1 dimension to 70 % of them set to zero."""
    parts = []
    for part in torch.split(x, list(blocks), dim=1):
        n, dim = part.shape
        n_zero = torch.randint(1, int(0.7 * dim) + 1, (n, 1))
        keep = torch.ones(n, dim)
        keep.scatter_(1, torch.rand(n, dim).argsort(dim=1), (torch.arange(dim) >= n_zero).float())
        parts.append((part + 1e-4 * torch.randn(n, dim)) * keep)
    return torch.cat(parts, dim=1)


def plain_protocol(
    head: HATRHead, X: np.ndarray, y: np.ndarray, replica: Replica, epochs: int, **settings: float
) -> float:
    """Best validation accuracy of one network trained as the baseline is."""
    torch.manual_seed(replica.seed)
    plain = PlainTraining(head, X, y, **settings)
    rows, blocks = replica.fit_rows, head.blocks or ()
    n_full = len(rows) // 64
    best, n_waited = 0.0, 0
    for _ in range(epochs):
        order = rows[torch.randperm(len(rows)).numpy()][: n_full * 64]
        plain.epoch(order.reshape(n_full, 64), lambda x: baseline_augmentation(x, blocks))
        found = plain.accuracy(replica.validation_rows)
        n_waited = 0 if found > best else n_waited + 1
        best = max(best, found)
        if n_waited == 15:
            break
    return best


def compare_with_the_protocol(
    n_seeds: int, *, of_families: bool, hidden: int, epochs: int, **settings: float
) -> None:
    """Trains both on one half of the starter sounds, with the same weights to start from.

    They agree if their mean best accuracies on the other half, which shares no uploader with
    the first, differ by less than 2 points and by at most three standard errors. Half of the
    clips, rather than a fold's share, so that the score's own noise is not what is compared.
    """
    store = Store(ROOT / "cache/starter")
    clips, features = store.clips, store.features(["aisfx", "minilm"]).arrays
    X = np.concatenate(list(features.values()), axis=1)
    y = clips.labels
    if of_families:
        y = np.asarray(clips.taxonomy.family_of, np.int64)[y]
    halves = make_split("group", clips, n_folds=2)
    replicas = [Replica(halves.train(0), halves.test(0), seed) for seed in range(n_seeds)]
    blocks = tuple(part.shape[1] for part in features.values())
    head = hatr(blocks, hidden=hidden, epochs=epochs, **settings)
    trained = train_replicas([head], TrainingData(X, y, int(y.max()) + 1), replicas, score=accuracy)
    ours = np.array([max(result.validation_scores) for result in trained])
    theirs = np.array([plain_protocol(head, X, y, r, epochs, **settings) for r in replicas])
    difference = ours.mean() - theirs.mean()
    error = math.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / n_seeds)
    report = (
        f"stack {ours.round(3)}, plain loop {theirs.round(3)}, "
        f"difference {difference:.4f}, standard error {error:.4f}"
    )
    print(report)
    assert abs(difference) < 0.02 and abs(difference) <= 3 * error, report


@pytest.mark.slow
def test_a_stack_learns_what_the_protocol_learns() -> None:
    # Families, a higher rate and a narrower network are learnt in a test's time; 23 classes at
    # 1e-3 are not, and until they are, seeds differ by some 5 points.
    compare_with_the_protocol(
        4, of_families=True, hidden=128, epochs=20, learning_rate=4e-3, step_epochs=14
    )


@pytest.mark.slow
def test_a_stack_learns_what_the_protocol_learns_of_all_classes() -> None:
    compare_with_the_protocol(
        4, of_families=False, hidden=256, epochs=60, learning_rate=2e-3, step_epochs=12
    )
