"""Rows in other letters: the same questions and labels, other texts in every epoch."""

from itertools import product

import pytest
from datasets import Dataset

from causal import reasoning, vocabulary, wording
from causal.claims import exact_label
from causal.classes import structure_id
from causal.rows import generate_rows
from dataset.chat import encode_rows
from dataset.reading import load_split
from dataset.relabelling import FreshRows, trace_style
from dataset.splits import mixed, reworded


def test_relabelled_rows_ask_the_same_in_other_letters(traces):
    rows = load_split(traces, "train").select(range(72))
    columns = FreshRows(rows, trace_style(traces), 0).columns(0)
    changed = 0
    assert set(columns.pop("kept")) == {""}
    for row, prompt, response, relabelled, hypothesis, written in zip(rows, *columns.values(), strict=True):
        text = prompt[prompt.index("Premise: ") :].split("<|end|>")[0]
        premise_text, stated = wording.split_input(text)
        premise, claim = wording.parse_claim(premise_text, hypothesis)
        assert (premise_text, stated) == (relabelled, hypothesis) and written == text
        assert structure_id(premise) == row["structure_id"]
        assert exact_label(premise, claim) == row["label"]
        assert response == reasoning.trace(premise, claim, "full") + "<|end|>"
        assert prompt.replace(text, row["input"]) == row["prompt"]
        changed += prompt != row["prompt"]
    assert changed > 36  # a premise may get the letters that it has
    assert len({prompt.split("\nHypothesis")[0] for prompt in columns["prompt"]}) == len(set(rows["premise_id"])) == 2


def test_every_epoch_has_letters_of_its_own_and_repeats_itself(traces):
    rows = load_split(traces, "train").select(range(40))
    fresh = FreshRows(rows, None, 0)
    epochs = [tuple(fresh.columns(epoch)["prompt"]) for epoch in range(5)]
    assert len(set(epochs)) == 5 and tuple(FreshRows(rows, None, 0).columns(3)["prompt"]) == epochs[3]
    assert tuple(FreshRows(rows, None, 1).columns(3)["prompt"]) != epochs[3]
    assert fresh.columns(3)["response"] == rows["response"][:]


def test_a_copy_has_letters_and_words_of_its_own():
    given = [row | {"row": f"row {k}"} for k, row in enumerate(generate_rows(3))]
    rows = mixed(given, 100 * len(given), {3: 1.0}, [], "0", repeat=True)
    assert rows[: len(given)] == given
    chats = [row | {"prompt": row["input"], "response": "Yes"} for row in rows]
    first = [k for k, row in enumerate(rows) if row["input"] == given[0]["input"]]
    columns = FreshRows(Dataset.from_list(chats), None, 0, ["hypotheses"], ["released-spread"]).columns(0)
    for name in ("premise", "hypothesis"):
        assert len(first) == 100 and len({columns[name][k] for k in first}) > 10


def test_a_share_of_the_rows_is_written_as_all_of_them_are(traces):
    rows = load_split(traces, "train").select(range(40))
    options = ("full", 3, ["hypotheses", "composed"], ["released", "refactorization"])
    whole = FreshRows(rows, *options).columns(1)
    parts = [FreshRows(rows.shard(2, rank, contiguous=True), *options).columns(1) for rank in (0, 1)]
    assert whole == {name: parts[0][name] + parts[1][name] for name in whole}


def test_words_and_letters_are_those_that_are_named(traces):
    rows = load_split(traces, "train").select(range(72))
    names = ["effect", "arrow"]
    columns = FreshRows(rows, trace_style(traces), 0, names, ["refactorization"]).columns(0)
    seen = set()
    for row, text, hypothesis, response in zip(
        rows, columns["premise"], columns["hypothesis"], columns["response"], strict=True
    ):
        premise, claim = wording.parse_claim(text, hypothesis)
        assert premise.variables == ("Z", "Y", "X", "W")
        assert exact_label(premise, claim) == row["label"]
        assert response == reasoning.trace(premise, claim, "full") + "<|end|>"
        words = {name: wording.write_hypothesis(claim, premise.variables, row["template"], name) for name in names}
        assert hypothesis in words.values()
        seen |= {name for name in names if words[name] == hypothesis}
    assert seen == set(names)
    with pytest.raises(ValueError, match="wordings: poetic is not one of released, paraphrase"):
        FreshRows(rows, None, 0, ["poetic"])
    with pytest.raises(ValueError, match="letterings: greek is not one of released, refactorization"):
        FreshRows(rows, None, 0, [], ["greek"])


def test_stories_and_names_are_drawn_anew_for_every_premise(traces):
    rows = load_split(traces, "train").select(range(72))
    fresh, seen = FreshRows(rows, trace_style(traces), 0, ["released", *vocabulary.KINDS], ["refactorization"]), set()
    for epoch in range(12):
        columns, told = fresh.columns(epoch), {}
        for row, text, hypothesis, response in zip(
            rows, columns["premise"], columns["hypothesis"], columns["response"], strict=True
        ):
            premise, claim = wording.parse_claim(text, hypothesis)
            assert structure_id(premise) == row["structure_id"] and response.startswith(
                reasoning.trace(premise, claim, "full")
            )
            told.setdefault(row["premise_id"], set()).add(text)
            names = premise.variables
            subject = next((s for s, known in vocabulary.NAMES.items() if names[0] in known), "".join(names))
            seen |= {wording.telling_of(text), subject}
        assert set(map(len, told.values())) == {1}
    known = {"released", "ZYXW", *vocabulary.TRAINED["story"], *vocabulary.TRAINED["names"]}
    assert seen <= known and len(seen) > 8


