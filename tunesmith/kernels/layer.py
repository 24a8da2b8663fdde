"""One decoder layer of the Llama family, forward and backward by hand.

    x -> norm -> q, k, v -> rotary embedding -> attention -> o -> + -> norm -> gate, up -> silu(gate) * up -> down -> +

Why. Run as a module tree, a layer with LoRA is some eighty operations, and autograd keeps the inputs of most of them.
Written as one function it is eleven matrix products with one pass over memory between two of them (plain.py), and it
keeps what backward cannot cheaply make again: x, q k v before the turn, the input of o, the middle of the layer, gate
and up. Norms, attention scores and the feed-forward product are made again on the way back.

Weights. A `Linear` is frozen or trained, with or without a bias and a low-rank update (Hu et al. 2021):

    y = x W^T + b + s (x A^T) B^T.

The update goes into the same output as an accumulating matrix product, so that no second y exists. Linears that share
an input write into columns of one output, and their A's meet the input as one matrix. (The form [x | xA^T][W | sB]^T,
one product instead of two, was as fast and would need a second copy of the weights.) Backward computes a weight's
gradient where it is wanted, and none below the lowest layer that trains.

Shapes: N tokens, D features, C columns of an output, R ranks of all linears that share an input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith.kernels import attention
from tunesmith.kernels.plain import Documents, Heads, Inputs, Operations, Turn


class Linear(NamedTuple):
    """weight (out, in); bias (out) or None; a (r, in) and b (out, r) or None."""

    weight: Tensor
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None


class Parameters(NamedTuple):
    """A layer's tensors. `q_norm` and `k_norm` (D of a head) are there in Qwen3's layers."""

    norm: Tensor
    q: Linear
    k: Linear
    v: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    middle_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Shape:
    """Heads, the norms' epsilon, and the factor of the low-rank updates in the order q, k, v, o, gate, up, down."""

    heads: Heads
    eps: float
    scales: tuple[float, ...]


def layer(
    operations: Operations, x_ND: Tensor, turn: Turn, documents: Documents, shape: Shape, parameters: Parameters
) -> Tensor:
    """The layer's output, (N, D)."""
    output: Tensor = _Layer.apply(x_ND, operations, turn, documents, shape, *_flat(parameters))
    return output


def reference(
    operations: Operations, x_ND: Tensor, turn: Turn, documents: Documents, shape: Shape, parameters: Parameters
) -> Tensor:
    """Plain torch with autograd, an operation at a time; `operations` is not used."""
    q_NC, k_NC, v_NC = before_attention(x_ND, turn, shape, parameters)
    o_NC = attention.reference(q_NC, k_NC, v_NC, documents, shape.heads)
    return after_attention(x_ND, o_NC, shape, parameters)


