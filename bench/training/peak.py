"""One short run of the training loop: the peak that it forecast, and that it reached. Started by `runs.measure`."""

from __future__ import annotations

from pathlib import Path

from training.runs import precision, request_and_answer
from tunesmith.core import hardware, store

VALIDATED = 40  # rows
METHODS = {
    "lora": {"method": "lora", "rank": 16, "alpha": 32.0},
    "qlora": {"method": "lora", "rank": 16, "alpha": 32.0, "quantise": "nf4"},
    "ia3": {"method": "ia3"},
    "full": {"method": "full"},
}


def main() -> None:
    hardware.calm_threads()
    import torch

    from tunesmith.models import load, methods, packed
    from tunesmith.models.tokens import Tokens
    from tunesmith.train import loop, memory
    from tunesmith.train.objectives import sft

    asked, answer = request_and_answer()
    torch.set_num_threads(hardware.threads().value)
    rows = Tokens(Path(asked["rows"]), "train")
    few = Tokens(Path(asked["rows"]), "train")
    few.ends = few.ends[:VALIDATED]
    method = methods.of(METHODS[asked["method"]])
    model = load.model(Path(asked["base"]), precision(), packed=True, quantise=method.quantise)
    packed.require_same_loss(packed.fast(model), rows)
    scorer = packed.fast(methods.attach(model, method, 0))
    settings = loop.Settings(
        learning_rate=1e-4,
        epochs=asked["steps"] * asked["batch_tokens"] / sum(rows.lengths),
        batch_tokens=asked["batch_tokens"],
        micro_batch_tokens=asked["micro_batch_tokens"],
        evaluations=1,
        patience=None,
        warmup=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=0,
        watch="warn",
    )
    done = loop.train(scorer, sft.loss, rows, few, settings, lambda entry: None)
    assert done.forecast_bytes
    found = {"forecast_bytes": done.forecast_bytes, "peak_bytes": memory.peak_bytes(), "steps": done.steps}
    store.write_json(answer, {**found, "ratio": round(done.forecast_bytes / memory.peak_bytes(), 4)})


if __name__ == "__main__":
    main()
