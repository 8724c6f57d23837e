"""Writes the measured tables and numbers of README.md and the chapters, from the files in the folders beside this one.

    python docs/results/make_tables.py              # after something was measured again
    python docs/results/make_tables.py --check      # exit status 1 if a page says anything else; a test does this

A table or a number stands between two comments, such as <!-- products --> and <!-- end -->. The text around them is
typed by hand. measured.py has the numbers within sentences. Each record in cpu/ names the command that made it:
benchmark.py, cpu_ladder.py or cpu_details.py of examples/measure.
"""

from __future__ import annotations

import datetime
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from docs.results import make_readme, measured
from examples.experiments import own_pictures as own
from examples.measure import benchmark, cpu_details, cpu_ladder
from minires.train import compare

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("fast-cpu", "own-pictures", "residual-learning", "training")),
]
FILES = ["benchmark", "scaling", "ladder-resnet18", "details", "activations"]  # in cpu/


def main() -> int:
    texts, stale = blocks(), []
    for path in PAGES:
        before = path.read_text()
        after = filled(before, texts)
        if after != before:
            stale.append(path.name)
            if sys.argv[1:] != ["--check"]:
                path.write_text(after)
    if sys.argv[1:] == ["--check"] and stale:
        print(f"{', '.join(stale)}: not what the files in cpu/ say: run {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


def filled(page: str, texts: dict[str, str]) -> str:
    """The page with `texts` between its comments: a table on lines of its own, a number where it stood.

    A comment at the start of a line ends a paragraph. So no line of a paragraph begins with one.
    """

    def block(match: re.Match) -> str:
        name, newline = match.groups()
        text = texts[name]
        return f"<!-- {name} -->{newline}{text}" + ("\n" if "\n" in text else "") + "<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->(\n?).*?<!-- end -->", block, page, flags=re.DOTALL)


def blocks() -> dict[str, str]:
    """What goes between the comments, by name."""
    records = {name: json.loads((HERE / "cpu" / f"{name}.json").read_text()) for name in FILES}
    speed, scaling, ladder, details, activations = records.values()
    return {
        "headline": headline(speed),
        "accuracy": accuracy(),
        **measured.texts(),
        "speed": benchmark.table(speed, columns=8),
        "speed-with-start": benchmark.table(speed),
        "speed-spread": spread(speed),
        "depth": benchmark.depth_table(scaling),
        "batch": benchmark.batch_table(scaling),
        "loader": f"a batch of 128 augmented images takes {scaling['batch_milliseconds']:.1f} ms to make.",
        "ladder": cpu_ladder.table(ladder),
        **own_pictures(),
        **{f"{name}-on": measured_on(record) for name, record in records.items()},
        **{
            name: cpu_details.table(name, rows)
            for record in (details, activations)
            for name, rows in record["sections"].items()
        },
    }


def own_pictures() -> dict[str, str]:
    """The tables of own-pictures.md; its numbers within sentences are in measured.py."""
    record = json.loads((HERE / "own-pictures" / "results.json").read_text())
    return {
        "own-pictures": own.table(record),
        "own-scans": own.scans_table(record),
        "own-pictures-on": f"Measured on {measured_on(record)}",
    }


def measured_on(record: dict[str, Any]) -> str:
    """Such as "2 threads on an AMD EPYC, 25 November 2026, NumPy 2.4.6 (OpenBLAS 0.3.31), PyTorch 2.13.0"."""
    info, date = record["info"], datetime.date.fromisoformat(record["date"])
    blas = ", ".join(re.sub(r"^openblas (\d+\.\d+\.\d+).*", r"OpenBLAS \1", text) for text in info["blas"])
    torch = record.get("versions", {}).get("torch", "").partition("+")[0]
    parts = [f"{info['threads']} threads on {info['processor']}", f"{date.day} {date:%B %Y}"]
    parts += [f"NumPy {info['versions']['numpy']} ({blas})", *([f"PyTorch {torch}"] if torch else [])]
    return ", ".join(parts)


def steps(record: dict[str, Any], case: str, work: str = "training") -> dict[str, list[float]]:
    """The seconds of both libraries' steps."""
    found = next(m for m in record["measurements"] if (m["case"], m["work"]) == (case, work))
    return {library: result["seconds"] for library, result in found["results"].items()}


def headline(record: dict[str, Any]) -> str:
    ratios = []
    for case in ("resnet18", "resnet101"):
        both = steps(record, case)
        ratios.append(f"{statistics.median(a / b for a, b in zip(both['minires'], both['torch'])):.2f}")
    cores = {2: "two", 4: "four"}.get(record["info"]["threads"], record["info"]["threads"])
    return (
        f"On {cores} CPU cores a training step of ResNet-18 takes {ratios[0]} of PyTorch's time, "
        f"one of ResNet-101 {ratios[1]}."
    )


def accuracy() -> str:
    """What ResNet-20 came to: the runs of the most seeds."""
    groups = compare.repetitions([run for run in make_readme.runs_in("trained") if run.settings["depth"] == 20])
    runs = max(groups, key=len)
    s, mean = runs[0].settings, compare.mean_and_std(runs) or compare.percent([runs[0].accuracy])
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
    return f"{s['epochs']} epochs of {runs[0].network} give {mean} on {s['dataset']} ({seeds})"


def spread(record: dict[str, Any]) -> str:
    took = [1e3 * seconds for seconds in steps(record, "resnet101")["torch"]]
    return f"PyTorch's steps of ResNet-101, all the same work, took from {min(took):.0f} to {max(took):.0f} ms."


if __name__ == "__main__":
    sys.exit(main())
