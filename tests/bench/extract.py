"""How near extraction comes to its model alone, and to a plain loop over files.

    .venv/bin/python tests/bench/extract.py [--backbones a,b] [--device cuda] [--json FILE]

For each backbone that can run here: clips a second of the model alone on the batches that
extraction makes, of the real extraction from sound files into a store, and of the loop that a
script would have, one file at a time. Nothing is asserted of a time; what is asserted, before
anything is timed, is that all of them give the same embeddings. Where the published weights are
not at hand, random ones of the published sizes take as long, and the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.util
import io
import itertools
import json
import math
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# As the command line does, and before torch is imported: idle threads sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

from bsdkit.audio import WindowCutter, resample, window_lengths
from bsdkit.backbones.base import Backbone, BackboneOptions, BackboneSpec, FloatArray, IntArray
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.backbones.registry import backbone_classes, get_backbone
from bsdkit.dataset import Clips, inspect_audio, read_dataset
from bsdkit.device import check_device
from bsdkit.errors import BsdkitError
from bsdkit.extract import ExtractionReport, ExtractionSettings, extract
from bsdkit.extract.shard import pinned_buffer
from bsdkit.store.feature import read_feature
from bsdkit.store.store import Store
from bsdkit.text import get_template

# Decoding processes import this file once more, so torch, rich and what needs them come later.
if TYPE_CHECKING:
    from measure import Row
    from rich.console import Console
    from torch import nn

RATE = 44_100
"""Hz of the made-up sound files."""

QUANTILES = {0.0: 0.3, 0.5: 4.0, 1.0: 30.0}
"""Seconds of the shortest, the middle and the longest clip of a sound library; log-uniform
between them."""

MOST_CLIPS = {"cpu": 64, "cuda": 2000}
FEWEST_CLIPS = 4
GIGAFLOPS_A_PASS = {"cpu": 200.0, "cuda": math.inf}
"""What one pass over the clips may cost, so that a heavy model gets fewer of them."""

LOOP_CLIPS = {"cpu": 64, "cuda": 200}
"""Clips of the plain loop, the first of all; its rate does not depend on their number."""

MATRIX = {"cpu": 2048, "cuda": 8192}
"""Rows of the square matrices whose product shows what the device can do."""

N_PRODUCTS = 5
"""Products of each kind before, and after, the rounds of a backbone."""

TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference of two vectors, as a share of their length, by precision: a batch of
another size adds in another order. Stores in float16 round by 0.0005 of it."""

TOLERANCE_OF_TF32 = 5e-3
"""The same for float32 on a GPU, whose convolutions round to the ten bits of TF32."""

OVERHEAD_TARGET, SPEEDUP_TARGET = 1.1, 8.0

N_TOGETHER = 3
"""Backbones in one pass, the cheapest of those that ran."""

EmbedWindows = Callable[[FloatArray, IntArray], FloatArray]
"""Vectors [n, dim] of the windows [n, samples] of one clip and their real samples [n]."""


