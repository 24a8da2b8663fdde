"""The compiled loops agree with plain torch, and plain torch with autograd."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.kernels import native, plain
from tunesmith.kernels.plain import Documents, Heads, Inputs, Operations

CASES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
SEEDS = st.integers(0, 99)


def tensors(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=make).to(dtype) for shape in shapes]


def results(fn: Any, arguments: list[Any]) -> list[Tensor]:
    """What a function returns, and what it left in its arguments."""
    arguments = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    returned = fn(*arguments)
    returned = returned if isinstance(returned, tuple) else (returned,)
    return [x.float() for x in (*returned, *arguments) if isinstance(x, Tensor)]


def compare(compiled: Operations, name: str, arguments: list[Any], dtype: torch.dtype) -> None:
    """To 1e-5. In bf16 both compute in fp32 and round once: they may differ by one step of bf16."""
    found, wanted = results(vars(compiled)[name], arguments), results(vars(plain.OPERATIONS)[name], arguments)
    for a, b in zip(found, wanted):
        relative = 1e-5 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(a, b, rtol=relative, atol=1e-5 * max(1.0, float(b.abs().max())))


@CASES
@given(N=st.integers(1, 70), D=st.integers(1, 80), dtype=DTYPES, seed=SEEDS, weight_too=st.booleans())
def test_norm(compiled: Operations, N: int, D: int, dtype: torch.dtype, seed: int, weight_too: bool) -> None:
    x, grad, residual, w = tensors(seed, dtype, (N, D), (N, D), (N, D), (D,))
    compare(compiled, "norm", [x, w, 1e-5], dtype)
    rstd = plain.norm(x, w, 1e-5)[1]
    compare(compiled, "norm_backward", [grad, x, w, rstd, residual, weight_too], dtype)


@CASES
@given(N=st.integers(1, 40), I=st.integers(1, 70), dtype=DTYPES, seed=SEEDS)
def test_swiglu(compiled: Operations, N: int, I: int, dtype: torch.dtype, seed: int) -> None:  # noqa: E741
    pair, grad = tensors(seed, dtype, (N, 2 * I), (N, I))
    compare(compiled, "swiglu", [10 * pair], dtype)
    compare(compiled, "swiglu_backward", [grad, 10 * pair], dtype)


@CASES
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), shared=st.booleans(), past=st.integers(0, 3),
    groups=st.integers(1, 3), repeat=st.integers(1, 3), depth=st.sampled_from([2, 6, 64]), turned=st.booleans(),
    window=st.none() | st.integers(1, 30), dtype=DTYPES, seed=SEEDS)  # fmt: skip
def test_attention(
    compiled: Operations, lengths: list[int], shared: bool, past: int, groups: int, repeat: int, depth: int,
    turned: bool, window: int | None, dtype: torch.dtype, seed: int) -> None:  # fmt: skip
    """Also of parts of wider rows, which is how q, k and v lie beside each other."""
    H, N = groups * repeat, sum(lengths)
    sizes = [H * depth, groups * depth, groups * depth]
    wide, grad, cos, sin, *outside = tensors(
        seed, dtype, (N, sum(sizes)), (N, H * depth), (N, depth), (N, depth), *[(groups, past, depth)] * 2
    )
    turn, before = (cos, sin) if turned else None, (outside[0], outside[1]) if past else None
    documents, heads = Documents(lengths, shared), Heads(H, groups, depth, depth**-0.5, window)
    of = Inputs(*wide.split(sizes, 1), turn, before, documents, heads)
    found, lse = compiled.attention(of)
    wanted, wanted_lse = plain.attention(of)

    def near(a: Tensor, b: Tensor) -> None:
        """To 1e-5 of the largest; in bf16 one step of it more."""
        relative = 1e-5 if dtype == torch.float32 else 2**-7
        allowed = 1e-5 if dtype == torch.float32 else 1e-3
        torch.testing.assert_close(a, b, rtol=relative, atol=allowed * max(1.0, float(b.abs().max())))

    near(found.float(), wanted.float())
    torch.testing.assert_close(lse, wanted_lse, rtol=1e-5, atol=1e-5)
    results = []
    for ops, own_lse in ((compiled, lse), (plain.OPERATIONS, wanted_lse)):
        dwide = torch.empty_like(wide)
        past_grads = ops.attention_backward(of, grad, own_lse, dwide.split(sizes, 1))
        results.append([dwide.float(), *(x.float() for x in past_grads or ())])
    for a, b in zip(*results):
        near(a, b)


@CASES
@given(N=st.integers(1, 20), V=st.integers(2, 300), dtype=DTYPES, seed=SEEDS)
def test_label_softmax(compiled: Operations, N: int, V: int, dtype: torch.dtype, seed: int) -> None:
    (logits,) = tensors(seed, dtype, (N, V))
    labels = torch.randint(V, (N,), generator=torch.Generator().manual_seed(seed))
    compare(compiled, "label_softmax_", [8 * logits, labels], dtype)


def test_small_terms_of_a_large_vocabulary_are_not_lost(compiled: Operations) -> None:
    """They all vanish to one side: each of a hundred thousand steps would learn from a loss that is too low."""
    (logits,), labels = tensors(0, torch.float32, (64, 50_000)), torch.zeros(64, dtype=torch.int64)
    logits = 2 * logits
    logits[:, 0] += 12
    exact = logits.double().log_softmax(1)[:, 0]
    for operations in (compiled, plain.OPERATIONS):
        logp, _ = operations.label_softmax_(logits.clone(), labels)
        assert (logp - exact).mean().abs() < 2e-7


@CASES
@given(N=st.integers(1, 9), D=st.integers(2, 9), seed=SEEDS)  # of a single number the gradient is rounding alone
def test_plain_gradients_are_those_of_autograd(same: Any, N: int, D: int, seed: int) -> None:
    x, grad, pair, w = tensors(seed, torch.float64, (N, D), (N, D), (N, 2 * D), (D,))
    x, w, pair = (t.float().requires_grad_() for t in (x, w, pair))
    h, rstd = plain.norm(x, w, 1e-5)
    wanted = torch.autograd.grad(h, (x, w), grad.float())
    zero = torch.zeros_like(x)
    same(plain.norm_backward(grad.float(), x.detach(), w.detach(), rstd.detach(), zero, True), wanted)
    out = plain.swiglu(pair)
    (dpair,) = torch.autograd.grad(out, pair, grad.float())
    same(plain.swiglu_backward(grad.float(), pair.detach()), (dpair, out.detach()))


@pytest.mark.parametrize("name", ["swiglu", "attention", "norm"])
def test_not_a_number_stays_one(compiled: Operations, name: str) -> None:
    """A diverged run must be seen as one."""
    x = torch.full((4, 4), float("nan"), dtype=torch.bfloat16)
    attention = Inputs(x, torch.ones_like(x), torch.ones_like(x), None, None, Documents([4]), Heads(1, 1, 4, 0.5))
    arguments = {"swiglu": [x], "attention": [attention], "norm": [x, torch.ones(4, dtype=torch.bfloat16), 1e-5]}
    assert results(vars(compiled)[name], arguments[name])[0].isnan().any()


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(native.Unavailable, match="no C\\+\\+ compiler"):
        native.load(tmp_path)


def test_a_compiler_that_fails_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "g++").write_text("#!/bin/sh\necho 'error: out of luck' >&2\nexit 1\n")
    os.chmod(tmp_path / "g++", 0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(native.Unavailable, match="out of luck"):
        native.load(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(shutil.which("g++") is None or platform.machine() != "x86_64", reason="there is no g++ for x86")
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3"])
def test_other_processors_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: Operations, processor: str
) -> None:
    """The forms for narrower vectors, which this machine would not choose."""
    flags = [flag for flag in native.FLAGS if flag != "-march=native"]
    monkeypatch.setattr(native, "FLAGS", (*flags, f"-march={processor}"))
    monkeypatch.setattr(native, "_width", list)
    narrow = native.operations(native.load(tmp_path))
    N, documents, heads = 338, Documents([37, 300, 1], shared=True), Heads(4, 2, 24, 0.2, 100)
    q, k, v, grad, cos, sin = tensors(0, torch.float32, (N, 96), (N, 48), (N, 48), (N, 96), (N, 24), (N, 24))
    of = Inputs(q, k, v, (cos, sin), None, documents, heads)
    found = []
    for ops in (narrow, compiled):
        o, lse = ops.attention(of)
        out = tuple(torch.empty_like(x) for x in (q, k, v))
        ops.attention_backward(of, grad, lse, out)
        found.append([o, lse, *out, *ops.norm(q, cos.flatten()[:96], 1e-5), ops.swiglu(q)])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


SHORT_OF_MEMORY = """
import resource, torch
from pathlib import Path
from tunesmith.core import store
from tunesmith.kernels import native
from tunesmith.kernels.plain import Documents, Heads, Inputs
ops = native.operations(native.load(store.cache_dir() / "kernels"))
q, k, v = torch.randn(3, 60_000, 64).unbind()
of = Inputs(q, k, v, None, None, Documents([60_000]), Heads(1, 1, 64, 0.1))
ops.attention(of._replace(q_NC=q[:9], k_NC=k[:9], v_NC=v[:9], documents=Documents([9])))
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (24 << 20),) * 2)
try:
    ops.attention(of)
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
def test_too_little_memory_is_an_exception(compiled: Operations) -> None:
    """And no end of the process: the loop then halves its micro-batches."""
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True)
    assert done.stdout.strip() == "not enough memory for attention", done.stderr


def test_a_library_that_cannot_be_loaded_is_said(
    compiled: Operations, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "_compile", lambda compiler, runtime, library: library.write_bytes(b"not a library"))
    with pytest.raises(native.Unavailable, match="cannot be compiled or loaded here"):
        native.load(tmp_path)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.load(tmp_path)
    (library,) = tmp_path.iterdir()
    calls: list[Any] = []
    own = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: calls.append(command) or own(command, **options))
    native.load(tmp_path)
    assert [command[1] for command in calls] == ["--version"]
    assert list(tmp_path.iterdir()) == [library]
