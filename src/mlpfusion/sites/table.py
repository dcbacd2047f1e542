"""The architectures we know: one row of data a `model_type`."""

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mlpfusion.errors import InputError, shown
from mlpfusion.storage.yaml import read_yaml

# Names of modules, or of an entry of a config: what Python can write, in ASCII.
_PATH = re.compile(r"(?=.{1,200}\Z)\w+(\.\w+)*", re.ASCII)


# How one tensor holds a matrix of every expert: (experts, out, in), or (experts, in, out), gate and up one after the
# other; or (experts, in, out), the neurons of gate and up in turns.
Layout = Literal["rows", "columns", "interleaved"]


@dataclass(frozen=True)
class Stack:
    """Where one stack of layers keeps its MLPs.

    `layer` is the path of a layer from the base model, `{}` standing for its number; the other paths start at the
    layer. In a mixture of experts `layer` leads on to one expert, a second `{}` standing for its number
    (`layers.{}.mlp.experts.{}`). With a `layout` the experts are no modules of their own: the module before their
    number holds one tensor for all of them, which `up`, `gate` and `down` name, and maybe biases (`<name>_bias`);
    `activation` may be a method of it that takes gate and up together. `gate` is the linear map whose output
    goes through the activation in a gated block; where it equals `up`, one map holds both, gate rows first. `width_key`
    is the entry of the config that holds the width, or the entry of a config inside it (`encoder.intermediate_size`),
    None if there is none: `fold` then cannot make a stock model of it.
    """

    layer: str
    up: str
    down: str
    activation: str
    gate: str | None = None
    width_key: str | None = "intermediate_size"
    layout: Layout | None = None

    @property
    def holder(self) -> str:
        """Path of the module that the other paths start at: the layer, the expert, or what holds all experts."""
        return self.layer if self.layout is None else self.layer.rpartition(".{}")[0]

    def holds(self, path: str) -> bool:
        """Whether `path` is that of a holder of its MLPs, whatever the numbers of layer and expert.

        >>> mixtral = Stack("layers.{}.mlp.experts.{}", "gate_up_proj", "down_proj", "act_fn", layout="rows")
        >>> mixtral.holds("layers.10.mlp.experts"), mixtral.holds("layers.01.mlp.experts")
        (True, False)
        """
        return _fits_template(self.holder, path)

    def is_of_mixture(self, path: str) -> bool:
        """Whether its MLPs are the experts in the module at `path`."""
        return self.is_of_experts and _fits_template(self.mixture, path)

    @property
    def mixture(self) -> str:
        """Path of the module of all experts: what stands before the part of `layer` with the number of one."""
        return self.layer.rpartition("{}")[0].rpartition(".")[0]

    @property
    def is_of_experts(self) -> bool:
        """Whether its MLPs are the experts of mixtures, of which a router chooses some for every token."""
        return self.layer.count("{}") > 1


def _fits_template(template: str, path: str) -> bool:
    pattern = re.escape(template).replace(re.escape("{}"), "(0|[1-9][0-9]{0,8})")
    return re.fullmatch(pattern, path) is not None


@dataclass(frozen=True)
class Architecture:
    """One row of the table: the stacks of a `model_type`; a layer belongs to the first stack that fits it."""

    stacks: tuple[Stack, ...]


def _bert(layer: str = "encoder.layer.{}") -> Architecture:
    return _plain(layer, "intermediate.dense", "output.dense", "intermediate.intermediate_act_fn")


def _plain(layer: str, up: str, down: str, activation: str, width_key: str = "intermediate_size") -> Architecture:
    return Architecture((Stack(layer, up, down, activation, width_key=width_key),))


def _llama() -> Architecture:
    return Architecture((Stack("layers.{}", "mlp.up_proj", "mlp.down_proj", "mlp.act_fn", gate="mlp.gate_proj"),))


def _t5(layer: str, mlp: str) -> tuple[Stack, Stack]:
    down, activation = f"{mlp}.wo", f"{mlp}.act"
    return (
        Stack(layer, f"{mlp}.wi", down, activation, width_key="d_ff"),
        Stack(layer, f"{mlp}.wi_1", down, activation, gate=f"{mlp}.wi_0", width_key="d_ff"),
    )


def _switch(side: str, mlp: str) -> tuple[Stack, Stack]:
    experts = Stack(f"{side}.block.{{}}.{mlp}.experts.expert_{{}}", "wi", "wo", "act", width_key="d_ff")
    return experts, Stack(f"{side}.block.{{}}", f"{mlp}.wi", f"{mlp}.wo", f"{mlp}.act", width_key="d_ff")


def _bart(side: str) -> Stack:
    return Stack(f"{side}.layers.{{}}", "fc1", "fc2", "activation_fn", width_key=f"{side}_ffn_dim")


