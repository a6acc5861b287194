"""The `lsmfm` command: parses its arguments, wires task, data and loop together, and knows nothing else."""

import argparse
import logging
import os
import pathlib
import sys
from collections.abc import Sequence

from lsmfm_jax import __version__
from lsmfm_jax.bench import BENCHMARKS, run_benchmark
from lsmfm_jax.config import ConfigError
from lsmfm_jax.config_files import load_config

LAYOUTS = ("wu", "selma", "connection", "dev_mouse", "human2", "flat")


# Set before it is imported: that PyTorch is absent is no news to a JAX user.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. An expected error is one message on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("lsmfm_jax").setLevel(logging.INFO)
    # Orbax warns of its own file layout at every read of a part.
    logging.getLogger("absl").setLevel(logging.ERROR)
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not getattr(options, "takes_overrides", False):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.overrides = rest
    try:
        return options.run(options)
    except Exception as error:
        if not _expected(error):
            raise
        print(f"lsmfm: {error}", file=sys.stderr)
        return 2


def _expected(error: Exception) -> bool:
    """Errors of this package, and of missing files, explain themselves; all others deserve their traceback."""
    return type(error).__module__.startswith("lsmfm_jax") or isinstance(error, FileNotFoundError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lsmfm", description="Pretrain and finetune 3D networks on light-sheet microscopy."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_data(commands)
    _add_training(commands)
    _add_predict(commands)
    _add_baseline(commands)
    _add_evaluate(commands)
    _add_convert(commands)
    _add_report(commands)
    _add_verify(commands)
    _add_bench(commands)
    return parser


def _add_data(commands: argparse._SubParsersAction) -> None:
    data = commands.add_parser("data", help="make and look at patch stores").add_subparsers(
        required=True, metavar="ACTION"
    )
    ingest = data.add_parser("ingest", help="read image files into a patch store")
    ingest.add_argument("--layout", required=True, choices=LAYOUTS, help="how the source's files are arranged")
    ingest.add_argument("--root", required=True, type=pathlib.Path, help="folder of image files")
    ingest.add_argument("--captions", nargs="+", type=pathlib.Path, help="JSON files; none: an image-only store")
    ingest.add_argument("--out", required=True, type=pathlib.Path, help="store to make or to add to")
    ingest.add_argument("--source", help="name of the data set in the store (default: the layout's)")
    ingest.add_argument("--volume-pattern", help="regular expression whose first group is the volume's name")
    ingest.add_argument(
        "--voxel-size-um",
        type=_three(float),
        metavar="Z,Y,X",
        help="voxel size, where headers do not tell the truth",
    )
    ingest.add_argument("--strict", action="store_true", help="exit with 1 where any file failed")
    ingest.set_defaults(run=_ingest)
    info = data.add_parser("info", help="what a store holds, with a contact sheet")
    info.add_argument("store", type=pathlib.Path)
    info.add_argument("--png", type=pathlib.Path, help="contact sheet (default: contact_sheet.png beside the store)")
    info.set_defaults(run=_info)
    phantom = data.add_parser("phantom", help="generate light-sheet-like volumes with masks and captions")
    phantom.add_argument("--out", required=True, type=pathlib.Path)
    phantom.add_argument("--count", type=int, default=20, help="patches (default 20)")
    phantom.add_argument("--size", type=_three(int), default=(96, 96, 96), metavar="Z,Y,X", help="voxels")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--layout", choices=("flat", "selma", "wu"), default="selma")
    phantom.add_argument("--blurred", action="store_true", help="write blurred companions too")
    phantom.set_defaults(run=_phantom)


def _add_training(commands: argparse._SubParsersAction) -> None:
    for name, tasks, what in (
        ("pretrain", ("pretrain",), "pretrain a backbone on stores of patches"),
        ("finetune", ("segment", "classify", "deblur"), "finetune on folders of labelled patches"),
    ):
        train = commands.add_parser(
            name,
            help=what,
            epilog="any key of the configuration: --config.train.batch_size=8, --config.init_from=RUN, "
            "\"--config.data.stores=('A', 'B')\"",
        )
        train.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="recipe, such as configs/*.py")
        train.add_argument("--workdir", required=True, type=pathlib.Path, help="run folder; continued if it has a run")
        train.add_argument(
            "--allow-config-change", action="store_true", help="continue a run although its configuration differs"
        )
        train.set_defaults(run=_train, tasks=tasks, takes_overrides=True)


