"""elementwise.cpp and attention.cpp, compiled once for this machine and called through their C interface.

No torch headers are needed, so that compiling takes a few seconds; the result is kept under a name made of all that
it depends on. The library uses the OpenMP runtime that torch has loaded: a second one would bring a second pool of
threads, and two pools on the same cores wait for each other.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.plain import Inputs, Operations, Past

SOURCES = [Path(__file__).with_name(name) for name in ("elementwise.cpp", "attention.cpp", "tiles.h", "numbers.h")]
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


class Unavailable(Exception):
    """Why there is no compiled library here, in a sentence's second half."""


def load(cache: Path) -> ctypes.CDLL:
    """The compiled library, from `cache` when it was compiled before. Raises Unavailable."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise Unavailable("there is no C++ compiler (install g++ for faster training)")
    runtime = next((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), None)
    if runtime is None:
        raise Unavailable("torch was not built with GNU's OpenMP here")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    parts = [*(source.read_text() for source in SOURCES), *FLAGS, version, _processor(), str(runtime)]
    library = cache / f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    try:
        if not library.is_file():
            _compile(compiler, runtime, library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise Unavailable(f"they cannot be compiled or loaded here ({error})") from None


def _processor() -> str:
    """What `-march=native` looks at: the processor's features."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return next((line for line in info.splitlines() if line.startswith(("flags", "Features"))), platform.processor())


