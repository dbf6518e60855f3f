"""The command line: parses, calls one function, prints. `unipt COMMAND --help` tells the rest.

A command's module is imported when the command runs, so `--help` is quick and `train` never loads
transformers. `plan`, `extract` and `train` take the options of the family that `--task` names.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

if TYPE_CHECKING:
    from pipeline.sweep.config import SearchConfig

Build = Callable[[], click.Command]
ARGUMENTS = "unipt.arguments"


class Commands(click.Group):
    """A group whose commands are built on first use; their summaries are at hand at once.

    A command may have one builder for each family of tasks; the arguments tell which is meant.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.summaries: dict[str, str] = {}
        self.builders: dict[tuple[str, str], Build] = {}

    def stage(
        self, name: str, summary: str = "", *, family: str = "sentences"
    ) -> Callable[[Build], Build]:
        """Register the builder of the command `name` for a family of tasks."""

        def register(build: Build) -> Build:
            self.summaries.setdefault(name, summary)
            self.builders[name, family] = build
            return build

        return register

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Note the arguments, which name the family of tasks, and resolve as usual."""
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
        families = {family for known, family in self.builders if known == name}
        if not families:
            return None
        family = "sentences"
        if len(families) > 1:
            from pipeline.options import task_family

            family = task_family(arguments)
        command = self.builders[name, family]()
        command.name = name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing their stages."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="unipt")
def commands() -> None:
    """Run a frozen backbone once, cache every layer, train tiny side networks from the cache."""


def show(report: Any, as_json: bool) -> None:
    """Print a report: its lines for a person, or its values as JSON."""
    click.echo(json.dumps(report.to_dict(), indent=1) if as_json else report.render())


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
cache_argument = click.argument("cache")
run_argument = click.argument("run", type=click.Path(path_type=Path))
from_trial_option = click.option(
    "--from-trial", help="SWEEP:NUMBER, a trial to train; flags win over it."
)


def of_trial(ctx: click.Context, trial: str | None, *arguments: str) -> dict[str, Any]:
    """Return what `build_config` takes of --from-trial, whose only one of `arguments` is OUT."""
    if trial is None:
        return {}
    from pipeline.sweep.runs import trial_settings

    given = [ctx.params.pop(name) for name in arguments]
    if given[0] is None or any(value is not None for value in given[1:]):
        raise click.UsageError("with --from-trial give the folder OUT and nothing else")
    return {"base": trial_settings(trial), "out": given[0]}


@commands.stage("plan", "Bytes, time, tier and break-even of an extraction; writes nothing.")
def _plan() -> click.Command:
    from pipeline.options import build_config, config_options
    from pipeline.plan import PlanConfig, plan

    @click.command(epilog="Example: unipt plan MODEL --train tweets.tsv --text text")
    @config_options(PlanConfig, arguments=("backbone",))
    @as_json
    @click.pass_context
    def command(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
        """Tell what an extraction costs: bytes to the byte, time from a short measured trial."""
        show(plan(build_config(PlanConfig, ctx)), as_json)

    return command


@commands.stage("plan", family="retrieval")
def _plan_retrieval() -> click.Command:
    from pipeline.options import build_config, config_options
    from pipeline.plan import RetrievalPlanConfig, plan

    @click.command(epilog="Example: unipt plan MODEL --task retrieval --train captions.jsonl")
    @config_options(RetrievalPlanConfig, arguments=("backbone",))
    @as_json
    @click.pass_context
    def command(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
        """Tell what caching one tower costs: bytes to the byte, time from a measured trial."""
        show(plan(build_config(RetrievalPlanConfig, ctx)), as_json)

    return command


@commands.stage("extract", "Run the frozen backbone once; write every tap into a cache.")
def _extract() -> click.Command:
    from pipeline.console import progress_line
    from pipeline.extract import ExtractConfig, extract
    from pipeline.options import build_config, config_options

    @click.command(epilog="Example: unipt extract MODEL tweets.zarr --train tweets.tsv")
    @config_options(ExtractConfig, arguments=("backbone", "out"))
    @as_json
    @click.pass_context
    def command(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
        """Run BACKBONE over every input of the data once and write its taps into the cache OUT.

        The same command resumes an interrupted extraction.
        """
        config = build_config(ExtractConfig, ctx)
        with progress_line() as progress:
            report = extract(config, progress=progress)
        show(report, as_json)

    return command


@commands.stage("extract", family="retrieval")
def _extract_retrieval() -> click.Command:
    from pipeline.console import progress_line
    from pipeline.extract import RetrievalExtractConfig, extract
    from pipeline.options import build_config, config_options

    @click.command(
        epilog="Example: unipt extract MODEL pictures.zarr --task retrieval --train captions.jsonl"
    )
    @config_options(RetrievalExtractConfig, arguments=("backbone", "out"))
    @as_json
    @click.pass_context
    def command(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
        """Run BACKBONE over the captions, or the pictures or clips, and cache its taps in OUT.

        A text model reads the captions, an image model the pictures or clips: one cache a tower.
        The same command resumes an interrupted extraction.
        """
        config = build_config(RetrievalExtractConfig, ctx)
        with progress_line() as progress:
            report = extract(config, progress=progress)
        show(report, as_json)

    return command


@commands.stage("inspect", "What a cache holds: taps, samples, bytes, provenance.")
def _inspect() -> click.Command:
    from cache import info

    @click.command()
    @cache_argument
    @as_json
    def command(cache: str, as_json: bool) -> None:
        """Describe the cache CACHE without reading its activations."""
        show(info(cache), as_json)

    return command


@commands.stage("verify", "Check every chunk of a cache against its checksum.")
def _verify() -> click.Command:
    from cache import verify

    @click.command()
    @cache_argument
    @click.option("--repair", is_flag=True, help="Mark what is damaged to be extracted again.")
    @as_json
    def command(cache: str, repair: bool, as_json: bool) -> None:
        """Read the whole cache CACHE; exit with status 1 if anything is damaged.

        After --repair the command that made the cache redoes exactly what was damaged.
        """
        report = verify(cache, repair=repair)
        show(report, as_json)
        sys.exit(0 if report.ok else 1)

    return command


@commands.stage("cache", "Keep caches: ls, merge, convert, gc.")
def _cache() -> click.Command:
    from cache import StorageType, convert, gc, ls, merge

    folder, out = click.argument("folder"), click.argument("out")
    parts = click.argument("parts", nargs=-1, required=True)

    @click.group()
    def group() -> None:
        """Keep caches. Rewrites stream, and the same command resumes one that was interrupted."""

    @group.command("ls")
    @folder
    @as_json
    def list_caches(folder: str, as_json: bool) -> None:
        """List the caches below FOLDER: state, samples, taps, bytes, provenance."""
        show(ls(folder), as_json)

    @group.command("merge", epilog="Example: unipt cache merge a.zarr b.zarr --out both.zarr")
    @parts
    @click.option("--out", required=True, help="The new cache.")
    @click.option("--seed", default=0, show_default=True, help="Seed of the order on disk.")
    @as_json
    def merge_caches(parts: tuple[str, ...], out: str, seed: int, as_json: bool) -> None:
        """Merge the caches PARTS of one backbone into one."""
        show(merge(parts, out, seed=seed), as_json)

    @group.command("convert")
    @cache_argument
    @out
    @click.option("--dtype", type=click.Choice(get_args(StorageType)), help="Another storage type.")
    @click.option(
        "--dtype-of", multiple=True, help="That of some taps: PATTERN=TYPE, as in extract."
    )
    @click.option("--compress", "compression", help="Of chunks: none, zstd or zstd:LEVEL.")
    @click.option("--taps", multiple=True, help="Name of a tap to keep; all by default.")
    @click.option("--block-tokens", type=int, help="Tokens of a block.")
    @click.option("--blocks-per-shard", type=int, help="Blocks of a shard file.")
    @as_json
    def change(
        cache: str, out: str, *, as_json: bool, dtype_of: tuple[str, ...], **options: Any
    ) -> None:
        """Write CACHE into the new cache OUT in another type or layout."""
        options["taps"] = options["taps"] or None
        if dtype_of:
            from pipeline.extraction.storage import converted_types

            options["dtype"] = converted_types(cache, options["dtype"], options["taps"], dtype_of)
        show(convert(cache, out, **options), as_json)

    @group.command("gc")
    @folder
    @click.option("--yes", is_flag=True, help="Delete without asking.")
    def collect(folder: str, yes: bool) -> None:
        """List what interrupted work has left below FOLDER, and delete it when told to."""
        found = gc(folder)
        click.echo(found.render())
        if found.items and (yes or click.confirm("Delete these?", default=False)):
            click.echo(gc(folder, delete=True).render())

    return group


@commands.stage("train", "Train a side network, or probes, from a cache.")
def _train() -> click.Command:
    from pipeline.console import progress_line
    from pipeline.options import build_config, config_options
    from pipeline.probe import probe
    from pipeline.train import TrainConfig, train

    @click.command(epilog="Example: unipt train tweets.zarr runs/tweets --train tweets.tsv")
    @config_options(TrainConfig, arguments=("cache", "out"))
    @from_trial_option
    @click.option(
        "--probe",
        "layers",
        type=click.Choice(["last", "all"]),
        help="Train a scikit-learn probe on mean-pooled states instead, for comparison.",
    )
    @as_json
    @click.pass_context
    def command(
        ctx: click.Context,
        /,
        layers: Literal["last", "all"] | None,
        from_trial: str | None,
        as_json: bool,
        **_: Any,
    ) -> None:
        """Train a side network from CACHE and the targets of the data; write the run OUT.

        The backbone is neither loaded nor needed. The same command resumes an interrupted run.
        With --from-trial the only argument is OUT.
        """
        settings = of_trial(ctx, from_trial, "cache", "out")
        config = build_config(TrainConfig, ctx, **settings)
        if layers is not None:
            return show(probe(config, layers), as_json)
        with progress_line() as progress:
            report = train(config, progress=progress)
        return show(report, as_json)

    return command


@commands.stage("train", family="retrieval")
def _train_retrieval() -> click.Command:
    from pipeline.console import progress_line
    from pipeline.options import build_config, config_options
    from pipeline.retrieval.config import RetrievalTrainConfig
    from pipeline.retrieval.ridge import ridge
    from pipeline.retrieval.train import train_retrieval

    @click.command(
        epilog="Example: unipt train texts.zarr pictures.zarr runs/one --task retrieval "
        "--train captions.jsonl"
    )
    @config_options(RetrievalTrainConfig, arguments=("text_cache", "media_cache", "out"))
    @from_trial_option
    @click.option(
        "--probe",
        "layers",
        type=click.Choice(["last", "all"]),
        help="Fit a ridge regression between mean-pooled states instead, for comparison.",
    )
    @as_json
    @click.pass_context
    def command(
        ctx: click.Context,
        /,
        layers: Literal["last", "all"] | None,
        from_trial: str | None,
        as_json: bool,
        **_: Any,
    ) -> None:
        """Train two side networks from TEXT_CACHE and MEDIA_CACHE; write the run OUT.

        Neither backbone is loaded. The same command resumes an interrupted run.
        With --from-trial the only argument is OUT.
        """
        settings = of_trial(ctx, from_trial, "text_cache", "media_cache", "out")
        config = build_config(RetrievalTrainConfig, ctx, **settings)
        if layers is not None:
            return show(ridge(config, layers), as_json)
        with progress_line() as progress:
            report = train_retrieval(config, progress=progress)
        return show(report, as_json)

    return command


@commands.stage("sweep", "Search hyperparameters: many side networks for one read of a cache.")
def _sweep() -> click.Command:
    from pipeline.sweep import SweepConfig

    return sweep_command(
        SweepConfig,
        ("cache",),
        "Search the space of a training from CACHE; the study is kept in the folder --out. Trials "
        "of one shape share each read of the cache.",
        "unipt sweep tweets.zarr --train tweets.tsv --out sweeps/tweets "
        "-s lr=log:1e-4..1e-2 -s reduction=2,4,8 --trials 50",
    )


@commands.stage("sweep", family="retrieval")
def _sweep_retrieval() -> click.Command:
    from pipeline.sweep import RetrievalSweepConfig

    return sweep_command(
        RetrievalSweepConfig,
        ("text_cache", "media_cache"),
        "Search the space of a training of two towers from TEXT_CACHE and MEDIA_CACHE; the study "
        "is kept in the folder --out. Trials train one at a time, and Rsum on dev chooses.",
        "unipt sweep texts.zarr pictures.zarr --task retrieval --train captions.jsonl "
        "--out sweeps/pictures -s lr=log:3e-4..1e-2 --trials 20",
    )


def sweep_command(
    cls: "type[SearchConfig]", arguments: tuple[str, ...], purpose: str, example: str
) -> click.Command:
    """Return the command of sweeps over one kind of run."""
    from pipeline.console import progress_line
    from pipeline.options import build_config, config_options
    from pipeline.sweep import sweep
    from pipeline.sweep.folder import read_config
    from pipeline.sweep.space import read_space

    again = (
        "The same command, or --resume --out FOLDER alone, goes on with a sweep that was "
        "interrupted."
    )

    @click.command(help=f"{purpose}\n\n{again}", epilog=f"Example: {example}")
    @config_options(cls, arguments=arguments, without=("space",))
    @click.option("--space", type=click.Path(path_type=Path), help="YAML file of the space.")
    @click.option(
        *("-s", "--search", "items"),
        multiple=True,
        help="FIELD=VALUES to search: 2,4,8 or 0..0.5 or log:1e-4..1e-2 or int:2..10; repeatable.",
    )
    @click.option("--resume", is_flag=True, help="Go on with the sweep in --out, as it was begun.")
    @as_json
    @click.pass_context
    def command(
        ctx: click.Context,
        /,
        space: Path | None,
        items: tuple[str, ...],
        resume: bool,
        as_json: bool,
        **given: Any,
    ) -> None:
        if resume:
            if given["out"] is None:
                raise click.UsageError("--resume needs --out, the folder of the sweep")
            places = {name: given[name] for name in ("workers", "scheduler") if given[name]}
            config = read_config(given["out"], **places)
        else:
            searched = read_space(given["config_file"], space, items)
            config = build_config(cls, ctx, **searched)
        with progress_line() as progress:
            report = sweep(config, progress=progress)
        show(report, as_json)

    return command


@commands.stage("evaluate", "Every metric of a run, with a bootstrap interval.")
def _evaluate() -> click.Command:
    from pipeline.evaluate import EvaluateConfig, evaluate
    from pipeline.options import build_config, config_options

    @click.command(epilog="Example: unipt evaluate runs/tweets --split test")
    @config_options(EvaluateConfig, arguments=("run",))
    @as_json
    @click.pass_context
    def command(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
        """Evaluate RUN on a split of its data and write the predictions."""
        show(evaluate(build_config(EvaluateConfig, ctx)), as_json)

    return command


@commands.stage("report", "Draw a run or a sweep: pictures, or one page.")
def _report() -> click.Command:
    from pipeline.report import report

    @click.command(epilog="Example: unipt report runs/tweets")
    @run_argument
    @click.option("--out", type=click.Path(path_type=Path), help="Folder of the pictures; RUN's.")
    @click.option("--split", default="test", show_default=True, help="Split that is drawn.")
    def command(run: Path, out: Path | None, split: str) -> None:
        """Draw which layers RUN trusts, for each class, and how it learned.

        Of a sweep it writes one HTML page, which needs no network: its history, the importance of
        each field, learning curves, what the rungs cost, and the table of the trials.
        """
        from pipeline.sweep.folder import is_sweep

        if is_sweep(run):
            from pipeline.sweep.report import report_sweep

            return click.echo(report_sweep(run, out))
        for picture in report(run, out, split=split):
            click.echo(picture)
        return None

    return command


@commands.stage("export", "Fuse backbone and side network into one ordinary model.")
def _export() -> click.Command:
    from pipeline.export import ExportConfig, export
    from pipeline.options import build_config, config_options

    @click.command(epilog="Example: unipt export runs/tweets tweets-model --onnx")
    @config_options(ExportConfig, arguments=("run", "out"))
    @as_json
    @click.pass_context
    def command(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
        """Write RUN as the folder OUT that transformers loads with no install of this project.

        RUN may be SWEEP:NUMBER, a trial that kept its weights.
        """
        config = build_config(ExportConfig, ctx)
        if ":" in config.run.name:
            from pipeline.sweep.runs import run_of

            config = config.model_copy(update={"run": run_of(str(config.run))})
        show(export(config), as_json)

    return command


@commands.stage("predict", "Label the lines of a file or of standard input.")
def _predict() -> click.Command:
    from pipeline.options import build_config, config_options
    from pipeline.predict import PredictConfig, predict

    @click.command(epilog="Example: echo 'What a day!' | unipt predict tweets-model")
    @config_options(PredictConfig, arguments=("model", "input"))
    @click.pass_context
    def command(ctx: click.Context, /, **_: Any) -> None:
        """Label INPUT (standard input if absent) with the exported MODEL."""
        report = predict(build_config(PredictConfig, ctx))
        click.echo(report.render(), err=True)

    return command


@commands.stage("index", "Embed a folder of pictures or clips with an exported model.")
def _index() -> click.Command:
    from pipeline.console import progress_line
    from pipeline.index import IndexConfig, build_index
    from pipeline.options import build_config, config_options

    @click.command(epilog="Example: unipt index pictures-model holidays/ holidays-index")
    @config_options(IndexConfig, arguments=("model", "media", "out"))
    @as_json
    @click.pass_context
    def command(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
        """Embed every picture or clip below MEDIA with MODEL and write the index OUT.

        Run again, it embeds only what is new or changed.
        """
        config = build_config(IndexConfig, ctx)
        with progress_line() as progress:
            report = build_index(config, progress=progress)
        show(report, as_json)

    return command


@commands.stage("search", "Find pictures or clips in an index, by text or by picture.")
def _search() -> click.Command:
    from pipeline.options import build_config, config_options
    from pipeline.search import SearchConfig, search

    @click.command(epilog="Example: unipt search holidays-index 'a dog on the beach' --sheet a.png")
    @config_options(SearchConfig, arguments=("index", "query"))
    @as_json
    @click.pass_context
    def command(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
        """Find what in INDEX fits QUERY best, or looks most like --picture or --clip."""
        show(search(build_config(SearchConfig, ctx)), as_json)

    return command


@commands.stage("demo", "The whole way on real weights and real text, in a few minutes.")
def _demo() -> click.Command:
    from pipeline.demo.run import DemoConfig, demo
    from pipeline.options import build_config, config_options

    @click.command(epilog="Example: unipt demo --out demo")
    @config_options(DemoConfig)
    @click.pass_context
    def command(ctx: click.Context, /, **_: Any) -> None:
        """Plan, extract, train, evaluate, probe, export and predict: MiniLM on rated tweets."""
        demo(build_config(DemoConfig, ctx), echo=click.echo)

    return command


@commands.stage("demo-retrieval", "Two towers: pictures found by text, in a few minutes.")
def _demo_retrieval() -> click.Command:
    from pipeline.demo.retrieval import RetrievalDemoConfig, retrieval_demo
    from pipeline.options import build_config, config_options

    @click.command(epilog="Example: unipt demo-retrieval --out demo")
    @config_options(RetrievalDemoConfig)
    @click.pass_context
    def command(ctx: click.Context, /, **_: Any) -> None:
        """Cache MiniLM and EfficientNet-Lite0 on captioned emoji, train, export, search."""
        retrieval_demo(build_config(RetrievalDemoConfig, ctx), echo=click.echo)

    return command


def main() -> None:
    """Run the command line; errors made by the input end in one message and exit status 1."""
    try:
        commands(prog_name="unipt", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as stop:  # click's word for Ctrl-C, which says more
        click.echo(str(stop.__cause__ or "") or "stopped", err=True)
        sys.exit(130)
    except Exception as error:
        status = exit_status(error)
        if status is None or os.environ.get("UNIPT_TRACEBACK"):
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(status)


def exit_status(error: Exception) -> int | None:
    """Return the exit status of an error that the input caused, None for a fault of ours."""
    from cache.errors import CacheError
    from pipeline.config import ConfigError
    from pipeline.errors import PipelineError

    if isinstance(error, ConfigError):
        return 2
    return 1 if isinstance(error, PipelineError | CacheError | OSError | MemoryError) else None


if __name__ == "__main__":
    main()
