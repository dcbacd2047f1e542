"""Which model types of the installed transformers have MLPs, and in which of them mlpfusion finds all.

    python benchmarks/census.py [TYPE ...] [--out FILE]

Every type of transformers' Auto tables is built from its default config, without memory for its weights; about 20
minutes of processor time. The record says for each what was found, or why not. By a rule of its own, which is not the
detector's, two linear maps of a layer are those of a dense MLP if the first leads from d to f numbers (or to 2 f: gate
and up in one) and a later one back, f above d, outside attention, experts and bottlenecks, and no convolution is in the
module that holds both. `share` is the part of these parameters that belongs to a site; of a model of texts and images
or sounds only the parts that read text count, where they have any.
"""

from dataclasses import dataclass
from itertools import permutations, takewhile
from pathlib import Path

from by_type import Row, record_by_type
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from mlpfusion.checkpoint.read import CONFIG_ERRORS, empty_model
from mlpfusion.errors import InputError, one_line
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.mixtures.experts import expert_parameters
from mlpfusion.sites.parts import modality
from mlpfusion.sites.sites import base_model, find_sites, is_beside_mlp, site_parameters
from mlpfusion.sites.table import ARCHITECTURES
from mlpfusion.sites.weights import linear_shape

OUT = Path("benchmarks/results/census.json")
LONGEST_REASON = 300


@dataclass(frozen=True)
class Type:
    """One model type. `status` is row, found, refused or unbuilt; `reason` is given for the last two."""

    model_type: str
    status: str
    dense: int = 0  # parameters of dense MLPs by the rule, in the parts that count
    experts: int = 0  # parameters of experts
    share: float = 0.0
    stacks: tuple[str, ...] = ()
    reason: str | None = None


def dense_parameters(base: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters of the linear maps that the rule takes for those of dense MLPs, by name, whatever they read."""
    names = {id(parameter): name for name, parameter in base.named_parameters()}
    found = dict[str, nn.Parameter]()
    for module in base.modules():
        for layer in module if isinstance(module, nn.ModuleList | nn.Sequential) else ():
            for linear in _paired_maps(layer):
                found |= {names[id(parameter)]: parameter for parameter in linear.parameters()}
    return found


def of_text(base: PreTrainedModel, dense: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of the parameters that are in parts that read text."""
    return {name: parameter for name, parameter in dense.items() if modality(base, name) == "text"}


def _paired_maps(layer: nn.Module) -> list[nn.Module]:
    linears = {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not is_beside_mlp(name) and "experts" not in name.split(".")
    }
    shapes = {name: tuple(linear_shape(module)) for name, module in linears.items()}
    paired, order = set[str](), list(linears)
    for up, down in permutations(linears, 2):
        alike = [name for name in order[: order.index(down)] if shapes[name] == shapes[up]]
        if not alike:  # the first map in the order of the class leads up, a second one beside it may come later
            continue
        hidden, width = shapes[down]
        if width > hidden and shapes[up] in {(width, hidden), (2 * width, hidden)}:
            both = zip(up.split("."), down.split("."), strict=False)
            parent = layer.get_submodule(".".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], both)))
            beside = [module for module in parent.children() if module not in linears.values()]
            is_list = isinstance(parent, nn.ModuleList | nn.Sequential)  # then the two are of different layers
            if not is_list and not any("Conv" in type(module).__name__ for module in beside):
                paired |= {up, down}
    return [linears[name] for name in paired]


def census_of(model_type: str) -> Type:
    """Builds a model of the default config and looks for its MLPs."""
    try:
        model = empty_model(CONFIG_MAPPING[model_type]())
    except (InputError, StrictDataclassError, *CONFIG_ERRORS) as error:  # some refuse their own defaults
        return Type(model_type, "unbuilt", reason=_reason(error))
    base = base_model(model)
    every = dense_parameters(base)
    texts = of_text(base, every)
    dense = texts or every
    experts = {str(number): parameter for number, parameter in enumerate(expert_parameters(base))}
    num_experts = _size(experts)
    try:
        row = find_architecture(model)
    except InputError as error:
        return Type(model_type, "refused", _size(dense), num_experts, reason=_reason(error))
    sites, wanted = find_sites(model, row), dense
    if any(stack.is_of_experts for stack in row.stacks):
        wanted = experts
    elif any(modality(base, stack.layer) == "text" for stack in row.stacks):
        wanted = texts  # none where its MLPs are narrower than its hidden states, which the rule does not count
    visited = {id(parameter) for site in sites for parameter in site_parameters(base, site)}
    seen = {name: parameter for name, parameter in wanted.items() if id(parameter) in visited}
    return Type(
        model_type,
        "row" if model_type in ARCHITECTURES else "found",
        _size(wanted if wanted is not experts else dense),
        num_experts,
        share=_size(seen) / _size(wanted) if wanted else 1.0,
        stacks=tuple(dict.fromkeys(site.stack.layer for site in sites)),
    )


def _size(parameters: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def _reason(error: Exception) -> str:
    return one_line(error)[:LONGEST_REASON]


def main() -> None:
    record_by_type(__doc__, OUT, lambda: sorted(CONFIG_MAPPING), census_of, _line)


def _line(row: Row) -> str:
    return f"{row['model_type']}: {row['status']}, {100 * row['share']:.1f} % {row['reason'] or ''}"


if __name__ == "__main__":
    main()
