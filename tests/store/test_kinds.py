"""What may be done with each kind of feature, and the command line that makes it."""

from __future__ import annotations

import pytest

from bsdkit.store.kinds import FEATURE_KINDS, PRIOR, Spec, kind_of
from bsdkit.text import TEMPLATES, get_template

USUAL = next(iter(TEMPLATES.values())).describe()
TITLE = get_template("title").describe()
ENCODER = {"backbone": "minilm", "output": "", "text_template": TITLE}

# spec; embedding, probabilities, may fail, trained elsewhere; command
CASES: list[tuple[Spec, tuple[bool, bool, bool, bool], str]] = [
    (
        {"backbone": "clap", "output": "text", "kind": "text", "dtype": "float32",
         "text_template": TITLE},
        (True, False, False, False),
        "bsdkit extract --data DIR --backbone clap.text --dtype float32 --text title",
    ),
    ({"backbone": "imported"}, (True, False, False, False), "bsdkit store import"),
    ({"backbone": "imported-probabilities"}, (False, True, False, True), "bsdkit import"),
    (
        {"backbone": "text-encoder", "kind": PRIOR, "encoder": ENCODER, "text_template": TITLE},
        (False, True, True, False),
        "bsdkit priors --model minilm --text title --name prior.x",
    ),
    (
        {"backbone": "audio-language", "kind": PRIOR,
         "encoder": {"backbone": "qwen2-audio", "output": "prior"}},
        (False, True, True, False),
        "bsdkit priors --data DIR --model qwen2-audio --name prior.x",
    ),
    (
        {"backbone": "llm", "kind": PRIOR, "engine": "openai", "weights": "org/m", "parameters":
         {"top_p": 0.5}, "revision_from": "user", "revision": "r", "text_template": USUAL},
        (False, True, True, False),
        "bsdkit priors --engine openai --model org/m --temperature none --top-p 0.5 "
        "--revision r --name prior.x",
    ),
    (
        {"backbone": "of-a-plug-in", "kind": PRIOR, "weights": "w"},
        (False, True, True, False),
        "bsdkit priors --model w --name prior.x",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "allowed", "command"), CASES)
def test_a_kind_says_what_is_allowed(
    spec: Spec, allowed: tuple[bool, bool, bool, bool], command: str
) -> None:
    kind = kind_of(spec)
    found = kind.is_embedding, kind.is_probabilities, kind.may_fail, kind.is_trained_elsewhere
    assert found == allowed
    assert kind.command("prior.x@0123", spec) == command
    assert kind.source(spec) == spec.get("encoder")


def test_what_is_not_made_here_says_what_to_type() -> None:
    specs = {str(spec["backbone"]): {**spec, "origin": "o"} for spec, _, _ in CASES}
    refused = {name: kind_of(spec).refusal("f", spec, "S") for name, spec in specs.items()}
    assert {name for name, why in refused.items() if why} == {
        "imported", "imported-probabilities", "llm",
    }  # fmt: skip
    assert "(bsdkit store import)" in refused["imported"]
    assert refused["llm"].endswith("--name f --store S, then give --store S alone")
    assert set(FEATURE_KINDS) <= set(specs)
