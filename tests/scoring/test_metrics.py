"""Metrics against hand-computed values, scikit-learn and known bootstrap distributions."""

import json
import warnings

import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from scoring.metrics import (
    SCORES,
    baselines,
    classification_metrics,
    clustered_bootstrap,
    compare,
    compare_relations,
    mean_scores,
    report,
)
from scoring.probabilities import (
    PROBABILITY_SCORES,
    calibration_bins,
    constant_probability,
    probability_metrics,
    weighted_probability_scores,
)
from scoring.resampling import Bootstrap
from scoring.tables import means_table

TEMPLATES = ("parent", "child", "non-parent ancestor", "non-child descendant", "has_collider", "has_confounder")


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def resampled(times: int) -> Bootstrap:
    return Bootstrap(num_resamples=times)


def make_rows(labels, predictions, clusters=None):
    """Prediction rows; without `clusters` every row is a cluster of its own."""
    clusters = range(len(labels)) if clusters is None else clusters
    return [
        {
            "input": f"row {i}",
            "label": label,
            "prediction": prediction,
            "premise_id": f"p{c}",
            "structure_id": f"s{c}",
            "num_variables": 4 + i % 2,
            "template": TEMPLATES[i % 6],
        }
        for i, (label, prediction, c) in enumerate(zip(labels, predictions, clusters, strict=True))
    ]


def random_pair(n, seed=0, answered=True):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int).tolist()
    choices = [0, 1] if answered else [0, 1, None]
    predictions = [label if rng.random() < 0.6 else choices[rng.integers(len(choices))] for label in labels]
    return labels, predictions


def make_scored_rows(labels, probabilities, clusters=None):
    rows = make_rows(labels, [int(p > 0.5) for p in probabilities], clusters)
    return [row | {"probability": float(p)} for row, p in zip(rows, probabilities, strict=True)]


