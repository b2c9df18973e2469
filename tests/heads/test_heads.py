from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.nn import functional

from bsdkit.errors import HeadError
from bsdkit.heads import head_classes, make_head
from bsdkit.heads.gmu import GatedUnit
from bsdkit.heads.knn import KNNHead
from bsdkit.heads.replicas import Replica, TrainingSettings, train_replicas
from bsdkit.heads.torch_head import TorchHead

# Small and quick settings, so that scikit-learn's hundred checks take seconds.
QUICK = {
    "knn": {"k": 5},
    "prototype": {},
    "linear": {"C": 1.0, "tol": 1e-10, "max_iter": 1000},
    "mlp": {"hidden": 16, "epochs": 25, "learning_rate": 0.02, "label_smoothing": 0.0},
    "gmu": {"hidden": 16, "epochs": 25, "learning_rate": 0.02, "label_smoothing": 0.0},
}


def quick(name: str, **changes: object) -> object:
    return head_classes()[name](**{**QUICK[name], **changes})


def test_every_head_is_checked() -> None:
    assert set(QUICK) == set(head_classes())


def expected_to_fail(head: object) -> dict[str, str]:
    if isinstance(head, TorchHead):
        # A batch of repeated clips is another batch: equivalence holds for the loss alone.
        reason = "minibatches of repeated rows differ from those of weighted rows"
        return {"check_sample_weight_equivalence_on_dense_data": reason}
    if isinstance(head, KNNHead):
        # Two copies of a row are two of the k neighbours, a row of weight two is one.
        reason = "a repeated row takes the places of several neighbours"
        return {"check_sample_weight_equivalence_on_dense_data": reason}
    return {}


@parametrize_with_checks([quick(name) for name in QUICK], expected_failed_checks=expected_to_fail)
def test_scikit_learn_contract(estimator, check) -> None:  # type: ignore[no-untyped-def]
    check(estimator)


