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

ROW = """
quantities:
  size: {name: size, unit: bytes, of: saved_bytes, counted: true}
paper: '2402.09353'
experiment: bakeoff_rank
claims:
  - id: new/one
    where: table 1
    statement: One statement.
    tests: {difference: [dora, {variant: lora, rank: each}], above: 0, of: size, each: rank, among: rank > 4}
    against: [new/two]
"""
COUNT = """
paper: x
claims:
  - id: new/one
    where: table 1
    statement: One statement.
    compute: {variant: lora, matrices: 2, width: 8, rank: 1, printed: 32, unit: 1}
"""


def planted(folder: Path, text: str) -> Path:
    path = folder / "planted.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def only(folder, test, text=ROW):
    """The claim of `ROW` with another test."""
    lines = [f"    tests: {test}" if "tests:" in line else line for line in text.splitlines()]
    (claim,) = read(planted(folder, "\n".join(lines)))
    return claim


WRONG = [
    (ROW, "tests: {difference", "tests: {diference", r"tests: give one of difference, .*value.* diference"),
    (ROW, "above: 0", "abov: 0", "tests: give one of above, below, between; the keys are .*abov"),
    (ROW, "above: 0", "above: 0, below: 1", "tests: give one of above, below, between"),
    (ROW, "above: 0", "above: x", "tests: above: an end must be a number, not 'x'"),
    (ROW, "above: 0", "between: 0", "tests: between: .*'high'"),
    (ROW, "of: size", "of: sizes", "tests: unknown quantity 'sizes'. Did you mean 'size'. Choices: .*gap"),
    (
        ROW,
        "of: size",
        "off_: size",
        "tests: unknown key 'off_'. Did you mean 'of'. Choices: of, tune, above.*least",
    ),
    (ROW, "{difference: [dora,", "{difference: [", "tests: two are needed"),
    (ROW, "[dora,", "[{variant: [dora]},", r"tests: a cell is .* not \{'variant': \['dora'\]\}"),
    (ROW, "each: rank, ", "", "tests: `each: AXIS` and cells that say `each` go together"),
    (ROW, "rank: each", "rank: 8", "tests: `each: AXIS` and cells that say `each` go together"),
    (ROW, "among: rank > 4", "among: rnk > 4", "tests: among: .*rnk"),
    (ROW, "among: rank > 4", "least: many", "tests: least must be a whole number"),
    (ROW, "    statement: One statement.\n", "", "no statement"),
    (
        ROW,
        "    where: table 1",
        "    were: table 1",
        "unknown key 'were'. Did you mean 'where'. Choices: id, paper",
    ),
    (ROW, "paper: '2402.09353'", "paper: 2402.09353", "paper must be a text .*, not 2402.09353"),
    (ROW, "paper: '2402.09353'\n", "", "no paper; the keys are id, paper"),
    (ROW, "experiment: bakeoff_rank\n", "", "either the experiment that it needs or a sweep"),
    (ROW, "against: [new/two]", "against: new/two", "against must be a list, not 'new/two'"),
    (ROW, "against: [new/two]", "rule: mots", "tests: give one of every, most; .* mots"),
    (ROW, "against: [new/two]", "known: x", "give one of tests, compute, waits_for, known; .*tests.*known"),
    (COUNT, "compute:", "computes:", "give one of tests, compute, waits_for, known; .*computes"),
    (COUNT, "width: 8, ", "", "compute: no width; the keys are variant, matrices, width"),
    (COUNT, "rank: 1", "rank: one", "compute: rank must be a whole number, not 'one'"),
    (COUNT, "compute: {", "compute: [", "planted.yaml: .*expected"),
]


@pytest.mark.parametrize(("text", "was", "wrong", "said"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_row_names_the_file_the_claim_the_key_and_the_choices(tmp_path, text, was, wrong, said):
    assert was in text and read(planted(tmp_path, text))
    with pytest.raises(ValueError, match=said) as error:
        read(planted(tmp_path, text.replace(was, wrong)))
    assert str(error.value).startswith(str(tmp_path / "planted.yaml"))
    assert "new/one" in str(error.value) or "expected" in said


def test_a_form_that_needs_a_quantity_says_so(tmp_path):
    with pytest.raises(ValueError, match="tests: no of; the keys are of"):
        only(tmp_path, "{ratio: [dora, lora], below: 1}")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "of: saved_bytes",
            "off_: saved_bytes",
            "size: unknown key 'off_'. Did you mean 'of'. Choices: name, unit",
        ),
        ("counted: true", "counted: 3", "size: counted must be true or false"),
        ("claims:", "claim:", "claims must be a list"),
        ("  - id: new/one\n    where", "  - where", "a claim without an id: no id"),
    ],
)
def test_what_stands_around_the_rows_is_checked_too(tmp_path, old, new, said):
    with pytest.raises(ValueError, match=said):
        read(planted(tmp_path, ROW.replace(old, new)))


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
    lenient = ROW.replace("against: [new/two]", "rule: most")
    assert only(tmp_path, tests, lenient).verdict(Evidence(RANKS)).status is Status.SUPPORTED