def before_attention(x_ND: Tensor, turn: Turn, shape: Shape, p: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, turned."""

    def turned(x_NC: Tensor, weight: Tensor | None) -> Tensor:
        x_NHD = x_NC.unflatten(1, (-1, shape.heads.D))
        x_NHD = x_NHD if weight is None else _norm(x_NHD, weight, shape.eps)
        if turn:
            low, high = x_NHD.chunk(2, -1)
            x_NHD = x_NHD * turn[0][:, None] + torch.cat([-high, low], -1) * turn[1][:, None]
        return x_NHD.flatten(1)

    h_ND = _norm(x_ND, p.norm, shape.eps)
    q_NC, k_NC, v_NC = (_linear(h_ND, of, s) for of, s in zip((p.q, p.k, p.v), shape.scales))
    return turned(q_NC, p.q_norm), turned(k_NC, p.k_norm), v_NC


def after_attention(x_ND: Tensor, o_NC: Tensor, shape: Shape, p: Parameters) -> Tensor:
    """The layer's output from its input and what attention made of it."""
    o, gate, up, down = shape.scales[3:]
    x_ND = x_ND + _linear(o_NC, p.o, o)
    h_ND = _norm(x_ND, p.middle_norm, shape.eps)
    return x_ND + _linear(torch.nn.functional.silu(_linear(h_ND, p.gate, gate)) * _linear(h_ND, p.up, up), p.down, down)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def _linear(x: Tensor, of: Linear, scale: float) -> Tensor:
    y = torch.nn.functional.linear(x, of.weight, of.bias)
    return y if of.a is None or of.b is None else y + scale * (x @ of.a.t()) @ of.b.t()


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        operations: Operations,
        turn: Turn,
        documents: Documents,
        shape: Shape,
        *flat: Tensor | None,
    ) -> Tensor:
        p, s = structured(flat), shape.scales
        h_ND, rstd_N = operations.norm(x_ND, p.norm, shape.eps)
        qkv_NC, low_qkv = _project(h_ND, (p.q, p.k, p.v), s[:3])
        of = Inputs(*_heads(operations, qkv_NC, shape, p), turn, None, documents, shape.heads)
        o_NC, lse_HN = operations.attention(of)
        middle_ND, low_o = _project(o_NC, (p.o,), s[3:4], x_ND)
        h_ND, middle_rstd_N = operations.norm(middle_ND, p.middle_norm, shape.eps)
        pair_NC, low_pair = _project(h_ND, (p.gate, p.up), s[4:6])
        y_ND, low_down = _project(operations.swiglu(pair_NC), (p.down,), s[6:], middle_ND)
        lows = low_qkv, low_o, low_pair, low_down
        kept = (x_ND, rstd_N, qkv_NC, lse_HN, o_NC, middle_ND, middle_rstd_N, pair_NC, *lows)
        ctx.save_for_backward(*kept, *(turn or (None, None)), *flat)
        ctx.rest = operations, documents, shape, len(kept)
        return y_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        operations, documents, shape, kept = ctx.rest
        saved = ctx.saved_tensors
        (x_ND, rstd_N, qkv_NC, lse_HN, o_NC, middle_ND, middle_rstd_N, pair_NC, *low) = saved[:kept]
        cos, sin, *flat = saved[kept:]
        turn, s = None if cos is None else (cos, sin), shape.scales
        p, need = structured(flat), structured(ctx.needs_input_grad[5:])
        grad_ND, grads = gradients[0].contiguous(), dict[str, Any]()

        da_NI, dlow_NR = _into_input(grad_ND, (p.down,), s[6:])
        dpair_NC, a_NI = operations.swiglu_backward(da_NI, pair_NC)
        (grads["down"],) = _into_weights(grad_ND, a_NI, low[3], dlow_NR, (p.down,), (need.down,), s[6:])
        dh_ND, dlow_NR = _into_input(dpair_NC, (p.gate, p.up), s[4:6])
        h_ND = operations.norm(middle_ND, p.middle_norm, shape.eps)[0]
        pair = (p.gate, p.up), (need.gate, need.up)
        grads["gate"], grads["up"] = _into_weights(dpair_NC, h_ND, low[2], dlow_NR, *pair, s[4:6])
        dmiddle_ND, grads["middle_norm"] = operations.norm_backward(
            dh_ND, middle_ND, p.middle_norm, middle_rstd_N, grad_ND, need.middle_norm
        )
        do_NC, dlow_NR = _into_input(dmiddle_ND, (p.o,), s[3:4])
        (grads["o"],) = _into_weights(dmiddle_ND, o_NC, low[1], dlow_NR, (p.o,), (need.o,), s[3:4])
        of = Inputs(*_heads(operations, qkv_NC, shape, p), turn, None, documents, shape.heads)
        dqkv_NC = torch.empty_like(qkv_NC)
        operations.attention_backward(of, do_NC, lse_HN, _split(dqkv_NC, shape))
        grads["q_norm"], grads["k_norm"] = _into_head_norms(operations, dqkv_NC, qkv_NC, shape, p)
        h_ND = operations.norm(x_ND, p.norm, shape.eps)[0]
        triple = (p.q, p.k, p.v), (need.q, need.k, need.v)
        lower = ctx.needs_input_grad[0] or need.norm
        dh_ND, dlow_NR = _into_input(dqkv_NC, triple[0], s[:3], lower)
        grads["q"], grads["k"], grads["v"] = _into_weights(dqkv_NC, h_ND, low[0], dlow_NR, *triple, s[:3])
        dx_ND = grads["norm"] = None
        if lower:
            dx_ND, grads["norm"] = operations.norm_backward(dh_ND, x_ND, p.norm, rstd_N, dmiddle_ND, need.norm)
        wanted = zip(_flat(Parameters(**grads)), ctx.needs_input_grad[5:])
        return dx_ND, None, None, None, None, *(gradient if needed else None for gradient, needed in wanted)


def _flat(p: Parameters) -> tuple[Tensor | None, ...]:
    return tuple(item for part in p for item in (part if isinstance(part, Linear) else (part,)))


def structured(flat: Any) -> Parameters:
    """A layer's parameters from the sequence of their tensors."""
    left = iter(flat)

    def linear() -> Linear:
        return Linear(next(left), next(left), next(left), next(left))

    return Parameters(
        norm=next(left),
        q=linear(),
        k=linear(),
        v=linear(),
        q_norm=next(left),
        k_norm=next(left),
        o=linear(),
        middle_norm=next(left),
        gate=linear(),
        up=linear(),
        down=linear(),
    )


def _columns(out_NC: Tensor, linears: tuple[Linear, ...]) -> tuple[Tensor, ...]:
    return tuple(out_NC.split([linear.weight.shape[0] for linear in linears], 1))


def _ranks(low_NR: Tensor | None, linears: tuple[Linear, ...]) -> list[Tensor | None]:
    """Each linear's part of a matrix over all their ranks."""
    sizes = [0 if linear.a is None else linear.a.shape[0] for linear in linears]
    if low_NR is None:
        return [None] * len(linears)
    return [part if size else None for part, size in zip(low_NR.split(sizes, 1), sizes)]


