"""What ``loratory train`` does in whole_command.py, written with TRL: a model folder and conversations to an adapter.

    /path/to/trl/python benchmarks/peer_trl_papers.py MODEL_FOLDER DATA.jsonl --out FOLDER --batch-size 8

A line of the data has "prompt" and "completion", lists of messages. Settings are TRL's own but for activation
checkpointing, which is off because it makes TRL slower. Nothing is measured here: whole_command.py times the process.
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
    asked = parser.parse_args()
    trainer = make_trainer(asked)
    trainer.train()
    trainer.save_model(str(asked.out / "adapter"))


def make_trainer(asked: argparse.Namespace) -> SFTTrainer:
    """LoRA with Loratory's defaults; the loss is on the completion, as TRL does with prompts and completions."""
    settings = SFTConfig(
        output_dir=str(asked.out),
        num_train_epochs=1,
        per_device_train_batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        max_length=2048,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.bfloat16),
        args=settings,
        train_dataset=Dataset.from_list([json.loads(line) for line in asked.data.read_text().splitlines()]),
        processing_class=AutoTokenizer.from_pretrained(asked.model),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )


if __name__ == "__main__":
    main()
