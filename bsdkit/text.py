"""The text of a clip, built from its metadata by a named template that is part of a spec.

Words of class names can be masked, to see how much of a text's worth is that its author named the
class; and other texts may stand for the metadata, such as summaries of them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import html
import html.entities
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.dataset import AUDIO_SUFFIXES, Clips
from bsdkit.errors import DatasetError, nearest
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "TEMPLATES",
    "TextTemplate",
    "build_texts",
    "class_words",
    "get_template",
    "mask_words",
    "masked",
    "named_classes",
    "split_tags",
    "template_name",
    "with_texts",
]

_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->", re.DOTALL)
_ENDING = re.compile("(" + "|".join(map(re.escape, AUDIO_SUFFIXES)) + ")+$", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
_NO_COMMA = re.compile(r"""(?<=['"])\s+(?=['"])""")
_SPACE = re.compile(r"\s+")
_SEPARATOR = re.compile(r"[_\-]+")
_WORD = re.compile(r"[^\W\d_]+")
_LEAST_LETTERS = 3
_EMPTY_WORDS = {"and", "for", "other", "the", "with"}
_MASKS = "masks"


@dataclass(frozen=True)
class TextTemplate:
    """How title, tags and description become one text.

    Attributes:
        name: what a command line or recipe calls it.
        fields: columns of the clips table, in order; empty ones are left out.
        is_clean: whether HTML entities are decoded, HTML tags stripped from the description, a
            file ending cut from the title, underscores and hyphens in it made spaces, and lists
            as Python and JSON write them read as tags.
        fallback: the text of a clip whose fields are all empty.
        version: raised where all texts would be others. Where a few are, their rows are embedded
            again without it, by the hashes of the texts, and the others are kept.
        masks: words that are cut out of every field, see `class_words`.
        texts: by clip id, what stands for the metadata; a clip without one keeps its own.
        origin: where `texts` come from; part of the spec.
    """

    name: str
    fields: tuple[str, ...]
    is_clean: bool = True
    fallback: str = "a sound"
    version: int = 1
    masks: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    origin: str = ""

    def describe(self) -> str:
        """The template as it stands in a spec; two that differ give different texts."""
        cleaning = "clean" if self.is_clean else "raw"
        parts = [". ".join(self.fields), cleaning, repr(self.fallback), f"v{self.version}"]
        if self.masks:
            digest = hashlib.sha256("\n".join(self.masks).encode()).hexdigest()
            parts.append(f"{_MASKS} {len(self.masks)} words {digest[:12]}")
        if self.origin:
            parts.append(self.origin)
        return " | ".join(parts)

    def clean_fields(self, title: str, tags: str, description: str) -> dict[str, str]:
        """Title, tags (separated by commas) and description of a clip, cleaned and masked.

        Args:
            title: its title.
            tags: its tags, see `split_tags`.
            description: its description.
        """
        values = {"title": title, "tags": tags, "description": description}
        if self.is_clean:
            values["title"] = _SEPARATOR.sub(" ", _ENDING.sub("", _decoded(title).strip()))
            values["tags"] = ", ".join(map(_decoded, split_tags(tags)))
            values["description"] = _decoded(_TAG.sub(" ", description))
        # a lone surrogate has no UTF-8: it could be neither hashed nor sent
        values = {name: v.encode("utf-8", "replace").decode() for name, v in values.items()}
        if self.masks:
            values = {name: mask_words(value, self.masks) for name, value in values.items()}
        return {name: _SPACE.sub(" ", value).strip() for name, value in values.items()}

    def build(self, title: str, tags: str, description: str) -> str:
        """The text of one clip."""
        values = self.clean_fields(title, tags, description)
        ended = [values[name].rstrip(". ") for name in self.fields]
        return ". ".join(part for part in ended if part) or self.fallback


def split_tags(text: str) -> list[str]:
    """The tags in a text: with commas between them, or a list as Python, JSON or NumPy writes it.

    Spaces part no tags: "old barn" is one.

    Examples:
        >>> split_tags("dog, old barn,")
        ['dog', 'old barn']
        >>> split_tags("['dog', 'old barn']") == split_tags('["dog","old barn"]')
        True
    """
    listed = _listed(text)
    tags = text.split(",") if listed is None else listed
    return [tag for tag in map(str.strip, tags) if tag]


def _listed(text: str) -> list[str] | None:
    """The strings of a list as Python, JSON or NumPy writes it; None where it is none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, _literal):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return list(map(str, found)) if all(type(x) in (str, int, float) for x in found) else None
    return None


def _literal(text: str) -> Any:
    # Python would join strings that NumPy parts by spaces alone
    return ast.literal_eval(_NO_COMMA.sub(", ", text))


def _decoded(text: str) -> str:
    """The text with its HTML entities decoded once; "rock&reggae" has none."""
    return _ENTITY.sub(
        lambda e: html.unescape(e[0]) if "#" in e[0] or e[0][1:] in html.entities.html5 else e[0],
        text,
    )


TEMPLATES: dict[str, TextTemplate] = {
    template.name: template
    for template in (
        TextTemplate("title-tags-description", ("title", "tags", "description")),
        TextTemplate("title-tags", ("title", "tags")),
        TextTemplate("title", ("title",)),
        TextTemplate("tags", ("tags",)),
        TextTemplate("description", ("description",)),
        TextTemplate("raw", ("title", "tags", "description"), is_clean=False),
    )
}
"""The named templates; the first is the default."""


def get_template(name: str) -> TextTemplate:
    """The template of that name.

    Raises:
        DatasetError: there is none; the message names the nearest.
    """
    if name not in TEMPLATES:
        raise DatasetError(f"unknown text template {name!r}: {nearest(name, TEMPLATES)}")
    return TEMPLATES[name]


def masked(template: TextTemplate, taxonomy: Taxonomy) -> TextTemplate:
    """The template without the words of the taxonomy's class and family names."""
    return replace(template, name="masked", masks=class_words(taxonomy))


def with_texts(template: TextTemplate, texts: Mapping[str, str], origin: str) -> TextTemplate:
    """The template with texts by clip id in the place of metadata.

    Args:
        template: gives the text of clips that have none among `texts`.
        texts: by clip id.
        origin: the texts' name and what they were made with, for the spec.
    """
    return replace(template, name=_first_word(origin), texts=texts, origin=origin)


def _first_word(origin: str) -> str:
    return origin.partition(".")[0].partition("@")[0]


def template_name(described: str) -> str:
    """The short name of a template by what `TextTemplate.describe` says of it.

    That is a name in TEMPLATES, ``masked``, or the first word of the origin that `with_texts`
    got, such as ``summary``; empty where it is none of them.
    """
    for name, template in TEMPLATES.items():
        base = template.describe()
        if described == base:
            return name
        if described.startswith(f"{base} | {_MASKS} "):
            return "masked"
        if described.startswith(f"{base} | "):
            return _first_word(described.removeprefix(f"{base} | "))
    return ""


def build_texts(clips: Clips, template: TextTemplate) -> list[str]:
    """The text of every clip [n], in row order."""
    rows = zip(clips.ids, clips.title, clips.tags, clips.description, strict=True)
    return [
        template.texts.get(str(clip), "") or template.build(str(title), str(tags), str(description))
        for clip, title, tags, description in rows
    ]


def class_words(taxonomy: Taxonomy) -> tuple[str, ...]:
    """Words of the class and family names, lower-case, without plural endings, sorted.

    Words of fewer than three letters and such as ``and`` and ``other`` are none of them.
    """
    return tuple(sorted(set().union(*_words_by_class(taxonomy, with_family=True))))


def _words_by_class(taxonomy: Taxonomy, *, with_family: bool) -> list[set[str]]:
    found = []
    for c in taxonomy.classes:
        names = [c.name or c.label, *([c.family_name or c.family] if with_family else [])]
        words = {word.lower() for name in names for word in _WORD.findall(name)}
        words = {word for word in words if len(word) >= _LEAST_LETTERS} - _EMPTY_WORDS
        found.append({_singular(word) for word in words})
    return found


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


@functools.lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    listed = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    # file names join words by underscores, which are word characters to \b
    return re.compile(rf"(?<![^\W_])(?:{listed})(?:es|s)?(?![^\W_])", re.IGNORECASE)


def mask_words(text: str, words: Iterable[str]) -> str:
    """The text without these words and their plurals; commas with nothing between them are one."""
    parts = [part.strip() for part in _pattern(tuple(words)).sub(" ", text).split(",")]
    return _SPACE.sub(" ", ", ".join(part for part in parts if part))


def named_classes(texts: Sequence[str], taxonomy: Taxonomy) -> npt.NDArray[np.bool_]:
    """Whether a text holds a word of a class's own name, its family's apart [n, n_classes]."""
    patterns = [
        _pattern(tuple(sorted(words))) if words else None
        for words in _words_by_class(taxonomy, with_family=False)
    ]
    rows = [[bool(p and p.search(text)) for p in patterns] for text in texts]
    return np.array(rows, bool).reshape(len(texts), len(taxonomy))
