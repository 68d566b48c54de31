"""Run Triton kernels of other projects on a CPU, unchanged, under Triton's interpreter.

These kernels need autotuning, for which the interpreter has no driver. They loop over plain integers and use PTX
instructions, which it does not know. They ask for the GPU's properties, and Mamba-3's kernels cast their inputs to
bfloat16, on which the interpreter computes nonsense. `upstream_kernels` fills all these gaps: each kernel runs its
first configuration, loop counters are tensors as in compiled code, approximate instructions return the exact value, and
Mamba-3 stays in fp32. The kernels' own code does not change.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, interpreter_builder

PTX = {"cos.approx.f32": np.cos, "sin.approx.f32": np.sin, "tanh.approx.f32": np.tanh}
LOOPING = ("fla.ops.", "fla.modules.")  # packages whose kernels use methods of loop counters


def _first_configuration(self: Autotuner, *args, **kwargs):
    self.best_config = first = self.configs[0]
    if first.pre_hook is not None:
        first.pre_hook({**dict(zip(self.arg_names, args, strict=False)), **kwargs, **first.all_kwargs()})
    return self.fn.run(*args, **kwargs, **first.all_kwargs())


def _range(*bounds):
    """Replace `range` in a module: inside kernels counters are int32 tensors, outside it is Python's `range`."""
    try:
        tl.full((), 0, tl.int32)
    except ValueError:  # Triton's functions only work inside kernels
        return builtins.range(*bounds)
    return _counters(*bounds)


def _counters(*bounds):
    for i in builtins.range(*(int(b.handle.data.item()) if isinstance(b, tl.tensor) else int(b) for b in bounds)):
        yield tl.full((), i, tl.int32)


def _inline_asm(self, text, constraints, values, types_, pure, pack):
    result = TensorHandle(PTX[text.split()[0]](values[0].data), values[0].dtype)
    return types.SimpleNamespace(get_result=lambda i: result)


def _wide(tensor: TensorHandle) -> TensorHandle:
    """Return a bfloat16 tensor, which the interpreter stores as bits, as fp32."""
    if tensor.dtype.scalar != tl.bfloat16:
        return tensor
    return TensorHandle((tensor.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _dot(self, a, b, d, *precision, compute=InterpreterBuilder.create_dot):
    return compute(self, _wide(a), _wide(b), d, *precision)


@contextlib.contextmanager
def upstream_kernels() -> Iterator[None]:
    """Run Triton kernels of fla and mamba-ssm on CPU tensors within the block. With a GPU, change nothing."""
    if torch.cuda.is_available():
        yield
        return
    device = torch.cuda.device
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Autotuner, "run", _first_configuration)
        patch.setattr(InterpreterBuilder, "create_inline_asm", _inline_asm)
        patch.setattr(InterpreterBuilder, "create_dot", _dot)
        # Which precision a product is asked for makes no difference here: it is computed in that of its operands.
        precisions = (*interpreter_builder.options.allowed_dot_input_precisions, "bf16x3")
        options = dataclasses.replace(interpreter_builder.options, allowed_dot_input_precisions=precisions)
        patch.setattr(interpreter_builder, "options", options)
        patch.setattr(torch.cuda, "device", lambda i: contextlib.nullcontext() if i is None else device(i))
        properties = types.SimpleNamespace(multi_processor_count=4)
        patch.setattr(torch.cuda, "get_device_properties", lambda *args: properties)
        patch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
        for name, module in list(sys.modules.items()):
            if name.startswith(LOOPING) and module is not None and not hasattr(module, "range"):
                patch.setattr(module, "range", _range, raising=False)
                if getattr(module, "gather", None) is tl.gather:  # bound before the interpreter replaces tl's
                    patch.setattr(module, "gather", lambda *args, **kwargs: tl.gather(*args, **kwargs))
            if name.startswith("mamba_ssm.ops.triton.mamba3.") and hasattr(module, "torch"):
                patch.setattr(module, "torch", types.SimpleNamespace(**vars(torch) | {"bfloat16": torch.float32}))
        yield
