"""The networks of haf, prior_mix, two_level and hyperbolic against their formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bsdkit.errors import HeadError
from bsdkit.heads.hyperbolic import (
    HyperbolicHead,
    PoincareClassifier,
    clip_norm,
    exponential_map,
    poincare_distance,
)
from bsdkit.heads.registry import make_head
from bsdkit.heads.torch_head import TorchHead
from bsdkit.heads.training import Replica, TrainingData, train_replicas
from bsdkit.heads.two_level import TwoLevelHead, family_first

# Classes of one family need not be neighbours, and one class is a family of its own.
FAMILIES = (0, 1, 0, 2, 1, 0)
NAMES = ("haf", "prior_mix", "two_level", "hyperbolic")
SMALL = {"hidden": 8, "epochs": 3, "batch_size": 32}


def make(
    name: str, blocks: tuple[int, ...], families: tuple[int, ...] | None = FAMILIES, **more: Any
) -> TorchHead:
    head = make_head(name, {**SMALL, **more}, blocks=blocks, families=families)
    assert isinstance(head, TorchHead)
    return head


def network(head: TorchHead, n_features: int, n_classes: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return head.build(n_features, n_classes).double().eval()


def rows(n: int, width: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def numpy_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def softmax(a: np.ndarray, axis: int = -1) -> np.ndarray:
    powers = np.exp(a - a.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def gelu(a: np.ndarray) -> np.ndarray:
    return functional.gelu(torch.from_numpy(a)).numpy()


def problem(n: int = 240, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 6
    X = rng.standard_normal((6, dim))[y] * 1.5 + rng.standard_normal((n, dim))
    return X.astype(np.float32), y.astype(np.int64)


# --- haf ---


def test_haf_is_its_formulas() -> None:
    x = rows(5, 7)
    module = network(make("haf", (3, 4), n_blocks=2), 7)
    w, branches = numpy_of(module), []
    for i, part in enumerate((x[:, :3].numpy(), x[:, 3:].numpy())):
        h = part @ w[f"branches.{i}.0.weight"].T + w[f"branches.{i}.0.bias"]
        for k in ("1", "2"):
            p = f"branches.{i}.{k}."
            inner = h @ w[p + "maps.0.weight"].T + w[p + "maps.0.bias"]
            inner = np.where(inner > 0, inner, np.exp(inner) - 1)
            maps = inner @ w[p + "maps.3.weight"].T + w[p + "maps.3.bias"]
            value, gate = maps[:, :8], 1 / (1 + np.exp(-maps[:, 8:]))
            total = h + value * gate
            centred = total - total.mean(axis=1, keepdims=True)
            h = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-5)
        branches.append(h)
    scores = [
        np.tanh(h @ w["attention.0.weight"].T + w["attention.0.bias"]) @ w["attention.2.weight"].T
        for h in branches
    ]
    weights = softmax(np.concatenate(scores, axis=1))
    fused = sum(weights[:, i : i + 1] * h for i, h in enumerate(branches))
    output = module(x)
    np.testing.assert_allclose(output["embedding"].detach(), fused, atol=1e-12)
    expected = fused @ w["classifier.1.weight"].T + w["classifier.1.bias"]
    np.testing.assert_allclose(output["logits"].detach(), expected, atol=1e-12)


def test_the_order_of_hafs_inputs_has_no_meaning() -> None:
    widths, order = (3, 4, 2), (2, 0, 1)
    x = rows(5, 9)
    parts = torch.split(x, list(widths), dim=1)
    module = network(make("haf", widths), 9)
    other = network(make("haf", tuple(widths[i] for i in order)), 9)
    state = module.state_dict()
    moved = dict(state)
    for new, old in enumerate(order):
        prefix = f"branches.{old}."
        moved |= {
            f"branches.{new}.{key.removeprefix(prefix)}": value
            for key, value in state.items()
            if key.startswith(prefix)
        }
    other.load_state_dict(moved)
    permuted = torch.cat([parts[i] for i in order], dim=1)
    torch.testing.assert_close(other(permuted)["logits"], module(x)["logits"])
    assert not torch.allclose(module(x)["logits"], module(2 * x)["logits"])


# --- prior_mix ---


@pytest.mark.parametrize("prior_input", [0, 1, -1])
def test_prior_mix_is_its_formulas(prior_input: int) -> None:
    widths, x = (4, 6, 5), rows(7, 15)
    head = make("prior_mix", widths, prior_input=prior_input)
    module = network(head, 15)
    parts = [part.numpy() for part in torch.split(x, list(widths), dim=1)]
    q = parts.pop(prior_input)
    w = numpy_of(module)
    assert w["class_embeddings"].shape == (q.shape[1], 15 - q.shape[1])
    z = np.concatenate([*parts, q @ w["class_embeddings"]], axis=1)
    hidden = gelu(z @ w["perceptron.hidden.1.weight"].T + w["perceptron.hidden.1.bias"])
    logits = hidden @ w["perceptron.classifier.1.weight"].T + w["perceptron.classifier.1.bias"]
    np.testing.assert_allclose(module(x)["logits"].detach(), logits, atol=1e-12)


def test_a_row_without_prior_is_mixed_with_nothing() -> None:
    """It gives what the same weights give without the columns of m."""
    module = network(make("prior_mix", (4, 6)), 10)
    x = rows(3, 10)
    x[:, 4:] = 0
    first, rest = module.perceptron.hidden[1], module.perceptron.classifier
    hidden = functional.gelu(functional.linear(x[:, :4], first.weight[:, :4], first.bias))
    torch.testing.assert_close(module(x)["logits"], rest(hidden))


@pytest.mark.parametrize(
    ("blocks", "mix_dim", "expected"),
    [((6,), 0, 512), ((4, 6), 0, 4), ((4, 6), 9, 9), ((6,), 9, 9)],
)
def test_the_width_of_class_embeddings(
    blocks: tuple[int, ...], mix_dim: int, expected: int
) -> None:
    module = network(make("prior_mix", blocks, mix_dim=mix_dim), sum(blocks))
    assert module.class_embeddings.shape == (6, expected)


def test_the_prior_is_never_normalised() -> None:
    X = np.random.default_rng(0).random((5, 29), np.float32)
    for normalize in ("layer", "l2", ("layer", "l2", "standardize")):
        head = make("prior_mix", (10, 12, 7), prior_input=1, normalize=normalize)
        assert (head.prepare(X)[:, 10:22] == X[:, 10:22]).all()
        assert (head.prepare(X)[:, :10] != X[:, :10]).all()
        assert head.inputs(29)[1][1] == "none"


# --- two_level ---


def test_two_level_is_log_p_family_plus_log_p_class_given_family() -> None:
    x = rows(5, 7)
    module = network(make("two_level", (7,)), 7)
    w = numpy_of(module)
    trunk = gelu(x.numpy() @ w["hidden.0.weight"].T + w["hidden.0.bias"])
    p_family = softmax(trunk @ w["family.weight"].T + w["family.bias"])
    scores = trunk @ w["classes.weight"].T + w["classes.bias"]
    expected = np.empty((5, 6))
    for i in range(5):
        for c, family in enumerate(FAMILIES):
            siblings = [np.exp(scores[i, k]) for k in range(6) if FAMILIES[k] == family]
            p_class = np.exp(scores[i, c]) / sum(siblings)
            expected[i, c] = np.log(p_family[i, family]) + np.log(p_class)
    logits = module(x)["logits"].detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-12)
    np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1, atol=1e-12)


def test_two_level_is_flat_where_every_class_is_its_own_family() -> None:
    x = rows(5, 7)
    module = network(make("two_level", (7,), families=None), 7)
    trunk = module.dropout(module.hidden(x))
    torch.testing.assert_close(module(x)["logits"], module.family(trunk).log_softmax(dim=-1))


def test_two_level_survives_logits_far_apart() -> None:
    """In float32 a whole family may be e^-1000 below another without a logarithm of zero."""
    module = make("two_level", (7,)).build(7, 6)
    x = (rows(5, 7) * 1e4).float().requires_grad_()
    logits = module(x)["logits"]
    logits[:, 0].sum().backward()
    assert float(logits.detach().min()) < -100
    assert bool(torch.isfinite(logits).all())
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)


def test_family_first_keeps_the_best_family_alone() -> None:
    # The best class, 3, is alone in its family; 0, 2 and 5 together weigh more.
    p = np.array([[0.25, 0.1, 0.15, 0.35, 0.05, 0.1], [0.1, 0.3, 0.1, 0.2, 0.3, 0.0]])
    expected = [[0.5, 0, 0.3, 0, 0, 0.2], [0, 0.5, 0, 0, 0.5, 0]]
    np.testing.assert_allclose(family_first(p, np.array(FAMILIES)), expected, atol=1e-15)


@pytest.mark.parametrize("passes", [0, 3])
def test_family_first_predicts_in_the_most_probable_family(passes: int) -> None:
    X, y = problem()
    fitted = [
        make("two_level", (12,), decoding=decoding, passes=passes, dropout=0.5).fit(X[:60], y[:60])
        for decoding in ("product", "family_first")
    ]
    assert all(isinstance(head, TwoLevelHead) for head in fitted)
    product, first = (head.predict_proba(X) for head in fitted)
    families = np.array(FAMILIES)
    of_family = np.stack([product[:, families == f].sum(axis=1) for f in range(3)], axis=1)
    np.testing.assert_allclose(first.sum(axis=1), 1, atol=1e-12)
    assert (families[first.argmax(axis=1)] == of_family.argmax(axis=1)).all()
    assert (families[product.argmax(axis=1)] != of_family.argmax(axis=1)).any()


# --- hyperbolic ---


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """Nickel and Kiela, equation 1, as it is printed."""
    room = (1 - x @ x) * (1 - y @ y)
    return float(np.arccosh(1 + 2 * ((x - y) @ (x - y)) / room))


def ball(v: np.ndarray, radius: float) -> np.ndarray:
    length = np.sqrt(v @ v)
    clipped = v * min(1, radius / length)
    length = np.sqrt(clipped @ clipped)
    return np.tanh(length) * clipped / length


@pytest.mark.parametrize("radius", [0.5, 1.0, 4.0])
def test_hyperbolic_is_its_formulas(radius: float) -> None:
    weight, margin, scale = 0.7, 0.6, 3.0
    x = rows(5, 7) * 3
    head = make(
        "hyperbolic", (7,), dim=4, radius=radius, scale=scale,
        hierarchy_weight=weight, hierarchy_margin=margin, arcface_weight=1.0,
    )  # fmt: skip
    module = network(head, 7)
    with torch.no_grad():
        module.log_scale += 0.3
        module.class_vectors[0] *= 20  # beyond the radius
    w = numpy_of(module)
    hidden = gelu(x.numpy() @ w["tangent.0.weight"].T + w["tangent.0.bias"])
    tangent = hidden @ w["tangent.3.weight"].T + w["tangent.3.bias"]
    classes, parents = w["class_vectors"], w["family_vectors"]
    points = [ball(v, radius) for v in classes]
    output = {name: tensor.detach().numpy() for name, tensor in module(x).items()}
    for i, v in enumerate(tangent):
        for c, point in enumerate(points):
            d = distance(ball(v, radius), point)
            assert output["logits"][i, c] == pytest.approx(-scale * np.exp(0.3) * d, abs=1e-6)
            cosine = v @ classes[c] / np.sqrt((v @ v) * (classes[c] @ classes[c]))
            assert output["cosine"][i, c] == pytest.approx(cosine, abs=1e-9)
    assert (np.abs(output["embedding"] - tangent) < 1e-12).all()

    # Family 2 has one class, so it has no prototype.
    assert len(parents) == 2
    terms, origin = [], np.zeros(4)
    for c, family in enumerate(FAMILIES):
        if family != 2:
            parent = ball(parents[family], radius)
            lower = margin + distance(origin, parent) - distance(origin, points[c])
            terms.append(distance(points[c], parent) + 2 * max(0, lower))
    assert output["penalty"] == pytest.approx(weight * np.mean(terms), abs=1e-6)


def test_the_ball_in_float32() -> None:
    """Distances are right at the centre, at the edge and between neighbours."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((60, 16)).astype(np.float32)
    v /= np.sqrt(np.square(v).sum(axis=1, keepdims=True))
    lengths = np.geomspace(1e-4, 1e4, 30, dtype=np.float32)
    v[:30] *= lengths[:, None]
    v[30:] = v[:30] + rng.standard_normal((30, 16)).astype(np.float32) * 1e-3
    for radius in (0.1, 1.0, 4.0):
        clipped = clip_norm(torch.from_numpy(v), radius)
        points = exponential_map(clipped)
        norms = points.square().sum(1).sqrt()
        assert float(norms.max()) < 1 and float(norms.max()) <= np.tanh(radius) + 1e-6
        measured = poincare_distance(points[:30], points[30:]).numpy()
        exact = exponential_map(clip_norm(torch.from_numpy(v).double(), radius))
        expected = poincare_distance(exact[:30], exact[30:]).numpy()
        np.testing.assert_allclose(measured, expected, rtol=2e-3, atol=1e-4)
    # d(0, exp(v)) is 2 |v|, and d(x, x) is 0.
    centre = poincare_distance(torch.zeros(16), exponential_map(torch.from_numpy(v[:15])))
    np.testing.assert_allclose(centre, 2 * lengths[:15], rtol=1e-3, atol=1e-5)
    assert float(poincare_distance(points, points).abs().max()) < 0.01


