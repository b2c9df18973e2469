"""Augmentation of embeddings, drawn from each replica's own stream."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bsdkit.heads.training.options import TrainingOptions

__all__ = ["Augmentation", "MixedBatch"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MixedBatch:
    """Which rows of a batch are mixed with which, and how much of each is kept.

    Attributes:
        partner: positions [replicas, batch] in the batch.
        kept: the own row's share [replicas].
        taken: dimensions [replicas, dim] that come from the partner; None to mix all of them.
    """

    partner: torch.Tensor
    kept: torch.Tensor
    taken: torch.Tensor | None


class Augmentation:
    """Everything that changes the inputs of a step.

    Args:
        options: one a replica.
        streams: one a replica.
        blocks: width of each input.
        fit_rows: rows that each replica trains on, from which swaps are drawn.
        classes: class positions [n] of all rows, as each replica sees them.
        device: where the batches are.

    Draws are made for whole batches also where a step is shorter: how much a replica takes from
    its stream must not depend on the others.
    """

    def __init__(
        self,
        options: Sequence[TrainingOptions],
        streams: Sequence[np.random.Generator],
        blocks: tuple[int, ...],
        fit_rows: Sequence[IntArray],
        classes: Sequence[IntArray],
        device: torch.device,
    ) -> None:
        self.options, self.streams = list(options), list(streams)
        self._blocks, self._device, self._classes = blocks, device, list(classes)
        self._size = options[0].batch_size
        edges = np.concatenate([[0], np.cumsum(blocks)])
        self._slices = [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
        self._by_class = [
            _rows_by_class(rows, y) if o.same_class_swap else None
            for o, rows, y in zip(options, fit_rows, classes, strict=True)
        ]

    @property
    def is_on(self) -> bool:
        """Whether there is anything to do."""
        return any(
            o.mixup
            or o.cutmix
            or o.noise
            or o.mask
            or o.modality_dropout
            or o.same_class_swap
            or any(o.block_dropout)
            or o.perturbs
            for o in self.options
        )

    def keep(self, which: Sequence[int]) -> None:
        """Goes on with these replicas alone."""
        self.options = [self.options[i] for i in which]
        self.streams = [self.streams[i] for i in which]
        self._by_class = [self._by_class[i] for i in which]
        self._classes = [self._classes[i] for i in which]

    def mixing(self, n_real: IntArray, width: int) -> MixedBatch | None:
        """Draws how the rows of a step are mixed; None where no replica mixes.

        Args:
            n_real: real rows [replicas] of the step.
            width: rows of the widest replica.
        """
        n, dim = len(n_real), sum(self._blocks)
        if not any(o.mixup or o.cutmix for o in self.options[:n]):
            return None
        partner = np.tile(np.arange(width), (n, 1))
        kept = np.ones(n, np.float32)
        taken = np.zeros((n, dim), bool) if any(o.cutmix for o in self.options[:n]) else None
        for i in range(n):
            o, stream = self.options[i], self.streams[i]
            alpha = o.mixup or o.cutmix
            if not alpha or stream.random() >= o.mixup_share:
                continue
            partner[i, : n_real[i]] = stream.permutation(int(n_real[i]))
            share = float(stream.beta(alpha, alpha))
            if o.cutmix:
                assert taken is not None
                taken[i] = stream.random(dim) >= share
                share = 1 - float(taken[i].mean())
            kept[i] = share
        return MixedBatch(
            torch.from_numpy(partner).to(self._device),
            torch.from_numpy(kept).to(self._device),
            None if taken is None else torch.from_numpy(taken).to(self._device),
        )

    def mix(self, x: torch.Tensor, mixed: MixedBatch) -> torch.Tensor:
        """Inputs [replicas, batch, dim] mixed with their partners'."""
        other = torch.take_along_dim(x, mixed.partner.unsqueeze(-1), dim=1)
        is_cut = torch.tensor([bool(o.cutmix) for o in self.options[: len(x)]], device=x.device)
        share = mixed.kept[:, None, None]
        if mixed.taken is None:
            return torch.lerp(other, x, share)
        cut = torch.where(mixed.taken.unsqueeze(1), other, x)
        return torch.where(is_cut[:, None, None], cut, torch.lerp(other, x, share))

    def swap(self, x: torch.Tensor, X: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Inputs in which some clips' one input comes from another clip of their class.

        What heads of one kind alone do to inputs (`TrainingOptions.perturb`) follows.

        Args:
            x: inputs [replicas, batch, dim], changed in place.
            X: features [n, dim] of all rows.
            rows: which rows [replicas, batch] the inputs are.
        """
        for i, by_class in enumerate(self._by_class[: len(x)]):
            if by_class is None:
                continue
            o, stream = self.options[i], self.streams[i]
            order, start, count = by_class
            chance, place = stream.random((2, self._size))[:, : rows.shape[1]]
            chosen = np.flatnonzero(chance < o.same_class_swap)
            of = self._classes[i][rows[i, chosen]]
            pick = start[of] + (place[chosen] * count[of]).astype(np.int64)
            columns = self._slices[o.swap_input]
            source = torch.from_numpy(order[np.minimum(pick, len(order) - 1)]).to(self._device)
            x[i, torch.from_numpy(chosen).to(self._device), columns] = X[source][:, columns]
        return self._perturb(x)

    def _perturb(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [replicas, batch, dim] as heads with such options disturb them, in place."""
        for i, (o, stream) in enumerate(
            zip(self.options[: len(x)], self.streams[: len(x)], strict=True)
        ):
            if o.perturbs:
                drawn = functools.partial(self._uniform, stream, x.shape[1])
                x[i] = torch.from_numpy(o.perturb(x[i].cpu().numpy(), drawn)).to(self._device)
        return x

    def _uniform(self, stream: np.random.Generator, n_rows: int, k: int) -> npt.NDArray[np.float64]:
        return stream.random((self._size, k))[:n_rows]

    def distort(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [replicas, batch, dim] with noise, masks and dropped inputs, changed in place."""
        size, n_rows = self._size, x.shape[1]
        for i, (o, stream) in enumerate(
            zip(self.options[: len(x)], self.streams[: len(x)], strict=True)
        ):
            if o.noise:
                drawn = stream.standard_normal((size, x.shape[2]), dtype=np.float32)
                x[i].add_(torch.from_numpy(drawn[:n_rows]).to(self._device), alpha=o.noise)
            if o.mask:
                for columns in self._slices:
                    rate = stream.random((size, 1), dtype=np.float32) * np.float32(o.mask)
                    width = columns.stop - columns.start
                    keep = stream.random((size, width), dtype=np.float32) >= rate
                    x[i, :, columns].mul_(torch.from_numpy(keep[:n_rows]).to(self._device))
            rates = o.block_dropout or (o.modality_dropout,)
            if any(rates) and len(self._blocks) > 1:
                drop = stream.random((size, len(self._blocks))) < np.array(rates)
                saved = stream.integers(len(self._blocks), size=size)
                drop[np.arange(size), saved] &= ~drop.all(axis=1)
                for j, columns in enumerate(self._slices):
                    stays = torch.from_numpy(~drop[:n_rows, j : j + 1]).to(self._device)
                    x[i, :, columns].mul_(stays)
        return x


def _rows_by_class(rows: IntArray, y: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Rows sorted by class, where each class starts among them, and how many it has."""
    order = rows[np.argsort(y[rows], kind="stable")]
    count = np.bincount(y[rows], minlength=int(y.max()) + 1)
    return order, np.concatenate([[0], np.cumsum(count)[:-1]]), count