@dataclass(frozen=True)
class Setting:
    """What all measurements share.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        precision: number type of matrix products.
        n_clips: clips; None for as many as suit the backbone and the device.
        seconds: length of every clip; None for lengths as in a sound library.
        n_rounds: how often each side runs.
        weights: weight file or folder by backbone, besides those in the weights' folder.
        folder: for everything that is made.
    """

    device: str
    precision: str
    n_clips: int | None
    seconds: float | None
    n_rounds: int
    weights: Mapping[str, Path]
    folder: Path

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``."""
        return "cpu" if self.device == "cpu" else "cuda"

    @property
    def tolerance(self) -> float:
        """See `TOLERANCE`."""
        if self.kind == "cuda" and self.precision == "float32":
            return TOLERANCE_OF_TF32
        return TOLERANCE[self.precision]


@dataclass(frozen=True)
class Loop:
    """How a script would embed a clip.

    Attributes:
        name: whose network it runs.
        embed: embeds the windows of a clip.
        note: why it is not the backbone's own package, where there is one.
        longest: seconds of the longest clip whose vector is comparable with bsdkit's.
    """

    name: str
    embed: EmbedWindows
    note: str = ""
    longest: float = math.inf


@dataclass(frozen=True)
class Line:
    """One line of the table; times are seconds a clip, medians of the rounds.

    Attributes:
        backbone: its name.
        weights: ``real`` or ``random``.
        n_clips: clips extracted.
        audio_seconds: seconds of audio in them.
        n_windows: windows that the model gets.
        gigaflops: operations (1e9) of one pass, as torch counts them.
        rate: 1e9 operations a second of the model alone.
        peak: the same of a large matrix product on the device, the fastest of the run.
        loop: whose network the plain loop runs.
        loop_note: why it is not the backbone's own package, where there is one.
        n_loop_clips: clips of the plain loop.
        padding_difference: how far whole zero-padded windows take a clip's vector from
            bsdkit's at the most, as a share of its length.
        difference: the same where both have the same windows; what was asserted.
        overhead: extraction beside the model alone.
        speedup: extraction beside the plain loop.
        stages: share of the wall clock in which each stage of extraction was at work.
        bottleneck: the stage that the others waited for.
    """

    backbone: str
    weights: str
    n_clips: int
    audio_seconds: float
    n_windows: int
    gigaflops: float
    rate: float
    peak: float
    loop: str
    loop_note: str
    n_loop_clips: int
    padding_difference: float
    difference: float
    overhead: Row
    speedup: Row
    stages: dict[str, float]
    bottleneck: str

    @property
    def share(self) -> float:
        """Share of the peak that the model alone reaches."""
        return self.rate / self.peak


@dataclass
class Batches:
    """The batches that an extraction gave its model, in order, and what came out.

    Attributes:
        audio: [n, samples] of each, in page-locked memory where a GPU fetches it.
        valid: real samples [n] of each.
        vectors: by output, of each.
    """

    audio: list[FloatArray] = field(default_factory=list)
    valid: list[IntArray] = field(default_factory=list)
    vectors: list[dict[str, FloatArray]] = field(default_factory=list)

    @contextlib.contextmanager
    def recorded(self, backbone: Backbone) -> Iterator[None]:
        """Keeps what the backbone is asked to embed meanwhile."""
        embed = backbone.embed
        is_gpu = backbone.device.startswith("cuda")

        def record(audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
            vectors = embed(audio, valid)
            kept = pinned_buffer(audio.shape) if is_gpu else np.empty_like(audio)
            kept[:] = audio
            self.audio.append(kept)
            self.valid.append(valid.copy())
            self.vectors.append(vectors)
            return vectors

        backbone.embed = record  # type: ignore[method-assign]
        try:
            yield
        finally:
            del backbone.embed  # the class's own again

    @property
    def n_windows(self) -> int:
        """Windows in all of them."""
        return sum(map(len, self.audio))


def make_clips(folder: Path, n_clips: int, seconds: float | None) -> Clips:
    """A dataset of made-up sounds: 16-bit WAV files at 44.1 kHz, two of three in stereo.

    The same numbers of clips and seconds give the same files. The lengths of the first clips,
    of however many, are spread like those of all.
    """
    import soundfile

    folder = folder / f"{n_clips}-clips"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        longest = max(QUANTILES.values()) if seconds is None else seconds
        noise = rng.standard_normal((2 * round(longest * RATE) + 1, 2), np.float32)
        for i in range(n_clips):
            n = max(1, round((clip_seconds(i) if seconds is None else seconds) * RATE))
            first = int(rng.integers(len(noise) - n))
            n_channels = 1 if i % 3 == 2 else 2
            pitch, level = 10 ** rng.uniform(1.7, 3.9), 10 ** rng.uniform(-2.5, -0.7)
            tone = np.sin(np.arange(n, dtype=np.float32) * np.float32(2 * np.pi * pitch / RATE))
            sound = level * noise[first : first + n, :n_channels] + 0.2 * tone[:, None]
            samples = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
            soundfile.write(folder / f"{i:05d}.wav", samples, RATE)
    return inspect_audio(read_dataset(folder, "flat")[0])


def clip_seconds(i: int) -> float:
    """Seconds of the clip of that number: a golden-ratio sequence through `QUANTILES`."""
    place = (0.5 + i * (math.sqrt(5) - 1) / 2) % 1
    return float(np.exp(np.interp(place, list(QUANTILES), np.log(list(QUANTILES.values())))))


def audio_outputs(backbone: Backbone) -> list[str]:
    """The outputs that embed sound and cost nothing extra."""
    return [
        output
        for output, kind in backbone.outputs.items()
        if kind == "audio" and output not in backbone.extra_outputs
    ]


def random_network(backbone: CheckpointBackbone) -> nn.Module:
    """The backbone's network at its published size, not trained; always the same numbers.

    Raises:
        BsdkitError: the backbone's module has no such network.
    """
    import torch

    module = importlib.import_module(type(backbone).__module__)
    if not hasattr(module, "published_network"):
        raise BsdkitError("its weights are not here, nor a network of their size without them")
    torch.manual_seed(0)
    build = module.published_network
    # the two modules whose backbones differ in size ask for it
    for size in ("architecture", "width"):
        if hasattr(backbone, size):
            return build(getattr(backbone, size))  # type: ignore[no-any-return]
    return build()  # type: ignore[no-any-return]


def prepare(name: str, setting: Setting) -> tuple[Backbone, str]:
    """A loaded backbone, and whether its weights are ``real`` or ``random``.

    Nothing is fetched.

    Raises:
        BsdkitError: it cannot run here; the message says why.
    """
    options = BackboneOptions(weights=setting.weights.get(name), precision=setting.precision)  # type: ignore[arg-type]
    backbone = get_backbone(name, options)
    backbone.wanted = frozenset(audio_outputs(backbone))
    if isinstance(backbone, CheckpointBackbone) and backbone.weights_path() is None:
        for module, command in backbone.packages.items():
            if importlib.util.find_spec(module) is None:
                raise BsdkitError(f"it needs {module}: {command}")
        if options.weights is not None:
            backbone.require()
        # numbers that nobody trained may be too small for the store's float16
        backbone.options = replace(options, dtype="float32")
        backbone.attach(random_network(backbone), setting.device)
        return backbone, "random"
    backbone.require()
    backbone.load(setting.device)
    return backbone, "real"


def reason_to_skip(name: str, setting: Setting) -> str:
    """Why a backbone is left out before anything is loaded; empty if it is not."""
    cls = backbone_classes().get(name)
    if name in setting.weights or cls is None or issubclass(cls, CheckpointBackbone):
        return ""
    if name.endswith(":"):
        return f"it stands for many: name one, e.g. --backbones {name}MODEL"
    if cls.card.fetches:
        return f"its weights are not given: --weights {name}=FOLDER"
    return ""


def windows_of(
    samples: FloatArray, spec: BackboneSpec, *, is_whole: bool
) -> list[tuple[FloatArray, IntArray]]:
    """Windows [n, samples] of a clip with the real samples [n] in each, one entry a length.

    Args:
        samples: mono samples at the spec's rate.
        spec: how windows are cut.
        is_whole: whether every window is completed to its whole length, as scripts do, and not
            to the shorter lengths that extraction has for short clips.
    """
    shortest = None
    if spec.shortest_seconds is not None and not is_whole:
        shortest = round(spec.shortest_seconds * (spec.sample_rate or 0))
    lengths = window_lengths(spec.window_samples, shortest)
    cutter = WindowCutter(spec.window_samples, spec.hop_samples, spec.padding or "zeros", lengths)
    cut = [(part.copy(), n) for part, n in itertools.chain(cutter.push(samples), cutter.finish())]
    groups = [list(group) for _, group in itertools.groupby(cut, lambda pair: len(pair[0]))]
    return [
        (np.stack([window for window, _ in group]), np.array([n for _, n in group], np.int64))
        for group in groups
    ]


def run_loop(
    paths: Sequence[Path | None], spec: BackboneSpec, embed: EmbedWindows, *, is_whole: bool = True
) -> FloatArray:
    """Vectors [n, dim] of sound files by the loop of a script: one after another, no batches.

    All windows of a clip go through the network together, which flatters the loop.
    """
    import soundfile

    vectors = np.zeros((len(paths), spec.dim))
    for vector, path in zip(vectors, paths, strict=True):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = resample(samples.mean(axis=1), rate, spec.sample_rate or rate)
        windows = windows_of(mono, spec, is_whole=is_whole)
        found = np.concatenate([embed(audio, valid) for audio, valid in windows])
        weights = np.concatenate([valid for _, valid in windows])
        vector[:] = np.average(found.astype(np.float64), axis=0, weights=weights)
        if spec.normalize == "l2":
            vector /= np.linalg.norm(vector)
    return vectors.astype(np.float32)


def plain_loop(backbone: Backbone, output: str) -> Loop:
    """The loop with the backbone's own package and our weights in it, where it imports."""
    makers = {"passt": _passt_loop, "clap": _laion_loop}
    package = {"passt": "hear21passt", "clap": "laion_clap"}
    family = backbone.name.partition("-")[0]
    own = Loop("bsdkit's network", lambda audio, valid: backbone.embed(audio, valid)[output])
    if family not in makers or not isinstance(backbone, CheckpointBackbone):
        return own
    if importlib.util.find_spec(package[family]) is None:
        return Loop(own.name, own.embed, f"{package[family]} is not installed")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # both print while they load
            return makers[family](backbone)
    except Exception as error:  # whatever a package of others does, bsdkit's network serves
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Loop(own.name, own.embed, f"{package[family]} does not load: {first_line}")


