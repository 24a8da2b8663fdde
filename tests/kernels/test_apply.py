"""A kernel that is wrong is found before its first use, and training falls back and says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tunesmith.kernels import apply, attention, head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_kernels_pass_their_check(dtype: torch.dtype) -> None:
    kernels = apply.choose(dtype, torch.device("cpu"))
    assert kernels == apply.Kernels(attention.document_attention, head.label_logprobs, ())


def test_a_wrong_kernel_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaks(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float, window: int | None = None) -> Tensor:
        return attention.reference(q, k, v, [sum(lengths)], scale, window)

    monkeypatch.setattr(attention, "document_attention", leaks)
    kernels = apply.choose(torch.float32, torch.device("cpu"))
    assert kernels.attention is attention.reference
    assert "value differs" in kernels.notes[0]
    assert "slower reference" in kernels.notes[0]


def test_a_wrong_gradient_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gradient(h: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logp, correct = head.reference(h.detach(), w, y)
        return logp + 0 * h.sum(), correct

    monkeypatch.setattr(head, "label_logprobs", no_gradient)
    kernels = apply.choose(torch.float32, torch.device("cpu"))
    assert kernels.label_logprobs is head.reference
    assert "gradient 1 differs" in kernels.notes[0]


def test_a_kernel_that_raises_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*arguments: object) -> Tensor:
        raise RuntimeError("not implemented for this device")

    monkeypatch.setattr(attention, "document_attention", raises)
    kernels = apply.choose(torch.float32, torch.device("cpu"))
    assert kernels.attention is attention.reference
    assert "not implemented for this device" in kernels.notes[0]
