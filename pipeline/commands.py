"""Commands that are built when they are asked for, so that the group's `--help` loads no stage.

Imports click alone; what a command needs is imported when it is built.
"""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.config import Config

Build = Callable[..., click.Command]
ARGUMENTS = "unipt.arguments"


class Commands(click.Group):
    """A group whose commands are built on first use; their summaries are at hand at once."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.summaries: dict[str, str] = {}
        self.builders: dict[str, Build] = {}
        self.by_task: set[str] = set()

    def stage(self, name: str, summary: str, *, by_task: bool = False) -> Callable[[Build], Build]:
        """Register the builder of the command `name`.

        Args:
            name: of the command.
            summary: one line of the group's help.
            by_task: whether the builder takes the chosen task and its system.
        """

        def register(build: Build) -> Build:
            self.summaries[name] = summary
            self.builders[name] = build
            self.by_task |= {name} if by_task else set()
            return build

        return register

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Note the arguments, which name the task, and resolve as usual."""
        ctx.meta[ARGUMENTS] = args[1:]
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a user's work."""
        return list(self.summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Build the command `cmd_name`, or return None if there is none."""
        return self.build(cmd_name, ctx.meta.get(ARGUMENTS, ()))

    def build(self, name: str, arguments: Sequence[str] = ()) -> click.Command | None:
        """Build the command `name` as its `arguments` want it, or return None if there is none."""
        if name not in self.builders:
            return None
        if name not in self.by_task:
            command = self.builders[name]()
        else:
            from pipeline.options import chosen_task, task_note  # noqa: PLC0415 - loads torch
            from pipeline.systems import system_of  # noqa: PLC0415

            task = chosen_task(arguments)
            command = self.builders[name](task, system_of(task))
            command.help = f"{command.help}\n\n{task_note(task)}"
        command.name = name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing their stages."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries.items()))


def show(report: Any, as_json: bool) -> None:
    """Print a report: its lines for a person, or its values as JSON."""
    click.echo(json.dumps(report.to_dict(), indent=1) if as_json else report.render())


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def command_of(
    cls: "type[Config]",
    work: Callable[..., Any],
    arguments: tuple[str, ...],
    text: str,
    *,
    example: str,
    progress: bool = False,
) -> click.Command:
    """Return the command that builds a `cls` from its options, gives it to `work`, and prints.

    Args:
        cls: the stage's config.
        work: the stage.
        arguments: fields taken as positional arguments.
        text: help.
        example: a call, for the end of the help.
        progress: whether `work` takes a callback `progress`.
    """
    from pipeline.console import progress_line  # noqa: PLC0415
    from pipeline.options import build_config, config_options  # noqa: PLC0415 - loads torch

    @click.command(help=text, epilog=f"Example: unipt {example}")
    @config_options(cls, arguments=arguments)
    @as_json
    @click.pass_context
    def command(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
        config = build_config(cls, ctx)
        if not progress:
            return show(work(config), as_json)
        with progress_line() as line:
            report = work(config, progress=line)
        return show(report, as_json)

    return command