def _passt_loop(backbone: CheckpointBackbone) -> Loop:
    """hear21passt as its README uses it: a basic model that gives the embedding alone."""
    import torch
    from hear21passt.models.passt import get_model
    from hear21passt.models.preprocess import AugmentMelSTFT
    from hear21passt.wrapper import PasstBasicWrapper

    # get_basic_model would fetch weights; these are its arguments
    mel = AugmentMelSTFT(
        n_mels=128, sr=32000, win_length=800, hopsize=320, n_fft=1024, freqm=48, timem=192,
        htk=False, fmin=0.0, fmax=None, norm=1, fmin_aug_range=10, fmax_aug_range=2000,
    )  # fmt: skip
    network = get_model(arch="passt_s_swa_p16_128_ap476", pretrained=False)
    network.load_state_dict(backbone.network.state_dict())
    model = PasstBasicWrapper(mel=mel, net=network, mode="embed_only").eval().to(backbone.device)

    def embed(audio: FloatArray, valid: IntArray) -> FloatArray:
        # its network prints, and warns, that clips under ten seconds have fewer positions
        with (
            torch.no_grad(),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
            backbone.forward(),
        ):
            vectors: FloatArray = model(torch.from_numpy(audio).to(backbone.device)).cpu().numpy()
        return vectors

    return Loop("hear21passt", embed)