def random_scores(n, seed=0):
    """Labels and probabilities that know something of them, many equal, 0 and 1 among them."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    probabilities = np.clip(np.round(0.3 * labels + rng.normal(0.4, 0.3, n), 2), 0, 1)
    return labels.tolist(), probabilities.tolist()


def width(interval):
    return interval[1] - interval[0]


# ---- metrics


def test_hand_computed():
    # tp 3, fn 1, fp 2, tn 4
    labels = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    predictions = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    metrics = classification_metrics(labels, predictions)
    assert metrics["confusion_matrix"] == [[4, 2], [1, 3]]
    assert metrics["n"] == 10
    assert metrics["accuracy"] == pytest.approx(0.7)
    assert metrics["precision"] == pytest.approx(0.6)
    assert metrics["recall"] == pytest.approx(0.75)
    assert metrics["f1"] == pytest.approx(2 / 3)
    assert metrics["balanced_accuracy"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert metrics["mcc"] == pytest.approx((3 * 4 - 2 * 1) / np.sqrt(5 * 4 * 6 * 5))
    assert metrics["unanswered_rate"] == 0
    assert metrics["predicted_yes_rate"] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learn(seed):
    labels, predictions = random_pair(300, seed)
    ours = classification_metrics(labels, predictions)
    assert ours["f1"] == pytest.approx(sk.f1_score(labels, predictions))
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions))
    assert ours["precision"] == pytest.approx(sk.precision_score(labels, predictions))
    assert ours["recall"] == pytest.approx(sk.recall_score(labels, predictions))
    assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predictions))
    assert ours["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, predictions))
    assert ours["confusion_matrix"] == sk.confusion_matrix(labels, predictions).tolist()


def test_unanswered_rows_are_wrong():
    metrics = classification_metrics([1, 1, 0, 0], [1, None, 0, None])
    assert metrics["confusion_matrix"] == [[1, 1], [1, 1]]
    assert metrics["accuracy"] == 0.5
    assert metrics["unanswered_rate"] == 0.5
    assert metrics["predicted_yes_rate"] == 0.25  # the unanswered row counted as Yes was not answered Yes
    silent = classification_metrics([1, 0, 0], [None, None, None])
    assert silent["accuracy"] == silent["f1"] == silent["balanced_accuracy"] == silent["predicted_yes_rate"] == 0
    assert silent["mcc"] == -1


def test_booleans_and_numpy_values_are_accepted():
    expected = classification_metrics([1, 0, 0], [1, 1, 0])
    assert classification_metrics(np.array([1, 0, 0]), np.array([1, 1, 0])) == expected
    assert classification_metrics([1, 0, 0], [True, True, False]) == expected


@pytest.mark.parametrize(
    "labels, predictions, expected",
    [
        ([0, 0, 0], [0, 0, 0], {"accuracy": 1, "f1": 0, "recall": 0, "balanced_accuracy": 0.5, "mcc": 0}),
        ([1, 1, 1], [1, 1, 1], {"accuracy": 1, "f1": 1, "recall": 1, "balanced_accuracy": 0.5, "mcc": 0}),
        ([0, 1, 0], [0, 0, 0], {"accuracy": 2 / 3, "f1": 0, "precision": 0, "recall": 0, "mcc": 0}),
        ([0, 1, 0], [0, 1, 0], {"accuracy": 1, "f1": 1, "balanced_accuracy": 1, "mcc": 1}),
        ([0, 1, 0], [1, 0, 1], {"accuracy": 0, "f1": 0, "balanced_accuracy": 0, "mcc": -1}),
    ],
)
def test_zero_denominators_and_extremes(labels, predictions, expected):
    metrics = classification_metrics(labels, predictions)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_baselines():
    labels = [0] * 84 + [1] * 16
    both = baselines(labels)
    assert both["majority"]["accuracy"] == pytest.approx(0.84)
    assert both["majority"]["f1"] == both["majority"]["mcc"] == 0
    assert both["always_yes"]["f1"] == pytest.approx(2 * 16 / (2 * 16 + 84))
    assert both["always_yes"]["balanced_accuracy"] == 0.5
    assert baselines([1, 1, 0])["majority"]["predicted_yes_rate"] == 1
    assert baselines([1, 0])["majority"]["predicted_yes_rate"] == 0


@pytest.mark.parametrize(
    "labels, predictions, message",
    [
        ([], [], "no rows"),
        ([0, 1], [0], "2 labels but 1 predictions"),
        ([0, 2], [0, 0], "row 1: label is 2"),
        ([0, 1], [0, "Yes"], "row 1: prediction is 'Yes'"),
        ([0, 1], [float("nan"), 0], "row 0: prediction is nan"),
    ],
)
def test_bad_rows(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, predictions)


# ---- probabilities


def test_hand_computed_probability_scores():
    scores = probability_metrics([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    assert scores["auroc"] == pytest.approx(3 / 4)  # of the four pairs only 0.4 over 0.35 is the wrong way round
    assert scores["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["brier"] == pytest.approx((0.1**2 + 0.4**2 + 0.65**2 + 0.2**2) / 4)
    assert scores["log_loss"] == pytest.approx(-(np.log([0.9, 0.6, 0.35, 0.8]).sum()) / 4)
    # bins (0, 0.1]: 1 row; (0.3, 0.4]: 0.4 and 0.35, one of them Yes; (0.7, 0.8]: 1 row
    assert scores["ece"] == pytest.approx((1 * 0.1 + 2 * (1 / 2 - 0.75 / 2) + 1 * 0.2) / 4)
    assert "note" not in scores


def test_a_constant_probability_ranks_nothing_and_is_calibrated():
    labels = [1] * 2 + [0] * 8
    scores = constant_probability(labels)
    assert scores["auroc"] == 0.5 and scores["average_precision"] == pytest.approx(0.2)
    assert scores["brier"] == pytest.approx(0.2 * 0.8) and scores["ece"] == pytest.approx(0)
    assert scores["log_loss"] == pytest.approx(-(0.2 * np.log(0.2) + 0.8 * np.log(0.8)))


def test_certainty_that_is_wrong_costs_a_finite_loss():
    scores = probability_metrics([0, 1], [1.0, 1.0])
    assert scores["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps) / 2)
    assert scores["brier"] == scores["auroc"] == scores["ece"] == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_resampled_scores_equal_scikit_learn_with_the_weights(seed):
    """The array formulas of the intervals, on weights among which are zeros, against scikit-learn on each resample."""
    labels, probabilities = (np.array(column, dtype=float) for column in random_scores(80, seed))
    weights = np.random.default_rng(seed).integers(0, 4, (5, 80)).astype(float)
    weights[0] = 1
    weights[1, probabilities > 0.9] = 0  # the highest ranks hold nothing
    ours = weighted_probability_scores(weights, labels, probabilities)
    for r, w in enumerate(weights):
        assert ours["auroc"][r] == pytest.approx(sk.roc_auc_score(labels, probabilities, sample_weight=w))
        expected = sk.average_precision_score(labels, probabilities, sample_weight=w)
        assert ours["average_precision"][r] == pytest.approx(expected)
        assert ours["brier"][r] == pytest.approx(sk.brier_score_loss(labels, probabilities, sample_weight=w))
        assert ours["log_loss"][r] == pytest.approx(sk.log_loss(labels, probabilities, sample_weight=w))
        repeated = np.repeat(np.arange(80), w.astype(int))
        alone = probability_metrics(labels[repeated], probabilities[repeated])
        assert ours["ece"][r] == pytest.approx(alone["ece"])


@pytest.mark.parametrize("seed", range(4))
def test_calibration_equals_scikit_learn(seed):
    labels, probabilities = random_scores(200, seed)
    bins = calibration_bins(make_scored_rows(labels, probabilities, [i // 5 for i in range(200)]), resampled(100))
    frequencies, means = calibration_curve(labels, probabilities, n_bins=10, strategy="uniform")
    assert [part["frequency"] for part in bins] == pytest.approx(frequencies)
    assert [part["mean_probability"] for part in bins] == pytest.approx(means)
    assert sum(part["n"] for part in bins) == 200
    for part in bins:
        assert part["low"] <= part["mean_probability"] <= part["high"]
        assert part["interval"][0] <= part["frequency"] <= part["interval"][1]
    gaps = sum(part["n"] * abs(part["frequency"] - part["mean_probability"]) for part in bins) / 200
    assert probability_metrics(labels, probabilities)["ece"] == pytest.approx(gaps)


def test_probability_intervals_come_from_the_same_resamples():
    """scikit-learn on the resamples themselves, drawn again as the other scores' are."""
    labels, probabilities = random_scores(120, 5)
    rows = make_scored_rows(labels, probabilities, [i // 6 for i in range(120)])
    intervals = clustered_bootstrap(rows, Bootstrap(num_resamples=60, seed=7))
    draws = np.random.default_rng(7).multinomial(20, np.full(20, 1 / 20), size=60)
    weights = [np.repeat(draw, 6) for draw in draws]
    aucs = [sk.roc_auc_score(labels, probabilities, sample_weight=w) for w in weights]
    assert intervals["auroc"] == pytest.approx(np.quantile(aucs, [0.025, 0.975]))
    right = [np.average([row["prediction"] == row["label"] for row in rows], weights=w) for w in weights]
    assert intervals["accuracy"] == pytest.approx(np.quantile(right, [0.025, 0.975]))
    assert set(intervals) == {*SCORES, *PROBABILITY_SCORES}


def test_chunks_and_copies_of_rows_change_no_probability_interval(monkeypatch):
    labels, probabilities = random_scores(90, 2)
    clusters = [i // 3 for i in range(90)]
    once = clustered_bootstrap(make_scored_rows(labels, probabilities, clusters), resampled(50))
    monkeypatch.setattr("scoring.resampling._WEIGHTS_AT_ONCE", 7 * 90)
    twice = clustered_bootstrap(make_scored_rows(labels * 2, probabilities * 2, clusters * 2), resampled(50))
    for name in once:
        assert twice[name] == pytest.approx(once[name])


def test_one_class_only_has_no_auroc():
    rows = make_scored_rows([0] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    overall = report(rows, resampled(20))["overall"]
    assert overall["auroc"] is overall["average_precision"] is overall["intervals"]["auroc"] is None
    assert "one class only" in overall["note"] and overall["brier"] > 0 and width(overall["intervals"]["brier"]) > 0
    assert compare(rows, rows, resampled(20))["intervals"].keys().isdisjoint({"auroc", "average_precision"})


def test_resamples_of_one_class_are_left_out():
    # Two clusters, one of each class: half of the resamples hold one class only; in the others the ranking is right.
    rows = make_scored_rows([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert clustered_bootstrap(rows, resampled(40))["auroc"] == [1.0, 1.0]


def test_a_resample_without_what_a_score_needs_is_left_out():
    """Eight structures, two of them with a Yes, and no mistake: no resample has a lower score, some have none."""
    labels = [int(k // 5 in (2, 6) and k % 5 == 0) for k in range(40)]
    rows = make_rows(labels, labels, [k // 5 for k in range(40)])
    assert set(map(tuple, clustered_bootstrap(rows, resampled(200)).values())) == {(1.0, 1.0)}
    never = make_rows(labels, [0] * 40, [k // 5 for k in range(40)])
    found = compare(never, rows, resampled(200))
    assert found["intervals"]["f1"] == [1.0, 1.0] and found["intervals"]["mcc"] == [1.0, 1.0]
    assert found["intervals"]["balanced_accuracy"] == [0.5, 0.5]
    no_yes = make_rows([0] * 8, [0] * 8, range(8))
    assert clustered_bootstrap(no_yes, resampled(20))["f1"] == [0.0, 0.0], "of data without a Yes F1 is 0"


def test_probabilities_that_are_not():
    rows = make_scored_rows([0, 1], [0.1, 0.9])
    with pytest.raises(ValueError, match="1 of 2 rows have a probability"):
        report([rows[0], {**rows[1], "probability": None}])
    with pytest.raises(ValueError, match="row 1: probability is 1.5"):
        report([rows[0], {**rows[1], "probability": 1.5}])
    with pytest.raises(ValueError, match="row 0: probability is nan"):
        probability_metrics([0, 1], [float("nan"), 0.5])
    with pytest.raises(ValueError, match="2 labels but 1 probabilities"):
        probability_metrics([0, 1], [0.5])
    with pytest.raises(ValueError, match="no rows"):
        probability_metrics([], [])


def test_a_report_of_scored_rows():
    labels, probabilities = random_scores(240)
    rows = make_scored_rows(labels, probabilities, [i // 12 for i in range(240)])
    result = report(rows, resampled(50))
    for group in (result["overall"], *result["by_num_variables"].values(), *result["by_relation"].values()):
        assert set(group["intervals"]) == {*SCORES, *PROBABILITY_SCORES}
    for name in PROBABILITY_SCORES:
        low, high = result["overall"]["intervals"][name]
        assert low < result["overall"][name] < high or name == "ece"  # whose resamples lie higher: noise adds to it
    assert result["calibration"] == calibration_bins(rows, resampled(50))
    assert result["constant_probability"] == constant_probability(labels)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    unscored = report([{k: v for k, v in row.items() if k != "probability"} for row in rows], resampled(50))
    assert unscored.keys() == result.keys() - {"calibration", "constant_probability"}
    assert unscored["overall"].items() <= {**result["overall"], "intervals": unscored["overall"]["intervals"]}.items()


def test_probabilities_are_compared_on_the_same_resamples():
    labels, probabilities = random_scores(150, 1)
    clusters = [i // 5 for i in range(150)]
    better = [0.5 * p + 0.5 * label for label, p in zip(labels, probabilities, strict=True)]
    a, b = make_scored_rows(labels, probabilities, clusters), make_scored_rows(labels, better, clusters)
    result = compare(a, b[::-1], resampled(100))
    for name in PROBABILITY_SCORES:
        assert result["difference"][name] == result["b"][name] - result["a"][name]
    low, high = result["intervals"]["auroc"]
    assert 0 < low < result["difference"]["auroc"] < high
    assert set(compare(a, a, resampled(10))["difference"].values()) == {0.0}
    same_ranks = make_scored_rows(labels, [p / 2 for p in probabilities], clusters)
    assert compare(a, same_ranks, resampled(50))["intervals"]["auroc"] == [0.0, 0.0]
    answers = [{k: v for k, v in row.items() if k != "probability"} for row in b]
    assert "auroc" not in compare(a, answers, resampled(10))["difference"]


# ---- bootstrap


def test_one_row_clusters_agree_with_the_normal_approximation():
    n, p = 400, 0.7
    rows = make_rows([0] * n, [0] * int(n * p) + [1] * int(n * (1 - p) + 0.5))
    low, high = clustered_bootstrap(rows, resampled(4000))["accuracy"]
    half = norm.ppf(0.975) * np.sqrt(p * (1 - p) / n)
    assert [low, high] == pytest.approx([p - half, p + half], abs=0.1 * half)


def test_duplicated_rows_in_a_cluster_add_no_information():
    labels, predictions = random_pair(200)
    copies = 9
    rows = make_rows(labels * copies, predictions * copies, list(range(200)) * copies)
    once = clustered_bootstrap(make_rows(labels, predictions))
    clustered = clustered_bootstrap(rows)
    by_row = clustered_bootstrap(rows, Bootstrap(cluster="input"))
    for score in SCORES:
        assert clustered[score] == pytest.approx(once[score])
        assert width(clustered[score]) == pytest.approx(np.sqrt(copies) * width(by_row[score]), rel=0.15)


def test_known_distribution_of_two_unequal_clusters():
    # Draws of two clusters: both right (1/4), one each (1/2): accuracy 3/4, both wrong (1/4).
    rows = make_rows([0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1])
    assert clustered_bootstrap(rows, Bootstrap(confidence=0.95))["accuracy"] == [0.0, 1.0]
    assert clustered_bootstrap(rows, Bootstrap(confidence=0.4))["accuracy"] == [0.75, 0.75]


def test_intervals_hold_the_estimate_and_grow_with_confidence():
    rows = make_rows(*random_pair(300, answered=False), clusters=[i // 10 for i in range(300)])
    estimate = classification_metrics([r["label"] for r in rows], [r["prediction"] for r in rows])
    wide, narrow = (
        clustered_bootstrap(rows, Bootstrap(confidence=0.99)),
        clustered_bootstrap(rows, Bootstrap(confidence=0.8)),
    )
    for score in SCORES:
        assert wide[score][0] < narrow[score][0] < estimate[score] < narrow[score][1] < wide[score][1]


def test_seed_decides_the_interval():
    rows = make_rows(*random_pair(120), clusters=[i // 4 for i in range(120)])
    assert clustered_bootstrap(rows, Bootstrap(seed=3)) == clustered_bootstrap(rows, Bootstrap(seed=3))
    assert clustered_bootstrap(rows, Bootstrap(seed=3)) != clustered_bootstrap(rows, Bootstrap(seed=4))


def test_chunked_resampling_gives_the_same_intervals(monkeypatch):
    rows = make_rows(*random_pair(120), clusters=[i // 4 for i in range(120)])
    whole = clustered_bootstrap(rows, resampled(100))
    monkeypatch.setattr("scoring.resampling._WEIGHTS_AT_ONCE", 30 * 7)
    assert clustered_bootstrap(rows, resampled(100)) == whole


def test_single_cluster_is_degenerate():
    rows = make_rows(*random_pair(50), clusters=[0] * 50)
    estimate = classification_metrics([r["label"] for r in rows], [r["prediction"] for r in rows])
    for score, interval in clustered_bootstrap(rows).items():
        assert interval == pytest.approx([estimate[score]] * 2)


def test_one_class_only():
    intervals = clustered_bootstrap(make_rows([0] * 20, [0, 1] * 10))
    assert intervals["f1"] == intervals["mcc"] == intervals["recall"] == [0, 0]
    assert 0 < width(intervals["accuracy"]) < 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_resamples": 0}, "num_resamples is 0"),
        ({"confidence": 95}, "confidence is 95"),
        ({"cluster": "premise"}, "row 0 has no 'premise'"),
    ],
)
def test_bad_bootstrap_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        clustered_bootstrap(make_rows([0, 1], [0, 1]), Bootstrap(**settings))


def test_no_rows_to_resample():
    with pytest.raises(ValueError, match="no rows"):
        clustered_bootstrap([])


# ---- report


def test_report_groups_rows():
    rows = make_rows(*random_pair(240, answered=False), clusters=[i // 12 for i in range(240)])
    result = report(rows, resampled(50))
    assert (result["num_rows"], result["num_clusters"], result["overall"]["num_clusters"]) == (240, 20, 20)
    assert set(result["by_num_variables"]) == {"4", "5"}
    expected = {"direct": TEMPLATES[:2], "indirect": TEMPLATES[2:4], "collider": ("has_collider",)}
    expected["confounder"] = ("has_confounder",)
    assert set(result["by_relation"]) == set(expected)
    for relation, templates in expected.items():
        chosen = [row for row in rows if row["template"] in templates]
        alone = classification_metrics([r["label"] for r in chosen], [r["prediction"] for r in chosen])
        assert alone.items() <= result["by_relation"][relation].items()
        assert set(result["by_relation"][relation]["intervals"]) == set(SCORES)
    assert result["baselines"] == baselines([row["label"] for row in rows])
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_report_by_structure_has_wider_intervals_where_premises_share_one():
    labels, predictions = random_pair(100)
    rows = make_rows(labels * 4, predictions * 4)
    for i, row in enumerate(rows):
        row["structure_id"] = f"s{i % 100}"
    by_premise, by_structure = report(rows)["overall"], report(rows, Bootstrap(cluster="structure_id"))["overall"]
    assert by_premise["f1"] == by_structure["f1"]
    assert width(by_structure["intervals"]["f1"]) > 1.5 * width(by_premise["intervals"]["f1"])


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_rows_without_a_template_are_left_out_of_the_relations(missing):
    rows = make_rows([0, 1] * 6, [0, 1] * 6)
    for row in rows[1:]:
        row["template"] = missing
    assert {name: group["n"] for name, group in report(rows)["by_relation"].items()} == {"direct": 1}
    assert report(rows)["overall"]["n"] == 12


def test_other_splits_stand_beside_the_first():
    """What is said of the first is what it is alone; the same rows in other words are compared row by row."""
    rows, other = (make_rows(*random_pair(120, seed), [i // 10 for i in range(120)]) for seed in (0, 5))
    worded = [
        b | {"label": a["label"], "input": f"in other words {a['input']}"} for a, b in zip(rows, other, strict=True)
    ]
    splits = {"test": rows, "test_paraphrase": worded, "validation": other[:50]}
    result = report([{**row, "split": name} for name, part in splits.items() for row in part], resampled(40))
    by_split = result.pop("by_split")
    assert result == report(rows, resampled(40))
    assert list(by_split) == list(splits) and by_split["test"] == result["overall"]
    numbered = ([row | {"input": k} for k, row in enumerate(part)] for part in (rows, worded))
    paired = compare(*numbered, resampled(40))
    assert by_split["test_paraphrase"]["difference"] == paired["difference"]
    assert by_split["test_paraphrase"]["difference_intervals"] == paired["intervals"]
    assert "difference" not in by_split["validation"] and by_split["validation"]["n"] == 50
    others = [
        row | {"label": rows[k]["label"], "num_variables": 6, "split": "validation"} for k, row in enumerate(other)
    ]
    result = report([{**row, "split": "test"} for row in rows] + others, resampled(5))
    assert "difference" not in result["by_split"]["validation"], "other graphs, whose labels happen to be the same"


def test_unknown_template():
    rows = make_rows([0, 1], [0, 1])
    rows[1]["template"] = "sibling"
    with pytest.raises(ValueError, match="unknown template 'sibling'"):
        report(rows)


# ---- comparison


def test_a_model_against_itself():
    rows = make_rows(*random_pair(200, answered=False), clusters=[i // 5 for i in range(200)])
    result = compare(rows, rows)
    assert set(result["difference"].values()) == {0.0}
    assert all(interval == [0.0, 0.0] for interval in result["intervals"].values())
    assert result["mcnemar"]["p_value"] == 1
    assert result["mcnemar"]["only_a_right"] == result["mcnemar"]["only_b_right"] == 0


def test_mcnemar_hand_computed():
    # b alone right on 5 rows, a alone right on 1 (b gives no answer there): p = 2 * (1 + 6) / 2**6
    labels = [1, 0, 1, 0, 1, 0, 1, 0]
    a = make_rows(labels, [0, 1, None, 1, 0, 0, 1, 1])
    b = make_rows(labels, [1, 0, 1, 0, 1, None, 1, None])
    result = compare(a, b)
    counts = {"both_right": 1, "only_a_right": 1, "only_b_right": 5, "both_wrong": 1}
    assert counts.items() <= result["mcnemar"].items()
    assert result["mcnemar"]["p_value"] == pytest.approx(14 / 64)
    assert result["difference"]["accuracy"] == pytest.approx(4 / 8)
    assert result["difference"]["f1"] == pytest.approx(result["b"]["f1"] - result["a"]["f1"])


def test_resamples_are_paired():
    # In each cluster of five b has one row more than a right, however right a is: the difference never varies.
    right = [min(c % 5, 4) for c in range(40)]
    a = [int(i >= k) for k in right for i in range(5)]
    b = [int(i >= k + 1) for k in right for i in range(5)]
    clusters = [c for c in range(40) for _ in range(5)]
    rows_a, rows_b = make_rows([0] * 200, a, clusters), make_rows([0] * 200, b, clusters)
    assert compare(rows_a, rows_b)["intervals"]["accuracy"] == pytest.approx([0.2, 0.2])
    assert width(clustered_bootstrap(rows_a)["accuracy"]) > 0.1


def test_comparison_is_antisymmetric_and_ignores_row_order():
    labels, predictions = random_pair(150, 1)
    _, others = random_pair(150, 2)
    clusters = [i // 5 for i in range(150)]
    a, b = make_rows(labels, predictions, clusters), make_rows(labels, others, clusters)
    forward, backward, shuffled = compare(a, b), compare(b, a), compare(a, b[::-1])
    assert shuffled == forward
    for score, (low, high) in forward["intervals"].items():
        assert low < forward["difference"][score] < high
        assert backward["difference"][score] == -forward["difference"][score]
        assert backward["intervals"][score] == pytest.approx([-high, -low])
    assert backward["mcnemar"]["p_value"] == forward["mcnemar"]["p_value"]
    assert json.loads(json.dumps(forward, allow_nan=False)) == forward


def test_comparison_needs_the_same_rows():
    rows = make_rows([0, 1, 0], [0, 1, 0])
    with pytest.raises(ValueError, match=r"inputs differ: 1 rows only in the first, 0 .*'row 2'"):
        compare(rows, rows[:2])
    with pytest.raises(ValueError, match=r"labels differ: 1 and 0 for 'row 1'"):
        compare(rows, [rows[0], {**rows[1], "label": 0}, rows[2]])


def test_rows_with_equal_inputs_are_matched_in_order():
    a, b = make_rows([0, 0, 1], [0, 1, 1]), make_rows([0, 0, 1], [1, 0, 1])
    for row in a + b:
        row["input"] = "the same" if row["label"] == 0 else "another"
    assert compare(a, b)["mcnemar"]["only_a_right"] == compare(a, b)["mcnemar"]["only_b_right"] == 1


def test_each_relation_is_compared_by_itself():
    labels, templates = [1, 0] * 30, ["parent"] * 40 + ["has_collider"] * 20
    clusters = [i // 4 for i in range(60)]
    a = make_rows(labels, [0] * 40 + labels[40:], clusters)
    b = make_rows(labels, labels[:40] + [0] * 20, clusters)
    a = [row | {"template": template} for row, template in zip(a, templates, strict=True)]
    assert compare(a, b)["difference"]["f1"] > 0
    found = compare_relations(a, b[::-1], resampled(50))
    assert {name: pair["difference"]["f1"] for name, pair in found.items()} == {"collider": -1, "direct": 1}
    assert found["collider"] == compare(a[40:], b[40:], resampled(50)) and found["direct"]["intervals"]["f1"] == [1, 1]
    untold = [row | {"template": None} for row in a]
    assert compare_relations(untold, b) == {}


# ---------------------------------------------------------------- means


def rows_with_means(seed: int, shift: float = 0.0) -> list[dict]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 60)
    rows = make_rows(labels, 1 - labels, clusters=rng.integers(0, 12, 60))
    return [row | {"means": {"exact_trace": float(rng.random() < 0.4) + shift, "pass@1": rng.random()}} for row in rows]


def test_means_have_clustered_intervals():
    rows = rows_with_means(0)
    scores = mean_scores(rows, resampled(3000))
    clusters = {row["premise_id"] for row in rows}
    rng, drawn = np.random.default_rng(1), {name: [] for name in scores}
    by_cluster = [[row["means"] for row in rows if row["premise_id"] == cluster] for cluster in sorted(clusters)]
    for _ in range(3000):
        sample = [means for k in rng.integers(0, len(by_cluster), len(by_cluster)) for means in by_cluster[k]]
        for name, values in drawn.items():
            values.append(np.mean([means[name] for means in sample]))
    for name, score in scores.items():
        assert score["mean"] == pytest.approx(np.mean([row["means"][name] for row in rows]))
        assert score["interval"] == pytest.approx(np.quantile(drawn[name], [0.025, 0.975]), abs=0.02)
    found = report(rows, resampled(50))
    assert found["overall"]["means"].keys() == scores.keys() and found["by_num_variables"]["4"]["means"]


def test_rows_without_a_trace_do_not_count_among_the_exact_ones():
    """None is neither right nor wrong; a group of such rows alone has no mean, and says so in the table."""
    rows = rows_with_means(0)
    for row in rows[::3]:
        row["means"] = {**row["means"], "exact_trace": None}
    for k, row in enumerate(rows):
        row["seen"] = k % 3 > 0
    found = report(rows, resampled(200))
    having = [row["means"]["exact_trace"] for row in rows if row["means"]["exact_trace"] is not None]
    score = found["overall"]["means"]["exact_trace"]
    assert score["mean"] == pytest.approx(np.mean(having)) and score["interval"][0] < score["mean"]
    assert "exact_trace" not in found["by_seen"]["unseen"]["means"]
    assert found["overall"]["means"]["pass@1"]["mean"] == pytest.approx(np.mean([r["means"]["pass@1"] for r in rows]))
    table = means_table([("all", found["overall"]), ("unseen", found["by_seen"]["unseen"])])
    assert table.splitlines()[2].split()[:2] == ["unseen", "none"]
    better = [row | {"means": {name: value and value + 0.25 for name, value in row["means"].items()}} for row in rows]
    assert compare(rows, better, resampled(9))["means"].keys() == {"exact_trace", "pass@1"}


def test_means_are_compared_row_by_row():
    rows, better = rows_with_means(0), rows_with_means(0, shift=0.25)
    found = compare(rows, better, resampled(50))["means"]
    assert found["exact_trace"] == {"mean": pytest.approx(0.25), "interval": pytest.approx([0.25, 0.25])}
    assert compare(rows, make_rows(*zip(*[(r["label"], 1) for r in rows], strict=True)), resampled(9))["means"] == {}


def test_rows_with_other_means_are_refused():
    rows = rows_with_means(0)
    del rows[3]["means"]["pass@1"]
    with pytest.raises(ValueError, match="not all rows have the means exact_trace, pass@1"):
        mean_scores(rows)
    assert mean_scores(make_rows([1, 0], [1, 0])) == {}