def _add_predict(commands: argparse._SubParsersAction) -> None:
    predict = commands.add_parser("predict", help="masks, classes or deblurred volumes of image files")
    predict.add_argument("--checkpoint", required=True, type=pathlib.Path, help="folder of a finetuned run")
    predict.add_argument("inputs", nargs="+", type=pathlib.Path, metavar="INPUT", help="image files, folders of them")
    predict.add_argument("--out", required=True, type=pathlib.Path, help="folder for results, table and pictures")
    predict.add_argument("--tta", action="store_true", help="average over the eight flips of each window")
    predict.add_argument("--window", type=_three(int), metavar="Z,Y,X", help="voxels (default: the run's patch size)")
    predict.add_argument("--overlap", type=float, default=0.25, help="least overlap of windows (default 0.25)")
    predict.add_argument("--threshold", type=float, default=0.5, help="probability of foreground (default 0.5)")
    predict.add_argument("--label-dir", type=pathlib.Path, help="labels to judge by (default: those beside the files)")
    predict.add_argument("--batch", type=int, default=1, help="windows on the device at a time (default 1)")
    predict.add_argument("--overwrite", action="store_true", help="replace results that are there")
    predict.set_defaults(run=_predict)


def _add_baseline(commands: argparse._SubParsersAction) -> None:
    baseline = commands.add_parser(
        "baseline", help="thresholds, or PCA and logistic regression, fitted on the training patches of a run"
    )
    baseline.add_argument("--run", dest="folder", required=True, type=pathlib.Path, help="folder of a finetuned run")
    baseline.add_argument("inputs", nargs="+", type=pathlib.Path, metavar="INPUT", help="image files, folders of them")
    baseline.add_argument("--out", required=True, type=pathlib.Path, help="folder for a folder of each baseline")
    baseline.add_argument("--label-dir", type=pathlib.Path, help="labels to judge by (default: those beside the files)")
    baseline.add_argument("--overwrite", action="store_true", help="replace results that are there")
    baseline.set_defaults(run=_baseline)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser("evaluate", help="judge masks or label images of any tool against labels")
    evaluate.add_argument("--pred", required=True, type=pathlib.Path, help="folder of predictions")
    evaluate.add_argument("--label", required=True, type=pathlib.Path, help="folder of labels")
    evaluate.add_argument("--out", required=True, type=pathlib.Path, help="CSV to write")
    kinds = ("auto", "mask", "labels")
    evaluate.add_argument("--kind", choices=kinds, default="auto", help="what predictions are (default: by content)")
    evaluate.add_argument("--label-kind", choices=kinds, default="auto", help="what labels are")
    evaluate.add_argument("--method", default="prediction", help="name of the predictions in the table")
    evaluate.add_argument("--threshold", type=float, default=0.5, help="value from which on a voxel is foreground")
    evaluate.add_argument("--connectivity", type=int, choices=(6, 18, 26), default=26, help="of components")
    evaluate.add_argument("--minimum-voxels", type=int, default=1, help="smaller instances are left out")
    evaluate.add_argument("--match-dice", type=float, default=0.3, help="least Dice of matched instances")
    evaluate.add_argument("--spacing-um", type=_three(float), metavar="Z,Y,X", help="voxel size, for HD95")
    evaluate.add_argument("--volume-pattern", help="regular expression whose first group is the volume's name")
    evaluate.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    evaluate.set_defaults(run=_evaluate)


