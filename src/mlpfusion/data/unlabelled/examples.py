"""Batches of training examples in a fixed order, for calibration and for measuring."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.batch import Batch, shifted_right, with_decoder_inputs
from mlpfusion.checkpoint.tokenizer import BATCH_SIZE
from mlpfusion.data.encode import Collate, EncodedExamples, without_labels
from mlpfusion.data.language.labels import text_ids
from mlpfusion.data.unlabelled.calibration_texts import PreparedCalibration, order_by_length


def unlabelled_batches(examples: EncodedExamples, collate: Collate) -> list[Batch]:
    """Batches of `BATCH_SIZE` examples without labels, sorted by length."""
    return labelled_batches(without_labels(examples), collate, BATCH_SIZE)


def labelled_batches(examples: EncodedExamples, collate: Collate, batch_size: int) -> list[Batch]:
    """Batches of examples with what labels they have, sorted by length."""
    rows = examples.by_length().items
    return [dict(collate(rows[start : start + batch_size])) for start in range(0, len(rows), batch_size)]


def model_batches(examples: EncodedExamples, collate: Collate, config: PreTrainedConfig) -> list[Batch]:
    """Batches of `BATCH_SIZE` examples as inputs of a model of `config`, sorted by length.

    The decoder of an encoder-decoder reads the text to write, and where there is none the same text again.
    """
    if not config.is_encoder_decoder or not isinstance(examples[0].get("labels"), list):
        return with_decoder_inputs(unlabelled_batches(examples, collate), config)
    found = list[Batch]()
    for batch in labelled_batches(examples, collate, BATCH_SIZE):
        text, there = text_ids(batch["labels"])
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        decoder = {"decoder_input_ids": shifted_right(text, config), "decoder_attention_mask": there.long()}
        found.append(inputs | decoder)
    return found


def calibration_batches(
    examples: EncodedExamples, collate: Collate, config: PreTrainedConfig, num_samples: int, seed: int
) -> list[Batch]:
    """Draws `num_samples` examples, long ones more often, as `model_batches`."""
    drawn = order_by_length(examples.lengths, seed)[:num_samples]
    return model_batches(examples.subset(drawn), collate, config)


@dataclass(frozen=True)
class CalibrationExamples:
    """Training examples of a task, of which a run draws `num_samples`, without their labels.

    `source` names the task and its files. `config` is that of the model, with the padding id of the tokenizer.
    """

    examples: EncodedExamples
    collate: Collate
    config: PreTrainedConfig
    num_samples: int
    source: str

    def prepare(self, folder: Path, model: PreTrainedModel, seed: int) -> PreparedCalibration:
        """Draws the examples, which were tokenized before."""
        batches = calibration_batches(self.examples, self.collate, self.config, self.num_samples, seed)
        origin = {"file": self.source, "examples_sha256": self.examples.sha256()}
        return PreparedCalibration(lambda _model, _progress: batches, origin)
