"""Papers -> rows that each ask which of six titles belongs to an abstract, the other five of the same category.

    python examples/title-choice/prepare.py TRAIN.jsonl VALIDATION.jsonl TEST.jsonl OUT_FOLDER

The files have "title", "abstract" and "category"; ``OUT_FOLDER`` gets train.jsonl, validation.jsonl and test.jsonl.
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path

OPTIONS = 6


def main() -> None:
    *files, out = map(Path, sys.argv[1:])
    if len(files) != 3:
        sys.exit(__doc__)
    out.mkdir(parents=True, exist_ok=True)
    for name, path in zip(("train", "validation", "test"), files, strict=True):
        papers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = choices(papers, random.Random(name))
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def choices(papers: list[dict[str, str]], draw: random.Random) -> list[dict[str, object]]:
    """One row a paper, where its category has enough other titles."""
    titles = defaultdict(set)
    for paper in papers:
        titles[paper["category"]].add(paper["title"])
    rows = []
    for paper in papers:
        others = sorted(titles[paper["category"]] - {paper["title"]})
        if len(others) >= OPTIONS - 1:
            options = [paper["title"], *draw.sample(others, OPTIONS - 1)]
            draw.shuffle(options)
            rows.append({"abstract": paper["abstract"], "titles": options, "title": paper["title"]})
    return rows


if __name__ == "__main__":
    main()
