"""Lets PEFT know DSEE: after `import mlpfusion`, `PeftModel.from_pretrained` loads its adapters.

Three tables of PEFT say which config, tuner and prefix belong to a kind of adapter. They get a row each as soon as PEFT
is imported. Without this package PEFT refuses such an adapter by its name.
"""

from types import ModuleType

from mlpfusion.after_import import after_import


def register() -> None:
    """Adds the rows as soon as PEFT is imported, at once if it is."""
    after_import("peft", _add_rows)


def _add_rows(peft: ModuleType) -> None:
    from mlpfusion.dsee.adapter.config import DseeConfig, DseeType
    from mlpfusion.dsee.adapter.model import DseeModel

    peft.PEFT_TYPE_TO_CONFIG_MAPPING[DseeType.DSEE] = DseeConfig
    peft.PEFT_TYPE_TO_TUNER_MAPPING[DseeType.DSEE] = DseeModel
    peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[DseeType.DSEE] = DseeModel.prefix
