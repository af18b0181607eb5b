"""Networks that something else has wrapped, compiled or traced, and that can't be changed."""

from typing import Any

import torch
from torch import nn


def refuse_wrapped(model: Any, verb: str = "convert") -> None:
    """Raises TypeError for a model that a wrapper has copied, hooked or compiled already, and for what is no model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; {verb} an nn.Module: build the network first")
    wrappers: tuple[type[nn.Module], ...] = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    for name, module in model.named_modules():
        where = f"{type(module).__name__}{f' at {name!r}' if name else ''}"
        if isinstance(module, wrappers) or type(module).__name__ in ("FullyShardedDataParallel", "FSDPModule"):
            raise TypeError(f"the model is wrapped by {where}; {verb} its .module first, then wrap it")
        if hasattr(module, "_get_fsdp_state"):
            raise TypeError(f"the model is sharded by fully_shard ({where}); {verb} it first, then shard it")
        if hasattr(module, "_orig_mod") or module.__dict__.get("_compiled_call_impl") is not None:
            raise TypeError(f"the model is compiled ({where}); {verb} it first, then compile it")
        if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
            raise TypeError(f"the model holds a traced graph ({where}); {verb} the nn.Module that it was made from")
