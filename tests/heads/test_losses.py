"""The losses of a stack against plain loops over rows in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bsdkit.heads.training import TrainingOptions
from bsdkit.heads.training.losses import Losses
from bsdkit.metrics import FAMILY_CREDIT_PRF, Scorer
from bsdkit.taxonomy import BST, Taxonomy, TaxonomyClass

# Classes of one family need not be neighbours, and one class is a family of its own.
FAMILIES = np.array([0, 1, 0, 2, 1, 0])
N_CLASSES, SIZE, WIDTH = 6, 14, 5

# Two replicas a stack, so that what one asks for must leave the other alone.
MIXTURES: dict[str, list[dict[str, Any]]] = {
    "cross-entropy": [{"label_smoothing": 0.0}, {"label_smoothing": 0.3}],
    "smoothing over siblings": [{"smoothing": "siblings"}, {"smoothing": "classes"}],
    "focal": [{"loss": "focal", "focal_gamma": 2.5}, {}],
    "focal below one": [{"loss": "focal", "focal_gamma": 0.5}, {"loss": "focal"}],
    "parent": [{"parent_weight": 0.7}, {}],
    "family alone": [{"child_weight": 0.0, "parent_weight": 1.0}, {}],
    "class weighed": [{"child_weight": 0.3, "hf_weight": 0.2}, {"loss": "focal"}],
    "hF": [{"hf_weight": 0.4}, {"hf_weight": 1.0}],
    "contrastive": [
        {"contrastive_weight": 0.6, "contrastive_temperature": 0.2},
        {"contrastive_weight": 0.3, "contrastive_labels": "family"},
    ],
    "arcface": [
        {"arcface_weight": 0.5, "arcface_margin": 0.2, "arcface_scale": 8.0},
        {"arcface_weight": 1.0, "arcface_margin": 0.0},
    ],
    "everything": [
        {
            "loss": "focal", "parent_weight": 0.2, "hf_weight": 0.3, "contrastive_weight": 0.4,
            "arcface_weight": 0.5, "smoothing": "siblings",
        },
        {"arcface_weight": 0.1},
    ],
}  # fmt: skip


def plain_targets(option: TrainingOptions, y: np.ndarray) -> np.ndarray:
    """Smoothed targets, clip by clip."""
    targets = np.zeros((len(y), N_CLASSES))
    for i, own in enumerate(y):
        if option.smoothing == "classes":
            others = list(range(N_CLASSES))
        else:
            others = [c for c in range(N_CLASSES) if FAMILIES[c] == FAMILIES[own] and c != own]
        targets[i, own] = 1.0 if not others else 1 - option.label_smoothing
        for c in others:
            targets[i, c] += option.label_smoothing / len(others)
    return targets


def plain_hf(p: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """hF_strict where a clip counts as each class by its probability."""
    scores = []
    for c in range(N_CLASSES):
        own = [i for i in range(len(y)) if y[i] == c and weight[i] > 0]
        if not own:
            continue
        earned_by_prediction = earned_by_truth = predicted = 0.0
        for i in range(len(y)):
            for k in range(N_CLASSES):
                credit = (FAMILIES[y[i]] == FAMILIES[k]) * FAMILY_CREDIT_PRF
                credit = 1.0 if y[i] == k else credit
                if k == c:
                    earned_by_prediction += weight[i] * p[i, k] * credit
                    predicted += weight[i] * p[i, k]
                if y[i] == c:
                    earned_by_truth += weight[i] * p[i, k] * credit
        precision = earned_by_prediction / predicted
        recall = earned_by_truth / sum(weight[own])
        scores.append(2 * precision * recall / (precision + recall))
    return float(np.mean(scores))


def plain_contrastive(
    option: TrainingOptions, z: np.ndarray, y: np.ndarray, weight: np.ndarray
) -> float:
    """Khosla et al., equation 2, anchor by anchor."""
    label = FAMILIES[y] if option.contrastive_labels == "family" else y
    z = z / np.sqrt(np.square(z).sum(axis=1, keepdims=True))
    real = [i for i in range(len(y)) if weight[i] > 0]
    total = share = 0.0
    for i in real:
        others = [a for a in real if a != i]
        partners = [p for p in others if label[p] == label[i]]
        if not partners:
            continue
        denominator = sum(math.exp(z[i] @ z[a] / option.contrastive_temperature) for a in others)
        terms = [
            math.log(math.exp(z[i] @ z[p] / option.contrastive_temperature) / denominator)
            for p in partners
        ]
        total -= weight[i] * sum(terms) / len(partners)
        share += weight[i]
    return total / share


def plain_loss(
    option: TrainingOptions, output: dict[str, np.ndarray], y: np.ndarray, weight: np.ndarray
) -> float:
    p = np.exp(output["logits"])
    p /= p.sum(axis=1, keepdims=True)
    targets = plain_targets(option, y)
    loss = parent = arc = 0.0
    for i in range(len(y)):
        for c in range(N_CLASSES):
            focus = (1 - p[i, c]) ** option.focal_gamma if option.loss == "focal" else 1.0
            loss -= weight[i] * targets[i, c] * focus * math.log(p[i, c])
        for family in np.unique(FAMILIES):
            of = family == FAMILIES
            parent -= weight[i] * targets[i, of].sum() * math.log(p[i, of].sum())
        # the angle to the own class grows by the margin; all are then scaled
        scores = output["cosine"][i].copy()
        scores[y[i]] = math.cos(math.acos(scores[y[i]]) + option.arcface_margin)
        scores *= option.arcface_scale
        arc -= weight[i] * (scores[y[i]] - math.log(np.exp(scores).sum()))
    n = weight.sum()
    loss = option.child_weight * loss / n + option.parent_weight * parent / n
    loss = (1 - option.hf_weight) * loss + option.hf_weight * (1 - plain_hf(p, y, weight))
    if option.contrastive_weight:
        loss += option.contrastive_weight * plain_contrastive(
            option, output["embedding"], y, weight
        )
    return float(loss + option.arcface_weight * arc / n + output["penalty"])


def batch(n_replicas: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Outputs, classes and weights of a step; the last two rows only fill it up."""
    draw = torch.Generator().manual_seed(0)
    output = {
        "logits": torch.randn(n_replicas, SIZE, N_CLASSES, generator=draw) * 2,
        "embedding": torch.randn(n_replicas, SIZE, WIDTH, generator=draw),
        "cosine": torch.rand(n_replicas, SIZE, N_CLASSES, generator=draw) * 1.8 - 0.9,
        "penalty": torch.rand(n_replicas, generator=draw),
    }
    y = torch.randint(N_CLASSES, (n_replicas, SIZE), generator=draw)
    y[:, 0], y[:, 1:] = 3, torch.where(y[:, 1:] == 3, 0, y[:, 1:])  # a clip without a partner
    weight = torch.rand(n_replicas, SIZE, generator=draw) + 0.2
    weight[:, -2:] = 0
    return output, y, weight


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_loss_is_its_formula(mixture: str) -> None:
    options = [TrainingOptions(**settings) for settings in MIXTURES[mixture]]
    losses = Losses(options, FAMILIES, "cpu")
    output, y, weight = batch(len(options))
    measured = losses(output, losses.targets(y), y, weight)
    for i, option in enumerate(options):
        own = {name: tensor[i].double().numpy() for name, tensor in output.items()}
        expected = plain_loss(option, own, y[i].numpy(), weight[i].double().numpy())
        assert float(measured[i]) == pytest.approx(expected, rel=1e-5), option
    # what leaves the stack takes its own settings along
    losses.keep([1])
    last = {name: tensor[1:] for name, tensor in output.items()}
    alone = losses(last, losses.targets(y[1:]), y[1:], weight[1:])
    assert float(alone[0]) == pytest.approx(float(measured[1]), rel=1e-6)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_rows_that_fill_a_batch_up_count_for_nothing(mixture: str) -> None:
    options = [TrainingOptions(**settings) for settings in MIXTURES[mixture]]
    losses = Losses(options, FAMILIES, "cpu")
    output, y, weight = batch(len(options))
    full = losses(output, losses.targets(y), y, weight)
    cut = {n: t if n == "penalty" else t[:, :-2] for n, t in output.items()}
    short = losses(cut, losses.targets(y[:, :-2]), y[:, :-2], weight[:, :-2])
    torch.testing.assert_close(full, short, rtol=1e-5, atol=1e-6)