def _add_convert(commands: argparse._SubParsersAction) -> None:
    convert = commands.add_parser("convert", help="weights from and to PyTorch").add_subparsers(
        required=True, metavar="ACTION"
    )
    importing = convert.add_parser("import", help="a PyTorch checkpoint as a folder to start from")
    importing.add_argument("file", type=pathlib.Path, help=".ckpt, .pt, .pth or .safetensors; nothing in it is run")
    importing.add_argument("--out", required=True, type=pathlib.Path, help="folder to make")
    which = importing.add_mutually_exclusive_group()
    which.add_argument("--student", dest="teacher", action="store_false", help="the student's backbone (default)")
    which.add_argument("--teacher", action="store_true", help="the teacher's backbone in place of the student's")
    importing.add_argument(
        "--merging",
        choices=("duplicated", "corrected"),
        help="patch merging of a SwinUNETR (default: duplicated for the released checkpoints, else corrected)",
    )
    importing.add_argument("--text-model", type=pathlib.Path, help="Hugging Face BERT directory, for its tokenizer")
    importing.set_defaults(run=_import, teacher=False)
    export = convert.add_parser("export", help="the weights of a run as a PyTorch file")
    export.add_argument("checkpoint", type=pathlib.Path, metavar="RUN", help="run, or imported folder")
    export.add_argument("--out", required=True, type=pathlib.Path, help="file: .safetensors, .pt, .pth or .ckpt")
    export.add_argument("--layout", choices=("monai", "lightning"), default="monai", help="backbone alone, or all")
    export.add_argument("--teacher", action="store_true", help="the averaged backbone in place of the student's")
    export.set_defaults(run=_export)


def _add_report(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser("report", help="write the one-page report of a run again")
    report.add_argument("workdir", type=pathlib.Path)
    report.set_defaults(run=_report)


def _add_verify(commands: argparse._SubParsersAction) -> None:
    verify = commands.add_parser("verify", help="read all of a store or a run and name what is damaged")
    verify.add_argument("path", type=pathlib.Path)
    verify.set_defaults(run=_verify)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    bench = commands.add_parser("bench", help="measure speed and memory (benchmarks/README.md)")
    bench.add_argument("name", choices=BENCHMARKS)
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="of the benchmark; --help lists them")
    bench.set_defaults(run=_bench)


def _three(kind: type) -> object:
    def parse(text: str) -> tuple[float, ...]:
        values = tuple(kind(part) for part in text.split(","))
        if len(values) != 3 or min(values) <= 0:
            raise argparse.ArgumentTypeError(f"{text!r}: three positive numbers Z,Y,X are needed")
        return values

    parse.__name__ = f"Z,Y,X of {kind.__name__}"
    return parse


def _ingest(options: argparse.Namespace) -> int:
    from lsmfm_jax.data.ingest import IngestFailed, ingest

    def progress(done: int, total: int, path: pathlib.Path) -> None:
        if done == total or done % 50 == 0:
            print(f"{done}/{total} files", file=sys.stderr, flush=True)

    try:
        summary = ingest(
            layout=options.layout,
            root=options.root,
            out=options.out,
            captions=options.captions,
            source=options.source,
            volume_pattern=options.volume_pattern,
            voxel_size_um=options.voxel_size_um,
            strict=options.strict,
            progress=progress,
        )
    except IngestFailed as error:
        print(error)
        return 1
    print(summary.text())
    return 0


def _info(options: argparse.Namespace) -> int:
    from lsmfm_jax.data.inspect import contact_sheet, info
    from lsmfm_jax.data.store import PatchStore

    store = PatchStore.open(options.store)
    png = options.png or options.store.parent / f"{options.store.name}_contact_sheet.png"
    print(info(store))
    contact_sheet(store, png)
    print(f"contact sheet: {png}")
    return 0


