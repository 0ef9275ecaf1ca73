"""evaluate.py as users run it: a model that always says Yes, the probabilities of the two answers against a plain
forward pass, made-up predictions to compare, and what users mistype."""

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import build_model
from datasets import Dataset, load_from_disk
from made_up import write_jsonl, write_predictions
from transformers import Phi3Config, Phi3ForCausalLM

import evaluate
from causal.tiny import tiny_model, tiny_tokenizer
from dataset.chat import encode
from dataset.reading import answer_candidates, load_split, training_data, write_training_data
from policy import sampling
from policy.loading import load_tokenizer, stop_token_ids
from policy.prefix_sharing import ATTENTION
from policy.sampling import Sampler
from preprocess import DataConfig, build, write_dataset
from scoring import asking, metrics, predictions
from scoring.predictions import Sample, majority, predict, score_answers
from scoring.resampling import Bootstrap
from scoring.results import answer_figures


def constant_model(tokenizer, prompt: str, answer: str) -> Phi3ForCausalLM:
    """A model that says `answer` after `prompt`."""
    tokens = encode(tokenizer, prompt)[-1:] + encode(tokenizer, answer)
    assert len(set(tokens)) == len(tokens), "a repeated token would have two successors"
    return successor_model(dict(zip(tokens, tokens[1:], strict=False)))