def blobs(n: int = 240, dim: int = 10, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    X, y = make_blobs(n, dim, centers=n_classes, cluster_std=3.0, random_state=0)
    return X.astype(np.float32), y.astype(np.int64)


@pytest.mark.parametrize("name", QUICK)
def test_it_learns_and_its_state_travels(name: str) -> None:
    X, y = blobs()
    head = make_head(name, QUICK[name], blocks=(6, 4), random_state=3).fit(X[:180], y[:180])
    probabilities = head.predict_proba(X[180:])
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert (head.predict(X[180:]) == y[180:]).mean() > 0.9
    restored = make_head(name, QUICK[name], blocks=(6, 4)).load_state(
        head.state(), head.classes_, 10
    )
    assert (restored.predict_proba(X[180:]) == probabilities).all()
    again = make_head(name, QUICK[name], blocks=(6, 4), random_state=3).fit(X[:180], y[:180])
    assert (again.predict_proba(X[180:]) == probabilities).all()


@pytest.mark.parametrize("name", QUICK)
def test_weights_of_zero_remove_clips(name: str) -> None:
    X, y = blobs()
    wrong = y.copy()
    wrong[:60] = (y[:60] + 1) % 4
    weight = np.ones(len(y))
    weight[:60] = 0
    settings = {**QUICK[name], "dropout": 0.0} if name in ("mlp", "gmu") else QUICK[name]
    head = make_head(name, settings, blocks=(6, 4)).fit(X, wrong, sample_weight=weight)
    assert (head.predict(X[:60]) == y[:60]).mean() > 0.85


@pytest.mark.parametrize("name", QUICK)
def test_bad_input_is_refused_in_one_line(name: str) -> None:
    X, y = blobs()
    with pytest.raises(HeadError, match="did you mean"):
        typo = {"linear": "max_itre", "knn": "temperatur", "prototype": "temperatur"}
        make_head(name, {typo.get(name, "epoch"): 1}, blocks=(10,))
    with pytest.raises(ValueError, match="one class only"):
        make_head(name, QUICK[name], blocks=(10,)).fit(X, np.zeros(len(y)))
    broken = X.copy()
    broken[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        make_head(name, QUICK[name], blocks=(10,)).fit(broken, y)
    with pytest.raises(ValueError, match="features"):
        make_head(name, QUICK[name], blocks=(10,)).fit(X, y).predict(X[:, :5])
    with pytest.raises(HeadError, match="unknown head 'mpl'"):
        make_head("mpl", {}, blocks=(10,))


@pytest.mark.parametrize("name", ["mlp", "gmu"])
def test_blocks_must_add_up(name: str) -> None:
    X, y = blobs()
    with pytest.raises(HeadError, match=r"blocks \(3, 4\) add up to 7; X has 10"):
        make_head(name, QUICK[name], blocks=(3, 4)).fit(X, y)


@pytest.mark.parametrize("name", ["mlp", "gmu"])
def test_an_input_on_a_large_scale_does_not_drown_the_other(name: str) -> None:
    X, y = blobs(n=600, dim=12)
    loud = np.random.default_rng(0).standard_normal((len(X), 8)).astype(np.float32) * 1e3
    both = np.concatenate([loud, X], axis=1)
    head = make_head(name, QUICK[name], blocks=(8, 12)).fit(both[:450], y[:450])
    assert (head.predict(both[450:]) == y[450:]).mean() > 0.9


def test_gates_of_two_inputs_are_g_and_one_minus_g() -> None:
    torch.manual_seed(0)
    unit = GatedUnit((3, 5), 7, 0.0, 2).eval()
    x = torch.randn(4, 8)
    a, b = unit.normalize(x)
    gates = unit.gate(torch.cat([a, b], 1)).unflatten(1, (2, 7))
    g = torch.sigmoid(gates[:, 0] - gates[:, 1])
    z = g * unit.projections[0](a) + (1 - g) * unit.projections[1](b)
    torch.testing.assert_close(unit.classifier(z), unit(x))


def plain_loop(
    module: nn.Module, X: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int,
    settings: TrainingSettings,
) -> nn.Module:  # fmt: skip
    """What anyone would write: one network, torch's AdamW, one batch after the other."""
    optimizer = torch.optim.AdamW(
        module.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    order = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed).spawn(2)[0]))
    for epoch in range(settings.epochs):
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))
            group["lr"] = settings.learning_rate * cosine
        shuffled = rows[order.permutation(len(rows))]
        for start in range(0, len(rows), settings.batch_size):
            batch = shuffled[start : start + settings.batch_size]
            loss = functional.cross_entropy(
                module(torch.from_numpy(X[batch])),
                torch.from_numpy(y[batch]),
                label_smoothing=settings.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module


@pytest.mark.parametrize("name", ["mlp", "gmu"])
def test_a_stack_is_the_plain_loop(name: str) -> None:
    X, y = blobs()
    head = make_head(
        name, {"hidden": 16, "dropout": 0.0, "epochs": 4, "batch_size": 32}, blocks=(6, 4)
    )
    assert isinstance(head, TorchHead)
    # unequal lengths: 200, 97 and 33 rows are 7, 4 and 2 steps an epoch
    rows = [np.arange(0, 200), np.arange(100, 197), np.arange(200, 233)]
    replicas = [Replica(r, r[:0], seed) for seed, r in enumerate(rows)]
    stack = head.fit_stack(X, y, 4, replicas)
    for replica, trained in zip(replicas, stack, strict=True):
        torch.manual_seed(replica.seed)
        module = plain_loop(
            head.build(10, 4), X, y, replica.fit_rows, replica.seed, head.settings()
        )
        for key, value in module.state_dict().items():
            torch.testing.assert_close(trained.state[key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "gmu"])
def test_a_replica_is_the_same_alone(name: str) -> None:
    X, y = blobs()
    head = make_head(name, {"hidden": 16, "epochs": 5, "batch_size": 32}, blocks=(6, 4))
    assert isinstance(head, TorchHead)
    rows = np.arange(len(X))
    replicas = [
        Replica(rows[rows % 5 != k], rows[rows % 5 == k], seed) for k in range(5) for seed in (0, 1)
    ]
    replicas.append(Replica(rows[:70], rows[200:], 9))

    def accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
        return float((y_true == y_pred).mean())

    stack = head.fit_stack(X, y, 4, replicas, score=accuracy)
    for i in (0, 3, 10):
        (alone,) = head.fit_stack(X, y, 4, [replicas[i]], score=accuracy)
        assert alone.best_epoch == stack[i].best_epoch
        np.testing.assert_allclose(alone.losses, stack[i].losses, atol=1e-5)
        for key, value in alone.state.items():
            torch.testing.assert_close(stack[i].state[key], value, atol=1e-5, rtol=1e-5)
    assert len({tuple(r.losses) for r in stack}) == len(stack)


def test_the_best_epoch_is_kept() -> None:
    X, y = blobs()
    scores = iter([0.2, 0.9, 0.9, 0.1])
    (trained,) = train_replicas(
        lambda: nn.Linear(10, 4), X, y, [Replica(np.arange(200), np.arange(200, 240), 0)],
        TrainingSettings(epochs=4), score=lambda a, b: next(scores),
    )  # fmt: skip
    assert trained.best_epoch == 2 and trained.validation_scores == (0.2, 0.9, 0.9, 0.1)
    (two,) = train_replicas(
        lambda: nn.Linear(10, 4), X, y, [Replica(np.arange(200), np.arange(0), 0)],
        TrainingSettings(epochs=2, schedule="constant"),
    )  # fmt: skip
    (four,) = train_replicas(
        lambda: nn.Linear(10, 4), X, y, [Replica(np.arange(200), np.arange(0), 0)],
        TrainingSettings(epochs=4, schedule="constant"),
    )  # fmt: skip
    assert two.best_epoch == 2 and four.losses[:2] == two.losses


def test_dropout_keeps_the_share_it_should() -> None:
    from bsdkit.heads.replicas import _Masks, _with_replica_dropout

    module = _with_replica_dropout(nn.Sequential(nn.Linear(4, 500), nn.Dropout(0.3)))
    masks = _Masks(module, torch.zeros(1, 4), [np.random.SFC64(i) for i in range(2)])
    (mask,) = masks.draw(2, 40, torch.device("cpu")).values()
    assert mask.shape == (2, 40, 500)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert abs(float(mask.mean()) - 1) < 0.02 and not torch.equal(mask[0], mask[1])


def test_no_rows_is_refused() -> None:
    X, y = blobs()
    with pytest.raises(ValueError, match="at least one row"):
        train_replicas(lambda: nn.Linear(10, 4), X, y, [], TrainingSettings())