def _compile(compiler: str, runtime: Path, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / "kernels"
        units = {str(source): f"{made}-{source.stem}.o" for source in SOURCES if source.suffix == ".cpp"}
        steps = [[compiler, *FLAGS, *_width(), "-c", source, "-o", unit] for source, unit in units.items()]
        steps.append([compiler, "-shared", *units.values(), str(runtime), "-o", f"{made}.so"])  # not -fopenmp: torch's
        for command in steps:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                why = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
                raise Unavailable(f"the C++ compiler refuses our code ({why[0]})")
        os.replace(f"{made}.so", library)  # whole or not at all, also when two processes compile


def _width() -> list[str]:
    """Compilers use half of AVX-512's width unless told; nothing to tell on other processors."""
    return ["-mprefer-vector-width=512"] if "avx512f" in _processor() else []


def operations(library: ctypes.CDLL) -> Operations:
    """The functions of plain.py, made of the library's."""
    return Operations(
        partial(norm, library),
        partial(norm_backward, library),
        partial(swiglu, library),
        partial(swiglu_backward, library),
        partial(attention, library),
        partial(attention_backward, library),
        partial(label_softmax_, library),
    )


def _call(library: ctypes.CDLL, name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Tensors go as addresses, None as a null pointer, whole numbers as int64, others as float. Raises MemoryError."""
    assert all(a.is_contiguous() or name.startswith("attention") for a in arguments if isinstance(a, Tensor)), name
    if library[f"{name}_{DTYPES[dtype]}"](*[_c(a) for a in arguments]):
        raise MemoryError(f"not enough memory for {name}")


def _c(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_void_p(None) if value is None else ctypes.c_int64(value)


def norm(library: ctypes.CDLL, x_ND: Tensor, w_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x_ND = x_ND.contiguous()
    h_ND, rstd_N = torch.empty_like(x_ND), torch.empty(x_ND.shape[0])
    _call(library, "norm", x_ND.dtype, x_ND, w_D, eps, h_ND, rstd_N, *x_ND.shape)
    return h_ND, rstd_N


def norm_backward(
    library: ctypes.CDLL,
    grad_ND: Tensor,
    x_ND: Tensor,
    w_D: Tensor,
    rstd_N: Tensor,
    residual_ND: Tensor,
    weight_too: bool,
) -> tuple[Tensor, Tensor | None]:
    blocks = 4 * torch.get_num_threads()  # a fixed cut of the rows: sums over a block are in order
    sums_BD = torch.zeros(blocks, x_ND.shape[1]) if weight_too else None
    grad_ND, x_ND, residual_ND = grad_ND.contiguous(), x_ND.contiguous(), residual_ND.contiguous()
    dx_ND = torch.empty_like(grad_ND)
    arguments = (grad_ND, x_ND, w_D, rstd_N, residual_ND, dx_ND, sums_BD, blocks, *x_ND.shape)
    _call(library, "norm_backward", x_ND.dtype, *arguments)
    return dx_ND, None if sums_BD is None else sums_BD.sum(0).to(w_D.dtype)


def swiglu(library: ctypes.CDLL, pair_N2I: Tensor) -> Tensor:
    N, I = pair_N2I.shape[0], pair_N2I.shape[1] // 2  # noqa: E741
    out_NI = pair_N2I.new_empty(N, I)
    _call(library, "swiglu", pair_N2I.dtype, pair_N2I, out_NI, N, I)
    return out_NI


def swiglu_backward(library: ctypes.CDLL, grad_NI: Tensor, pair_N2I: Tensor) -> tuple[Tensor, Tensor]:
    dpair_N2I, out_NI = torch.empty_like(pair_N2I), torch.empty_like(grad_NI)
    _call(library, "swiglu_backward", grad_NI.dtype, grad_NI, pair_N2I, dpair_N2I, out_NI, *grad_NI.shape)
    return dpair_N2I, out_NI


def attention(library: ctypes.CDLL, of: Inputs) -> tuple[Tensor, Tensor]:
    o_NC, lse_HN = of.q_NC.new_empty(len(of.q_NC), of.heads.H * of.heads.D), torch.empty(of.heads.H, len(of.q_NC))
    _call(library, "attention", of.q_NC.dtype, *_arguments(of), o_NC, lse_HN)
    return o_NC, lse_HN


def attention_backward(
    library: ctypes.CDLL, of: Inputs, grad_NC: Tensor, lse_HN: Tensor, out: tuple[Tensor, Tensor, Tensor]
) -> Past:
    past_grads = tuple(torch.empty(x.shape) for x in of.past) if of.past else (None, None)
    written = (*out, *(x.stride(0) for x in out), *past_grads)
    _call(library, "attention_backward", grad_NC.dtype, *_arguments(of), grad_NC.contiguous(), lse_HN, *written)
    dk_GSD, dv_GSD = past_grads
    return None if dk_GSD is None or dv_GSD is None else (dk_GSD.to(grad_NC.dtype), dv_GSD.to(grad_NC.dtype))


def _arguments(of: Inputs) -> tuple[Any, ...]:
    """What both directions begin with. Raises TypeError where dtypes or rows are not as the library takes them."""
    inputs = of.q_NC, of.k_NC, of.v_NC
    turn, past = of.turn or (None, None), tuple(x.contiguous() for x in of.past) if of.past else (None, None)
    if len({x.dtype for x in (*inputs, *turn, *past) if x is not None}) > 1:
        raise TypeError("queries, keys, values and angles have several dtypes")
    if any(len(x) != sum(of.documents.lengths) or x.stride(1) != 1 for x in inputs):
        raise TypeError("queries, keys and values are not rows of the documents' tokens")
    return (
        *inputs,
        *(x.stride(0) for x in inputs),
        *turn,
        *past,
        of.past[0].shape[1] if of.past else 0,
        torch.tensor(of.documents.lengths).cumsum(0),
        len(of.documents.lengths),
        int(of.documents.shared),
        *(of.heads.H, of.heads.G, of.heads.D),
        torch.iinfo(torch.int32).max if of.heads.window is None else of.heads.window,
        float(of.heads.scale),
    )


def label_softmax_(library: ctypes.CDLL, logits_CV: Tensor, y_C: Tensor) -> tuple[Tensor, Tensor]:
    logp_C, correct_C = torch.empty(len(y_C)), torch.empty(len(y_C), dtype=torch.bool)
    _call(library, "label_softmax", logits_CV.dtype, logits_CV, y_C, logp_C, correct_C, *logits_CV.shape)
    return logp_C, correct_C
