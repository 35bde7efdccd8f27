"""Reading of YAML and JSON with limits, so that a damaged or hostile file costs little and raises a ValueError."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import yaml

__all__ = ["parse_yaml", "read_json", "read_yaml"]

# A configuration is about one page of text, a result a few pages.
YAML_BYTES, JSON_BYTES = 2**16, 2**20
YAML_DEPTH = 16


def parse_yaml(text: str) -> object:
    """Parse a YAML document without aliases and at most ``YAML_DEPTH`` levels deep.

    Raises:
        ValueError: The text is not such a document.
    """
    import yaml

    try:
        return yaml.load(text, _bounded_loader())  # a SafeLoader
    except yaml.MarkedYAMLError as wrong:
        where = f" in line {wrong.problem_mark.line + 1}" if wrong.problem_mark else ""
        raise ValueError(f"it is not YAML: {wrong.problem or wrong.context}{where}") from None
    except Exception as wrong:  # the constructors of numbers and dates may raise anything
        raise ValueError(f"it is not YAML: {wrong!s:.100}") from None


def read_yaml(file: Path) -> object:
    """Parse a YAML file with the limits of :func:`parse_yaml`."""
    return parse_yaml(_read(file, YAML_BYTES))


def read_json(file: Path) -> object:
    """Parse a JSON file.

    Raises:
        ValueError: The file is too large, nested too deeply, or not JSON.
    """
    try:
        content: object = json.loads(_read(file, JSON_BYTES))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return content


def _read(file: Path, limit: int) -> str:
    with file.open("rb") as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    return content.decode()


@functools.cache
def _bounded_loader() -> type[yaml.SafeLoader]:
    """A SafeLoader without aliases and deep nesting, by which a short text can become large."""
    import yaml

    class BoundedLoader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            mark = self.get_mark()
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
            if self.depth == YAML_DEPTH:
                raise yaml.MarkedYAMLError(problem=f"more than {YAML_DEPTH} levels", problem_mark=mark)
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return BoundedLoader