def successor_model(successors: dict[int, int], confidence: float = 1.0) -> Phi3ForCausalLM:
    """A model of which each token names the next: its layers add nothing, and its head reads the token's embedding."""
    torch.manual_seed(0)
    tiny = tiny_model(0, ATTENTION)
    untied = tiny.config.to_dict() | {"tie_word_embeddings": False, "num_hidden_layers": 1, "layer_types": None}
    model = Phi3ForCausalLM(Phi3Config(**untied))
    model.generation_config.eos_token_id = tiny.generation_config.eos_token_id
    layer, embeddings = model.model.layers[0], model.model.embed_tokens.weight
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token, following in successors.items():
            model.lm_head.weight[following] += confidence * embeddings[token] / embeddings[token].norm()
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with `data`, a dataset of 3 variables, `yes`, a model that answers Yes to all of it, and `traces`."""
    directory = tmp_path_factory.mktemp("evaluate")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(directory / "yes")
    options = {"num_variables": [3], "tokenizer": str(directory / "yes"), "instruction": "", "test_fraction": 0.5}
    options |= {"relabelings": [3], "seed": 1}
    write_dataset(*build(DataConfig(**options, target="trace")), directory / "traces")
    splits, columns, report = build(DataConfig(**options))
    write_dataset(splits, columns, report, directory / "data")
    write_dataset(*build(DataConfig(**options, perturbations=["paraphrase"])), directory / "worded")
    row = splits["test"][0]
    assert 0 < sum(r["label"] for r in splits["test"]) < len(splits["test"]), "the rows must hold both labels"
    constant_model(tokenizer, row["prompt"], "Answer: Yes<|end|>").save_pretrained(directory / "yes")
    return directory


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run evaluate.py with some arguments, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments) -> None:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        evaluate.main()

    return run


def read_predictions(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "predictions.jsonl").read_text().split("\n") if line]


def is_png(path: Path) -> bool:
    """Whether the file is a PNG that shows more than one colour."""
    from matplotlib.image import imread

    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and imread(path).std() > 0.01


# --- one model


def test_answers_that_are_no_answers_of_the_model_are_told(place, run, tmp_path, capsys, monkeypatch):
    """As an overflow in half precision makes them."""
    choose = sampling._choose

    def overflow(*arguments):
        tokens, logps = choose(*arguments)
        return tokens, np.where(np.arange(len(logps))[:, None] == 0, np.nan, logps)

    shared = ("--model", place / "yes", "--dataset", place / "data", "--max_rows", 20, "--num_resamples", 5)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "check_model_numbers", lambda *arguments: None)  # at the start all was well
        patch.setattr(sampling, "_choose", overflow)
        run(*shared, "--output_dir", "out")
    broken = [row for row in read_predictions(tmp_path / "out") if not row.get("finite", True)]
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 0 < len(broken) < 20 and results["not_finite_rate"] == len(broken) / 20 and results["truncated_rate"] == 0
    assert "log-probabilities are not finite in float32; set dtype" in capsys.readouterr().out
    monkeypatch.setattr(predictions, "sequence_logps", lambda *a, **k: (torch.full((40, 3), torch.nan), None, None))
    with pytest.raises(ValueError, match="row 0: the log-probabilities of its answers are not finite in torch.float32"):
        run(*shared, "--mode", "score", "--micro_batch_tokens", 100_000, "--output_dir", "scored")


def test_a_constant_yes_scores_what_always_yes_scores(place, run, tmp_path, capsys):
    run("--model", place / "yes", "--dataset", place / "data", "--num_resamples", 50, "--output_dir", "out")
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rows, data = read_predictions(tmp_path / "out"), load_split(str(place / "data"), "test")
    assert [row["input"] for row in rows] == data["input"] and [row["label"] for row in rows] == data["label"]
    assert {row["completion"] for row in rows} == {"Answer: Yes"} and all(row["stopped"] for row in rows)
    constant = results["baselines"]["always_yes"]
    assert constant["f1"] > 0 and {key: results["overall"][key] for key in constant} == constant
    assert results["truncated_rate"] == 0 and results["seconds"] > 0
    assert (results["name"], results["split"], results["dtype"]) == ("yes", ["test"], "float32")
    recomputed = metrics.report(rows, Bootstrap("premise_id", 50, 0))
    assert {key: results[key] for key in recomputed} == json.loads(json.dumps(recomputed))
    assert all(is_png(tmp_path / "out" / name) for name in ("confusion_matrix.png", "scores.png"))
    assert f"Of {len(rows)} rows, {data['label'].count(0)} are wrong" in (tmp_path / "out" / "report.html").read_text()
    lines = capsys.readouterr().out.split("\n")
    table = [line.split("  ")[0] for line in lines[next(i for i, line in enumerate(lines) if "MCC" in line) :]]
    assert table[1:4] == ["majority answer", "always Yes", "yes"]


def test_the_test_set_in_other_words(place, run, tmp_path, capsys):
    splits = ("--split", "test", "test_paraphrase")
    run("--model", place / "yes", "--dataset", place / "worded", *splits, "--output_dir", "a")
    results, rows = json.loads((tmp_path / "a" / "metrics.json").read_text()), read_predictions(tmp_path / "a")
    test, worded = (load_split(str(place / "worded"), split) for split in ("test", "test_paraphrase"))
    assert [row["input"] for row in rows] == [*test["input"], *worded["input"]]
    assert [row["split"] for row in rows] == ["test"] * len(test) + ["test_paraphrase"] * len(worded)
    assert results["num_rows"] == len(test) and set(results["by_split"]) == {"test", "test_paraphrase"}
    assert results["by_split"]["test_paraphrase"]["difference"]["f1"] == 0, "this model says Yes to all words"
    assert "test_paraphrase - test" in capsys.readouterr().out
    run("--compare", "a", "a", "--num_resamples", 5, "--output_dir", "b")
    models = json.loads((tmp_path / "b" / "comparison.json").read_text())["models"]
    assert models[0]["n"] == len(test) and models[0]["by_split"].keys() == results["by_split"].keys()
    text = (tmp_path / "b" / "report.html").read_text()
    assert f"Of {len(test)} rows" in text and text.endswith("</body></html>\n")


def test_some_rows_and_cut_completions(place, run, tmp_path, capsys):
    arguments = ("--model", place / "yes", "--dataset", place / "data", "--max_rows", 20, "--max_new_tokens", 1)
    run(*arguments, "--name", "cut", "--cluster", "structure_id", "--num_resamples", 5)
    directory = tmp_path / "evaluation_results" / "cut"
    rows = read_predictions(directory)
    results = json.loads((directory / "metrics.json").read_text())
    inputs = load_split(str(place / "data"), "test")["input"]
    positions = [inputs.index(row["input"]) for row in rows]
    assert len(set(positions)) == 20 and positions == sorted(positions) and positions != list(range(20))
    # the answer is one token: cut before the end of the turn, it is an answer all the same
    assert all(row["prediction"] == 1 and not row["stopped"] for row in rows)
    assert results["truncated_rate"] == 1 and results["overall"]["unanswered_rate"] == 0
    assert results["num_clusters"] == len({row["structure_id"] for row in rows})
    assert "100.0% of rows have a completion cut at max_new_tokens" in capsys.readouterr().out


def test_a_majority_as_users_run_it(place, run, tmp_path, capsys):
    """A model that says Yes to all, but among other things where it is sampled at a high temperature."""
    output = tmp_path / "evaluation_results"
    arguments = ("--model", place / "yes", "--dataset", place / "data", "--num_resamples", 20)
    run(*arguments)
    run(*arguments, "--num_samples", 2, "--temperature", 0.02)
    several = (*arguments, "--num_samples", 5, "--temperature", 1.5)
    run(*several, "--output_dir", output / "five", "--cache_tokens", 1000)
    run(*several, "--output_dir", output / "other", "--seed", 1)
    names = ("yes", "yes-majority-2", "five", "other")
    greedy, sharp, five, other = (read_predictions(output / name) for name in names)
    twice = {"votes": [0, 2, 0], "completions": ["Answer: Yes"] * 2}
    assert [{**row, **twice, "means": dict.fromkeys(("pass@1", "pass@2"), row["label"])} for row in greedy] == sharp
    assert {row["prediction"] for row in five} == {1, None}
    assert [row["completions"] for row in five] != [row["completions"] for row in other]
    for row in five:
        told = majority([Sample(text) for text in row["completions"]])
        assert len(row["completions"]) == 5 and {**row, "stopped": True} == row | told
    of_greedy, of_sharp, of_five = (json.loads((output / name / "metrics.json").read_text()) for name in names[:3])
    assert (of_greedy["num_samples"], of_greedy["temperature"]) == (1, 0) and "agreement" not in of_greedy
    assert (of_sharp["num_samples"], of_sharp["temperature"], of_sharp["agreement"]) == (2, 0.02, 1)
    agreement = np.mean([max(no, yes) / 5 for no, yes, _ in (row["votes"] for row in five)])
    assert (of_five["num_samples"], of_five["temperature"]) == (5, 1.5) and of_five["agreement"] == agreement < 1
    assert of_five["truncated_rate"] == np.mean([not row["stopped"] for row in five])
    printed = capsys.readouterr().out
    assert f"5 samples a row at temperature 1.5: {agreement:.1%} of them give their row's more" in printed
    run("--compare", output / "yes", output / "five", "--num_resamples", 20)
    assert json.loads((output / "comparison" / "comparison.json").read_text())["num_rows"] == len(five)


def test_a_file_of_rows_scores_as_a_dataset_of_them_does(place, run, tmp_path, capsys):
    """With the form, instruction and structures that the model's training had; the rows need no label."""
    rows = load_split(str(place / "worded"), "test")
    shutil.copytree(place / "yes", tmp_path / "model")
    seen = sorted(set(rows["structure_id"]))[:2]
    known = {"target": "trace", "trace_style": "compact", "instruction": "", "structures": seen}
    (tmp_path / "model" / "training_data.json").write_text(json.dumps(known))
    write_jsonl(tmp_path / "rows.jsonl", [{"input": text} for text in rows["input"]])
    shared = ("--model", tmp_path / "model", "--num_resamples", 20)
    run(*shared, "--dataset", place / "worded", "--split", "test", "test_paraphrase", "--output_dir", tmp_path / "data")
    run(*shared, "--rows", tmp_path / "rows.jsonl", "--perturbations", "paraphrase", "--output_dir", tmp_path / "file")
    of_dataset, of_file = (read_predictions(tmp_path / name) for name in ("data", "file"))
    assert len(of_file) == len(of_dataset) == 2 * len(rows)
    for row, other in zip(of_dataset, of_file, strict=True):
        assert other.pop("means") == {"exact_trace": 0.0}, "an answer alone is no trace"
        assert other.pop("split") == row.pop("split").replace("test", "rows")
        assert row == other and row["seen"] == (row["structure_id"] in seen)
    run("--compare", tmp_path / "data", tmp_path / "file", "--num_resamples", 5)  # whose first splits have two names
    assert (tmp_path / "evaluation_results" / "comparison" / "report.html").is_file()
    results = json.loads((tmp_path / "file" / "metrics.json").read_text())
    assert {name: part["num_clusters"] for name, part in results["by_seen"].items()} == {
        name: len({row["premise_id"] for row in of_file if row["seen"] == (name == "seen")})
        for name in ("seen", "unseen")
    }
    assert "structures unseen" in capsys.readouterr().out