def _phantom(options: argparse.Namespace) -> int:
    from lsmfm_jax.data.phantom import write_phantoms

    files = write_phantoms(
        options.out,
        count=options.count,
        size=options.size,
        seed=options.seed,
        layout=options.layout,
        blurred=options.blurred,
    )
    print(f"{len(files)} files in {options.out}, captions in {options.out / 'captions.json'}")
    return 0


def _train(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    if config.task not in options.tasks:
        raise ConfigError(f"task: {config.task!r} of {options.config}; this command runs {', '.join(options.tasks)}")
    # Only now: JAX takes seconds to import, and a wrong configuration should be told at once.
    import jax

    from lsmfm_jax.report import write_report
    from lsmfm_jax.tasks import SETUPS
    from lsmfm_jax.train.compilation import start_devices
    from lsmfm_jax.train.loop import Ending
    from lsmfm_jax.train.run import check_run_folder, execute
    from lsmfm_jax.train.signals import REQUEUE_EXIT_CODE

    say = start_devices()
    check_run_folder(config, options.workdir, allow_change=options.allow_config_change)
    setup = SETUPS[config.task](config, options.workdir, say=say)
    _, ending = execute(config, setup, options.workdir, say=say)
    say(f"ended: {ending.value}")
    if ending is Ending.STOPPED:
        say(f"the same command continues this run; exit code {REQUEUE_EXIT_CODE}")
        return REQUEUE_EXIT_CODE
    if jax.process_index() != 0:
        return 0
    page = write_report(options.workdir)
    say(f"checkpoints: {options.workdir / 'best'} and {options.workdir / 'checkpoints'}")
    say(f"curves:      {options.workdir / 'metrics.jsonl'} and {options.workdir / 'tensorboard'}")
    say(f"pictures:    {options.workdir / 'pictures'}")
    say(f"report:      {page}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from lsmfm_jax.predict.run import Settings, predict
    from lsmfm_jax.train.compilation import start_devices

    say = start_devices()
    predict(
        options.checkpoint,
        options.inputs,
        options.out,
        settings=Settings(options.overlap, options.threshold, options.batch),
        window=options.window,
        flips=options.tta,
        label_dir=options.label_dir,
        overwrite=options.overwrite,
        say=say,
    )
    return 0


def _baseline(options: argparse.Namespace) -> int:
    from lsmfm_jax.predict.baseline import predict_baselines

    predict_baselines(
        options.folder, options.inputs, options.out, label_dir=options.label_dir, overwrite=options.overwrite
    )
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from lsmfm_jax.evaluate import evaluate_folders, format_table

    names = ("kind", "label_kind", "method", "threshold", "connectivity", "minimum_voxels", "match_dice")
    names += ("spacing_um", "volume_pattern", "seed")
    settings = {name: getattr(options, name) for name in names}
    print(format_table(evaluate_folders(options.pred, options.label, options.out, **settings)))
    print(f"table: {options.out}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from lsmfm_jax.convert.importing import import_checkpoint

    lines = import_checkpoint(
        options.file,
        options.out,
        teacher=options.teacher,
        merging=options.merging,
        text_model=options.text_model,
    )
    print("\n".join([*lines, f"written to {options.out}: init_from and `lsmfm convert export` take it"]))
    return 0


def _export(options: argparse.Namespace) -> int:
    from lsmfm_jax.convert.exporting import export_run

    print("\n".join(export_run(options.checkpoint, options.out, layout=options.layout, teacher=options.teacher)))
    return 0


def _report(options: argparse.Namespace) -> int:
    from lsmfm_jax.report import write_report

    print(write_report(options.workdir))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from lsmfm_jax.verify import verify

    damages = verify(options.path)
    for line in damages:
        print(line)
    print(f"{options.path}: {f'{len(damages)} damaged' if damages else 'whole'}")
    return 1 if damages else 0


def _bench(options: argparse.Namespace) -> int:
    return run_benchmark(options.name, options.arguments)


if __name__ == "__main__":
    sys.exit(main())