def _laion_loop(backbone: CheckpointBackbone) -> Loop:
    """laion_clap's embedding of sound data, which completes and quantises clips itself."""
    import torch
    from laion_clap import CLAP_Module

    from bsdkit.backbones.laion import transformers_names

    architecture: Any = backbone.architecture  # type: ignore[attr-defined]
    model = CLAP_Module(
        enable_fusion=architecture.is_fusion,
        device=backbone.device,
        amodel="HTSAT-tiny" if architecture.patch_width == 96 else "HTSAT-base",
    )
    ours = backbone.network.state_dict()
    with torch.no_grad():
        for name, tensor in model.model.state_dict().items():
            names = transformers_names(name) if name.startswith("audio_") else ()
            if names:
                parts = [ours[theirs] for theirs in names]
                tensor.copy_(torch.cat(parts) if len(parts) > 1 else parts[0])

    def embed(audio: FloatArray, valid: IntArray) -> FloatArray:
        real = [window[: max(n, 1)] for window, n in zip(audio, valid, strict=True)]
        with torch.no_grad(), backbone.forward():
            vectors: FloatArray = model.get_audio_embedding_from_data(x=real, use_tensor=False)
        return vectors

    # Each window's vector has length 1 before the mean, and longer clips are cut at random.
    return Loop("laion_clap", embed, longest=10.0)


def count_gigaflops(backbone: Backbone, batches: Batches) -> float:
    """1e9 operations of one pass over batches, as torch counts them, front end included.

    One window of each length is counted and multiplied. Attention is counted as the matrix
    products that it consists of, for torch knows no count of its fused forms on a CPU.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # the layers that run through oneDNN are matrix products too, which torch does not count
    counts: dict[object, Callable[..., int]] = {}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        counts[torch.ops.mkldnn._linear_pointwise] = _linear_operations
    of_length: dict[int, int] = {}
    total = 0
    for audio, valid in zip(batches.audio, batches.valid, strict=True):
        length = audio.shape[1]
        if length not in of_length:
            counting = FlopCounterMode(display=False, custom_mapping=counts)
            with counting as counter, sdpa_kernel(SDPBackend.MATH):
                backbone.embed(audio[:1], valid[:1])
            of_length[length] = counter.get_total_flops()
        total += len(audio) * of_length[length]
    return total / 1e9


def _linear_operations(
    x: Sequence[int], weight: Sequence[int], *rest: object, **more: object
) -> int:
    """Operations of a linear layer, from the shapes of its input and weight."""
    return 2 * math.prod(x) * weight[0]


def measure_peak(setting: Setting) -> float:
    """1e9 operations a second of a large matrix product on the device, the fastest of several.

    On a CPU torch has two libraries for them, and which one is faster depends on who made the
    processor: one serves ``mm``, the other convolutions. A convolution of kernel 1 is a matrix
    product too.
    """
    import torch

    n = MATRIX[setting.kind]
    dtype = getattr(torch, setting.precision)
    left, right = (torch.randn(n, n, device=setting.device).to(dtype) for _ in range(2))
    pixels = left[None, None].permute(0, 3, 1, 2)  # [1, n channels, 1, n], channels last
    kernel = right[:, :, None, None].contiguous(memory_format=torch.channels_last)

    def multiply() -> None:
        torch.mm(left, right)
        if setting.kind == "cuda":
            torch.cuda.synchronize()

    def convolve() -> None:
        torch.nn.functional.conv2d(pixels, kernel)

    fastest = math.inf
    for product in (multiply, convolve) if setting.kind == "cpu" else (multiply,):
        for _ in range(N_PRODUCTS):
            start = time.perf_counter()
            product()
            fastest = min(fastest, time.perf_counter() - start)
    return 2 * n**3 / 1e9 / fastest


def difference(vectors: FloatArray, others: FloatArray) -> float:
    """The largest distance of two vectors [n, dim], as a share of the first's length."""
    vectors, others = vectors.astype(np.float64), others.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    return float((np.linalg.norm(vectors - others, axis=1) / lengths).max(initial=0.0))


