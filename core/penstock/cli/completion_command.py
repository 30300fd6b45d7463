"""`penstock completion`: what a shell needs to complete our commands, names and ids."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from penstock.cli import EXIT_NO
from penstock.cli import penstock as root


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print the completion script of a shell, for its start-up file.

    \b
    bash, in ~/.bashrc:   eval "$(penstock completion bash)"
    zsh, in ~/.zshrc:     eval "$(penstock completion zsh)"
    fish:                 penstock completion fish > ~/.config/fish/completions/penstock.fish
    """
    completion = get_completion_class(shell)
    if completion is None:
        click.echo(f"penstock: this version of click completes nothing in {shell}: pip install -U click", err=True)
        return EXIT_NO
    click.echo(completion(root, {}, "penstock", "_PENSTOCK_COMPLETE").source())
    return 0
