"""Options that heads got later: each against its equation, and no trace of it where it is off."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from bsdkit.errors import HeadError
from bsdkit.heads.mlp import MLPHead
from bsdkit.heads.registry import head_classes, head_parameters, key_settings, make_head
from bsdkit.heads.torch_head import TorchHead
from bsdkit.heads.training import Replica, TrainingData, train_replicas
from bsdkit.heads.training.augment import Augmentation
from bsdkit.heads.training.losses import Losses
from tests.heads.test_torch_heads import SMALL, ball, distance, gelu, make, network, numpy_of, rows

FAMILIES = (0, 1, 0, 2, 1, 0)


def norm(a: np.ndarray) -> np.ndarray:
    centred = a - a.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-5))


def problem(n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Five numbers that tell the class, and a prior of six classes, some of them not named."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 6
    X = rng.standard_normal((6, 5))[y] * 1.5 + rng.standard_normal((n, 5))
    q = rng.random((n, 6)) * (rng.random((n, 6)) < 0.7)
    q /= np.maximum(q.sum(axis=1, keepdims=True), 1e-9)
    return np.concatenate([X, q], axis=1).astype(np.float32), y.astype(np.int64)


# --- networks ---


def test_gmu_with_a_hidden_layer_is_its_formula() -> None:
    x = rows(5, 7)
    module = network(make("gmu", (3, 4), hidden=8, classifier_hidden=6), 7)
    w = numpy_of(module)

    def linear(a: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(a @ w[f"{name}.weight"].T + w[f"{name}.bias"])

    gates = linear(gelu(linear(x.numpy(), "gate.0")), "gate.3")
    g = 1 / (1 + np.exp(gates[:, 8:] - gates[:, :8]))
    a, t = linear(x[:, :3].numpy(), "projections.0"), linear(x[:, 3:].numpy(), "projections.1")
    z = g * a + (1 - g) * t
    w |= {f"norm.{k}": w[f"activation.0.{k}"] for k in ("weight", "bias")}
    scaled = norm(z) * w["norm.weight"] + w["norm.bias"]
    hidden = gelu(linear(scaled, "activation.1"))
    output = module(x)
    np.testing.assert_allclose(output["embedding"].detach(), hidden, atol=1e-12)
    expected = linear(hidden, "classifier.1")
    np.testing.assert_allclose(output["logits"].detach(), expected, atol=1e-12)
    assert hidden.shape == (5, 6)


def test_prior_mix_with_two_layers_is_w_f_of_z() -> None:
    """Equation 4 of the report, f being Linear, GELU, Linear: no activation at its end."""
    x = rows(7, 10)
    module = network(make("prior_mix", (4, 6), hidden=5, fusion_hidden=9), 10)
    w = numpy_of(module)
    z = np.concatenate([x[:, :4].numpy(), x[:, 4:].numpy() @ w["class_embeddings"]], axis=1)
    for name, activation in (("hidden.1", gelu), ("hidden.4", None), ("classifier.1", None)):
        z = z @ w[f"perceptron.{name}.weight"].T + w[f"perceptron.{name}.bias"]
        z = activation(z) if activation else z
    np.testing.assert_allclose(module(x)["logits"].detach(), z, atol=1e-12)
    assert w["perceptron.hidden.1.weight"].shape == (9, 8)
    assert w["perceptron.hidden.4.weight"].shape == (5, 9)


def test_the_distance_to_the_parent_is_its_formula() -> None:
    x, y = rows(5, 7), np.array([0, 3, 1, 4, 5])  # class 3 is alone in its family
    head = make("hyperbolic", (7,), dim=4, hierarchy_weight=0.0, parent_distance=0.7)
    module = network(head, 7)
    output = module(x)
    assert set(output) == {"logits", "embedding", "class_penalty"}
    parents = numpy_of(module)["family_vectors"]
    expected = np.zeros((5, 6))
    for i, v in enumerate(output["embedding"].detach().numpy()):
        for c, family in enumerate(FAMILIES):
            if family != 2:
                expected[i, c] = 0.7 * distance(ball(v, 1.0), ball(parents[family], 1.0))
    np.testing.assert_allclose(output["class_penalty"].detach(), expected, atol=1e-6)
    # the loss adds the weighted mean of each row's own
    losses = Losses([head], np.array(FAMILIES), "cpu")
    labels, weight = torch.from_numpy(y)[None], torch.tensor([[1.0, 2.0, 0.5, 1.0, 0.0]])
    stacked = {name: value[None].detach().float() for name, value in output.items()}
    targets = losses.targets(labels)
    with_it = float(losses(stacked, targets, labels, weight)[0])
    without = {name: value for name, value in stacked.items() if name != "class_penalty"}
    own = np.average(expected[np.arange(5), y], weights=weight[0].numpy())
    assert with_it - float(losses(without, targets, labels, weight)[0]) == pytest.approx(own, 1e-4)


# --- inputs in training ---


def by_hand(q: np.ndarray, head: Any, u: dict[str, np.ndarray]) -> np.ndarray:
    """The authors' steps for one row, with uniform numbers in the place of their draws."""

    def pick(of: list[int], drawn: float) -> int:
        return of.pop(int(drawn * len(of)))

    def named() -> list[int]:
        return [c for c in range(len(q)) if q[c] > 0]

    q, before = q.copy(), q.sum()
    if len(named()) > 2 and u["swap"][0] < head.prior_swap:
        left = named()
        a, b = pick(left, u["swap"][1]), pick(left, u["swap"][2])
        q[a], q[b] = q[b], q[a]
    if len(named()) > 2 and u["drop"][0] < head.prior_drop:
        q[pick(named(), u["drop"][1])] = 0
    others = [c for c in range(len(q)) if q[c] <= 0]
    if named() and others and u["add"][0] < head.prior_add:
        q[pick(others, u["add"][1])] = np.mean([q[c] for c in named()])
    if len(named()) >= 2 and u["move"][0] < head.prior_move:
        left = named()
        a, b = pick(left, u["move"][1]), pick(left, u["move"][2])
        moved = head.prior_move_share * q[a]
        q[a], q[b] = q[a] - moved, q[b] + moved
    return q if before == 0 else q * (before / q.sum())