def check_same(what: str, vectors: FloatArray, others: FloatArray, tolerance: float) -> float:
    """The difference of two sides' vectors, see `difference`.

    Raises:
        AssertionError: they are not the same, or those of two clips are.
    """
    found = difference(vectors, others)
    assert found <= tolerance, f"{what}: vectors differ by {found:.2g} of their length"
    # equal sides show nothing where a network gives the same for every clip
    apart = difference(vectors[:1], vectors[-1:])
    assert len(vectors) == 1 or apart > 2 * found, f"{what}: all clips have one vector"
    return found


def embeddings(report: ExtractionReport, clips: Clips) -> FloatArray:
    """What an extraction stored [n, dim], in the order of the clips."""
    rows = read_feature(report.path)
    order = {clip: i for i, clip in enumerate(rows.ids)}
    return rows.embedding[[order[clip] for clip in clips.ids]].astype(np.float32)


class Extraction:
    """The real extraction of some backbones, each time into a store of its own.

    Stores are made beforehand, for a clips table is not what is measured.

    Args:
        backbones: loaded.
        clips: the clips.
        setting: what all measurements share.
        n_runs: how often it will run.
    """

    def __init__(
        self, backbones: Sequence[Backbone], clips: Clips, setting: Setting, n_runs: int
    ) -> None:
        self.wanted = [(backbone, audio_outputs(backbone)) for backbone in backbones]
        self.clips = clips
        self.reports: list[ExtractionReport] = []
        self._settings = ExtractionSettings(device=setting.device)
        self._template = get_template("title-tags-description")
        self._folder = Path(tempfile.mkdtemp(prefix="stores-", dir=setting.folder))
        self._stores = [Store.create(self._folder / str(i), clips) for i in range(n_runs)]

    def __call__(self) -> None:
        self.reports = extract(
            self.wanted, self.clips, self._stores.pop(), self._template, self._settings
        )

    @property
    def stages(self) -> dict[str, float]:
        """Share of the last run's wall clock in which each stage was at work."""
        stages = self.reports[0].stages
        busy = {
            "decode": stages.decode / max(stages.n_decoders, 1),
            "model": stages.model,
            "write": stages.write,
        }
        return {name: seconds / stages.seconds for name, seconds in busy.items()}

    def clean(self) -> None:
        """Removes the stores."""
        shutil.rmtree(self._folder)


def clips_for(gigaflops: float, setting: Setting) -> int:
    """How many clips a backbone gets, by the cost of ten seconds of audio."""
    if setting.n_clips is not None:
        return setting.n_clips
    fitting = GIGAFLOPS_A_PASS[setting.kind] / max(gigaflops, 1e-3)
    return int(min(max(fitting, FEWEST_CLIPS), MOST_CLIPS[setting.kind]))


def cost_of_ten_seconds(backbone: Backbone) -> float:
    """1e9 operations for ten seconds of audio, in windows as they overlap."""
    spec = backbone.spec(audio_outputs(backbone)[0])
    window = Batches(
        [np.full((1, spec.window_samples), 0.1, np.float32)], [np.array([spec.window_samples])]
    )
    return count_gigaflops(backbone, window) * 10 / (spec.hop_seconds or 10)


