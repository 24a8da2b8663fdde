"""The label head equals log-softmax over all logits, forward and backward."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.kernels import head


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 600), vocabulary=st.integers(2, 90), depth=st.integers(1, 24), seed=st.integers(0, 9))
def test_agrees_with_the_reference_in_fp32(tokens: int, vocabulary: int, depth: int, seed: int) -> None:
    (logp, grad, correct), (logp_r, grad_r, correct_r) = (
        _run(fn, tokens, vocabulary, depth, seed, torch.float32) for fn in (head.label_logprobs, head.reference)
    )
    torch.testing.assert_close(logp, logp_r, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, grad_r, rtol=1e-5, atol=1e-5)
    assert torch.equal(correct, correct_r)


def test_bf16_gradient_points_the_same_way() -> None:
    (_, found, _), (_, wanted, _) = (
        _run(fn, 300, 500, 64, 0, torch.bfloat16) for fn in (head.label_logprobs, head.reference)
    )
    a, b = found.double().flatten(), wanted.double().flatten()
    assert torch.dot(a, b) > 0.999 * a.norm() * b.norm()


def test_no_labels_is_no_loss() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    logp, _ = head.label_logprobs(hidden, torch.zeros(5, 4), torch.zeros(0, dtype=torch.long))
    logp.sum().backward()
    assert logp.shape == (0,)


def _run(fn, tokens, vocabulary, depth, seed, dtype):  # type: ignore[no-untyped-def]
    make = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, depth, generator=make).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, depth, generator=make).to(dtype)
    logp, correct = fn(hidden, weight, torch.randint(vocabulary, (tokens,), generator=make))
    logp.backward(torch.randn(tokens, generator=make))
    return logp.detach(), hidden.grad, correct
