"""Members from outside the package: a file in the researcher's own folder, another distribution."""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from lora_zoo import runs as results
from lora_zoo.config import command_line, schema
from lora_zoo.config import compose as composing
from lora_zoo.config.spec import RunSpec
from lora_zoo.conformance.cases import lone
from lora_zoo.core.init import INITS
from lora_zoo.core.program import PROGRAMS
from lora_zoo.core.user_files import run_file
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.injection.inject import inject
from lora_zoo.runs.identity import specify
from tests.processes import start

WORDS = ("steps=2", "rank=2", "tracking=none", "eval_before_training=false", "eval_splits=[validation]")
WORDS += ("+task.sizes={train: 8, validation: 4, test: 4}", "out=o", "threads=1")
WORDS += ("task.max_new_tokens=2", "forgetting_text=null")
SOURCE = '''
"""A variant of one's own."""

from torch import Tensor

from lora_zoo import LowRank, register


@register("{name}")
class Scaled{number}(LowRank):
    """W times a low-rank matrix, entry by entry."""

    paper = "none"
    equation = "W' = W + {number} W ⊙ (α/r) B A"
    count = "R * (O + I)"

    def __init__(self, context, *, extra: float = 1.0, **hyper):
        super().__init__(context, **hyper)
        self.extra = extra

    def weight(self, W_OI: Tensor) -> Tensor:
        return W_OI * (1 + {number} * self.extra * self.update())
'''


def written(folder: Path, name: str, number: int = 1, file: str = "mine.py") -> Path:
    path = folder / file
    path.write_text((path.read_text() if path.exists() else "") + SOURCE.format(name=name, number=number))
    return path


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test typed and registered does not stay for the next."""
    monkeypatch.setenv("LORA_ZOO_TYPED", "{}")
    for registry in (VARIANTS, INITS, PROGRAMS):
        for held in ("_members", "_origins"):
            monkeypatch.setattr(registry, held, dict(getattr(registry, held)))


def ran(*arguments: str, at: Path, module: str = "lora_zoo.run", **env: str) -> tuple[int, str]:
    running = start(*arguments, at=at, module=module, merged=True, **env)
    said, _ = running.communicate(180)
    return running.returncode or 0, said


def asked(*overrides: str) -> RunSpec:
    schema.register()
    ready = command_line.rewritten(list(overrides))
    return specify(composing.check(command_line.overrides(ready), multirun=False)[0])


def refused(*overrides: str) -> str:
    with pytest.raises(ValueError) as error:
        asked(*overrides)
    return str(error.value)


def test_a_file_in_an_empty_folder_trains_sweeps_goes_on_and_is_merged(tmp_path: Path) -> None:
    """In workers, which are new interpreters; the start is of one's own, too."""
    path = written(tmp_path, "outside_a")
    path.write_text(path.read_text() + OTHERS)
    words = ("-m", "+variant=./mine.py:outside_a,lora", "init=./mine.py:outside_start", *WORDS)
    code, said = ran(*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", at=tmp_path)
    assert code == 0, said
    (run,) = tmp_path.glob("o/*/outside_a-*")
    record = json.loads((run / "result.json").read_text())
    assert record["state"] == "done" and record["variant"]["name"] == "outside_a"
    assert "variant=./mine.py" in record["command"]
    assert record["config"]["files"] == [str(tmp_path / "mine.py")]
    code, said = ran(*words, at=tmp_path)
    assert code == 0 and said.count("done already") == 2, said
    code, said = ran(str(run), "merged", at=tmp_path, module="lora_zoo.merge")
    assert code == 2 and "has a variant of its own, 'outside_a'" in said and "--file" in said
    assert not (tmp_path / "merged").exists()
    code, said = ran(str(run), "merged", "--file", "mine.py", at=tmp_path, module="lora_zoo.merge")
    assert code == 0 and (tmp_path / "merged" / "config.json").is_file(), said
    code, said = ran(str(run), "--variant", "mine.py", at=tmp_path, module="lora_zoo.spectra")
    assert code == 0 and "q_proj" in said, said


def test_its_content_is_in_the_identity_and_its_place_is_not(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    first = asked(f"variant={written(here, 'outside_b')}", "rank=2")
    again = asked(f"variant={here / 'mine.py'}", "rank=2")
    assert first.identity == again.identity and first.variant is again.variant
    with (here / "mine.py").open("a") as file:
        file.write("\n\nCHANGED = True\n")
    changed = asked(f"variant={here / 'mine.py'}", "rank=2")
    assert changed.identity != first.identity
    assert changed.variant is not first.variant, "the file has changed and was not run again"
    same = specify(first.settings)
    assert same.identity == changed.identity


HELPED = """
from lora_zoo import Additive, register
import helping_hand


@register("outside_helped")
class Helped(Additive):
    paper, equation, count = "none", "W' = W + 2 B A", "R * (O + I)"

    @staticmethod
    def scaling(alpha, rank):
        return helping_hand.TWO * alpha / rank
"""


def test_what_a_file_imports_from_its_own_folder_counts_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    helper, mine = tmp_path / "helping_hand.py", tmp_path / "mine.py"
    mine.write_text(HELPED)

    def of(content: str) -> str:
        helper.write_text(content)
        return asked(f"variant={mine}").identity

    first = of("TWO = 2\n")
    assert of("TWO = 2  # as much as that\n") == first != of("TWO = 3\n")


def test_a_yaml_file_beside_it_gives_defaults_that_the_command_line_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, "outside_c")
    path.with_suffix(".yaml").write_text("# Mine.\nvariant:\n  extra: 3.0\nlr: 0.5\n")
    spec = asked(f"variant={path}", "rank=2")
    assert spec.hyperparameters["extra"] == 3.0 and spec.settings.lr == 0.5
    assert asked(f"variant={path}", "variant.extra=4.0").hyperparameters["extra"] == 4.0


def test_one_of_several_in_a_file_is_chosen_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, "outside_d")
    written(tmp_path, "outside_e", number=2)
    assert asked(f"variant={path}:outside_e").variant.name == "outside_e"
    assert "registers outside_d, outside_e; write" in refused(f"variant={path}")
    assert "registers outside_d, outside_e; write" in refused(f"variant={path}:outside_f")