def measure_backbone(name: str, setting: Setting) -> Line:
    """The line of one backbone.

    Raises:
        BsdkitError: it cannot run here.
        AssertionError: two sides give different embeddings.
    """
    from measure import alternate, compare

    backbone, weights = prepare(name, setting)
    output = audio_outputs(backbone)[0]
    spec = backbone.spec(output)
    n_clips = clips_for(cost_of_ten_seconds(backbone), setting)
    clips = make_clips(setting.folder, n_clips, setting.seconds)
    n_loop = min(n_clips, LOOP_CLIPS[setting.kind])
    loop = plain_loop(backbone, output)

    # Before anything is timed: the same embeddings, which warms all sides up as well.
    run = Extraction([backbone], clips, setting, setting.n_rounds + 1)
    batches = Batches()
    with batches.recorded(backbone):
        run()
    stored = embeddings(run.reports[0], clips)[:n_loop]
    for audio, valid, vectors in zip(batches.audio, batches.valid, batches.vectors, strict=True):
        again = backbone.embed(audio, valid)
        for name_of, found in vectors.items():
            worst = difference(found, again[name_of])
            assert worst <= setting.tolerance, f"{name}: the model alone differs by {worst:.2g}"
    is_short = clips.duration[:n_loop] <= loop.longest
    looped = run_loop(
        [path for path, short in zip(clips.audio[:n_loop], is_short, strict=True) if short],
        spec,
        loop.embed,
        is_whole=False,
    )
    what = f"{name}, {loop.name} one file at a time"
    found = check_same(what, stored[is_short], looped, setting.tolerance)

    whole: list[FloatArray] = []

    def forward() -> None:
        for audio, valid in zip(batches.audio, batches.valid, strict=True):
            backbone.embed(audio, valid)

    peak = measure_peak(setting)
    seconds = alternate(
        {
            "forward": forward,
            "extract": run,
            "loop": lambda: whole.append(run_loop(clips.audio[:n_loop], spec, loop.embed)),
        },
        setting.n_rounds,
    )
    each = {
        side: [value / n for value in seconds[side]]
        for side, n in (("forward", n_clips), ("extract", n_clips), ("loop", n_loop))
    }
    gigaflops = count_gigaflops(backbone, batches)
    line = Line(
        backbone=name,
        weights=weights,
        n_clips=n_clips,
        audio_seconds=float(clips.duration.sum()),
        n_windows=batches.n_windows,
        gigaflops=gigaflops,
        rate=gigaflops / statistics.median(seconds["forward"]),
        peak=max(peak, measure_peak(setting)),
        loop=loop.name,
        loop_note=loop.note,
        n_loop_clips=n_loop,
        padding_difference=difference(stored[is_short], whole[-1][is_short]),
        difference=found,
        overhead=compare(
            f"{name}: extraction against its model alone",
            each["extract"],
            each["forward"],
            "seconds a clip",
            is_speedup=False,
            target=OVERHEAD_TARGET,
        ),
        speedup=compare(
            f"{name}: extraction against a plain loop by {loop.name}",
            each["extract"],
            each["loop"],
            "seconds a clip",
            is_speedup=True,
            target=SPEEDUP_TARGET if setting.kind == "cuda" else None,
        ),
        stages=run.stages,
        bottleneck=run.reports[0].stages.bottleneck,
    )
    run.clean()
    return line


def measure_together(names: Sequence[str], setting: Setting) -> Row:
    """Several backbones in one pass against a pass of each.

    Raises:
        AssertionError: one pass does not give the very numbers of single passes.
    """
    from measure import alternate, compare

    loaded = {name: prepare(name, setting)[0] for name in names}
    n_clips = min(clips_for(cost_of_ten_seconds(backbone), setting) for backbone in loaded.values())
    clips = make_clips(setting.folder, n_clips, setting.seconds)
    n_runs = setting.n_rounds + 1
    together = Extraction(list(loaded.values()), clips, setting, n_runs)
    single = {name: Extraction([b], clips, setting, n_runs) for name, b in loaded.items()}
    together()
    for run in single.values():
        run()
    apart = [report for run in single.values() for report in run.reports]
    for report, other in zip(together.reports, apart, strict=True):
        worst = difference(embeddings(report, clips), embeddings(other, clips))
        assert worst <= setting.tolerance, f"{report.feature} differs by {worst:.2g} in one pass"
    seconds = alternate({"": together, **single}, setting.n_rounds)
    for run in (together, *single.values()):
        run.clean()
    sums = [sum(seconds[name][i] for name in names) for i in range(setting.n_rounds)]
    return compare(
        f"{', '.join(names)} in one pass against the sum of single passes",
        seconds[""],
        sums,
        f"{n_clips} clips, {clips.duration.sum():.0f} s of audio, decoded once instead of "
        f"{len(names)} times",
        is_speedup=False,
    )


def release(device: str) -> None:
    """Gives back the memory of a backbone that nobody refers to any more."""
    import torch

    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def rate_in_words(seconds_a_clip: float) -> str:
    """Clips a second with three digits."""
    rate = 1 / seconds_a_clip
    return f"{float(f'{rate:.3g}'):,.0f}" if rate >= 100 else f"{rate:.3g}"


