"""`fedsgd completion`, and the scripts by which shells ask for completions."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, ClassVar

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from fedsgd.cli.app import main
from fedsgd.cli.streams import echo
from fedsgd.errors import make_write_error

SHELLS = ("bash", "zsh", "fish")
PROGRAM, VARIABLE = "fedsgd", "_FEDSGD_COMPLETE"
START_FILES = {"bash": ".bashrc", "zsh": ".zshrc"}
"""File in the home folder that a shell reads at its start."""

BASH_SCRIPT = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    local line=${COMP_LINE:0:COMP_POINT}
    # bash replaces only the characters after the last break, "=" or ":"
    local word=${line##*[[:space:]]} prefix="" breaks=${COMP_WORDBREAKS//[^=:]/}
    [[ -n $breaks ]] && prefix=${word%%"${word##*[$breaks]}"}
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            nospace) compopt -o nospace; COMPREPLY+=("${value#"$prefix"}") ;;
            plain) COMPREPLY+=("${value#"$prefix"}") ;;
        esac
    done < <(COMP_WORDS="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
ZSH_SCRIPT = """\
#compdef %(prog_name)s

(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u; }

%(complete_func)s() {
    local -a plain_items nospace_items response
    local type entry
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \\
%(complete_var)s=zsh_complete %(prog_name)s 2>/dev/null)}")
    for type entry in ${response}; do
        case $type in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            nospace) nospace_items+=("$entry") ;;
            plain) plain_items+=("$entry") ;;
        esac
    done
    (( $#plain_items )) && _describe -V unsorted plain_items -U
    (( $#nospace_items )) && _describe -V unsorted nospace_items -U -S ''
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""
FISH_SCRIPT = """\
function %(complete_func)s
    set -l response (COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) \\
%(complete_var)s=fish_complete %(prog_name)s 2>/dev/null)
    for completion in $response
        set -l parts (string split -m 1 "," -- $completion)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case plain nospace
                echo $parts[2]
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _QuietCompletion(ShellComplete):
    """Completion that has no results instead of an error."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        try:
            return super().get_completions(args, incomplete)
        except Exception:  # a message would be printed into the command line that the user is writing
            return []


@add_completion_class
class _BashCompletion(_QuietCompletion, BashComplete):
    """Completion in bash, also after "=" and of values that no space follows."""

    source_template: ClassVar[str] = BASH_SCRIPT

    def source(self) -> str:
        """Return the script, without the check of click that starts a shell."""
        return ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        """Split the command line up to the cursor, which is in COMP_WORDS, only at spaces."""
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        return (words[1:], "") if line[-1:].isspace() else (words[1:-1], words[-1])


@add_completion_class
class _ZshCompletion(_QuietCompletion, ZshComplete):
    """Completion in zsh, also of values that no space follows."""

    source_template: ClassVar[str] = ZSH_SCRIPT

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Return the type, and the value with its description as `_describe` of zsh reads them."""
        value = str(item.value).replace("\\", "\\\\").replace(":", "\\:")
        description = " ".join((item.help or "").split())
        return f"{item.type}\n{value}{':' * bool(description)}{description}"


@add_completion_class
class _FishCompletion(_QuietCompletion, FishComplete):
    """Completion in fish, also of values that contain commas."""

    source_template: ClassVar[str] = FISH_SCRIPT


EXAMPLES = """Examples:

\b
    fedsgd completion bash --install
"""


@main.command("completion", epilog=EXAMPLES, short_help="Print or install completion for a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.option(
    "--install",
    is_flag=True,
    help="Install the script for this user: write the script to a file, and let the start file of bash or zsh read it.",
)
def completion_command(shell: str, install: bool) -> None:
    """Print the script that lets SHELL complete fedsgd's commands, options, keys, components, networks and run folders.

    `fedsgd completion bash --install` is all that is needed; a new shell then completes. Without --install, no file is
    changed. With --install, the script is written to ~/.local/share/fedsgd/completion.SHELL, and a line that reads the script
    is appended to ~/.bashrc or ~/.zshrc, once. For fish, the script is written to ~/.config/fish/completions/fedsgd.fish.
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    script = completion_class(main, {}, PROGRAM, VARIABLE).source()
    if install:
        _install(shell, script)
    else:
        echo(script, nl=False)


def _install(shell: str, script: str) -> None:
    """Write the script for a shell, and append the line that reads it to the shell's start file."""
    home = Path.home()
    if shell == "fish":
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "fish" / "completions"
        path = folder / f"{PROGRAM}.fish"
    else:
        path = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / PROGRAM / f"completion.{shell}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script, encoding="utf-8")
        echo(f"written to {path}")
        if shell in START_FILES:
            _append_line(home / START_FILES[shell], f". {shlex.quote(str(path))}")
    except OSError as error:
        raise make_write_error(error.filename or path, error) from None
    echo(f"completion works in every new {shell}")


def _append_line(path: Path, line: str) -> None:
    """Append a line to a file, unless the file has the line already."""
    text = path.read_bytes() if path.exists() else b""
    if line.encode() in text.splitlines():
        echo(f"{path} reads the script already")
        return
    with path.open("ab") as file:
        file.write(b"\n" * bool(text and not text.endswith(b"\n")) + f"{line}\n".encode())
    echo(f"appended to {path}: {line}")
