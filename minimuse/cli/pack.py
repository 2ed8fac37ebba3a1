"""`minimuse pack`: tar files of a folder of images, for `--data`.

minimuse pack --data my-images --out my-tars
"""

import argparse

from minimuse.cli.shared_flags import add_command, add_required_out, in_range, path
from minimuse.runs.pack import pack


def add_pack(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "pack", run_pack, "pack a folder of images into tar files, as another --data"
    )
    parser.add_argument(
        "--data", type=path, required=True, help="a folder of images with captions (required)"
    )
    add_required_out(parser, "the folder for the tar files; it must be new")
    parser.add_argument(
        "--images-per-tar",
        type=in_range("images_per_tar"),
        default=1000,
        help="how many images a tar file holds (default 1000)",
    )


def run_pack(args: argparse.Namespace) -> None:
    """Write the tar files, and say what to do with them."""
    count = pack(args.data, args.out, args.images_per_tar)
    files = "1 tar file" if count == 1 else f"{count} tar files"
    print(f"{args.out} has {files}; train with --data {args.out}")
