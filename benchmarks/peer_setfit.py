"""SetFit on labelled rows: contrastive training of a sentence encoder, then a logistic regression.

    PYTHON benchmarks/peer_setfit.py --model FOLDER train.jsonl test.jsonl [--seed 0] [--iterations 20]

Run it with the Python of an environment with SetFit (``pip install setfit==1.1.3 'transformers<5'``). Batches of 16,
one epoch, and SetFit's other defaults; each row is paired with ``--iterations`` rows of its label and as many of other
labels, 20 in SetFit's paper. Prints one line of JSON: accuracy, right answers as 0 and 1, and seconds.
"""

import argparse
import json
import time
from pathlib import Path

started = time.perf_counter()

from common import read_lines  # noqa: E402
from datasets import Dataset  # noqa: E402
from setfit import SetFitModel, Trainer, TrainingArguments  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=20)
    args = parser.parse_args()
    train, test = read_lines(args.train), read_lines(args.test)
    model = SetFitModel.from_pretrained(args.model, labels=sorted({row["label"] for row in train}))
    settings = TrainingArguments(
        output_dir=str(args.train.parent / "setfit"),
        batch_size=16,
        num_iterations=args.iterations,
        seed=args.seed,
        report_to="none",
        save_strategy="no",
    )
    trainer = Trainer(model=model, args=settings, train_dataset=Dataset.from_list(train))
    loaded = time.perf_counter()
    trainer.train()
    trained = time.perf_counter()
    answers = model.predict([row["text"] for row in test], show_progress_bar=False)
    right = "".join(str(int(answer == row["label"])) for answer, row in zip(answers, test, strict=True))
    ended = time.perf_counter()
    seconds = {"load": loaded - started, "train": trained - loaded, "evaluate": ended - trained}
    record = {"accuracy": {"setfit": right.count("1") / len(right)}, "right": {"setfit": right}}
    print(json.dumps(record | {"seconds": seconds, "wall_seconds": ended - started, "iterations": args.iterations}))


if __name__ == "__main__":
    main()
