"""Which modules of a model get a LoRA branch.

These are plain linear layers of the language model: in a model that also takes images or sound, not those of the other
parts. The output head is left out and, in a mixture-of-experts model, experts and routers.
"""

import re

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from loratory.errors import UserError
from loratory.settings import AdapterConfig

# Parts of the names of experts, of the routers that choose among them, and of the gates on shared experts.
MIXTURE = re.compile(r"(.*\.)?(gate|[^.]*(expert|router)[^.]*)(\..*)?")
LAYER = re.compile(r".*?\.(\d+)\.")


def module_targets(model: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """The full names of the modules that get a LoRA branch, in the order of the model.

    Raises UserError if the model does not have one of the target modules or layers.
    """
    linear = _language_linears(model)
    names = [name for name in linear if not MIXTURE.fullmatch(name) and not _is_reserved(model, name)]
    if config.targets != "all-linear":
        for target in config.targets:
            if not any(_ends_with(name, target) for name in linear):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
                raise UserError("The model has no such module", "[adapter] targets", known, target)
            if _is_reserved(model, target):
                what = "PEFT takes this name for experts, which get no LoRA"
                raise UserError(what, "[adapter] targets", found=target, fix="remove it")
        names = [name for name in linear if any(_ends_with(name, target) for target in config.targets)]
    if config.layers != "all":
        count = model.config.get_text_config().num_hidden_layers
        for layer in config.layers:
            if layer >= count:
                raise UserError("The model has no such layer", "[adapter] layers", f"0 to {count - 1}", str(layer))
        names = [name for name in names if (match := LAYER.match(name)) and int(match[1]) in config.layers]
    if not names:
        raise UserError(
            "The model has no linear layer that can get LoRA", "[adapter] targets", fix="choose another model"
        )
    return names


def short_names(model: PreTrainedModel, names: list[str], config: AdapterConfig) -> tuple[list[str], list[int] | None]:
    """``target_modules`` and ``layers_to_transform`` by which PEFT selects exactly these modules.

    These are the last parts of the names and the configured layers, if they select no others, else the full names.
    """
    short = sorted({name.rpartition(".")[2] for name in names})
    layers = None if config.layers == "all" else list(config.layers)
    settings = LoraConfig(target_modules=short, layers_to_transform=layers)
    selected = [name for name, _ in model.named_modules() if check_target_module_exists(settings, name)]
    return (short, layers) if selected == names else (names, None)


def is_conv1d(module: nn.Module) -> bool:
    """Whether the module is GPT-2's transposed linear layer."""
    return type(module).__name__ == "Conv1D"


def _language_linears(model: PreTrainedModel) -> list[str]:
    """The names of the linear layers of the language model, without the output head.

    A linear layer with a forward method of its own, such as a router, is none.
    """
    head, inside = model.get_output_embeddings(), _language_model(model)
    return [
        name
        for name, module in model.named_modules()
        if ((isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward) or is_conv1d(module))
        and module is not head
        and (inside is None or f"{name}.".startswith(f"{inside}."))
    ]


def _language_model(model: PreTrainedModel) -> str | None:
    """The name of the part that is the language model; None if that is the whole model."""
    if model.config.get_text_config() is model.config:
        return None
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), None) or None


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _is_reserved(model: PreTrainedModel, name: str) -> bool:
    """Whether PEFT understands the name, in this model, as that of fused experts instead of a module."""
    settings = LoraConfig(target_modules=[name.rpartition(".")[2]])
    try:
        convert_peft_config_for_transformers(settings, model, get_model_conversion_mapping(model))
    except ValueError:  # names of which PEFT takes only several together
        return True
    return bool(settings.target_parameters)
