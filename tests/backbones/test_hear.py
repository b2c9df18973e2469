"""The HEAR adapter on a module that the test writes: outputs, lengths, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from bsdkit.backbones.base import BackboneOptions
from bsdkit.backbones.hear import Hear
from bsdkit.backbones.registry import get_backbone
from bsdkit.errors import BackboneUnavailable

MODULE = """
import torch
print("a banner")

class Model(torch.nn.Module):
    sample_rate = 16_000
    scene_embedding_size = 1295  # wrong on purpose: of another mode
    timestamp_embedding_size = 4

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layer = torch.nn.Linear(1600, 4)
        self.dropout = torch.nn.Dropout(0.5)

def load_model(path=""):
    print("loading")
    return Model()

def get_scene_embeddings(audio, model):
    return get_timestamp_embeddings(audio, model)[0].mean(1)[:, :3]
"""
TIMESTAMPS = """
def get_timestamp_embeddings(audio, model):
    frames = audio.unfold(1, 1600, 1600)
    times = 50.0 + 100.0 * torch.arange(frames.shape[1]).repeat(len(audio), 1)
    return model.dropout(model.layer(frames)), times
"""
_number = itertools.count()


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> str:
    """The name of a module with that source, where Python finds it."""
    name = f"hear_of_a_test_{next(_number)}"
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    return name


def loaded(name: str, options: BackboneOptions | None = None) -> Hear:
    backbone = get_backbone(f"hear:{name}", options)
    assert isinstance(backbone, Hear)
    backbone.load("cpu")
    return backbone


def test_scenes_and_timestamps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = module(tmp_path, monkeypatch, MODULE + TIMESTAMPS)
    backbone = loaded(name)
    assert dict(backbone.outputs) == {"": "audio", "timestamps": "audio"}
    # the length is what comes out, not what the model announces
    assert (backbone.spec("").dim, backbone.spec("timestamps").dim) == (3, 4)
    audio = np.zeros((4, 160_000), np.float32)
    audio[:, :100_000] = np.random.default_rng(2).standard_normal((4, 100_000))
    valid = np.array([160_000, 16_000, 1, 17_000])
    rows = backbone.embed(audio, valid)
    assert {output: v.shape for output, v in rows.items()} == {"": (4, 3), "timestamps": (4, 4)}
    import torch

    model = backbone._model
    frames = model.layer(torch.from_numpy(audio).unfold(1, 1600, 1600)).detach().numpy()
    # timestamps at 50, 150, ... ms: ten lie within 1 s, eleven within 1.0625 s, none within 1/16 ms
    for row, n in enumerate([100, 10, 1, 11]):
        np.testing.assert_allclose(rows["timestamps"][row], frames[row, :n].mean(0), atol=1e-5)
        alone = backbone.embed(audio[row : row + 1], valid[row : row + 1])
        for output in rows:
            np.testing.assert_allclose(alone[output][0], rows[output][row], atol=1e-5)
    backbone.wanted = frozenset({"timestamps"})
    assert set(backbone.embed(audio[:1], valid[:1])) == {"timestamps"}
    assert capfd.readouterr().out == ""


def test_without_timestamps_there_is_one_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = MODULE.replace("get_timestamp_embeddings(audio, model)[0]", "audio.unfold(1, 9, 9)")
    name = module(tmp_path, monkeypatch, one)
    assert dict(get_backbone(f"hear:{name}").outputs) == {"": "audio"}
    backbone = loaded(name, BackboneOptions(precision="bfloat16"))
    assert dict(backbone.outputs) == {"": "audio"}
    assert backbone.spec("").compute_dtype == "float32"  # the front end is inside
    # a function that comes from another file of the package counts too
    whole = module(tmp_path, monkeypatch, MODULE + TIMESTAMPS)
    lines = f"from {whole} import load_model, get_scene_embeddings, get_timestamp_embeddings\n"
    outer = module(tmp_path, monkeypatch, lines)
    assert set(loaded(outer).outputs) == {"", "timestamps"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((".mean(1)[:, :3]", "[:, :3]"), r"have shape \[1, 3, 4\], expected \[1, dim\]"),
        ((".repeat(len(audio), 1)", ""), r"ValueError: \(100,\) timestamps"),
        (("return Model()", "raise OSError('no weights')"), "load_model failed: OSError: no"),
        (("def get_scene_embeddings", "def scenes"), "has no get_scene_embeddings"),
        (("import torch\n", "import nothing_like_it\n"), "importing .* failed"),
    ],
)
def test_what_is_not_the_hear_api_is_refused(
    change: tuple[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(tmp_path, monkeypatch, (MODULE + TIMESTAMPS).replace(*change))
    with pytest.raises(BackboneUnavailable, match=reason):
        loaded(name)


def test_missing() -> None:
    assert "no module 'not_there_at_all'" in get_backbone("hear:not_there_at_all").missing()