@pytest.mark.parametrize("labels", ["file", "given", "exact"])
def test_what_a_perfect_reasoner_scores_on_wrong_labels_is_said(place, run, tmp_path, capsys, labels):
    """Of a file's own labels, of a dataset of them, and of one with exact labels that knows the given ones."""
    rows = load_split(str(place / "data"), "test")
    given = [1 - label if k in (0, 5, 9) else label for k, label in enumerate(rows["label"])]
    records = [{"input": row["input"], "label": y, "split": "test"} for row, y in zip(rows, given, strict=True)]
    file = write_jsonl(tmp_path / "rows.jsonl", records)
    asked = ("--rows", file, "--labels", "given", "--dataset", "")
    if labels != "file":
        options = {"source": file, "labels": labels, "tokenizer": str(place / "yes"), "instruction": ""}
        write_dataset(*build(DataConfig(**options)), tmp_path / "data")
        asked = ("--dataset", tmp_path / "data")
    output = [tmp_path / name for name in ("one", "two")]
    for directory in output:
        run("--model", place / "yes", *asked, "--num_resamples", 5, "--output_dir", directory)
    perfect = metrics.classification_metrics(given, rows["label"])
    said = json.loads((output[0] / "metrics.json").read_text())["given_labels"]
    assert (said["f1"], said["accuracy"]) == pytest.approx((perfect["f1"], perfect["accuracy"]))
    assert said["wrong"] == 3 and said["scored"] == (labels != "exact")
    run("--compare", *output, "--num_resamples", 5)
    which = "the labels as given" if labels == "exact" else "these labels"
    line = f"a perfect reasoner has F1 {perfect['f1']:.3f} and accuracy {perfect['accuracy']:.3f} on {which}"
    assert capsys.readouterr().out.count(line) == 3