def test_gradients_at_the_centre_and_at_the_edge_are_finite() -> None:
    head = make("hyperbolic", (7,), dim=4, radius=4.0, arcface_weight=1.0)
    for factor in (0.0, 1.0, 1e6):
        torch.manual_seed(0)
        module = head.build(7, 6)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name != "log_scale":
                    parameter *= factor
        x = torch.randn(5, 7, requires_grad=True)
        output = module(x)
        sum(tensor.sum() for tensor in output.values()).backward()
        assert bool(torch.isfinite(output["logits"]).all())
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), (factor, name)


@pytest.mark.parametrize(
    ("families", "weight"), [(None, 0.1), (FAMILIES, 0.0), ((0, 1, 2, 3, 4, 5), 0.1)]
)
def test_without_siblings_there_is_no_penalty(
    families: tuple[int, ...] | None, weight: float
) -> None:
    head = make("hyperbolic", (7,), families=families, hierarchy_weight=weight)
    output = network(head, 7)(rows(2, 7))
    assert set(output) == {"logits", "embedding"}


def test_the_penalty_puts_families_nearer_to_the_centre() -> None:
    """Alone, it is brought to where classes lie on their family and the margin further out."""
    module = PoincareClassifier(
        7, 8, 0.0, 4, 2.0, 1.0, np.array(FAMILIES), 1.0, 0.5, with_cosine=False
    )
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        penalty = module(torch.zeros(1, 7))["penalty"]
        penalty.backward()
        optimizer.step()
    length = 2 * module.class_vectors.detach().square().sum(1).sqrt()
    above = 2 * module.family_vectors.detach().square().sum(1).sqrt()
    depth = [float(length[c] - above[f]) for c, f in enumerate(FAMILIES) if f != 2]
    assert depth == pytest.approx([0.5] * 5, abs=0.03)
    assert float(penalty.detach()) == pytest.approx(0.5, abs=0.03)  # the distance of that depth


