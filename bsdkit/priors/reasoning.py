"""A model's reasoning, told apart from its answer by the marks that models set around it.

Servers are meant to strip the reasoning and often do not, or strip the tokens and leave the words.
A draft in it must not be taken for the answer.
"""

from __future__ import annotations

import re

__all__ = ["MARKS", "cut_reasoning", "without_tokens"]

_NAMES = "(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|rationale|scratchpad)"
_BAR = "[|\uff5c]"
_JOIN = "[_\u2581]"  # DeepSeek's tokens have a block in the place of the underscore

MARKS: tuple[tuple[str, str], ...] = (
    # <think>, <seed:think>, [THINK], kimi's triangles, <|thinking|>, <|begin_of_thought|>,
    # <|START_THINKING|>, <|thought_start|>: models that mix them up end any by any
    (
        rf"<(?:\w+:)?{_NAMES}(?:\s[^<>]*)?(?<!/)>|\[{_NAMES}\]|\u25c1{_NAMES}\u25b7"
        rf"|<{_BAR}(?:(?:begin|start){_JOIN}(?:of{_JOIN})?)?{_NAMES}(?:{_JOIN}start)?{_BAR}>",
        rf"</{_BAR}?(?:\w+:)?{_NAMES}{_BAR}?\s*>|\[/{_NAMES}\]|\u25c1/{_NAMES}\u25b7"
        rf"|<{_BAR}(?:/|end{_JOIN}(?:of{_JOIN})?){_NAMES}{_BAR}>|<{_BAR}{_NAMES}{_JOIN}end{_BAR}>",
    ),
    # harmony (gpt-oss): what is not in the final channel is no answer
    (
        r"(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*(?:analysis|commentary)",
        r"(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*final(?:\s*<\|constrain\|>\s*\w+)?(?:\s*<\|message\|>)?",
    ),
    # harmony without its tokens; "analysis of ..." may begin an answer
    (
        r"\A\s*(?:assistant)?(?-i:(?:analysis|commentary)(?=\s*[A-Z\n\"'{\[]))",
        r"assistantfinal|^assistant[ \t]*\n+[ \t]*final\b",
    ),
    (r"<\|channel>\s*thought", r"<channel\|>"),  # Gemma
    (r"<unused94>(?:\s*thought)?", "<unused95>"),  # MedGemma
    (r"\[unused16\]", r"\[unused17\]"),  # openPangu
    (  # Granite
        r"here(?:['\u2019]s| is) my thought process:",
        r"here(?:['\u2019]s| is) my response:",
    ),
    (r"here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]"),  # Apriel
)
"""Where the reasoning of models begins and ends, as regular expressions in any letter case."""

# A mark inside quotation marks, as in the strings of JSON, is spoken of and not set. The marks
# must stand as a pair does, so that an apostrophe or an inch begins none.
_QUOTED = (
    r'(?<![\w\\])"(?:[^"\\\n]|\\.)*+"(?!\w)'
    r"|(?<!\w)'[^'\n]{1,200}+'(?!\w)|(?<!`)`[^`\n]{1,200}+`(?!`)|\u201c[^\u201d\n]{1,200}+\u201d"
)
_SCAN = re.compile(
    _QUOTED + "".join(f"|(?P<begin{i}>{b})|(?P<end{i}>{e})" for i, (b, e) in enumerate(MARKS)),
    re.IGNORECASE | re.MULTILINE,
)
_TOKENS = re.compile(
    rf"<{_BAR}\w+{_BAR}>|</s>|</?(?:answer|response|output|solution)>|\[(?:BEGIN|END) FINAL "
    r"RESPONSE\]",
    re.IGNORECASE,
)


def cut_reasoning(text: str) -> tuple[str, str]:
    """A reply without its reasoning, and the mark of reasoning that does not end; else "".

    Where an end has no beginning, which chat templates put into the request, all before it is
    reasoning. So is what follows a beginning without an end.
    """
    kept: list[str] = []
    position, inside, mark = 0, "", ""
    for found in _SCAN.finditer(text):
        name = found.lastgroup
        if name is None:
            continue
        if name.startswith("begin"):
            if not inside:
                kept.append(text[position : found.start()])
                inside, mark = name.removeprefix("begin"), found[0].strip().lower()
        elif not inside:
            kept, position = [], found.end()
        elif name == f"end{inside}":
            position, inside, mark = found.end(), "", ""
    if not inside:
        kept.append(text[position:])
    return " ".join(kept), mark


def without_tokens(text: str) -> str:
    """The text without what chat templates put around an answer, such as ``<|end|>``."""
    return _TOKENS.sub(" ", text)
