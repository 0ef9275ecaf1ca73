"""Rows in other letters: the same questions and labels, other texts in every epoch."""

import pytest

from causal import graphs, reasoning, wording
from dataset.reading import load_split
from dataset.relabelling import relabel_rows, trace_style


def test_relabelled_rows_ask_the_same_in_other_letters(traces):
    rows = load_split(traces, "train").select(range(72))
    columns = relabel_rows(rows, trace_style(traces), 0, 0)
    changed = 0
    for row, prompt, response, relabelled, hypothesis, written in zip(rows, *columns.values(), strict=True):
        text = prompt[prompt.index("Premise: ") :].split("<|end|>")[0]
        premise_text, stated = wording.split_input(text)
        premise, claim = wording.parse_claim(premise_text, hypothesis)
        assert (premise_text, stated) == (relabelled, hypothesis) and written == text
        assert graphs.structure_id(premise) == row["structure_id"]
        assert graphs.exact_label(graphs.markov_equivalence_class(premise), claim) == row["label"]
        assert response == reasoning.trace(premise, claim, "full") + "<|end|>"
        assert prompt.replace(text, row["input"]) == row["prompt"]
        changed += prompt != row["prompt"]
    assert changed > 60
    assert len({prompt.split("\nHypothesis")[0] for prompt in columns["prompt"]}) == len(set(rows["premise_id"])) == 2


def test_every_epoch_has_letters_of_its_own_and_repeats_itself(traces):
    rows = load_split(traces, "train").select(range(40))
    epochs = [tuple(relabel_rows(rows, None, 0, epoch)["prompt"]) for epoch in range(5)]
    assert len(set(epochs)) == 5 and tuple(relabel_rows(rows, None, 0, 3)["prompt"]) == epochs[3]
    assert tuple(relabel_rows(rows, None, 1, 3)["prompt"]) != epochs[3]
    assert relabel_rows(rows, None, 0, 3)["response"] == rows["response"][:]


def test_what_cannot_be_relabelled_is_refused(traces, tmp_path):
    rows = load_split(traces, "train").select(range(3))
    with pytest.raises(ValueError, match="relabel_each_epoch: the response to 'Premise: .* is not its trace"):
        relabel_rows(rows, "compact", 0, 0)
    with pytest.raises(ValueError, match="relabel_each_epoch: the prompt does not hold its input"):
        relabel_rows(rows.map(lambda row: {"prompt": "Question?"}), None, 0, 0)
    with pytest.raises(ValueError, match="relabel_each_epoch: .* has no report.json, .*; use relabel_each_epoch false"):
        trace_style(str(tmp_path))
    (tmp_path / "report.json").write_text('{"config": {"target": "teacher"}}')
    with pytest.raises(ValueError, match="not for target teacher"):
        trace_style(str(tmp_path))
    (tmp_path / "report.json").write_text('{"config": {"target": "answer", "trace_style": "compact"}}')
    assert trace_style(str(tmp_path)) is None
