"""Every method: it trains what it says, and what it leaves on disk loads where its format is meant to be loaded."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from tunesmith.core.errors import ConfigError, ModelError
from tunesmith.core.step import Artifact
from tunesmith.kernels.apply import choose
from tunesmith.models import attention, generate, load, methods, packed
from tunesmith.models.base import Base
from tunesmith.models.methods import Method
from tunesmith.models.packed import Scorer
from tunesmith.models.tokens import Tokens
from tunesmith.train import loop
from tunesmith.train.objectives import sft

LORA = Method("lora", rank=4, alpha=8, variant="plain")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="quantisation is an extra: pip install bitsandbytes"
)
METHODS = {
    "full": Method("full"),
    "freeze": Method("freeze", layers=("layers.1", "norm")),
    "lora": LORA,
    "rslora": replace(LORA, variant="rslora"),
    "dora": replace(LORA, variant="dora"),
    "hybrid": replace(LORA, layers=("layers.1.mlp", "lm_head")),
    "qlora": replace(LORA, quantise="nf4"),
    "qdora": replace(LORA, variant="dora", quantise="nf4"),
    "prompt": Method("prompt", virtual_tokens=5),
    "prefix": Method("prefix", virtual_tokens=5),
    "ia3": Method("ia3"),
    "bottleneck": Method("bottleneck", width=8),
}
KINDS = [pytest.param(name, marks=[needs_bitsandbytes] if METHODS[name].quantise else [], id=name) for name in METHODS]
PLAIN = [name for name in METHODS if not METHODS[name].quantise]
IDS = torch.randint(3, 49152, (2, 12), generator=torch.Generator().manual_seed(0))
Trained = tuple[Path, dict[str, torch.Tensor], torch.Tensor]


def attached(folder: Path, method: Method, seed: int = 0, precision: str = "fp32") -> Any:
    return methods.attach(load.model(folder, precision, quantise=method.quantise), method, seed)


def logits(model: Any) -> torch.Tensor:
    """(B, T, V) of the text alone: a soft prompt has logits of its own before."""
    with torch.no_grad():
        return model(IDS).logits[:, -IDS.shape[1] :]


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def trained(lively: Base, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """The folder that training by a method leaves, the trained tensors, and the logits of the trained model."""
    known: dict[str, Trained] = {}

    def train(name: str) -> Trained:
        if name not in known:
            model, out = attached(lively.folder, METHODS[name]), tmp_path_factory.mktemp(name)
            parameters = trainable(model)
            optimizer = torch.optim.AdamW(parameters.values(), lr=0.01)
            for _ in range(5):
                model(input_ids=IDS, labels=IDS).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            state = {name: p.detach().float().clone() for name, p in parameters.items()}
            wanted = logits(model)
            assert methods.save(model, state, None, out).parent == out
            known[name] = (out, state, wanted)
        return known[name]

    return train


def in_its_own_library(folder: Path, base: Path) -> Any:
    """The tuned model as somebody without tunesmith loads it."""
    if (folder / "model").is_dir():
        return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    adapter = folder / "adapter"
    quantisation = adapter / "quantisation.json"
    options = {}
    if quantisation.is_file():
        options["quantization_config"] = BitsAndBytesConfig.from_dict(json.loads(quantisation.read_text()))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options)
    if "bottleneck" not in folder.name:
        tuned = PeftModel.from_pretrained(plain, str(adapter))
        return tuned.train() if options else tuned  # in eval mode, bitsandbytes computes in bf16 on some CPUs
    weights = load_file(adapter / "adapter_model.safetensors")
    for module in json.loads((adapter / "adapter_config.json").read_text())["modules"]:

        def behind(module: str) -> Callable[..., torch.Tensor]:
            w = {key.removeprefix(f"{module}."): tensor for key, tensor in weights.items()}
            return lambda mlp, inputs, y: (
                y + torch.relu(y @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]
            )

        plain.get_submodule(module).register_forward_hook(behind(module))
    return plain


@pytest.mark.parametrize("name", KINDS)
def test_it_loads_in_its_own_library(trained: Callable[[str], Trained], lively: Base, name: str) -> None:
    folder, _, wanted = trained(name)
    base = logits(load.model(lively.folder, "fp32"))
    assert (wanted - base).abs().max() > 1e-2
    found = logits(in_its_own_library(folder, lively.folder))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_scored_as_it_was_trained(trained: Callable[[str], Trained], lively: Base, name: str) -> None:
    folder, _, wanted = trained(name)
    torch.testing.assert_close(logits(methods.load_tuned(lively.folder, folder, "fp32")), wanted, atol=2e-5, rtol=1e-5)
    rounded = methods.load_tuned(lively.folder, folder, "bf16")
    assert rounded.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(logits(rounded).float().flatten(), wanted.flatten(), 0) > 0.999


@pytest.mark.parametrize("name", KINDS)
def test_what_can_be_merged_is_one_whole_model(
    trained: Callable[[str], Trained], lively: Base, tmp_path: Path, name: str
) -> None:
    folder, _, wanted = trained(name)
    assert methods.mergeable(folder) == (METHODS[name].kind not in ("prompt", "prefix", "bottleneck"))
    if methods.mergeable(folder):
        whole = methods.merged(lively.folder, folder)
        assert whole.dtype == torch.float32
        whole.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
        torch.testing.assert_close(logits(again), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_trains_has_the_dtype_of_the_model(lively: Base, name: str, precision: str) -> None:
    model = attached(lively.folder, METHODS[name], precision=precision)
    assert {p.dtype for p in trainable(model).values()} == {load.DTYPES[precision]}


@pytest.mark.parametrize(
    ("name", "parts", "frozen"),
    [
        ("full", ["embed_tokens", "layers.0.mlp", "norm"], []),
        ("freeze", ["layers.1.self_attn", "model.norm"], ["embed_tokens", "layers.0"]),
        ("lora", ["lora_A", "lora_B"], ["base_layer", "embed_tokens", "lm_head"]),
        ("dora", ["lora_A", "lora_B", "lora_magnitude_vector"], ["base_layer"]),
        ("hybrid", ["layers.1.mlp.modules_to_save", "lm_head.modules_to_save", "layers.0.mlp.gate_proj.lora_A"], [
            "original_module", "base_layer", "layers.1.mlp.modules_to_save.default.gate_proj.lora_A"]),
        ("prompt", ["prompt_encoder"], ["model.layers"]),
        ("prefix", ["prompt_encoder"], ["model.layers"]),
        ("ia3", ["k_proj.ia3_l", "v_proj.ia3_l", "down_proj.ia3_l"], ["base_layer", "q_proj"]),
        ("bottleneck", ["mlp.down", "mlp.up"], ["mlp.inner", "self_attn"]),
    ],
)  # fmt: skip
def test_it_trains_what_it_says_and_nothing_else(lively: Base, name: str, parts: list[str], frozen: list[str]) -> None:
    names = list(trainable(attached(lively.folder, METHODS[name])))
    assert all(any(part in name for name in names) for part in parts)
    assert not [name for name in names for part in frozen if part in name]
    if name not in ("full", "freeze", "hybrid"):
        assert all(any(part in name for part in parts) for name in names)


@pytest.mark.parametrize("name", ["full", "freeze", "lora", "rslora", "dora", "hybrid", "ia3", "bottleneck"])
def test_it_begins_as_the_base(lively: Base, name: str) -> None:
    torch.testing.assert_close(
        logits(attached(lively.folder, METHODS[name])), logits(load.model(lively.folder, "fp32")), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["lora", "hybrid", "prompt", "prefix", "bottleneck"])
def test_random_parts_come_from_the_seed(lively: Base, name: str) -> None:
    first, same, other = (trainable(attached(lively.folder, METHODS[name], seed)) for seed in (1, 1, 2))
    assert all(torch.equal(same[key], tensor) for key, tensor in first.items())
    assert any(not torch.equal(other[key], tensor) for key, tensor in first.items())


def test_a_prefix_begins_as_if_words_stood_before_the_text(lively: Base) -> None:
    """With equal seeds, prompt and prefix tuning start from the same words: as vectors, and as keys and values."""
    prompt, prefix = (attached(lively.folder, METHODS[name]) for name in ("prompt", "prefix"))
    torch.testing.assert_close(logits(prompt), logits(prefix), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lora", {"rank": 2}),
        ("prompt", {"virtual_tokens": 3}),
        ("prefix", {"virtual_tokens": 3}),
        ("bottleneck", {"width": 4}),
        ("freeze", {"layers": ("layers.0",)}),
        ("hybrid", {"layers": ("norm",)}),
    ],
)
def test_sizes_change_what_trains(lively: Base, name: str, change: dict[str, Any]) -> None:
    before, after = (
        {key: p.shape for key, p in trainable(attached(lively.folder, method)).items()}
        for method in (METHODS[name], replace(METHODS[name], **change))
    )
    assert before != after


@pytest.mark.parametrize(("change", "scale"), [({}, 2.0), ({"variant": "rslora"}, 4.0), ({"alpha": 2}, 0.5)])
def test_alpha_and_variant_scale_the_update(lively: Base, change: dict[str, Any], scale: float) -> None:
    model = attached(lively.folder, replace(LORA, **change))
    assert model.base_model.model.model.layers[0].mlp.up_proj.scaling["default"] == scale


def test_a_tied_head_trains_as_one_weight_with_the_embedding(lively: Base) -> None:
    model = attached(lively.folder, Method("freeze", layers=("lm_head",)))
    assert list(trainable(model)) == ["model.embed_tokens.weight"]


def test_layers_that_name_nothing_are_refused(lively: Base) -> None:
    for method in (Method("freeze", layers=("layers.7",)), replace(LORA, layers=("layers.7",))):
        with pytest.raises(ConfigError, match="no module of this model"):
            attached(lively.folder, method)
    with pytest.raises(ConfigError, match="leaves nothing"):
        attached(lively.folder, replace(LORA, layers=("layers.*",)))


def test_a_method_is_read_from_the_decisions_of_a_plan() -> None:
    chosen = {"method": "lora", "rank": 8, "alpha": 16.0, "variant": "dora", "layers": ["norm"], "epochs": 3.0}
    assert methods.of(chosen) == Method("lora", 8, 16.0, "dora", ("norm",))
    assert methods.of({"method": "bottleneck", "width": 32}) == Method("bottleneck", width=32)


@pytest.mark.parametrize("name", PLAIN)
def test_the_space_it_needs_on_disk_is_known_before(trained: Callable[[str], Trained], lively: Base, name: str) -> None:
    folder = trained(name)[0]
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    told = methods.bytes_on_disk(attached(lively.folder, METHODS[name]))
    assert told <= weights < told + 8192  # the header's names


def test_a_whole_model_is_written_as_it_computed(lively: Base, tmp_path: Path) -> None:
    model = attached(lively.folder, METHODS["full"], precision="bf16")
    state = {name: p.detach().float() + 1e-6 for name, p in trainable(model).items()}  # past what bf16 can tell
    folder = methods.save(model, state, None, tmp_path)
    written = AutoModelForCausalLM.from_pretrained(folder)
    assert written.dtype == torch.bfloat16
    for name, parameter in written.named_parameters():
        assert torch.equal(parameter, state[name].bfloat16())


@pytest.mark.parametrize("name", ["lora", "bottleneck"])
def test_an_adapter_keeps_exact_values_and_names_its_base(lively: Base, tmp_path: Path, name: str) -> None:
    model = attached(lively.folder, METHODS[name], precision="bf16")
    state = {key: p.detach().float() + 1e-6 for key, p in trainable(model).items()}
    folder = methods.save(model, state, "org/base@abc", tmp_path)
    written = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert sorted(t.sum().item() for t in written.values()) == sorted(t.sum().item() for t in state.values())
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "abc")


@pytest.mark.parametrize("name", ["lora", "prompt", "prefix", "bottleneck"])
def test_an_answer_does_not_depend_on_the_other_prompts(
    trained: Callable[[str], Trained], lively: Base, name: str
) -> None:
    """Nor on how it is generated: each token is the likeliest by the model's own forward pass."""
    model = methods.load_tuned(lively.folder, trained(name)[0], "fp32")
    prompts = [[5, 6, 7], [3000, 400, 5000, 600, 7000, 800, 900], [20]]
    together = generate.answers(model, prompts, [2], 6, 3)
    assert together == [generate.answers(model, [prompt], [2], 6, 1)[0] for prompt in prompts]
    for prompt, answer in zip(prompts, together):
        with torch.no_grad():
            wanted = model(torch.tensor([prompt + answer])).logits[0, -len(answer) - 1 : -1].argmax(-1)
        assert wanted.tolist() == answer


