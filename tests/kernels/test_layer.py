"""The fused layer equals the same layer in plain torch, forward and backward, in every form that it serves."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.kernels import layer
from tunesmith.kernels.layer import Shape, structured
from tunesmith.kernels.plain import Documents, Heads, Operations

FORMS = st.fixed_dictionaries({
    "lengths": st.lists(st.integers(1, 9), min_size=1, max_size=3), "shared": st.booleans(),
    "groups": st.integers(1, 2), "repeat": st.integers(1, 2), "window": st.sampled_from([None, 3]),
    "rank": st.sampled_from([0, 2]), "bias": st.booleans(), "head_norms": st.booleans(),
    "trained": st.sampled_from(["adapter", "all", "last linear"]), "into_input": st.booleans(),
    "seed": st.integers(0, 9)})  # fmt: skip


def run(
    fn: Any, operations: Operations, form: dict[str, Any], dtype: torch.dtype, wide: bool = False
) -> list[Tensor | None]:
    """Output, and the gradients of the input and of every tensor of the layer (None where none is wanted)."""
    make = torch.Generator().manual_seed(form["seed"])
    G, H, D, I = form["groups"], form["groups"] * form["repeat"], 8, 24  # noqa: E741

    def tensor(*size: int, scale: float = 0.3, train: bool = False) -> Tensor:
        rounded = (scale * torch.randn(*size, generator=make)).to(dtype)
        return (rounded.float() if wide else rounded).requires_grad_(train)

    everything = form["trained"] == "all"

    def linear(outputs: int, inputs: int, last: bool = False) -> list[Tensor | None]:
        train = everything or (last and form["trained"] == "last linear")
        r = form["rank"]
        bias = tensor(outputs, train=everything) if form["bias"] else None
        return [
            tensor(outputs, inputs, train=train),
            bias,
            *((tensor(r, inputs, train=True), tensor(outputs, r, train=True)) if r else (None, None)),
        ]

    width, N = 16, sum(form["lengths"])
    head_norms = [tensor(D, scale=1.0, train=everything) if form["head_norms"] else None for _ in "qk"]
    flat = [
        tensor(width, scale=1.0, train=everything),
        *linear(H * D, width), *linear(G * D, width), *linear(G * D, width), *head_norms, *linear(width, H * D),
        tensor(width, scale=1.0, train=everything),
        *linear(I, width), *linear(I, width), *linear(width, I, last=True)]  # fmt: skip
    x = tensor(N, width, scale=1.0, train=form["into_input"] or (form["rank"] == 0 and not everything))
    angles = torch.randn(N, D // 2, generator=make).repeat(1, 2)
    turn = tuple(part.to(dtype).float() if wide else part.to(dtype) for part in (angles.cos(), angles.sin()))
    documents, shape = (
        Documents(form["lengths"], form["shared"]),
        Shape(Heads(H, G, D, D**-0.5, form["window"]), 1e-5, (0.5,) * 7),
    )
    value = fn(operations, x, turn, documents, shape, structured(flat))
    value.backward(tensor(*value.shape))
    return [value.detach(), x.grad, *(None if p is None else p.grad for p in flat)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=FORMS)
def test_agrees_with_the_reference_in_fp32(operations: Operations, same: Any, form: dict[str, Any]) -> None:
    same(*(run(fn, operations, form, torch.float32) for fn in (layer.layer, layer.reference)))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(20, 60), min_size=1, max_size=3), rank=st.sampled_from([0, 2]), seed=st.integers(0, 9)
)
def test_bf16_gradients_point_the_same_way(
    operations: Operations, same_direction: Any, lengths: list[int], rank: int, seed: int
) -> None:
    form = {"lengths": lengths, "shared": False, "groups": 2, "repeat": 2, "window": None, "rank": rank, "bias": False}
    form |= {"head_norms": False, "trained": "all", "into_input": True, "seed": seed}
    found = run(layer.layer, operations, form, torch.bfloat16)
    rounded = run(layer.reference, operations, form, torch.bfloat16)
    same_direction(found, run(layer.reference, operations, form, torch.bfloat16, wide=True), rounded)
