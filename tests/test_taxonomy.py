"""Classes and families: the built-in taxonomy, those of a user, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsdkit.errors import BsdkitError, TaxonomyError, UnknownClass
from bsdkit.taxonomy import BST, Taxonomy, TaxonomyClass, load_taxonomy

# The official order; every array of class scores and every submission follows it.
OFFICIAL = {
    "m": {"m-sp": 101, "m-si": 102, "m-m": 103},
    "is": {"is-p": 201, "is-s": 202, "is-w": 203, "is-k": 204, "is-e": 205},
    "sp": {"sp-s": 301, "sp-c": 302, "sp-p": 303},
    "fx": {
        "fx-o": 401,
        "fx-v": 402,
        "fx-m": 403,
        "fx-h": 404,
        "fx-a": 405,
        "fx-n": 406,
        "fx-ex": 407,
        "fx-el": 408,
    },
    "ss": {"ss-n": 501, "ss-i": 502, "ss-u": 503, "ss-s": 504},
}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_bst_is_the_official_taxonomy() -> None:
    assert BST.families == tuple(OFFICIAL)
    flat = [(label, family, code) for family, of in OFFICIAL.items() for label, code in of.items()]
    assert [(c.label, c.family, c.code) for c in BST.classes] == flat
    assert len(BST) == 23
    assert BST.labels == tuple(label for label, _, _ in flat)
    assert [BST.families[i] for i in BST.family_of] == [family for _, family, _ in flat]
    # prompts and text encoders read these
    assert all(c.name and c.family_name and c.description for c in BST.classes)
    assert len({c.description for c in BST.classes}) == 23
    assert load_taxonomy("BST") is BST


@settings(deadline=None)
@given(st.lists(st.sampled_from(["", *BST.labels])))
def test_encode_and_decode_are_inverse(labels: list[str]) -> None:
    positions = BST.encode(labels)
    assert positions.dtype == np.int64 and positions.shape == (len(labels),)
    assert [i == -1 for i in positions] == [label == "" for label in labels]
    assert BST.decode(positions) == labels


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ("fx-ell", "did you mean 'fx-el'?"),
        ("FX-A", "known: fx-a, fx-el, "),
        ("fx-other", "did you mean 'fx-o'?"),
    ],
)
def test_unknown_class_names_the_nearest(label: str, hint: str) -> None:
    with pytest.raises(UnknownClass) as caught:
        BST.encode(["m-sp", label])
    message = str(caught.value)
    # a KeyError prints the repr of its argument; users must see the sentence itself
    assert message.startswith(f"{label!r} is not a class of taxonomy 'bst': ")
    assert hint in message
    assert isinstance(caught.value, (KeyError, ValueError)) and isinstance(
        caught.value, BsdkitError
    )


def test_credit_is_one_some_or_nothing() -> None:
    # a, c and d share a family, and they do not stand together
    tree = Taxonomy("t", [TaxonomyClass(*pair) for pair in ("ax", "by", "cx", "dx")])
    expected = [[1, 0, 0.375, 0.375], [0, 1, 0, 0], [0.375, 0, 1, 0.375], [0.375, 0, 0.375, 1]]
    np.testing.assert_array_equal(tree.credit(0.375), expected)
    np.testing.assert_array_equal(Taxonomy.flat(list("abc")).credit(0.375), np.eye(3))


def test_flat_gives_every_class_its_own_family() -> None:
    tree = Taxonomy.flat(["dog", "cat"], name="pets")
    assert (tree.name, tree.labels, tree.families) == ("pets", ("dog", "cat"), ("dog", "cat"))
    assert tree.family_of.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("label", "code", "reason"),
    [
        ("m", -1, "a family only"),
        ("fx", 400, "a family only"),
        ("something", 100, "a family only"),
        ("fx-other", -1, "the rest of a family"),
        ("something", 999, "the rest of a family"),
        ("fx-a", 405, ""),
        # a class with a wrong code is a contradiction to report, not a row to drop quietly
        ("fx-a", 499, ""),
        ("something", 409, ""),
        # the rule is about codes of three digits
        ("something", 1000, ""),
        ("something", 99, ""),
    ],
)
def test_reason_to_drop(label: str, code: int, reason: str) -> None:
    found = BST.reason_to_drop(label, code)
    assert found.endswith(reason) and bool(found) == bool(reason)
    # The rule belongs to the task: other people's classes may well be called "x-other".
    own = Taxonomy("own", [TaxonomyClass("a", "m", 200), TaxonomyClass("b-other", "fx", 499)])
    assert own.reason_to_drop(label, code) == ""


def test_from_csv_reads_what_people_write(tmp_path: Path) -> None:
    path = write(
        tmp_path / "my labels.csv",
        # a byte order mark, quoted commas, columns in another order, an empty family and code
        "\ufefffamily,class,code,description,name,family_name\n"
        'pets,dog,7,"barks, howls",Dog,Pets\n'
        ",rain,,,,\n"
        " pets , cat ,9,meows,Katze 🐈,Pets\n",
    )
    tree = load_taxonomy(str(path))
    assert tree.name == "my labels"
    assert tree.labels == ("dog", "rain", "cat")
    assert tree.families == ("pets", "rain")
    assert tree.family_of.tolist() == [0, 1, 0]
    assert [c.code for c in tree.classes] == [7, -1, 9]
    assert tree.classes[0].description == "barks, howls"
    assert [c.family_name for c in tree.classes] == ["Pets", "", "Pets"]
    assert [c.name for c in tree.classes] == ["Dog", "rain", "Katze 🐈"]


def test_equality_is_of_classes_order_and_families(tmp_path: Path) -> None:
    rows = [f"{c.label},{c.family}" for c in BST.classes]
    same = Taxonomy.from_csv(write(tmp_path / "a.csv", "\n".join(["class,family", *rows])))
    turned = Taxonomy.from_csv(write(tmp_path / "b.csv", "\n".join(["class,family", *rows[::-1]])))
    assert same == BST and hash(same) == hash(BST)
    assert turned != BST
    assert Taxonomy.flat(BST.labels) != BST


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class,name\na,A\n", "lacks the column 'family'"),
        ("name,family\nA,a\n", "lacks the column 'class'"),
        ("", "has no class"),
        ("class,family\n", "has no class"),
        ("class,family\nb,x\na,x\na,y\n", "names the class 'a' twice"),
        ("class,family,code\na,x,5\nb,x,1\nc,x,1\n", "gives the code 1 to two classes"),
        ("class,family,code\na,x,1\nb,x,one\n", "line 3: class 'b', code 'one'"),
        ("class,family\na,x\n ,x\n", "line 3: class ''"),
        ("class,family\nb\xe9,x\n".encode("latin-1"), "not UTF-8"),
        (
            "class,family,code\na,x,²\n",
            "line 2: class 'a', code '²'",
        ),
        ('class,family,name\na,x,"A\nb,x,B\n', "line 2"),
        ("class,family,name\na,Sound, effects,x\n", "line 2"),
    ],
)
def test_from_csv_faults(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(TaxonomyError) as caught:
        Taxonomy.from_csv(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_taxonomies_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match=r"cannot read the taxonomy .*nope\.csv: No such file"):
        load_taxonomy(str(tmp_path / "nope.csv"))
    with pytest.raises(TaxonomyError, match="unknown taxonomy 'bts': give 'bst' or the path"):
        load_taxonomy("bts")
