"""The counterpart in TRL of ``loratory train`` in whole_command.py: trains an adapter on conversations.

    /path/to/trl/python benchmarks/peer_trl_papers.py MODEL_FOLDER DATA.jsonl --out FOLDER --batch-size 8

Each line of the data has "prompt" and "completion", both lists of messages. Settings are TRL's defaults except that
gradient checkpointing is off, because it makes TRL slower. whole_command.py measures time and memory of the process.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    args = parser.parse_args()
    trainer = make_trainer(args)
    trainer.train()
    trainer.save_model(str(args.out / "adapter"))


def make_trainer(args: argparse.Namespace) -> SFTTrainer:
    """LoRA with the defaults of Loratory. The loss is on the completion, TRL's default for this data format."""
    settings = SFTConfig(
        output_dir=str(args.out),
        num_train_epochs=1,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        max_length=2048,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16),
        args=settings,
        train_dataset=Dataset.from_list([json.loads(line) for line in args.data.read_text().splitlines()]),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )


if __name__ == "__main__":
    main()
