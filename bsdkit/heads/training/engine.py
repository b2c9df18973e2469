"""The training loop of a stack of replicas.

All folds and seeds of a member, and its variants that share shapes, have their parameters
stacked along a first axis, and every layer becomes one batched matrix product
(`torch.func.vmap` over the plain module). The features lie in memory once; a batch is a
gather. Each replica has its own random streams for initial weights, batches, dropout and
augmentation, and its own count of steps, so that it is the same network, up to rounding, as
if it had been trained alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from bsdkit.errors import HeadError
from bsdkit.heads.class_weights import class_weights
from bsdkit.heads.normalize import column_statistics
from bsdkit.heads.training.augment import Augmentation
from bsdkit.heads.training.layers import BatchStatistics, DropoutMasks, as_stackable, dropout_rates
from bsdkit.heads.training.losses import Losses, as_output
from bsdkit.heads.training.optimizer import StackedAdam, clip_gradients
from bsdkit.heads.training.options import TrainingOptions
from bsdkit.heads.training.replica import Replica, TrainedReplica, TrainingData
from bsdkit.heads.training.schedule import rate_factor, warmed_up

__all__ = ["INPUT_MEAN", "INPUT_SCALE", "Score", "StackableHead", "train_replicas"]

IntArray = npt.NDArray[np.int64]
Score = Callable[[IntArray, IntArray], float]

INPUT_MEAN, INPUT_SCALE = "input.mean", "input.scale"
"""Names under which a replica's standardisation stands in its state."""

_SMALL_STEP = 1e8  # operations; below it one core is faster than two (measured)


class StackableHead(Protocol):
    """What a stack needs to know of a head."""

    @property
    def training(self) -> TrainingOptions:
        """How it trains."""
        ...

    def build(self, n_features: int, n_classes: int) -> nn.Module:
        """A fresh network."""
        ...

    def inputs(self, n_features: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Width and normalisation of each input."""
        ...

    def class_families(self, n_classes: int) -> IntArray:
        """Family number [n_classes] of each class."""
        ...


def train_replicas(
    heads: Sequence[StackableHead],
    data: TrainingData,
    replicas: Sequence[Replica],
    *,
    score: Callable[[str], Score] | None = None,
    device: str = "cpu",
) -> list[TrainedReplica]:
    """Trains the replicas together and returns them in the order given.

    Args:
        heads: settings and networks; they share shapes, inputs and `TrainingOptions.SHARED`.
        data: the rows.
        replicas: rows, seed and head of each network.
        score: gives the function of (true, predicted) positions that a name of `SELECTIONS`
            stands for, higher is better; the epoch that is best on a replica's validation
            rows is kept, the first of equals.
        device: where to train.

    Raises:
        HeadError: the options contradict each other.
        ValueError: there is no replica, or one has no rows.
    """
    if not replicas or any(not len(replica.fit_rows) for replica in replicas):
        raise ValueError("every replica needs at least one row to fit on")
    shared = [[getattr(h.training, name) for name in sorted(TrainingOptions.SHARED)] for h in heads]
    if any(other != shared[0] for other in shared):
        raise HeadError("the heads of a stack must share " + ", ".join(TrainingOptions.SHARED))
    n_steps = [_steps_of(replica, heads[replica.head].training) for replica in replicas]
    # Replicas with the longest epochs come first, so that those still busy at the end of an
    # epoch are a prefix of the stack; those of one head stay together and share a kernel call.
    order = sorted(range(len(replicas)), key=lambda i: (-n_steps[i], replicas[i].head))
    stack = _Stack(heads, data, [replicas[i] for i in order], score, device)
    with _threads_for(stack):
        for epoch in range(stack.shared.epochs):
            stack.train_epoch(epoch)
            stack.validate(epoch)
            if not stack.index:
                break
    trained = dict(zip(order, stack.results, strict=True))
    return [trained[i] for i in range(len(replicas))]


def _steps_of(replica: Replica, options: TrainingOptions) -> int:
    if replica.n_steps is not None:
        return replica.n_steps
    n, size = len(replica.fit_rows), options.batch_size
    return max(n // size, 1) if options.drop_last else -(-n // size)


@contextlib.contextmanager
def _threads_for(stack: _Stack) -> Iterator[None]:
    """One thread while a stack is small: threads would wait for each other longer than they work.

    The choice depends on the shapes alone, so that the same work gives the same bits.
    """
    n_numbers = sum(parameter.numel() for parameter in stack.parameters)
    operations = 6 * n_numbers * stack.shared.batch_size  # forward, and twice that backward
    _keep_freed_memory()
    n_threads = torch.get_num_threads()
    if operations < _SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@functools.cache
def _keep_freed_memory() -> None:
    """Asks glibc not to give every freed tensor back to the system, only to fetch it again.

    A step frees and allocates the same tens of megabytes; faulting them in again took an eighth
    of the time (measured). Elsewhere than on glibc nothing happens.
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)  # the largest that it accepts
        mallopt(trim_threshold, 1 << 30)


