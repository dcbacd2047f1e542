"""Training examples without their labels, as batches of model inputs."""

from transformers import DataCollatorWithPadding, PreTrainedConfig

from mlpfusion.batch import Batch, with_decoder_inputs
from mlpfusion.data.calibration_texts import order_by_length
from mlpfusion.data.encode import EncodedExamples

_BATCH_SIZE = 32


def unlabelled_batches(examples: EncodedExamples, collate: DataCollatorWithPadding) -> list[Batch]:
    """The inputs of `examples`, without their labels, in batches of 32 in the order of their length."""
    order = sorted(range(len(examples)), key=lambda index: examples.lengths[index])
    rows = [{name: value for name, value in examples[index].items() if name != "labels"} for index in order]
    return [dict(collate(rows[start : start + _BATCH_SIZE])) for start in range(0, len(rows), _BATCH_SIZE)]


def calibration_batches(
    examples: EncodedExamples, collate: DataCollatorWithPadding, config: PreTrainedConfig, num_samples: int, seed: int
) -> list[Batch]:
    """`num_samples` of `examples`, unlabelled, by `order_by_length` on tokens; as inputs of a model of this config."""
    drawn = order_by_length(examples.lengths, seed)[:num_samples]
    return with_decoder_inputs(unlabelled_batches(examples.subset(drawn), collate), config)