STEPS = {"swap": 3, "drop": 2, "add": 2, "move": 3}


@pytest.mark.parametrize("on", [*STEPS, "all"])
def test_the_prior_is_disturbed_step_by_step(on: str) -> None:
    steps = {k: n for k, n in STEPS.items() if on in (k, "all")}
    options: dict[str, Any] = {f"prior_{k}": 0.6 for k in steps}
    head = make("prior_mix", (5, 6), prior_move_share=0.3, **options)
    X, _ = problem(200)
    X[0, 5:], X[1, 5:], X[2, 5:] = 0, np.eye(6)[2], [0.5, 0.5, 0, 0, 0, 0]
    rng = np.random.default_rng(1)
    drawn = [rng.random((200, n)) for n in steps.values()]
    queue = list(drawn)

    def draw(n: int) -> np.ndarray:
        assert queue[0].shape == (200, n)
        return queue.pop(0)

    assert head.perturbs
    found = head.perturb(X, draw)
    assert not queue and (found[:, :5] == X[:, :5]).all()
    for i in range(200):
        u = {name: values[i] for name, values in zip(steps, drawn, strict=True)}
        u = {name: u.get(name, np.ones(3)) for name in STEPS}
        expected = by_hand(X[i, 5:].astype(np.float64), head, u)
        np.testing.assert_allclose(found[i, 5:], expected, atol=1e-7)
    assert (found[0, 5:] == 0).all() and (found[:, 5:] != X[:, 5:]).any()
    np.testing.assert_allclose(found[:, 5:].sum(axis=1), X[:, 5:].sum(axis=1), atol=1e-6)


