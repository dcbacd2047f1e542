"""What is fuzzed: options as text, YAML files, data files, the key of a compressed model, files of a checkpoint."""

import gzip
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from fuzz_key import check_key
from fuzzing import Target, damaged, damaged_bytes
from safetensors.torch import load_file
from tiny_task import save_checkpoint

from mlpfusion.commands.command import not_told
from mlpfusion.commands.models import compress
from mlpfusion.commands.models.compress import CompressOptions
from mlpfusion.compression.budget.amount import parse_budget
from mlpfusion.compression.plan import parse_layers
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.labelled.glue import CustomTask
from mlpfusion.data.labelled.load import load_files
from mlpfusion.measure.method_list import parse_methods
from mlpfusion.methods.names import method_from_name, method_name
from mlpfusion.methods.table import ONE_SHOT
from mlpfusion.options.adapters.dsee import parse_dsee
from mlpfusion.options.adapters.lora import parse_lora
from mlpfusion.options.distill import DistillOptions
from mlpfusion.options.dynamics import DynamicsOptions
from mlpfusion.options.fields import read_options
from mlpfusion.options.selection import Selection
from mlpfusion.options.tune import TuneOptions
from mlpfusion.reproduce.experiment import read_experiment
from mlpfusion.reproduce.rows import parse_table_row
from mlpfusion.sites.table import read_architecture
from mlpfusion.storage.yaml import parse_option

_STRINGS: tuple[tuple[Callable[[str], object], tuple[str, ...]], ...] = (
    (lambda text: parse_layers(text, 12), ("all", "last:4", "first:2", "4-11", "0,3,5", "0-3,7")),
    (parse_budget, ("60%", "60%flops", "12.5% parameters")),
    (parse_option, ("refine=false", "num_init=3", "variant=code", "x=[1, 2]", "y={a: 1}")),
    (parse_methods, ("all", "fusion,svd", "fusion:refine=false", "ntk-match:pooling=first:match_ridge=3.0")),
    (parse_dsee, ("rank=16", "rank=4,alpha=8,sparse=16,omega=random,omega_seed=3", "rounds=9,power=1,tau=1e-3")),
    (parse_lora, ("r=8", "r=8,alpha=16,dropout=0.1", "r=4,targets=query+value")),
    (
        lambda text: parse_table_row(text, "model"),
        ("full", "fusion+layerwise=2", "svd+lora=8", "fusion:refine=false+lora"),
    ),
)


def _string(rng: random.Random, folder: Path) -> Callable[[], object]:
    parse, good = rng.choice(_STRINGS)
    text = damaged(rng, rng.choice(good))
    return lambda: parse(text)


def _option(rng: random.Random, folder: Path) -> Callable[[], object]:
    types = {method_name(config): config for config in ONE_SHOT}
    method = rng.choice(sorted(types))
    option = rng.choice([*fields(types[method]), None])
    good = f"x={rng.choice(('1', 'true', '2.5', 'first'))}" if option is None else f"{option.name}={option.default}"
    text = damaged(rng, good) if rng.random() < 0.8 else good

    def run() -> object:
        name, value = parse_option(text)
        return method_from_name(method, {name: value})

    return run


_COMPRESS = """\
model: {folder}/none
out: {folder}/out
method: ntk-match
options: {{pooling: first, match_ridge: 3.0}}
layers: last:8
keep_ratio: 0.25
round_to: 8
seed: 3
text_column: [question, sentence]
calibration: texts.txt
"""
_TUNE = """\
model: {folder}/none
out: {folder}/out
task: sst2
learning_rate: [2e-5, 5e-5]
seeds: [0, 1]
epochs: 3
lora: r=8
patience: 2
select_on: holdout
max_train_samples: 100
"""
_DISTILL = "original: a\ncompressed: b\nout: {folder}/out\ndata: x.txt\nobjective: logits+hidden\ntemperature: 2\n"
_DYNAMICS = "model: a\nout: {folder}/out\ntask: sst2\nmethods: [fusion, 'ntk-match:pooling=first']\nsteps: 10\n"
_EXPERIMENT = """\
title: x
model: a
out: {folder}/out
tasks: [sst2, mrpc]
methods: [full, fusion, svd+lora=8, 'fusion+layerwise=1']
layers: [last:8]
keep_ratio: [0.25]
seeds: [0, 1]
learning_rate: [2e-5]
"""
_ROW = """\
stacks:
  - layer: encoder.layer.{{}}
    up: intermediate.dense
    down: output.dense
    activation: intermediate.intermediate_act_fn
    width_key: intermediate_size
"""
_YAML: tuple[tuple[str, Callable[[Path], object]], ...] = (
    (_COMPRESS, lambda file: read_options(CompressOptions, file)),
    (_TUNE, lambda file: _tuning(read_options(TuneOptions, file))),
    (_DISTILL, lambda file: read_options(DistillOptions, file)),
    (_DYNAMICS, lambda file: read_options(DynamicsOptions, file)),
    (_EXPERIMENT, lambda file: read_experiment(str(file), {})),
    (_ROW, read_architecture),
)


