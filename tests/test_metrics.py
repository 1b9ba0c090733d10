"""Metrics against scikit-learn, SciPy, sacreBLEU and values worked out by hand; they load offline."""

import math
import os
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lora_zoo import metrics
from lora_zoo.metrics.inputs import words
from lora_zoo.runs.record import plain
from tests.processes import start

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
        # cosines of the items: 1, of one word two; unigrams and bigrams, of trigrams there are none
        ("cider", ["a b", "c d"], ["a b", "c d"], 10 * 2 / 4),
        ("cider", ["a b", "x y"], [["a b", "p q"], ["c d"]], 10 * (2 / 4 / 2 + 0) / 2),
        ("cider", ["a b", "c"], ["a b", "c d"], 10 * (2 / 4 + 2**-0.5 / 4 * math.exp(-1 / 72)) / 2),
        # log2(words / occurrences) for each word that is right, nothing for a pair that its first word tells
        ("nist", ["a b"], ["a b"], 1.0),
        ("nist", ["a b", "c e"], ["a b", "c d"], 2 * 3 / 4),
        ("nist", ["a b"], ["a b c"], math.log2(3) * math.exp(math.log(0.5))),
        ("nist", ["a b c"], [["a x", "b c"]], (2 + 2 + 2) / 3 + 0),
        ("ter", ["a b c d"], ["a b c e"], 25.0),
        ("ter", ["c d a b"], [["x", "a b c d"]], 100 * 1 / 2.5),  # one shift; the references' mean length
        ("final_number", ["so 1,200 it is", "#### 3 or 4", "no"], ["#### 1200.0", "3 #### 4", "1"], 2 / 3),
        ("final_number", ["-5.", "5"], ["it is -5", ["4", "five: 5.00"]], 1.0),
        ("word_f1", ["in june b a", "x"], ["a b in may", "y"], (2 * 3 / 8 + 0) / 2),
        ("word_f1", ["a a b"], [["c d", "b a"]], 2 * 2 / 5),
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


def test_rouge_l_weighs_recall_as_coco_does() -> None:
    """The best precision is of one reference, the best recall of the other."""
    expected = (1 + 1.2**2) * 1 * (2 / 3) / (2 / 3 + 1.2**2 * 1)
    assert computed("rouge_l", ["a b"], [["a b c d", "a c b"]], beta=1.2) == pytest.approx(expected)


def test_meteor_by_hand_and_without_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three words in one piece: 1 - (1/3)³ / 2; "running" and "runs" have one stem."""
    whole = 1 - 0.5 * (1 / 3) ** 3
    assert computed("meteor", ["a dog runs"], [["x", "A dog running"]], synonyms=False) == pytest.approx(
        whole
    )
    recall = 10 * 1 * 0.5 / (9 * 1 + 0.5)
    assert computed("meteor", ["a"], ["a b"], synonyms=False) == pytest.approx(recall * 0.5)
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(ValueError, match="synonyms=false does without"):
        metrics.load("meteor").compute(predictions=["a"], references=["a"])


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


def test_names_and_facts_cost_no_import() -> None:
    heavy = ("evaluate", "datasets", "transformers", "torch", "sklearn", "scipy")
    program = (
        "import sys; from lora_zoo import metrics; print(*metrics.METRICS); "
        "print([metrics.facts(name) for name in metrics.METRICS]); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    names, facts, imported = fresh(program).splitlines()
    assert names.split() == list(metrics.METRICS) and imported == "[]"
    assert {"accuracy", "bleu", "exact_match", "f1", "rouge_l"} <= set(metrics.METRICS)
    assert facts == str([metrics.declared(metrics.METRICS[name]) for name in metrics.METRICS])


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ValueError, match=r"'acuracy'. Did you mean 'accuracy'\? Choices: .*bleu"):
        metrics.load("acuracy")
    with pytest.raises(ValueError, match="'/no/such' is neither a file or folder here"):
        metrics.load("/no/such")


OWN = """
import datasets
import evaluate
class Brier(evaluate.Metric):
    {facts}
    def _info(self):
        number = datasets.Value("float64")
        features = datasets.Features({{"predictions": number, "references": number}})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)
    def _compute(self, predictions, references):
        return {{"brier": sum((p - r) ** 2 for p, r in zip(predictions, references)) / len(predictions)}}
