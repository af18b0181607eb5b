"""Compiles every kernel for a GPU that needn't be there; prints a line each: name, registers, bytes spilled.

Run as a program of its own, without Triton's interpreter.
"""

import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_

from icnets.unit.kernels.gpu import collide
from icnets.unit.kernels.gpu.layout import Layout

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
OPTIONS = ("num_warps", "num_stages")
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Compiled:
    """In the place of a kernel: compiles it for the arguments of each call."""

    def __init__(self, kernel, capability):
        self.kernel, self.capability = kernel, capability

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *args, **kwargs):
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        values = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value = values.pop(parameter.name)
            if parameter.is_constexpr or (type(value) is int and value == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name], attributes[(i,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
                if isinstance(value, int) and value % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        assert not values, f"{self.kernel.__name__} takes no {values}"
        source = ASTSource(self.kernel, signature, constants, attributes)
        code = compile_(source, target=GPUTarget("cuda", self.capability, 32), options=options).asm["cubin"]
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(code)
            file.flush()
            command = [TOOLS / "cuobjdump", "-res-usage", file.name]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
        print(self.kernel.__name__, registers, stack, flush=True)


def drive(channels, groups, channels_last, dtype, gain):
    """Calls every function that launches a kernel, with tensors of these kinds."""
    last = {"memory_format": torch.channels_last if channels_last else torch.contiguous_format}
    y = torch.zeros(64, channels, 14, 14, dtype=dtype).contiguous(**last)
    s = torch.zeros(64, groups, 14, 14).contiguous(**last)
    v = torch.zeros(channels)
    layout = Layout.of(y, s)
    collide.collide_(y, s, layout, v, 0.3, v, gain)
    collide.collide_backward(y, s, layout, y, False, v, 0.3, v, gain)


def main():
    warnings.simplefilter("ignore")
    capability = int(sys.argv[1])
    for name in [
        n
        for n, k in vars(collide).items()
        if isinstance(k, triton.JITFunction) and n.startswith(("_forward", "_backward"))
    ]:
        setattr(collide, name, Compiled(getattr(collide, name), capability))
    drive(256, 1, True, torch.bfloat16, None)
    drive(128, 32, True, torch.float16, torch.ones(128))
    drive(96, 96, True, torch.float32, None)
    drive(256, 1, False, torch.bfloat16, torch.ones(256))


if __name__ == "__main__":
    main()