def test_rows_and_questions_are_asked_with_the_template_arguments_of_the_training(place, run, tmp_path):
    """Those that are given come first; a day that nobody has named is today for a question, and refused for rows."""
    shutil.copytree(place / "yes", tmp_path / "model")
    dated = "{{ strftime_now('%Y') + (lead or '') + '\n' }}" + tiny_tokenizer().chat_template
    (tmp_path / "model" / "chat_template.jinja").write_text(dated)
    text = load_split(str(place / "data"), "test")["input"][0]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"input": text}))
    given = {"model": str(tmp_path / "model"), "rows": str(tmp_path / "rows.jsonl")}
    tokenizer = load_tokenizer(given["model"])
    assert asking.load(given["model"]).ask(text) == "Answer: Yes"
    with pytest.raises(ValueError, match="add a day to chat_template_args, strftime_now"):
        evaluate.read_file_rows(evaluate.Config(**given), tokenizer)
    known = {"target": "answer", "chat_template_args": {"strftime_now": "2024-07-26", "lead": "!"}}
    (tmp_path / "model" / "training_data.json").write_text(json.dumps(known))
    other = {"chat_template_args": {"strftime_now": "1999-01-02"}}
    for options, start in (({}, "2024!\n"), (other, "1999\n")):
        rows, *_ = evaluate.read_file_rows(evaluate.Config(**given, **options), tokenizer)
        assert rows["prompt"][0].startswith(start)
    run("--model", given["model"], "--rows", given["rows"], "--num_resamples", 20, "--output_dir", tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "metrics.json").read_text())["chat_template_args"] == known["chat_template_args"]
    )
    with pytest.raises(ValueError, match="chat_template_args: they are of --rows"):
        evaluate.Config(model="tiny", chat_template_args={"lead": "!"})


