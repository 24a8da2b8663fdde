"""Document attention equals the masked reference, forward and backward, over random shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.kernels import attention, plain
from tunesmith.kernels.attention import Documents, Heads
from tunesmith.kernels.plain import Operations

Shape = dict[str, Any]
SHAPES = st.fixed_dictionaries({
    "lengths": st.lists(st.integers(1, 17), min_size=1, max_size=5), "shared": st.booleans(),
    "past": st.sampled_from([0, 0, 1, 5]), "groups": st.integers(1, 3), "repeat": st.integers(1, 3),
    "depth": st.sampled_from([4, 8, 64]), "window": st.sampled_from([None, 1, 4]),
    "seed": st.integers(0, 9)})  # fmt: skip


def run(fn: Any, shape: Shape, dtype: torch.dtype, wide: bool = False) -> list[Tensor]:
    """Output and gradients; `wide` computes in fp32 from the values rounded to `dtype`."""
    make = torch.Generator().manual_seed(shape["seed"])
    G, H, D, T = shape["groups"], shape["groups"] * shape["repeat"], shape["depth"], sum(shape["lengths"])

    def tensor(*size: int) -> Tensor:
        rounded = torch.randn(*size, generator=make).to(dtype)
        return (rounded.float() if wide else rounded).requires_grad_()

    q, k, v = (tensor(T, n * D) for n in (H, G, G))
    past = (tensor(G, shape["past"], D), tensor(G, shape["past"], D)) if shape["past"] else None
    documents = Documents(shape["lengths"], shape["shared"])
    value = fn(q, k, v, documents, Heads(H, G, D, D**-0.5, shape["window"]), past)
    value.backward(tensor(*value.shape).detach())
    return [value.detach(), *(x.grad for x in (q, k, v, *(past or ())) if x.grad is not None)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES, block=st.sampled_from([3, 256]))
def test_agrees_with_the_reference_in_fp32(operations: Operations, same: Any, shape: Shape, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        found = run(lambda *a: attention.document_attention(operations, *a), shape, torch.float32)
    same(found, run(attention.reference, shape, torch.float32))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=3), shared=st.booleans(), seed=st.integers(0, 9))
def test_bf16_gradients_point_the_same_way(
    operations: Operations, same_direction: Any, lengths: list[int], shared: bool, seed: int
) -> None:
    shape = {"lengths": lengths, "shared": shared, "past": 0, "groups": 3, "repeat": 3, "depth": 64}
    shape |= {"window": None, "seed": seed}
    found = run(lambda *a: attention.document_attention(operations, *a), shape, torch.bfloat16)
    same_direction(found, run(attention.reference, shape, torch.bfloat16, wide=True))


def test_a_document_cannot_see_another() -> None:
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, 8, generator=make) for _ in range(3))
    heads = Heads(2, 2, 4, 0.5)
    before = attention.document_attention(plain.OPERATIONS, q, k, v, Documents([4, 5]), heads)
    k[:4], v[:4] = 100.0, -100.0
    after = attention.document_attention(plain.OPERATIONS, q, k, v, Documents([4, 5]), heads)
    assert torch.equal(before[4:], after[4:])
    assert not torch.equal(before[:4], after[:4])


def test_a_shared_beginning_is_the_beginning_repeated(operations: Operations) -> None:
    """[beginning, a, b] shared gives what [beginning + a] and [beginning + b] give, and the sum of their gradients."""
    make = torch.Generator().manual_seed(0)
    heads = Heads(4, 2, 8, 0.3)
    beginning, a, b = ([torch.randn(n, c * 8, generator=make) for c in (4, 2, 2)] for n in (5, 3, 6))

    def outputs(parts: list[list[Tensor]], documents: Documents) -> tuple[Tensor, list[Tensor]]:
        q, k, v = (torch.cat(columns).requires_grad_() for columns in zip(*parts))
        o = attention.document_attention(operations, q, k, v, documents, heads)
        own = o[5:] if documents.shared else torch.cat([o[5:8], o[13:]])
        own.square().sum().backward()
        return own.detach(), [x.grad for x in (q, k, v) if x.grad is not None]

    once, gradients = outputs([beginning, a, b], Documents([5, 3, 6], shared=True))
    twice, others = outputs([beginning, a, beginning, b], Documents([8, 11]))
    torch.testing.assert_close(once, twice)
    for found, wanted in zip(gradients, others):
        torch.testing.assert_close(found[:5], wanted[:5] + wanted[8:13])
        torch.testing.assert_close(found[5:], torch.cat([wanted[5:8], wanted[13:]]))
