"""A kernel that is wrong is found before its first use, and training falls back and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith.core import store
from tunesmith.kernels import apply, attention, head, layer, native, plain
from tunesmith.kernels.plain import Documents, Heads, Operations, Past

CPU = torch.device("cpu")
CACHE = store.cache_dir() / "kernels"


@pytest.mark.parametrize("cache", [None, CACHE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_kernels_pass_their_check(compiled: Operations, dtype: torch.dtype, cache: Path | None) -> None:
    kernels = apply.choose(dtype, CPU, cache)
    assert kernels.notes == ()
    assert kernels.attention is not attention.reference
    assert kernels.label_logprobs is not head.reference
    assert kernels.layer is not None


def test_they_pass_it_where_nothing_is_learnt_too() -> None:
    with torch.no_grad():
        kernels = apply.choose(torch.float32, CPU, CACHE)
    assert kernels.notes == ()
    assert kernels.layer is not None


def test_a_wrong_kernel_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaks(
        operations: Operations, q: Tensor, k: Tensor, v: Tensor, documents: Documents, heads: Heads, past: Past
    ) -> Tensor:
        return attention.reference(q, k, v, Documents([sum(documents.lengths)]), heads, past)

    monkeypatch.setattr(attention, "document_attention", leaks)
    kernels = apply.choose(torch.float32, CPU)
    assert kernels.attention is attention.reference
    assert "attention, documents apart: its value differs" in kernels.notes[0]
    assert "slower reference" in kernels.notes[0]


def test_a_wrong_gradient_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gradient(operations: Operations, h: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logp, correct = head.reference(h.detach(), w, y)
        return logp + 0 * h.sum(), correct

    monkeypatch.setattr(head, "label_logprobs", no_gradient)
    kernels = apply.choose(torch.float32, CPU)
    assert kernels.label_logprobs is head.reference
    assert "gradient 1 differs" in kernels.notes[0]


def test_a_wrong_gradient_of_a_trained_head_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    own = head.label_logprobs

    def halves(operations: Operations, h: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return own(operations, h, 0.5 * w + 0.5 * w.detach(), y)

    monkeypatch.setattr(head, "label_logprobs", halves)
    kernels = apply.choose(torch.float32, CPU)
    assert kernels.label_logprobs is head.reference
    assert "head, trained: its gradient 2 differs" in kernels.notes[0]


def test_attention_that_forgets_keys_from_outside_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    own = attention.document_attention

    def forgets(*arguments: Any, past: Past) -> Tensor:
        zeros = None if past is None else (0 * past[0], past[1])
        return own(*arguments, past=zeros)

    monkeypatch.setattr(attention, "document_attention", forgets)
    kernels = apply.choose(torch.float32, CPU)
    assert kernels.attention is attention.reference
    assert "behind keys from outside" in kernels.notes[0]


def test_a_layer_that_is_wrong_for_some_models_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    own = layer.layer

    def without_head_norms(operations: Operations, x: Tensor, turn: Any, of: Documents, shape: Any, p: Any) -> Tensor:
        return own(operations, x, turn, of, shape, p._replace(k_norm=None if p.k_norm is None else 0 * p.k_norm + 1))

    monkeypatch.setattr(layer, "layer", without_head_norms)
    kernels = apply.choose(torch.float32, CPU)
    assert kernels.layer is None
    assert "layer, with biases, head norms and a window: its value differs" in kernels.notes[0]


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, ValueError, IndexError, KeyError, AttributeError])
def test_a_kernel_that_raises_falls_back(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def raises(*arguments: object) -> Tensor:
        raise error("not implemented for this device")

    monkeypatch.setattr(layer, "layer", raises)
    kernels = apply.choose(torch.float32, CPU)
    assert kernels.layer is None
    assert "not implemented for this device" in kernels.notes[0]


def test_results_of_another_shape_fall_back(compiled: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*arguments: Any, **more: Any) -> Tensor:
        return attention.reference(*arguments[1:], **more)[1:]

    monkeypatch.setattr(attention, "document_attention", cut)
    monkeypatch.setattr(
        native, "operations", lambda library: replace(compiled, swiglu=lambda x: compiled.swiglu(x)[1:])
    )
    kernels = apply.choose(torch.float32, CPU, CACHE)
    assert kernels.attention is attention.reference
    assert [note.partition(":")[0] for note in kernels.notes] == [
        "compiled kernel swiglu",
        "kernel attention, documents apart",
    ]


@pytest.mark.parametrize("name", list(vars(plain.OPERATIONS)))
def test_a_wrong_compiled_loop_is_replaced(compiled: Operations, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each of them in turn gets a fault in its last result; the rest stay compiled."""

    def faulty(own: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            result = own(*arguments)
            touched = arguments[-1] if name == "attention_backward" else result
            while isinstance(touched, tuple):
                touched = touched[0]
            touched.mul_(1.1)
            return result

        return run

    wrong = replace(compiled, **{name: faulty(vars(compiled)[name])})
    monkeypatch.setattr(native, "operations", lambda library: wrong)
    kernels = apply.choose(torch.bfloat16, CPU, CACHE)
    assert [note.partition(":")[0] for note in kernels.notes] == [f"compiled kernel {name}"]
    assert kernels.layer is not None


def test_no_compiler_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    kernels = apply.choose(torch.bfloat16, CPU, tmp_path)
    assert "no C++ compiler" in kernels.notes[0]
    assert kernels.layer is not None
