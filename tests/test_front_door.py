"""`lora-zoo completion` and `lora-zoo doctor`, and what an adapted model says of itself."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from torch import nn

import lora_zoo
from lora_zoo import doctor
from lora_zoo.__main__ import main
from lora_zoo.completion import SCRIPTS, completions
from lora_zoo.config.groups import options
from lora_zoo.core.errors import ELSEWHERE, unknown
from lora_zoo.core.variants import VARIANTS


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("lora-zoo cla", ["claims "]),
        ("lora-zoo list var", ["variants"]),
        ("lora-zoo show relora_r", ["relora_rank"]),
        ("lora-zoo run +varia", ["+variant="]),
        ("lora-zoo sweep variant=dora,lora_f", ["variant=dora,lora_fa"]),
        ("lora-zoo +variant=adalora variant.tin", ["variant.tinit="]),
        ("lora-zoo run init=olo", ["init=olora"]),
        ("lora-zoo merge some", []),
        ("lora-zoo run nothing", []),
    ],
)
def test_a_line_is_completed(line: str, offered: list[str]) -> None:
    assert completions(line) == offered


def test_every_option_of_a_group_is_offered() -> None:
    assert completions("lora-zoo run task=") == [f"task={name}" for name in options("task")]


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_the_script_of_bash_completes_what_follows_the_equals_sign(tmp_path: Path) -> None:
    """Bash splits words at =, so that a completion is the rest of the word alone."""
    (tmp_path / "lora-zoo").write_text("#!/bin/sh\nprintf '+variant=lora\\n+variant=lora_fa\\n'\n")
    (tmp_path / "lora-zoo").chmod(0o755)
    words = "COMP_WORDS=(lora-zoo run +variant = lo) COMP_CWORD=4"
    typed = f'COMP_LINE="lora-zoo run +variant=lo" COMP_POINT=24 {words}'
    script = f'{SCRIPTS["bash"]}\nPATH="{tmp_path}:$PATH"\n{typed}\n_lora_zoo\necho "${{COMPREPLY[@]}}"'
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "lora lora_fa\n"


def test_the_doctor_finds_what_is_wrong_and_says_what_would_be_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires = ["torch>=2.6", "wandb>=999", "no-such-package>=1", "nor-this>=2; extra == 'quant'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: requires)
    monkeypatch.setattr(doctor.metadata, "metadata", lambda _: _Extras())
    monkeypatch.setenv("WANDB_MODE", "ofline")
    found = list(doctor.findings(tmp_path / "runs"))
    wrong = [finding.about for finding in found if finding.state == "wrong"]
    assert any(about.endswith("pip install 'wandb>=999'") for about in wrong)
    assert "no-such-package>=1 is not installed: pip install 'no-such-package>=1'" in wrong
    assert any("WANDB_MODE 'ofline'. Did you mean 'offline'?" in about for about in wrong)
    assert doctor.CheckUp("note", "not installed: nor-this (pip install 'lora_zoo[quant]')") in found
    assert doctor.CheckUp("ok", "1 packages fit what lora_zoo needs") in found
    assert not (tmp_path / "runs").exists()


class _Extras:
    def get_all(self, _: str) -> list[str]:
        return ["quant"]


def test_the_doctor_leaves_with_1_where_nothing_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    with pytest.raises(SystemExit) as left:
        doctor.main(["--out", str(tmp_path)])
    assert left.value.code == 1
    assert f"nothing can be written to {tmp_path}: Permission denied" in capsys.readouterr().out


@pytest.mark.parametrize("word", ELSEWHERE)
def test_a_word_of_another_library_is_told_ours(word: str) -> None:
    ours = ELSEWHERE[word]
    assert f"Did you mean {ours!r}?" in unknown("key", word, ["lr", "steps", ours])
    assert "Did you mean" not in unknown("key", word, ["?"])


def test_an_adapted_model_says_what_it_is() -> None:
    adapted = lora_zoo.inject(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)), rank=2, target_modules=["0"])
    told = "rank=2, alpha=2.0, init=kaiming, lora_dropout=0.0"
    assert repr(adapted) == f"<lora({told}); 1 matrices: 0; trainable 20 of 78 (25.64%)>"
    adapted.remove()
    assert repr(adapted).endswith("taken out of its model>")


def test_variants_are_listed_by_a_call_and_are_a_package_all_the_same() -> None:
    import lora_zoo.variants.low_rank

    assert lora_zoo.variants() == list(VARIANTS)
    assert issubclass(lora_zoo.variants.low_rank.LowRank, nn.Module)


@pytest.mark.parametrize(
    "layer, there", [(nn.Linear(3, 3), "'all-linear', or names of its own: 0"), (nn.ReLU(), "none at all")]
)
def test_a_model_without_roles_is_told_what_it_has(layer: nn.Module, there: str) -> None:
    with pytest.raises(ValueError, match=there):
        lora_zoo.inject(nn.Sequential(layer), rank=2)


def test_the_version_is_the_packages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    monkeypatch.setattr(sys, "argv", ["lora-zoo", "--version"])
    main()
    assert capsys.readouterr().out == f"lora_zoo {project['version']}\n"
