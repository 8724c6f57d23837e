"""Writes the measured numbers and tables into README.md, the chapters and the page of results.

    python docs/results/write_numbers.py            # after something was measured again
    python docs/results/write_numbers.py --check    # exit status 1 if a page says anything else; a test does this

A number or a table stands between two comments, such as <!-- products --> and <!-- end -->. The text around them is
typed by hand. tables.py makes the tables, and measured.py the numbers within sentences, from the records beside them.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from pathlib import Path

from docs.results import measured, tables

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "results" / "README.md"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    found, stale = texts(), []
    for path in PAGES:
        before = path.read_text()
        after = filled(before, found)
        if after != before:
            stale.append(path.relative_to(ROOT).as_posix())
            if not args.check:
                path.write_text(after)
    if args.check and stale:
        print(f"{', '.join(stale)}: not what the records say: run {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


@functools.cache
def texts() -> dict[str, str]:
    """What stands between the comments, by name."""
    return dict(**tables.texts(), **measured.texts())  # which refuses a name that both compute


def filled(page: str, texts: dict[str, str]) -> str:
    """The page with `texts` between its comments: a table on lines of its own, a number where it stood.

    A comment at the start of a line ends a paragraph. So no line of a paragraph begins with one.
    """

    def block(match: re.Match) -> str:
        name, newline, old = match.groups()
        if "<!--" in old:
            sys.exit(f"{name}: another comment stands between its two")
        if name not in texts:
            sys.exit(f"{name}: neither tables.py nor measured.py computes a number of this name")
        text = texts[name]
        return f"<!-- {name} -->{newline}{text}" + ("\n" if "\n" in text else "") + "<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->(\n?)(.*?)<!-- end -->", block, page, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
