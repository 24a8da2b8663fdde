"""Tables from the files in bench/results, for the terminal and for docs/performance.md. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "bench/results", ROOT / "docs/performance.md"
KINDS = {"gpu-bf16": "a GPU", "cpu-bf16": "a CPU with bf16 arithmetic", "cpu-fp32": "a CPU without bf16 arithmetic"}
BEGIN, END = "<!-- figures: written by bench/train.py -->\n", "<!-- /figures -->"
LADDER = "ladder.json"
GOALS = {"lora": 4, "full": 3}  # times TRL's best
TARGETS = {
    "lora": "8 and 4 times, a quarter of the memory, half of the roofline, ten seconds to the first step",
    "full": "3 times TRL's best",
}
WITHOUT = (
    "What each technique gives: the speed with all of them over that without it (median, lowest and highest of rounds):"
)
Found = dict[str, Any]


def refresh(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Writes the page's figures anew from the files that there are."""
    page.write_text(rendered(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def rendered(text: str, results: Path) -> str:
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + "\n" + "\n\n".join(_sections(results)) + "\n\n" + END + rest.partition(END)[2]


def _sections(results: Path) -> list[str]:
    sections = []
    for kind, title in KINDS.items():
        if found := _figures(results / kind):
            sections += [f"## On {title}", *found]
    return sections or ["No figures yet: run the commands above."]


def _figures(results: Path) -> list[str]:
    """Of one kind of machine."""
    sections = []
    for method, title in (("lora", "LoRA, rank 16 on all linear layers"), ("full", "All weights")):
        if found := _read(results / f"{method}.json"):
            sections += [f"### {title}", f"To reach: {TARGETS[method]}.", comparison(found)]
            if before := _read(results / f"{method}.before.json"):
                sections.append(_once_more(before))
            sections += ["Where the time of our steps goes (under a profiler):", profile(found["profile"])]
            sections.append(_reach(found, GOALS[method]))
            if method == "lora" and (climbed := _read(results / LADDER)):
                sections += [WITHOUT, ladder(climbed["ladder"]), f"{climbed['measured']}."]
    if found_curves := [_read(path) for path in sorted(results.glob("curve-*.json"))]:
        sections += ["### Losses beside TRL's", curves([c for c in found_curves if c])]
    if found := _read(results / "memory.json"):
        sections += ["### Memory: forecast and measured", memory(found)]
    for name, title in (("rival_search.json", "LoRA"), ("rival_search_full.json", "all weights")):
        if found := _read(results / name):
            sections += [f"### TRL's best configuration: {title}", trials(found)]
    return sections


def comparison(found: Found) -> str:
    sides = {"ours": "tunesmith", "documented": "TRL as documented", "tuned": "TRL, best found"}
    ratios = {"ours": "", "documented": _ratio(found, "ratio_vs_default"), "tuned": _ratio(found, "ratio_vs_tuned")}
    first = found["tokens_per_second_at_first"]
    lines = [
        (
            name,
            f"{found['tokens_per_second'][side]:,.0f}",
            f"{first[side]:,.0f}",
            ratios[side],
            _gigabytes(found["peak_gb"][side]),
            _gigabytes(found["peak_gb_since_training_began"][side]),
            f"{found['seconds_to_first_step'][side]:.1f} / {found['seconds_to_first_loss'][side]:.1f}",
            found["threads"][side],
        )
        for side, name in sides.items()
    ]
    heads = (
        "",
        "tokens/s",
        "at first",
        "tunesmith is faster by",
        "peak GB",
        "of training",
        "s to first step / loss",
        "threads",
    )
    return "\n\n".join([_table(heads, lines), _notes(found)])


def _notes(found: Found) -> str:
    rows, gemm, machine = found["rows"], found["gemm_flops_per_second"], found["machine"]
    share, whole = found["roofline_fraction"], gemm["median"] / found["flops_per_token"]
    lines = [
        f"Peak memory is {_ratio(found, 'peak_memory_ratio')} of TRL's best.",
        f"{100 * share:.0f} % of the roofline: {found['flops_per_token'] / 1e6:,.0f} MFLOP a token at "
        f"{gemm['median'] / 1e12:.2f} TFLOP/s (between {gemm['lowest'] / 1e12:.2f} and {gemm['highest'] / 1e12:.2f}). "
        f"It counts what rows begin with for each of them, though it is computed once for several. All of it would be "
        f"{whole / found['tokens_per_second']['tuned']:.1f} times the speed of TRL's best.",
        _losses(found),
        f"{found['pairs']} pairs; in brackets: {found['intervals']}. Each run takes {rows['rows']} timed rows with "
        f"{rows['tokens']:,} tokens ({100 * rows['label_share']:.0f} % learnt, {rows['mean_keys']:.0f} keys a token) "
        f"{found['passes']} times: the last tells the speed, the first holds what new sizes of passes cost once. At "
        f"first tunesmith is faster than TRL's best by {_ratio(found, 'ratio_vs_tuned_at_first')}.",
        f"TRL's best: {found['rival']['tuned']}.",
        f"{machine['name']}, {machine['cores']} cores, {machine['memory_gb']} GB, load {machine['load_average']:.2f}; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + f"; engine {found['engine']}; {found['measured']}.",
        *found["kernel_notes"],
    ]
    return "\n".join(f"- {line}" for line in lines)


def _once_more(before: Found) -> str:
    """The same command's figures from the time before."""
    return (
        f"The run before this one ({before['measured']}): {_ratio(before, 'ratio_vs_default')} times TRL as "
        f"documented, {_ratio(before, 'ratio_vs_tuned')} times TRL's best, {_ratio(before, 'peak_memory_ratio')} of "
        f"its peak memory, {100 * before['roofline_fraction']:.0f} % of the roofline."
    )


def _reach(found: Found, goal: int) -> str:
    """What the goals would take, beside where the time and the memory go."""
    kinds, wanted = found["profile"]["kinds"], goal * found["tokens_per_second"]["tuned"]
    products = sum(spent["share"] for spent in kinds.values() if spent["flops_per_second"])
    roofline = wanted * found["flops_per_token"] / found["gemm_flops_per_second"]["median"]
    lines = [
        f"{goal} times TRL's best would be {wanted:,.0f} tokens/s, {100 * roofline:.0f} % of the roofline. Matrix "
        f"products take {100 * products:.0f} % of our time: if all else took none, it would be "
        f"{found['ratio_vs_tuned'] / products:.1f} times TRL's best."
    ]
    if held := found["profile"].get("resident_before_bytes"):
        lines.append(
            f"A quarter of its peak memory would be {found['peak_gb']['tuned'] / 4:.2f} GB; Python, libraries and the "
            f"weights hold {held / 1e9:.2f} GB before the first pass."
        )
    return "\n".join(f"- {line}" for line in lines)


def _losses(found: Found) -> str:
    """Of both sides in the same precision."""
    if found["max_loss_difference"] is None:
        return f"Losses were not compared: {found['losses_from']}."
    return (
        f"Losses differ by at most {found['max_loss_difference']:.1e} in {found['loss_steps']} steps, those of two "
        f"runs of TRL that round otherwise by {found['noise_band']:.1e} ({found['losses_from']})."
    )


def profile(found: Found) -> str:
    lines = [
        (
            kind,
            f"{100 * spent['share']:.0f} %",
            f"{spent['flops_per_second'] / 1e12:.2f}" if spent["flops_per_second"] else "",
        )
        for kind, spent in found["kinds"].items()
    ]
    table, seconds = _table(("", "share of the time", "TFLOP/s"), lines), found.get("compile_seconds")
    return table if seconds is None else f"{table}\n\nCompiling the kernels took {seconds:.1f} s, once on a machine."


def ladder(rungs: list[Found]) -> str:
    lines = [
        (
            rung["technique"]
            + (f" ({rung['tokens_per_second']:,.0f} tokens/s)" if "tokens_per_second" in rung else ""),
            f"{rung['predicted']:.2f}" if "predicted" in rung else "",
            "{:.2f} ({:.2f} to {:.2f})".format(rung["measured"], *rung["interval"]),
            f"{rung['tokens_per_second_without']:,.0f}",
            "" if rung.get("worth", True) else f"under 3 %; {rung['elsewhere'] or 'to go'}",
        )
        for rung in rungs
    ]
    return _table(("technique", "predicted gain", "measured", "tokens/s without", ""), lines)


def curves(found: list[Found]) -> str:
    lines = [
        (
            f"{c['method']}, {c['precision']}",
            c["loss_steps"],
            f"{c['max_loss_difference']:.1e}",
            f"{c['noise_band']:.1e}",
            f"{c['mean_loss_difference']:+.1e} ({c['mean_loss_difference_error']:.0e})",
            "yes" if c["max_loss_difference"] <= 2 * c["noise_band"] else "NO",
        )
        for c in found
    ]
    return _table(("", "steps", "ours to TRL", "TRL to itself", "mean (error)", "within twice TRL's noise"), lines)


def trials(found: Found) -> str:
    lines = [
        (
            trial["name"],
            f"{trial['median_tokens_per_second']:,.0f}" if trial["tokens_per_second"] else "",
            len(trial["tokens_per_second"]),
            _gigabytes(trial["peak_bytes"] / 1e9) if trial["tokens_per_second"] else "",
            trial["failure"] or "",
        )
        for trial in found["trials"]
    ]
    budget = found["budget"]
    said = f"{budget['steps']} steps each, the first not timed, at most {budget['seconds']:.0f} s; {found['measured']}."
    return _table(("configuration", "tokens/s", "runs", "peak GB", ""), lines) + "\n\n" + said


def memory(found: Found) -> str:
    heads = ("rows", "method", "tokens of a pass", "of a step", "steps", "forecast GB", "peak GB", "forecast / peak")
    told = f"\n\nEngine {found['engine']}; {found['measured']}."
    return _table(heads, [_memory_cells(case) for case in found["cases"]]) + told


def memory_line(case: Found) -> str:
    return "  ".join(f"{cell!s:>8}" for cell in _memory_cells(case))


def _memory_cells(case: Found) -> tuple[Any, ...]:
    sizes = case["micro_batch_tokens"], case["batch_tokens"], case["steps"]
    peaks = case["forecast_bytes"] / 1e9, case["peak_bytes"] / 1e9
    return case["rows"], case["method"], *sizes, *(f"{peak:.2f}" for peak in peaks), f"{case['ratio']:.3f}"


def _ratio(found: Found, name: str) -> str:
    low, high = found[f"{name}_interval"]
    return f"{found[name]:.2f} ({low:.2f} to {high:.2f})"


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _read(path: Path) -> Found | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
