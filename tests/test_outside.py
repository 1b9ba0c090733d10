"""Variants from outside the package: a file in the researcher's own folder, another distribution."""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from lora_zoo.config import command_line, schema
from lora_zoo.config import compose as composing
from lora_zoo.config.spec import RunSpec
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs.identity import specify
from tests.processes import start

WORDS = ("steps=2", "rank=2", "tracking=none", "eval_before_training=false", "eval_splits=[validation]")
WORDS += ("+task.sizes={train: 8, validation: 4, test: 4}", "out=o")
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
    for held in ("_members", "_origins"):
        monkeypatch.setattr(VARIANTS, held, dict(getattr(VARIANTS, held)))


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
    written(tmp_path, "outside_a")
    words = ("-m", "+variant=./mine.py,lora", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *WORDS)
    code, said = ran(*words, at=tmp_path)
    assert code == 0, said
    (run,) = tmp_path.glob("o/*/outside_a-*")
    record = json.loads((run / "result.json").read_text())
    assert record["state"] == "done" and record["variant"]["name"] == "outside_a"
    assert "variant=./mine.py" in record["command"]
    assert record["config"]["variant_file"] == str(tmp_path / "mine.py")
    code, said = ran(*words, at=tmp_path)
    assert code == 0 and said.count("done already") == 2, said
    code, said = ran(str(run), "merged", at=tmp_path, module="lora_zoo.merge")
    assert code == 2 and "has a variant of its own, 'outside_a'" in said and "--variant" in said
    assert not (tmp_path / "merged").exists()
    code, said = ran(str(run), "merged", "--variant", "mine.py", at=tmp_path, module="lora_zoo.merge")
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


def test_a_variant_of_another_distribution_is_chosen_by_name(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    written(site, "outside_h", file="of_theirs.py").with_suffix(".yaml").write_text(
        "variant:\n  extra: 5.0\n"
    )
    about = site / "of_theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: of_theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[lora_zoo.variant]\noutside_h = of_theirs:Scaled1\n")
    code, said = ran("+variant=outside_h", *WORDS, at=tmp_path, PYTHONPATH=str(site))
    assert code == 0, said
    (run,) = tmp_path.glob("o/outside_h-*")
    record = json.loads((run / "result.json").read_text())
    assert record["variant"]["hyperparameters"]["extra"] == 5.0
    assert record["config"]["variant_file"] is None


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
    assert code == 1 and "outside_j-linear]" in said, said[-3000:]
    code, said = suite(tmp_path, "--variant", "./absent.py")
    assert code == 4 and "absent.py: No such file" in said, said[-3000:]