# --- all four ---


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("haf", {}),
        ("haf", {"n_blocks": 0, "mixup": 0.2}),
        ("prior_mix", {"input_dropout": 0.2, "modality_dropout": 0.2}),
        ("two_level", {"parent_weight": 0.5}),
        ("hyperbolic", {"arcface_weight": 0.5, "contrastive_weight": 0.5, "gradient_clip": 1.0}),
    ],
)
def test_a_replica_is_the_same_alone(name: str, settings: dict[str, Any]) -> None:
    X, y = problem()
    head = make(name, (5, 7), **settings)
    head.check()
    everything = np.arange(len(X))
    replicas = [
        Replica(everything[everything % 3 != k], everything[everything % 3 == k], seed)
        for k in range(3)
        for seed in (0, 1)
    ]
    replicas.append(Replica(everything[:70], everything[200:], 9))
    data = TrainingData(head.prepare(X), y, 6)

    def accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
        return float((y_true == y_pred).mean())

    stack = train_replicas([head], data, replicas, score=lambda _: accuracy)
    for i in (0, 3, 6):
        (alone,) = train_replicas([head], data, [replicas[i]], score=lambda _: accuracy)
        assert alone.best_epoch == stack[i].best_epoch and not alone.fault
        np.testing.assert_allclose(alone.losses, stack[i].losses, atol=1e-5)
        for key, value in alone.state.items():
            torch.testing.assert_close(stack[i].state[key], value, atol=1e-5, rtol=1e-5)
    assert len({tuple(r.losses) for r in stack}) == len(stack)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("haf", {"n_blocks": -1}, "n_blocks is -1, expected 0 or more"),
        ("prior_mix", {"prior_input": 2}, "prior_input is 2 of 2 inputs, expected -2 to 1"),
        ("prior_mix", {"mix_dim": -1}, "mix_dim is -1, expected 0 or more"),
        ("prior_mix", {"input_dropout": 1}, "input_dropout is 1, expected 0 to below 1"),
        ("two_level", {"decoding": "familyfirst"}, "did you mean 'family_first'?"),
        ("hyperbolic", {"dim": 0}, "dim is 0, expected 1 or more"),
        ("hyperbolic", {"radius": 5.0}, "radius is 5.0, expected above 0, up to 4"),
        ("hyperbolic", {"hierarchy_weight": -1}, "hierarchy_weight is -1, expected 0 or more"),
        ("haf", {"arcface_weight": 1}, "HAFHead has no class directions"),
    ],
)
def test_settings_out_of_range_are_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    X, y = problem()
    with pytest.raises(HeadError, match=message.replace("?", r"\?")):
        make(name, (5, 7), **settings).fit(X, y)


def test_a_head_learns_the_family_order_from_its_classes() -> None:
    """Trained on a part of the classes, families are those of the classes present."""
    X, y = problem()
    is_kept = y != 1
    for name in ("two_level", "hyperbolic"):
        head = make(name, (12,), epochs=20, learning_rate=0.02).fit(X[is_kept], y[is_kept])
        assert head.classes_.tolist() == [0, 2, 3, 4, 5]
        assert (head.predict(X[is_kept]) == y[is_kept]).mean() > 0.8
    assert isinstance(head, HyperbolicHead) and len(head.module_.family_vectors) == 1
