"""Paths that load a checkpoint and compute: transformers, sentence-transformers, lm-eval."""

import json
import math
import os
import site
import sys
import venv
from pathlib import Path

import torch
from transformers import AutoTokenizer

import mlpfusion.export
from deployment.case import Case, python, run
from mlpfusion.export.fresh import outputs_of

TRANSFORMERS = Path(mlpfusion.export.__file__).parent / "runners" / "plain_transformers.py"
EMBED = Path(__file__).with_name("embed.py")
TEXTS = ("Once upon a time there was a little cat.", "The sun was hot and the dog was happy.")
TASK = """\
task: stories
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/texts.jsonl}}
  cache_dir: {folder}/cache
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
metadata: {{version: 1.0}}
"""


def without(case: Case) -> float:
    """transformers in a process in which this package cannot be imported."""
    return case.difference(outputs_of("plain_transformers", case.folder, case.inputs))


def imported(case: Case) -> float:
    """transformers after `import mlpfusion`."""
    return case.difference_of(case.load())


def run_command(case: Case) -> float:
    """A script that knows transformers alone, behind `mlpfusion run`."""
    return case.difference_by(python("-m", "mlpfusion", "run", "--", str(TRANSFORMERS)))


def autoload(case: Case) -> float:
    """The same script in an environment, made for it, with `mlpfusion autoload on`."""
    environment = case.scratch / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    own = str(environment / "bin" / "python")
    packages = run([own, "-c", "import site; print(site.getsitepackages()[0])"]).strip()
    above = [*site.getsitepackages(), *(path for path in sys.path if path.endswith("site-packages"))]
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in dict.fromkeys(above))
    (Path(packages) / "above.pth").write_text(lines, encoding="utf-8")
    run([own, "-m", "mlpfusion", "autoload", "on"])
    return case.difference_by([own, str(TRANSFORMERS)])


def sentence_transformers(case: Case) -> float:
    """sentence-transformers alone."""
    return case.difference_by(python(str(EMBED)))


def sentence_transformers_run(case: Case) -> float:
    """sentence-transformers behind `mlpfusion run`."""
    return case.difference_by(python("-m", "mlpfusion", "run", "--", str(EMBED)))


def lm_eval(case: Case) -> float:
    """The command of lm-eval behind `mlpfusion run`: bits a byte of two texts, against those by hand."""
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (case.scratch / "texts.jsonl").write_text(rows, encoding="utf-8")
    (case.scratch / "stories.yaml").write_text(TASK.format(folder=case.scratch), encoding="utf-8")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(case.scratch)}
    words = ["--model", "hf", "--model_args", f"pretrained={case.folder},dtype=float32", "--tasks", "stories"]
    words += ["--include_path", str(case.scratch), "--device", "cpu", "--output_path", str(case.scratch / "found")]
    run(python("-m", "mlpfusion", "run", "--", "lm_eval", "run", *words))
    (file,) = (case.scratch / "found").rglob("results_*.json")
    found = json.loads(file.read_text(encoding="utf-8"))["results"]["stories"]["bits_per_byte,none"]
    expected = bits_per_byte(case)
    return abs(found - expected) / expected


@torch.no_grad()
def bits_per_byte(case: Case) -> float:
    """What lm-eval should find: every token after those before it, the first after the one that begins a text.

    A tokenizer that puts that one there too is heard: lm-eval counts its second.
    """
    model, tokenizer, nats = case.load(), AutoTokenizer.from_pretrained(case.folder), 0.0
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
        whole = torch.cat([torch.tensor([tokenizer.bos_token_id]), ids])
        logs = torch.log_softmax(model(input_ids=whole[None]).logits[0, :-1], dim=-1)
        nats -= float(logs[torch.arange(len(ids)), ids].sum())
    return nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
