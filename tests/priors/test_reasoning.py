"""What models leak of their reasoning: cut where they mark it, and never taken for the answer."""

from __future__ import annotations

import json
import re

import pytest

from bsdkit.priors.ask import Reply
from bsdkit.priors.parse import parse_classes, parse_summary
from bsdkit.priors.reasoning import MARKS, cut_reasoning
from bsdkit.taxonomy import Taxonomy

TAXONOMY = Taxonomy.flat(["gong", "rain", "owl"])


def answer(label: str, **more: str) -> str:
    return json.dumps({**more, "classes": [{"label": label, "probability": 0.9}]})


DRAFT, FINAL = answer("rain"), answer("gong")
HARMONY = "<|channel|>analysis<|message|>"
HARMONY_END = "<|end|><|start|>assistant<|channel|>final<|message|>"

PAIRS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<reason>", "</reason>"),
    ("<thought>", "</thought>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ('<think budget="9">', "</think >"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<|thinking|>", "</|thinking|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|thought_start|>", "<|thought_end|>"),
    ("<\uff5cbegin\u2581of\u2581thought\uff5c>", "<\uff5cend\u2581of\u2581thought\uff5c>"),
    ("<unused94>thought\n", "<unused95>"),
    ("<|channel>thought\n", "<channel|>"),
    ("[unused16]", "[unused17]"),
    ("Here is my thought process:", "Here is my response:"),
    ("Here's my thought process:", "Here's my response:"),
    ("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]\n"),
    (HARMONY, HARMONY_END),
    (f"<|start|>assistant{HARMONY}", HARMONY_END.replace("final", "final <|constrain|>json")),
    (f"{HARMONY}x<|end|><|start|>assistant<|channel|>commentary<|message|>", HARMONY_END),
    ("<|channel|>commentary to=f <|constrain|>json<|message|>", HARMONY_END),
    ("analysis", "assistantfinal"),
    ("analysis\n", "\nassistant\nfinal\n"),
    ("analysis", f"assistantcommentary to=f json{DRAFT}assistantfinal"),
]


def read(content: str, finish: str = "stop") -> str:
    parsed = parse_classes(Reply("k", content, finish), TAXONOMY)
    return parsed.reason or TAXONOMY.labels[int(parsed.row.argmax())]


@pytest.mark.parametrize(("begin", "end"), PAIRS)
def test_reasoning_is_no_answer(begin: str, end: str) -> None:
    draft = f'Perhaps {DRAFT} but no: the o\'clock "gong" (12") isn\'t'
    for content in (
        f"{begin}{draft}{end}{FINAL}",
        f" \n{begin}\n{draft}\n{end}\n\n```json\n{FINAL}\n```",
        # opened by the request
        f"{draft}{end}{FINAL}",
        # spoken of, and once more
        f'{begin}"{end}" ends this. {draft} {end} Hm. {DRAFT}{end}{FINAL}',
        f"{begin}{draft} {begin} {DRAFT}{end} {DRAFT}{end}{FINAL}",
    ):
        assert read(content) == "gong"
    if not begin.startswith(("analysis", "<unused94>", "<|channel>")):  # words, not tokens
        for changed in (begin.upper() + draft + end.upper(), begin.title() + draft + end.title()):
            assert read(changed + FINAL) == "gong"
    assert read(f"{begin}{draft}").startswith("cut off within ")
    assert read(f"{begin}{draft}", "length") == "cut off at max_tokens"
    assert read(f"{begin}{draft}{end}") == "empty reply"
    summary = parse_summary(Reply("k", f"{begin}Rain? No.{end}A gong.", "stop"))
    assert (summary.text, summary.reason) == ("A gong.", "")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        # marks that are spoken of
        (answer("gong", note="it says <think>"), "gong"),
        (answer("gong", note='"<thinking>" and </thinking> [/THINK] assistantfinal'), "gong"),
        (f'The title is "<think>". {FINAL}', "gong"),
        (f"You wrote 'reason in <think> first'; `</think>` too. {FINAL}", "gong"),
        (f"\u201cHere is my thought process: ...\u201d {FINAL}", "gong"),
        (f"{FINAL} I left out <think> and </think>.", "gong"),
        (f'<think>Tags: "a</think>" hm {DRAFT}</think>{FINAL}', "gong"),
        # after the answer, or around another
        (f"{FINAL}<think>or {DRAFT}", "gong"),
        (f"<think>a</think>{FINAL}<think>b {DRAFT}</think>{FINAL}", "gong"),
        (f"<think>a</thinking>{FINAL}", "gong"),
        (f"<think/>{FINAL}", "gong"),
        (f"<answer>{FINAL}</answer>", "gong"),
        (f"Sure. <think>{DRAFT}", "cut off within <think>"),
        (f"<THINK>{DRAFT}", "cut off within <think>"),
        (f"<think>{DRAFT}</unrelated>{FINAL}", "cut off within <think>"),
        # not marked: which of them is meant is not known
        (f"```json\n{DRAFT}\n```\nNo:\n```json\n{FINAL}\n```",
         "two different answers: rain 1.00, then gong 1.00"),
        (f"{FINAL}\n{FINAL}", "gong"),
        ('{"classes": [{"label": LABEL, "probability": NUMBER}, ...]} ' + FINAL, "gong"),
        ('{"title": "rain", "tags": ["rain"], "duration_seconds": 3.1} ' + FINAL, "gong"),
        # words that begin as marks do
        (f"Analysis: a gong. {FINAL}", "gong"),
        (f"analysis of the tags: {FINAL}", "gong"),
    ],
)  # fmt: skip
def test_marks_that_are_spoken_of_or_missing(content: str, found: str) -> None:
    assert read(content) == found


@pytest.mark.parametrize(
    ("content", "text", "reason"),
    [
        # what the prompt shows, and the same again
        ('As {"summary": "..."}: {"summary": "A dog."}', "A dog.", ""),
        ('{"summary": "A dog."} {"summary": " A  dog."}', "A dog.", ""),
        ('{"summary": "A."} {"summary": "B."}', "", "two different answers: A., then B."),
        ("<|channel|>final<|message|>A dog.<|return|>", "A dog.", ""),
    ],
)
def test_summaries(content: str, text: str, reason: str) -> None:
    parsed = parse_summary(Reply("k", content, "stop"))
    assert (parsed.text, parsed.reason) == (text, reason)


@pytest.mark.parametrize(
    "content", ["\n" * 100_000 + "<|channel|> " * 100_000, "\" '" * 100_000 + '\\"' * 100_000]
)
def test_nothing_is_too_long(content: str) -> None:
    assert cut_reasoning(content) == (content, "")


def test_every_kind_of_mark_is_tried() -> None:
    for begin, end in MARKS:
        assert any(re.search(begin, b, re.I) and re.search(end, e, re.I | re.M) for b, e in PAIRS)