def _stacked(linears: tuple[Linear, ...]) -> Tensor | None:
    """The A's of linears that share an input, one below the other."""
    parts = [linear.a for linear in linears if linear.a is not None]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)) if parts else None


def _project(
    x_ND: Tensor, linears: tuple[Linear, ...], scales: tuple[float, ...], residual_NC: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The linears' outputs side by side, added to the residual where there is one; and x under the A's."""
    y_NC = x_ND.new_empty(x_ND.shape[0], sum(linear.weight.shape[0] for linear in linears))
    a_RD = _stacked(linears)
    low_NR = None if a_RD is None else torch.mm(x_ND, a_RD.t())
    for y, linear, low, scale in zip(_columns(y_NC, linears), linears, _ranks(low_NR, linears), scales):
        if residual_NC is None:
            torch.mm(x_ND, linear.weight.t(), out=y)
        else:
            torch.addmm(residual_NC, x_ND, linear.weight.t(), out=y)
        if linear.bias is not None:
            y += linear.bias
        if linear.b is not None and low is not None:
            y.addmm_(low, linear.b.t(), alpha=scale)
    return y_NC, low_NR


def _into_input(
    grad_NC: Tensor, linears: tuple[Linear, ...], scales: tuple[float, ...], wanted: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The gradient with respect to the linears' common input, if it is wanted, and with respect to x under the A's."""
    a_RD = _stacked(linears)
    dlow_NR = None if a_RD is None else grad_NC.new_empty(grad_NC.shape[0], a_RD.shape[0])
    dx_ND = grad_NC.new_empty(grad_NC.shape[0], linears[0].weight.shape[1] if wanted else 0)
    each = zip(_columns(grad_NC, linears), linears, _ranks(dlow_NR, linears), scales)
    for i, (grad, linear, dlow, scale) in enumerate(each):
        if dlow is not None and linear.b is not None:
            torch.mm(grad, linear.b * scale, out=dlow)
        if wanted and i == 0:
            torch.mm(grad, linear.weight, out=dx_ND)
        elif wanted:
            dx_ND.addmm_(grad, linear.weight)
    if wanted and dlow_NR is not None and a_RD is not None:
        dx_ND.addmm_(dlow_NR, a_RD)
    return dx_ND, dlow_NR


def _into_weights(
    grad_NC: Tensor,
    x_ND: Tensor,
    low_NR: Tensor | None,
    dlow_NR: Tensor | None,
    linears: tuple[Linear, ...],
    needs: tuple[Linear, ...],
    scales: tuple[float, ...],
) -> list[Linear]:
    """Gradients in the places of what they belong to; `needs` says which are wanted."""
    found = []
    da_RD = torch.mm(dlow_NR.t(), x_ND) if dlow_NR is not None and any(need.a for need in needs) else None
    das = _ranks(None if da_RD is None else da_RD.t(), linears)
    for grad, low, da, need, scale in zip(_columns(grad_NC, linears), _ranks(low_NR, linears), das, needs, scales):
        found.append(
            Linear(
                torch.mm(grad.t(), x_ND) if need.weight else None,
                grad.sum(0) if need.bias else None,
                None if da is None else da.t(),
                torch.mm(low.t(), grad).mul_(scale).t() if need.b and low is not None else None,
            )
        )
    return found


def _heads(operations: Operations, qkv_NC: Tensor, shape: Shape, p: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v; the first two normalised per head where the layer does so."""
    q_NC, k_NC, v_NC = _split(qkv_NC, shape)
    if p.q_norm is not None and p.k_norm is not None:
        q_NC, k_NC = (
            operations.norm(x.reshape(-1, shape.heads.D), weight, shape.eps)[0].view(x.shape)
            for x, weight in ((q_NC, p.q_norm), (k_NC, p.k_norm))
        )
    return q_NC, k_NC, v_NC


def _split(qkv_NC: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    heads = shape.heads
    q_NC, k_NC, v_NC = qkv_NC.split([n * heads.D for n in (heads.H, heads.G, heads.G)], 1)
    return q_NC, k_NC, v_NC


def _into_head_norms(
    operations: Operations, dqkv_NC: Tensor, qkv_NC: Tensor, shape: Shape, p: Parameters
) -> list[Tensor | None]:
    """The gradients of the weights of the norms of q and k, where there are any; those of what the norms make become,
    in place, those of what they are given."""
    found = list[Tensor | None]()
    for weight, x_NC, dx_NC in zip((p.q_norm, p.k_norm), _split(qkv_NC, shape), _split(dqkv_NC, shape)):
        if weight is None:
            found.append(None)
            continue
        x, dx = x_NC.reshape(-1, shape.heads.D), dx_NC.reshape(-1, shape.heads.D)
        rstd = operations.norm(x, weight, shape.eps)[1]
        before, dweight = operations.norm_backward(dx, x, weight, rstd, torch.zeros_like(dx), True)
        dx_NC.copy_(before.view(dx_NC.shape))
        found.append(dweight)
    return found