class _Stack:
    def __init__(
        self,
        heads: Sequence[StackableHead],
        data: TrainingData,
        replicas: list[Replica],
        score: Callable[[str], Score] | None,
        device: str,
    ) -> None:
        self.options = [heads[r.head].training for r in replicas]
        self.shared = self.options[0]
        self.data, self.replicas, self.device = data, replicas, torch.device(device)
        self._classes_of: dict[int, IntArray] = {}
        self.score = score(self.shared.selection) if score and self._needs_score else None
        self.X = torch.from_numpy(np.ascontiguousarray(data.X, np.float32)).to(self.device)
        self.y = torch.from_numpy(data.y).to(self.device)
        self.soft = None if data.soft is None else torch.from_numpy(data.soft).to(self.device)
        self.soft_share = (
            None if data.soft_share is None else torch.from_numpy(data.soft_share).to(self.device)
        )
        self.view = torch.tensor([r.view for r in replicas], device=self.device)

        modules = []
        with torch.random.fork_rng(devices=[]):
            for replica in replicas:
                torch.manual_seed(replica.seed)
                module = heads[replica.head].build(data.X.shape[1], data.n_classes)
                if replica.initial is not None:
                    known = module.state_dict().keys()
                    module.load_state_dict({n: replica.initial[n] for n in known})
                modules.append(module)
        rates = [dropout_rates(module) for module in modules]
        # one module stands for all of them, which keep the names of its parameters
        self.module = as_stackable(modules[0], self.device.type).to(self.device)
        self.names = [name for name, _ in self.module.named_parameters()]
        states = [module.state_dict() for module in modules]
        self.parameters = [self._stacked(states, name) for name in self.names]
        kept = [name for name in self.module.state_dict() if name not in self.names]
        self.buffers = {name: self._stacked(states, name) for name in kept}

        blocks, kinds = heads[0].inputs(data.X.shape[1])
        self._standardise(blocks, kinds)
        streams = [np.random.SeedSequence(r.seed).spawn(3) for r in replicas]
        self.shuffles = [np.random.Generator(np.random.SFC64(s[0])) for s in streams]
        self.masks = DropoutMasks(
            self.module, self.X[:1], [np.random.SFC64(s[1]) for s in streams], rates
        )
        self.augmentation = Augmentation(
            self.options,
            [np.random.Generator(np.random.SFC64(s[2])) for s in streams],
            blocks,
            [r.fit_rows for r in replicas],
            [self._classes(r.view) for r in replicas],
            self.device,
        )
        families = heads[0].class_families(data.n_classes)
        self.losses_of = Losses(self.options, families, device)
        self.statistics = BatchStatistics(self.module)
        self.weights = torch.from_numpy(self._row_weights()).to(self.device)

        self.n_steps = np.array(
            [_steps_of(r, o) for r, o in zip(replicas, self.options, strict=True)]
        )
        self.rates = np.array([o.learning_rate for o in self.options])
        self.clips = torch.tensor(
            [o.gradient_clip or math.inf for o in self.options], device=self.device
        )
        self.optimizer = StackedAdam(
            self.parameters,
            decoupled=self.shared.optimizer == "adamw",
            n_steps=self.n_steps,
            decay=[o.weight_decay for o in self.options],
            rates=self.rates.tolist(),
            independent=self.shared.schedule == "plateau",
        )
        self.averages = [p.clone() for p in self.parameters] if self.shared.average_decay else None

        self.index = list(range(len(replicas)))
        self.losses: list[list[float]] = [[] for _ in replicas]
        self.scores: list[list[float]] = [[] for _ in replicas]
        self.best_epoch = [0] * len(replicas)
        self.best: list[dict[str, torch.Tensor]] = [{} for _ in replicas]
        self.waiting = [0] * len(replicas)  # epochs without a better score, for plateau
        self.done: dict[int, TrainedReplica] = {}
        # the seeds of a fold share their validation rows; gather them once
        self._validation: dict[bytes, tuple[torch.Tensor, IntArray]] = {}
        for replica in replicas:
            rows, key = replica.validation_rows, replica.validation_rows.tobytes()
            if len(rows) and key not in self._validation:
                gathered = self.X[torch.from_numpy(rows).to(self.device)]
                self._validation[key] = (gathered, data.y[rows])

    @property
    def _needs_score(self) -> bool:
        return self.shared.selection != "loss"

    def _stacked(self, states: Sequence[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
        return torch.stack([state[name].detach() for state in states]).to(self.device)

    def _standardise(self, blocks: tuple[int, ...], kinds: tuple[str, ...]) -> None:
        """Mean and inverse scale [replicas, dim] of the inputs, where some are standardised."""
        self.mean = self.inverse = None
        if "standardize" not in kinds:
            return
        known: dict[bytes, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = {}
        found = []
        for replica in self.replicas:
            if replica.initial is not None:
                initial = replica.initial
                found.append((initial[INPUT_MEAN].numpy(), initial[INPUT_SCALE].numpy()))
                continue
            key = replica.fit_rows.tobytes()
            if key not in known:
                known[key] = column_statistics(self.data.X[replica.fit_rows], blocks, kinds)
            found.append(known[key])
        self.mean = torch.from_numpy(np.stack([mean for mean, _ in found])).to(self.device)
        scale = torch.from_numpy(np.stack([scale for _, scale in found])).to(self.device)
        self.inverse = 1 / scale

    def _classes(self, view: int) -> IntArray:
        """The class [n] of each row in a view: the soft target's, once it outweighs the label."""
        if view not in self._classes_of:
            soft, share = self.data.soft, self.data.soft_share
            y = self.data.y
            if soft is not None and share is not None:
                of_label = np.take_along_axis(soft[view], y[:, None], axis=-1)[:, 0]
                is_other = (share[view] > 0.5) & (of_label < soft[view].max(axis=-1))
                y = np.where(is_other, soft[view].argmax(axis=-1), y)
            self._classes_of[view] = y
        return self._classes_of[view]

    def _row_weights(self) -> npt.NDArray[np.float32]:
        """Weights [replicas, n] in the loss: the rows' own times their class's."""
        data = self.data
        weights = np.ones((len(self.replicas), len(data.X)), np.float32)
        for i, (replica, option) in enumerate(zip(self.replicas, self.options, strict=True)):
            if data.weight is not None:
                weights[i] = data.weight[replica.view]
            if option.class_weight != "none":
                rows = replica.fit_rows[weights[i, replica.fit_rows] > 0]
                classes = self._classes(replica.view)
                counts = np.bincount(classes[rows], minlength=data.n_classes)
                by_class = class_weights(option.class_weight, counts, option.class_weight_beta)
                weights[i] *= by_class.astype(np.float32)[classes]
        return weights

    def _forward(
        self,
        leaves: Sequence[torch.Tensor],
        extra: dict[str, torch.Tensor],
        x: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Outputs of inputs [replicas, batch, dim], and what batch normalisation saw."""
        n = len(x)
        state = {**dict(zip(self.names, leaves, strict=True)), **extra}
        state |= {name: buffer[:n] for name, buffer in self.buffers.items()}

        def forward_one(
            state: dict[str, torch.Tensor], x: torch.Tensor
        ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
            output = as_output(functional_call(self.module, state, (x,)))
            return output, self.statistics.collect()

        stacked: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
        stacked = vmap(forward_one)(state, x)
        return stacked

    def _batches(self) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Rows [replicas, steps * batch_size] of an epoch, and which of them are real."""
        size = self.shared.batch_size
        width = int(self.n_steps.max()) * size
        rows = np.zeros((len(self.replicas), width), np.int64)
        is_real = np.zeros(rows.shape, bool)
        for i, (replica, shuffle) in enumerate(zip(self.replicas, self.shuffles, strict=True)):
            n = len(replica.fit_rows)
            taken = n
            if replica.n_steps is not None or self.shared.drop_last:
                taken = int(self.n_steps[i]) * size
                if replica.n_steps is None:
                    taken = min(taken, n)
            turns = [shuffle.permutation(n) for _ in range(-(-taken // n))]
            rows[i, :taken] = replica.fit_rows[np.concatenate(turns)[:taken]]
            is_real[i, :taken] = True
        return rows, is_real

    def _inputs(
        self, rows: IntArray, n_real: IntArray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs, targets, classes and weights of a step's rows [replicas, batch]."""
        n = len(rows)
        batch = torch.from_numpy(rows).to(self.device)
        # a copy of whole rows, several times faster than indexing by a matrix
        x = self.X.index_select(0, batch.reshape(-1)).view(*batch.shape, -1)
        y = self.y[batch]
        which = torch.arange(n, device=self.device).unsqueeze(1)
        weight = self.weights[which, batch]
        targets = self.losses_of.targets(y)
        if self.soft is not None and self.soft_share is not None:
            view = self.view[:n].unsqueeze(1)
            share = self.soft_share[view, batch].unsqueeze(-1)
            soft = self.soft[view, batch]
            # the hard class of a clip that has a teacher is the teacher's, for the losses
            # that know no soft targets, once the teacher outweighs the label and prefers another
            of_label = soft.gather(-1, y.unsqueeze(-1)).squeeze(-1)
            is_other = (share.squeeze(-1) > 0.5) & (of_label < soft.amax(-1))
            y = torch.where(is_other, soft.argmax(-1), y)
            targets = (1 - share) * targets + share * soft
        if self.augmentation.is_on:
            x = self.augmentation.swap(x, self.X, rows)
        if self.mean is not None and self.inverse is not None:
            x = (x - self.mean[:n].unsqueeze(1)) * self.inverse[:n].unsqueeze(1)
        if self.augmentation.is_on:
            mixed = self.augmentation.mixing(n_real, rows.shape[1])
            if mixed is not None:
                x = self.augmentation.mix(x, mixed)
                kept, partner = mixed.kept[:, None], mixed.partner
                other = torch.take_along_dim(targets, partner.unsqueeze(-1), dim=1)
                targets = torch.lerp(other, targets, kept.unsqueeze(-1))
                y = torch.where(kept >= 0.5, y, y.gather(1, partner))
                weight = torch.lerp(weight.gather(1, partner), weight, kept)
            x = self.augmentation.distort(x)
        return x, targets, y, weight

    def train_epoch(self, epoch: int) -> None:
        self.module.train()
        size, shared = self.shared.batch_size, self.shared
        rates = self.rates * rate_factor(
            shared.schedule,
            epoch,
            epochs=shared.epochs,
            step_epochs=shared.step_epochs,
            step_factor=shared.step_factor,
        )
        rows, is_real = self._batches()
        total = torch.zeros(len(self.replicas), device=self.device)
        for step in range(int(self.n_steps.max())):
            n_active = int((self.n_steps > step).sum())
            real = is_real[:n_active, step * size : (step + 1) * size]
            n_real = real.sum(axis=1)
            width = int(n_real.max())
            filled = torch.from_numpy(real[:, :width]).to(self.device, torch.float32)
            x, targets, y, weight = self._inputs(
                rows[:n_active, step * size : step * size + width], n_real
            )
            weight = weight * filled
            leaves = [p[:n_active].detach().requires_grad_() for p in self.parameters]
            # Masks are drawn for a whole batch also where this step's are shorter: how much a
            # replica takes from its stream must not depend on the others' lengths.
            masks = self.masks.draw(n_active, size, self.device)
            extra = {name: mask[:, :width] for name, mask in masks.items()}
            extra |= self.statistics.rows(filled)
            output, seen = self._forward(leaves, extra, x)
            losses = self.losses_of(output, targets, y, weight)
            gradients = torch.autograd.grad(losses.sum(), leaves)
            if bool(torch.isfinite(self.clips[:n_active]).any()):
                gradients = clip_gradients(gradients, self.clips[:n_active])
            warm = warmed_up(rates, shared.warmup_epochs, epoch, step, self.n_steps)
            self.optimizer.step(gradients, n_active, warm)
            self._remember(n_active, seen, epoch, step)
            total[:n_active] += losses.detach()
        for kept, loss in zip(self.losses, (total.cpu().numpy() / self.n_steps), strict=True):
            kept.append(float(loss))

    def _remember(
        self, n_active: int, seen: dict[str, torch.Tensor], epoch: int, step: int
    ) -> None:
        """Updates running statistics and the average of the parameters after a step."""
        for name, value in seen.items():
            self.buffers[name][:n_active].lerp_(value, self.statistics.momentum(name))
        if self.averages is not None:
            for average, parameter in zip(self.averages, self.parameters, strict=True):
                done = epoch * self.n_steps[:n_active] + step
                # while there are few steps, an average over those there are
                decay = np.minimum(self.shared.average_decay, (1 + done) / (10 + done))
                share = torch.from_numpy(1 - decay).to(self.device, torch.float32)
                share = share.view(-1, *[1] * (parameter.dim() - 1))
                average[:n_active] += (parameter[:n_active] - average[:n_active]) * share

    def _state(self, i: int) -> dict[str, torch.Tensor]:
        """Parameters and buffers of the i-th replica, as they would be scored now."""
        kept = self.parameters if self.averages is None else self.averages
        state = {n: p[i] for n, p in zip(self.names, kept, strict=True)}
        return state | {name: buffer[i] for name, buffer in self.buffers.items()}

    def validate(self, epoch: int) -> None:
        """Scores the replicas that have validation rows, keeps their best parameters.

        Replicas that diverged, or waited long enough for a better score, leave the stack.
        """
        self.module.eval()
        options, is_last = self.shared, epoch == self.shared.epochs - 1
        leaving = []
        for i, replica in enumerate(self.replicas):
            if not math.isfinite(self.losses[i][-1]):
                self._leave(i, fault=f"the loss is not finite in epoch {epoch + 1}")
                leaving.append(i)
                continue
            held_out = self._validation.get(replica.validation_rows.tobytes())
            if held_out is not None and (self.score is not None or options.selection == "loss"):
                value = self._score(i, *held_out)
                is_best = not self.scores[i] or value > max(self.scores[i])
                self.scores[i].append(value)
            else:
                is_best = is_last
            if is_best:
                self.best_epoch[i] = epoch + 1
                self.best[i] = {n: t.clone() for n, t in self._state(i).items()}
            self.waiting[i] = 0 if is_best else self.waiting[i] + 1
            if options.schedule == "plateau" and self.waiting[i] >= options.step_epochs:
                self.rates[i] *= options.step_factor
                self.waiting[i] = 0
            is_waiting = bool(self.scores[i]) and options.patience > 0
            if is_last or (is_waiting and epoch + 1 - self.best_epoch[i] >= options.patience):
                self._leave(i)
                leaving.append(i)
        if leaving:
            self._keep([i for i in range(len(self.replicas)) if i not in leaving])

    def _score(self, i: int, x: torch.Tensor, y: IntArray) -> float:
        if self.mean is not None and self.inverse is not None:
            x = (x - self.mean[i]) * self.inverse[i]
        with torch.no_grad():
            logits = as_output(functional_call(self.module, self._state(i), (x,)))["logits"]
            if self.score is None:
                loss = functional.cross_entropy(logits, torch.from_numpy(y).to(self.device))
                return -float(loss)
        return self.score(y, logits.argmax(dim=1).cpu().numpy())

    def _leave(self, i: int, fault: str = "") -> None:
        """Puts a replica's result aside."""
        state = self.best[i] or self._state(i)
        if not fault and not all(bool(torch.isfinite(t).all()) for t in state.values()):
            fault = "parameters are not finite"
        losses = self.losses[i]
        if not fault and len(losses) > 1 and losses[-1] > 2 * losses[0]:
            fault = f"the loss rose from {losses[0]:.3g} to {losses[-1]:.3g}"
        if self.mean is not None and self.inverse is not None:
            state = {**state, INPUT_MEAN: self.mean[i], INPUT_SCALE: 1 / self.inverse[i]}
        self.done[self.index[i]] = TrainedReplica(
            state={n: t.detach().cpu().clone() for n, t in state.items()},
            best_epoch=self.best_epoch[i],
            losses=tuple(losses),
            validation_scores=tuple(self.scores[i]),
            fault=fault,
        )

    def _keep(self, which: list[int]) -> None:
        """Goes on with these replicas alone."""
        for name in ("index", "replicas", "options", "losses", "scores", "best", "best_epoch",
                     "waiting", "shuffles"):  # fmt: skip
            setattr(self, name, [getattr(self, name)[i] for i in which])
        if not which:
            return
        self.n_steps, self.rates = self.n_steps[which], self.rates[which]
        for name in ("view", "weights", "clips", "mean", "inverse"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[which])
        for tensors in (self.parameters, self.averages or []):
            for i, tensor in enumerate(tensors):
                cut = tensor[which]
                # indexing makes a copy in row order; the optimiser's layout must stay
                tensors[i] = cut if tensor.is_contiguous() else cut.mT.contiguous().mT
        self.buffers = {name: buffer[which] for name, buffer in self.buffers.items()}
        self.optimizer.keep(which)
        self.masks.keep(which)
        self.augmentation.keep(which)
        self.losses_of.keep(which)

    @property
    def results(self) -> list[TrainedReplica]:
        """All replicas, in the stack's first order."""
        return [self.done[i] for i in range(len(self.done))]