def test_a_model_knows_what_its_training_and_what_that_began_from_had_seen(place, tmp_path):
    rows = load_split(str(place / "traces"), "train")
    write_training_data(tmp_path, str(place / "traces"), rows.select(range(0, 18)), "tiny")
    first = training_data(str(tmp_path))
    assert first["structures"] == sorted(set(rows["structure_id"][:18])) and first["target"] == "trace"
    (tmp_path / "more").mkdir()
    write_training_data(tmp_path / "more", str(place / "data"), rows, str(tmp_path / "checkpoint-3"))
    more = training_data(str(tmp_path / "more"))
    assert more["structures"] == sorted(set(rows["structure_id"])) and more["target"] == "answer"
    assert training_data("some/hub-name") == {}


def test_several_samples_have_a_temperature_and_one_is_greedy():
    assert evaluate.Config(model="tiny", num_samples=2).temperature == 1
    assert evaluate.Config(model="tiny").temperature == evaluate.Config(model="tiny", temperature=0.0).temperature == 0


def test_dtype_follows_the_gpu():
    dtypes = {None: torch.float32, (7, 5): torch.float16, (8, 0): torch.bfloat16, (8, 9): torch.bfloat16}
    assert {capability: evaluate.inference_dtype("auto", capability) for capability in dtypes} == dtypes
    assert evaluate.inference_dtype("float16", (8, 9)) == torch.float16
    with pytest.raises(ValueError, match="use float16"):
        evaluate.inference_dtype("bfloat16", (7, 5))


# --- the probabilities of the two answers


@pytest.fixture(scope="module")
def rows(place) -> Dataset:
    """Rows of several premises, mixed so that grouping by premise reorders them."""
    data = load_split(str(place / "data"), "test")
    return data.select(random.Random(0).sample(range(len(data)), 24))


@pytest.fixture(scope="module")
def candidates(place, rows) -> list[tuple[str, str]]:
    return answer_candidates(str(place / "data"), rows, "mode score", "use --mode generate")


def tokens_of(tokenizer, rows, candidates) -> tuple[list, list]:
    """Prompts and (No, Yes) of every row as `score_answers` takes them."""
    answers = [tuple(encode(tokenizer, text) for text in pair) for pair in candidates]
    return [encode(tokenizer, text) for text in rows["prompt"]], answers


@torch.no_grad()
def plain_logp(model, tokenizer, prompt: str, answer: str) -> float:
    """Log-probability of an answer after its prompt, from one sequence and the model's own mask."""
    before, tokens = encode(tokenizer, prompt), encode(tokenizer, answer)
    logps = model(torch.tensor([before + tokens])).logits[0].double().log_softmax(-1)
    return sum(float(logps[len(before) + k - 1, token]) for k, token in enumerate(tokens))


def test_scores_equal_a_plain_forward_pass_at_any_budget(family, candidates, rows, tokenizer):
    model = build_model(family, vocab_size=len(tokenizer)).train()
    model.config.max_position_embeddings = 512
    encoded = tokens_of(tokenizer, rows, candidates)
    first, *others = (
        score_answers(Accelerator(cpu=True), model, rows, *encoded, micro_batch_tokens=budget)
        for budget in (10_000, 400, 1)
    )
    assert model.training, "training goes on in the mode it was in"
    model.eval()
    for row, result, (no, yes) in zip(rows, first, candidates, strict=True):
        kept = ("input", "label", "premise_id", "structure_id", "num_variables", "template")
        assert {key: row[key] for key in kept} == {key: result[key] for key in kept}
        logps = [plain_logp(model, tokenizer, row["prompt"], answer) for answer in (no, yes)]
        assert [result["logp_no"], result["logp_yes"]] == pytest.approx(logps, abs=1e-4)
        assert result["probability"] == pytest.approx(1 / (1 + np.exp(logps[0] - logps[1])), abs=1e-4)
        assert result["prediction"] == (result["probability"] > 0.5)
    assert np.std([result["probability"] for result in first]) > 0.01, "the model must not be constant"
    for other in others:
        for key in ("logp_no", "logp_yes", "probability"):
            assert [r[key] for r in other] == pytest.approx([r[key] for r in first], abs=1e-5)


