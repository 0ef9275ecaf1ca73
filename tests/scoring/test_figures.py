"""The figures of an evaluation, read back from their artists."""

from made_up import make_predictions

from scoring import figures, metrics
from scoring.resampling import Bootstrap

MODELS = (("a", 0.7), ("b", 1.0))


def test_scores_are_drawn_by_group_and_model():
    scores = {
        name: metrics.report(make_predictions(name, accuracy), Bootstrap(num_resamples=5)) for name, accuracy in MODELS
    }
    names = {name: metrics.grouped_summaries(report) for name, report in scores.items()}
    del names["b"][next(label for label in names["b"] if label.startswith("N = 3"))]
    figure = figures.score_figure(names, 0.95, "title")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == list(names["b"]), "groups that a model lacks are left out"
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["95% interval, b"].get_xdata()) == [names["b"][label]["f1"] for label in labels]
    assert {"GPT-4 (published)", "always Yes"} <= {c.get_label() for c in figure.axes[0].collections}


def test_the_reliability_diagram():
    bins = [
        {"low": 0.0, "high": 0.1, "n": 90, "mean_probability": 0.04, "frequency": 0.1, "interval": [0.05, 0.2]},
        {"low": 0.9, "high": 1.0, "n": 10, "mean_probability": 0.95, "frequency": 0.5, "interval": [0.2, 0.7]},
    ]
    top, bottom = figures.calibration_figure({"calibration": bins, "confidence": 0.95}, "sft").axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in top.lines}
    assert lines["calibrated"] == [[0, 0], [1, 1]]
    assert lines["model, 95% intervals"] == [[0.04, 0.1], [0.95, 0.5]]
    assert [bar.get_height() for bar in bottom.patches] == [90, 10]
    assert [text.get_text() for text in bottom.texts] == ["90", "10"]
