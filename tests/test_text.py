"""The text of a clip: what is cleaned, what is left alone, what stands in for nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bsdkit.dataset import read_dataset
from bsdkit.errors import DatasetError
from bsdkit.taxonomy import BST, Taxonomy
from bsdkit.text import (
    TEMPLATES,
    build_texts,
    class_words,
    get_template,
    mask_words,
    masked,
    named_classes,
    template_name,
    with_texts,
)

DEFAULT = next(iter(TEMPLATES.values()))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("title-tags-description", "big door slam. door, creak, old barn. A barn door & its echo"),
        ("title-tags", "big door slam. door, creak, old barn"),
        ("title", "big door slam"),
        ("tags", "door, creak, old barn"),
        ("description", "A barn door & its echo"),
        (
            "raw",
            "big_door-slam.WAV. door,creak , old barn,. <p>A barn door &amp; its<br>echo.</p>",
        ),
    ],
)
def test_templates(template: str, text: str) -> None:
    built = get_template(template).build(
        " big_door-slam.WAV ".strip(),
        "door,creak , old barn,",
        "<p>A barn  door &amp;\n its<br>echo.</p>",
    )
    assert built == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("", "", ""), "a sound"),
        (("", " , ,", "<br/>&nbsp;"), "a sound"),
        # a file ending alone says nothing
        ((".wav", "", ""), "a sound"),
        (("", "rain", ""), "rain"),
        # a full stop at the end of a part does not become two
        (("Rain.", "", "Heavy rain..."), "Rain. Heavy rain"),
        (("雨_音.flac", "été", "дождь 🌧"), "雨 音. été. дождь 🌧"),
        # only endings of audio files are cut, and only at the end
        (("v1.2", "", ""), "v1.2"),
        (("my.wav file", "", ""), "my.wav file"),
        (("", "", "<!-- a > b -->wind"), "wind"),
        (("", "", 'see <a href="http://x.org/?a=1&b=2">here</a>'), "see here"),
        (("...", "rain", ""), "rain"),
        (("rain .", "wet", ""), "rain. wet"),
        (("", "", "gain < 5 dB and > 2 dB"), "gain < 5 dB and > 2 dB"),
        (("rain.wav.mp3", "", ""), "rain"),
        # entities are decoded once, everywhere, and only whole ones
        (("dog &amp; cat.wav ", "r&amp;b, l&#39;eau", "&amp;amp;"), "dog & cat. r&b, l'eau. &amp;"),
        (("dog&nbsp;bark&#46;wav", "", "&lt;b&gt; &#x1F327;"), "dog bark. <b> 🌧"),
        (
            ("rock&reggae", "d&b; &nosuch;", "?a=1&copy=2"),
            "rock&reggae. d&b; &nosuch;. ?a=1&copy=2",
        ),
        # lists as pandas writes them
        (("", "['dog', \"cow's\", 'old barn']", ""), "dog, cow's, old barn"),
        (("", ' ["dog","\\u00e9t\\u00e9", "r&amp;b", 808] ', ""), "dog, été, r&b, 808"),
        (("", "['dog' 'old barn'\n 'owl']", ""), "dog, old barn, owl"),
        (("", "[]", ""), "a sound"),
        (("", '["\\ud800"]', ""), "?"),
        # what only looks like one
        (("", "[fx] door, [loud]", ""), "[fx] door, [loud]"),
        (("", "['dog', ['cat']]", ""), "['dog', ['cat']]"),
        (("", "dog old barn", ""), "dog old barn"),
        (("", "[" * 9999 + "]" * 9999, ""), "[" * 9999 + "]" * 9999),
    ],
)
def test_cleaning(fields: tuple[str, str, str], text: str) -> None:
    assert DEFAULT.build(*fields) == text


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(TEMPLATES)), st.lists(st.text(), min_size=3, max_size=3))
def test_any_metadata_gives_one_line_of_text(template: str, fields: list[str]) -> None:
    text = TEMPLATES[template].build(*fields)
    assert text
    assert text == " ".join(text.split())
    assert not text.startswith(". ")


def test_describe_tells_templates_apart() -> None:
    # it stands in the spec of a text feature: equal ones would share a store, and another
    # wording of the same template would make every store stale
    assert DEFAULT.describe() == "title. tags. description | clean | 'a sound' | v1"
    assert get_template("raw").describe() == "title. tags. description | raw | 'a sound' | v1"
    assert len({template.describe() for template in TEMPLATES.values()}) == len(TEMPLATES)
    changes = [{"fields": ("tags", "title")}, {"is_clean": False}, {"fallback": "?"}]
    for change in [*changes, {"version": DEFAULT.version + 1}]:
        assert replace(DEFAULT, **change).describe() != DEFAULT.describe()
    # what it is called changes no text, so it must not make a feature stale
    assert replace(DEFAULT, name="other").describe() == DEFAULT.describe()


def test_unknown_template_names_the_nearest() -> None:
    with pytest.raises(DatasetError, match="unknown text template 'title-tag': did you mean"):
        get_template("title-tag")


def test_texts_are_in_row_order(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("id,title,tags,description\n9,b.wav,,x\n1,a.wav,t,\n5,,,\n")
    clips, _ = read_dataset(path)
    assert build_texts(clips, get_template("title-tags-description")) == ["b. x", "a. t", "a sound"]


def test_class_words_are_cut_out_whole_with_their_plurals() -> None:
    words = class_words(BST)
    assert {"vehicle", "piano", "speech", "animal"} <= set(words)
    assert not {"and", "other", "a", "s"} & set(words)
    cut = masked(get_template("title-tags-description"), BST)
    assert cut.describe() != DEFAULT.describe()
    text = cut.build("Piano_solo-Vehicles.wav", "animals,dog, SPEECHES", "A pianola, pianos; rain")
    assert text == "dog. A pianola, ; rain"
    assert cut.build("Speech", "speech", "") == "a sound"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([*class_words(BST), "dog", "rain", "-", ",", "_"]), max_size=12))
def test_no_class_word_is_left(parts: list[str]) -> None:
    text = mask_words(" ".join(parts), class_words(BST))
    assert not named_classes([text], BST).any()
    assert text.count("dog") == parts.count("dog")


def test_a_text_says_which_classes_it_names() -> None:
    own = Taxonomy.flat(["dog", "big cat", "a"])
    named = named_classes(["Dogs bark", "a catalogue", "cats and dog_house"], own)
    assert named.tolist() == [[True, False, False], [False, False, False], [True, True, False]]


def test_names_of_templates_are_known_by_what_a_spec_says() -> None:
    for name, template in TEMPLATES.items():
        assert template_name(template.describe()) == name
    usual = get_template("title-tags-description")
    assert template_name(masked(usual, BST).describe()) == "masked"
    texts = with_texts(usual, {"1": "A dog."}, "summary.gpt-5.4@0123456789ab")
    assert template_name(texts.describe()) == "summary"
    assert template_name("something else") == template_name("") == ""


def test_texts_stand_for_metadata_where_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("sound_id,class,title,tags,description\n1,m-sp,b,t,x\n2,m-si,a,t,\n")
    clips, _ = read_dataset(path)
    template = with_texts(get_template("title-tags-description"), {"2": "Two."}, "summary.m@0")
    assert build_texts(clips, template) == ["b. t. x", "Two."]
