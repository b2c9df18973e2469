"""LAION-CLAP: its checkpoints' names, its front ends and its fusion against the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bsdkit.audio import WindowCutter
from bsdkit.backbones import laion
from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.clap import (
    MODEL_SAMPLES,
    Architecture,
    Clap,
    ClapFusion,
    ClapMusic,
    fusion_channels,
    log_mel,
    middle_starts,
    published_network,
    quantise,
)
from bsdkit.backbones.frontends import mel_triangles
from bsdkit.backbones.registry import get_backbone, get_outputs
from bsdkit.backbones.weights import WeightFile
from bsdkit.errors import BackboneUnavailable
from bsdkit.text import get_template
from tests.conftest import shared

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

OPTIONS = BackboneOptions(text_template=get_template("title").describe())
TINY_DEPTHS = (2, 1, 1, 1)


class TinyClap(Clap):
    architecture = Architecture(False, 16, TINY_DEPTHS)


class TinyFusion(ClapFusion):
    architecture = Architecture(True, 16, TINY_DEPTHS)


def tiny_model(architecture: Architecture, seed: int = 3) -> torch.nn.Module:
    """A ClapModel of a few thousand weights, all of which matter."""
    torch.manual_seed(seed)
    config = transformers.ClapConfig(
        text_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
                     "intermediate_size": 32, "vocab_size": 200, "max_position_embeddings": 90,
                     "layer_norm_eps": 1e-5},
        audio_config={"patch_embeds_hidden_size": architecture.patch_width,
                      "hidden_size": 8 * architecture.patch_width,
                      "depths": list(architecture.depths), "num_attention_heads": [2, 2, 4, 4],
                      "enable_fusion": architecture.is_fusion},
        projection_dim=24,
    )  # fmt: skip
    model = transformers.ClapModel(config)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and "running_var" not in name and "logit" not in name:
            tensor.add_(0.1 * torch.randn(tensor.shape))
    return model.eval()


class _Encoding(dict):  # type: ignore[type-arg]
    def to(self, device: str) -> _Encoding:
        return self


def characters(texts: list[str], max_length: int = 77, **_: object) -> _Encoding:
    """A tokenizer of characters, in the form of transformers' tokenizers."""
    ids = torch.ones(len(texts), max_length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        codes = [2 + ord(c) % 190 for c in text[:max_length]]
        ids[row, : len(codes)], mask[row, : len(codes)] = torch.tensor(codes), 1
    return _Encoding(input_ids=ids, attention_mask=mask)


def _tiny(name: str, architecture: Architecture) -> Backbone:
    backbone = get_backbone(name, OPTIONS)
    assert isinstance(backbone, Clap)
    backbone.attach(tiny_model(architecture), "cpu", characters)
    return backbone


def tiny_clap(folder: Path) -> Backbone:
    return _tiny("clap", TinyClap.architecture)


def tiny_clap_fusion(folder: Path) -> Backbone:
    return _tiny("clap-fusion", TinyFusion.architecture)


def tiny_clap_music(folder: Path) -> Backbone:
    return _tiny("clap-music", Architecture(False, 32, (1, 1, 2, 1)))


def waveform(signal: str) -> np.ndarray:
    with np.load(shared("golden", "waveforms_48000.npz")) as waves:
        if signal == "am10s":  # the first ten seconds of am14s
            return waves["am14s_int16"][:480_000].astype(np.float32) / 32768
        return waves[f"{signal}_int16"].astype(np.float32) / 32768


def golden() -> np.lib.npyio.NpzFile:
    return np.load(shared("golden", "laion_clap_tiny.npz"))


def filters(scale: str) -> torch.Tensor:
    norm = "slaney" if scale == "slaney" else "none"
    return torch.tensor(
        mel_triangles(64, 1024, 48_000, 50, 14_000, scale=scale, norm=norm), dtype=torch.float32
    )


def test_quantisation_truncates_as_the_library_does() -> None:
    with golden() as stored:
        expected = stored["quantised_click0p4s"]
    ours = quantise(torch.from_numpy(waveform("click0p4s"))).numpy()
    np.testing.assert_allclose(ours[: len(expected)], expected, atol=1e-7)


@pytest.mark.parametrize("signal", ["sweep3s", "click0p4s"])
def test_mel_of_models_without_fusion(signal: str) -> None:
    with golden() as stored:
        bank, expected = stored["nonfusion_melW_513x64"], stored[f"nonfusion_logmel_{signal}"]
    np.testing.assert_allclose(filters("slaney").numpy().T, bank, atol=1e-6)
    # the reference repeated clips shorter than ten seconds, then padded them with zeros
    cutter = WindowCutter(MODEL_SAMPLES, MODEL_SAMPLES, "tile")
    assert not list(cutter.push(waveform(signal)))
    ((window, _),) = cutter.finish()
    mel = log_mel(quantise(torch.from_numpy(window[None])), filters("slaney"))[0].numpy()
    difference = np.abs(mel[: len(expected)] - expected)
    assert difference.max() < 5e-3 and difference.mean() < 5e-5


# -- names


def full_shapes(is_fusion: bool) -> dict[str, tuple[int, ...]]:
    """The published checkpoint's tensors, with what its trainer puts around their names."""
    keys = json.loads(shared("golden", "laion_clap_full_keys.json").read_text())
    absent = [] if is_fusion else keys["nonfusion"]["tensors_absent_vs_fusion"]
    tensors = keys["fusion"]["tensors"]
    shapes = {"module." + n: tuple(t["shape"]) for n, t in tensors.items() if n not in absent}
    assert len(shapes) == keys["fusion" if is_fusion else "nonfusion"]["n_tensors"]
    return {**shapes, "module.text_branch.embeddings.position_ids": (1, 514)}


def test_names_are_exactly_those_of_the_reference_map() -> None:
    key_map = json.loads(shared("golden", "laion_clap_to_transformers_key_map.json").read_text())
    ours = {name: list(laion.transformers_names(name)) for name in key_map}
    assert ours == key_map
    for name in ("audio_branch.mystery.weight", "encoder.weight", "text_projection.1.weight"):
        with pytest.raises(ValueError, match=name):
            laion.transformers_names(name)


@pytest.mark.parametrize("cls", [Clap, ClapFusion])
def test_published_checkpoints_fill_the_published_network(cls: type[Clap]) -> None:
    shapes = full_shapes(cls.architecture.is_fusion)
    checkpoint = {n: torch.empty(s, device="meta") for n, s in shapes.items()}
    state = laion.convert({"epoch": 1, "state_dict": checkpoint})
    config = transformers.ClapConfig(**laion.config_of(state))
    assert config.text_config.layer_norm_eps == 1e-5  # roberta-base's, not ClapConfig's
    with torch.device("meta"):
        read, published = transformers.ClapModel(config), published_network(cls.architecture)
    expected = {name: tuple(t.shape) for name, t in published.state_dict().items()}
    assert {name: tuple(t.shape) for name, t in read.state_dict().items()} == expected
    assert all(expected[name] == tuple(tensor.shape) for name, tensor in state.items())
    assert set(expected) - set(state) <= {
        "logit_scale_a", "logit_scale_t", "text_model.embeddings.position_ids",
        "text_model.embeddings.token_type_ids",
    }  # fmt: skip
    laion.check_fit(state, published)


@pytest.mark.parametrize("cls", [Clap, ClapFusion, ClapMusic])
def test_class_facts_are_those_of_the_published_network(cls: type[Clap]) -> None:
    with torch.device("meta"):
        network = published_network(cls.architecture)
    n_parameters = sum(p.numel() for p in network.parameters())
    assert cls.card.parameters == round(n_parameters / 1e6, 1)


# -- the reference's tiny model with fusion


class ReferenceFusion(ClapFusion):
    architecture = Architecture(True, 16, (2, 2, 2, 2))


def with_text(audio: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LAION's tensors of an audio tower, completed by a small text tower and projections."""
    model = tiny_model(
        Architecture(False, audio["audio_branch.norm.weight"].shape[0] // 8, (1,) * 4)
    )
    made_up = laion_names(model.state_dict())
    dim = audio.get("audio_projection.2.bias", torch.zeros(24)).shape[0]
    for layer, n_in in ((0, 64), (2, dim)):
        made_up[f"text_projection.{layer}.weight"] = torch.zeros(dim, n_in)
        made_up[f"text_projection.{layer}.bias"] = torch.zeros(dim)
    return {n: t for n, t in made_up.items() if not n.startswith("audio_branch.")} | audio


@pytest.fixture(scope="module")
def reference() -> ClapFusion:
    """The reference's tiny audio tower, renamed by our own rules."""
    from safetensors.torch import load_file

    state = load_file(shared("golden", "laion_clap_tiny_fusion_state_dict.safetensors"))
    backbone = ReferenceFusion()
    backbone.attach(backbone.build(laion.convert(with_text(state))), "cpu")
    return backbone


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("signal", ["sweep3s", "click0p4s", "am10s"])
def test_short_clips_are_the_references(reference: ClapFusion, signal: str) -> None:
    samples = waveform(signal)
    audio = np.zeros((1, 12 * 48_000), np.float32)
    audio[0, : len(samples)] = samples
    mel, is_longer = reference.front_end(quantise(torch.from_numpy(audio)), [len(samples)])
    vector = reference.embed(audio, np.array([len(samples)]))["audio"][0]
    with golden() as stored:
        expected = stored[f"audio_embed_l2_{signal}"]
        given = torch.from_numpy(stored[f"mel_{signal}"]).expand(1, 4, -1, -1)
        difference = np.abs(mel[0].numpy() - stored[f"mel_{signal}"])
        fused = stored[f"hf_audio_embeds_is_longer1_{signal}"]
    assert not is_longer.any() and difference.max() < 5e-3 and difference.mean() < 5e-5
    np.testing.assert_allclose(unit(vector), expected, atol=1e-3)
    assert float(unit(vector) @ expected) > 0.99999
    ours = unit(reference.project(given, torch.tensor([[False]])))[0]
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    np.testing.assert_allclose(
        reference.project(given, torch.tensor([[True]]))[0], fused, atol=1e-4
    )


def test_a_long_clip_with_the_references_crops(reference: ClapFusion) -> None:
    samples = quantise(torch.from_numpy(waveform("am14s")))
    mel = log_mel(samples[None], reference._filters)[0]
    with golden() as stored:
        starts = stored["fusion_indices_am14s"].tolist()
        difference = np.abs(mel.numpy() - stored["mel_full_am14s"])
        channels = fusion_channels(mel, starts)
        resized = np.abs(channels[0].numpy() - stored["mel_fusion_channel0_am14s"])
        expected = stored["audio_embed_l2_am14s"]
        exact = fusion_channels(torch.from_numpy(stored["mel_full_am14s"]), starts)
    for seen in (difference, resized):
        assert seen.max() < 5e-3 and seen.mean() < 5e-5
    is_longer = torch.tensor([[True]])
    np.testing.assert_allclose(
        unit(reference.project(exact[None], is_longer))[0], expected, atol=1e-4
    )
    vector = unit(reference.project(channels[None], is_longer))[0]
    np.testing.assert_allclose(vector, expected, atol=1e-3)
    assert float(vector @ expected) > 0.99999
    # our own crops are others, and always the same
    notes = json.loads(shared("golden", "laion_clap_notes.json").read_text())
    ours = middle_starts(notes["total_frames_am14s"])
    assert ours == [(low + high) // 2 for low, high in notes["fusion_ranges_am14s"]]
    audio = np.zeros((1, 40 * 48_000), np.float32)
    audio[0, : len(samples)] = waveform("am14s")
    first = reference.embed(audio, np.array([len(samples)]))["audio"]
    assert (first == reference.embed(audio, np.array([len(samples)]))["audio"]).all()
    fixed = reference.project(fusion_channels(mel, ours)[None], is_longer)
    np.testing.assert_allclose(first, fixed, atol=1e-5)


def test_rows_of_all_lengths_do_not_disturb_each_other(reference: ClapFusion) -> None:
    lengths = [1, 19_200, 480_000, 480_001, 480_479, 480_480, 700_000, 1_000_000, 480_000]
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal((len(lengths), 1_000_000))).astype(np.float32)
    audio[-1] = 0
    valid = np.array(lengths)
    for row, n in enumerate(lengths):
        audio[row, n:] = 0
    mel, is_longer = reference.front_end(quantise(torch.from_numpy(audio)), lengths)
    assert mel.shape == (len(lengths), 4, 1001, 64)
    assert is_longer[:, 0].tolist() == [n >= 480_480 for n in lengths]
    together = reference.embed(audio, valid)["audio"]
    assert np.isfinite(together).all()
    turned = reference.embed(audio[::-1].copy(), valid[::-1])["audio"][::-1]
    np.testing.assert_allclose(turned, together, atol=1e-4)
    for row, n in enumerate(lengths):
        # alone, and with no more padding than it needs
        alone = reference.embed(audio[row : row + 1, : max(n, 100)], valid[row : row + 1])
        np.testing.assert_allclose(alone["audio"][0], together[row], atol=1e-4)


@pytest.mark.parametrize("make", [tiny_clap, tiny_clap_fusion, tiny_clap_music])
def test_half_precision_runs_and_is_near(make: Callable[[Path], Backbone], tmp_path: Path) -> None:
    backbone = make(tmp_path)
    assert isinstance(backbone, Clap)
    n = backbone.spec("audio").window_samples
    audio = np.random.default_rng(1).uniform(-0.5, 0.5, (2, n)).astype(np.float32)
    valid = np.array([n, n // 10])
    exact = backbone.embed(audio, valid)["audio"]
    text = backbone.embed_texts(["a dog", ""])["text"]
    half = type(backbone)(BackboneOptions(precision="bfloat16"))
    half.attach(backbone.network, "cpu", characters)
    for ours, other in ((half.embed(audio, valid)["audio"], exact),
                        (half.embed_texts(["a dog", ""])["text"], text)):  # fmt: skip
        assert ours.dtype == np.float32 and ours.shape == (2, 24)
        assert (unit(ours) * unit(other)).sum(axis=1).min() > 0.99


# -- files


@pytest.mark.parametrize("make", [tiny_clap, tiny_clap_fusion, tiny_clap_music])
def test_raw_outputs_are_the_vectors_before_their_length_is_taken(
    make: Callable[[Path], Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make(tmp_path)
    assert isinstance(backbone, Clap)
    passes = []
    project = backbone.project
    monkeypatch.setattr(backbone, "project", lambda *a: passes.append(1) or project(*a))
    audio = backbone.embed(NOISE, WHOLE)
    assert len(passes) == 1 and (audio["audio"] == audio["audio_raw"]).all()
    assert abs(float(np.linalg.norm(audio["audio_raw"][0])) - 1) > 0.01
    text = backbone.embed_texts(["rain"])
    assert (text["text"] == text["text_raw"]).all()
    for kind in ("audio", "text"):
        plain, raw = backbone.spec(kind), backbone.spec(f"{kind}_raw")
        assert plain.normalize == "l2"
        assert raw == replace(plain, output=f"{kind}_raw", normalize="none")
    # a store gets them only where they are named, and from the same pass
    ((_, outputs),) = get_outputs([backbone.name])
    assert outputs == ["audio", "text"]
    ((asked, outputs),) = get_outputs([backbone.name, f"{backbone.name}.audio_raw"])
    assert outputs == ["audio", "text", "audio_raw"] and asked.wanted == set(outputs)


def laion_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a ClapModel as LAION's checkpoints name them, and what those hold beside."""
    changes = {
        "audio_model.audio_encoder.": "audio_branch.", "text_model.": "text_branch.",
        "projection.linear1": "projection.0", "projection.linear2": "projection.2",
    }  # fmt: skip
    audio_changes = {
        "batch_norm": "bn0", "layernorm_before": "norm1", "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj", "attention.self.": "attn.",
        "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    }  # fmt: skip
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        for ours, theirs in changes.items():
            name = name.replace(ours, theirs)
        if name.startswith("audio_branch"):
            for ours, theirs in audio_changes.items():
                name = name.replace(ours, theirs)
            if "attn.query" in name:
                found[name.replace("query", "qkv")] = tensor
                continue
            if "attn.key" in name or "attn.value" in name:
                qkv = name.replace("key", "qkv").replace("value", "qkv")
                found[qkv] = torch.cat([found[qkv], tensor])
                continue
        found[name] = tensor
    return found


def checkpoint_of(model: torch.nn.Module) -> dict[str, object]:
    state = laion_names(model.state_dict())
    state |= {
        "audio_branch.logmel_extractor.melW": torch.zeros(513, 64),
        "audio_branch.head.weight": torch.zeros(3, 3),
        "audio_branch.layers.0.blocks.1.attn_mask": torch.zeros(4, 64, 64),
        "text_transform.sequential.0.weight": torch.zeros(2, 2),
    }
    return {"epoch": 3, "state_dict": {"module." + n: t for n, t in state.items()}}


NOISE = np.random.default_rng(5).uniform(-0.3, 0.3, (2, MODEL_SAMPLES)).astype(np.float32)
WHOLE = np.array([MODEL_SAMPLES] * 2)


@pytest.mark.parametrize("cls", [TinyClap, TinyFusion])
def test_a_checkpoint_is_renamed_once(cls: type[Clap], tmp_path: Path) -> None:
    model = tiny_model(cls.architecture)
    path, kept = tmp_path / "clap.best.pt", tmp_path / "clap.best.safetensors"
    torch.save(checkpoint_of(model), path)
    known = cls()
    known.attach(model, "cpu", characters)
    expected = known.embed(NOISE, WHOLE)["audio"]

    def read(weights: Path) -> Clap:
        backbone = cls(BackboneOptions(weights=weights))
        backbone.wanted = frozenset({"audio"})
        backbone.load("cpu")
        return backbone

    first = read(path)
    spec = first.spec("audio")
    assert (first.embed(NOISE, WHOLE)["audio"] == expected).all()
    first._tokenizer = characters
    assert (first.embed_texts(["x"])["text"] == known.embed_texts(["x"])["text"]).all()
    assert (spec.dim, spec.weights) == (24, "clap.best.pt")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["clap.best.pt", "clap.best.safetensors"]
    written = kept.stat().st_mtime_ns
    assert (read(path).embed(NOISE, WHOLE)["audio"] == expected).all()
    assert kept.stat().st_mtime_ns == written
    # another checkpoint under the same name: made again
    changed = tiny_model(cls.architecture, seed=8)
    torch.save(checkpoint_of(changed), path)
    other = read(path)
    assert other.spec("audio").weights_sha256 != spec.weights_sha256
    assert np.abs(other.embed(NOISE, WHOLE)["audio"] - expected).max() > 1e-3
    # without its source, by either name, it is the same feature
    path.unlink()
    assert read(path).spec("audio") == read(kept).spec("audio") == other.spec("audio")


def test_a_folder_saved_by_transformers(tmp_path: Path) -> None:
    model = tiny_model(TinyClap.architecture)
    model.save_pretrained(tmp_path / "clap")
    backbone = TinyClap(BackboneOptions(weights=tmp_path / "clap"))
    backbone.wanted = frozenset({"audio"})
    backbone.load("cpu")
    known = TinyClap()
    known.attach(model, "cpu")
    assert (backbone.embed(NOISE, WHOLE)["audio"] == known.embed(NOISE, WHOLE)["audio"]).all()
    fusion = TinyFusion(BackboneOptions(weights=tmp_path / "clap"))
    fusion.wanted = frozenset({"audio"})
    with pytest.raises(
        BackboneUnavailable, match=r"holds a tower without fusion.*tower with fusion"
    ):
        fusion.load("cpu")
    with pytest.raises(BackboneUnavailable, match=r"holds no config.json .* with --weights"):
        Clap(BackboneOptions(weights=tmp_path)).load("cpu")


def test_wrong_files_are_refused_by_tensor(tmp_path: Path) -> None:
    good = laion_names(tiny_model(TinyClap.architecture).state_dict())
    renamed = "audio_model.audio_encoder.layers.1.blocks.0.output.dense.weight"
    ours = "audio_branch.layers.1.blocks.0.mlp.fc2.weight"
    text = "text_branch.pooler.dense.bias"
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({**good, "audio_branch.surprise": torch.zeros(1)}, "'audio_branch.surprise' is none of"),
        ({n: t for n, t in good.items() if n != ours}, f"lacks the tensor '{renamed}'"),
        ({n: t for n, t in good.items() if n != text}, "lacks the tensor 'text_model.pooler"),
        ({**good, ours: torch.zeros(2, 3)}, f"'{renamed}' has shape (2, 3), expected (32, 128)"),
        ({**good, "text_branch.what": torch.zeros(1)}, "'text_model.what' has no place"),
        ({"encoder.weight": torch.zeros(1)}, "'encoder.weight' is none of LAION-CLAP"),
    ]
    for number, (state, expected) in enumerate(cases):
        path = tmp_path / f"{number}.pt"
        torch.save(state, path)
        backbone = TinyClap(BackboneOptions(weights=path))
        backbone.wanted = frozenset({"audio"})
        with pytest.raises(BackboneUnavailable) as caught:
            backbone.load("cpu")
        assert expected in str(caught.value) and "630k-audioset-best.pt" in str(caught.value)


def test_the_tower_belongs_to_the_name(tmp_path: Path) -> None:
    """A checkpoint of another published tower is refused with the name that it fits."""
    path = tmp_path / "whatever.pt"
    torch.save(laion_names(tiny_model(ClapFusion.architecture).state_dict()), path)
    for name in ("clap", "clap-music"):
        backbone = get_backbone(name, BackboneOptions(weights=path))
        backbone.wanted = frozenset({"audio"})
        with pytest.raises(BackboneUnavailable, match="it fits --backbone clap-fusion"):
            backbone.load("cpu")


def test_a_folder_that_cannot_be_written_to_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    torch.save(checkpoint_of(tiny_model(TinyClap.architecture)), path)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    backbone = TinyClap(BackboneOptions(weights=path))
    backbone.wanted = frozenset({"audio"})
    backbone.load("cpu")
    assert np.isfinite(backbone.embed(NOISE, WHOLE)["audio"]).all()
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


# -- the tokenizer


def write_tokenizer(folder: Path, n_tokens: int) -> None:
    """A byte-level vocabulary in roberta-base's files."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    tokens += [f"filler {i}" for i in range(n_tokens - len(tokens) - 1)] + ["<mask>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def test_text_needs_a_whole_tokenizer_and_audio_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSDKIT_WEIGHTS", str(tmp_path / "none"))
    path = tmp_path / "x.pt"
    torch.save(checkpoint_of(tiny_model(TinyClap.architecture)), path)
    write_tokenizer(tmp_path / "roberta-base", 300)
    where = r"has 300 tokens, expected 50265; .* into .*roberta-base"
    for wanted in (frozenset[str](), frozenset({"audio", "text"})):
        backbone = TinyClap(BackboneOptions(weights=path))
        backbone.wanted = wanted
        with pytest.raises(BackboneUnavailable, match=where):
            backbone.load("cpu")
    backbone = TinyClap(BackboneOptions(weights=path))
    backbone.wanted = frozenset({"audio"})
    backbone.load("cpu")
    with pytest.raises(BackboneUnavailable, match=where):
        backbone.embed_texts(["a"])
    (tmp_path / "roberta-base").rename(tmp_path / "half")
    write_tokenizer(tmp_path / "roberta-base", 50_265)
    whole = TinyClap(BackboneOptions(weights=path))
    whole.load("cpu")
    for one in (whole, backbone):
        vectors = one.embed_texts(["\u0001", ""])["text"]
        assert vectors.shape == (2, 24) and np.isfinite(vectors).all()


def test_without_a_tokenizer_it_is_fetched_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSDKIT_WEIGHTS", str(tmp_path / "kept"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    tiny_model(TinyClap.architecture).save_pretrained(tmp_path / "clap")
    backbone = TinyClap(BackboneOptions(weights=tmp_path / "clap"))

    def no_network(file: WeightFile, part: Path, progress: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("bsdkit.backbones.weights._download", no_network)
    with pytest.raises(BackboneUnavailable, match=r"vocab.json and put it at .*roberta-base"):
        backbone.load("cpu")
    write_tokenizer(tmp_path / "elsewhere", 50_265)

    def network(file: WeightFile, part: Path, progress: object) -> None:
        part.write_bytes((tmp_path / "elsewhere" / file.url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr("bsdkit.backbones.weights._download", network)
    backbone.load("cpu")
    kept = {p.name for p in (tmp_path / "kept/roberta-base").iterdir()}
    assert {"vocab.json", "merges.txt"} <= kept


# -- LAION's own code, where it imports


@pytest.mark.parametrize("cls", [Clap, ClapFusion, ClapMusic])
def test_laions_own_tower_agrees(cls: type[Clap]) -> None:
    try:
        from laion_clap.clap_module.htsat import create_htsat_model
    except Exception as error:  # it pins old versions, and asks the hub when it is imported
        pytest.skip(f"laion_clap cannot be imported here: {type(error).__name__}: {error}")
    from types import SimpleNamespace

    torch.manual_seed(11)
    is_fusion = cls.architecture.is_fusion
    settings = SimpleNamespace(
        model_name="base" if cls is ClapMusic else "tiny", class_num=527, mel_bins=64,
        sample_rate=48_000, window_size=1024, hop_size=480, fmin=50, fmax=14_000,
        clip_samples=480_000, audio_length=1024,
    )  # fmt: skip
    theirs = create_htsat_model(settings, is_fusion, "aff_2d" if is_fusion else "None").eval()
    backbone = cls()
    state = {f"audio_branch.{n}": t for n, t in theirs.state_dict().items()}
    backbone.attach(backbone.build(laion.convert(with_text(state))), "cpu")
    samples = torch.from_numpy(np.concatenate([NOISE[0], NOISE[1]])[: 14 * 48_000])
    samples = quantise(samples if is_fusion else samples[:MODEL_SAMPLES])
    mel, is_longer = backbone.front_end(samples[None], [len(samples)])
    given = {"waveform": samples[None], "mel_fusion": mel, "longer": is_longer}
    with torch.inference_mode():
        expected = theirs(given, device=torch.device("cpu"))["embedding"]
        ours = backbone.network.audio_model(input_features=mel, is_longer=is_longer).pooler_output
    assert is_longer.item() == is_fusion
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    cosine = torch.nn.functional.cosine_similarity(ours, expected)
    assert float(cosine) > 0.99999
