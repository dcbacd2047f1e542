"""Zeros under an adapter in words: on the terminal, and as the card of the folder."""

import shlex

from huggingface_hub import ModelCardData
from rich.text import Text

from mlpfusion.dsee.record import SPARSITY_RECORD_FILE, SparsityRecord
from mlpfusion.report.card import code, plain
from mlpfusion.report.terminal.console import PlainConsole, bold

_HARDLY_ANY = 0.99  # share of zeros

_CARD = """\
---
{data}
---

# {title}, with zeros

{source} with zeros in its weights, drawn by [mlpfusion](https://pypi.org/project/mlpfusion/) {version} from the adapter
in `adapter` (criterion `{criterion}`). {words}

The adapter is not merged: that would fill the zeros.

```python
import mlpfusion

model = mlpfusion.load_adapted("path")
```

The licence is that of the source model. The zeros of every matrix are in `{record_file}`.
"""


def print_sparsity(record: SparsityRecord, out: str) -> None:
    """Prints how many zeros there are, and the next command."""
    console = PlainConsole()
    console.print(zeros_words(record), highlight=False)
    console.print(Text.assemble(bold(out), " is complete. `mlpfusion.load_adapted` loads it with its adapter."))
    name = shlex.quote(out)
    training = f"`mlpfusion tune {name} TUNED --adapter {name}/adapter --task NAME`"
    console.print(f"Next: {training} trains the adapter again, the zeros stay.", highlight=False)


def zeros_words(record: SparsityRecord) -> str:
    """Shares of zeros in one sentence each, and the maps of which hardly anything is left."""
    shares = [100 * record.sparsity(is_updated=which) for which in (True, False)]
    return (
        f"{record.zeros:,} of {record.parameters:,} parameters are zero: {shares[0]:.1f} % of the maps under the "
        f"adapter, {shares[1]:.1f} % of the other linear maps of the layers. "
        f"The adapter adds {record.adapter_parameters:,} parameters."
    ) + _emptied_words(record)


def _emptied_words(record: SparsityRecord) -> str:
    """A pool is ranked as a whole: a map of small weights, as an untrained pooler, can lose all of them."""
    emptied = [rows.path for rows in record.maps if rows.zeros > _HARDLY_ANY * rows.entries]
    if not emptied:
        return ""
    return f" Hardly anything is left of {', '.join(emptied)}: what comes after depends little on the text."


def sparsity_card(record: SparsityRecord) -> str:
    """Text of README.md."""
    data = ModelCardData(library_name="peft", tags=["mlp-fusion", "sparse"])
    return _CARD.format(
        data=data.to_yaml(),
        title=plain(record.model.name.rpartition("/")[2]),
        source=code(record.model.name),
        version=record.versions["mlpfusion"],
        criterion=record.criterion,
        words=zeros_words(record),
        record_file=SPARSITY_RECORD_FILE,
    )