def test_no_epoch_has_a_longer_row_than_is_foreseen(traces, tokenizer):
    rows = load_split(traces, "train").select(range(72))
    lettered = FreshRows(rows, "full", 0, ["effect"], ["refactorization"])
    assert lettered.longest(tokenizer, False) == 0, "a prompt has as many tokens in every order of its letters"
    told = FreshRows(rows, "full", 0, ["released", *vocabulary.KINDS])
    unread = FreshRows(rows, "full", 0, ["effect"], (), 1.0)
    cases = [*product((False, True), ((told, 0.7), (unread, 0.5))), (True, (lettered, 0.9))]
    for responses, (fresh, near) in cases:
        most = max(
            len(asked) + responses * len(said)
            for epoch in range(6)
            for asked, said in zip(*encode_rows(tokenizer, fresh.columns(epoch)), strict=True)
        )
        assert near * fresh.longest(tokenizer, responses) < most <= fresh.longest(tokenizer, responses)


def test_a_share_of_the_hypotheses_has_words_that_nobody_knows_and_asks_the_same(traces):
    rows = load_split(traces, "train").select(range(72))
    options = ("full", 0, ["hypotheses", "composed"], ["released-spread"])
    plain = FreshRows(rows, *options).columns(2)
    assert FreshRows(rows, *options, 0.0).columns(2) == plain
    for share, some in ((0.5, range(20, 53)), (1.0, range(60, 73))):
        columns = FreshRows(rows, *options, share).columns(2)
        assert columns == FreshRows(rows, *options, share).columns(2)
        assert all(columns[name] == plain[name] for name in ("premise", "response", "kept"))
        pairs = list(zip(columns["hypothesis"], plain["hypothesis"], strict=True))
        assert sum(hypothesis != before for hypothesis, before in pairs) in some
        for k, (hypothesis, before) in enumerate(pairs):
            assert columns["prompt"][k] == plain["prompt"][k].replace(before, hypothesis)
            assert columns["input"][k] == wording.write_input(columns["premise"][k], hypothesis)


def test_without_wordings_a_hypothesis_keeps_its_own(traces):
    rows = list(load_split(traces, "train").select(range(40)))
    rows = [row | {"row": k} for k, row in enumerate(rows)]
    for name in wording.WORDINGS.keys() & vocabulary.DRAWN_WORDINGS:
        changed = reworded(rows, [name], 0)
        prompts = [row["prompt"].replace(old["input"], row["input"]) for old, row in zip(rows, changed, strict=True)]
        changed = [row | {"prompt": prompt} for row, prompt in zip(changed, prompts, strict=True)]
        columns = FreshRows(Dataset.from_list(changed), None, 0).columns(0)
        assert {wording.wording_of(hypothesis, tuple("ABCD")) for hypothesis in columns["hypothesis"]} == {name}


def test_spread_letters_are_any_of_the_first_seven_in_order(traces):
    rows = load_split(traces, "train").select(range(200))
    fresh = FreshRows(rows, trace_style(traces), 0, [], ["released-spread", "refactorization-spread"])
    seen = {wording.parse_premise(text).variables for k in range(40) for text in fresh.columns(k)["premise"]}
    assert {letter for names in seen for letter in names} == set("ABCDEFGTUVWXYZ")
    for names in seen:
        assert list(names) in (sorted(names), sorted(names, reverse=True)) and len(set(names)) == 4


def test_what_cannot_be_relabelled_is_refused(traces, tmp_path):
    rows = load_split(traces, "train").select(range(3))
    with pytest.raises(ValueError, match="relabel_each_epoch: the response to 'Premise: .* is not its trace"):
        FreshRows(rows, "compact", 0)
    with pytest.raises(ValueError, match="relabel_each_epoch: the prompt does not hold its input"):
        FreshRows(rows.map(lambda row: {"prompt": "Question?"}), None, 0)
    with pytest.raises(ValueError, match="relabel_each_epoch: .* has no report.json, .*; use relabel_each_epoch false"):
        trace_style(str(tmp_path))
    (tmp_path / "report.json").write_text('{"config": {"target": "teacher"}}')
    with pytest.raises(ValueError, match="not for target teacher"):
        trace_style(str(tmp_path))
    (tmp_path / "report.json").write_text('{"config": {"target": "answer", "trace_style": "compact"}}')
    assert trace_style(str(tmp_path)) is None


def test_rows_of_another_task_are_refused(traces):
    rows = load_split(traces, "train").select_columns(["prompt", "response"])
    with pytest.raises(ValueError, match="rows without input, .* are not Corr2Cause's; set it false"):
        FreshRows(rows, None, 0)
