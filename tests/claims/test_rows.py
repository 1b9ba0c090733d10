"""Rows of the catalogue: how they are read, and the errors of wrong ones."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from lora_zoo.claims import Status, claims, registry
from lora_zoo.claims.evidence import Evidence
from lora_zoo.claims.rows import read
from lora_zoo.core.registry import Registry
from tests.claims.trios import frame

TEST = "{difference: [dora, {variant: lora, rank: each}], above: 0, of: size, each: rank, among: rank > 4}"
ROW = f"""
quantities:
  size: {{name: size, unit: bytes, of: saved_bytes, counted: true}}
paper: '2402.09353'
experiment: bakeoff_rank
claims:
  - id: new/one
    where: table 1
    statement: One statement.
    tests: {TEST}
    against: []
"""
COUNT = """---
paper: x
claims:
  - id: new/two
    where: table 2
    statement: Another.
    compute: {variant: lora, matrices: 2, width: 8, rank: 1, printed: 32, unit: 1}
"""


def planted(folder: Path, text: str) -> Path:
    path = folder / "planted.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def only(folder, test, rule="every"):
    """The claim of `ROW` with another test."""
    text = ROW.replace(TEST, test).replace("against: []", f"rule: {rule}")
    (claim,) = read(planted(folder, text))
    return claim


WRONG_TESTS = [
    ("x", "a test must be keys with values, not 'x'"),
    (
        "{diference: [dora, lora], above: 0}",
        "give one of difference, .*value.*; the keys are diference, above",
    ),
    ("{difference: [dora, lora], abov: 0}", "give one of above, below, between; the keys are .*abov"),
    ("{difference: [dora, lora], above: 0, below: 1}", "give one of above, below, between; .*above, below"),
    ("{difference: [dora, lora], above: x}", "above: an end must be a number, not 'x'"),
    ("{difference: [dora, lora], between: 0}", "between: .*'high'"),
    ("{difference: [dora, lora], above: 0, of: sizes}", "unknown quantity 'sizes'.*'size'. Choices: .*gap"),
    ("{difference: [dora, lora], above: 0, oof: x}", "difference: unknown key 'oof'.*'of'. Choices: .*least"),
    ("{difference: [dora, lora], above: 0, tune: lr}", "difference: tune must be a list, not 'lr'"),
    ("{difference: [dora], above: 0}", "difference: two cells, .* needed, not"),
    ("{difference: [dora, [lora]], above: 0}", "difference: a cell is .* not .'lora'"),
    ("{difference: [dora, {rank: [1]}], above: 0}", "difference: a cell is .* not .'rank': .1"),
    ("{ratio: [dora, lora, full], below: 1, of: size}", "ratio: two cells, .* needed, not .*'full'"),
    ("{ratio: [dora, lora], below: 1}", "ratio: no of; the keys are of"),
    ("{excess: [[dora, lora], [full]], below: 1}", "excess: two cells, .* needed, not .'full'"),
    ("{slope: lora, below: 1, of: size}", "slope: no axis; the keys are axis, of"),
    ("{optimum: [rank], below: 1}", "optimum: axis must be a text"),
    ("{optimum: rank, below: 1, needs: 4}", "optimum: needs must be a list, not 4"),
    (TEST.replace("each: rank, ", ""), "`each: AXIS` and cells that say `each` go together"),
    (TEST.replace("rank: each", "rank: 8"), "`each: AXIS` and cells that say `each` go together"),
    (TEST.replace("rank > 4", "rnk > 4"), "among: .*rnk"),
    (TEST.replace("among: rank > 4", "least: many"), "least must be a whole number"),
]
WRONG = [
    *((TEST, test, f"new/one: tests: {said}") for test, said in WRONG_TESTS),
    ("    statement: One statement.\n", "", "new/one: no statement"),
    ("where: table 1", "were: table 1", "new/one: unknown key 'were'.*'where'. Choices: id, paper"),
    ("paper: '2402.09353'", "paper: 2402.09353", "new/one: paper must be a text .*, not 2402.09353"),
    ("paper: x\n", "", "new/two: no paper; the keys are id, paper"),
    ("experiment: bakeoff_rank\n", "", "new/one.*either the experiment that it needs or a sweep"),
    ("against: []", "against: new/two", "new/one: against must be a list, not 'new/two'"),
    ("against: []", "rule: mots", "new/one: tests: give one of every, most; the keys are mots"),
    ("against: []", "known: x", "new/one: give one of tests, compute, waits_for, known; .*tests.*known"),
    ("compute:", "computes:", "new/two: give one of tests, compute, waits_for, known; .*computes"),
    ("width: 8, ", "", "new/two: compute: no width; the keys are variant, matrices, width"),
    ("rank: 1", "rank: one", "new/two: compute: rank must be a whole number, not 'one'"),
    ("compute: {", "compute: [", ".*expected"),
    ("of: saved", "oof: saved", "size: unknown key 'oof'.*'of'. Choices: name, unit"),
    ("counted: true", "counted: 3", "size: counted must be true or false"),
    ("claims:", "claim:", "claims must be a list"),
    ("- id: new/one\n   ", "-", "a claim without an id: no id"),
]


@pytest.mark.parametrize(("was", "wrong", "said"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_row_names_the_file_the_claim_the_key_and_the_choices(tmp_path, was, wrong, said):
    path = planted(tmp_path, (ROW + COUNT).replace(was, wrong))
    assert was in ROW + COUNT
    with pytest.raises(ValueError, match=f"^{path}: {said}"):
        read(path)


def test_a_wrong_row_is_an_error_at_every_look_not_a_shorter_ledger(monkeypatch, tmp_path):
    folder = tmp_path / "wrong_claims"
    folder.mkdir()
    planted(folder, ROW.replace("above", "abov"))
    source = Path(registry.__file__).with_name("catalogue") / "__init__.py"
    (folder / "__init__.py").write_text(source.read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "CLAIMS", Registry("claim", "wrong_claims", by_import=True))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"planted\.yaml: new/one"):
            list(claims())
    planted(folder, ROW)
    assert list(claims()) == ["new/one"]
    sys.modules.pop("wrong_claims")


def labels(claim, rows):
    (runs,) = Evidence(rows).of("bakeoff_rank")
    return [hypothesis.label for test in claim.tests for hypothesis in test(runs)]


RANKS = frame("bakeoff_rank", "variant rank", {("lora", rank): 0.5 for rank in (2, 4, 8, 16)}, 0.1)


@pytest.mark.parametrize(
    ("test", "found"),
    [
        ("{difference: [{rank: each}, {rank: 2}], above: 0, each: rank, among: rank > 4}", [(8, 2), (16, 2)]),
        ("{difference: [{rank: next}, {rank: each}], above: 0, each: rank}", [(4, 2), (8, 4), (16, 8)]),
        (
            "{difference: [{rank: next}, {rank: each}], above: 0, each: rank, among: rank != 4}",
            [(8, 2), (16, 8)],
        ),
        ("{difference: [{rank: max}, {rank: min}, {rank: 4}], above: 0}", [(16, 2), (16, 4)]),
    ],
)
def test_values_that_were_run_are_put_in_place(tmp_path, test, found):
    assert labels(only(tmp_path, test), RANKS) == [f"rank {one} - rank {other}" for one, other in found]


def test_a_value_is_put_wherever_the_cells_say_each(tmp_path):
    rows = RANKS.assign(alpha=RANKS["rank"])
    test = "{difference: [{rank: each, alpha: each}, {rank: 2}], above: 0, each: rank, among: rank == 8}"
    assert labels(only(tmp_path, test), rows) == ["rank 8 α=8 - rank 2"]


def test_too_few_values_to_compare_leave_a_claim_open(tmp_path):
    claim = only(
        tmp_path, "{difference: [{rank: each}, {rank: 2}], above: -90, each: rank, among: rank > 4, least: 3}"
    )
    verdict = claim.verdict(Evidence(RANKS))
    assert verdict.status is Status.INCONCLUSIVE and "fewer than 3 ranks" in verdict.reason


def test_the_greatest_of_layers_is_so_by_number(tmp_path):
    claim = only(tmp_path, "{ratio: [{layers: max}, {layers: min}], above: 0, of: size}")
    rows = frame("bakeoff_rank", "layers", {"9": 0.5, "10": 0.5}, 0.1, saved_bytes=3)
    assert labels(claim, rows) == ["size, layers 10 / layers 9"]
    several = rows.assign(layers="0,1", run=rows["run"] + "b")
    verdict = claim.verdict(Evidence(pd.concat([rows, several])))
    assert verdict.status is Status.INCONCLUSIVE and "layers=0,1 is no number" in verdict.reason


def test_most_of_several_tests_are_enough_where_the_rule_says_so(tmp_path):
    tests = (
        "[{difference: [{rank: 8}, {rank: 2}], above: -90}, {difference: [{rank: 8}, {rank: 4}], above: -90},"
    )
    tests += " {difference: [{rank: 8}, {rank: 16}], above: 90}]"
    assert only(tmp_path, tests).verdict(Evidence(RANKS)).status is Status.NOT_SUPPORTED
    assert only(tmp_path, tests, "most").verdict(Evidence(RANKS)).status is Status.SUPPORTED
