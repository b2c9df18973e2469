"""The same stage on the workers of a Ray cluster, on this machine or on many.

Each worker is an actor that loads the backbones once and embeds one shard at a time; the rows
come back to the process that asked, which alone writes. The shards are those of the plan, so
the bytes are those of a single process. A worker that dies costs its shard in flight, which
another one does again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from bsdkit.backbones.base import Backbone, BackboneOptions, IntArray
from bsdkit.errors import BackboneUnavailable, BsdkitError, DeviceError, StaleStore, StoreError
from bsdkit.extract.pipeline import ExtractionSettings, WriteShard, run_jobs
from bsdkit.extract.plan import Job
from bsdkit.extract.report import Stages
from bsdkit.progress import Progress
from bsdkit.store.feature import FeatureRows
from bsdkit.store.kinds import first_difference

__all__ = ["RayEngine"]

_TRIES = 3
_SENT_APART: Any = None


@dataclass(frozen=True)
class _Task:
    """One shard of clips, for every job that has it.

    Attributes:
        positions: its clips.
        shards: (index of the job, number of the shard) of each.
    """

    positions: IntArray
    shards: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Recipe:
    """How a worker makes a backbone of its own: a loaded one is never sent."""

    cls: type[Backbone]
    options: BackboneOptions
    wanted: frozenset[str]


class RayEngine:
    """Embeds shards on a Ray cluster; see `bsdkit.extract.pipeline.Engine`.

    Args:
        address: of a running cluster; empty to start one on this machine.
        n_workers: how many; 0 for one a GPU on ``cuda``, one a processor elsewhere.

    Raises:
        BackboneUnavailable: Ray is not installed.
    """

    def __init__(self, address: str = "", n_workers: int = 0) -> None:
        self.address = address
        self.n_workers = n_workers
        self.pids: list[int] = []
        """Process ids of the workers, in the order in which they were started."""

    def __call__(
        self,
        jobs: Sequence[Job],
        settings: ExtractionSettings,
        progress: Progress,
        stages: Stages,
        write: WriteShard,
    ) -> None:
        """Embeds every shard that the jobs have to do."""
        tasks = _tasks(jobs)
        if not tasks:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # workers log that they hide the GPUs nobody asked for
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise BackboneUnavailable("--engine ray needs Ray: pip install 'bsdkit[ray]'") from None
        was_running = ray.is_initialized()
        if not was_running:
            ray.init(
                address=self.address or None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=None if self.address else False,
            )
        try:
            self._run(ray, tasks, jobs, settings, progress, stages, write)
        finally:
            if not was_running:
                ray.shutdown()

    def _run(
        self,
        ray: Any,
        tasks: list[_Task],
        jobs: Sequence[Job],
        settings: ExtractionSettings,
        progress: Progress,
        stages: Stages,
        write: WriteShard,
    ) -> None:
        is_gpu = settings.device.startswith("cuda")
        kind = "GPU" if is_gpu else "CPU"
        available = float(ray.cluster_resources().get(kind, 0))
        if not available:
            raise DeviceError(
                f"the Ray cluster has no {kind}; say --device cpu, or start it on machines that do"
            )
        n_workers = self.n_workers or max(1, int(available))
        # more workers than processors share them; a whole one each would wait for ever
        share = min(1.0, available / n_workers)
        stages.n_decoders = n_workers
        n_decoders = settings.n_decoders or max(1, (os.cpu_count() or 1) // n_workers)
        recipes = [_Recipe(type(j.backbone), j.backbone.options, j.backbone.wanted) for j in jobs]
        shared = ray.put(
            (
                [
                    replace(job, backbone=_SENT_APART, kept={}, done={}, work=None, shards=())
                    for job in jobs
                ],
                recipes,
                replace(
                    settings, device="cuda" if is_gpu else settings.device, n_decoders=n_decoders
                ),
                _torch_threads(),
            )
        )
        actor_class = ray.remote(**{f"num_{kind.lower()}s": share})(_Worker)
        waiting = [(task, 1) for task in reversed(tasks)]
        running: dict[Any, tuple[Any, _Task, int]] = {}

        def start(worker: Any) -> None:
            if waiting:
                task, n_try = waiting.pop()
                running[worker.embed.remote(task)] = (worker, task, n_try)

        workers = [actor_class.remote([shared]) for _ in range(min(n_workers, len(tasks)))]
        try:
            self.pids = ray.get([worker.pid.remote() for worker in workers])
        except ray.exceptions.RayActorError as error:
            last_line = str(error).strip().splitlines()[-1]
            raise BackboneUnavailable(
                f"a Ray worker cannot start: {last_line}; every machine needs the same packages"
            ) from None
        for worker in workers:
            start(worker)
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            worker, task, n_try = running.pop(reference)
            try:
                found, theirs = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                if n_try == _TRIES:
                    example = jobs[0].sources.ids[task.positions[0]]
                    raise StoreError(
                        f"{_TRIES} workers died over the shard of clip {example}: "
                        f"{str(error).splitlines()[0]}; run it without --engine ray to see why"
                    ) from None
                waiting.append((task, n_try + 1))
                start(actor_class.remote([shared]))
                continue
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, BsdkitError):
                    raise error.cause from None
                raise
            for (index, number), (rows, silent) in zip(task.shards, found, strict=True):
                write(jobs[index], number, rows, silent)
                progress.advance(jobs[index].label, len(task.positions))
            _add(stages, theirs)
            start(worker)


def _tasks(jobs: Sequence[Job]) -> list[_Task]:
    """The shards to do; those of the same clips go together, so that a file is decoded once."""
    grouped: dict[tuple[bool, bytes], tuple[IntArray, list[tuple[int, int]]]] = {}
    for index, job in enumerate(jobs):
        for number, shard in job.todo():
            key = (job.spec.kind == "text", shard.tobytes())
            grouped.setdefault(key, (shard, []))[1].append((index, number))
    return [_Task(shard, tuple(which)) for shard, which in grouped.values()]


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _add(stages: Stages, theirs: Stages) -> None:
    for name in (f.name for f in fields(Stages)):
        if name in ("decode", "wait", "model", "n_clips", "audio_seconds"):
            setattr(stages, name, getattr(stages, name) + getattr(theirs, name))
    for backbone, seconds in theirs.model_by_backbone.items():
        so_far = stages.model_by_backbone.get(backbone, 0.0)
        stages.model_by_backbone[backbone] = so_far + seconds


class _Worker:
    """What runs in a worker: backbones loaded once, one shard after another."""

    def __init__(self, shared: list[Any]) -> None:
        import ray
        import torch

        self._jobs, recipes, self._settings, n_threads = ray.get(shared[0])
        # as many threads as the process that asked: another number sums in another order
        torch.set_num_threads(n_threads)
        made: dict[_Recipe, Backbone] = {}
        self._backbones = []
        for recipe in recipes:
            if recipe not in made:
                made[recipe] = recipe.cls(recipe.options)
                made[recipe].wanted = recipe.wanted
            self._backbones.append(made[recipe])

    def pid(self) -> int:
        """The worker's process id."""
        return os.getpid()

    def embed(self, task: _Task) -> tuple[list[tuple[dict[str, FeatureRows], list[str]]], Stages]:
        """The rows by output and the silent clips of a task's shards, and where the time went."""
        jobs = []
        for index, _ in task.shards:
            backbone = self._backbones[index]
            if not backbone.device:
                backbone.prepare(self._settings.device)
            for output, spec in self._jobs[index].specs.items():
                difference = first_difference(backbone.spec(output).to_dict(), spec.to_dict())
                if difference:
                    field, found, expected = difference
                    raise StaleStore(
                        f"a worker has {backbone.identity} with {field} = {found!r}, expected "
                        f"{expected!r}: put the same weights and version on every machine"
                    )
            shards = (np.array(task.positions),)
            jobs.append(replace(self._jobs[index], backbone=backbone, shards=shards, done={}))
        results: dict[int, tuple[dict[str, FeatureRows], list[str]]] = {}
        places = {id(job): place for place, job in enumerate(jobs)}

        def keep(job: Job, number: int, rows: dict[str, FeatureRows], silent: list[str]) -> None:
            results[places[id(job)]] = (rows, silent)

        stages = Stages()
        run_jobs(jobs, self._settings, Progress(), stages, keep)
        return [results[place] for place in range(len(jobs))], stages
