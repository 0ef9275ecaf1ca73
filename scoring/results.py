"""The directories that evaluate.py writes: results of one model, comparisons of several, and how they are read back."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from runtime.settings import check
from scoring import metrics
from scoring.figures import calibration_figure, confusion_figure, score_figure
from scoring.predictions import not_finite
from scoring.report import page
from scoring.resampling import Bootstrap
from scoring.tables import comparison_lines, result_lines

RESULTS = "evaluation_results"
WRITTEN = ("metrics.json", "comparison.json", "predictions.jsonl", "report.html")
WRITTEN += tuple(f"{figure}.png" for figure in ("confusion_matrix", "scores", "calibration", "comparison"))


def model_name(model: str) -> str:
    """What tables and folders call it: `models/sft` -> `sft`, `models/sft/checkpoint-20` -> `sft-checkpoint-20`."""
    path = Path(model).resolve()
    return f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name


# --- one model


def answer_figures(rows: list[dict]) -> dict[str, float]:
    """Of generated answers `truncated_rate`, the share of rows with a cut one; of several samples a row, `agreement`;
    `not_finite_rate` if there are rows whose log-probabilities were not.

    Of scored answers `answer_mass`: how probable it is that the model says either of them at all.
    """
    if "stopped" not in rows[0]:
        return {"answer_mass": float(np.mean([np.exp([row["logp_no"], row["logp_yes"]]).sum() for row in rows]))}
    shares = {"truncated_rate": sum(not row["stopped"] and row.get("finite", True) for row in rows) / len(rows)}
    if "votes" in rows[0]:
        shares["agreement"] = float(np.mean([max(row["votes"][:2]) / sum(row["votes"]) for row in rows]))
    return shares | not_finite(rows)


def clear_results(output_dir: Path) -> None:
    """Remove what an earlier evaluation or comparison has written here: with new ones it would be taken for theirs."""
    for file in WRITTEN:
        (output_dir / file).unlink(missing_ok=True)


def write_results(rows: list[dict], results: dict, output_dir: Path) -> None:
    """predictions.jsonl, the figures of one model, report.html, and metrics.json last: who finds it finds all."""
    name = results["name"]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (output_dir / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    scores = score_figure({name: metrics.grouped_summaries(results)}, results["confidence"], name)
    figures = {"confusion_matrix": confusion_figure(metrics.main_rows(rows), name), "scores": scores}
    if "calibration" in results:
        figures["calibration"] = calibration_figure(results, name)
    for file, figure in figures.items():
        figure.savefig(output_dir / f"{file}.png", dpi=150)
    settings = {key: value for key, value in results.items() if not isinstance(value, dict) and key != "calibration"}
    drawn = [("By number of variables, relation and wording", scores)]
    models = [{"name": name, "rows": rows, "results": results}]
    html = page(models, name, settings, "\n".join(result_lines(results)), drawn)
    (output_dir / "report.html").write_text(html, encoding="utf-8")
    (output_dir / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")


# --- comparisons


def read_results(directory: str, setting: str = "compare") -> tuple[dict, list[dict]]:
    """(metrics.json, prediction rows) of a directory that `evaluate` wrote; ValueError naming the setting and fault."""
    remedy = f"write it with python evaluate.py --model MODEL --dataset DATASET --output_dir {directory}"
    texts = {}
    for file in ("metrics.json", "predictions.jsonl"):
        check((Path(directory) / file).is_file(), f"{setting}: {directory} has no {file}; {remedy}")
        texts[file] = (Path(directory) / file).read_text(encoding="utf-8", errors="replace")
    try:
        results = json.loads(texts["metrics.json"])
        results["name"]
        rows = [json.loads(line) for line in texts["predictions.jsonl"].split("\n") if line]
        inputs = [row["input"] for row in rows if row["label"] in (0, 1) and row["prediction"] in (0, 1, None)]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{setting}: {directory} is damaged ({error!r}); {remedy} --overwrite true") from None
    check(len(inputs) == len(rows) > 0, f"{setting}: {directory} has rows without a label; {remedy} --overwrite true")
    return results, rows


def distinct(names: list[str], directories: list[str]) -> list[str]:
    """The names, with their directories where a name occurs more than once."""
    count = Counter(names)
    return [f"{n} ({d})" if count[n] > 1 else n for n, d in zip(names, directories, strict=True)]


def of_split(rows: list[dict], split: str | None, directory: str) -> list[dict]:
    """The rows, those of the split first, of which the scores are; None: as they are."""
    splits = list(dict.fromkeys(row.get("split") for row in rows))
    check(split is None or split in splits, f"split {split}: {directory} has no answers to it, but to {splits}")
    return rows if split is None else sorted(rows, key=lambda row: row["split"] != split)


def compare_results(directories: list[str], split: str | None, bootstrap: Bootstrap) -> tuple[dict, list[dict]]:
    """Scores of every directory with intervals, and metrics.compare of each with the first and the one before it.

    They are about the split, or what each directory has first. Returns that, for JSON, and the models as `report.page`
    takes them. Raises ValueError if the rows are not the same.
    """
    results, rows = zip(*map(read_results, directories), strict=True)
    rows = [of_split(part, split, directory) for part, directory in zip(rows, directories, strict=True)]
    names = distinct([found["name"] for found in results], directories)
    reports = [metrics.report(part, bootstrap) for part in rows]
    rows = [metrics.main_rows(part) for part in rows]
    pairs = []
    for a, b in [(0, k) for k in range(1, len(names))] + [(k - 1, k) for k in range(2, len(names))]:
        try:
            pair = metrics.compare(rows[a], rows[b], bootstrap)
            by_relation = metrics.compare_relations(rows[a], rows[b], bootstrap)
            pairs.append({"names": [names[a], names[b]], **pair, "by_relation": by_relation})
        except ValueError as error:
            raise ValueError(f"compare: {directories[a]} and {directories[b]}: {error}") from None
    models = [
        {"name": name, "rows": part, "results": {**results, "directory": directory}}
        for name, directory, part, results in zip(names, directories, rows, reports, strict=True)
    ]
    shared = {key: pairs[0][key] for key in ("num_rows", "num_clusters", "confidence")}
    shared |= {key: getattr(bootstrap, key) for key in ("cluster", "num_resamples", "seed")}
    shared |= {key: reports[0][key] for key in ("baselines", "given_labels") if key in reports[0]}
    parts = ("by_num_variables", "by_relation", "by_split")
    listed = [
        {"name": m["name"], "directory": m["results"]["directory"], **m["results"]["overall"]}
        | {part: m["results"][part] for part in parts if part in m["results"]}
        for m in models
    ]
    return {**shared, "models": listed, "pairs": pairs}, models


def write_comparison(comparison: dict, models: list[dict], output_dir: Path) -> None:
    """comparison.png, report.html, and comparison.json last: who finds it finds all."""
    groups = {model["name"]: metrics.grouped_summaries(model["results"]) for model in models}
    rows = f"the same {comparison['num_rows']:,} rows"
    figure = score_figure(groups, comparison["confidence"], rows)
    figure.savefig(output_dir / "comparison.png", dpi=150)
    title = " · ".join(model["name"] for model in models)
    settings = {model["name"]: model["results"]["directory"] for model in models}
    settings |= {key: comparison[key] for key in ("num_rows", "num_clusters", "cluster", "num_resamples", "seed")}
    lead = "\n".join(comparison_lines(comparison))
    html = page(models, title, settings, lead, [("By number of variables, relation and wording", figure)])
    (output_dir / "report.html").write_text(html, encoding="utf-8")
    (output_dir / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n")
