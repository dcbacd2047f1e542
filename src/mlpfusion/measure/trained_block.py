"""Reads a block in its trained form: dense, two factors, or masked."""

from transformers import PreTrainedModel

from mlpfusion.kernel import Block
from mlpfusion.kinds.key import model_key
from mlpfusion.kinds.narrow import read_block
from mlpfusion.kinds.table import kind_of
from mlpfusion.sites.sites import Site


def trained_block(model: PreTrainedModel, site: Site) -> Block:
    """Reads the block at a site, with exactly the parameters trained by `model`.

    Dense weights share memory with the model; products of factors are new.
    """
    key = model_key(model.config)
    entry = None if key is None else key.sites.get(site.path)
    return read_block(model, site) if entry is None else kind_of(entry).trained_block(model, site)
