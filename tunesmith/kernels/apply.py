"""The fast functions, each checked against its reference before its first use.

`choose` compares every fast path with its plain-torch reference, forward and backward, on small random problems in the
dtype that training will use, one for each way that a model may call it. Where they disagree, or the fast path raises
anything at all, training goes on with the reference, and the reason is returned to be shown and recorded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tunesmith.kernels import attention, cuda, head, layer, native, plain
from tunesmith.kernels.layer import Shape
from tunesmith.kernels.plain import Documents, Heads, Inputs, Operations

Fn = Callable[..., Any]
T = TypeVar("T")
_COSINE = {torch.float32: 1 - 1e-6, torch.bfloat16: 0.999, torch.float16: 0.9999}
_NORM = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.005}  # bf16 rounds that of a few values to 2 %


@dataclass(frozen=True)
class Kernels:
    """The functions in use, and a sentence for each that had to fall back. `layer` is None where layers run as the
    model's own modules."""

    attention: Callable[..., Tensor]
    label_logprobs: Callable[..., tuple[Tensor, Tensor]]
    layer: Callable[..., Tensor] | None
    notes: tuple[str, ...] = ()


@torch.enable_grad()
def choose(dtype: torch.dtype, device: torch.device, cache: Path | None = None) -> Kernels:
    """The fast kernels for this dtype and device, or the references of those that fail their check, which goes backward
    also where nothing is to be learnt.

    `cache` is where compiled code is kept; None leaves the C++ loops out.
    """
    operations, notes = _operations(dtype, device, cache)

    def agrees(name: str, fast: Fn, reference: Fn, problems: dict[str, tuple[Any, ...]]) -> bool:
        for kind, problem in problems.items():
            if fault := disagreement(fast, reference, problem, dtype):
                notes.append(f"kernel {name}, {kind}: {fault}; training uses the slower reference")
                return False
        return True

    attends: list[Fn] = [partial(attention.document_attention, operations)]
    logprobs: Fn = partial(head.label_logprobs, operations)
    whole, plain_layer = partial(layer.layer, operations), partial(layer.reference, operations)
    on_gpu = device.type == "cuda" and dtype in cuda.DTYPES
    if on_gpu:
        attends.insert(0, cuda.document_attention)
    wanted, problems = partial(_behind, attention.reference), _attention_problems(dtype, device)
    good = (fast for fast in attends if agrees("attention", partial(_behind, fast), wanted, problems))
    attend = next(good, attention.reference)
    if not agrees("head", logprobs, head.reference, _head_problems(dtype, device)):
        logprobs = head.reference
    if on_gpu:
        whole = cuda.compiled_layer(attend=attend)
    fused = agrees("layer", partial(_flatly, whole), partial(_flatly, plain_layer), _layer_problems(dtype, device))
    return Kernels(attend, logprobs, whole if fused else None, tuple(notes))


def _operations(dtype: torch.dtype, device: torch.device, cache: Path | None) -> tuple[Operations, list[str]]:
    """The compiled operations, as far as there are any and they agree with plain torch."""
    try:
        if device.type == "cuda":
            operations, notes = cuda.operations(), list[str]()
        elif device.type == "cpu" and dtype in native.DTYPES and cache is not None:
            operations, notes = native.operations(native.load(cache)), list[str]()
        else:
            return plain.OPERATIONS, []
    except native.Unavailable as reason:
        return plain.OPERATIONS, [f"no compiled kernels: {reason}; training is slower and learns the same"]
    for name, problem in _operation_problems(dtype, device).items():
        fault = _difference(vars(operations)[name], vars(plain.OPERATIONS)[name], problem, dtype)
        if fault:
            operations = replace(operations, **{name: vars(plain.OPERATIONS)[name]})
            notes.append(f"compiled kernel {name}: {fault}; training uses plain torch for it")
    return operations, notes


