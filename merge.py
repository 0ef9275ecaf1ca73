"""An adapter folded into its base: a full model, which any tool loads without peft, and which runs as fast as its base.

    python merge.py --model models/phi3_grpo_model
    python merge.py --model models/phi3_grpo_model --output_dir models/phi3_merged --dataset data/phi3 --max_rows 500

The weights are those of the base plus what the adapter adds to them. An adapter that was trained on a 4-bit base has
learned to make up for its rounding too, so it is folded into those weights, dequantized (`--quantization nf4`, as in
training). The model is written in the precision of the base: its weights are rounded once more, and a small update may
be lost in that. With a dataset, the greedy answers of the adapter on its base, as in training, are compared with
those of the model that has been written.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from causal.answers import extract_answer
from dataset.chat import encode
from dataset.reading import TRAINING_DATA, choose_rows, load_split, premise_ids_of
from policy.adapters import adapter_base, adapter_config, base_revision
from policy.loading import load_adapted, load_for_inference, load_merged, load_tokenizer, save_model, stop_token_ids
from policy.sampling import Sampler
from policy.shapes import check_context, check_model, own_dtype
from runtime.checkpoints import CONFIGURATION, MERGED, MODEL
from runtime.ending import run_script
from runtime.files import check_not_read, check_vacant, check_writable, read_beside, replacing
from runtime.processes import start
from runtime.settings import Settings, arg, check, parse_config, seed_arg
from scoring.predictions import complete
from training.budgets import cache_of_evaluation


@dataclass
class Config(Settings):
    model: str = arg("", "directory of the adapter; its adapter_config.json names the base", section="model")
    revision: str | None = arg(None, "hub revision of the base; none given: the one of its training")
    quantization: str = arg(
        "",
        "nf4 | none: what the base was in the adapter's training, and is folded from; empty: as in training",
        choices=("nf4", "none"),
    )
    dtype: str = arg(
        "auto",
        "auto | float32 | bfloat16 | float16: precision of the model; auto: that of the base",
        choices=("auto", "float32", "bfloat16", "float16"),
    )

    dataset: str = arg(
        "", "directory that preprocess.py wrote: count the answers to its rows that change", section="comparison"
    )
    split: str = arg("test", "test | validation | train")
    max_rows: int = arg(200, "rows to answer, a random choice that seed fixes; 0: all", at_least=0)
    max_new_tokens: int = arg(
        0, "tokens of a completion, at most; 0: as in training, or 16, enough for an answer", at_least=0
    )
    seed: int = seed_arg("seed of the choice of max_rows")

    output_dir: str = arg("", "where the model goes; empty: the adapter's directory and _merged", section="output")
    overwrite: bool = arg(False, "replace an earlier merged model in output_dir")

    def __post_init__(self):
        trained = read_beside(self.model, CONFIGURATION)
        self.quantization = self.quantization or trained.get("quantization", "none")
        self.max_new_tokens = self.max_new_tokens or trained.get("max_new_tokens", 16)
        self.output_dir = self.output_dir or f"{self.model.rstrip('/')}_merged"
        super().__post_init__()
        check(self.model != "", "model: name the directory of an adapter")


def check_output_dir(config: Config, base: str) -> Path:
    """The output directory, not yet made. ValueError where it is not free, or would take the place of what is read.

    With `overwrite` it may be an earlier merged model.
    """
    path, place = Path(config.output_dir), f"output_dir {config.output_dir}"
    check_not_read(path, config.model, base)
    check_vacant(path, config.overwrite, "name another, or set overwrite true")
    found = list(path.iterdir()) if path.is_dir() else []
    ours = (MERGED, CONFIGURATION, *MODEL)
    known = (path / MERGED).is_file() and all(any(map(entry.match, ours)) for entry in found)
    check(known or not found, f"{place}: holds something else than a merged model; name another")
    check_writable(path.resolve().parent, place)
    return path


def answer(accelerator: Accelerator, model: torch.nn.Module, tokenizer, rows, quantization: str, config: Config):
    """The model's greedy completions, a text a row."""
    prompts = [encode(tokenizer, text) for text in rows["prompt"]]
    longest = max(map(len, prompts))
    check_context(model, longest + config.max_new_tokens)
    cache = cache_of_evaluation(
        accelerator.device, model.dtype, config.model, quantization, longest, config.max_new_tokens, config.revision
    )
    sampler = Sampler(model, tokenizer, stop_token_ids(tokenizer, model), config.max_new_tokens, cache)
    return [sample.text for (sample,) in complete(accelerator, sampler, prompts, premise_ids_of(rows))]


