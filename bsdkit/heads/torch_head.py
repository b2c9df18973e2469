"""A head whose model is a plain nn.Module: what the torch heads have in common."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bsdkit.errors import HeadError
from bsdkit.heads.base import FloatArray, Head
from bsdkit.heads.normalize import normalize_rows, resolve_blocks, resolve_kinds
from bsdkit.heads.training.engine import INPUT_MEAN, INPUT_SCALE, train_replicas
from bsdkit.heads.training.layers import as_stackable, sample_subnetworks
from bsdkit.heads.training.losses import as_output
from bsdkit.heads.training.options import TrainingOptions
from bsdkit.heads.training.replica import Replica, TrainingData

__all__ = ["TorchHead"]

IntArray = npt.NDArray[np.int64]

_VIEWS = 0x76696577  # sets the stream of views apart from others of the same seed


@dataclass(kw_only=True, eq=False, repr=False)
class TorchHead(TrainingOptions, Head):
    """A head trained in stacks; a subclass says what the network is.

    A subclass is a dataclass too: its fields are its parameters, beside those of
    `TrainingOptions`, whose defaults it may change. ``fit`` trains one network on all rows it
    is given, for a fixed number of epochs, with no rows held out; `train_replicas` trains many
    at once and can choose each one's best epoch.

    Args:
        blocks: width of each input, in the order of the concatenated features; None for one.
        families: family number of each class, by its position in `classes_`, or by its value
            where classes are 0, 1, ...; None where every class is its own family.
        normalize: one of `bsdkit.heads.normalize.NORMALIZATIONS` for all inputs, or one each.
        random_state: seed of weights, batches, dropout and augmentation.
    """

    blocks: tuple[int, ...] | None = None
    families: tuple[int, ...] | None = None
    normalize: str | Sequence[str] = "layer"
    random_state: int = 0

    is_torch: ClassVar[bool] = True
    is_stochastic: ClassVar[bool] = True
    takes_blocks: ClassVar[bool] = True
    takes_families: ClassVar[bool] = True

    may_differ: ClassVar[frozenset[str]] = frozenset({"dropout"})
    """Parameters of the network that may differ between the replicas of a stack."""

    gives_embedding: ClassVar[bool] = False
    """Whether the network returns its last hidden layer, for the contrastive loss."""

    gives_cosine: ClassVar[bool] = False
    """Whether the network returns cosines to class directions, for ArcFace."""

    @abstractmethod
    def build(self, n_features: int, n_classes: int) -> nn.Module:
        """A fresh network from normalised features [batch, n_features] to its output.

        The output is as `bsdkit.heads.training.losses.as_output` says. The network may use
        nn.Dropout and nn.BatchNorm1d; anything else that is random or remembers cannot be
        stacked.
        """

    @property
    def training(self) -> TrainingOptions:
        """How the head trains."""
        return self

    def check(self) -> None:
        """See `Head.check`."""
        self.check_options()
        name = type(self).__name__
        if self.contrastive_weight and not self.gives_embedding:
            raise HeadError(f"contrastive_weight is on; {name} has no hidden layer to contrast")
        if self.arcface_weight and not self.gives_cosine:
            raise HeadError(f"arcface_weight is on; {name} has no class directions")
        for rate in sorted(parameter for parameter in self.may_differ if "dropout" in parameter):
            value = getattr(self, rate, 0.0)
            if not 0 <= value < 1:
                raise HeadError(f"{rate} is {value!r}, expected 0 to below 1")
        n_inputs = len(self.blocks) if self.blocks is not None else 1
        if self.same_class_swap and not -n_inputs <= self.swap_input < n_inputs:
            raise HeadError(f"swap_input is {self.swap_input!r}; there are {n_inputs} inputs")
        if self.block_dropout and len(self.block_dropout) != n_inputs:
            raise HeadError(
                f"block_dropout has {len(self.block_dropout)} numbers; there are {n_inputs} inputs"
            )
        resolve_kinds(self.normalize, 1 if isinstance(self.normalize, str) else len(self.normalize))

    def stack_key(self) -> tuple[Any, ...]:
        """What two heads must share to be trained as one stack."""
        free = set(self.options()) - TrainingOptions.SHARED | self.may_differ | {"random_state"}
        fixed = {k: _plain(v) for k, v in self.get_params().items() if k not in free}
        return (type(self), *sorted(fixed.items()))

    def inputs(self, n_features: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Width and normalisation of each input."""
        blocks = resolve_blocks(self.blocks, n_features)
        return blocks, resolve_kinds(self.normalize, len(blocks))

    def prepare(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Features [n, dim] as a stack takes them: normalised row by row, where so asked."""
        return normalize_rows(X, *self.inputs(X.shape[1]))

    def class_families(self, n_classes: int) -> IntArray:
        """Family number [n_classes] of each class.

        Raises:
            HeadError: there are more classes than `families` names.
        """
        if self.families is None:
            return np.arange(n_classes)
        families = np.asarray(self.families, np.int64)
        classes = getattr(self, "classes_", None)
        if len(families) != n_classes and classes is not None and classes.dtype.kind in "iu":
            if 0 <= classes.min() and classes.max() < len(families):
                families = families[classes]
        if len(families) != n_classes:
            raise HeadError(f"families names {len(families)} classes; there are {n_classes}")
        return np.unique(families, return_inverse=True)[1].astype(np.int64)

    def fit(
        self, X: FloatArray, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """See `Head.fit`."""
        self.check()
        X, positions, weight = self._check_fit(X, y, sample_weight)
        data = TrainingData(
            self.prepare(X),
            positions,
            len(self.classes_),
            weight=None if weight is None else weight[None],
        )
        # rows of no weight are left out of the batches too, which batch normalisation would see
        rows = np.arange(len(X)) if weight is None else np.flatnonzero(weight > 0)
        everything = Replica(rows, np.arange(0), self.random_state)
        (trained,) = train_replicas([self], data, [everything])
        if trained.fault:
            raise HeadError(f"training diverged: {trained.fault}; lower learning_rate?")
        self.n_iter_ = self.epochs
        self.losses_ = trained.losses
        return self._attach(trained.state)

    def _attach(self, state: Mapping[str, torch.Tensor]) -> Self:
        module = self.build(self.n_features_in_, len(self.classes_))
        own = dict(state)
        self.input_mean_ = own.pop(INPUT_MEAN, None)
        self.input_scale_ = own.pop(INPUT_SCALE, None)
        module.load_state_dict(own)
        self.module_ = module.eval()
        return self

    def predict_proba(self, X: FloatArray) -> npt.NDArray[np.float64]:
        """See `Head.predict_proba`."""
        X = self._check_predict(X)
        x = torch.from_numpy(self.prepare(X)).double()
        if self.input_mean_ is not None and self.input_scale_ is not None:
            x = (x - self.input_mean_.double()) / self.input_scale_.double()
        # in double, what processors round differently is far below what is written of it
        own = copy.deepcopy(self.module_).double()
        with torch.inference_mode():
            if not self.passes:
                return self._probabilities(own, x)
            module = as_stackable(own).eval()
            total = np.zeros((len(x), len(self.classes_)))
            networks = sample_subnetworks(
                module, x[:1], self.passes if self.pass_dropout else 0, self.random_state
            )
            # of its own, so that the sub-networks are the same with views and without
            stream = np.random.default_rng([self.random_state, _VIEWS])
            for _ in range(self.passes):
                next(networks, None)
                total += self._probabilities(module, self._view(x, stream))
            return total / self.passes

    def _view(self, x: torch.Tensor, stream: np.random.Generator) -> torch.Tensor:
        """Inputs [n, dim] with one draw of noise and masked dimensions for all rows."""
        if self.view_noise:
            x = x + self.view_noise * torch.from_numpy(stream.standard_normal(x.shape[1]))
        if self.view_mask:
            blocks, _ = self.inputs(x.shape[1])
            kept = [stream.random(width) >= stream.random() * self.view_mask for width in blocks]
            x = x * torch.from_numpy(np.concatenate(kept))
        return x

    def _probabilities(self, module: nn.Module, x: torch.Tensor) -> npt.NDArray[np.float64]:
        logits = as_output(module(x))["logits"].double()
        return np.asarray(torch.softmax(logits, dim=1).numpy())

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """See `Head.state`."""
        state = {name: tensor.numpy() for name, tensor in self.module_.state_dict().items()}
        if self.input_mean_ is not None and self.input_scale_ is not None:
            state |= {INPUT_MEAN: self.input_mean_.numpy(), INPUT_SCALE: self.input_scale_.numpy()}
        return state

    def load_state(
        self, state: Mapping[str, npt.NDArray[Any]], classes: npt.NDArray[Any], n_features: int
    ) -> Self:
        """See `Head.load_state`."""
        self._restore(classes, n_features)
        return self._attach({n: torch.from_numpy(np.array(a)) for n, a in state.items()})


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else value