OTHERS = """
import torch

from lora_zoo.core import init, program


@init.register("outside_start", "none", zero="B")
def start(W_OI, rank, scale, source):
    O, I = W_OI.shape
    return init.Factors(torch.randn(rank, I, generator=source.A) / I, torch.zeros(O, rank))


@program.register("outside_halves")
def halves(context, *, first: int = 1):
    yield program.Stage(first)
    yield program.Stage(context.steps - first, then="keep")
"""


def test_an_init_and_a_program_of_one_s_own_train_in_a_sweep_that_is_known_again(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OTHERS)
    words = ("-m", "init=./mine.py:outside_start,kaiming", "program=./mine.py:outside_halves", *WORDS)
    words += ("program.first=1",)
    code, said = ran(*words, at=tmp_path)
    assert code == 0, said
    runs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("o/*/*/result.json"))]
    assert [run["state"] for run in runs] == ["done"] * 2 and [len(run["stages"]) for run in runs] == [2, 2]
    assert {run["config"]["init"] for run in runs} == {"outside_start", "kaiming"}
    frame = results.load(tmp_path / "o")
    assert frame["contradiction"].tolist() == ["", ""]
    assert set(frame["stale"]) == {"there is no program 'outside_halves' any more"}, "no file is run unasked"
    assert any("init=./mine.py:outside_start program=./mine.py:outside_halves" in r["command"] for r in runs)
    code, said = ran(*words, at=tmp_path)
    assert code == 0 and said.count("done already") == 2, said


@pytest.mark.parametrize("key", ["init", "program"])
def test_the_content_of_any_own_file_is_in_the_identity_of_the_runs_that_use_it(key, tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OTHERS)
    chosen = f"{key}={path}:{'outside_start' if key == 'init' else 'outside_halves'}"
    first, plain = asked(chosen).identity, asked("rank=4").identity
    path.write_text("# A comment.\n" + OTHERS)
    assert asked(chosen).identity == first
    path.write_text(OTHERS.replace("/ I", "/ O").replace("first: int = 1", "first: int = 2"))
    assert asked(chosen).identity != first and asked("rank=4").identity == plain
    assert "registers outside_start, outside_halves; write" in refused(f"{key}={path}")
    assert "there is no such file" in refused(f"{key}={tmp_path}/absent.py")


def test_an_adapter_with_a_start_of_one_s_own_asks_for_its_file_and_runs_none(tmp_path, monkeypatch) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OTHERS)
    run_file(path)
    injection = inject(lone("linear"), "lora", target_modules="layer", rank=2, init="outside_start")
    saved = save_adapter(injection, tmp_path / "adapter")
    path.write_text("raise SystemExit('unasked')\n" + OTHERS)
    with monkeypatch.context() as patch:
        for held in ("_members", "_origins"):
            patch.setattr(INITS, held, {})
        with pytest.raises(ValueError, match=r"has an init of its own, 'outside_start', which .*mine.py"):
            load_adapter(lone("linear"), saved)
    assert load_adapter(lone("linear"), saved).hyper["init"] == "outside_start"


