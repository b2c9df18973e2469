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
from bsdkit.heads.gbdt import GBDTHead
from bsdkit.heads.gmu import GatedUnit
from bsdkit.heads.knn import KNNHead
from bsdkit.heads.mlp import MLPHead
from bsdkit.heads.prior import PriorHead
from bsdkit.heads.registry import head_parameters
from bsdkit.heads.torch_head import TorchHead
from bsdkit.heads.training import Replica, TrainedReplica, TrainingData, train_replicas

# Small and quick settings, so that scikit-learn's hundred checks take seconds.
QUICK = {
    "knn": {"k": 5},
    "prototype": {},
    "linear": {"C": 1.0, "tol": 1e-10, "max_iter": 1000},
    "prior": {"penalty": 0.1},
    "gbdt": {"n_estimators": 20, "learning_rate": 0.3, "min_child_weight": 0.1},
}
_SMALL = {"hidden": 16, "epochs": 25, "learning_rate": 0.02, "label_smoothing": 0.0}
QUICK |= {
    "mlp": _SMALL,
    "gmu": _SMALL,
    "haf": _SMALL,
    "two_level": _SMALL,
    "prior_mix": {**_SMALL, "mix_dim": 16},
    "hyperbolic": {**_SMALL, "dim": 8, "scale": 1.0},
    "hatr": {
        **_SMALL, "hidden": 64, "epochs": 20, "learning_rate": 0.003, "batch_size": 32,
        "dropout": 0.0, "mask": 0.0,
    },
}  # fmt: skip

# Its weights are not for everyone to have; test_plain_heads.py runs it on a stand-in.
ELSEWHERE = {"tabpfn"}


def quick(name: str, **changes: object) -> object:
    return head_classes()[name](**{**QUICK[name], **changes})


def test_every_head_is_checked() -> None:
    assert set(QUICK) | ELSEWHERE == set(head_classes())


def expected_to_fail(head: object) -> dict[str, str]:
    if isinstance(head, TorchHead):
        # A batch of repeated clips is another batch: equivalence holds for the loss alone.
        reason = "minibatches of repeated rows differ from those of weighted rows"
        return {
            "check_sample_weight_equivalence_on_dense_data": reason,
            "check_class_weight_classifiers": "class_weight takes names, not weights by label",
        }
    if isinstance(head, GBDTHead):
        # LightGBM draws its thresholds in an order that follows the number of rows.
        return {"check_sample_weight_equivalence_on_dense_data": "thresholds are drawn by rows"}
    if isinstance(head, KNNHead):
        # Two copies of a row are two of the k neighbours, a row of weight two is one.
        reason = "a repeated row takes the places of several neighbours"
        return {"check_sample_weight_equivalence_on_dense_data": reason}
    if isinstance(head, PriorHead):
        # Of the two columns of that check only the ratio is left.
        return {"check_classifiers_train": "rows of a prior have no scale"}
    return {}


# The torch heads share all of their contract but the network; one of them stands for all.
FIRST = [name for name in QUICK if name == "mlp" or "epochs" not in QUICK[name]]


# So few and large steps do for the checks, which are many.
FEWER: dict[str, dict[str, object]] = {"mlp": {"epochs": 10, "learning_rate": 0.05}}


@parametrize_with_checks(
    [quick(n, **FEWER.get(n, {})) for n in FIRST], expected_failed_checks=expected_to_fail
)
def test_scikit_learn_contract(estimator, check) -> None:  # type: ignore[no-untyped-def]
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [quick(name) for name in QUICK if name not in FIRST], expected_failed_checks=expected_to_fail
)
def test_scikit_learn_contract_of_the_rest(estimator, check) -> None:  # type: ignore[no-untyped-def]
    is_deep = estimator.name == "hatr"
    if is_deep and check.func.__name__ == "check_methods_subset_invariance":
        pytest.skip("asks for 1e-7 of twenty layers in float32")
    check(estimator)


