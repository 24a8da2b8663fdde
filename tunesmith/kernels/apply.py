"""The fast functions, each checked against its reference before its first use.

`choose` compares a fast path with its plain-torch reference, forward and backward, on a small random problem in the
dtype that training will use. Where they disagree, or the fast path raises, training goes on with the reference, and the
reason is returned to be shown and recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels import attention, head

_COSINE = {torch.float32: 1 - 1e-6, torch.bfloat16: 0.999, torch.float16: 0.9999}


@dataclass(frozen=True)
class Kernels:
    """The functions in use, and a sentence for each that had to fall back."""

    attention: Callable[..., Tensor]
    label_logprobs: Callable[..., tuple[Tensor, Tensor]]
    notes: tuple[str, ...] = ()


def choose(dtype: torch.dtype, device: torch.device) -> Kernels:
    """The fast kernels for this dtype and device, or the references of those that fail their check."""
    notes: list[str] = []

    def checked(
        name: str, fast: Callable[..., Any], plain: Callable[..., Any], problem: Callable[..., Any]
    ) -> Callable[..., Any]:
        fault = disagreement(fast, plain, problem(dtype, device), _COSINE[dtype])
        if fault:
            notes.append(f"kernel {name}: {fault}; training uses the slower reference")
        return plain if fault else fast

    return Kernels(
        checked("attention", attention.document_attention, attention.reference, _attention_problem),
        checked("head", head.label_logprobs, head.reference, _head_problem),
        tuple(notes),
    )


def disagreement(
    fast: Callable[..., Any], plain: Callable[..., Any], problem: tuple[Any, ...], cosine: float
) -> str | None:
    """What differs between two functions of the same arguments, in value or gradient; None when they agree."""
    try:
        found, wanted = _value_and_gradients(fast, problem), _value_and_gradients(plain, problem)
    except RuntimeError as error:
        return f"it fails here ({str(error).splitlines()[0]})"
    for i, (a, b) in enumerate(zip(found, wanted)):
        a, b = a.double().flatten(), b.double().flatten()
        if (
            not torch.isfinite(a).all()
            or torch.dot(a, b) < cosine * a.norm() * b.norm()
            or abs(a.norm() / b.norm() - 1) > 0.01
        ):
            return f"its {'value' if i == 0 else f'gradient {i}'} differs from plain torch"
    return None


def _value_and_gradients(fn: Callable[..., Any], problem: tuple[Any, ...]) -> list[Tensor]:
    arguments = [a.clone().requires_grad_() if isinstance(a, Tensor) and a.requires_grad else a for a in problem]
    result = fn(*arguments)
    value = result[0] if isinstance(result, tuple) else result
    weights = torch.linspace(-1, 1, value.numel(), device=value.device).view_as(value)
    gradients = torch.autograd.grad(
        (value * weights).sum(), [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    )
    return [value.detach(), *gradients]


def _attention_problem(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(heads, 12, 8, generator=make).to(device, dtype).requires_grad_() for heads in (4, 2, 2))
    return q, k, v, [5, 1, 6], 8**-0.5, None


def _head_problem(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    make = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 16, generator=make).to(device, dtype).requires_grad_()
    return (
        hidden,
        torch.randn(31, 16, generator=make).to(device, dtype),
        torch.randint(31, (9,), generator=make).to(device),
    )
