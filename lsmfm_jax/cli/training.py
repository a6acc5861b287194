"""Pretrains and finetunes: `lsmfm pretrain`, `lsmfm finetune`."""

import argparse
import contextlib
import pathlib
from collections.abc import Callable
from typing import Any


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the commands of this file."""
    for name, what in (
        ("pretrain", "pretrain a backbone on stores of patches"),
        ("finetune", "finetune on folders of labelled patches"),
    ):
        train = commands.add_parser(
            name,
            help=what,
            epilog="any key of the configuration: --config.train.batch_size=8, --config.init_from=RUN, "
            "\"--config.data.stores=('A', 'B')\"",
        )
        train.add_argument(
            "--config", required=True, metavar="RECIPE[:VARIANT]", help="name (`lsmfm recipes` lists them) or file"
        )
        train.add_argument("--workdir", required=True, type=pathlib.Path, help="run folder; continued if it has a run")
        train.add_argument(
            "--allow-config-change", action="store_true", help="continue a run although its configuration differs"
        )
        train.set_defaults(run=_train, command=name, takes_overrides=True)


def _train(options: argparse.Namespace) -> int:
    from lsmfm_jax.config import ConfigError, load_config
    from lsmfm_jax.config.schema import TASKS

    config = load_config(options.config, options.overrides)
    tasks = [task for task in TASKS if (task == "pretrain") == (options.command == "pretrain")]
    if config.task not in tasks:
        raise ConfigError(f"task: {config.task!r} of {options.config}; this command runs {', '.join(tasks)}")
    # Only now: JAX takes seconds to import, and a wrong configuration should be told at once.
    import jax

    from lsmfm_jax.locks import locked
    from lsmfm_jax.train.compilation import start_devices
    from lsmfm_jax.train.resume import check_place
    from lsmfm_jax.train.signals import REQUEUE_EXIT_CODE, stop_was_asked

    print_line = start_devices()
    check_place(options.workdir)
    # Of several processes, the first one writes.
    alone = locked(options.workdir, use="training") if jax.process_index() == 0 else contextlib.nullcontext()
    with alone:
        ended = _train_in_folder(config, options, print_line=print_line)
        if not ended:
            print_line(f"the same command continues this run; exit code {REQUEUE_EXIT_CODE}")
            return REQUEUE_EXIT_CODE
        if jax.process_index() == 0:
            if config.task == "segment" and jax.process_count() == 1:
                from lsmfm_jax.predict.comparison import compare_with_baselines
                from lsmfm_jax.predict.cut_off import fit_cut_off
                from lsmfm_jax.predict.network_share import leave_out_where_worse

                if config.fit_cut_off:
                    fit_cut_off(options.workdir, print_line=print_line)
                if not config.voxel_classifier.always_network:
                    leave_out_where_worse(options.workdir, print_line=print_line)
                compare_with_baselines(options.workdir, print_line=print_line)
            _tell_results(options.workdir, print_line=print_line)
    # Told to stop when there was no step left to stop at: who told us is to start us again.
    return REQUEUE_EXIT_CODE if stop_was_asked() else 0


def _train_in_folder(config: Any, options: argparse.Namespace, *, print_line: Callable[[str], None]) -> bool:
    """Trains; False where it was stopped on the way."""
    from lsmfm_jax.tasks import SETUPS
    from lsmfm_jax.train.loop import Ending
    from lsmfm_jax.train.resume import check_run_folder
    from lsmfm_jax.train.run import execute

    check_run_folder(config, options.workdir, allow_change=options.allow_config_change)
    setup = SETUPS[config.task](config, options.workdir, print_line=print_line)
    _, ending = execute(config, setup, options.workdir, print_line=print_line)
    print_line(f"ended: {ending.value}")
    return ending is not Ending.STOPPED


def _tell_results(folder: pathlib.Path, *, print_line: Callable[[str], None]) -> None:
    from lsmfm_jax.report import write_report

    page = write_report(folder)
    print_line(f"checkpoints: {folder / 'best'} and {folder / 'checkpoints'}")
    print_line(f"curves:      {folder / 'metrics.jsonl'} and {folder / 'tensorboard'}")
    print_line(f"pictures:    {folder / 'pictures'}")
    print_line(f"report:      {page}")