@pytest.mark.parametrize("name", ["prompt", "prefix", "bottleneck"])
def test_an_answer_is_streamed_as_it_is_scored(
    trained: Callable[[str], Trained], lively: Base, tiny: Base, name: str
) -> None:
    assert tiny.folder is not None
    model, tokenizer = methods.load_tuned(lively.folder, trained(name)[0], "fp32"), load.tokenizer(tiny.folder)
    answer = generate.answers(model, [[500, 600, 700]], [2], 6, 1)[0]
    streamed = "".join(generate.stream(model, tokenizer, [500, 600, 700], [2], 6))
    assert streamed == tokenizer.decode(answer, skip_special_tokens=True)


@needs_bitsandbytes
def test_quantised_weights_pass_gradients_after_a_validation(lively: Base) -> None:
    """On some CPUs bitsandbytes would repack them in a pass without gradients, and cut the graph from then on."""
    model = attached(lively.folder, METHODS["qlora"])
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()

    def gradient() -> torch.Tensor:
        found: torch.Tensor = torch.autograd.grad(model(inputs_embeds=embedded).logits.sum(), embedded)[0]
        return found

    before = gradient()
    logits(model.eval())
    torch.testing.assert_close(gradient(), before)


@needs_bitsandbytes
def test_quantised_layers_take_a_quarter_of_the_memory(lively: Base) -> None:
    plain, packed = (
        load.model(lively.folder, "bf16", quantise=q).model.layers[0].mlp.up_proj.weight for q in (None, "nf4")
    )
    assert packed.dtype == torch.uint8
    assert packed.nbytes * 4 == plain.nbytes


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=49152, n_embd=32, n_layer=2, n_head=4, n_positions=64)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize(
    "method",
    [METHODS[name] for name in ("full", "lora", "prompt", "prefix", "ia3", "bottleneck")]
    + [Method("freeze", layers=("h.1",)), replace(LORA, layers=("h.1", "ln_f"))],
    ids=str,
)
def test_another_architecture_takes_every_method(gpt2: Path, tmp_path: Path, method: Method) -> None:
    model = attached(gpt2, method)
    for parameter in trainable(model).values():
        parameter.data += 0.01
    wanted = logits(model)
    methods.save(model, {name: p.detach().float() for name, p in trainable(model).items()}, None, tmp_path)
    torch.testing.assert_close(logits(methods.load_tuned(gpt2, tmp_path, "fp32")), wanted, atol=1e-5, rtol=1e-5)


