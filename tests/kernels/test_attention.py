"""Document attention equals the masked reference, forward and backward, over random shapes."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.kernels import attention, cuda, plain
from tunesmith.kernels.cuda import Layout
from tunesmith.kernels.plain import Documents, Heads, Operations

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
        rounded = torch.randn(*size, generator=make, device="cpu").to(torch.get_default_device(), dtype)
        return (rounded.float() if wide else rounded).requires_grad_()

    q, k, v = (tensor(T, n * D) for n in (H, G, G))
    past = (tensor(G, shape["past"], D), tensor(G, shape["past"], D)) if shape["past"] else None
    documents = Documents(shape["lengths"], shape["shared"])
    value = fn(q, k, v, documents, Heads(H, G, D, D**-0.5, shape["window"]), past)
    value.backward(tensor(*value.shape).detach())
    return [value.detach(), *(x.grad for x in (q, k, v, *(past or ())) if x.grad is not None)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES)
def test_agrees_with_the_reference_in_fp32(operations: Operations, same: Any, shape: Shape) -> None:
    found = run(lambda *a: attention.document_attention(operations, *a), shape, torch.float32)
    same(found, run(attention.reference, shape, torch.float32))


@pytest.mark.parametrize("window", [None, 50, 200])
@pytest.mark.parametrize("shared", [False, True])
def test_long_documents_agree_too(operations: Operations, same: Any, window: int | None, shared: bool) -> None:
    """Longer than a block of queries and than several tiles of keys, and of no round length."""
    shape = {"lengths": [37, 301, 1, 130], "shared": shared, "past": 41, "groups": 2, "repeat": 2, "depth": 48}
    shape |= {"window": window, "seed": 0}
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


def by_hand(q_NHD: Tensor, k_KGD: Tensor, v_KGD: Tensor, at: Layout, heads: Heads) -> Tensor:
    """Attention of each range of queries to its range of keys, the last query against the last key."""
    found = []
    starts_q, starts_k = at.starts_q.tolist(), at.starts_k.tolist()
    assert at.longest_q == max(b - a for a, b in pairwise(starts_q))
    assert at.longest_k == max(b - a for a, b in pairwise(starts_k))
    for (q0, q1), (k0, k1) in zip(pairwise(starts_q), pairwise(starts_k)):
        k_KHD, v_KHD = (x[k0:k1].repeat_interleave(heads.H // heads.G, 1) for x in (k_KGD, v_KGD))
        back_NK = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0) - torch.arange(k1 - k0)
        seen_NK = (back_NK >= 0) & (back_NK < (heads.window or k1))
        scores_HNK = torch.einsum("nhd,khd->hnk", q_NHD[q0:q1], k_KHD) * heads.scale
        weights_HNK = scores_HNK.masked_fill(~seen_NK, -torch.inf).softmax(-1)
        found.append(torch.einsum("hnk,khd->nhd", weights_HNK, v_KHD))
    return torch.cat(found)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES)
def test_each_document_gets_its_keys(same: Any, shape: Shape) -> None:
    found = run(partial(cuda.document_attention, attend=by_hand), shape, torch.float32)
    same(found, run(attention.reference, shape, torch.float32))


@pytest.mark.parametrize("shared", [False, True])
def test_flash_attention_takes_what_it_is_given(shared: bool) -> None:
    """Traced forward and backward with tensors that have shapes and no values: flash attention itself needs a GPU."""
    heads = Heads(9, 3, 64, 0.125, 100)
    q, k, v = (torch.empty(12, n * 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for n in (9, 3, 3))
    value = cuda.document_attention(q, k, v, Documents([5, 3, 4], shared), heads)
    value.sum().backward()
    assert value.shape == (12, 9 * 64)
    assert [x.grad.shape for x in (q, k, v) if x.grad is not None] == [q.shape, k.shape, v.shape]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("window", [None, 40])
def test_flash_attention_agrees_with_the_reference(same_direction: Any, shared: bool, window: int | None) -> None:
    shape = {"lengths": [70, 1, 150], "shared": shared, "past": 0, "groups": 3, "repeat": 3, "depth": 64}
    shape |= {"window": window, "seed": 0}
    with torch.device("cuda"):
        found = run(cuda.document_attention, shape, torch.bfloat16)
        same_direction(found, run(attention.reference, shape, torch.bfloat16, wide=True))
