"""A pico model with a tokenizer, and a small task that it can learn: which half of the words is it?"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pico import pico_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.labelled.glue import LabelledTask
from mlpfusion.data.labelled.load import Examples
from mlpfusion.data.task import TaskData
from mlpfusion.data.tasks import encode_task

WORDS = [f"w{index}" for index in range(60)]


def tiny_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, eos_token="[SEP]", **special)


def sentences(count: int, seed: int) -> tuple[list[str], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (count,), generator=generator).tolist()
    labels = torch.randint(0, 2, (count,), generator=generator).tolist()
    words = [torch.randint(0, len(WORDS) // 2, (length,), generator=generator).tolist() for length in lengths]
    pairs = zip(words, labels, strict=True)
    return [" ".join(WORDS[i + label * len(WORDS) // 2] for i in row) for row, label in pairs], labels


def examples(count: int, seed: int) -> Examples:
    texts, labels = sentences(count, seed)
    return Examples(tuple((text,) for text in texts), tuple(labels))


TASK = LabelledTask(
    name="half", text_columns=("sentence",), label_names=("first", "second"), metrics=("accuracy", "f1")
)


def make_task(*, pairs: bool = False) -> EncodedTask:
    """96 training examples and 40 to report on; with `pairs` every text has a second one."""

    def split(count: int, seed: int) -> Examples:
        first, second = examples(count, seed), examples(count, seed + 10)
        texts = tuple((*a, *b) for a, b in zip(first.texts, second.texts, strict=True))
        return replace(first, texts=texts) if pairs else first

    data = TaskData(TASK, split(96, 0), {"validation": split(40, 1)}, "made up")
    return encode_task(data, tiny_tokenizer(), max_length=24 if pairs else 16)


def write_files(folder: Path) -> tuple[Path, Path]:
    """The same task as files of one's own."""
    paths = folder / "train.jsonl", folder / "validation.jsonl"
    for path, count, seed in zip(paths, (96, 40), (0, 1), strict=True):
        rows = [{"sentence": text, "label": label} for text, label in zip(*sentences(count, seed), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def save_checkpoint(folder: Path, name: str = "bert", auto_class: Any = None) -> Path:
    model = pico_model(name) if auto_class is None else pico_model(name, auto_class)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
