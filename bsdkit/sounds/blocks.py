"""Decoded samples in blocks of one length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["FloatArray", "in_blocks"]

FloatArray = npt.NDArray[np.float32]


def in_blocks(parts: Iterator[FloatArray], n_block: int, n_channels: int) -> Iterator[FloatArray]:
    """Parts [n, channels] of any length in blocks of `n_block`; the last is shorter, maybe empty.

    Args:
        parts: the parts, in order.
        n_block: samples a channel in a block; 0 for one block with all of them.
        n_channels: how many channels there are.
    """
    waiting: list[FloatArray] = []
    n_waiting = 0
    for part in parts:
        if n_block and not n_waiting and len(part) == n_block:
            yield part
            continue
        waiting.append(part)
        n_waiting += len(part)
        while n_block and n_waiting >= n_block:
            joined = np.concatenate(waiting)
            yield joined[:n_block]
            waiting, n_waiting = [joined[n_block:]], n_waiting - n_block
    if len(waiting) == 1:
        yield waiting[0]
    else:
        yield np.concatenate([np.zeros((0, n_channels), np.float32), *waiting])
