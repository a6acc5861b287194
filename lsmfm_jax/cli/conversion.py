"""Takes weights from and to PyTorch: `lsmfm convert ...`."""

import argparse
import pathlib


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the commands of this file."""
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
    importing.add_argument(
        "--text-model", type=pathlib.Path, help="Hugging Face BERT directory, for its attention heads and tokenizer"
    )
    importing.add_argument(
        "--text-heads", type=int, metavar="N", help="attention heads of the text encoder, where no directory tells them"
    )
    importing.set_defaults(run=_import, teacher=False)
    export = convert.add_parser("export", help="the weights of a run as a PyTorch file")
    export.add_argument("checkpoint", type=pathlib.Path, metavar="RUN", help="run, or imported folder")
    export.add_argument("--out", required=True, type=pathlib.Path, help="file: .safetensors, .pt, .pth or .ckpt")
    export.add_argument("--layout", choices=("monai", "lightning"), default="monai", help="backbone alone, or all")
    export.add_argument("--teacher", action="store_true", help="the averaged backbone in place of the student's")
    export.set_defaults(run=_export)


def _import(options: argparse.Namespace) -> int:
    from lsmfm_jax.convert.importing import import_checkpoint

    lines = import_checkpoint(
        options.file,
        options.out,
        teacher=options.teacher,
        merging=options.merging,
        text_model=options.text_model,
        text_heads=options.text_heads,
    )
    print("\n".join([*lines, f"written to {options.out}: init_from and `lsmfm convert export` take it"]))
    return 0


def _export(options: argparse.Namespace) -> int:
    from lsmfm_jax.convert.exporting import export_run

    print("\n".join(export_run(options.checkpoint, options.out, layout=options.layout, teacher=options.teacher)))
    return 0
