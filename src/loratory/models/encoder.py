"""Sentence encoders: small models that turn a text into one vector. They are only read, never trained.

T: texts.  L: tokens of the longest text of a batch.  D: width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from loratory.bases import encoder_source
from loratory.errors import UserError
from loratory.events import ProgressCallback
from loratory.machine import Machine
from loratory.models.finding import find_files
from loratory.models.loading import context_length, non_finite
from loratory.models.untrusted import check_model_folder, read_json
from loratory.models.usable import check_not_quantized, check_weights
from loratory.settings import ModelConfig

POOLING, LENGTH = "1_Pooling/config.json", "sentence_bert_config.json"
DEFAULT_LENGTH = 512
TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """As in the settings: a short name, hub id or folder."""
    pool: Callable[[Tensor, Tensor], Tensor]
    """From the states [T, L, D] and the mask [T, L] to one vector for each text [T, D]."""
    max_length: int
    """Longer texts are cut to this many tokens."""

    @torch.no_grad()
    def encode(self, texts: Sequence[str], progress: ProgressCallback) -> Float32[np.ndarray, "T D"]:
        """The vectors of the texts, scaled to length 1."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]
        vectors = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        done = 0
        for rows in _batches([len(sequence) for sequence in ids]):
            padded = self.tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            inputs = {name: tensor.to(self.model.device) for name, tensor in padded.items()}
            states_TLD = self.model(**inputs).last_hidden_state
            pooled_TD = self.pool(states_TLD.float(), inputs["attention_mask"])
            vectors[rows] = torch.nn.functional.normalize(pooled_TD, dim=-1).cpu().numpy()
            done += len(rows)
            progress(done, len(texts))
        return vectors


def load_encoder(name: str, machine: Machine) -> Encoder:
    """Loads a sentence encoder in float32, by its short name, hub id or folder.

    How it pools is read from its files, in the form of Sentence Transformers: the mean of the states, or the state of
    the first token; without such files, the mean. Raises UserError as ``load_model`` does, and for another pooling.
    """
    folder = find_files(ModelConfig(encoder_source(name))).folder
    check_weights(folder, name)
    check_not_quantized(folder, name)
    check_model_folder(folder)
    pool = _pooling(folder, name)
    try:
        model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # Transformers raises OSError, ValueError, KeyError or RuntimeError for corrupt files
        first = (str(error).splitlines() or [""])[0][:300]
        raise UserError("The encoder cannot be loaded", name, found=f"{type(error).__name__}: {first}") from error
    if bad := non_finite(model.named_parameters()):
        raise UserError("The weights contain NaN or infinite values", name, found=f"in {bad}")
    if tokenizer.pad_token_id is None:
        raise UserError("The tokenizer of the encoder has no padding token", name)
    model.to(machine.device)  # type: ignore[arg-type]
    model.eval()
    stated = read_json(folder / LENGTH).get("max_seq_length") if (folder / LENGTH).exists() else None
    limits = (stated, tokenizer.model_max_length, context_length(model.config), DEFAULT_LENGTH)
    length = min(int(limit) for limit in limits if isinstance(limit, int) and limit > 0)
    return Encoder(model, tokenizer, name, pool, length)


def _pooling(folder: Path, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    settings: dict[str, Any] = read_json(folder / POOLING) if (folder / POOLING).exists() else {}
    ways = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if ways == ["pooling_mode_cls_token"]:
        return lambda states_TLD, mask_TL: states_TLD[:, 0]
    if ways not in ([], ["pooling_mode_mean_tokens"]):
        fix = "choose an encoder that takes the mean of the states or the first one"
        raise UserError("The encoder pools in a way that is not supported", name, found=", ".join(ways), fix=fix)
    return _mean


def _mean(states_TLD: Tensor, mask_TL: Tensor) -> Tensor:
    """The mean of the states of each text, without padding."""
    weights_TL1 = mask_TL[..., None].to(states_TLD.dtype)
    return (states_TLD * weights_TL1).sum(1) / weights_TL1.sum(1).clamp(min=1)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The rows of each batch: rows of similar length together, so that little is padded."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if rows and (len(rows) + 1) * lengths[row] > TOKENS_AT_ONCE:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows
