"""Document attention equals the masked reference, forward and backward, over random shapes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.kernels import attention


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 17), min_size=1, max_size=5),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    depth=st.sampled_from([4, 8, 64]),
    window=st.sampled_from([None, 1, 4]),
    seed=st.integers(0, 9),
)
def test_agrees_with_the_reference_in_fp32(
    lengths: list[int], groups: int, shared: int, depth: int, window: int | None, seed: int
) -> None:
    results = [
        _run(fn, lengths, groups, shared, depth, window, seed, torch.float32)
        for fn in (attention.document_attention, attention.reference)
    ]
    for found, wanted in zip(*results):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_bf16_gradients_point_the_same_way(lengths: list[int], seed: int) -> None:
    results = [
        _run(fn, lengths, 3, 3, 64, None, seed, torch.bfloat16)
        for fn in (attention.document_attention, attention.reference)
    ]
    for found, wanted in zip(*results):
        a, b = found.double().flatten(), wanted.double().flatten()
        if b.norm() > 1e-6:  # a document of one token has no gradient through its scores
            assert torch.dot(a, b) > 0.999 * a.norm() * b.norm()


def test_a_document_cannot_see_another() -> None:
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 9, 4, generator=make) for _ in range(3))
    before = attention.document_attention(q, k, v, [4, 5], 0.5)
    k[:, :4], v[:, :4] = 100.0, -100.0
    after = attention.document_attention(q, k, v, [4, 5], 0.5)
    assert torch.equal(before[:, 4:], after[:, 4:])
    assert not torch.equal(before[:, :4], after[:, :4])


def _run(fn, lengths, groups, shared, depth, window, seed, dtype):  # type: ignore[no-untyped-def]
    make = torch.Generator().manual_seed(seed)
    heads = groups * shared
    q, k, v = (
        torch.randn(n, sum(lengths), depth, generator=make).to(dtype).requires_grad_() for n in (heads, groups, groups)
    )
    value = fn(q, k, v, lengths, depth**-0.5, window)
    value.backward(torch.randn(value.shape, generator=make).to(dtype))
    return value.detach(), q.grad, k.grad, v.grad
