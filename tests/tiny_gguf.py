"""Tiny GGUF files, written with the gguf package: a random Llama, and its tensors as a reader must find them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tiny import CHATML
from transformers.convert_slow_tokenizer import bytes_to_unicode

LAYERS, WIDTH, INNER, HEADS, KEY_HEADS = 2, 64, 96, 4, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he", "Ċ Ċ", "1 2")  # "1 2" never applies if digits are split from each other
TOKENS = (*SPECIAL, *sorted(bytes_to_unicode().values()), *(merge.replace(" ", "") for merge in MERGES))
TEMPLATE = CHATML
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def llama_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by the names that GGUF has for them, in Transformers' order of rows."""
    random = np.random.default_rng(seed)
    keys = WIDTH // HEADS * KEY_HEADS
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (keys, WIDTH), "attn_v": (keys, WIDTH), "attn_output": (WIDTH, WIDTH)}
    shapes |= {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
    shapes |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
    weights = {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in shapes.items()}
    weights |= {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in weights.items()}


def name_in_transformers(name: str) -> str:
    if name in ("token_embd.weight", "output_norm.weight"):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key projection as llama.cpp stores them: the two halves of each head alternate."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def write_gguf(
    path: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q4_1,
    seed: int = 0,
    pre: str | None = "gpt-2",
    values: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    left_out: tuple[str, ...] = (),
    architecture: str = "llama",
) -> dict[str, np.ndarray]:
    """Writes a tiny Llama; returns its dequantized weights by their names in Transformers.

    Of another ``architecture``, the weights are not in its order of rows, and ``tensors`` must have those that Llama
    lacks.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(list(MERGES))
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for key, value in (values or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    expected = {}
    for name, weights in llama_weights(seed).items():
        if name in left_out:
            continue
        quantization = kind if weights.ndim == 2 else gguf.GGMLQuantizationType.F32
        heads = HEADS if "attn_q" in name else KEY_HEADS if "attn_k" in name else 0
        stored = gguf.quants.quantize(interleaved(weights, heads) if heads else weights, quantization)
        writer.add_tensor(name, stored, raw_dtype=quantization)
        # Every row is quantized by itself, so that the order of rows does not matter.
        rows = gguf.quants.quantize(weights, quantization)
        expected[name_in_transformers(name)] = gguf.quants.dequantize(rows, quantization)
    for name, extra in (tensors or {}).items():
        writer.add_tensor(name, extra)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def put_into_ollama(store: Path, file: Path, name: str = "tiny", tag: str = "latest", **texts: str) -> Path:
    """Puts a GGUF file into a store of Ollama, with ``template``, ``system`` and ``params``; returns the blob."""

    def blob(content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (store / "blobs").mkdir(parents=True, exist_ok=True)
        (store / "blobs" / f"sha256-{digest}").write_bytes(content)
        return digest

    kinds = {"model": file.read_bytes(), **{kind: text.encode() for kind, text in texts.items()}}
    digests = {kind: blob(content) for kind, content in kinds.items()}
    layers = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": len(kinds[kind])}
        for kind, digest in digests.items()
    ]
    owner = name if "/" in name else f"library/{name}"
    manifest = store / "manifests" / "registry.ollama.ai" / owner / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return store / "blobs" / f"sha256-{digests['model']}"