def test_an_adapter_for_another_model_is_refused(trained: Callable[[str], Trained], gpt2: Path) -> None:
    with pytest.raises(ModelError, match="does not fit GPT2LMHeadModel"):
        methods.load_tuned(gpt2, trained("bottleneck")[0], "fp32")


@pytest.mark.parametrize("name", KINDS)
def test_packed_rows_are_scored_as_each_row_alone(
    trained: Callable[[str], Trained], lively: Base, dataset: Artifact, name: str
) -> None:
    model, tokens = methods.load_tuned(lively.folder, trained(name)[0], "fp32"), Tokens(dataset.folder, "test")
    rows = list(range(len(tokens)))
    wanted = []
    for i in rows:
        ids, learnt = (torch.from_numpy(array.copy()) for array in tokens.row(i))
        with torch.no_grad():
            logits_TV = model(ids.long()[None]).logits[0, -len(ids) :]
        loss_T = torch.nn.functional.cross_entropy(logits_TV[:-1], ids[1:].long(), reduction="none")
        wanted.append(float(loss_T[learnt[1:]].sum()))
    model.set_attn_implementation(attention.NAME)
    found = [nll for nll, _ in packed.row_nlls(model, tokens, rows)]
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_it_learns_real_rows(lively: Base, dataset: Artifact, name: str) -> None:
    method = METHODS[name]
    base = load.model(lively.folder, "fp32", packed=True, quantise=method.quantise)
    scorer = Scorer(methods.attach(base, method, 0), choose(base.dtype, torch.device("cpu")))
    rate = 0.1 if method.kind in ("prompt", "prefix", "ia3") else 0.01
    settings = loop.Settings(
        learning_rate=rate, epochs=2.0, batch_tokens=600, micro_batch_tokens=600, evaluations=1, patience=None,
        warmup=0.1, weight_decay=0.0, max_grad_norm=1.0, seed=0)  # fmt: skip
    log: list[dict[str, Any]] = []
    rows, validation = Tokens(dataset.folder, "train"), Tokens(dataset.folder, "validation")
    outcome = loop.train(scorer, sft.loss, rows, validation, settings, log.append)
    before = next(entry["validation_loss"] for entry in log if "validation_loss" in entry)
    assert outcome.best_validation_loss is not None
    assert outcome.best_validation_loss < before - 0.3