def test_each_input_drops_at_its_own_rate() -> None:
    blocks, n = (2, 3, 4), 4000
    head = make("mlp", blocks, block_dropout=[0.0, 0.3, 0.6], batch_size=n)
    head.check()
    stream = np.random.Generator(np.random.SFC64(0))
    augmentation = Augmentation(
        [head], [stream], blocks, [np.arange(n)], [np.zeros(n, int)], torch.device("cpu")
    )
    assert augmentation.is_on
    parts = torch.split(augmentation.distort(torch.ones(1, n, 9))[0], list(blocks), dim=1)
    assert all(((part == 0).all(1) | (part == 1).all(1)).all() for part in parts)
    rates = [float((part[:, 0] == 0).float().mean()) for part in parts]
    assert rates[0] == 0 and rates[1:] == pytest.approx([0.3, 0.6], abs=0.03)
    # equal rates are modality dropout: one input is always left
    one, two = ({"block_dropout": [0.9] * 3}, {"modality_dropout": 0.9})
    found = []
    for option in (one, two):
        augmentation.options = [make("mlp", blocks, batch_size=n, **option)]
        augmentation.streams = [np.random.Generator(np.random.SFC64(0))]
        found.append(augmentation.distort(torch.ones(1, n, 9)))
    assert torch.equal(*found) and bool((found[0] != 0).any(dim=-1).all())


# --- views ---


def test_a_prediction_is_the_mean_over_its_views() -> None:
    X, y = problem()
    options = {"passes": 3, "pass_dropout": False, "view_noise": 0.2, "view_mask": 0.8}
    head = make_head("mlp", {**SMALL, **options}, blocks=(5, 6), random_state=7).fit(X, y)
    assert isinstance(head, TorchHead)
    together, alone = head.predict_proba(X[:30]), head.predict_proba(X[7:8])
    np.testing.assert_allclose(together[7:8], alone, atol=1e-12)
    module = head.module_.double()
    x = head.prepare(X[:30]).astype(np.float64)
    stream = np.random.default_rng([7, 0x76696577])
    expected = np.zeros((30, 6))
    for _ in range(3):
        seen = x + 0.2 * stream.standard_normal(11)
        for columns in (slice(0, 5), slice(5, 11)):
            width = columns.stop - columns.start
            seen[:, columns] *= stream.random(width) >= 0.8 * stream.random()
        logits = module(torch.from_numpy(seen))["logits"]
        expected += torch.softmax(logits, 1).detach().numpy() / 3
    np.testing.assert_allclose(together, expected, atol=1e-12)
    again = make_head("mlp", {**SMALL, **options}, blocks=(5, 6), random_state=7)
    again.load_state(head.state(), head.classes_, 11)
    assert (again.predict_proba(X[:30]) == together).all()


def test_views_leave_the_sub_networks_as_they_are() -> None:
    X, y = problem()
    fitted = make("mlp", (5, 6), passes=3, dropout=0.5).fit(X, y)
    almost = make("mlp", (5, 6), passes=3, dropout=0.5, view_noise=1e-9)
    almost.load_state(fitted.state(), fitted.classes_, 11)
    np.testing.assert_allclose(almost.predict_proba(X), fitted.predict_proba(X), atol=1e-7)


