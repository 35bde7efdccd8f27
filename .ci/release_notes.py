"""Print the changelog's section of a version, and fail if the version is not ready to be released."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def section(changelog: str, version: str) -> tuple[str, str]:
    """The date and the text of the section of a version."""
    end = r"(?=^## |^\[\S+\]: |\Z)"
    found = re.search(rf"^## \[{re.escape(version)}\] - (.+)\n([\s\S]*?){end}", changelog, re.MULTILINE)
    if found is None or not found[2].strip():
        raise SystemExit(f"CHANGELOG.md must have a section '## [{version}] - YYYY-MM-DD' that is not empty")
    return found[1], found[2].strip()


def main(version: str) -> None:
    """Print the section of this version, whose date and citation must be those of a release."""
    date, text = section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
        raise SystemExit(f"CHANGELOG.md must have the date of {version} as YYYY-MM-DD, got '{date}'")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for line in (f'version: "{version}"', f'date-released: "{date}"'):
        if line not in citation.splitlines():
            raise SystemExit(f"CITATION.cff must have the line '{line}'")
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
