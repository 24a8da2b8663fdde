"""The label head equals log-softmax over all logits, forward and backward, frozen and trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.kernels import head, plain
from tunesmith.kernels.plain import Operations


def run(
    fn: Any, tokens: int, vocabulary: int, depth: int, seed: int, dtype: torch.dtype, trained: bool
) -> list[Tensor | None]:
    make = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, depth, generator=make).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, depth, generator=make).to(dtype).requires_grad_(trained)
    logp, correct = fn(hidden, weight, torch.randint(vocabulary, (tokens,), generator=make))
    logp.backward(torch.randn(tokens, generator=make))
    return [logp.detach(), hidden.grad, weight.grad, correct]


@pytest.mark.parametrize("kept_bytes", [0, head.KEPT_BYTES])
@pytest.mark.parametrize("logits_bytes", [0, head.LOGITS_BYTES["cpu"]])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 600), vocabulary=st.integers(2, 90), depth=st.integers(1, 24), seed=st.integers(0, 9),
    trained=st.booleans())  # fmt: skip
def test_agrees_with_the_reference_in_fp32(
    operations: Operations,
    same: Any,
    kept_bytes: int,
    logits_bytes: int,
    tokens: int,
    vocabulary: int,
    depth: int,
    seed: int,
    trained: bool,
) -> None:
    shape = (tokens, vocabulary, depth, seed, torch.float32, trained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "KEPT_BYTES", kept_bytes)
        patch.setitem(head.LOGITS_BYTES, "cpu", logits_bytes)
        found = run(lambda *a: head.label_logprobs(operations, *a), *shape)
    wanted = run(head.reference, *shape)
    same(found[:3], wanted[:3])
    assert torch.equal(found[3], wanted[3])  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 400), vocabulary=st.integers(2, 600), depth=st.integers(1, 80), seed=st.integers(0, 9),
    trained=st.booleans())  # fmt: skip
def test_bf16_gradient_points_the_same_way(
    operations: Operations, same_direction: Any, tokens: int, vocabulary: int, depth: int, seed: int, trained: bool
) -> None:
    shape = (tokens, vocabulary, depth, seed)
    found = run(lambda *a: head.label_logprobs(operations, *a), *shape, torch.bfloat16, trained)
    rounded = run(head.reference, *shape, torch.bfloat16, trained)
    wanted = run(in_fp32, *shape, torch.bfloat16, trained)
    same_direction(found[1:3], wanted[1:3], rounded[1:3])


def in_fp32(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The reference, computed in fp32 from the same values."""
    return head.reference(hidden.float(), weight.float(), labels)


def test_no_labels_is_no_loss() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    logp, _ = head.label_logprobs(plain.OPERATIONS, hidden, torch.zeros(5, 4), torch.zeros(0, dtype=torch.long))
    logp.sum().backward()
    assert logp.shape == (0,)