def test_scores_do_not_depend_on_the_other_rows(candidates, rows, tokenizer):
    model = build_model("phi3", vocab_size=len(tokenizer))
    model.config.max_position_embeddings = 512
    options = {"micro_batch_tokens": 1000, "threshold": 0.3}
    prompts, answers = tokens_of(tokenizer, rows, candidates)
    together = score_answers(Accelerator(cpu=True), model, rows, prompts, answers, **options)
    for k in (3, 17):
        (alone,) = score_answers(Accelerator(cpu=True), model, rows.select([k]), [prompts[k]], answers[:1], **options)
        assert alone["logp_yes"] == pytest.approx(together[k]["logp_yes"], abs=1e-5)
        assert alone["input"] == together[k]["input"]
    assert all(result["prediction"] == (result["probability"] > 0.3) for result in together)


def test_greedy_answers_are_the_more_probable_ones(candidates, rows, tokenizer):
    """A model that says what the prompt's last token names, and gives the two answers nearly all of its probability."""
    no, yes = (encode(tokenizer, text) for text in candidates[0])
    markers = [encode(tokenizer, text)[-1] for text in ("#", "?")]
    assert len({*markers, *no, *yes}) == 5, "a repeated token would have two successors"
    model = successor_model({markers[0]: no[0], markers[1]: yes[0], no[0]: no[1], yes[0]: yes[1]}, 2.0).eval()
    model.set_attn_implementation(ATTENTION)
    says = [k % 3 == 0 for k in range(len(rows))]
    prompts = [prompt + "#?"[yes] for prompt, yes in zip(rows["prompt"], says, strict=True)]
    rows = rows.remove_columns("prompt").add_column("prompt", prompts)
    stop_ids = stop_token_ids(tokenizer, model)
    prompts, answers = tokens_of(tokenizer, rows, candidates)
    greedy = predict(Accelerator(cpu=True), Sampler(model, tokenizer, stop_ids, 4, 4000), rows, prompts)
    scored = score_answers(Accelerator(cpu=True), model, rows, prompts, answers, micro_batch_tokens=4000)
    assert [row["prediction"] for row in greedy] == [row["prediction"] for row in scored] == says
    assert 0 < sum(says) < len(says)
    assert answer_figures(scored)["answer_mass"] > 0.95


def test_scoring_as_users_run_it(place, run, tmp_path, capsys):
    arguments = ("--model", place / "yes", "--dataset", place / "data", "--num_resamples", 50)
    run(*arguments, "--mode", "score", "--threshold", 0.6, "--micro_batch_tokens", 700)
    run(*arguments)
    directory = tmp_path / "evaluation_results" / "yes-score"
    results, rows = json.loads((directory / "metrics.json").read_text()), read_predictions(directory)
    assert [row["input"] for row in rows] == load_split(str(place / "data"), "test")["input"]
    assert all(row["prediction"] == 1 and row["probability"] > 0.6 for row in rows)
    assert (results["mode"], results["threshold"]) == ("score", 0.6) and "max_new_tokens" not in results
    recomputed = metrics.report(rows, Bootstrap("premise_id", 50, 0))
    assert {key: results[key] for key in recomputed} == json.loads(json.dumps(recomputed))
    assert results["answer_mass"] == pytest.approx(
        np.mean([np.exp(r["logp_yes"]) + np.exp(r["logp_no"]) for r in rows])
    )
    assert results["overall"]["auroc"] == pytest.approx(0.5, abs=0.2), "every prompt ends in the same token"
    assert all(is_png(directory / name) for name in ("confusion_matrix.png", "scores.png", "calibration.png"))
    printed = capsys.readouterr().out
    assert "AUROC" in printed and f"calibration: mean probability of Yes {rows[0]['probability']:.1%}" in printed
    run("--compare", tmp_path / "evaluation_results" / "yes", directory, "--num_resamples", 20)
    pair = json.loads((tmp_path / "evaluation_results" / "comparison" / "comparison.json").read_text())["pairs"][0]
    assert pair["difference"]["accuracy"] == 0 and "auroc" not in pair["difference"]


