"""From the words of a command line to keys and values: `lr_img=1e-05`, `--ipc 10`, `students=[1, 2]`, `x=None`."""

import ast
import json
import logging
import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from dd.errors import UsageError

log = logging.getLogger(__name__)

_PAIR = re.compile(r"(?P<key>[A-Za-z_][\w.-]*)=(?P<value>.*)", re.DOTALL)
_FLAG = re.compile(r"--[A-Za-z_][\w.-]*")
_HIDDEN = "_wandb"  # a preempted or resumed sweep run may be handed this key; it is not meant for the program
_WORDS = {"null": None, "None": None, "True": True, "False": False}


def parse_overrides(args: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` words into a flat mapping of dotted keys to values; a later word wins over an earlier one.

    Accepted besides `key=value`: `--key=value`, `--key value`, `--flag` (true), `+key=value`, `++key=value`, and one
    JSON object `{"key": value, ...}`, as the various argument macros of a W&B sweep write them.

    Raises:
        UsageError: one line for every word that is none of these.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in _pairs(list(args), problems):
        if key == _HIDDEN:
            log.debug("ignored %s, which W&B adds for itself", key)
        else:
            values[key.replace("-", "_")] = value
    if problems:
        raise UsageError("\n".join(problems))
    return values


def parse_value(text: str) -> Any:
    """The value a text spells in TOML, else in Python, else in JSON; else the text itself.

    Dates stay texts, and so does whatever merely contains a comment.
    """
    text = text.strip()
    if text in _WORDS:
        return _WORDS[text]
    if not text or ("#" in text and text[0] not in "\"'[{"):
        return text
    for read in (_toml, ast.literal_eval, json.loads):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        if isinstance(value, tuple) and text[0] != "(":
            return text  # 0,1,2 without brackets
        if _plain(value):
            return list(value) if isinstance(value, tuple) else value
    return text


def _pairs(words: list[str], problems: list[str]) -> Iterator[tuple[str, Any]]:
    while words:
        word = words.pop(0)
        if word.startswith("{"):
            yield from _json_object(word, problems)
        elif word.startswith("~"):
            problems.append(f"{word!r}: a setting cannot be deleted; give it the value you want, for example key=null")
        elif match := _PAIR.fullmatch(word.removeprefix("--") if word.startswith("--") else word.lstrip("+")):
            yield match["key"], parse_value(match["value"])
        elif _FLAG.fullmatch(word):
            yield word[2:], parse_value(words.pop(0)) if words and _is_value(words[0]) else True
        else:
            problems.append(f"{word!r}: settings are written key=value, for example method=datm")


def _is_value(word: str) -> bool:
    """Whether the word after `--key` is its value, and not the next setting."""
    return not (word.startswith("--") or _PAIR.fullmatch(word.lstrip("+")))


def _json_object(word: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    try:
        value = json.loads(word)
    except ValueError as error:
        problems.append(f"{word!r}: not a JSON object ({error})")
        return
    yield from value.items()


def _toml(text: str) -> Any:
    table = tomllib.loads(f"v = {text}")
    if list(table) != ["v"]:
        raise ValueError("more than one value")
    return table["v"]


def _plain(value: Any) -> bool:
    """Whether a value is made of numbers, texts, truth values, nothing, lists and mappings only."""
    if isinstance(value, list | tuple):
        return all(_plain(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str)