ARCHITECTURES: dict[str, Architecture] = {
    "bart": Architecture((_bart("encoder"), _bart("decoder"))),
    "bert": _bert(),
    "deberta-v2": _bert(),
    "distilbert": _plain("transformer.layer.{}", "ffn.lin1", "ffn.lin2", "ffn.activation", "hidden_dim"),
    "electra": _bert(),
    "gemma2": _llama(),
    "gemma3_text": _llama(),
    "gpt2": _plain("h.{}", "mlp.c_fc", "mlp.c_proj", "mlp.act", "n_inner"),
    "gpt_neox": _plain("layers.{}", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "mlp.act"),
    "llama": _llama(),
    "mistral": _llama(),
    "modernbert": Architecture((Stack("layers.{}", "mlp.Wi", "mlp.Wo", "mlp.act", gate="mlp.Wi"),)),
    "olmo2": _llama(),
    "opt": _plain("decoder.layers.{}", "fc1", "fc2", "activation_fn", "ffn_dim"),
    "phi": _plain("layers.{}", "mlp.fc1", "mlp.fc2", "mlp.activation_fn"),
    "qwen2": _llama(),
    "qwen3": _llama(),
    "roberta": _bert(),
    "smollm3": _llama(),
    "switch_transformers": Architecture(_switch("encoder", "layer.1.mlp") + _switch("decoder", "layer.2.mlp")),
    "t5": Architecture(
        _t5("encoder.block.{}", "layer.1.DenseReluDense") + _t5("decoder.block.{}", "layer.2.DenseReluDense")
    ),
    "vit": _plain("layers.{}", "mlp.fc1", "mlp.fc2", "mlp.activation_fn"),
    "xlm-roberta": _bert(),
}


def is_known_row(model_type: str, row: Architecture) -> bool:
    """Whether every stack of `row` stands in the table's row of `model_type`."""
    return model_type in ARCHITECTURES and set(row.stacks) <= set(ARCHITECTURES[model_type].stacks)


def check_known_row(model_type: str, row: Architecture) -> None:
    """Raises `InputError` if `model_type` has a row in the table and `row` says something else."""
    if model_type in ARCHITECTURES and not is_known_row(model_type, row):
        wrong = next(stack for stack in row.stacks if stack not in ARCHITECTURES[model_type].stacks)
        raise InputError(
            f"`architecture` must be that of the table for {model_type}, which `mlpfusion inspect` knows, "
            f"got {wrong}; leave it out"
        )


def architecture_to_dict(architecture: Architecture) -> dict[str, Any]:
    """The row as plain data, as it stands in a row file and in a saved config."""
    stacks = [asdict(stack) for stack in architecture.stacks]
    return {"stacks": [{name: value for name, value in one.items() if name != "layout" or value} for one in stacks]}


def row_outside_table(model_type: str, row: Architecture) -> dict[str, Any] | None:
    """The row as plain data if the table has none for `model_type`, else None: what a record must tell."""
    return None if is_known_row(model_type, row) else architecture_to_dict(row)


def architecture_from_dict(data: Any) -> Architecture:
    """The row from plain data. Raises `InputError` for unknown or missing keys and for values that are not text."""
    stacks = data.get("stacks") if isinstance(data, dict) and set(data) == {"stacks"} else None
    if not isinstance(stacks, list) or not stacks:
        raise InputError("an architecture must have the one key `stacks`, a list with at least one stack")
    return Architecture(tuple(_stack_from_dict(stack) for stack in stacks))


def read_architecture(path: Path) -> Architecture:
    """The row in a YAML file, in the form that `mlpfusion inspect` prints. Raises `InputError` if it is not one."""
    return architecture_from_dict(read_yaml(path, "architecture"))


def _stack_from_dict(data: Any) -> Stack:
    known = [field.name for field in fields(Stack)]
    if not isinstance(data, dict) or not set(data) <= set(known):
        unknown = [key for key in data if key not in known] if isinstance(data, dict) else data
        raise InputError(f"a stack must have keys among {', '.join(known)}, got {shown(unknown)}")
    missing = [name for name in ("layer", "up", "down", "activation") if name not in data]
    if missing:
        raise InputError(f"a stack must have {', '.join(missing)}")
    for name, value in data.items():
        if name in ("gate", "width_key", "layout") and value is None:
            continue
        if not isinstance(value, str) or not value:
            raise InputError(f"`{name}` of a stack must be text, got {shown(value)}")
        if name != "layer" and not _PATH.fullmatch(value):
            raise InputError(f"`{name}` of a stack must be names of modules with dots between, got {shown(value)}")
    if data["layer"].count("{}") not in (1, 2) or not _PATH.fullmatch(data["layer"].replace("{}", "0")):
        raise InputError(
            "`layer` of a stack must hold {} once, for the number of the layer, or twice, for that of an expert too, "
            f"between names with dots, got {shown(data['layer'])}"
        )
    if data.get("layout") not in (None, *get_args(Layout)):
        raise InputError(f"`layout` of a stack must be {' or '.join(get_args(Layout))}, got {shown(data['layout'])}")
    if data.get("layout") and not (data["layer"].count("{}") == 2 and data["layer"].endswith(".{}")):
        raise InputError(f"`layer` of a stack with a `layout` must end with a second .{{}}, got {shown(data['layer'])}")
    stack = Stack(**data)
    _check_apart(stack)
    return stack


def _check_apart(stack: Stack) -> None:
    """Raises `InputError` if two of the modules of a stack are one, or one is inside another; `gate` may be `up`."""
    parts = {"up": stack.up, "down": stack.down, "activation": stack.activation}
    parts |= {"gate": stack.gate} if stack.gate not in (None, stack.up) else {}
    for name, path in parts.items():
        for other, inner in parts.items():
            if name != other and f"{inner}.".startswith(f"{path}."):
                raise InputError(f"`{name}` of a stack must be another module than `{other}` is in, got {shown(path)}")
