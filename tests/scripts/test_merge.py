"""merge.py: what it writes, what it says of the answers, and what it never overwrites."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run_here
from safetensors.torch import load_file

from policy.adapters import adapter_base
from policy.loading import load_adapted, load_for_inference


@pytest.fixture(scope="module")
def merged(tmp_path_factory, start_adapter, dataset) -> tuple[Path, str]:
    """The model that an adapter and its 4-bit base make, and what was printed."""
    folder = tmp_path_factory.mktemp("merged")
    adapter = folder / "mine"
    shutil.copytree(start_adapter, adapter)
    trained = {"quantization": "nf4", "max_new_tokens": 6, "dataset": str(dataset)}
    (adapter / "training_config.json").write_text(json.dumps(trained))
    (adapter / "training_data.json").write_text(json.dumps({"target": "answer", "structures": ["3:0"]}))
    printed = run_here("merge", model=adapter, dataset=dataset, max_rows=12)
    return folder / "mine_merged", printed


def test_it_writes_the_model_that_was_trained(merged, start_adapter):
    """On the 4-bit base, as its training_config.json says; alone it is loaded and evaluated like any full model."""
    folder, printed = merged
    record = json.loads((folder / "merged.json").read_text())
    assert record["quantization"] == "nf4" and record["dtype"] == "float32" and record["rows"] == 12
    assert "Greedy answers to 12 rows" in printed and f": {record['answers_changed']} changed" in printed
    assert (record["answers_changed"], record["texts_changed"]) == (0, 0)
    card = (folder / "README.md").read_text()
    assert f"base_model: {record['base']}\n" in card and "nf4" in card and "Greedy answers to 12 rows" in card
    cpu = {"dtype": torch.float32, "device": torch.device("cpu")}
    tokens = torch.tensor([[5, 3, 9, 1, 7]])
    with torch.no_grad():
        found = load_for_inference(str(folder), "none", **cpu)(tokens).logits
        rounded, exact = (load_adapted(str(start_adapter), kind, **cpu)(tokens).logits for kind in ("nf4", "none"))
    torch.testing.assert_close(found, rounded, rtol=1e-4, atol=1e-4)
    assert (found - exact).abs().max() > 100 * (found - rounded).abs().max()
    evaluated = folder.parent / "evaluated"
    run_here("evaluate", model=folder, max_rows=4, num_resamples=10, output_dir=evaluated)
    assert json.loads((evaluated / "metrics.json").read_text())["quantization"] == "none"


def test_changed_answers_are_counted(merged, start_adapter, dataset, monkeypatch, tmp_path):
    import merge

    answers = iter((["Answer: Yes", "Answer: No", "No idea"], ["Answer: Yes.", "Answer: Yes", "No idea"]))
    monkeypatch.setattr(merge, "answer", lambda *_: next(answers))
    printed = run_here("merge", model=start_adapter, dataset=dataset, max_rows=3, output_dir=tmp_path / "new")
    assert "3 rows" in printed and "1 changed by the merging (2 texts)" in printed


def test_the_adapter_answers_on_what_it_was_trained_on_whatever_it_is_folded_from(
    merged, dataset, monkeypatch, tmp_path
):
    import merge

    loaded = []
    monkeypatch.setattr(merge, "answer", lambda accelerator, model, *_: loaded.append(model) or ["Answer: Yes"])
    options = {"quantization": "none", "dtype": "bfloat16", "output_dir": tmp_path / "new"}
    run_here("merge", model=merged[0].parent / "mine", dataset=dataset, max_rows=1, **options)
    assert [(hasattr(model, "hf_quantizer"), model.dtype) for model in loaded] == [
        (True, torch.float32), (False, torch.bfloat16)
    ]  # fmt: skip


def test_the_dtype_is_the_bases_or_the_one_asked_for(start_adapter, tmp_path):
    run_here("merge", model=start_adapter, dtype="bfloat16", output_dir=tmp_path / "half")
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_nothing_is_overwritten_but_an_earlier_merged_model(merged, start_adapter, tmp_path):
    folder, _ = merged
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    base = adapter_base(str(start_adapter))
    for target, options, reason in (
        (mine, {}, "is not empty; name another, or set overwrite true"),
        (mine, {"overwrite": True}, "holds something else than a merged model; name another"),
        (folder, {}, "is not empty"),
        (start_adapter, {"overwrite": True}, "is read from there; name another"),
        (base, {"overwrite": True}, "is read from there; name another"),
        (Path(base).parent, {"overwrite": True}, "is read from there; name another"),
    ):
        with pytest.raises(ValueError, match=reason):
            run_here("merge", model=start_adapter, output_dir=target, **options)
    assert (mine / "notes.txt").read_text() == "mine" and Path(base, "config.json").is_file()
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (again / "model.safetensors").write_bytes(b"")
    run_here("merge", model=start_adapter, output_dir=again, overwrite=True)
    (again / "model-q4.gguf").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than a merged model; name another"):
        run_here("merge", model=start_adapter, output_dir=again, overwrite=True)
    (again / "model-q4.gguf").unlink()
    for options in (
        {"overwrite": True},
        {"resume_from": "latest"},
    ):  # it has its adapter's configuration, and is no run
        with pytest.raises(ValueError, match="holds a model that merge.py has made, and no run; name another"):
            run_here("train_grpo", model=start_adapter, output_dir=again, logging_dir=tmp_path / "logs", **options)
    assert load_file(again / "model.safetensors") and "rows" not in json.loads((again / "merged.json").read_text())


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"model": ""}, "model: name the directory of an adapter"),
        ({"model": "tiny"}, "model tiny: no adapter_config.json; nothing to merge"),
        ({"dataset": "nowhere"}, "dataset nowhere: not a dataset"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_leaves_nothing(options, reason, start_adapter, tmp_path):
    with pytest.raises(ValueError, match=reason):
        run_here("merge", **{"model": start_adapter, "output_dir": tmp_path / "new"} | options)
    assert not (tmp_path / "new").exists()