def disagreement(fast: Fn, reference: Fn, problem: tuple[Any, ...], dtype: torch.dtype) -> str | None:
    """What differs between two functions of the same arguments, in value or gradient; None when they agree. The
    reference runs in fp32: both would round in bf16, and add their errors."""
    wanted = _values_and_gradients(reference, _in_fp32(problem))
    found = _tried(lambda: _values_and_gradients(fast, problem))
    if isinstance(found, str):
        return found
    return next(
        (f"its {name} differs from plain torch" for name in found if not _alike(found[name], wanted[name], dtype)), None
    )


def _difference(fast: Fn, reference: Fn, problem: tuple[Any, ...], dtype: torch.dtype) -> str | None:
    """The same for functions without gradients, which may write over their arguments."""

    def results(fn: Fn) -> list[Tensor]:
        arguments = copy.deepcopy(problem)
        return _tensors((fn(*arguments), arguments))

    wanted, found = results(reference), _tried(lambda: results(fast))
    if isinstance(found, str):
        return found
    alike = len(found) == len(wanted) and all(_alike(a, b, dtype) for a, b in zip(found, wanted))
    return None if alike else "it differs from plain torch"


def _tried(work: Callable[[], T]) -> T | str:
    """What a fast path gives, or why it gives nothing: whatever it raises, the reference does the work."""
    try:
        return work()
    except Exception as error:
        return f"it fails here ({(str(error).splitlines() or [type(error).__name__])[0]})"


def _tensors(values: Any) -> list[Tensor]:
    """All of them in nested tuples."""
    if isinstance(values, tuple):
        return [tensor for value in values for tensor in _tensors(value)]
    return [values] if isinstance(values, Tensor) else []


