"""Creates the data of the example: each row has an abstract, its title, and five other titles of the same category.

    python examples/title-choice/prepare.py PAPERS.jsonl OUT.jsonl

The papers have the fields "title", "abstract" and "category".
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path

OPTIONS = 6


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path, out = map(Path, sys.argv[1:])
    papers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = choices(papers, random.Random(path.name))
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def choices(papers: list[dict[str, str]], draw: random.Random) -> list[dict[str, object]]:
    """One row per paper whose category has enough other titles."""
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