def print_lines(console: Console, lines: Sequence[Line]) -> None:
    """The table, and under it what does not fit into it."""
    from rich.table import Table
    from run import in_words

    table = Table(show_lines=True)
    table.add_column("backbone\n(weights)", no_wrap=True)
    for heading in (
        "clips\n(seconds)",
        "model alone\nclips/s",
        "end to end\nclips/s",
        f"time ratio\nat most {OVERHEAD_TARGET:g}x",
        "share of\nmatrix peak",
        "plain loop\nclips/s",
        f"speed-up, at\nleast {SPEEDUP_TARGET:g}x on GPU",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("loop runs")
    table.add_column("stages at work")
    for line in lines:
        cells = []
        for row in (line.overhead, line.speedup):
            low, high = map(in_words, row.spread)
            verdict = {None: "", True: "\n[green]met[/]", False: "\n[yellow]missed[/]"}[row.is_met]
            cells.append(f"[bold]{in_words(row.ratio)}[/]\n{low} to {high}{verdict}")
        table.add_row(
            f"{line.backbone}\n({line.weights})",
            f"{line.n_clips}\n({line.audio_seconds:.0f} s)",
            rate_in_words(line.overhead.other_seconds),
            rate_in_words(line.overhead.seconds),
            cells[0],
            f"{line.share:.0%}\nof {line.peak:,.0f}",
            rate_in_words(line.speedup.other_seconds),
            cells[1],
            line.loop,
            "\n".join(f"{stage} {share:.0%}" for stage, share in line.stages.items()),
        )
    console.print(table)
    notes = [f"{line.backbone}: {line.loop_note}" for line in lines if line.loop_note]
    notes += [
        f"{line.backbone}: whole zero-padded windows change a clip's vector by up to "
        f"{line.padding_difference:.0%} of its length, for the model sees the padding"
        for line in lines
        if line.padding_difference > 0.01
    ]
    for note in notes:
        console.print(note, highlight=False)


def weights_given(texts: Sequence[str]) -> dict[str, Path]:
    """Weights by backbone of arguments such as ``cp-clap=clap.ckpt``.

    Raises:
        BsdkitError: one names no backbone or no path.
    """
    given = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not path:
            raise BsdkitError(f"--weights {text}: expected BACKBONE=PATH")
        given[get_backbone(name).identity] = Path(path)
    return given


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what cannot be used is refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbones", help="names with commas between; default: all that run")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--clips", type=int, help="clips of every backbone")
    parser.add_argument("--seconds", type=float, help="length of every clip; default: 0.3 to 30")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument("--precision", default="float32", choices=list(TOLERANCE))
    parser.add_argument("--weights-folder", type=Path, help="where weight files are looked for")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="BACKBONE=PATH", help="may be repeated"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, row by row")
    parser.add_argument(
        "--budget", type=float, default=math.inf,
        help="seconds after which no further backbone is begun; the cheapest come first",
    )  # fmt: skip
    chosen = parser.parse_args(arguments)
    for name in ("clips", "seconds", "rounds"):
        if getattr(chosen, name) is not None and getattr(chosen, name) <= 0:
            parser.error(f"--{name} {getattr(chosen, name)}: expected more than 0")
    try:
        check_device(chosen.device)
        chosen.weights = weights_given(chosen.weights)
        if chosen.backbones is None:
            chosen.backbones = [
                name for name, cls in backbone_classes().items() if "audio" in cls.outputs.values()
            ]
        else:
            chosen.backbones = [name.strip() for name in chosen.backbones.split(",")]
            for name in chosen.backbones:
                if "audio" not in get_backbone(name).outputs.values():
                    parser.error(f"{name} embeds no audio")
    except BsdkitError as error:
        parser.error(str(error))
    return chosen


@contextlib.contextmanager
def weights_looked_for(folder: Path | None) -> Iterator[None]:
    """Has weight files looked for in a folder meanwhile."""
    before = os.environ.get("BSDKIT_WEIGHTS")
    if folder is not None:
        os.environ["BSDKIT_WEIGHTS"] = str(folder)
    try:
        yield
    finally:
        if folder is not None:
            if before is None:
                del os.environ["BSDKIT_WEIGHTS"]
            else:
                os.environ["BSDKIT_WEIGHTS"] = before


def facts_of(device: str) -> dict[str, str | int | float]:
    """What the figures were measured on."""
    import torch
    from measure import machine

    facts = machine()
    if device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = str(torch.version.cuda)
    return facts


def cheapest_first(names: Sequence[str]) -> list[str]:
    """Backbones by what ten seconds of audio cost them; those that do not say, last."""
    classes = backbone_classes()

    def cost(name: str) -> float:
        cls = classes.get(name)
        known = cls.card.gigaflops if cls is not None else None
        return math.inf if known is None else known

    return sorted(names, key=cost)


