"""How a torch head trains: every setting that a recipe may give beside the network's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bsdkit.errors import HeadError, nearest
from bsdkit.heads.base import added
from bsdkit.heads.training.schedule import SCHEDULES

__all__ = ["SELECTIONS", "TrainingOptions"]

SELECTIONS = ("hF_strict", "hF", "hA", "accuracy", "macro_accuracy", "loss")
"""What can choose an epoch; ``loss`` is the cross-entropy on the validation rows, the less the
better."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": ("adamw", "adam"),
    "schedule": SCHEDULES,
    "selection": SELECTIONS,
    "loss": ("cross_entropy", "focal"),
    "smoothing": ("classes", "siblings"),
    "class_weight": ("none", "balanced", "inverse_sqrt", "effective"),
    "contrastive_labels": ("class", "family"),
}

_AT_LEAST_ONE = ("epochs", "batch_size", "step_epochs")
_POSITIVE = (
    "learning_rate", "step_factor", "contrastive_temperature", "arcface_scale",
)  # fmt: skip
_NOT_NEGATIVE = (
    "weight_decay", "warmup_epochs", "gradient_clip", "patience", "focal_gamma", "child_weight",
    "parent_weight", "contrastive_weight", "arcface_weight", "arcface_margin", "mixup", "cutmix",
    "noise", "passes", "view_noise",
)  # fmt: skip
_BELOW_ONE = ("average_decay", "label_smoothing", "modality_dropout")
_UP_TO_ONE = ("hf_weight", "mixup_share", "mask", "same_class_swap", "view_mask")


def _off(**metadata: Any) -> Any:
    """A field that is off at 0, with what a submission says of it where it is on."""
    return dataclasses.field(default=0.0, metadata=metadata)


