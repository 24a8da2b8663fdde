"""What torch compiles for a GPU: traced whole everywhere, and run where there is one. For its attention see
test_attention.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tunesmith.kernels import apply, attention, cuda, layer, plain
from tunesmith.kernels.plain import Documents

CPU = torch.device("cpu")


def test_the_compiled_layer_is_one_graph_on_each_side_of_attention(same: Any) -> None:
    """Traced whole, with its gradients; other numbers of tokens and other weights do not compile again."""
    torch._dynamo.reset()
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = cuda.compiled_layer(count, attention.reference)
    plainly = partial(layer.reference, plain.OPERATIONS)
    x_ND, cos, sin, documents, shape, *flat = apply._layer_problem(torch.float32, CPU, False)
    for length in (9, 9, 13, 6):
        x, turn = x_ND.detach().repeat(2, 1)[:length], tuple(t.repeat(2, 1)[:length] for t in (cos, sin))
        weights = [None if w is None else (w.detach() + 0.01 * length).requires_grad_() for w in flat]
        documents = Documents([4, length - 4])
        results = []
        for fn in (compiled, plainly):
            leaves = [x.clone().requires_grad_(), *(w for w in weights if w is not None)]
            value = fn(leaves[0], turn, documents, shape, layer.structured(weights))
            results.append([value.detach(), *torch.autograd.grad(value.square().sum(), leaves)])
        same(*results)
    assert len(graphs) == 2


def test_the_compiled_softmax_agrees() -> None:
    torch._dynamo.reset()
    logits, labels = torch.randn(9, 31), torch.randint(31, (9,))
    found, wanted = logits.clone(), logits.clone()
    results = cuda.operations("aot_eager").label_softmax_(found, labels)
    expected = plain.label_softmax_(wanted, labels)
    torch.testing.assert_close((found, *results), (wanted, *expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_all_kernels_pass_their_check(dtype: torch.dtype) -> None:
    kernels = apply.choose(dtype, torch.device("cuda"))
    assert kernels.notes == ()
    assert (kernels.attention is cuda.document_attention) == (dtype in cuda.DTYPES)
