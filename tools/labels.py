"""How well answers are labelled: ``python tools/labels.py``.

Prints recall and precision of the label "leak", and how many of each kind are found, on two sets that were
read and labelled by hand: data/labels/answers.jsonl, written to show every kind, and data/labels/real.jsonl,
what two small models and their adapters said. Exits 1 where a figure of the first is under 0.95.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from unlearn_mlx.evaluation.labels import LABELS, knowledge_of, label
from unlearn_mlx.evaluation.probes import probe_files, read_probes
from unlearn_mlx.paths import DATA
from unlearn_mlx.runs.files import read_rows
from unlearn_mlx.topics import load_topic, shipped_topics

ANSWERS = DATA / "labels" / "answers.jsonl"
REAL = DATA / "labels" / "real.jsonl"
LEAST = 0.95


def labelled(path: Path = ANSWERS) -> list[dict[str, Any]]:
    """The rows of the set, each with the label that it is given as "given"."""
    rows = read_rows(path)
    for slug in {row["topic"] for row in rows}:
        topic = load_topic(shipped_topics()[slug])
        probes = [probe for file in probe_files(topic) for probe in read_probes(file)]
        knowledge = knowledge_of(topic, probes, {})
        for row in rows:
            if row["topic"] == slug:
                asked, known = row["question"], row.get("known_answer", "")
                row["given"] = label(knowledge, asked, row["answer"], row["base_answer"], known)
    return rows


def leak_metrics(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Recall and precision of the label "leak"."""
    found = sum(row["label"] == row["given"] == "leak" for row in rows)
    recall = found / sum(row["label"] == "leak" for row in rows)
    return recall, found / max(1, sum(row["given"] == "leak" for row in rows))


def main() -> int:
    """Print both sets. Returns the exit code."""
    figures = [_report(path) for path in (ANSWERS, REAL)]
    return 0 if min(figures[0]) >= LEAST else 1


def _report(path: Path) -> tuple[float, float]:
    """Print what is taken for what in a set, and give the leaks' recall and precision."""
    rows = labelled(path)
    confusion: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        confusion[(row.get("how") and f"leak by {row['how']}") or row["label"]][row["given"]] += 1
    print(f"{path.name:22s}" + "".join(f"{name:>11s}" for name in LABELS))
    for kind, counts in sorted(confusion.items()):
        print(f"{kind:22s}" + "".join(f"{counts[name]:11d}" for name in LABELS))
    for row in rows:
        if row["label"] != row["given"] and "-v" in sys.argv:
            print(f"{row['label']} taken for {row['given']}: {row['question']} {row['answer']}")
    for model in sorted({row.get("model", "") for row in rows}):
        some = [row for row in rows if row.get("model", "") == model]
        recall, precision = leak_metrics(some)
        print(f"{len(some)} answers {model}: leak recall {recall:.3f}, precision {precision:.3f}")
    return leak_metrics(rows)


if __name__ == "__main__":
    sys.exit(main())