# --- all of them ---


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gmu", {"classifier_hidden": 6, "block_dropout": [0.2, 0.4]}),
        ("prior_mix", {"fusion_hidden": 9, "mixup": 0.3, "same_class_swap": 0.2}
         | {f"prior_{k}": 0.5 for k in STEPS}),
        ("hyperbolic", {"parent_distance": 0.5}),
    ],
)  # fmt: skip
def test_a_replica_is_the_same_alone(name: str, settings: dict[str, Any]) -> None:
    X, y = problem()
    head = make(name, (5, 6), **settings)
    head.check()
    data = TrainingData(head.prepare(X), y, 6)
    sizes = (120, 97, 50)
    replicas = [Replica(np.arange(n), np.arange(0), seed) for seed, n in enumerate(sizes)]
    stack = train_replicas([head], data, replicas)
    for replica, together in zip(replicas, stack, strict=True):
        (alone,) = train_replicas([head], data, [replica])
        assert not alone.fault
        for key, value in alone.state.items():
            torch.testing.assert_close(together.state[key], value, atol=1e-5, rtol=1e-5)


def test_variants_of_the_disturbance_share_a_stack() -> None:
    X, y = problem()
    options: list[dict[str, Any]] = [{}, {"prior_swap": 0.5}, {"prior_add": 0.5}]
    heads = [make("prior_mix", (5, 6), **option) for option in options]
    assert len({head.stack_key() for head in heads}) == 1
    data = TrainingData(heads[0].prepare(X), y, 6)
    rows = np.arange(len(X))
    together = train_replicas(heads, data, [Replica(rows, rows[:0], 0, head=i) for i in range(3)])
    for head, trained in zip(heads, together, strict=True):
        (alone,) = train_replicas([head], data, [Replica(rows, rows[:0], 0)])
        for key, value in alone.state.items():
            torch.testing.assert_close(trained.state[key], value, atol=1e-5, rtol=1e-5)
    assert len({trained.losses for trained in together}) == 3


def test_at_its_default_an_option_is_in_no_key_and_draws_nothing() -> None:
    found = set()
    for name, cls in head_classes().items():
        fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        later = {f.name for f in fields if f.metadata.get("added")}
        known = head_parameters(name)
        assert set(key_settings(name, {})) == set(known) - later
        found |= later
    assert {"classifier_hidden", "fusion_hidden", "block_dropout", "view_noise"} <= found
    assert key_settings("mlp", {"block_dropout": []}) == key_settings("mlp", {})
    on = key_settings("mlp", {"block_dropout": [0.1], "view_noise": 0.1})
    assert on == {**key_settings("mlp", {}), "block_dropout": (0.1,), "view_noise": 0.1}
    stream = np.random.Generator(np.random.SFC64(0))
    augmentation = Augmentation(
        [MLPHead()], [stream], (3,), [np.arange(9)], [np.zeros(9, int)], torch.device("cpu")
    )
    before = str(stream.bit_generator.state)
    augmentation.swap(torch.ones(1, 9, 3), torch.ones(9, 3), np.arange(9)[None])
    augmentation.distort(torch.ones(1, 9, 3))
    assert not augmentation.is_on and str(stream.bit_generator.state) == before


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gmu", {"classifier_hidden": -1}, "classifier_hidden is -1, expected 0 or more"),
        ("prior_mix", {"fusion_hidden": -1}, "fusion_hidden is -1, expected 0 or more"),
        ("prior_mix", {"prior_swap": 1.5}, "prior_swap is 1.5, expected 0 to 1"),
        ("hyperbolic", {"parent_distance": -1}, "parent_distance is -1, expected 0 or more"),
        ("mlp", {"block_dropout": [0.1]}, "block_dropout has 1 numbers; there are 2 inputs"),
        ("mlp", {"block_dropout": [0.1, 1]}, r"block_dropout is \[0.1, 1\], expected a list"),
        ("mlp", {"block_dropout": 0.1}, "block_dropout is 0.1, expected a list"),
        ("mlp", {"block_dropout": [0.1, 0], "modality_dropout": 0.1}, "inputs drop one way"),
        ("mlp", {"view_noise": 0.1}, "view_noise is on and passes is 0; write passes: 5"),
        ("mlp", {"view_mask": 1.1}, "view_mask is 1.1, expected 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(HeadError, match=message):
        make_head(name, settings, blocks=(5, 6)).check()
