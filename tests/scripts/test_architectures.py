"""Models of other classes than the recipes': numbers of their own, or a refusal in one line.

Each is built tiny, with weights large enough to matter, and with a window shorter than the rows where it can have one.
The truth is transformers' eager attention over each sequence alone, and its `generate`. docs/models.md has the table.
"""

import re
from itertools import chain
from typing import NamedTuple

import pytest
import torch
import transformers
from conftest import ROOT, run_here
from transformers import AutoModelForCausalLM

from policy.loading import load_for_inference
from policy.prefix_sharing import sequence_logps
from policy.sampling import generate
from policy.self_check import check_model_numbers

CPU = torch.device("cpu")
WINDOW = 24
SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.25,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
WINDOWED = {"sliding_window": WINDOW}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CHUNKED = {"attention_chunk_size": 16, "intermediate_size_mlp": 48}
WIDTHS = "has heads of several widths"
NOT_ATTENTION, OWN = "has layers that are recurrent or otherwise not attention", "has attention of its own"


class Case(NamedTuple):
    """A configuration class of transformers without its `Config`, its fields, and why it is refused, if it is."""

    kind: str
    fields: dict
    refused: str = ""


RIGHT = {
    "Llama 3": Case("Llama", {}),
    "Llama 3, tied": Case("Llama", {"tie_word_embeddings": True}),
    "Qwen 2.5": Case("Qwen2", {}),
    "Qwen 2 with a window": Case("Qwen2", WINDOWED | {"use_sliding_window": True, "max_window_layers": 2}),
    "Qwen 3": Case("Qwen3", {}),
    "Qwen 3 MoE": Case("Qwen3Moe", EXPERTS),
    "Mistral v0.1": Case("Mistral", WINDOWED),
    "Mistral v0.3": Case("Mistral", {"sliding_window": None}),
    "Ministral": Case("Ministral", WINDOWED),
    "Mixtral": Case("Mixtral", EXPERTS),
    "Phi 2": Case("Phi", {}),
    "Phi 3 mini 4k": Case("Phi3", WINDOWED),
    "Phi 4 mini": Case("Phi3", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    "Gemma": Case("Gemma", {}),
    "Gemma 3": Case("Gemma3Text", WINDOWED | {"num_hidden_layers": 6}),
    "Gemma 3, soft-capped logits": Case("Gemma3Text", WINDOWED | {"final_logit_softcapping": 2.0}),
    "SmolLM 3": Case("SmolLM3", {}),
    "OLMo": Case("Olmo", {}),
    "OLMo 2": Case("Olmo2", {}),
    "OLMo 3": Case("Olmo3", WINDOWED),
    "OLMoE": Case("Olmoe", EXPERTS),
    "Granite": Case("Granite", {"logits_scaling": 3.0, "residual_multiplier": 0.5}),
    "Cohere": Case("Cohere", {"logit_scale": 2.0}),
    "Cohere 2": Case("Cohere2", WINDOWED | {"logit_scale": 2.0}),
    "GLM 4": Case("Glm4", {}),
    "EXAONE 4": Case("Exaone4", WINDOWED),
    "Starcoder 2": Case("Starcoder2", WINDOWED),
    "Helium": Case("Helium", {}),
    "HunYuan": Case("HunYuanDenseV1", {}),
    "NanoChat, soft-capped logits": Case("NanoChat", {}),
    "GPT-NeoX": Case("GPTNeoX", {}),
    "GPT-2": Case("GPT2", {"attn_pdrop": 0.0}),
    "GPT-BigCode": Case("GPTBigCode", {"attn_pdrop": 0.0}),
    "OPT": Case("OPT", {"word_embed_proj_dim": 32, "ffn_dim": 48, "dropout": 0.0}),
}
REFUSED = {
    "GPT-OSS": Case("GptOss", EXPERTS | WINDOWED, "its attention has sinks"),
    "Gemma 2": Case("Gemma2", WINDOWED, "its attention has soft-capped scores"),
    "Llama 4": Case("Llama4Text", EXPERTS | CHUNKED, "Llama4ForCausalLM cannot be run here"),
    "LFM 2": Case("Lfm2", {"layer_types": ["conv", "conv", "full_attention", "conv"]}, NOT_ATTENTION),
    "Qwen 3 Next": Case("Qwen3Next", EXPERTS, NOT_ATTENTION),
    "Mamba": Case("Mamba", {}, NOT_ATTENTION),
    "Falcon H1": Case("FalconH1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}, NOT_ATTENTION),
    "RWKV": Case("Rwkv", {"attention_hidden_size": 32}, NOT_ATTENTION),
    "BLOOM": Case("Bloom", {}, OWN),
    "CodeGen": Case("CodeGen", {"rotary_dim": 4}, OWN),
    "XGLM": Case("XGLM", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}, OWN),
    "GPT-J": Case("GPTJ", {"rotary_dim": 4}, OWN),
    "StableLM": Case("StableLm", {}, OWN),
    "BERT": Case("Bert", {"is_decoder": True}, "differ by .* from BertLMHeadModel's own"),
    "Gemma 4": Case("Gemma4Text", WINDOWED | {"num_hidden_layers": 6, "head_dim": 8, "global_head_dim": 16}, WIDTHS),
    "T5": Case("T5", {"d_model": 32, "d_ff": 48, "num_heads": 4, "d_kv": 8}, "a T5Config is of no model"),
}  # fmt: skip
FAST = ("Llama 3", "Qwen 3", "Mistral v0.1", "Gemma 3", "Gemma 3, soft-capped logits", "OLMo 3", "Granite", "GPT-2")
FAST += ("GPT-OSS", "Gemma 2", "LFM 2", "Mamba", "BLOOM")


def cases(table: dict[str, Case]) -> list:
    return [pytest.param(case, id=name, marks=[] if name in FAST else pytest.mark.slow) for name, case in table.items()]


def saved(case: Case, folder, tokenizer) -> str:
    """The model in a directory, with the tiny tokenizer."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.kind}Config")(**SHAPE | {"vocab_size": len(tokenizer)} | case.fields)
    kind = AutoModelForCausalLM if case.kind != "T5" else transformers.AutoModelForSeq2SeqLM
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms of 1 and biases of 0 would hide what is done to them
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def sequences(tokenizer, count: int = 3) -> tuple[list, list]:
    """Groups of a shared prefix and different ends, longer than the window."""
    generator = torch.Generator().manual_seed(1)

    def some(n: int) -> list[int]:
        return torch.randint(1, len(tokenizer), (n,), generator=generator).tolist()

    prompts, completions = [], []
    for _ in range(2):
        prefix = some(WINDOW + 9)
        prompts.append([prefix + some(k) for k in range(1, count + 1)])
        completions.append([some(20) for _ in range(count)])
    return prompts, completions


@pytest.mark.parametrize("case", cases(RIGHT))
def test_numbers_are_the_model_s_own(case, tmp_path, tokenizer):
    folder = saved(case, tmp_path / "model", tokenizer)
    model = load_for_inference(folder, "none", torch.float32, CPU)
    prompts, completions = sequences(tokenizer)
    check_model_numbers(model, prompts, completions, [prompts[0][0] + completions[0][0] * 3])
    own = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        paths = {share: sequence_logps(model, prompts, completions, share=share) for share in (True, False)}
        expected = []
        for prompt, completion in zip(chain(*prompts), chain(*completions), strict=True):
            logits = own(input_ids=torch.tensor([prompt + completion])).logits[0].float().log_softmax(-1)
            expected.append(logits[len(prompt) - 1 : -1].gather(-1, torch.tensor(completion)[:, None])[:, 0])
    assert torch.stack(expected).std() > 0.3, "weights that matter"
    for logps, _, mask in paths.values():
        torch.testing.assert_close(logps[mask], torch.cat(expected), atol=1e-3, rtol=0)
    drawn = generate(model, prompts, stop_ids=set(), max_new_tokens=30)
    greedy = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    for prompt, completion in zip(chain(*prompts), chain(*drawn), strict=True):
        row = torch.tensor([prompt])
        found = own.generate(row, attention_mask=torch.ones_like(row), **greedy)
        assert found[0, len(prompt) :].tolist() == completion.tokens


@pytest.mark.parametrize("case", cases(REFUSED))
def test_what_cannot_be_right_is_refused_in_one_line(case, tmp_path, tokenizer, dataset):
    folder = saved(case, tmp_path / "model", tokenizer)
    scripts = {
        "train_sft": {"max_steps": 2, "adaptation": "lora", "logging_dir": tmp_path / "logs"},
        "train_grpo": {"max_steps": 2, "logging_dir": tmp_path / "logs"},
        "evaluate": {"mode": "generate"},
    }
    for script, options in scripts.items():
        more = {} if script == "evaluate" else {"quantization": "none"}
        with pytest.raises(ValueError, match=case.refused) as error:
            run_here(script, model=folder, dataset=dataset, output_dir=tmp_path / script, **options, **more)
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in RIGHT.items()])
def test_a_model_is_trained_and_evaluated(case, tmp_path, tokenizer, dataset):
    base = saved(case, tmp_path / "model", tokenizer)
    common = {"dataset": dataset, "quantization": "none", "max_steps": 2, "eval_rows": 4, "max_new_tokens": 12}
    common |= {"learning_rate": 1e-3}
    sft, grpo = (
        {"output_dir": tmp_path / stage, "logging_dir": tmp_path / "logs" / stage} for stage in ("sft", "grpo")
    )
    run_here("train_sft", model=base, adaptation="full", batch_size=8, **sft, **common)
    run_here("train_grpo", model=tmp_path / "sft", prompts_per_step=4, num_generations=4, **grpo, **common)
    for mode in ("generate", "score"):
        printed = run_here("evaluate", model=tmp_path / "grpo", mode=mode, split="test", output_dir=tmp_path / mode)
        assert "F1" in printed


def test_the_table_of_the_documents_has_every_case():
    text = (ROOT / "docs" / "models.md").read_text()
    for table, verdict in ((RIGHT, "right"), (REFUSED, "refused")):
        for name in table:
            assert re.search(rf"^\|.*\b{re.escape(name)}\b.*\| {verdict}", text, re.M), name