@dataclass(kw_only=True, eq=False, repr=False)
class TrainingOptions:
    """How a stack of replicas is trained.

    Args:
        epochs: passes over the fitting rows.
        batch_size: rows in a batch of one replica; the last batch of an epoch is smaller.
        drop_last: leave a smaller last batch out, as networks with batch normalisation do.
        optimizer: ``adamw`` (Loshchilov and Hutter, ICLR 2019) or ``adam``, whose weight decay
            is part of the gradient.
        learning_rate: at the start.
        weight_decay: on all parameters.
        schedule: ``cosine`` or ``linear`` towards 0 over the epochs; ``step``: times
            `step_factor` every `step_epochs`; ``plateau``: times `step_factor` after
            `step_epochs` epochs without a better validation score; ``constant``.
        warmup_epochs: over which the rate rises from 0, step by step.
        step_epochs: see `schedule`.
        step_factor: see `schedule`.
        gradient_clip: largest norm of a replica's gradient; 0 for none.
        average_decay: of an exponential moving average of the parameters (Polyak and Juditsky,
            1992), which is then what is scored and kept; 0 for none.
        selection: the score on validation rows that chooses the epoch kept.
        patience: epochs without a better score after which a replica stops; 0 to go on.
        loss: ``cross_entropy``, or ``focal`` (Lin et al., ICCV 2017, section 3.2).
        focal_gamma: its exponent.
        label_smoothing: share of the target that is spread over other classes.
        smoothing: spread over all ``classes``, or over the ``siblings`` in the family alone.
        class_weight: ``none``, ``balanced``, ``inverse_sqrt``, ``effective`` (Cui et al., CVPR
            2019), from the counts of the fitting rows.
        class_weight_beta: of ``effective``.
        child_weight: weight of the cross-entropy between classes; 0 for a stage that learns the
            families alone, by `parent_weight`.
        parent_weight: weight of the cross-entropy between families, a family's probability
            being the sum of its classes'.
        hf_weight: share of the loss that is 1 - hF_strict of the batch, with the probabilities
            in the place of predictions; 1 for nothing else.
        contrastive_weight: weight of the supervised contrastive loss on the last hidden layer
            (Khosla et al., NeurIPS 2020, equation 2).
        contrastive_temperature: of its softmax.
        contrastive_labels: ``class`` or ``family``: which clips attract each other.
        arcface_weight: weight of an additive angular margin loss (Deng et al., CVPR 2019,
            section 2.1), in heads that have class directions.
        arcface_margin: its margin in radians.
        arcface_scale: its scale.
        mixup: alpha of the Beta distribution from which a batch's share of another order of
            the same batch is drawn (Zhang et al., ICLR 2018); 0 for none.
        mixup_share: share of batches that `mixup` or `cutmix` changes.
        cutmix: alpha of the same for exchanging a share of the dimensions; 0 for none.
        noise: standard deviation of Gaussian noise on the normalised inputs.
        mask: each clip loses a share of its dimensions, drawn from 0 to this, input by input.
        modality_dropout: probability that an input is zeroed for a clip; one is always left.
        block_dropout: the same with a probability for each input, in the place of
            `modality_dropout`; empty for none.
        same_class_swap: probability that a clip's input `swap_input` comes from another clip
            of its class.
        swap_input: which one, counted from 0; -1 is the last.
        passes: predictions are averaged over so many sub-networks drawn by dropout (Gal and
            Ghahramani, ICML 2016), the same ones for all clips; 0 for the whole network.
        pass_dropout: whether a pass is such a sub-network; false for passes that differ by
            `view_noise` and `view_mask` alone.
        view_noise: standard deviation of Gaussian noise on the normalised inputs of a pass, one
            vector for all clips (test-time augmentation).
        view_mask: in a pass, each input loses a share of its dimensions, drawn from 0 to this;
            the same ones for all clips.
    """

    epochs: int = 40
    batch_size: int = 64
    drop_last: bool = False
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    step_epochs: int = 20
    step_factor: float = 0.5
    gradient_clip: float = 0.0
    average_decay: float = 0.0
    selection: str = "hF_strict"
    patience: int = 0
    loss: str = "cross_entropy"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.1
    smoothing: str = "classes"
    class_weight: str = "none"
    class_weight_beta: float = 0.999
    child_weight: float = added(1.0)
    parent_weight: float = _off(uses_families="a loss term of the family")
    hf_weight: float = _off(uses_families="an expected-hF loss term")
    contrastive_weight: float = 0.0
    contrastive_temperature: float = 0.1
    contrastive_labels: str = "class"
    arcface_weight: float = 0.0
    arcface_margin: float = 0.3
    arcface_scale: float = 16.0
    mixup: float = _off(augments=True)
    mixup_share: float = 1.0
    cutmix: float = _off(augments=True)
    noise: float = _off(augments=True)
    mask: float = _off(augments=True)
    modality_dropout: float = _off(augments=True)
    same_class_swap: float = _off(augments=True)
    swap_input: int = -1
    passes: int = 0
    block_dropout: Sequence[float] = added((), augments=True)
    pass_dropout: bool = added(True)
    view_noise: float = added(0.0)
    view_mask: float = added(0.0)

    SHARED: ClassVar[frozenset[str]] = frozenset(
        {
            "epochs", "batch_size", "drop_last", "optimizer", "schedule", "warmup_epochs",
            "step_epochs", "step_factor", "average_decay", "selection", "patience",
            "arcface_weight",
        }
    )  # fmt: skip
    """What the replicas of one stack must have in common; the rest may differ among them."""

    def check_options(self) -> None:
        """Refuses settings out of range.

        Raises:
            HeadError: the first of them, with what was expected.
        """
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise HeadError(f"{name} is {value!r}: {nearest(str(value), choices)}")
        ranges: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
            (_AT_LEAST_ONE, lambda v: v >= 1, "1 or more"),
            (_POSITIVE, lambda v: v > 0, "more than 0"),
            (_NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
            (_BELOW_ONE, lambda v: 0 <= v < 1, "0 to below 1"),
            (_UP_TO_ONE, lambda v: 0 <= v <= 1, "0 to 1"),
            (("class_weight_beta",), lambda v: 0 < v < 1, "between 0 and 1"),
        )
        for names, is_right, expected in ranges:
            for name in names:
                value = getattr(self, name)
                if not is_right(value):
                    raise HeadError(f"{name} is {value!r}, expected {expected}")
        if self.mixup and self.cutmix:
            raise HeadError("mixup and cutmix are both on; a batch is mixed in one way")
        rates = self.block_dropout
        is_list = isinstance(rates, list | tuple)
        if not is_list or not all(isinstance(r, int | float) and 0 <= r < 1 for r in rates):
            raise HeadError(
                f"block_dropout is {rates!r}, expected a list of one number an input, each 0 to "
                "below 1"
            )
        if any(rates) and self.modality_dropout:
            raise HeadError("block_dropout and modality_dropout are both on; inputs drop one way")
        if (self.view_noise or self.view_mask) and not self.passes:
            name = "view_noise" if self.view_noise else "view_mask"
            raise HeadError(f"{name} is on and passes is 0; write passes: 5 to average five views")
        others = ("parent_weight", "hf_weight", "contrastive_weight", "arcface_weight")
        if not self.child_weight and not any(getattr(self, name) for name in others):
            raise HeadError("child_weight is 0 and no other loss is on; write parent_weight: 1.0")
        if self.warmup_epochs >= self.epochs:
            raise HeadError(
                f"warmup_epochs is {self.warmup_epochs!r} of {self.epochs} epochs, expected fewer"
            )

    @property
    def perturbs(self) -> bool:
        """Whether `perturb` is to be called: whether a head's own such options are on."""
        return False

    def perturb(
        self,
        X: npt.NDArray[np.float32],
        draw: Callable[[int], npt.NDArray[np.float64]],
    ) -> npt.NDArray[np.float32]:
        """The inputs [batch, dim] of a training step as a head of its own kind disturbs them.

        Args:
            X: inputs before they are standardised or mixed.
            draw: uniform numbers [batch, k] of k, from the replica's own stream.
        """
        return X

    def options(self) -> dict[str, Any]:
        """The training options by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(TrainingOptions)}
