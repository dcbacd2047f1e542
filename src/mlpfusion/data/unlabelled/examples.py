"""Unlabelled batches of labelled training examples, for calibration."""

from transformers import DataCollatorWithPadding, PreTrainedConfig

from mlpfusion.batch import Batch, with_decoder_inputs
from mlpfusion.checkpoint.tokenizer import BATCH_SIZE
from mlpfusion.data.encode import EncodedExamples
from mlpfusion.data.unlabelled.calibration_texts import order_by_length


def unlabelled_batches(examples: EncodedExamples, collate: DataCollatorWithPadding) -> list[Batch]:
    """Batches of `BATCH_SIZE` examples without labels, sorted by length."""
    order = sorted(range(len(examples)), key=lambda index: examples.lengths[index])
    rows = [{name: value for name, value in examples[index].items() if name != "labels"} for index in order]
    return [dict(collate(rows[start : start + BATCH_SIZE])) for start in range(0, len(rows), BATCH_SIZE)]


def calibration_batches(
    examples: EncodedExamples, collate: DataCollatorWithPadding, config: PreTrainedConfig, num_samples: int, seed: int
) -> list[Batch]:
    """Draws `num_samples` examples, long ones more often, as unlabelled batches.

    The batches are inputs of a model of `config`: with shifted decoder inputs for an
    encoder-decoder.
    """
    drawn = order_by_length(examples.lengths, seed)[:num_samples]
    return with_decoder_inputs(unlabelled_batches(examples.subset(drawn), collate), config)
