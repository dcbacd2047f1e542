"""Segment ids: at each position the token that opened its segment, whose word embedding a model adds."""

from collections.abc import Collection, Sequence

from transformers import PreTrainedConfig

from mlpfusion.errors import InputError

# Their `forward` adds the word embedding of `token_type_ids`; a BERT has another table for them, most have none.
MODEL_TYPES = ("codegen", "gpt2", "gpt_bigcode", "gpt_neo", "gptj")


def segment_ids(ids: Sequence[int], openers: Collection[int]) -> list[int]:
    """The last of `openers` at or before each position; before the first, the first.

    >>> segment_ids([7, 1, 8, 8, 2, 9], openers=(1, 2))
    [1, 1, 1, 1, 2, 2]
    """
    current = next(token for token in ids if token in openers)
    found = []
    for token in ids:
        current = token if token in openers else current
        found.append(current)
    return found


def check_takes_segments(config: PreTrainedConfig) -> None:
    """Raises `InputError` for a model type that does not add the word embedding of `token_type_ids`."""
    if config.model_type not in MODEL_TYPES:
        raise InputError(
            f"`segment_ids` must be left out but for {', '.join(MODEL_TYPES)}, which add word embeddings of segments, "
            f"got {config.model_type}"
        )
