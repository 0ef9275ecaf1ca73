"""Rows for others to take away: parquet files in the layout of the hub, and a card that counts what is in them.

    DIR/README.md                         the card, with the configurations that `datasets.load_dataset(DIR)` finds
    DIR/report.json                       what report.py finds in them
    DIR/<configuration>/<split>.parquet   rows with the given and the exact label

The configuration `default` has the splits, each other one a perturbed test set.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from datasets import Dataset, DatasetInfo, Value
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from causal.claims import RELATIONS
from causal.vocabulary import RELATION_OF
from dataset.report import perfect_reasoner
from dataset.sources import HUB_NAME, LABEL_2

CITATION = Path(__file__).parents[1] / "CITATION.cff"
FILES = ("README.md", "report.json")
INSIDE = ("*.parquet",)  # the folder of a configuration
COLUMNS = {"exact_label": Value("int64"), "given_label_wrong": Value("bool")}  # beside those of the task
FIRST = ("row", "input", "label", "given_label", *COLUMNS)
OF_SOURCE = {  # where the rows are from, and under which licence
    "hub": (
        f"[{HUB_NAME}](https://huggingface.co/datasets/{HUB_NAME}), all its configurations, read from the hub.",
        f"The licence is unknown. Neither the card of [{HUB_NAME}](https://huggingface.co/datasets/{HUB_NAME}) nor its "
        "repository ([causalNLP/corr2cause](https://github.com/causalNLP/corr2cause)) was found to state one, which "
        "leaves open whether the texts may be passed on: ask their authors before you publish this. The exact labels "
        "are under the MIT licence.",
    ),
    "generate": (
        "Generated from the definition of the task, no row of the public ones copied.",
        "MIT, as the code that generates the rows.",
    ),
    "file": (
        "The file `{file}`.",
        "The licence is that of the file `{file}`, which is not known here: name it above before you publish this. The "
        "exact labels are under the MIT licence.",
    ),
}
RELEASED = (  # of generated rows with the released labels: in addition, and instead
    "They are the rows of the public dataset with its labels, mistakes included, computed anew by its generator's "
    "algorithm.",
    "The licence is unknown: the public rows, which these equal{words}, were found to have none stated. The code that "
    "generates them is under the MIT licence.",
)
MISTAKES = """The public generator makes three mistakes. It counts relations with the renaming of variables turned
around. It sees a confounder's second leg only if that is a single edge. And it gets the descendants in some graphs of
six variables wrong, which makes premises that no graph satisfies."""
OF_SPLIT = {
    "given": "The splits are those of the source.",
    "premise": "No premise is in two splits; {fractions}. Premises that differ in letters alone may be.",
    "structure": "No Markov equivalence class is in two splits, under any letters; {fractions}.",
    "size": "Systems of {test_sizes} variables are the test, the others are shared out by structure; {fractions}.",
    "released": "By the recipe of the public data: of each number of variables a tenth of the rows is test and "
    "validation, at most 1,000 each. A premise may be in two splits.",
}
OF_PERTURBATION = {
    "paraphrase": "the hypothesis in the words of the public paraphrased set",
    "recombined": "the hypothesis in other words again",
    "recast": "the hypothesis in a third kind of words",
    "restated": "the hypothesis in a fourth kind of words",
    "refactorization": "Z, Y, X… for A, B, C…",
    "relabeling": "the letters trade places, at random",
    "reordering": "the independences in another order, at random",
    "names": "names of things for the letters",
    "story": "the premise as a running text",
    "hypotheses": "the hypothesis in one of several other wordings",
    "natural": "names, story and hypotheses at once",
}


INTRODUCTION = """# Corr2Cause with exact labels

