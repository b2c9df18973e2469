"""Units of training that may run side by side, in this process or in others.

Torch heads that share inputs and shapes become one stack of replicas; every other head is one
unit a fold and seed. What a unit gives does not depend on where it runs or on what else runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.errors import HeadError
from bsdkit.heads.registry import make_head
from bsdkit.heads.torch_head import TorchHead
from bsdkit.heads.training import Replica, TrainingData, train_replicas
from bsdkit.metrics import Scorer
from bsdkit.taxonomy import Taxonomy

__all__ = ["FittedModel", "PlainUnit", "StackUnit", "run_units"]

_LARGE = 1.5e12
"""Operations from which starting other processes, which takes seconds, pays (measured)."""

_REPLICAS_IN_A_STACK = 60
"""More replicas in a stack save no more time; fewer leave something for other processes."""


@dataclass(frozen=True)
class HeadSpec:
    """A head by name and settings, as it travels between processes."""

    name: str
    settings: Mapping[str, Any]
    blocks: tuple[int, ...]
    families: tuple[int, ...]

    def make(self, seed: int = 0) -> Any:
        """The head, not fitted."""
        return make_head(
            self.name,
            self.settings,
            blocks=self.blocks,
            families=self.families,
            random_state=seed,
        )


@dataclass(frozen=True)
class FittedModel:
    """What a unit leaves of one model.

    Attributes:
        classes: class positions that its columns stand for.
        state: its arrays by name.
        history: best epoch, training losses and validation scores, where there are any.
        fault: why it is not to be used; empty if it is.
    """

    classes: npt.NDArray[np.int64]
    state: Mapping[str, npt.NDArray[Any]]
    history: Mapping[str, Any]
    fault: str = ""


@dataclass(frozen=True)
class StackUnit:
    """Replicas of heads that share inputs and shapes."""

    heads: tuple[HeadSpec, ...]
    data: TrainingData
    replicas: tuple[Replica, ...]
    taxonomy: Taxonomy
    device: str

    @property
    def operations(self) -> float:
        """Roughly how many floating point operations it takes."""
        module = self.heads[0].make().build(self.data.X.shape[1], self.data.n_classes)
        n_numbers = sum(p.numel() for p in module.parameters())
        epochs = self.heads[0].make().epochs
        return float(sum(6.0 * n_numbers * len(r.fit_rows) * epochs for r in self.replicas))

    def parts(self, n_jobs: int) -> list[StackUnit]:
        """The same in stacks of moderate size, as many as keep all processes busy."""
        n = len(self.replicas)
        n_parts = -(-n // _REPLICAS_IN_A_STACK)
        if n_parts > 1:
            n_parts = min(-(-n_parts // n_jobs) * n_jobs, n)
        bounds = np.linspace(0, n, n_parts + 1).round().astype(int)
        return [
            StackUnit(self.heads, self.data, self.replicas[a:b], self.taxonomy, self.device)
            for a, b in itertools.pairwise(bounds)
        ]

    def run(self) -> list[FittedModel]:
        """Trains the stack."""
        heads = [spec.make() for spec in self.heads]
        trained = train_replicas(
            heads, self.data, self.replicas, score=Scorer(self.taxonomy).of, device=self.device
        )
        metric = heads[0].selection
        return [
            FittedModel(
                classes=np.arange(self.data.n_classes),
                state={name: tensor.numpy() for name, tensor in replica.state.items()},
                history={
                    "best_epoch": replica.best_epoch,
                    "losses": list(replica.losses),
                    f"validation_{metric}": list(replica.validation_scores),
                },
                fault=replica.fault,
            )
            for replica in trained
        ]


@dataclass(frozen=True)
class PlainUnit:
    """One fit of a head that is no torch network."""

    head: HeadSpec
    seed: int
    X: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    sample_weight: npt.NDArray[np.float32] | None

    @property
    def operations(self) -> float:
        """A guess: heads that are slow say how slow in `Head.cost`."""
        return float(self.head.make().cost) * len(self.X)

    def parts(self, n_jobs: int) -> list[PlainUnit]:
        """Itself."""
        return [self]

    def run(self) -> list[FittedModel]:
        """Fits the head."""
        head = self.head.make(self.seed).fit(self.X, self.y, self.sample_weight)
        return [FittedModel(np.asarray(head.classes_), head.state(), {})]


Unit = StackUnit | PlainUnit


def stack_key(spec: HeadSpec) -> tuple[Any, ...] | None:
    """What heads must share to be trained in one stack; None for heads that are not."""
    head = spec.make()
    return head.stack_key() if isinstance(head, TorchHead) else None


def _run_alone(unit: Unit) -> list[FittedModel]:
    import torch

    torch.set_num_threads(1)
    return unit.run()


def run_units(units: Sequence[Unit], *, n_jobs: int = 1) -> list[list[FittedModel]]:
    """The models of each unit, in its own order.

    Units go to `n_jobs` other processes when there is enough work to pay for starting them
    and none needs a GPU. Each of them works in one thread.

    Raises:
        HeadError: what a unit raises, or a process that was killed.
    """
    parts = [unit.parts(n_jobs) for unit in units]
    flat = [part for of_unit in parts for part in of_unit]
    on_cpu = all(not isinstance(u, StackUnit) or u.device == "cpu" for u in flat)
    work = [part.operations for part in flat] if n_jobs > 1 and len(flat) > 1 and on_cpu else []
    if work and sum(work) > _LARGE and max(work) < 0.9 * sum(work):
        results = _side_by_side(flat, work, n_jobs)
    else:
        results = [part.run() for part in flat]
    found = iter(results)
    return [[model for _ in of_unit for model in next(found)] for of_unit in parts]


def _side_by_side(
    units: Sequence[Unit], work: Sequence[float], n_jobs: int
) -> list[list[FittedModel]]:
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel, delayed

    # the longest first, so that none is left to run alone at the end
    order = sorted(range(len(units)), key=lambda i: -work[i])
    try:
        done = Parallel(n_jobs=n_jobs, backend="loky", max_nbytes="1M", mmap_mode="c")(
            delayed(_run_alone)(units[i]) for i in order
        )
    except BrokenProcessPool:
        raise HeadError(
            "a training process was killed, perhaps for memory; run the same line again"
        ) from None
    by_unit = dict(zip(order, done, strict=True))
    return [by_unit[i] for i in range(len(units))]
