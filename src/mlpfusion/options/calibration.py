"""Options of what a calibrated method sees."""

from dataclasses import dataclass

from mlpfusion.options.fields import option

CALIBRATION_SAMPLES = 256


@dataclass(frozen=True)
class CalibrationOptions:
    """A file or data set of texts (`read_texts`), of which `calibration_samples` are drawn by the seed.

    A language model sees windows of them (`drawn_windows`). With `sequential` each block is calibrated on what the
    compressed blocks before it leave.
    """

    calibration: str | None = option(
        None, "Texts for a calibrated method: a file, or hub:owner/name[[:config]:split].", metavar="FILE", free=True
    )
    column: str | None = option(None, "Column of --calibration that holds the text.", metavar="NAME")
    calibration_samples: int = option(CALIBRATION_SAMPLES, "Texts, or windows of a language model, to calibrate on.")
    sequential: bool = option(False, "Calibrate each block on what the blocks compressed before it leave.")
