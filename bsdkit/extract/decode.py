"""Decoding ahead of the model, in threads or in processes, bounded and in order."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from bsdkit.audio import Findings, Waveform, read_audio_at, stream_audio_at
from bsdkit.errors import AudioError, BsdkitError, MissingAudio

__all__ = ["LONG_SECONDS", "Decoder", "Request", "Sound"]

FloatArray = npt.NDArray[np.float32]

LONG_SECONDS = 60.0
"""A longer clip is not decoded whole but streamed block by block."""

_LOOKAHEAD_SECONDS = 600.0
_LOOKAHEAD_CLIPS = 32
_TRIES = 2


@dataclass(frozen=True)
class Request:
    """A clip to decode.

    Attributes:
        position: its row in the clips table.
        audio: its file or samples.
        rates: the rates in Hz at which it is wanted.
        seconds: its duration; NaN where unknown.
    """

    position: int
    audio: Path | Waveform | None
    rates: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Sound:
    """A decoded clip: its samples, or why there are none.

    Attributes:
        request: what was asked for.
        samples: [n_samples] by rate; None for a long clip, which `blocks` streams.
        error: why it could not be decoded.
        findings: what is odd about it; of a long clip, once all blocks are taken.
    """

    request: Request
    samples: dict[int, FloatArray] | None = None
    error: AudioError | None = None
    findings: Findings = field(default_factory=Findings)

    def blocks(self) -> Iterator[dict[int, FloatArray]]:
        """The samples by rate, whole or block by block.

        Raises:
            AudioError: the file cannot be decoded.
        """
        if self.error is not None:
            raise self.error
        if self.samples is not None:
            yield self.samples
        else:
            audio = self.request.audio or ""
            yield from stream_audio_at(audio, self.request.rates, self.findings)


class Decoder:
    """Decodes clips a bounded time ahead of whoever iterates, and gives them in order.

    Threads do on a machine whose processors the model needs anyway (libsndfile and soxr let
    Python go on); processes keep a GPU fed, which waits for every turn of Python's lock.

    Args:
        n_decoders: clips decoded at a time.
        use_processes: whether each decoder is a process of its own.
    """

    def __init__(self, n_decoders: int, *, use_processes: bool = False) -> None:
        self.n_decoders = max(1, n_decoders)
        self.busy_seconds = 0.0
        self.wait_seconds = 0.0
        self._use_processes = use_processes
        self._local = threading.local()
        self._processes: list[_DecoderProcess] = []
        self._lock = threading.Lock()
        self._is_closed = False
        self._pool = ThreadPoolExecutor(self.n_decoders, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for process in self._processes:
                process.stop()

    def decode(self, requests: Iterable[Request]) -> Iterator[Sound]:
        """The sounds of the requests, in their order."""
        waiting = iter(requests)
        queue: deque[tuple[float, Future[Sound]]] = deque()
        ahead = 0.0
        is_open = True
        while is_open or queue:
            while is_open and ahead < _LOOKAHEAD_SECONDS and len(queue) < self._n_ahead:
                request = next(waiting, None)
                if request is None:
                    is_open = False
                    break
                seconds = 0.0 if math.isnan(request.seconds) else request.seconds
                seconds = min(seconds, LONG_SECONDS)
                queue.append((seconds, self._pool.submit(self._decode, request)))
                ahead += seconds
            if queue:
                seconds, future = queue.popleft()
                clock = time.perf_counter()
                sound = future.result()
                self.wait_seconds += time.perf_counter() - clock
                ahead -= seconds
                yield sound

    @property
    def _n_ahead(self) -> int:
        return max(_LOOKAHEAD_CLIPS, 4 * self.n_decoders)

    def _decode(self, request: Request) -> Sound:
        if request.seconds > LONG_SECONDS:
            return Sound(request)
        clock = time.perf_counter()
        try:
            if request.audio is None:
                raise MissingAudio("the dataset names no audio file for this clip")
            findings = Findings()
            if self._use_processes and isinstance(request.audio, Path):
                samples, findings = self._in_process(request.audio, request.rates)
            else:
                samples = read_audio_at(request.audio, request.rates, findings)
            return Sound(request, samples, findings=findings)
        except AudioError as error:
            return Sound(request, error=error)
        except BsdkitError:
            raise
        except Exception as error:  # one odd file must not end a run, nor a full memory
            reason = f"{type(error).__name__}: {error}"
            return Sound(request, error=AudioError(f"{request.audio} cannot be decoded: {reason}"))
        finally:
            with self._lock:
                self.busy_seconds += time.perf_counter() - clock

    def _in_process(
        self, path: Path, rates: tuple[int, ...]
    ) -> tuple[dict[int, FloatArray], Findings]:
        """Decodes in this thread's own process, which is replaced if it died.

        A file that kills two of them fails alone.
        """
        for _ in range(_TRIES):
            if self._is_closed:  # nobody waits for it any more
                break
            process: _DecoderProcess | None = getattr(self._local, "process", None)
            if process is None:
                process = _DecoderProcess()
                self._local.process = process
                with self._lock:
                    self._processes.append(process)
            try:
                return process.read(path, rates)
            except AudioError:
                raise
            except (EOFError, OSError):
                self._drop(process)
            except Exception:  # what it sent and nobody read would be taken for the next clip
                self._drop(process)
                raise
        raise AudioError(f"{path} cannot be decoded: it ended the decoding process twice")

    def _drop(self, process: _DecoderProcess) -> None:
        process.stop()
        self._local.process = None
        with self._lock:
            if process in self._processes:
                self._processes.remove(process)


class _DecoderProcess:
    """A process that decodes what it is asked for and sends the samples back as raw bytes."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share a GPU's state
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end,), daemon=True)
        self._process.start()
        far_end.close()
        try:
            self._pipe.recv()
        except EOFError:
            raise BsdkitError(
                "a decoding process cannot start; in a script, extract belongs under "
                "if __name__ == '__main__', or set use_processes=False"
            ) from None

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def read(self, path: Path, rates: tuple[int, ...]) -> tuple[dict[int, FloatArray], Findings]:
        """Samples by rate, and what is odd about them.

        Raises:
            AudioError: the file cannot be decoded.
            EOFError, OSError: the process is gone.
        """
        self._pipe.send((str(path), rates))
        answer = self._pipe.recv()
        if isinstance(answer, AudioError):
            raise answer
        samples = {}
        lengths, findings = answer
        for rate, n_samples in lengths:
            samples[rate] = np.empty(n_samples, np.float32)
            _read_into(self._pipe, samples[rate].data.cast("B"))
        return samples, findings

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.terminate()


def _read_into(pipe: Connection, target: memoryview) -> None:
    """Fills a buffer from a pipe without a copy on the way."""
    done = 0
    while done < len(target):
        n_read = os.readv(pipe.fileno(), [target[done:]])
        if not n_read:
            raise EOFError
        done += n_read


def _write_from(pipe: Connection, source: memoryview) -> None:
    done = 0
    while done < len(source):
        done += os.write(pipe.fileno(), source[done:])


def _serve(pipe: Connection) -> None:
    """What a decoding process does: answers until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    try:
        pipe.send("ready")
        while True:
            path, rates = pipe.recv()
            findings = Findings()
            try:
                samples = read_audio_at(path, rates, findings)
            except AudioError as error:
                pipe.send(error)
                continue
            pipe.send(([(rate, len(values)) for rate, values in samples.items()], findings))
            for values in samples.values():
                _write_from(pipe, np.ascontiguousarray(values).data.cast("B"))
    except (EOFError, OSError):
        return
