"""What evaluate.py writes is read back, whatever a model said; directories that cannot be compared are named."""

import pytest
from made_up import make_predictions, write_predictions

from scoring import metrics, results
from scoring.resampling import Bootstrap

FEW = Bootstrap(num_resamples=30)


def test_names_of_models():
    names = {"models/sft": "sft", "models/sft/checkpoint-20": "sft-checkpoint-20", "org/Phi-3.5": "Phi-3.5"}
    assert {model: results.model_name(model) for model in names} == names


def test_written_predictions_are_read_back_whatever_the_model_said(tmp_path):
    rows = make_predictions("sft", 0.7)
    rows[0]["completion"] = 'No\n\r\u2028\x85\x00"é\ufffd'
    scores = {"name": "_sft $\\x$", "truncated_rate": 0.0, **metrics.report(rows, FEW)}
    results.write_results(rows, scores, tmp_path)
    assert results.read_results(str(tmp_path)) == (scores, rows)


def test_results_are_whole_or_not_there(tmp_path, monkeypatch):
    rows = make_predictions("sft", 0.7)
    scores = {"name": "sft", "truncated_rate": 0.0, **metrics.report(rows, FEW)}
    results.write_results(rows, scores, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} < set(results.WRITTEN)
    (tmp_path / "notes.txt").touch()
    results.clear_results(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    monkeypatch.setattr(results, "page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results.write_results(rows, scores, tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def test_a_comparison_is_of_the_split_that_is_named(tmp_path):
    directories = []
    for name, right in (("a", 0.5), ("b", 1.0)):
        same = [{**row, "split": "test"} for row in make_predictions("sft", 0.7)]
        other = [{**row, "split": "test_recast"} for row in make_predictions(name, right)]
        directories.append(str(write_predictions(tmp_path / name, 0.7, rows=same + other)))
    gains = [
        results.compare_results(directories, split, FEW)[0]["pairs"][0]["difference"]["accuracy"]
        for split in (None, "test", "test_recast")
    ]
    assert gains[0] == gains[1] == 0 < gains[2]
    with pytest.raises(
        ValueError, match=r"split validation: .*a has no answers to it, but to \['test', 'test_recast'\]"
    ):
        results.compare_results(directories, "validation", FEW)


def test_a_model_does_not_differ_from_itself(tmp_path):
    directory = write_predictions(tmp_path / "sft", 0.7)
    comparison, _ = results.compare_results([str(directory)] * 2, None, FEW)
    pair = comparison["pairs"][0]
    assert set(pair["difference"].values()) == {0.0} and pair["mcnemar"]["p_value"] == 1
    assert all(interval == [0, 0] for interval in pair["intervals"].values())


def test_models_of_one_name_are_told_apart(tmp_path):
    directories = [str(write_predictions(tmp_path / n, 0.7, name="sft")) for n in ("a", "b")]
    comparison, _ = results.compare_results(directories, None, FEW)
    assert [model["name"] for model in comparison["models"]] == [f"sft ({directory})" for directory in directories]


def test_comparing_other_rows_names_the_directories(tmp_path):
    a, b = write_predictions(tmp_path / "a", 0.7), write_predictions(tmp_path / "b", 0.7, labels_seed=1)
    with pytest.raises(ValueError, match=f"compare: {a} and {b}: the labels differ"):
        results.compare_results([str(a), str(b)], None, FEW)


@pytest.mark.parametrize("text", ['{"input": "a", "label": 1}', '{"input": "a", "lab', "[1, 2]", "", '{"label": 2}'])
def test_damaged_predictions(tmp_path, text):
    directory = write_predictions(tmp_path / "a", 0.7)
    (directory / "predictions.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"compare: {directory} .*; write it with .* --overwrite true"):
        results.read_results(str(directory))