BY_COST = [pytest.param(n, marks=pytest.mark.slow) if n == "hatr" else n for n in QUICK]
"""The largest network by far is looked at behind the marker, and by test_hatr.py."""

ONE_FOR_ALL = [n if n in FIRST else pytest.param(n, marks=pytest.mark.slow) for n in QUICK]
"""Of what the torch heads share, as above."""


def blobs(
    n: int = 240, dim: int = 10, n_classes: int = 4, head: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    X, y = make_blobs(n, dim, centers=n_classes, cluster_std=3.0, random_state=0)
    if head == "prior":  # takes nothing negative
        X -= X.min()
    return X.astype(np.float32), y.astype(np.int64)


@pytest.mark.parametrize("name", BY_COST)
def test_it_learns_and_its_state_travels(name: str) -> None:
    X, y = blobs(head=name)
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


@pytest.mark.parametrize("name", ONE_FOR_ALL)
def test_weights_of_zero_remove_clips(name: str) -> None:
    X, y = blobs(head=name)
    wrong = y.copy()
    wrong[:60] = (y[:60] + 1) % 4
    weight = np.ones(len(y))
    weight[:60] = 0
    has_dropout = "dropout" in head_parameters(name)
    settings = {**QUICK[name], "dropout": 0.0} if has_dropout else QUICK[name]
    head = make_head(name, settings, blocks=(6, 4)).fit(X, wrong, sample_weight=weight)
    assert (head.predict(X[:60]) == y[:60]).mean() > 0.85


@pytest.mark.parametrize("name", ONE_FOR_ALL)
def test_bad_input_is_refused_in_one_line(name: str) -> None:
    X, y = blobs(head=name)
    with pytest.raises(HeadError, match="did you mean"):
        typo = {"linear": "max_itre", "gbdt": "num_leafs"}
        typo |= {"knn": "temperatur", "prototype": "temperatur", "prior": "flor"}
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
    a, b = x.split([3, 5], dim=1)
    gates = unit.gate(x).unflatten(1, (2, 7))
    g = torch.sigmoid(gates[:, 0] - gates[:, 1])
    z = functional.gelu(g * unit.projections[0](a) + (1 - g) * unit.projections[1](b))
    torch.testing.assert_close(unit.classifier(z), unit(x)["logits"])


def stack_of(
    head: TorchHead, X: np.ndarray, y: np.ndarray, replicas: list[Replica], **kw: object
) -> list[TrainedReplica]:
    data = TrainingData(head.prepare(X), y, int(y.max()) + 1)
    return train_replicas([head], data, replicas, **kw)  # type: ignore[arg-type]


def plain_loop(
    head: TorchHead, X: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int
) -> nn.Module:
    """What anyone would write: one network, torch's optimiser, one batch after the other."""
    torch.manual_seed(seed)
    module = head.build(X.shape[1], int(y.max()) + 1)
    maker = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[head.optimizer]
    optimizer = maker(module.parameters(), head.learning_rate, weight_decay=head.weight_decay)
    X = head.prepare(X)
    order = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed).spawn(3)[0]))
    n_steps = -(-len(rows) // head.batch_size)
    average = {name: p.detach().clone() for name, p in module.named_parameters()}
    for epoch in range(head.epochs):
        rate = {
            "cosine": 0.5 * (1 + math.cos(math.pi * epoch / head.epochs)),
            "linear": 1 - epoch / head.epochs,
            "step": head.step_factor ** (epoch // head.step_epochs),
            "constant": 1.0,
        }[head.schedule]
        shuffled = rows[order.permutation(len(rows))]
        for step, start in enumerate(range(0, len(rows), head.batch_size)):
            warm = min((epoch + (step + 1) / n_steps) / (head.warmup_epochs or 1e-9), 1)
            for group in optimizer.param_groups:
                group["lr"] = head.learning_rate * rate * warm
            batch = shuffled[start : start + head.batch_size]
            loss = functional.cross_entropy(
                module(torch.from_numpy(X[batch]))["logits"],
                torch.from_numpy(y[batch]),
                label_smoothing=head.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()
            if head.gradient_clip:
                nn.utils.clip_grad_norm_(module.parameters(), head.gradient_clip)
            optimizer.step()
            done = epoch * n_steps + step
            decay = min(head.average_decay, (1 + done) / (10 + done))
            for name, p in module.named_parameters():
                average[name].lerp_(p.detach(), 1 - decay)
    if head.average_decay:
        module.load_state_dict(average)
    return module


TRAININGS = {
    "default": {},
    "adam": {"optimizer": "adam", "schedule": "linear", "weight_decay": 0.1},
    "step": {"schedule": "step", "step_epochs": 2, "label_smoothing": 0.0},
    "clipped": {"gradient_clip": 0.05, "warmup_epochs": 1.5, "schedule": "constant"},
    "averaged": {"average_decay": 0.9},
}


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("name", ["mlp", "gmu"])
def test_a_stack_is_the_plain_loop(name: str, training: str) -> None:
    X, y = blobs()
    settings = {"hidden": 16, "dropout": 0.0, "epochs": 4, "batch_size": 32, **TRAININGS[training]}
    head = make_head(name, settings, blocks=(6, 4))
    assert isinstance(head, TorchHead)
    # unequal lengths: 200, 97 and 33 rows are 7, 4 and 2 steps an epoch
    rows = [np.arange(0, 200), np.arange(100, 197), np.arange(200, 233)]
    replicas = [Replica(r, r[:0], seed) for seed, r in enumerate(rows)]
    stack = stack_of(head, X, y, replicas)
    for replica, trained in zip(replicas, stack, strict=True):
        module = plain_loop(head, X, y, replica.fit_rows, replica.seed)
        for key, value in module.state_dict().items():
            torch.testing.assert_close(trained.state[key], value, atol=1e-5, rtol=1e-4)


def accuracy(name: str):  # type: ignore[no-untyped-def]
    return lambda y_true, y_pred: float((y_true == y_pred).mean())


RANDOM = {
    "dropout": {},
    "mixup": {"mixup": 0.4, "mixup_share": 0.7},
    "cutmix": {"cutmix": 0.4, "noise": 0.1},
    "mask": {"mask": 0.7, "modality_dropout": 0.4, "same_class_swap": 0.3, "swap_input": 0},
    "weighted": {"class_weight": "balanced", "loss": "focal", "hf_weight": 0.3, "mixup": 0.2},
    "contrast": {"contrastive_weight": 0.3, "normalize": "standardize", "patience": 2},
    "plateau": {"schedule": "plateau", "step_epochs": 1, "average_decay": 0.8},
}


@pytest.mark.parametrize("settings", RANDOM)
def test_a_replica_is_the_same_alone(settings: str) -> None:
    X, y = blobs()
    options = {"hidden": 16, "epochs": 5, "batch_size": 32, **RANDOM[settings]}
    head = make_head("gmu", options, blocks=(6, 4))
    assert isinstance(head, TorchHead)
    rows = np.arange(len(X))
    replicas = [
        Replica(rows[rows % 5 != k], rows[rows % 5 == k], seed) for k in range(5) for seed in (0, 1)
    ]
    replicas.append(Replica(rows[:70], rows[200:], 9))
    stack = stack_of(head, X, y, replicas, score=accuracy)
    for i in (0, 3, 10):
        (alone,) = stack_of(head, X, y, [replicas[i]], score=accuracy)
        assert alone.best_epoch == stack[i].best_epoch
        np.testing.assert_allclose(alone.losses, stack[i].losses, atol=1e-5)
        for key, value in alone.state.items():
            torch.testing.assert_close(stack[i].state[key], value, atol=1e-5, rtol=1e-5)
    assert len({tuple(r.losses) for r in stack}) == len(stack)


def test_variants_in_one_stack_are_what_they_are_alone() -> None:
    X, y = blobs()
    common = {"hidden": 16, "epochs": 4, "batch_size": 32}
    changes = [
        {}, {"dropout": 0.0, "learning_rate": 0.01}, {"weight_decay": 0.3, "label_smoothing": 0.3},
        {"mixup": 0.5, "parent_weight": 1.0}, {"loss": "focal", "class_weight": "inverse_sqrt"},
        {"noise": 0.3, "gradient_clip": 0.1}, {"hf_weight": 1.0}, {"smoothing": "siblings"},
    ]  # fmt: skip
    heads = [MLPHead(families=(0, 0, 1, 1), **common, **change) for change in changes]
    assert len({head.stack_key() for head in heads}) == 1
    rows = np.arange(len(X))
    replicas = [Replica(rows[i:], rows[:0], 5, head=i) for i in range(len(heads))]
    data = TrainingData(heads[0].prepare(X), y, 4)
    together = train_replicas(heads, data, replicas)
    for i, head in enumerate(heads):
        (alone,) = train_replicas([head], data, [Replica(rows[i:], rows[:0], 5)])
        for key, value in alone.state.items():
            torch.testing.assert_close(together[i].state[key], value, atol=1e-5, rtol=1e-5)
    assert MLPHead(hidden=8).stack_key() != MLPHead(hidden=16).stack_key()
    assert MLPHead(batch_size=8).stack_key() != MLPHead(batch_size=16).stack_key()


def linear_stack(
    options: dict[str, object], scores: list[float], n_validation: int = 40
) -> TrainedReplica:
    X, y = blobs()

    class Plain(MLPHead):
        def build(self, n_features: int, n_classes: int) -> nn.Module:
            return nn.Linear(n_features, n_classes)

    found = iter(scores)
    replica = Replica(np.arange(200), np.arange(200, 200 + n_validation), 0)
    (trained,) = stack_of(
        Plain(**options), X, y, [replica], score=lambda name: lambda a, b: next(found)
    )
    return trained


def test_the_best_epoch_is_kept_and_patience_ends() -> None:
    trained = linear_stack({"epochs": 4}, [0.2, 0.9, 0.9, 0.1])
    assert trained.best_epoch == 2 and trained.validation_scores == (0.2, 0.9, 0.9, 0.1)
    stopped = linear_stack({"epochs": 9, "patience": 2}, [0.2, 0.9, 0.9, 0.1, 1.0])
    assert stopped.best_epoch == 2 and len(stopped.losses) == 4
    two = linear_stack({"epochs": 2, "schedule": "constant"}, [], 0)
    four = linear_stack({"epochs": 4, "schedule": "constant"}, [], 0)
    assert two.best_epoch == 2 and four.losses[:2] == two.losses


def test_a_plateau_lowers_the_rate() -> None:
    options = {"epochs": 5, "schedule": "plateau", "step_epochs": 2, "step_factor": 1e-9}
    options["batch_size"] = 200  # one step an epoch, so that a rate of nothing changes nothing
    flat = linear_stack(options, [0.5, 0.4, 0.4, 0.4, 0.4])
    rising = linear_stack(options, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert flat.losses[:4] == rising.losses[:4]
    assert flat.losses[4] == pytest.approx(flat.losses[3], abs=1e-6)
    assert rising.losses[4] < rising.losses[3] - 1e-4


def test_a_replica_that_diverges_is_named_and_leaves_the_others_alone() -> None:
    X, y = blobs()
    heads = [MLPHead(hidden=8, epochs=6, learning_rate=r) for r in (1e-2, 1e30)]
    data = TrainingData(heads[0].prepare(X), y, 4)
    rows = np.arange(len(X))
    replicas = [Replica(rows[:200], rows[200:], 0, head=h) for h in (0, 1, 0)]
    good, bad, same = train_replicas(heads, data, replicas, score=accuracy)
    assert "not finite" in bad.fault or "rose" in bad.fault
    assert not good.fault and not same.fault
    (alone,) = train_replicas(heads[:1], data, replicas[:1], score=accuracy)
    for key, value in alone.state.items():
        torch.testing.assert_close(good.state[key], value, atol=1e-5, rtol=1e-5)
    with pytest.raises(HeadError, match="diverged: .*lower learning_rate"):
        MLPHead(hidden=8, epochs=6, learning_rate=1e30).fit(X, y)


def test_soft_targets_and_views_teach() -> None:
    X, y = blobs()
    head = MLPHead(hidden=16, epochs=30, learning_rate=0.02, dropout=0.0, label_smoothing=0.0)
    wrong = np.zeros_like(y)
    soft = np.stack([np.eye(4)[y], np.full((len(y), 4), 0.25)]).astype(np.float32)
    share = np.ones((2, len(y)), np.float32)
    weight = np.ones((2, len(y)), np.float32)
    weight[0, :120] = 0.0
    soft[0, :120] = np.eye(4)[(y[:120] + 1) % 4]  # of no weight, so of no influence
    data = TrainingData(head.prepare(X), wrong, 4, weight, soft, share)
    rows = np.arange(len(y))
    taught, untaught = train_replicas(
        [head], data, [Replica(rows, rows[:0], 0, view=0), Replica(rows, rows[:0], 0, view=1)]
    )
    for trained, least, most in ((taught, 0.95, 1.0), (untaught, 0.0, 0.6)):
        module = head.build(10, 4)
        module.load_state_dict(trained.state)
        with torch.no_grad():
            p = torch.softmax(module(torch.from_numpy(data.X))["logits"], 1)
        assert least <= float((p.argmax(1).numpy() == y).mean()) <= most or trained is untaught
        if trained is untaught:
            assert float(p.max()) < 0.6  # it was told to be undecided


@pytest.mark.parametrize("option", [{"class_weight": "balanced"}, {"same_class_swap": 0.5}])
def test_a_clip_without_a_label_is_of_the_class_that_its_teacher_says(
    option: dict[str, object],
) -> None:
    X, y = blobs()
    y[:80] = 0  # classes of unequal size
    head = MLPHead(hidden=8, epochs=3, label_smoothing=0.0, **option)  # type: ignore[arg-type]
    soft = np.eye(4, dtype=np.float32)[y][None]
    share = np.ones((1, len(y)), np.float32)
    replica = Replica(np.arange(len(y)), np.arange(0), 0)
    nobody = TrainingData(head.prepare(X), np.zeros_like(y), 4, None, soft, share)
    labels = TrainingData(head.prepare(X), y, 4)
    (taught,), (told,) = (train_replicas([head], d, [replica]) for d in (nobody, labels))
    for key, value in told.state.items():
        torch.testing.assert_close(taught.state[key], value, atol=1e-6, rtol=1e-5)


def test_a_warm_start_goes_on_where_it_was() -> None:
    X, y = blobs()
    head = MLPHead(hidden=16, epochs=3, schedule="constant", normalize="standardize")
    rows = np.arange(200)
    (first,) = stack_of(head, X, y, [Replica(rows, rows[:0], 0)])
    still = MLPHead(hidden=16, epochs=1, normalize="standardize", learning_rate=1e-12)
    (second,) = stack_of(still, X, y, [Replica(rows[50:], rows[:0], 3, initial=first.state)])
    for key, value in first.state.items():
        torch.testing.assert_close(second.state[key], value, atol=1e-6, rtol=1e-5)


def test_a_constant_number_of_steps_goes_through_few_rows_several_times() -> None:
    X, y = blobs()
    head = MLPHead(hidden=8, epochs=1, batch_size=10, dropout=0.0)
    few = Replica(np.arange(20), np.arange(0), 0, n_steps=12)
    many = Replica(np.arange(120), np.arange(0), 0)
    one, two = stack_of(head, X, y, [few, many])
    (alone,) = stack_of(head, X, y, [few])
    for key, value in alone.state.items():
        torch.testing.assert_close(one.state[key], value, atol=1e-5, rtol=1e-5)
    assert one.losses != two.losses


def test_averaged_passes_do_not_depend_on_the_batch() -> None:
    X, y = blobs()
    head = MLPHead(hidden=32, epochs=10, learning_rate=0.02, passes=5).fit(X, y)
    together, alone = head.predict_proba(X[:50]), head.predict_proba(X[7:8])
    np.testing.assert_allclose(together[7:8], alone, atol=1e-7)
    whole = MLPHead(hidden=32, epochs=10, learning_rate=0.02).fit(X, y).predict_proba(X[:50])
    assert np.abs(whole - together).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dropout": 1.0}, "dropout is 1.0, expected 0 to below 1"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"loss": "focl"}, "did you mean 'focal'"),
        ({"mixup": 0.2, "cutmix": 0.2}, "mixed in one way"),
        ({"warmup_epochs": 40}, "warmup_epochs is 40 of 40 epochs"),
        ({"normalize": "layr"}, "did you mean 'layer'"),
        ({"arcface_weight": 0.1}, "no class directions"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"selection": "acuracy"}, "did you mean 'accuracy'"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(
    settings: dict[str, object], said: str
) -> None:
    X, y = blobs()
    with pytest.raises(HeadError, match=said):
        MLPHead(**settings).fit(X, y)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["layer", "l2", "standardize", "none"])
def test_normalisation_is_what_it_says(kind: str) -> None:
    X, y = blobs()
    head = MLPHead(hidden=16, epochs=20, learning_rate=0.02, normalize=kind).fit(X, y)
    assert (head.predict(X) == y).mean() > 0.8
    # a scale or a shift of all inputs is taken out, as far as the kind takes it out
    other = MLPHead(hidden=16, epochs=20, learning_rate=0.02, normalize=kind)
    scaled = other.fit(X * 4, y).predict_proba(X * 4)
    same = np.allclose(scaled, head.predict_proba(X), atol=1e-3)
    assert same == (kind != "none")
    if kind == "standardize":
        shifted = other.fit(X + 50, y).predict_proba(X + 50)
        np.testing.assert_allclose(shifted, head.predict_proba(X), atol=1e-2)


def test_dropout_keeps_the_share_it_should() -> None:
    from bsdkit.heads.training.layers import DropoutMasks, as_stackable

    module = as_stackable(nn.Sequential(nn.Linear(4, 500), nn.Dropout(0.3)))
    streams = [np.random.SFC64(i) for i in range(3)]
    masks = DropoutMasks(module, torch.zeros(1, 4), streams, [{"1": 0.3}, {"1": 0.3}, {"1": 0.0}])
    (mask,) = masks.draw(3, 40, torch.device("cpu")).values()
    assert mask.shape == (3, 40, 500)
    assert mask[:2].unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert abs(float(mask[:2].mean()) - 1) < 0.02 and not torch.equal(mask[0], mask[1])
    assert mask[2].eq(1).all()


def test_no_rows_is_refused() -> None:
    X, y = blobs()
    with pytest.raises(ValueError, match="at least one row"):
        stack_of(MLPHead(), X, y, [])


@pytest.mark.gpu
@pytest.mark.parametrize("settings", ["dropout", "weighted", "contrast"])
def test_a_stack_on_a_gpu_is_the_one_on_the_cpu(settings: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    X, y = blobs()
    options = {"hidden": 16, "epochs": 3, "batch_size": 32, **RANDOM[settings]}
    head = make_head("gmu", options, blocks=(6, 4))
    assert isinstance(head, TorchHead)
    replicas = [Replica(np.arange(200), np.arange(200, 240), seed) for seed in (0, 1)]
    here = stack_of(head, X, y, replicas, score=accuracy)
    there = stack_of(head, X, y, replicas, score=accuracy, device="cuda")
    for one, two in zip(here, there, strict=True):
        np.testing.assert_allclose(one.losses, two.losses, atol=1e-3)
