"""`lora-zoo completion bash`: print a shell script that completes commands, keys and their choices.

eval "$(lora-zoo completion bash)"              # in ~/.bashrc; zsh alike
lora-zoo completion fish | source               # in ~/.config/fish/config.fish
"""

import argparse
import re
from collections.abc import Iterable

from lora_zoo.__main__ import COMMANDS
from lora_zoo.config.groups import GROUPS, option_file, options

RUNS = ("run", "sweep")
_BASH = """\
_lora_zoo() {
  local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n'
  local word="${line##* }" current="${COMP_WORDS[COMP_CWORD]}"
  [[ "$current" == [=:] ]] && current=""
  COMPREPLY=($(lora-zoo completion query "$line" 2>/dev/null))
  COMPREPLY=("${COMPREPLY[@]#"${word%"$current"}"}")
}
complete -o nospace -o default -F _lora_zoo lora-zoo
"""
SCRIPTS = {
    "bash": _BASH,
    "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{_BASH}",
    "fish": "complete -c lora-zoo -a '(lora-zoo completion query (commandline -cp) 2>/dev/null)'\n",
}


def main(arguments: list[str] | None = None) -> None:
    """Print the script of a shell, or (`query LINE`, for the scripts) what may stand at a line's end."""
    parser = argparse.ArgumentParser(
        prog="lora-zoo completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=[*SCRIPTS, "query"])
    parser.add_argument("line", nargs="?", default="", help="with query: the line up to the cursor")
    given = parser.parse_args(arguments)
    print(SCRIPTS[given.shell] if given.shell in SCRIPTS else "\n".join(completions(given.line)))


def completions(line: str) -> list[str]:
    """The words that may end `line`, which begins with `lora-zoo`; its last word may be empty."""
    *before, last = line.split(" ")[1:] or [""]
    words = [word for word in before if word]
    if not words:
        return _beginning([f"{command} " for command in COMMANDS], last)
    if words[0] in ("list", "show"):
        from lora_zoo.choices import KINDS

        names = KINDS if words[0] == "list" else {name for of in KINDS.values() for name in of()}
        return _beginning(sorted(names), last)
    if words[0] in COMMANDS and words[0] not in RUNS:
        return []
    return _settings(words, last)


def _settings(words: list[str], last: str) -> list[str]:
    """The keys of a run that `last` begins, or the choices of its key; of several values, for the last."""
    plus, key, value = re.fullmatch(r"(\+{0,2})([^=]*)(=.*)?", last, re.DOTALL).groups()  # type: ignore[union-attr]
    if value is None:
        return _beginning((f"{plus}{name}" for name in _keys(words)), last)
    head, _, _ = value.rpartition(",")
    kept = f"{plus}{key}{head}," if head else f"{plus}{key}="
    return _beginning((f"{kept}{choice}" for choice in _choices_of(key)), last)


def _keys(words: list[str]) -> Iterable[str]:
    """All keys of a run, and those of the variant and of the task that the words before choose."""
    from lora_zoo.config.schema import KEYS

    yield from (f"{key}=" for key in dict.fromkeys([*GROUPS, *KEYS]))
    for group, option in (word.lstrip("+").split("=", 1) for word in words if "=" in word):
        if group == "variant" and option in options(group):
            from lora_zoo.core.hyperparameters import hyperparameters
            from lora_zoo.core.variants import VARIANTS

            yield from (f"variant.{key}=" for key in hyperparameters(VARIANTS[option]) if key not in KEYS)
        elif group in GROUPS and option in options(group):
            yield from (f"{group}.{key}=" for key in option_file(group, option)[1] if key != "defaults")


def _choices_of(key: str) -> Iterable[str]:
    if key == "init":
        from lora_zoo.core.init import INITS

        return INITS
    return options(key) if key in GROUPS else ()


def _beginning(words: Iterable[str], start: str) -> list[str]:
    return [word for word in words if word.startswith(start)]


if __name__ == "__main__":
    main()