# --- errors, all of them before a model is loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "model: name a directory"),
        (("--model", "models/nothing"), "model models/nothing: no such directory"),
        (("--model", "{place}/data"), "no safetensors weights in it"),
        (("--model", "{place}/yes", "--dataset", "nowhere"), "dataset nowhere: not a dataset"),
        (("--model", "{place}/yes", "--split", "dev"), "split dev: dataset .* has train, validation, test"),
        (("--model", "{place}/yes", "--output_dir", "{place}/yes"), "output_dir .*: is not empty"),
        (("--model", "{place}/yes", "--dtype", "int8"), "dtype: 'int8' is not one of"),
        (("--model", "{place}/yes", "--cluster", "row"), "cluster: 'row' is not one of premise_id, structure_id"),
        (("--model", "{place}/yes", "--max_rows", "-1"), "max_rows: must be 0 or more"),
        (("--model", "{place}/yes", "--mode", "guess"), "mode: 'guess' is not one of generate, score"),
        (("--model", "{place}/yes", "--threshold", "0.4"), "threshold: mode generate reads answers, .* --mode score"),
        (("--model", "{place}/yes", "--mode", "score", "--threshold", "1"), "threshold: a probability between 0 and 1"),
        (("--model", "{place}/yes", "--mode", "score", "--micro_batch_tokens", "0"), "micro_batch_tokens: must be at"),
        (("--model", "{place}/yes", "--num_samples", "0"), "num_samples: must be at least 1, got 0"),
        (
            ("--model", "{place}/yes", "--mode", "score", "--num_samples", "3"),
            "num_samples: mode score samples nothing; use --mode generate",
        ),
        (("--model", "{place}/yes", "--temperature", "0.7"), "temperature: a single answer is greedy; add --num_sam"),
        (
            ("--model", "{place}/yes", "--num_samples", "3", "--temperature", "0"),
            "temperature: no sampling at 0.0; give more, or leave num_samples out",
        ),
        (
            ("--model", "{place}/yes", "--mode", "score", "--dataset", "{place}/traces"),
            "mode score: dataset .* has target trace, not answers alone; use --mode generate",
        ),
        (("--model", "{place}/yes", "--rows", "a.csv", "--dataset", "b"), "rows: a file takes the place of dataset"),
        (("--model", "{place}/yes", "--rows", "a.csv", "--mode", "score", "--dataset", ""), "rows: mode score needs a"),
        (
            ("--model", "{place}/yes", "--labels", "given"),
            "labels, perturbations, skip_unparsable, chat_template_args: they are of --rows",
        ),
        (("--model", "{place}/yes", "--rows", "a.csv", "--dataset", ""), "rows: a.csv: no such file"),
        (("--model", "{place}/yes", "--compare", "a", "b"), "model: compare reads earlier runs and runs no model"),
        (("--compare", "a", "b", "--max_rows", "9", "--rows", "c"), "max_rows, rows: compare reads earlier runs"),
        (("--compare", "a", "b", "--split", "test", "train"), "split: a comparison is of one; write one for each"),
        (
            ("--model", "{place}/yes", "--rows", "a.csv", "--dataset", "", "--split", "test"),
            "split: a file of rows has",
        ),
        (("--model", "{place}/yes", "--seed", "-1"), "seed: must be between 0 and"),
        (("--compare", "a"), "compare: name at least two"),
        (("--compare", "a", "b"), "compare: a has no metrics.json; write it with python evaluate.py .* --output_dir a"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(place, run, monkeypatch, arguments, message):
    monkeypatch.setattr(evaluate, "load_for_inference", lambda *_: pytest.fail("a model was loaded"))
    arguments = [argument.format(place=place) for argument in arguments]
    if "--model" in arguments and "--dataset" not in arguments:
        arguments += ["--dataset", str(place / "data")]
    with pytest.raises(ValueError, match=message):
        run(*arguments)


def test_a_dataset_of_another_tokenizer_is_refused(place, run, tmp_path):
    dataset = load_from_disk(str(place / "data"))
    other = dataset.map(lambda row: {"response": row["response"].replace("<|end|>", "<|im_end|>")})
    other.save_to_disk(str(tmp_path / "other"))
    shutil.copy(place / "data" / "report.json", tmp_path / "other")
    for mode in ("generate", "score"):
        with pytest.raises(ValueError, match="responses of the dataset end in token"):
            run("--model", place / "yes", "--dataset", tmp_path / "other", "--mode", mode)


def test_an_unfinished_run_names_its_checkpoint(place, run, tmp_path):
    (tmp_path / "models" / "sft" / "checkpoint-20").mkdir(parents=True)
    with pytest.raises(ValueError, match="name its checkpoint models/sft/checkpoint-20"):
        run("--model", "models/sft", "--dataset", place / "data")


def test_an_adapter_without_its_base(place, run, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "models/gone"}')
    with pytest.raises(ValueError, match="model models/gone: no such directory"):
        run("--model", "adapter", "--dataset", place / "data")


def test_overwriting_spares_a_models_checkpoints(place, run, tmp_path):
    (tmp_path / "sft" / "checkpoint-20").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a model's checkpoints"):
        run("--model", place / "yes", "--dataset", place / "data", "--output_dir", "sft", "--overwrite", "true")
    assert (tmp_path / "sft" / "checkpoint-20").is_dir()


# --- comparison


def test_comparison_pairs_models_with_the_first_and_the_previous(run, tmp_path, capsys):
    directories = [write_predictions(tmp_path / n, a) for n, a in (("base", 0.5), ("sft", 0.7), ("grpo", 0.9))]
    run("--compare", *directories, "--num_resamples", 40, "--seed", 3)
    output = tmp_path / "evaluation_results" / "comparison"
    comparison = json.loads((output / "comparison.json").read_text())
    assert [pair["names"] for pair in comparison["pairs"]] == [["base", "sft"], ["base", "grpo"], ["sft", "grpo"]]
    rows = {directory.name: read_predictions(directory) for directory in directories}
    for pair in comparison["pairs"]:
        a, b = (rows[name] for name in pair["names"])
        expected = metrics.compare(a, b, Bootstrap("premise_id", 40, 3))
        assert {key: pair[key] for key in expected} == json.loads(json.dumps(expected))
    assert [model["n"] for model in comparison["models"]] == [120] * 3
    assert comparison["models"][2]["intervals"] == metrics.clustered_bootstrap(
        rows["grpo"], Bootstrap("premise_id", 40, 3)
    )
    assert is_png(output / "comparison.png")
    printed = capsys.readouterr().out
    assert "majority answer" in printed and "always Yes" in printed and printed.isascii()
    shown = next(line for line in printed.split("\n") if line.startswith("grpo - base"))
    assert f"{comparison['pairs'][1]['difference']['f1']:+.3f} [" in shown
    assert shown.endswith(f"{comparison['pairs'][1]['mcnemar']['p_value']:.2g}")
    relations = printed.split("difference of F1")[1].splitlines()[:4]
    of_each = comparison["pairs"][1]["by_relation"]
    assert relations[0].split() == sorted(of_each) and len(of_each) > 1
    assert all(f"{of_each[name]['difference']['f1']:+.3f} [" in relations[2] for name in of_each)


def test_scored_models_are_compared_by_their_probabilities(run, tmp_path, capsys):
    answers = random.Random(0)
    directories = [tmp_path / "sft", tmp_path / "grpo"]
    for directory, accuracy in zip(directories, (0.6, 0.9), strict=True):
        write_predictions(directory, accuracy)
        rows = [row | {"prediction": row["prediction"] or 0} for row in read_predictions(directory)]
        rows = [row | {"probability": (row["prediction"] + answers.random()) / 2} for row in rows]
        write_jsonl(directory / "predictions.jsonl", rows)
    run("--compare", *directories, "--num_resamples", 40)
    comparison = json.loads((tmp_path / "evaluation_results" / "comparison" / "comparison.json").read_text())
    a, b = (model["auroc"] for model in comparison["models"])
    (pair,) = comparison["pairs"]
    low, high = pair["intervals"]["auroc"]
    assert low < pair["difference"]["auroc"] == b - a < high
    table = capsys.readouterr().out.split("AUROC")[1]
    assert f"{b - a:+.3f} [{low:+.3f}, {high:+.3f}]" in table and "Brier" in table