Given which variables correlate and which are independent, does a causal claim follow? This is the task of
[Jin et al., ICLR 2024](https://arxiv.org/abs/2306.05836). The exact label of a row is 1 if its hypothesis holds in
every causal graph with just the independences of its premise (the premise's Markov equivalence class), else 0. It is
computed from the text.

```python
from datasets import load_dataset

rows = load_dataset("FOLDER_OR_REPOSITORY")
wrong = rows.filter(lambda row: row["given_label_wrong"])
```

"""
PUBLISHED = """Published F1 on the public labels (on an earlier test set of 2,246 rows): GPT-4 0.291, a fine-tuned
RoBERTa-Large 0.947. On those of the present public test set, 1,162 rows, a perfect reasoner has 0.952."""


def columns_of(task: dict) -> dict:
    """The columns of an export, of those of the task."""
    every = {"row": Value("string")} | task | COLUMNS
    return {name: every[name] for name in dict.fromkeys((*FIRST, *every))}


def with_both_labels(row: dict) -> dict:
    """A row with what COLUMNS adds; null where no graph satisfies the premise, so that no label is right."""
    exact = row["exact"]
    return row | {"exact_label": exact, "given_label_wrong": None if exact is None else row["given_label"] != exact}


def write_export(
    parts: dict[str, dict[str, Dataset]], reports: dict[str, dict], config: dict, command: str, directory: Path
) -> None:
    """Write {configuration: {split: rows}} with their reports and the card; `config` and `command` made them."""
    infos, files = DatasetInfosDict(), MetadataConfigs()
    for name, splits in parts.items():
        (directory / name).mkdir()
        sizes = {split: rows.to_parquet(directory / name / f"{split}.parquet") for split, rows in splits.items()}
        found = SplitDict({s: SplitInfo(s, sizes[s], len(rows), dataset_name=name) for s, rows in splits.items()})
        download = sum(file.stat().st_size for file in (directory / name).iterdir())
        figures = {"splits": found, "dataset_size": sum(sizes.values()), "download_size": download}
        infos[name] = DatasetInfo(features=next(iter(splits.values())).features, **figures)
        files[name] = {"data_files": [{"split": split, "path": f"{name}/{split}.parquet"} for split in splits]}
    source = kind_of(config["source"])
    header = DatasetCardData(
        language="en",
        license="mit" if source == "generate" and config["labels"] != "released" else "unknown",
        pretty_name="Corr2Cause with exact labels",
        task_categories=["text-classification"],
        task_ids=["natural-language-inference"],
        annotations_creators="machine-generated",
        size_categories=size_category(sum(len(rows) for splits in parts.values() for rows in splits.values())),
        source_datasets={"hub": [HUB_NAME], "generate": ["original"]}.get(source),
        tags=["causal-reasoning", "corr2cause"],
    )
    infos.to_dataset_card_data(header)
    files.to_dataset_card_data(header)
    card = f"---\n{header.to_yaml()}\n---\n\n{card_text(parts, reports, config, command)}"
    (directory / "README.md").write_text(card, encoding="utf-8")
    named = {"source": Path(config["source"]).name} if source == "file" else {}
    kept = {name: report | named | {"config": public(config)} for name, report in reports.items()}
    text = json.dumps(kept, indent=2, ensure_ascii=False)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")


def kind_of(source: str) -> str:
    return source if source in OF_SOURCE else "file"


def size_category(rows: int) -> str:
    """The hub's name for a number of rows."""
    bounds = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
    return next((name for bound, name in bounds.items() if rows < bound), "n>10M")


def public(config: dict) -> dict:
    """The settings that made the rows, without the user's places."""
    places = ("output_dir", "overwrite", "export", "audit", "tokenizer", "revision")
    kept = {name: value for name, value in config.items() if name not in places}
    return kept | {"source": Path(config["source"]).name}


# ---------------------------------------------------------------- the card


def card_text(parts: dict[str, dict[str, Dataset]], reports: dict[str, dict], config: dict, command: str) -> str:
    """The card below its header."""
    kind, file = kind_of(config["source"]), Path(config["source"]).name
    origin, licence = (text.format(file=file) for text in OF_SOURCE[kind])
    if config["labels"] == "released":
        words = " but for their words" if config["wordings"] else ""
        origin, licence = f"{origin} {RELEASED[0]}", RELEASED[1].format(words=words)
    if config["wordings"]:
        origin += f" Their words are drawn at random from {', '.join(f'`{name}`' for name in config['wordings'])}."
    elif kind == "generate":
        origin += " They are in the words of the public rows."
    paper, project = citations()
    sections = {
        "Rows": [origin, f"```bash\n{command}\n```", rows_table(parts, reports), *left_out(reports)],
        "Labels that differ": differences(parts["default"], kind == "hub" or config["labels"] == "released"),
        "Splits": [splits_text(reports["default"], config), *perturbed_text(parts)],
        "Columns": [table(("column", "what it is"), columns_text(config["labels"]))],
        "Licence": [licence],
        "How to cite": ["The paper, and the project that computes the labels:", f"```bibtex\n{paper}\n{project}\n```"],
    }
    body = (f"## {title}\n\n" + "\n\n".join(paragraphs) for title, paragraphs in sections.items())
    return INTRODUCTION + "\n\n".join(body) + "\n"


def rows_table(parts: dict[str, dict[str, Dataset]], reports: dict[str, dict]) -> str:
    header = ("configuration", "split", "rows", "label 1", "premises", "structures", "rows by variables")
    lines = []
    for name, split in ((name, split) for name, splits in parts.items() for split in splits):
        own = name in reports  # else it is a perturbed test set of the default
        found = reports[name]["splits"][split] if own else reports["default"]["splits"][f"test_{name}"]
        sizes = ", ".join(f"{n}: {rows:,}" for n, rows in found["num_variables"].items())
        ones = f"{found['label_1']:,} ({found['label_1'] / found['rows']:.1%})"
        counts = (f"{found[key]:,}" for key in ("premises", "structures"))
        lines.append((f"`{name}`", f"`{split}`", f"{found['rows']:,}", ones, *counts, sizes))
    return table(header, lines)


def left_out(reports: dict[str, dict]) -> list[str]:
    """What the source has and these rows have not, or not as it was."""
    lines = []
    for name, report in reports.items():
        counts = {
            "without an exact label are left out; report.json says which and why": len(report["unparsable"]),
            "had label 2, which is read as 0: the hypothesis does not follow": report[LABEL_2],
        }
        lines += [f"{count:,} rows of `{name}` {what}." for what, count in counts.items() if count]
    return lines


def differences(splits: dict[str, Dataset], released: bool) -> list[str]:
    """The given labels that are wrong, of the default configuration."""
    count: Counter = Counter()
    scores = []
    for name, rows in splits.items():
        columns = (rows[column] for column in ("num_variables", "template", "given_label", "exact_label"))
        cells = [(n, RELATION_OF[template], own, exact) for n, template, own, exact in zip(*columns, strict=True)]
        count.update(cells)
        found = perfect_reasoner((own, exact) for *_, own, exact in cells)
        if found["f1"] is not None:  # else there is no Yes
            scores.append((f"`{name}`", f"{found['wrong']:,}", f"{found['f1']:.3f}", f"{found['accuracy']:.3f}"))
    wrong = sum(number for (_, _, own, exact), number in count.items() if exact not in (own, None))
    without = sum(number for (*_, exact), number in count.items() if exact is None)
    lines = [f"The premises of {without:,} rows have no class of graphs: `exact_label` is null."] if without else []
    if not wrong:
        return [*lines, f"None: all of the {count.total() - without:,} labels are exact."]
    kept = sorted({cell[:2] for cell in count}, key=lambda cell: (cell[0], RELATIONS.index(cell[1])))
    by_cell = [
        (n, relation, *(f"{number:,}" for number in (total, count[n, relation, 0, 1], count[n, relation, 1, 0])))
        for n, relation in kept
        for total in [sum(number for cell, number in count.items() if cell[:2] == (n, relation))]
    ]
    return [
        f"{wrong:,} of {count.total():,} given labels are wrong. Column `given_label_wrong` marks each."
        + (f" {MISTAKES}" if released else ""),
        *lines,
        table(("variables", "relation", "rows", "given 0, is 1", "given 1, is 0"), by_cell),
        "What a perfect reasoner scores on the labels as given, which is the most that a score on them can mean:",
        table(("split", "wrong labels", "F1", "accuracy"), scores),
        *([PUBLISHED] if released else []),
    ]


def splits_text(report: dict, config: dict) -> str:
    shares = (f"{config[f'{name}_fraction']:.0%} are {name}" for name in ("validation", "test"))
    fractions = f"of those of each number of variables {' and '.join(shares)}, drawn with seed {config['seed']}"
    sizes = ", ".join(map(str, config["test_sizes"]))
    text = OF_SPLIT[config["split"]].format(fractions=fractions, test_sizes=sizes)
    if config["train_sizes"]:
        text += f" All systems of {', '.join(map(str, config['train_sizes']))} variables are train."
    pairs = {pair: shared for pair, shared in report["overlap"].items() if "test_" not in pair}
    shared = "; ".join(f"{pair} {n['premises']:,} and {n['structures']:,}" for pair, n in pairs.items())
    return text + (f" Premises and structures that two splits share: {shared}." if shared else "")


def perturbed_text(parts: dict) -> list[str]:
    """What the other configurations are."""
    ours = {name: words for name, words in OF_PERTURBATION.items() if name in parts}
    lines = [f"- `{name}`: {words}" for name, words in ours.items()]
    head = "Perturbed test sets, row by row the test set (`row` is equal), each label computed again from the new text:"
    theirs = [f"`{name}`" for name in parts if name not in ("default", *ours)]
    text = f"The public perturbed sets, whose rows are not those of `default`: {', '.join(theirs)}."
    return [*([head, "\n".join(lines)] if ours else []), *([text] if theirs else [])]


def columns_text(labels: str) -> list[tuple[str, str]]:
    kind = "the exact label" if labels == "exact" else "the given label"
    return [
        ("`row`", "the row's number in the source, in its split where the source has splits"),
        ("`input`, `premise`, `hypothesis`", "the text, whole and in its two parts"),
        ("`label`", f"{kind}, 1 or 0"),
        ("`given_label`, `exact_label`", "what the source says; what is right"),
        ("`given_label_wrong`", "whether they differ; null, as `exact_label`, where no graph satisfies the premise"),
        ("`premise_id`, `structure_id`", "equal for equal premises; equal for premises that differ in letters alone"),
        ("`num_variables`, `template`", "the number of variables; the relation and wording of the hypothesis"),
        ("`edges`", "directed and undirected edges of the equivalence class, as pairs of indices of variables"),
    ]


def table(header: Sequence[str], lines: Iterable[Sequence]) -> str:
    """A table in Markdown."""
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in cells)


def citations() -> tuple[str, str]:
    """The paper of the task and this project in BibTeX, from CITATION.cff."""
    project = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
    (paper,) = project["references"]
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    more = {"booktitle": paper["collection-title"], "year": paper["year"]}
    return (
        bibtex("inproceedings{jin2024corr2cause", paper, names, **more),
        bibtex("software{corr2cause_post_training", project, project["authors"][0]["name"], version=project["version"]),
    )


def bibtex(name: str, entry: dict, authors: str, **more) -> str:
    fields = {"title": f"{{{entry['title']}}}", "author": authors, **more}
    fields |= {"url": entry["url"]} if "url" in entry else {}
    return "\n".join([f"@{name},", *(f"  {key} = {{{value}}}," for key, value in fields.items()), "}"])
