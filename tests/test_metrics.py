"""Metrics against scikit-learn, SciPy, sacreBLEU and values worked out by hand; they load offline."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lora_zoo import metrics

RNG = np.random.default_rng(0)
TRUTH, GUESS = RNG.integers(0, 2, 50), RNG.integers(0, 2, 50)
CLASSES, GUESSED = RNG.integers(0, 4, 50), RNG.integers(0, 4, 50)
SCORES, RATED = RNG.integers(0, 9, 50) / 2, RNG.normal(size=50)  # halves: ties


def computed(name: str, predictions: object, references: object, **options: object) -> float:
    result = metrics.load(name).compute(predictions=predictions, references=references, **options)
    assert list(result) == [name] and type(result[name]) is float
    return result[name]


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("accuracy", GUESSED, CLASSES, sklearn_metrics.accuracy_score(CLASSES, GUESSED)),
        ("f1", GUESS, TRUTH, sklearn_metrics.f1_score(TRUTH, GUESS)),
        ("matthews_correlation", GUESS, TRUTH, sklearn_metrics.matthews_corrcoef(TRUTH, GUESS)),
        ("matthews_correlation", GUESSED, CLASSES, sklearn_metrics.matthews_corrcoef(CLASSES, GUESSED)),
        ("pearson", RATED, SCORES, stats.pearsonr(SCORES, RATED)[0]),
        ("spearman", RATED, SCORES, stats.spearmanr(SCORES, RATED)[0]),
    ],
)
def test_numbers_agree_with_their_library(
    name: str, predictions: np.ndarray, references: np.ndarray, expected: float
) -> None:
    assert computed(name, predictions, references) == pytest.approx(expected, abs=1e-12)
    assert computed(name, predictions.tolist(), references.tolist()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("accuracy", [0, 1, 2, 2], [0, 1, 2, 1], 3 / 4),
        ("f1", [1, 1, 0, 0], [1, 0, 1, 0], 1 / 2),  # precision 1/2, recall 1/2
        ("f1", [0, 0], [0, 0], 0.0),  # neither predicted nor present
        ("matthews_correlation", [1, 1, 0, 0], [1, 1, 1, 0], 1 / math.sqrt(3)),
        ("matthews_correlation", [1, 1], [1, 0], 0.0),
        ("pearson", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
        ("pearson", [1.0, 1.0], [1.0, 2.0], 0.0),
        ("spearman", [1.0, 10.0, 100.0], [3.0, 2.0, 1.0], -1.0),
        ("spearman", [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], 1 - 6 * 2 / (4 * 15)),
        ("exact_match", ["a b", " c "], ["a b", "d"], 1 / 2),
        ("exact_match", ["A", "c"], [["a", "A"], ["d"]], 1 / 2),
        ("rouge_l", ["the cat sat"], ["the cat"], 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("rouge_l", ["a b c d", "x"], ["a c d e", "y"], (3 / 4 + 0) / 2),
        ("rouge_l", ["a b"], [["c d", "a b"]], 1.0),
    ],
)
def test_values_by_hand(name: str, predictions: list, references: list, expected: float) -> None:
    assert computed(name, predictions, references) == pytest.approx(expected, abs=1e-12)


def test_f1_takes_other_averages() -> None:
    expected = sklearn_metrics.f1_score(CLASSES, GUESSED, average="macro")
    assert computed("f1", GUESSED, CLASSES, average="macro") == pytest.approx(expected)
    assert computed("f1", GUESS, TRUTH, pos_label=0) == pytest.approx(
        sklearn_metrics.f1_score(1 - TRUTH, 1 - GUESS)
    )


def test_bleu_by_hand() -> None:
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; equally long
    guess, truth = "the cat sat on the rug", "the cat sat on a rug"
    assert computed("bleu", [guess], [truth]) == pytest.approx(
        100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    )
    # 4 of 4 of everything against a reference of 6 words
    assert computed("bleu", ["a b c d"], ["a b c d e f"]) == pytest.approx(100 * math.exp(1 - 6 / 4))
    assert 100 - 1e-9 <= computed("bleu", ["a b c d e"] * 2, ["a b c d e"] * 2) <= 100


TEXTS = ["there is a place in the city centre .", "it serves cheap French food .", "a pub near the river"]
FIRST = [
    "there is a place in the centre of town .",
    "cheap French food is served .",
    "near the river is a pub",
]
SECOND = ["a place is in the city centre .", "it serves French food at low prices .", "a riverside pub"]


def test_bleu_of_several_references_is_sacrebleus() -> None:
    references = [list(pair) for pair in zip(FIRST, SECOND, strict=True)]
    expected = sacrebleu.corpus_bleu(TEXTS, [FIRST, SECOND]).score
    assert computed("bleu", TEXTS, references) == pytest.approx(expected)
    assert (
        expected
        > computed("bleu", TEXTS, FIRST)
        == pytest.approx(sacrebleu.corpus_bleu(TEXTS, [FIRST]).score)
    )


def test_bleu_takes_unequal_numbers_of_references() -> None:
    unequal = [[FIRST[0], SECOND[0]], [FIRST[1]], [FIRST[2], SECOND[2]]]
    repeated = [[FIRST[0], SECOND[0]], [FIRST[1], FIRST[1]], [FIRST[2], SECOND[2]]]  # clips alike
    assert computed("bleu", TEXTS, unequal) == pytest.approx(computed("bleu", TEXTS, repeated))
    with pytest.raises(ValueError, match="item 1 has no reference"):
        computed("bleu", TEXTS, [[FIRST[0]], [], [FIRST[2]]])


def test_a_metric_computes_again_after_an_error() -> None:
    metric = metrics.load("accuracy")
    with pytest.raises(ValueError, match="Mismatch in the number"):
        metric.compute(predictions=[1, 0], references=[1])
    for _ in range(2):
        assert metric.compute(predictions=[1, 0], references=[1, 1]) == {"accuracy": 0.5}


def test_names_are_the_folders_and_cost_no_import() -> None:
    program = (
        "import sys; from lora_zoo import metrics; print(*metrics.names()); print('evaluate' in sys.modules)"
    )
    lines = fresh(program).splitlines()
    assert lines[0].split() == metrics.names() and lines[1] == "False"
    assert {"accuracy", "bleu", "exact_match", "f1", "rouge_l"} <= set(metrics.names())


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ValueError, match=r"'acuracy'. Did you mean 'accuracy'\? Choices: .*bleu"):
        metrics.load("acuracy")
    with pytest.raises(ValueError, match="'/no/such' is neither a file or folder here"):
        metrics.load("/no/such")


def test_a_module_of_the_users_own_is_loaded_by_path(tmp_path: Path) -> None:
    source = (metrics.HOME / "accuracy" / "accuracy.py").read_text().replace('{"accuracy":', '{"mine":')
    (tmp_path / "mine.py").write_text(source)
    metric = metrics.load(str(tmp_path / "mine.py"))
    assert metric.compute(predictions=[1], references=[1]) == {"mine": 1.0}


def test_processes_may_load_at_once_into_an_empty_cache(tmp_path: Path) -> None:
    program = (
        "from lora_zoo import metrics; "
        "print(metrics.load('exact_match').compute(predictions=['a', 'b'], references=['a', 'c']))"
    )
    running = [start(program, tmp_path) for _ in range(2)]
    outcomes = [process.communicate(timeout=120) for process in running]
    assert [out.strip() for out, _ in outcomes] == ["{'exact_match': 0.5}"] * 2, outcomes


def start(program: str, home: Path | None = None) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules")} if home else {}
    command = [sys.executable, "-c", program]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def fresh(program: str) -> str:
    process = start(program)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out
