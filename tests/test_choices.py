"""`lora-zoo`, `lora-zoo list` and `lora-zoo show`: every choice is listed, and shown without an error."""

import sys

import pytest

from lora_zoo import __main__ as front
from lora_zoo import choices
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_every_choice_is_listed_and_shown(capsys):
    choices.main([])
    listed = said(capsys)
    for kind, of in choices.KINDS.items():
        assert f"\n{kind}:\n" in listed
        for name in of():
            assert f"\n  {name} " in listed.replace("\n", " \n"), (kind, name)
            assert "".join(choices._lines_of(kind, name)), (kind, name)


def test_a_variant_is_shown_with_its_keys_and_their_defaults(capsys):
    choices.show(["dora"])
    shown = said(capsys)
    for line in ("variant=dora", "arXiv:2402.09353", "R * (O + I) + O a matrix (O, I)", "in PEFT's own form"):
        assert line in shown
    assert all(f"\n  {key}=" in shown for key in hyperparameters(VARIANTS["dora"]))
    choices.show(["hydralora"])
    assert "no: its output is no product of x with one matrix" in said(capsys)


def test_a_name_of_several_kinds_is_shown_as_each(capsys):
    choices.show(["pissa"])
    shown = said(capsys)
    assert "variant=pissa" in shown and "init=pissa" in shown


@pytest.mark.parametrize("command, told", [(choices.main, "unknown kind 'task-s'"), (choices.show, "pissa")])
def test_an_unknown_name_is_told_the_nearest(command, told, capsys):
    with pytest.raises(SystemExit) as left:
        command(["task-s" if command is choices.main else "pisa"])
    assert left.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_the_commands_are_listed(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lora-zoo", *words])
    front.main()
    shown = said(capsys)
    assert all(f"\n  {word} " in shown for word in front.COMMANDS)


def test_each_command_gets_the_words_after_it(monkeypatch):
    for word, command in front.COMMANDS.items():
        module = __import__(command.module, fromlist=["main"])
        seen: list[list[str]] = []
        monkeypatch.setattr(module, command.function, lambda seen=seen: seen.append(sys.argv))
        monkeypatch.setattr(sys, "argv", ["lora-zoo", word, "x"])
        front.main()
        assert seen == [[f"lora-zoo {word}", *command.before, "x"]]