def test_a_metric_by_its_path_counts_with_its_content(tmp_path: Path) -> None:
    metric = tmp_path / "mine.py"
    metric.write_text("one")
    first = asked(f"task.metrics=[{metric}]")
    metric.write_text("two")
    assert asked(f"task.metrics=[{metric}]").identity != first.identity
    assert list(first.made_of["data"]) == ["generated examples", "metric mine.py"]


MISTAKES: dict[str, tuple[str, str]] = {
    "no such file": ("", "there is no such file"),
    "no variant": ("x = 1\n", 'has no line like @register("mine")'),
    "broken": (
        'raise OSError("not today")\n@register("outside_g")\nclass X: ...\n',
        "OSError: not today",
    ),
    "taken": (
        SOURCE.format(name="dora", number=1),
        "the variant name 'dora' is taken by lora_zoo.variants.decomposed.dora",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_file_that_will_not_do_is_named_with_the_reason(case: str, tmp_path: Path) -> None:
    content, message = MISTAKES[case]
    path = tmp_path / "mine.py"
    if content:
        path.write_text(content)
    said = refused(f"variant={path}", "rank=2")
    assert message in said and str(path) in said
    assert "\n" not in said


def test_an_unknown_name_is_told_that_a_file_would_do() -> None:
    assert "Did you mean 'dora'" in (said := refused("variant=doora"))
    assert said.endswith("or a Python file of your own")


@pytest.mark.parametrize("flag", ["--config-dir=x", "hydra.searchpath=[x]"])
def test_folders_of_options_are_refused_with_what_to_use(flag: str) -> None:
    assert "variant=FILE.py" in refused(flag)


METRIC = """
import datasets
import evaluate


class Outside(evaluate.Metric):
    higher_is_better, range = False, (0.0, 4.0)

    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"outside": 2.0}
"""


def test_a_variant_and_a_metric_of_another_distribution_are_chosen_by_name(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    written(site, "outside_h", file="of_theirs.py").with_suffix(".yaml").write_text(
        "variant:\n  extra: 5.0\n"
    )
    about = site / "of_theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: of_theirs\nVersion: 1.0\n")
    points = {"variant": "outside_h = of_theirs:Scaled1", "metric": "outside = judges:Outside"}
    lines = [f"[lora_zoo.{kind}]\n{point}\n" for kind, point in points.items()]
    (about / "entry_points.txt").write_text("".join(lines))
    (site / "judges.py").write_text(METRIC)
    words = ("+variant=outside_h", "task.metrics=[outside]", *WORDS)
    code, said = ran(*words, at=tmp_path, PYTHONPATH=str(site))
    assert code == 0, said
    (run,) = tmp_path.glob("o/outside_h-*")
    record = json.loads((run / "result.json").read_text())
    assert record["variant"]["hyperparameters"]["extra"] == 5.0
    assert record["config"]["files"] == []
    assert record["metrics"]["validation"]["outside"] == 2.0
    assert record["metric_facts"] == {"outside": {"higher_is_better": False, "range": [0.0, 4.0]}}


def suite(folder: Path, *arguments: str) -> tuple[int, str]:
    quick = (
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "forward_is_the_layer_with_the_effective_weight or gets_a_gradient",
    )
    words = ("--pyargs", "lora_zoo.conformance", "-p", "lora_zoo.conformance.plugin")
    words = words[:2] if any(point.name == "lora_zoo" for point in entry_points(group="pytest11")) else words
    return ran(*words, *quick, *arguments, at=folder, module="pytest")


def test_the_conformance_suite_takes_a_file_and_finds_what_is_wrong(tmp_path: Path) -> None:
    written(tmp_path, "outside_i")
    code, said = suite(tmp_path, "--variant", "./mine.py")
    assert code == 0 and "outside_i" not in said and " passed" in said, said[-3000:]
    wrong = written(tmp_path, "outside_j", file="wrong.py")
    with wrong.open("a") as file:
        file.write("\n    def forward(self, x, host):\n        return 2 * super().forward(x, host)\n")
    code, said = suite(tmp_path, "--variant", "./wrong.py")
    assert code == 1 and "outside_j]" in said and "the case: linear" in said, said[-3000:]
    code, said = suite(tmp_path, "--variant", "./absent.py")
    assert code == 4 and "absent.py: No such file" in said, said[-3000:]