def _tuning(options: TuneOptions) -> object:
    return [options.finetune(rate, seed) for rate in options.learning_rate for seed in options.seeds]


def _yaml(rng: random.Random, folder: Path) -> Callable[[], object]:
    good, read = rng.choice(_YAML)
    file = folder / "recipe.yaml"
    file.write_bytes(damaged(rng, good.format(folder=folder)).encode("utf-8", "surrogatepass"))
    return lambda: read(file)


_ROWS = [{"text": "a fine film", "label": "pos"}, {"text": 'he said "no"', "label": "neg"}, {"text": "é", "label": "1"}]
_DATA = {
    ".txt": "\n".join(row["text"] for row in _ROWS) + "\n",
    ".csv": 'text,label\na fine film,pos\n"he said ""no""",neg\né,1\n',
    ".tsv": 'text\tlabel\na fine film\tpos\nhe said "no"\tneg\né\t1\n',
    ".jsonl": "".join(json.dumps(row) + "\n" for row in _ROWS),
    ".json": json.dumps(_ROWS),
}


def _data(rng: random.Random, folder: Path) -> Callable[[], object]:
    suffix, good = rng.choice(sorted(_DATA.items()))
    content = good.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")))
    content = damaged_bytes(rng, content) if rng.random() < 0.8 else content
    if rng.random() < 0.3:
        content, suffix = gzip.compress(content, mtime=0), f"{suffix}.gz"
        content = damaged_bytes(rng, content) if rng.random() < 0.5 else content
    file = folder / f"data{suffix}"
    file.write_bytes(content)
    if suffix.startswith(".txt") or rng.random() < 0.5:
        column = None if suffix.startswith(".txt") else "text"
        return lambda: list(read_texts(str(file), column=column, field="data"))
    columns = CustomTask(("text",), "label", regression=rng.random() < 0.3)
    return lambda: load_files(file, file, columns)


def _checkpoint(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A damaged safetensors header or config.json through a whole `compress`, and OUT loaded if there is one."""
    good = folder / "good"
    if not good.exists():
        save_checkpoint(good)
    source, out = folder / "source", folder / "out"
    for path in (source, out):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(good, source)
    file = source / rng.choice(("model.safetensors", "config.json"))
    content = file.read_bytes()
    if file.suffix == ".json":
        changed = damaged(rng, content.decode()).encode("utf-8", "surrogatepass")
    else:
        length = 8 + int.from_bytes(content[:8], "little")
        changed = damaged_bytes(rng, content[:length]) + content[length:]
    file.write_bytes(changed)
    options = CompressOptions(str(source), str(out), selection=Selection(keep_ratio=0.5))

    def run() -> None:
        try:
            compress.run(options, not_told)
            load_file(out / "model.safetensors")
        finally:
            left = sorted(path.name for path in folder.glob(".out*"))
            assert not left, f"left behind: {left}"

    return run


def _key(rng: random.Random, folder: Path) -> Callable[[], object]:
    return lambda: check_key(rng).partition(" ")[0]


TARGETS = {
    target.name: target
    for target in (
        Target("strings", _string),
        Target("options", _option),
        Target("yaml", _yaml),
        Target("data", _data),
        Target("key", _key),
        Target("checkpoints", _checkpoint),
    )
}
