"""Reading of YAML and JSON with limits and checks, so that a damaged or hostile file raises a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from echo_ext import _checks

__all__ = ["NUMBER", "check_structure", "parse_yaml", "read_json", "read_text", "read_yaml"]

# A configuration is about one page of text, a result a few pages.
YAML_BYTES, JSON_BYTES = 2**16, 2**20
YAML_DEPTH = 16
NUMBER = (int, float)


def parse_yaml(text: str) -> object:
    """Parse a YAML document without aliases and at most ``YAML_DEPTH`` levels deep, by which a short text grows large.

    Raises:
        ValueError: The text is not such a document.
    """
    import yaml

    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > YAML_DEPTH or isinstance(event, yaml.AliasEvent):
                raise ValueError(f"more than {YAML_DEPTH} levels" if depth > YAML_DEPTH else "aliases are not allowed")
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as wrong:
        where = f" in line {wrong.problem_mark.line + 1}" if wrong.problem_mark else ""
        raise ValueError(f"it is not YAML: {wrong.problem or wrong.context}{where}") from None
    except Exception as wrong:  # the constructors of numbers and dates may raise anything
        raise ValueError(f"it is not YAML: {wrong!s:.100}") from None


def read_yaml(file: Path) -> object:
    """Parse a YAML file with the limits of :func:`parse_yaml`."""
    return parse_yaml(read_text(file, YAML_BYTES))


def read_json(file: Path) -> object:
    """Parse a JSON file.

    Raises:
        ValueError: The file is too large, nested too deeply, or not JSON.
    """
    try:
        content: object = json.loads(read_text(file, JSON_BYTES))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return content


def check_structure(name: str, value: Any, schema: Any) -> None:
    """Raise a ValueError that names the first part of the value which is not as the schema says.

    A schema is a type, a tuple of types, [the schema of each entry], or {name: schema}, where the name ``str`` stands
    for all names.
    """
    kind: Any = schema if isinstance(schema, (type, tuple)) else type(schema)
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        wanted = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{name} must be of type {wanted}, got type {type(value).__name__}")
    if isinstance(schema, list):
        for each in value:
            check_structure(f"an entry of {name}", each, schema[0])
    for key in schema if isinstance(schema, dict) else ():
        if key is str:
            for other, each in value.items():
                check_structure(f"a name in {name}", other, str)
                check_structure(f"{_checks.brief(other)} in {name}", each, schema[str])
        elif key not in value:
            raise ValueError(f"{key!r} is missing in {name}")
        else:
            check_structure(key, value[key], schema[key])


def read_text(file: Path, limit: int) -> str:
    """The text of a file; raises ValueError if it has more bytes than the limit, or is not UTF-8."""
    with file.open("rb") as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    return content.decode()
