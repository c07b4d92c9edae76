"""What libyaml's words for broken YAML mean to the person who wrote it."""

from __future__ import annotations

import re
from typing import Any

# What the parser says -> what to say instead. Looked up in order; {…} are the pattern's groups.
_MEANINGS: tuple[tuple[str, str], ...] = (
    (r"found character '\\?t'|found a tab character", "a tab: YAML indents with spaces only"),
    (r"mapping values are not allowed", "a second colon: put the text in quotes, or mind the indentation"),
    (r"found unexpected ':'", "a colon without a space after it: add one, or put the text in quotes"),
    (r"could not find expected ':'", "a key without its colon, or text that is not indented under its key"),
    (r"did not find expected key|expected <block end>", "the indentation does not match the lines above"),
    (r"did not find expected '-' indicator", "the indentation does not match the list above"),
    (r"found unexpected end of stream", "a quote is opened and never closed"),
    (
        r"did not find expected ',' or '([\]}])'|expected ',' or '([\]}])'",
        "a comma or bracket is missing, or a text with brackets is not in quotes",
    ),
    (
        r"found character that cannot start any token|found character .* that cannot start",
        "this character starts no text: put the text in quotes",
    ),
    (r"invalid Unicode character escape code", "half a character: write the character itself in place of the escape"),
    (r"found unknown escape character", "an unknown escape: use single quotes, or double the backslash"),
    (
        r"did not find expected comment or line break|expected chomping",
        "the text after `|` or `>` starts on the next line",
    ),
    (r"did not find expected node content", "a value is missing here, or a stray bracket or comma"),
    (r"block sequence entries are not allowed", "a list begins on its own line, indented under its key"),
    (r"did not find expected <document start>", "the document has ended here: a stray quote, bracket or directive"),
    (r"found undefined tag handle", "a tag: a spec is plain data"),
    (r"found (duplicate|incompatible).*|%YAML|directive", "a directive: a spec has none"),
)


def explained(error: Any, line: str) -> str:
    """The parser's error in words that say what to change; `line` is the text of the line it stumbled in."""
    said = " ".join(str(part) for part in (error.context, error.problem) if part)
    if line[: len(line) - len(line.lstrip())].find("\t") >= 0:
        return "not YAML: a tab: YAML indents with spaces only"
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, said):
            return f"not YAML: {meaning}"
    return f"not YAML: {said}"
