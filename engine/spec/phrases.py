"""The wording of problems: what the validator found, in the words of a spec, with what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

_SYNONYMS: Mapping[str, str] = {
    "algo": "algorithm",
    "batch": "batch_size",
    "beta": "kl",
    "cuda": "device",
    "data": "dataset",
    "epoch": "epochs",
    "eval": "evaluation",
    "gamma": "discount",
    "gpu": "gpus",
    "hub_id": "hub",
    "lambda": "lam",
    "learning_rate": "lr",
    "lora_alpha": "alpha",
    "lora_r": "r",
    "max_retries": "retries",
    "max_steps": "steps",
    "method": "algorithm",
    "model_name": "model",
    "model_name_or_path": "model",
    "n_gpus": "gpus",
    "num_epochs": "epochs",
    "num_gpus": "gpus",
    "num_iterations": "iterations",
    "path": "file",
    "question": "prompt",
    "random_seed": "seed",
    "rank": "r",
    "resources": "hardware",
    "reward_fn": "score_fn",
    "steps": "iterations",
    "target": "answer",
    "text": "prompt",
    "train_items": "items",
    "warm_up": "warmup",
}
_NUMBER = re.compile(r"[-+]?[0-9][0-9_,]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_YES, _NO = ("yes", "on", "y", "t"), ("no", "off", "n", "f")
_EMPTY = ("none", "nil", "undefined", "n/a")


def close_to(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant."""
    snake = re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", word).replace("-", "_").lower()
    for variant in (word, word.lower(), snake):
        if variant in known:
            return variant
    if (meant := _SYNONYMS.get(snake)) in known:
        return meant
    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return found[0] if found else None


def unknown_key(key: str, parent: str, known: Sequence[str], elsewhere: Sequence[str]) -> str:
    """A key that is not one of those that may stand here."""
    block = parent or "a spec"
    close = close_to(key, known)
    if elsewhere and (close is None or not difflib.get_close_matches(key, known, n=1, cutoff=0.85)):
        hint = f"It belongs to {_or([_parent_of(place) for place in elsewhere[:3]])}: move it there."
    elif close is not None:
        hint = f"Did you mean {close!r}?"
    else:
        hint = f"Its keys are {', '.join(known)}." if known else ""
    return f"{key!r} is not a key of {block}. {hint}".rstrip()


def no_tag(block: str, key: str, tags: Sequence[str]) -> str:
    """A block that does not say which of several things it is."""
    return f"{block} needs a {key}: {_or(tags)}"


def unknown_tag(path: str, value: Any, tags: Sequence[str]) -> str:
    """A block that says it is something that does not exist."""
    return f"{path} cannot be {shown(value)}. {_meant(value, tags)}"


def worded(kind: str, path: str, detail: Mapping[str, Any], *, nullable: bool) -> str:
    """The validator's error of this kind in our words."""
    context, value = detail.get("ctx", {}), detail.get("input")
    name = path or "a spec"
    match kind:
        case "spec":
            message = str(context["message"])
            leaf = path.rpartition(".")[2]
            return message if leaf and leaf in message else f"{name}: {message}" if path else message
        case "value_error":
            return f"{name}: {str(detail['msg']).removeprefix('Value error, ')}"
        case "literal_error" | "enum":
            tags = listed(str(context.get("expected", "")))
            return f"{name} cannot be {shown(value)}. {_meant(value, tags)}"
        case "greater_than":
            return f"{name} must be more than {context['gt']}, not {shown(value)}{_no_limit(value, nullable)}"
        case "greater_than_equal":
            return f"{name} must be at least {context['ge']}, not {shown(value)}{_no_limit(value, nullable)}"
        case "less_than":
            return f"{name} must be less than {context['lt']}, not {shown(value)}"
        case "less_than_equal":
            return f"{name} must be at most {context['le']}, not {shown(value)}"
        case "too_short":
            count = context["min_length"]
            state = "too short" if context["actual_length"] else "empty"
            return f"{name} is {state}: it needs at least {count} {'entry' if count == 1 else 'entries'}"
        case "too_long":
            return f"{name} has more than {context['max_length']} entries"
        case "string_too_short":
            return f"{name} must have at least {context['min_length']} characters"
        case "string_too_long":
            return f"{name} must have at most {context['max_length']} characters"
        case "string_pattern_mismatch":
            return _pattern(name, str(value), str(context["pattern"]))
    wanted = _WANTED.get(kind)
    if wanted is None:
        return f"{name}: {detail['msg']}"
    if value is None:
        return f"{name} is empty: give it a value, or remove the key to keep its default"
    return f"{name} must be {wanted}, not {shown(value)}{_conversion(kind, value, nullable)}"


_WANTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "dict_type": "a block of `key: value`",
    "mapping_type": "a block of `key: value`",
    "model_type": "a block of `key: value`",
    "model_attributes_type": "a block of `key: value`",
    "dataclass_type": "a block of `key: value`",
    "none_required": "null",
}


def _conversion(kind: str, value: Any, nullable: bool) -> str:
    """How to write the value so that it is of the wanted type."""
    wanted = _WANTED[kind]
    if nullable and isinstance(value, str) and value.lower() in _EMPTY:
        return ": write null"
    if wanted == "text" and isinstance(value, bool | int | float):
        return f': put it in quotes, "{"true" if value is True else "false" if value is False else value}"'
    if wanted == "true or false" and isinstance(value, str):
        word = value.lower()
        meant = "true" if word in (*_YES, "true") else "false" if word in (*_NO, "false") else ""
        return f": write {meant}" if meant else ""
    if "number" in wanted and isinstance(value, str) and _NUMBER.fullmatch(value):
        return f": write {value.replace('_', '').replace(',', '')}" + (" without quotes" if value.isdecimal() else "")
    if wanted == "a whole number" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f": write {int(value)}"
    if wanted == "a list" and not isinstance(value, Mapping):
        return f": write [{value}]"
    return ""


def _no_limit(value: Any, nullable: bool) -> str:
    return ": write null for no limit" if nullable and value in (-1, 0) else ""


def _pattern(name: str, value: str, pattern: str) -> str:
    if name == "name":
        slug = re.sub(r"[^a-z0-9_]+", "_", value.lower()).strip("_0123456789") or "experiment"
        return f"name must be lower-case letters, digits and underscores, not {value!r}. Did you mean {slug!r}?"
    return f"{name} cannot be {value!r}: it must match {pattern}"


def _meant(value: Any, tags: Sequence[str]) -> str:
    close = close_to(value, tags) if isinstance(value, str) else None
    if close is None and isinstance(value, str):
        found = difflib.get_close_matches(value.lower(), tags, n=1, cutoff=0.45)
        close = found[0] if found else None
    return f"Did you mean {close!r}?" if close else f"It is one of {', '.join(tags)}."


def listed(text: str) -> list[str]:
    """The quoted words in the validator's list of them; its numbers too."""
    return re.findall(r"'([^']*)'", text) or re.findall(r"[\w.-]+", text.replace(" or ", " "))


def shown(value: Any) -> str:
    """A value as one speaks of it."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:57]!r}…"
    if isinstance(value, int | float):
        return f"{value}"
    return "a list" if isinstance(value, list | tuple) else "a block of keys"


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _parent_of(path: str) -> str:
    return path.rpartition(".")[0] or "the top level"
