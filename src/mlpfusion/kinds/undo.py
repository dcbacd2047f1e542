"""All or nothing: what fails while a model is being changed leaves it as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.sites.sites import base_model


@contextmanager
def put_back_on_error(model: PreTrainedModel) -> Iterator[None]:
    """Inside, modules may be replaced and the config edited; any exception puts back what stood there.

    Tensors are not copied: new values must go into new modules, not into those of the model.
    """
    modules = [(module, dict(module._modules)) for module in model.modules()]
    configs = [(config, dict(vars(config))) for config in _configs(model)]
    try:
        yield
    except BaseException:
        for module, children in modules:
            module._modules.clear()
            module._modules.update(children)
        for config, entries in configs:
            vars(config).clear()
            vars(config).update(entries)
        raise


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configs of a model and of its base, and those inside these."""
    found: dict[int, PreTrainedConfig] = {}
    waiting = [model.config, base_model(model).config]
    while waiting:
        config = waiting.pop()
        if id(config) not in found:
            found[id(config)] = config
            waiting += [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return list(found.values())
