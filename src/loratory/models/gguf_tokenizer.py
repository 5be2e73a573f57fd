"""The tokenizer of a GGUF file: how it splits text, and whether its tokens are those that the file lists."""

from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from loratory.errors import UserError
from loratory.models.gguf_header import GgufHeader

BYTE_LEVEL, SENTENCEPIECE = "gpt2", ("llama", "gemma4")
# Names for the way of splitting text before byte pairs are merged, as llama.cpp defines them: as GPT-2 does, which is
# also what Transformers does for names that it does not know; or each digit by itself, and the rest as GPT-2 does.
AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"}
EACH_DIGIT = {"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"}
# Those of Qwen's tokenizers, which compose characters (NFC) before they split text. GGUF does not say it otherwise, and
# Transformers does it only for files whose model is a Qwen too.
COMPOSES = {"qwen2", "qwen35"}
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
STOPS = ("eos", "eot", "eom")
ORIGINAL_MODEL = "use the original model in Transformers' format"


def check_can_be_split(header: GgufHeader, where: str) -> None:
    """Raises UserError unless it is known how the file's tokenizer splits text."""
    model, pre = (header.values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    tokens = header.values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise UserError("The GGUF file has no tokenizer", where, "tokenizer.ggml.tokens", fix=ORIGINAL_MODEL)
    if model in SENTENCEPIECE:
        return
    if model != BYTE_LEVEL or not (pre in AS_GPT2 or pre in EACH_DIGIT or pre in GGUF_PRE_TOKENIZER_SPLITS):
        found = f"tokenizer.ggml.model = {model!r}, tokenizer.ggml.pre = {pre!r}"[:200]
        raise UserError("The tokenizer of the GGUF file is of an unknown kind", where, found=found, fix=ORIGINAL_MODEL)


def split_as_stated(tokenizer: Any, header: GgufHeader) -> None:
    """Makes the tokenizer compose characters and split digits one by one if the file says so by the name of its way of
    splitting text; Transformers does neither for every file."""
    if header.values["tokenizer.ggml.model"] != BYTE_LEVEL:
        return
    pre = header.values.get("tokenizer.ggml.pre")
    if pre in COMPOSES:
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    if pre in EACH_DIGIT:
        digit = pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated")
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digit, words])


def stop_ids(header: GgufHeader) -> list[int]:
    """The tokens that end an answer, according to the file."""
    found = {header.values.get(f"tokenizer.ggml.{name}_token_id") for name in STOPS}
    return sorted(token for token in found if isinstance(token, int))


def check_tokens_are_those_of(header: GgufHeader, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raises UserError unless the tokenizer has the file's token for every id, its special tokens, and its habit of
    beginning a text with the first of them."""

    def differs(found: str) -> UserError:
        what = "The tokenizer that Transformers makes of the GGUF file differs from the file's"
        return UserError(what, where, found=found, fix=ORIGINAL_MODEL)

    tokens = header.values["tokenizer.ggml.tokens"]
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokens))))
    for i, (token, name) in enumerate(zip(tokens, names, strict=True)):
        if token != name and name not in _spellings(token, header):
            raise differs(f"token {i} is {name!r} instead of {token[:80]!r}")
    if len(tokenizer) > len(tokens):
        raise differs(f"{len(tokenizer)} tokens instead of {len(tokens)}")
    for own, theirs in SPECIAL.items():
        stated = header.values.get(f"tokenizer.ggml.{theirs}_token_id")
        if stated is not None and (found := getattr(tokenizer, f"{own}_token_id")) != stated:
            raise differs(f"the {own} token is {found} instead of {stated}")
    begins = header.values.get("tokenizer.ggml.add_bos_token")
    ids: Any = tokenizer("a")["input_ids"]
    if begins is not None and (tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id) != begins:
        raise differs(f"a text {'does not begin' if begins else 'begins'} with the bos token")


def _spellings(token: str, header: GgufHeader) -> tuple[str, ...]:
    """Other ways in which Transformers writes the same token: bytes as printable characters, or spaces as lines."""
    if header.values["tokenizer.ggml.model"] != BYTE_LEVEL:
        return (token.replace(" ", "▁"),)
    letters = bytes_to_unicode()
    return ("".join(letters[byte] for byte in token.encode("utf-8")),)
