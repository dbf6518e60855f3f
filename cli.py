"""The command line: parses, calls one function, prints. `unipt COMMAND --help` tells the rest.

A command's module is imported when the command runs, so `--help` is quick and `train` never loads
transformers. `plan`, `extract`, `train` and `sweep` take the options of the task that is chosen.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from pipeline.commands import Commands, as_json, command_of, show

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.systems import System

cache_argument = click.argument("cache")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="unipt")
def commands() -> None:
    """Run a frozen backbone once, cache every layer, train tiny side networks from the cache."""


def data_of(task: str) -> str:
    """Return the options that name the task and its data, for an example."""
    from pipeline.systems import DEFAULT_TASK

    return "--train DATA" if task == DEFAULT_TASK else f"--task {task} --train DATA"


def caches_of(system: "System") -> str:
    """Return a name for each cache that a training takes, for an example."""
    return " ".join(f"{name}.zarr" for name in system.Train.caches())


@commands.stage("plan", "Bytes, time, tier and break-even of an extraction.", by_task=True)
def _plan(task: str, system: "System") -> click.Command:
    from pipeline.options import narrowed
    from pipeline.plan import PlanConfig, plan

    return command_of(
        narrowed(PlanConfig, data=system.Data),
        plan,
        ("backbone",),
        "Tell what caching the inputs that BACKBONE reads costs: bytes to the byte, time from a "
        "short measured trial. Writes nothing.",
        example=f"plan MODEL {data_of(task)}",
    )


@commands.stage(
    "extract", "Run the frozen backbone once; write its taps into a cache.", by_task=True
)
def _extract(task: str, system: "System") -> click.Command:
    from pipeline.extract import ExtractConfig, extract
    from pipeline.options import narrowed

    return command_of(
        narrowed(ExtractConfig, data=system.Data),
        extract,
        ("backbone", "out"),
        "Run BACKBONE once over every input of the data that it can read and write its taps into "
        "the cache OUT. A task of several towers takes one cache each. The same command resumes "
        "an interrupted extraction.",
        example=f"extract MODEL cache.zarr {data_of(task)}",
        progress=True,
    )


@commands.stage("inspect", "What a cache holds: taps, samples, bytes, where it came from.")
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

    @click.group()
    def group() -> None:
        """Keep caches. Rewrites stream, and the same command resumes one that was interrupted."""

    @group.command("ls")
    @folder
    @as_json
    def list_caches(folder: str, as_json: bool) -> None:
        """List the caches below FOLDER: state, samples, taps, bytes, where they came from."""
        show(ls(folder), as_json)

    @group.command("merge", epilog="Example: unipt cache merge a.zarr b.zarr --out both.zarr")
    @click.argument("parts", nargs=-1, required=True)
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
        """Write CACHE, or some of its taps, into the new cache OUT in another type or layout."""
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


@commands.stage("train", "Train a side network, or probes, from caches.", by_task=True)
def _train(task: str, system: "System") -> click.Command:
    from pipeline.console import progress_line
    from pipeline.options import build_config, config_options
    from pipeline.probe import probe
    from pipeline.train import train

    caches = system.Train.caches()

    @click.command(
        help=f"Train side networks from {' and '.join(map(str.upper, caches))} and the targets of "
        "the data; write the run OUT. No backbone is loaded or needed. The same command resumes an "
        "interrupted run. With --from-trial the only argument is OUT.",
        epilog=f"Example: unipt train {caches_of(system)} runs/one {data_of(task)}",
    )
    @config_options(system.Train, arguments=(*caches, "out"))
    @click.option("--from-trial", help="SWEEP:NUMBER, a trial to train; flags win over it.")
    @click.option(
        "--probe",
        "layers",
        type=click.Choice(["last", "all"]),
        help="Fit a linear model to mean-pooled states instead, for comparison.",
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
        settings = of_trial(ctx, from_trial, *caches, "out")
        config = build_config(system.Train, ctx, **settings)
        if layers is not None:
            return show(probe(config, layers), as_json)
        with progress_line() as progress:
            report = train(config, progress=progress)
        return show(report, as_json)

    return command


def of_trial(ctx: click.Context, trial: str | None, *arguments: str) -> dict[str, Any]:
    """Return what `build_config` takes of --from-trial, whose only one of `arguments` is OUT."""
    if trial is None:
        return {}
    from pipeline.sweep.runs import trial_settings

    given = [ctx.params.pop(name) for name in arguments]
    if given[0] is None or any(value is not None for value in given[1:]):
        raise click.UsageError("with --from-trial give the folder OUT and nothing else")
    return {"base": trial_settings(trial), "out": given[0]}


@commands.stage("sweep", "Search hyperparameters by many trainings from caches.", by_task=True)
def _sweep(task: str, system: "System") -> click.Command:
    from pipeline.console import progress_line
    from pipeline.options import build_config, config_options, narrowed
    from pipeline.sweep import SweepConfig, sweep
    from pipeline.sweep.folder import read_config
    from pipeline.sweep.space import read_space

    caches, cls = system.Train.caches(), narrowed(SweepConfig, run=system.Train)

    @click.command(
        help=f"Search the space of a training from {' and '.join(map(str.upper, caches))}; the "
        "study is kept in the folder --out. The same command, or --resume --out FOLDER alone, goes "
        "on with a sweep that was interrupted.",
        epilog=f"Example: unipt sweep {caches_of(system)} {data_of(task)} --out sweeps/one "
        "-s lr=log:1e-4..1e-2 --trials 50",
    )
    @config_options(cls, arguments=caches, without=("space",))
    @click.option("--space", type=click.Path(path_type=Path), help="YAML file of the space.")
    @click.option(
        *("-s", "--search", "items"),
        multiple=True,
        help="FIELD=VALUES to search: 2,4,8 or 0..0.5 or log:1e-4..1e-2 or int:2..10; repeatable.",
    )
    @click.option("--resume", is_flag=True, help="Go on with the sweep in --out as it is.")
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
        if resume and given["out"] is None:
            raise click.UsageError("--resume needs --out, the folder of the sweep")
        if resume:
            places = {name: given[name] for name in ("workers", "scheduler") if given[name]}
            config = read_config(given["out"], **places)
        else:
            config = build_config(cls, ctx, **read_space(given["config_file"], space, items))
        with progress_line() as progress:
            report = sweep(config, progress=progress)
        show(report, as_json)

    return command


@commands.stage("evaluate", "Every metric of a run, with a bootstrap interval.")
def _evaluate() -> click.Command:
    from pipeline.evaluate import EvaluateConfig, evaluate

    return command_of(
        EvaluateConfig,
        evaluate,
        ("run",),
        "Evaluate RUN on a split of its data and write the predictions.",
        example="evaluate runs/tweets --split test",
    )


@commands.stage("report", "Draw a run or a sweep: images, or one page.")
def _report() -> click.Command:
    from pipeline.report import report

    @click.command(epilog="Example: unipt report runs/tweets")
    @click.argument("run", type=click.Path(path_type=Path))
    @click.option("--out", type=click.Path(path_type=Path), help="Folder of the images; RUN's.")
    @click.option("--split", default="test", show_default=True, help="Split that is drawn.")
    def command(run: Path, out: Path | None, split: str) -> None:
        """Draw how much RUN uses each layer, for each class, and how it learned.

        Of a sweep it writes one HTML page, which needs no network: its history, the importance of
        each field, learning curves, what the rungs cost, and the table of the trials.
        """
        from pipeline.sweep.folder import is_sweep

        if is_sweep(run):
            from pipeline.sweep.report import report_sweep

            return click.echo(report_sweep(run, out))
        for image in report(run, out, split=split):
            click.echo(image)
        return None

    return command


@commands.stage("export", "Fuse backbone and side network into one ordinary model.")
def _export() -> click.Command:
    from pipeline.export import ExportConfig, export

    def of_run(config: ExportConfig) -> Any:
        if ":" in config.run.name:
            from pipeline.sweep.runs import run_of

            config = config.model_copy(update={"run": run_of(str(config.run))})
        return export(config)

    return command_of(
        ExportConfig,
        of_run,
        ("run", "out"),
        "Write RUN as the folder OUT that transformers loads with no install of this project. RUN "
        "may be SWEEP:NUMBER, a trial that kept its weights.",
        example="export runs/tweets tweets-model --onnx",
    )


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


@commands.stage("index", "Embed a folder of images or videos with an exported model.")
def _index() -> click.Command:
    from pipeline.index import IndexConfig, build_index

    return command_of(
        IndexConfig,
        build_index,
        ("model", "media", "out"),
        "Embed every image or video below MEDIA with MODEL and write the index OUT. Run again, it "
        "embeds only what is new or changed.",
        example="index images-model holidays/ holidays-index",
        progress=True,
    )


@commands.stage("search", "Find images or videos in an index, by text or by image.")
def _search() -> click.Command:
    from pipeline.search import SearchConfig, search

    return command_of(
        SearchConfig,
        search,
        ("index", "query"),
        "Find what in INDEX fits QUERY best, or looks most like the image or video given.",
        example="search holidays-index 'a dog on the beach' --sheet a.png",
    )


def demo_command(
    cls: "type[Config]", work: Callable[..., Any], text: str, name: str
) -> click.Command:
    """Return the command of a demo, which prints as it goes."""
    from pipeline.options import build_config, config_options

    @click.command(help=text, epilog=f"Example: unipt {name} --out demo")
    @config_options(cls)
    @click.pass_context
    def command(ctx: click.Context, /, **_: Any) -> None:
        work(build_config(cls, ctx), echo=click.echo)

    return command


@commands.stage("demo", "The whole way on real weights and real text, in a few minutes.")
def _demo() -> click.Command:
    from pipeline.demo.run import DemoConfig, demo

    text = "Plan, extract, train, evaluate, probe, export and predict: MiniLM on rated tweets."
    return demo_command(DemoConfig, demo, text, "demo")


@commands.stage("demo-retrieval", "Two towers: images found by text, in a few minutes.")
def _demo_retrieval() -> click.Command:
    from pipeline.demo.retrieval import RetrievalDemoConfig, retrieval_demo

    text = "Cache MiniLM and EfficientNet-Lite0 on captioned emoji, train, export, search."
    return demo_command(RetrievalDemoConfig, retrieval_demo, text, "demo-retrieval")


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
        status, message = explained(error)
        if status is None or os.environ.get("UNIPT_TRACEBACK"):
            raise
        click.echo(f"error: {message}", err=True)
        sys.exit(status)


def explained(error: Exception) -> tuple[int | None, str]:
    """Return the exit status of an error that the input caused, None for a fault of ours."""
    from cache.errors import CacheError
    from pipeline.config import ConfigError
    from pipeline.errors import PipelineError
    from pipeline.extras import missing

    if isinstance(error, ConfigError):
        return 2, str(error)
    if isinstance(error, ModuleNotFoundError) and (sentence := missing(error)):
        return 1, sentence
    known = isinstance(error, PipelineError | CacheError | OSError | MemoryError)
    return (1 if known else None), str(error)


if __name__ == "__main__":
    main()