def changes(before: list[str], after: list[str]) -> dict[str, int]:
    """How many of the rows' texts differ, and in how many of these the answer does."""
    pairs = list(zip(before, after, strict=True))
    answers = [extract_answer(old) is not extract_answer(new) for old, new in pairs]
    return {"rows": len(pairs), "answers_changed": sum(answers), "texts_changed": sum(a != b for a, b in pairs)}


def card(record: dict, name: str) -> str:
    """The model's README.md."""
    lines = [
        f"---\nlibrary_name: transformers\nbase_model: {record['base']}\n---\n",
        f"# {name}\n",
        f"`{record['base']}` with the adapter `{record['adapter']}` folded into its weights, in {record['dtype']}.",
    ]
    if record["quantization"] == "nf4":
        lines.append("The base was quantized to nf4, as in the adapter's training, and dequantized.")
    if "rows" in record:
        lines.append("\n" + compared(record))
    return "\n".join(lines) + "\n"


def compared(record: dict) -> str:
    """What the comparison has found, in a sentence."""
    changed = f"{record['answers_changed']:,} changed by the merging ({record['texts_changed']:,} texts)"
    return f"Greedy answers to {record['rows']:,} rows of {record['dataset']}, split {record['split']}: {changed}."


def main() -> None:
    config = parse_config(Config)
    check(os.environ.get("WORLD_SIZE", "1") == "1", "merge: run python merge.py, not accelerate launch")
    check(adapter_config(config.model) is not None, f"model {config.model}: no adapter_config.json; nothing to merge")
    base = adapter_base(config.model)
    check(base != "", f"model {config.model}: adapter_config.json names no base_model_name_or_path; write it there")
    check_model(base)
    output_dir = check_output_dir(config, base)
    tokenizer = load_tokenizer(config.model, config.revision)
    rows = load_split(config.dataset, config.split, labels=False) if config.dataset else None

    accelerator = start(config.seed)
    where = {"device": accelerator.device, "revision": base_revision(config.model, config.revision)}
    own = own_dtype(base, where["revision"])
    dtype = own if config.dtype == "auto" else getattr(torch, config.dtype)
    record = {"adapter": config.model, "base": base, "quantization": config.quantization}
    record["dtype"] = str(dtype).removeprefix("torch.")
    before = None
    if rows is not None:
        rows = choose_rows(rows, config.max_rows or len(rows), config.seed)
        # As it was trained, if that is known, whatever it is folded from.
        trained = read_beside(config.model, CONFIGURATION).get("quantization", config.quantization)
        adapted = load_adapted(config.model, trained, own, **where)
        before = answer(accelerator, adapted, tokenizer, rows, trained, config)
        del adapted
    model = load_merged(config.model, config.quantization, dtype, **where)
    with replacing(output_dir) as new:
        save_model(model, tokenizer, new)
        del model
        if before is not None:
            written = load_for_inference(str(new), "none", dtype, accelerator.device)
            after = answer(accelerator, written, tokenizer, rows, "none", config)
            record |= {"dataset": config.dataset, "split": config.split} | changes(before, after)
        # What evaluate.py wants to know of a model's training.
        if trained := read_beside(config.model, CONFIGURATION):
            (new / CONFIGURATION).write_text(json.dumps(trained | {"quantization": "none"}, indent=2) + "\n")
        if known := read_beside(config.model, TRAINING_DATA):
            (new / TRAINING_DATA).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        (new / MERGED).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (new / "README.md").write_text(card(record, output_dir.name), encoding="utf-8")
    if "rows" in record:
        print(compared(record))
    print(f"{config.model} folded into {base}, {record['dtype']}: {output_dir}")


if __name__ == "__main__":
    run_script(main)
