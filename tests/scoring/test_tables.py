"""Tables of scores: the right figure under the right name, in characters that any terminal has."""

from scoring.metrics import baselines, report
from scoring.resampling import Bootstrap
from scoring.tables import format_probability_table, format_table, result_lines


def make_rows(labels: list[int], predictions: list[int | None]) -> list[dict]:
    """Prediction rows of one premise."""
    places = {"premise_id": "p", "structure_id": "s", "num_variables": 4, "template": "parent"}
    return [{"label": y, "prediction": p, **places} for y, p in zip(labels, predictions, strict=True)]


def test_format_table():
    rows = make_rows([1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0, None])
    text = format_table([("tuned", report(rows)["overall"]), ("majority", baselines([0, 0, 1])["majority"])])
    header, tuned, majority = text.splitlines()
    # tp 3, fn 1, fp 2, tn 2
    assert tuned.split() == "tuned 0.667 [0.667, 0.667] 0.625 [0.625, 0.625] 0.625 0.258 12.5%".split()
    assert majority.split() == "majority 0.000 0.500 0.667 0.000 0.0%".split()
    for name, value in (("F1", "0.667"), ("accuracy", "0.625 "), ("MCC", "0.258"), ("unanswered", "12.5%")):
        assert tuned[header.index(name) :].startswith(value)


def test_scores_that_labels_of_one_class_do_not_have():
    rows = [{**row, "probability": 0.1 * k} for k, row in enumerate(make_rows([0] * 6, [0] * 6))]
    overall = report(rows, Bootstrap(num_resamples=20))["overall"]
    line = format_probability_table([("model", overall)]).splitlines()[1]
    assert line.split()[:3] == ["model", "none", "none"]


def test_any_terminal_can_show_the_scores():
    rows = make_rows([1, 1, 0, 0], [1, 0, 0, None])
    rows = [{**row, "split": split} for split in ("test", "test_paraphrase") for row in rows]
    text = "\n".join(result_lines({"name": "sft", **report(rows, Bootstrap(num_resamples=5))}))
    assert "test_paraphrase - test" in text and text.isascii()
