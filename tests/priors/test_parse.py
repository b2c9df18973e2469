"""Replies of language models: what is read out of them, what is dropped, and why rows miss."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bsdkit.priors.ask import Reply
from bsdkit.priors.parse import (
    MAX_SUMMARY_CHARACTERS,
    ParsedClasses,
    parse_classes,
    parse_summary,
)
from bsdkit.priors.prompt import class_prompt
from bsdkit.taxonomy import BST, Taxonomy, TaxonomyClass

PETS = Taxonomy.flat(["dog", "cat"])
WITH_OTHER = Taxonomy.flat(["dog", "Other"])
SPACED = Taxonomy.flat(["Dog Bark", "dog bark", "Cat\N{EN DASH}Meow", "CAR"])
NAMED = Taxonomy(
    "named",
    [
        TaxonomyClass("a", "x", name="One"),
        TaxonomyClass("b", "x", name="Twin"),
        TaxonomyClass("c", "y", name="twin"),
        TaxonomyClass("d", "y", name="A"),  # the label of another
        TaxonomyClass("e", "y", name="Other"),  # what no class covers
        TaxonomyClass("Fa", "z"),
        TaxonomyClass("fA", "z"),
        TaxonomyClass("g", "z", name="FA"),  # nearly the label of two others
    ],
)


def read(content: str, taxonomy: Taxonomy = BST, finish: str = "stop") -> ParsedClasses:
    parsed = parse_classes(Reply("key", content, finish), taxonomy)
    assert parsed.row.shape == (len(taxonomy),) and parsed.row.dtype == np.float64
    assert np.isfinite(parsed.row).all() and (parsed.row >= 0).all()
    assert parsed.row.sum() == pytest.approx(0 if parsed.reason else 1, abs=1e-12)
    assert math.isnan(parsed.other) or 0 <= parsed.other <= 1
    assert not math.isnan(parsed.other) or parsed.reason
    assert all(count > 0 for count in (*parsed.dropped.values(), *parsed.mended.values()))
    return parsed


def shares(parsed: ParsedClasses, taxonomy: Taxonomy = BST) -> dict[str, float]:
    return {
        label: round(float(share), 6)
        for label, share in zip(taxonomy.labels, parsed.row, strict=True)
        if share
    }


def listed(*entries: tuple[Any, Any]) -> str:
    """The answer as it is asked for."""
    return json.dumps({"classes": [{"label": a, "probability": p} for a, p in entries]})


GOOD = listed(("fx-a", 0.6), ("ss-n", 0.2), ("other", 0.2))
GOOD_ROW = {"fx-a": 0.75, "ss-n": 0.25}


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        json.dumps(json.loads(GOOD), indent=2),
        f"```json\n{GOOD}\n```",
        f"Here you are:\n```\n{GOOD}\n```\nThe bark [1] is {{clear}}.",
        f'<think>Maybe {{"m-m": 1.0}}? No.</think>\n\n{GOOD}',
        # the reasoning was opened by the request
        f'Maybe {{"m-m": 1.0}}? No.</think>{GOOD}',
        GOOD.replace("}]", "},]").replace('"fx-a", ', '"fx-a" ,\n\t') + " ]",
        json.dumps(json.loads(GOOD)["classes"]),
        '{"fx-a": 0.6, "ss-n": 0.2, "other": 0.2}',
        '{"classes": {"fx-a": 0.6, "ss-n": 0.2, "other": 0.2}}',
        '[["fx-a", 0.6], ["ss-n", 0.2], ["other", 0.2],]',
        '[{"fx-a": 0.6}, {"ss-n": 0.2}, {"other": 0.2}]',
        'Wahrscheinlichkeiten: {"fx-a": "60%", "ss-n": 20 %, "other": "0.20"}',
        # words that only look like the start of JSON, and JSON that says nothing
        f"[see below] {{fx-a, ss-n}}, set {{{{a}} \\boxed{{{GOOD}}}",
        f'[1, 2] {{}} ["fx-a"] {{"note": "n"}} {GOOD}',
        # what is broken is passed over, with all that is inside it
        f'[{{"m-m": 0.9}}, "a" "b"] {GOOD}',
        # said twice; and one that does not end, or is a draft
        GOOD + "\nOnce more: " + GOOD.replace("0.6", '"60%"'),
        GOOD + '{"classes": [{"label": "m-',
        GOOD + "<think>" + listed(("m-m", 1.0)),
        listed(("fx-a", 6e307), ("ss-n", 2e307), ("other", 2e307)),
        listed(("fx-a", 6e-310), ("ss-n", 2e-310), ("other", 2e-310)),
        listed((" FX-A\n", 1.8), ("ss\N{EN DASH}n", 0.6), ("Other", 0.6)),
        listed(("fx\N{NON-BREAKING HYPHEN}a", 0.12), ("ss\N{MINUS SIGN}n", 0.04), ("OTHER", 0.04)),
    ],
)
def test_one_answer_in_many_forms(content: str) -> None:
    parsed = read(content)
    assert shares(parsed) == GOOD_ROW and parsed.other == pytest.approx(0.2)
    assert not parsed.reason and not parsed.dropped and not parsed.mended


DROPPED = [
    # German names are no labels
    ("Tiere", 0.5, "unknown label"),
    ("fx", 0.5, "unknown label"),
    ("", 0.5, "unknown label"),
    (None, 0.5, "unknown label"),
    (405, 0.5, "unknown label"),
    (["fx-v"], 0.5, "unknown label"),
    ("fx-v", math.nan, "not a number"),
    ("fx-v", math.inf, "not a number"),
    ("fx-v", -math.inf, "not a number"),
    ("fx-v", 10**400, "not a number"),
    ("fx-v", "1e400", "not a number"),
    ("fx-v", True, "not a number"),
    ("fx-v", None, "not a number"),
    ("fx-v", "likely", "not a number"),
    ("fx-v", "nan", "not a number"),
    ("fx-v", "0.3 or so", "not a number"),
    ("fx-v", [0.5], "not a number"),
    ("fx-v", {"p": 0.5}, "not a number"),
    ("fx-v", 0, "not positive"),
    ("fx-v", "0%", "not positive"),
    ("fx-v", -0.5, "not positive"),
    ("fx-v", -(10**30), "not positive"),
    ("fx-a", 0.9, "duplicate label"),
    ("FX-A", 0.9, "duplicate label"),
    ("other", 0.9, "duplicate label"),
]


@pytest.mark.parametrize(("label", "probability", "why"), DROPPED)
def test_what_is_dropped_is_counted(label: Any, probability: Any, why: str) -> None:
    entries = [("fx-a", 0.6), ("ss-n", 0.2), ("other", 0.2), (label, probability)]
    parsed = read(listed(*entries))
    assert shares(parsed) == GOOD_ROW and parsed.dropped == {why: 1}
    assert parsed.other == pytest.approx(0.2)
    assert shares(read(json.dumps(entries))) == GOOD_ROW


@pytest.mark.parametrize(
    ("content", "dropped"),
    [
        ('["fx-a", 0.6, [], ["fx-m"], ["fx-a", 0.6], ["ss-n", 0.2]]', {"not an object": 4}),
        (
            '{"fx-a": 0.6, "ss-n": 0.2, "fx-a": 0.9, "fx-a": 0}',
            {"duplicate label": 1, "not positive": 1},
        ),
        (
            '[{"label": "fx-a", "label": "m-m", "probability": 0.6}, ["ss-n", 0.2]]',
            {"duplicate key": 1},
        ),
        (
            '[{"label": "fx-a", "probability": 0.6, "probability": 0.9}, ["ss-n", 0.2]]',
            {"duplicate key": 1},
        ),
        (
            '{"classes": {"fx-a": 3, "ss-n": 1}, "classes": {"m-m": 1}}',
            {"duplicate key": 1},
        ),
        ('[{"label": "m-m"}, {"fx-a": 0.6, "ss-n": 0.2}]', {"not a number": 1}),
        # the first of two that can be used
        ('[["fx-a", "?"], ["fx-a", 3], ["ss-n", 1]]', {"not a number": 1}),
    ],
)
def test_doubles_and_odd_entries(content: str, dropped: dict[str, int]) -> None:
    parsed = read(content)
    assert shares(parsed) == GOOD_ROW and parsed.dropped == dropped


@pytest.mark.parametrize(
    ("taxonomy", "answer", "row", "dropped", "mended"),
    [
        (PETS, {"dog": 3, "CAT": 1, "other": 4}, {"dog": 0.75, "cat": 0.25}, {}, {}),
        # a class of that name is a class like any
        (WITH_OTHER, {"dog": 1, "other": 3}, {"dog": 0.25, "Other": 0.75}, {}, {}),
        # two labels that differ in case alone are told apart by it, or not at all
        (
            SPACED,
            {"Dog Bark": 1, "dog bark": 2, "DOG BARK": 9, "cat-meow": 1, " car ": 4},
            {"Dog Bark": 0.125, "dog bark": 0.25, "Cat\N{EN DASH}Meow": 0.125, "CAR": 0.5},
            {"unknown label": 1},
            {},
        ),
        # names do for labels unless two classes have them or another one's label is the same
        (
            NAMED,
            {"one": 1, "twin": 5, "A": 7, "Other": 8, "FA": 6, "e": 1},
            {"a": 0.5, "e": 0.5},
            {"unknown label": 2, "duplicate label": 1},
            {"name for label": 1},
        ),
        (
            BST,
            {"Solo speech": 1, "piano / keyboard  instruments": 3},
            {"sp-s": 0.25, "is-k": 0.75},
            {},
            {"name for label": 2},
        ),
    ],
)
def test_labels_and_names(
    taxonomy: Taxonomy,
    answer: dict[str, float],
    row: dict[str, float],
    dropped: dict[str, int],
    mended: dict[str, int],
) -> None:
    parsed = read(json.dumps(answer), taxonomy)
    assert shares(parsed, taxonomy) == row
    assert parsed.dropped == dropped and parsed.mended == mended
    total = sum(answer.values())
    if taxonomy is PETS:
        assert parsed.other == pytest.approx(4 / total)
    if taxonomy is WITH_OTHER:
        assert parsed.other == 0


def test_equal_taxonomies_may_name_their_classes_differently() -> None:
    other = Taxonomy("renamed", [replace(leaf, name="") for leaf in BST.classes])
    assert other == BST and read('{"Animals": 1}').row[15] == 1
    assert read('{"Animals": 1}', other).dropped == {"unknown label": 1}


NO_CLASS = "no class with a positive probability"
NO_JSON = "no JSON in the reply"
BROKEN = "broken or cut-off JSON in the reply"
CUT_OFF = "cut off at max_tokens"
TWO = "two different answers"
HALF = GOOD[: GOOD.index('"ss-n"') + 3]


@pytest.mark.parametrize(
    ("content", "finish", "reason"),
    [
        ("", "stop", "empty reply"),
        (" \n", "stop", "empty reply"),
        ("<think>so</think>\n", "stop", "empty reply"),
        ("", "length", CUT_OFF),
        # what an injection in the metadata asks for
        ("m-m", "stop", NO_JSON),
        ('"m-m"', "stop", NO_JSON),
        ("I'm sorry, I can't help with that.", "stop", NO_JSON),
        ("{fx-a: 0.7} and {'fx-a': 0.7} [sic", "stop", NO_JSON),
        ("{}", "stop", NO_CLASS),
        ('{"classes": []}', "stop", NO_CLASS),
        ('{"classes": null}', "stop", NO_CLASS),
        # one entry alone may be the first of several
        ('{"label": "fx-a", "probability": 0.9}', "stop", NO_CLASS),
        (listed(("Tiere", 0.9), ("fx-a", 0)), "stop", NO_CLASS),
        # the whole entries of half an answer have too much of the mass
        (HALF, "length", CUT_OFF),
        (HALF, "stop", BROKEN),
        (GOOD[:-2], "length", CUT_OFF),
        (GOOD[:-1], "stop", BROKEN),
        ('[["fx-a", 0.7], ["fx-m", ', "length", CUT_OFF),
        ('[{"fx-a": 0.7}, {"fx-m": about 0.3}]', "stop", BROKEN),
        ('[{"fx-a": about 0.7}, {"fx-m": 0.3}]', "stop", BROKEN),
        ('{"fx-a": 0.7 "fx-m": 0.3}', "stop", BROKEN),
        ('{"fx-a": 0.7, "fx-m": 0.3]', "stop", BROKEN),
        ("<think>Perhaps " + GOOD, "stop", "cut off within <think>"),
        ("<think>Perhaps " + GOOD, "length", CUT_OFF),
        (GOOD + "\nNo: " + listed(("m-m", 1)), "stop", f"{TWO}: fx-a 0.75, then m-m 1.00"),
        (GOOD + listed(("fx-a", 1)) + GOOD, "stop", f"{TWO}: fx-a 1.00, then fx-a 0.75"),
        (GOOD + '{"other": 1}', "stop", f"{TWO}: fx-a 0.75, then other"),
        (GOOD + listed(("m-m", 1)) + " so", "length", f"{TWO}: fx-a 0.75, then m-m 1.00"),
        # a draft: the end of its reasoning is missing
        ("Okay, perhaps " + GOOD + " but then", "length", CUT_OFF),
        # a piece of it, cut between words
        (GOOD, "refusal", "refused: " + GOOD[: GOOD.index(' "probability": 0.2}]')]),
        ("sorry\n" * 99, "refusal", "refused:" + " sorry" * 20),
        ("No\n\x1b[31m way", "refusal", "refused: No [31m way"),
        ("", "content_filter", "stopped by the content filter"),
        ("too long", "rejected", "rejected by the server: too long"),
    ],
)
def test_missing_rows_say_why(content: str, finish: str, reason: str) -> None:
    parsed = read(content, finish=finish)
    assert not parsed.row.any() and parsed.reason == reason


def test_drops_are_counted_in_missing_rows_too() -> None:
    parsed = read('{"Tiere": 0.5, "Musik": 0.2} ' + listed(("Sprache", 1), ("fx-a", "?")))
    assert parsed.reason == NO_CLASS
    assert parsed.dropped == {"unknown label": 3, "not a number": 1}


def test_all_of_it_other() -> None:
    # the model has answered, and no class is left: missing, but not unread
    parsed = read(listed(("other", 0.9), ("fx-a", 0)))
    assert parsed.reason == NO_CLASS and parsed.other == 1
    assert math.isnan(read("").other)


@pytest.mark.parametrize("lead", ["", "\n ", "```json\n", "<think>x</think>\n```\n"])
def test_a_whole_answer_before_words_without_end(lead: str) -> None:
    parsed = read(lead + GOOD + "\n```\nLet me explain " * 30, finish="length")
    assert shares(parsed) == GOOD_ROW and not parsed.reason


def test_rows_cannot_be_written() -> None:
    for content in (GOOD, ""):
        with pytest.raises(ValueError, match="read-only"):
            read(content).row[0] = 1


@pytest.mark.parametrize(
    "content",
    [
        "[" * 30_000,
        "[" * 30_000 + "]" * 30_000,
        "[" * 30_000 + "x",
        '{"classes":' * 30_000,
        "[x" * 30_000,
        '["a" x]' * 20_000,
        '["a" x "' + '\\"' * 30_000,
        '["' * 30_000,
        " " * 30_000 + "[" + " " * 30_000,
        "<think>" * 30_000,
        "[" + "9" * 1_000_000 + "]",
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_nothing_is_too_deep_or_too_long(content: str, finish: str) -> None:
    assert read(content, finish=finish).reason
    assert len(parse_summary(Reply("", content, finish)).text) <= MAX_SUMMARY_CHARACTERS


pieces = st.sampled_from(
    [*'{}[],:"\\%. \n', "classes", '"label"', '"fx-a"', "fx-m", "0.5", "1e999", "-1", "null", "NaN",
     "```json", "<think>", "</think>", "other", "summary", "\ud800", "\\ud800"]
)  # fmt: skip
finishes = st.sampled_from(["stop", "length", "refusal", "content_filter", "rejected", ""])
junk = st.one_of(st.text(), st.lists(pieces).map("".join))


@settings(deadline=None)
@given(junk, finishes)
@example('{"classes": [["fx-a", 5e-324], ["other", 1e308]]}', "stop")
@example('{"classes": [["fx-a", 1e308], ["fx-m", 1e308], ["other", 1e308]]}', "stop")
def test_any_text_gives_a_row_or_a_reason(content: str, finish: str) -> None:
    read(content, finish=finish)
    summary = parse_summary(Reply("", content, finish))
    assert bool(summary.text) != bool(summary.reason)
    assert "\n" not in summary.text + summary.reason
    summary.text.encode()


@settings(deadline=None)
@given(st.data(), finishes)
def test_mutated_answers_give_a_row_or_a_reason(data: st.DataObject, finish: str) -> None:
    content = data.draw(st.sampled_from([GOOD, json.dumps(json.loads(GOOD), indent=1)]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 6, len(content))))
        content = content[:start] + data.draw(junk) + content[end:]
    read(content, finish=finish)


labels = st.sampled_from([*BST.labels, "other"])
answers = st.dictionaries(labels, st.floats(1e-6, 1e6), min_size=1, max_size=24)


@settings(deadline=None)
@given(answers)
def test_an_answer_by_the_schema_loses_nothing(answer: dict[str, float]) -> None:
    entry = class_prompt(BST).schema["properties"]["classes"]["items"]["properties"]
    assert answer.keys() <= set(entry["label"]["enum"])
    parsed = read(listed(*answer.items()))
    other = answer.get("other", 0.0)
    classes = sum(value for label, value in answer.items() if label != "other")
    assert parsed.other == pytest.approx(other / (classes + other))
    assert not parsed.dropped and bool(parsed.reason) == (answer.keys() == {"other"})
    for label, share in zip(BST.labels, parsed.row, strict=True):
        if not parsed.reason:
            assert share == pytest.approx(answer.get(label, 0.0) / classes, abs=1e-9)


@settings(deadline=None)
@given(answers, st.data(), st.sampled_from(["stop", "length"]))
def test_no_part_of_an_answer_is_used(
    answer: dict[str, float], data: st.DataObject, finish: str
) -> None:
    forms = [listed(*answer.items()), json.dumps(answer), json.dumps(list(answer.items()))]
    whole = data.draw(st.sampled_from(forms))
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert read(whole[:cut], finish=finish).reason


@pytest.mark.parametrize(
    ("content", "finish", "text"),
    [
        ('{"summary": "A dog barks twice."}', "stop", "A dog barks twice."),
        ('<think>x</think>```json\n{"summary": "A\\n dog \\u00e9.",}\n```', "stop", "A dog é."),
        ('{"summary": "A dog\n\tbarks \\u00e9."}', "stop", "A dog barks é."),
        ('{"summary": "C:\\dog barks."}', "stop", "C:\\dog barks."),
        ('{"summary": ""} {"note": 1, "summary": "A dog."}', "stop", "A dog."),
        ('{"summary": "A dog."} and so on', "length", "A dog."),
        ("A dog barks\n (twice).", "stop", "A dog barks (twice)."),
        ('Rain [in {stereo}] says "drip".', "stop", 'Rain [in {stereo}] says "drip".'),
        # what HDF5 or UTF-8 could not hold
        ('{"summary": "A\\u0000 dog \\ud83d barks"}', "stop", "A dog barks"),
    ],
)  # fmt: skip
def test_summaries(content: str, finish: str, text: str) -> None:
    parsed = parse_summary(Reply("", content, finish))
    assert (parsed.text, parsed.reason) == (text, "")


@pytest.mark.parametrize(
    ("content", "finish", "reason"),
    [
        ("", "stop", "empty reply"),
        ('{"summary": " \\n"}', "stop", "empty summary"),
        ("\x00", "stop", "empty summary"),
        ('{"text": "A dog."}', "stop", "no summary in the JSON"),
        ('{"summary": ["A dog."]}', "stop", "no summary in the JSON"),
        ('{"summary": "..."}', "stop", "empty summary"),
        ('{"summary": "A dog', "length", CUT_OFF),
        ('{"summary": "A dog', "stop", BROKEN),
        ('{"summary": "A "big" dog"}', "stop", BROKEN),
        ("A dog barks and", "length", CUT_OFF),
        ("A dog barks and", "", NO_JSON),
        ("<think>A dog", "stop", "cut off within <think>"),
        ("I will not", "refusal", "refused: I will not"),
        ("I\u2019m sorry, I can't.", "stop", "refused: I\u2019m sorry, I can't."),
        ("As an AI, I cannot hear.", "stop", "refused: As an AI, I cannot hear."),
    ],
)
def test_missing_summaries_say_why(content: str, finish: str, reason: str) -> None:
    parsed = parse_summary(Reply("", content, finish))
    assert (parsed.text, parsed.reason) == ("", reason)


def test_long_summaries_end_with_a_sentence_or_a_word() -> None:
    def cut(text: str) -> str:
        return parse_summary(Reply("", json.dumps({"summary": text}), "stop")).text

    sentence = "A dog barks at 3.5 Hz! " * 100
    whole = MAX_SUMMARY_CHARACTERS // len("A dog barks at 3.5 Hz! ")
    assert cut(sentence) == ("A dog barks at 3.5 Hz! " * whole).strip()
    assert cut("A dog. " + "bark " * 1000) == "A dog. " + ("bark " * 198).strip()
    exact = "x" * 600 + ". " + "y" * (MAX_SUMMARY_CHARACTERS - 603) + "."
    assert cut(exact) == exact == cut(exact + " Then more.")