def _alike(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.double().flatten(), b.double().flatten()
    same_way = torch.dot(a, b) >= _COSINE[dtype] * a.norm() * b.norm()
    return bool(same_way and abs(a.norm() - b.norm()) <= _NORM[dtype] * b.norm() and torch.isfinite(a).all())


def _values_and_gradients(fn: Fn, problem: tuple[Any, ...]) -> dict[str, Tensor]:
    arguments = [a.clone().requires_grad_() if isinstance(a, Tensor) and a.requires_grad else a for a in problem]
    value, *others = _tensors((fn(*arguments),))
    weights = torch.linspace(-1, 1, value.numel(), device=value.device).view_as(value)
    gradients = torch.autograd.grad(
        (value * weights).sum(), [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    )
    return {
        "value": value.detach(),
        **{f"gradient {i}": gradient for i, gradient in enumerate(gradients, 1)},
        **{f"result {i}": other for i, other in enumerate(others, 2)},
    }


def _in_fp32(problem: tuple[Any, ...]) -> tuple[Any, ...]:
    wide = [a.detach().float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in problem]
    return tuple(b.requires_grad_() if isinstance(a, Tensor) and a.requires_grad else b for a, b in zip(problem, wide))


Problems = dict[str, tuple[Any, ...]]


def _attention_problems(dtype: torch.dtype, device: torch.device) -> Problems:
    make = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(device, dtype).requires_grad_()

    q, k, v, past_k, past_v = tensor(12, 32), tensor(12, 16), tensor(12, 16), tensor(2, 3, 8), tensor(2, 3, 8)
    lengths, scale = [5, 1, 6], 8**-0.5
    return {
        "documents apart": (q, k, v, None, None, Documents(lengths), Heads(4, 2, 8, scale)),
        "a shared beginning and a window": (
            *(q, k, v, None, None),
            *(Documents(lengths, shared=True), Heads(4, 2, 8, scale, 4)),
        ),
        "behind keys from outside": (q, k, v, past_k, past_v, Documents(lengths, shared=True), Heads(4, 2, 8, scale)),
    }


def _behind(
    fn: Fn, q: Tensor, k: Tensor, v: Tensor, past_k: Tensor | None, past_v: Tensor | None, *rest: Any
) -> Tensor:
    result: Tensor = fn(q, k, v, *rest, past=None if past_k is None else (past_k, past_v))
    return result


def _head_problems(dtype: torch.dtype, device: torch.device) -> Problems:
    make = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 16, generator=make).to(device, dtype).requires_grad_()
    weight = torch.randn(31, 16, generator=make).to(device, dtype)
    labels = torch.randint(31, (9,), generator=make).to(device)
    return {"frozen": (hidden, weight, labels), "trained": (hidden, weight.clone().requires_grad_(), labels)}


def _layer_problems(dtype: torch.dtype, device: torch.device) -> Problems:
    """Llama's layer, and one that has all that others have besides. A GPU would compile the latter for its check."""
    full = (
        {} if device.type == "cuda" else {"with biases, head norms and a window": _layer_problem(dtype, device, True)}
    )
    return {"with low-rank updates": _layer_problem(dtype, device, False), **full}


def _layer_problem(dtype: torch.dtype, device: torch.device, full: bool) -> tuple[Any, ...]:
    """Documents through a layer of 4 heads over 2, with a LoRA on every linear; if `full`, with a bias on each, norms
    for queries and keys, a window, and a beginning that the documents share."""
    make = torch.Generator().manual_seed(0)

    def tensor(*shape: int, size: float = 0.3) -> Tensor:
        return (size * torch.randn(*shape, generator=make)).to(device, dtype).requires_grad_()

    def linear(outputs: int, inputs: int) -> list[Tensor | None]:
        bias = tensor(outputs) if full else None
        return [tensor(outputs, inputs), bias, tensor(2, inputs), tensor(outputs, 2)]

    norms = [tensor(32, size=1.0) for _ in range(2)]
    angles = torch.randn(9, 4, generator=make).to(device)
    cos, sin = (torch.cat([part, part], 1).to(dtype) for part in (angles.cos(), angles.sin()))
    q, k, v, o = linear(32, 32), linear(16, 32), linear(16, 32), linear(32, 32)
    pair_and_down = (*linear(48, 32), *linear(48, 32), *linear(32, 48))
    shape = Shape(Heads(4, 2, 8, 8**-0.5, 4 if full else None), 1e-5, (2.0,) * 7)
    head_norms = [tensor(8, size=1.0) if full else None for _ in range(2)]
    flat = (norms[0], *q, *k, *v, *head_norms, *o, norms[1], *pair_and_down)
    return tensor(9, 32, size=1.0), cos, sin, Documents([3, 2, 4] if full else [5, 4], full), shape, *flat


def _flatly(fn: Fn, x_ND: Tensor, cos: Tensor, sin: Tensor, documents: Documents, shape: Shape, *flat: Any) -> Tensor:
    result: Tensor = fn(x_ND, (cos, sin), documents, shape, layer.structured(flat))
    return result


def _operation_problems(dtype: torch.dtype, device: torch.device) -> dict[str, tuple[Any, ...]]:
    """Small arguments for every function of plain.py; a query's window hides keys, and all documents begin alike."""
    make = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(device, dtype)

    rstd, lengths = torch.rand(9, generator=make).to(device), [37, 1, 150]  # several blocks, tiles and rests of them
    N, past = sum(lengths), (tensor(2, 35, 16), tensor(2, 35, 16))
    qkv, turn = (tensor(N, 64), tensor(N, 32), tensor(N, 32)), (tensor(N, 16), tensor(N, 16))
    of = Inputs(*qkv, turn, past, Documents(lengths, True), Heads(4, 2, 16, 0.25, 100))
    lse = plain.attention(of)[1]
    return {
        "norm": (tensor(9, 48), tensor(48), 1e-5),
        "norm_backward": (tensor(9, 48), tensor(9, 48), tensor(48), rstd, tensor(9, 48), True),
        "swiglu": (tensor(9, 64),),
        "swiglu_backward": (tensor(9, 32), tensor(9, 64)),
        "attention": (of,),
        "attention_backward": (of, tensor(N, 64), lse, tuple(map(torch.zeros_like, qkv))),
        "label_softmax_": (tensor(9, 31), torch.randint(31, (9,), generator=make).to(device)),
    }