def test_smoothed_targets() -> None:
    options = [
        TrainingOptions(label_smoothing=0.2, smoothing=over) for over in ("siblings", "classes")
    ]
    losses = Losses(options, FAMILIES, "cpu")
    siblings, classes = losses.targets(torch.tensor([[0, 1, 3]] * 2))
    expected = [[0.8, 0, 0.1, 0, 0, 0.1], [0, 0.8, 0, 0, 0.2, 0], [0, 0, 0, 1, 0, 0]]
    torch.testing.assert_close(siblings, torch.tensor(expected))
    assert classes[0].tolist() == pytest.approx([0.8 + 0.2 / 6, *[0.2 / 6] * 5])


FLAT = Taxonomy("flat", [TaxonomyClass(str(i), str(i)) for i in range(5)])


@pytest.mark.parametrize("taxonomy", [BST, FLAT], ids=["BST", "flat"])
def test_expected_hf_of_certain_predictions_is_hf_strict(taxonomy: Taxonomy) -> None:
    """Also with classes that never occur, and with classes that are never predicted."""
    rng = np.random.default_rng(0)
    n_classes, n_stacked = len(taxonomy), 3
    losses = Losses([TrainingOptions(hf_weight=1.0)] * n_stacked, taxonomy.family_of, "cpu")
    y = rng.integers(n_classes - 2, size=(n_stacked, 80))
    predicted = np.where(rng.random(y.shape) < 0.6, y, rng.integers(1, n_classes, size=y.shape))
    certain = torch.nn.functional.one_hot(torch.from_numpy(predicted), n_classes) * 100.0
    labels, weight = torch.from_numpy(y), torch.ones(y.shape)
    measured = 1 - losses({"logits": certain}, losses.targets(labels), labels, weight)
    scorer = Scorer(taxonomy)
    for i in range(n_stacked):
        expected = scorer.hF_strict_of(y[i], predicted[i])
        assert float(measured[i]) == pytest.approx(expected, abs=1e-6)
        assert 0.3 < expected < 0.9

    # of uncertain ones, it is hF_strict of the expected confusion counts
    logits = torch.randn(n_stacked, 80, n_classes, generator=torch.Generator().manual_seed(0))
    weight = torch.from_numpy(rng.random(y.shape).astype(np.float32))
    measured = 1 - losses({"logits": logits}, losses.targets(labels), labels, weight)
    truth = np.eye(n_classes)[y] * weight.numpy()[..., None]
    counts = truth.swapaxes(1, 2) @ logits.double().softmax(-1).numpy()
    np.testing.assert_allclose(measured.numpy(), scorer.hF_strict(counts), atol=1e-6)


def test_gradients_are_finite_where_a_loss_has_a_corner() -> None:
    """Certain predictions, cosines of 1 and -1, a batch of one."""
    option = TrainingOptions(
        loss="focal", focal_gamma=0.5, label_smoothing=0.0, parent_weight=1.0, hf_weight=0.5,
        contrastive_weight=1.0, arcface_weight=1.0,
    )  # fmt: skip
    losses = Losses([option], FAMILIES, "cpu")
    for size in (1, 6):
        y = torch.arange(size).unsqueeze(0)
        one_hot = torch.nn.functional.one_hot(y, N_CLASSES).float()
        for sign in (1.0, -1.0):
            output = {
                "logits": 1e3 * sign * one_hot,
                "cosine": sign * (2 * one_hot - 1),
                "embedding": torch.ones(1, size, WIDTH),
            }
            leaves = [tensor.requires_grad_() for tensor in output.values()]
            loss = losses(output, losses.targets(y), y, torch.ones(1, size))
            assert bool(torch.isfinite(loss).all())
            for gradient in torch.autograd.grad(loss.sum(), leaves, allow_unused=True):
                assert gradient is not None and bool(torch.isfinite(gradient).all())