def _say_line(console: Console, line: Line, seconds: float) -> None:
    """One measured backbone in a line, as soon as it is there."""
    console.print(
        f"{seconds:5.0f} s  {line.backbone}: {line.n_clips} clips, model alone "
        f"{rate_in_words(line.overhead.other_seconds)} clips/s, end to end "
        f"{rate_in_words(line.overhead.seconds)}, plain loop "
        f"{rate_in_words(line.speedup.other_seconds)}; {line.share:.0%} of the matrix peak",
        highlight=False,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the backbones asked for, prints the table, writes the figures where wanted."""
    chosen = read_arguments(arguments)
    from rich.console import Console
    from run import in_words, time_in_words

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a log has no width; the default of 80 breaks every line
    facts = facts_of(chosen.device)
    gpu = "{gpu} (CUDA {cuda}), ".format(**facts) if "gpu" in facts else ""
    console.print(
        gpu
        + "{cpu}, {cores} cores, {torch_threads} torch threads, load {load_average}, {system}; "
        "bsdkit {bsdkit}, Python {python}, torch {torch}, numpy {numpy}".format(**facts)
        + f"; on {chosen.device} in {chosen.precision}",
        highlight=False,
    )
    start = time.perf_counter()
    lines, skipped, together = [], {}, None
    wrong: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="bsdkit-bench-") as folder,
        weights_looked_for(chosen.weights_folder),
    ):
        setting = Setting(
            device=chosen.device,
            precision=chosen.precision,
            n_clips=chosen.clips,
            seconds=chosen.seconds,
            n_rounds=chosen.rounds,
            weights=chosen.weights,
            folder=Path(folder),
        )
        for name in cheapest_first(chosen.backbones):
            skipped[name] = reason_to_skip(name, setting)
            if not skipped[name] and time.perf_counter() - start > chosen.budget:
                skipped[name] = f"not measured within --budget {chosen.budget:g}"
            if skipped[name]:
                continue
            with console.status(f"measuring {name}"):
                try:
                    lines.append(measure_backbone(name, setting))
                    _say_line(console, lines[-1], time.perf_counter() - start)
                    if chosen.json:  # what is measured survives a time limit
                        rows = [{**asdict(line), "share": line.share} for line in lines]
                        unfinished = {"machine": facts, "lines": rows, "is_whole": False}
                        chosen.json.write_text(json.dumps(unfinished, indent=2) + "\n", "utf-8")
                except BsdkitError as error:
                    skipped[name] = str(error)
                except AssertionError as error:
                    wrong.append(str(error))
                release(chosen.device)
        cheapest = sorted(lines, key=lambda line: line.overhead.other_seconds)[:N_TOGETHER]
        if len(cheapest) > 1 and time.perf_counter() - start < chosen.budget:
            with console.status("measuring several in one pass"):
                together = measure_together([line.backbone for line in cheapest], setting)
    skipped = {name: reason for name, reason in skipped.items() if reason}
    peak = max((line.peak for line in lines), default=math.nan)
    lines = [replace(line, peak=peak) for line in lines]  # other work slows some rounds
    seconds = time.perf_counter() - start
    print_lines(console, lines)
    if together is not None:
        low, high = map(in_words, together.spread)
        console.print(
            f"{together.what}: {time_in_words(together.seconds)} against "
            f"{time_in_words(together.other_seconds)}, {in_words(together.ratio)} "
            f"({low} to {high}); {together.details}.",
            highlight=False,
        )
    for name, reason in skipped.items():
        console.print(f"{name} left out: {reason}", highlight=False)
    console.print(
        "Ratios are medians over the rounds, in which the sides alternate; under them the lowest "
        "and the highest round. The model alone has the batches of the extraction in memory. The "
        "plain loop reads, resamples and embeds one file at a time, every window whole. Peak: "
        f"1e9 operations a second of a product of {MATRIX[setting.kind]} x {MATRIX[setting.kind]} "
        "matrices, the fastest of the run. Stages overlap. "
        f"{seconds:.0f} s in all, load at the end {os.getloadavg()[0]:.2f}.",
        highlight=False,
    )
    if chosen.json:
        content = {
            "machine": facts,
            "device": chosen.device,
            "precision": chosen.precision,
            "seconds": seconds,
            "lines": [{**asdict(line), "share": line.share} for line in lines],
            "together": None if together is None else asdict(together),
            "skipped": skipped,
            "is_whole": True,
        }
        chosen.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if wrong:
        raise SystemExit("not timed, for its sides differ: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
