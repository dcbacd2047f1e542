"""Lets transformers build compressed models: `import mlpfusion` is all that `from_pretrained` needs.

`PreTrainedModel.post_init` runs at the end of the `__init__` of every model, before any weight is read. Where the
config carries the key `mlp_fusion`, the linear maps get their narrower shape and the activations their scale there,
and by the key `mlp_fusion_heads` attentions get the heads that are left, so `from_pretrained` and `from_config` of
every Auto class, dtypes, device maps and quantisers work on the right modules. `__init__` itself refuses a bad key
before anything is built. At the end of `from_pretrained`, when transformers sorts out missing and unexpected weights,
the loaded scales are checked. Without this package plain transformers fails on the shapes, because the config keeps
the original width and the original number of heads.
"""

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlpfusion.after_import import after_import

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from mlpfusion.heads.key import HeadsKey
    from mlpfusion.kinds.key import FusionKey

_MARK = "_mlpfusion_hook"


def register() -> None:
    """Patches `PreTrainedModel.post_init` as soon as transformers' modelling code is imported, at once if it is."""
    after_import("transformers.modeling_utils", _patch)


def _patch(module: ModuleType) -> None:
    model_class = module.PreTrainedModel
    if hasattr(model_class.post_init, _MARK):
        return
    original_init = model_class.__init__
    original_post_init = model_class.post_init
    original_adjust = model_class._adjust_missing_and_unexpected_keys

    @functools.wraps(original_init)
    def init(self: "PreTrainedModel", config: Any, *inputs: Any, **options: Any) -> None:
        _key(config)
        _heads(config)
        original_init(self, config, *inputs, **options)

    @functools.wraps(original_post_init)
    def post_init(self: "PreTrainedModel") -> None:
        key, heads = _key(self.config), _heads(self.config)
        if heads is not None:
            from mlpfusion.heads.slicing import rebuild_heads

            rebuild_heads(self, heads)
        if key is not None:
            from mlpfusion.kinds.rebuild import rebuild_sites

            rebuild_sites(self, key)
        original_post_init(self)

    @functools.wraps(original_adjust)
    def adjust(self: "PreTrainedModel", loading_info: Any) -> None:
        original_adjust(self, loading_info)
        key = _key(self.config)
        if key is not None:
            from mlpfusion.kinds.rebuild import check_loaded

            check_loaded(self, key, loading_info.missing_keys, loading_info.unexpected_keys)

    setattr(post_init, _MARK, True)
    model_class.__init__ = init
    model_class.post_init = post_init
    model_class._adjust_missing_and_unexpected_keys = adjust


def _key(config: "PreTrainedConfig") -> "FusionKey | None":
    """The parsed `mlp_fusion` key of a config, None without one. Raises as `model_key` does."""
    from mlpfusion.kinds.key import model_key

    return model_key(config)


def _heads(config: "PreTrainedConfig") -> "HeadsKey | None":
    """The parsed key `mlp_fusion_heads` of a config, None without one. Raises as `heads_key` does."""
    from mlpfusion.heads.key import heads_key

    return heads_key(config)