"""


def own(tmp_path: Path, facts: str) -> str:
    (tmp_path / "brier.py").write_text(OWN.format(facts=facts))
    return str(tmp_path / "brier.py")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ("higher_is_better, range = False, (0.0, 1.0)", (False, (0.0, 1.0))),
        ("higher_is_better, range = False, (0, float('inf'))", (False, (0.0, math.inf))),
        ("higher_is_better = False", (False, None)),
        ("pass", (None, None)),
    ],
)
def test_a_module_of_the_users_own_declares_its_facts(tmp_path: Path, facts: str, expected: tuple) -> None:
    metric = metrics.load(own(tmp_path, facts))
    assert metrics.try_out("brier.py", metric, [0.5], [1.0], "regression") == {"brier": expected}
    assert metrics.MetricFacts.of(plain(metrics.declared(metric)._asdict())) == expected  # as recorded


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ("higher_is_better = 'no'", "higher_is_better must be True or False; got 'no'"),
        ("range = (1, 0)", r"range must be two numbers \(low, high\), low < high; got \(1, 0\)"),
        ("range = 1", "range must be two numbers"),
    ],
)
def test_facts_that_are_none_are_refused_before_a_run(tmp_path: Path, facts: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be loaded: {said}"):
        metrics.load(own(tmp_path, facts))


def answers(name: str) -> list:
    """Answers that a metric takes, by the type that it declares; two apart and none like another."""
    features = metrics.load(name).features
    kind = (features[0] if isinstance(features, list) else features)["predictions"].dtype
    return {
        "int64": [0, 1] * 8,
        "float64": [i**1.5 for i in range(16)],
        "string": [" ".join(chr(97 + i) + chr(97 + j) for j in range(6)) for i in range(16)],
    }[kind]


def spoilt(right: list, share: float, rng: np.random.Generator) -> list:
    """So large a part of the answers exchanged for another one's."""
    wrong = list(right)
    for i in rng.permutation(len(right))[: round(share * len(right))]:
        wrong[i] = right[(i + 1) % len(right)]
    return wrong


OF_ANSWERS = [
    name
    for name in metrics.METRICS
    if metrics.reads(metrics.METRICS.find(name)) == "prediction"
    and name not in ("nist", "ter", "meteor", "final_number")
]
"""Those that compare predictions with references and have a best end; bits have tests in test_facts."""


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_perfect_answers_give_the_best_end_of_the_range_and_worse_ones_move_away(name: str) -> None:
    known, right = metrics.facts(name), answers(name)
    assert known.higher_is_better is not None and known.range is not None
    sign, best = (1, known.range[1]) if known.higher_is_better else (-1, known.range[0])
    assert computed(name, right, right) == pytest.approx(best, abs=1e-9)
    rng = np.random.default_rng(0)
    means = [
        np.mean([computed(name, spoilt(right, share, rng), right) for _ in range(4)])
        for share in (0, 0.3, 0.9)
    ]
    assert sign * means[0] > sign * means[1] > sign * means[2]


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_values_lie_within_the_range(name: str) -> None:
    (low, high), right, rng = metrics.facts(name).range, answers(name), np.random.default_rng(1)
    for _ in range(10):
        guesses = [right[i] for i in rng.integers(0, len(right), len(right))]
        assert low <= computed(name, guesses, right) <= high
    opposite = [1 - a if isinstance(a, int) else -a if isinstance(a, float) else "zz" for a in right]
    worst = computed(name, opposite, right)
    assert worst == pytest.approx(low if metrics.facts(name).higher_is_better else high, abs=1e-9)


def test_processes_may_load_at_once_into_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "loads.py").write_text(
        "from pathlib import Path\n"
        "from evaluate import config\n"
        "config.HF_METRICS_CACHE = config.HF_EVALUATE_CACHE = Path('cache')\n"
        "config.HF_MODULES_CACHE = Path('modules')\n"
        "from lora_zoo import metrics\n"
        "print(metrics.load('exact_match').compute(predictions=['a', 'b'], references=['a', 'c']))"
    )
    running = [start(at=tmp_path, module="loads") for _ in range(3)]
    outcomes = [process.communicate(timeout=120) for process in running]
    assert [out.strip() for out, _ in outcomes] == ["{'exact_match': 0.5}"] * 3, outcomes
    assert (tmp_path / "cache").is_dir()


def fresh(program: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@given(st.text(min_size=1).filter(str.strip), st.text(alphabet=string.printable, max_size=40))
def test_rouge_l_of_a_text_and_itself_is_one_in_every_script(text: str, english: str) -> None:
    assert computed("rouge_l", [text], [text]) == pytest.approx(1.0)
    theirs = DefaultTokenizer(use_stemmer=False).tokenize(english)
    assert words(english) == theirs or not theirs


@pytest.mark.parametrize(
    ("guess", "truth", "expected"),
    [
        ("кошка сидит дома", "кошка сидит там", 2 / 3),
        ("我喜欢猫", "我喜欢狗", 3 / 4),
        ("החתול ישן", "החתול אכל", 1 / 2),
        ("die Straße", "die Straßen", 1 / 2),
        ("हिन्दी भाषा", "हिन्दी लिपि", 1 / 2),
        ("cafe", "café", 0.0),
    ],
)
def test_rouge_l_counts_words_of_every_script(guess: str, truth: str, expected: float) -> None:
    assert computed("rouge_l", [guess], [truth]) == pytest.approx(expected)
