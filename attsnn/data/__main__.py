"""python -m attsnn.data: list, download, prepare and verify data sets, and write the sample recordings.

The exit code is 0 for success, 2 for a command that is not understood, and 3 for data that is missing or
broken or that needs a package that is not installed (one sentence on stderr).
"""

import argparse
import sys
import typing
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attsnn._files import print_any_name
from attsnn.data.core.contract import DataSet
from attsnn.data.core.download import fetch
from attsnn.data.core.files import plain
from attsnn.data.datasets import TABLE
from attsnn.data.errors import DataError, DataMissingError
from attsnn.data.synthetic import samples


def _list(args: argparse.Namespace) -> None:
    if args.markdown:
        print(_markdown())
        return
    for dataset in TABLE.values():
        print(f"{dataset.name}: {dataset.title}")
        print(f"  licence: {dataset.licence}; splits: {', '.join(dataset.splits)}")
        print(f"  {dataset.where}")
    print(f"samples: {samples.__doc__.splitlines()[0]}\n  run `python -m attsnn.data samples OUT`")


def _markdown() -> str:
    """The table of docs/data.md."""
    heads = ("set, class", "what", "splits", "licence", "files", "RAW, or the folder to open")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, dataset in TABLE.items():
        files = "`download`" if dataset.downloadable else "by hand: `list`"
        raw = dataset.raw.replace("<", "&lt;")
        if dataset.path is None:
            files, raw = "in the package", "-"
        cells = (
            f"`{name}`, `{dataset.kind}`",
            dataset.title,
            ", ".join(dataset.splits),
            dataset.licence,
            files,
            raw,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _prepare(dataset: DataSet, args: argparse.Namespace) -> None:
    assert dataset.prepare is not None and dataset.describe is not None  # otherwise there is no such command
    dataset.prepare(args.raw, args.out, **_chosen(dataset, dataset.prepare, args))
    print(dataset.describe(args.out))


def _verify(dataset: DataSet, args: argparse.Namespace) -> None:
    paths = [] if dataset.path is None else [args.path]
    dataset.verify(*paths, **_chosen(dataset, dataset.verify, args))


def _download(dataset: DataSet, args: argparse.Namespace) -> None:
    if not dataset.downloadable:
        raise DataMissingError(f"{dataset.name}: no program may or can fetch it; {dataset.where}")
    for file in dataset.downloadable:
        fetch(file, args.dir)
    print(f"{plain(args.dir)}: {', '.join(file.name for file in dataset.downloadable)}")


def _chosen(dataset: DataSet, command: Callable[..., Any], args: argparse.Namespace) -> dict[str, Any]:
    return {flag.name: getattr(args, flag.name) for flag, _ in dataset.flags_of(command)}


def _samples(args: argparse.Namespace) -> None:
    out = samples.write_recordings(args.out, args.seed)
    print(f"{out}: written; now run `python -m attsnn.data prepare dvs_gesture {out} STORE`")


def _seed(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted an integer that is not negative, got {word!r}")
    return int(word)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attsnn.data", description="Data sets.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("list", help="the data sets, and where to get them")
    listed.add_argument("--markdown", action="store_true", help="as a table, that of docs/data.md")
    listed.set_defaults(run=_list)
    prepare = commands.add_parser("prepare", help="published files -> what the loaders read")
    verify = commands.add_parser("verify", help="what is found, missing and corrupt")
    download = commands.add_parser(
        "download", help="what a program may fetch: resumed, compared with its hash"
    )
    downloading = download.add_subparsers(dest="dataset", required=True)
    preparing = prepare.add_subparsers(dest="dataset", required=True)
    verifying = verify.add_subparsers(dest="dataset", required=True)
    for name, dataset in TABLE.items():
        told: dict[str, Any] = {"help": dataset.title, "description": dataset.title, "allow_abbrev": False}
        if dataset.prepare is not None:
            one = preparing.add_parser(name, **told)
            one.add_argument("raw", metavar="RAW", type=Path, help=dataset.raw)
            one.add_argument("out", metavar="OUT", type=Path, help=dataset.out)
            _add_flags(one, dataset, dataset.prepare)
            one.set_defaults(run=partial(_prepare, dataset))
        one = downloading.add_parser(name, **told)
        one.add_argument("dir", metavar="DIR", type=Path, help="the folder that the files go to")
        one.set_defaults(run=partial(_download, dataset))
        one = verifying.add_parser(name, **told)
        if dataset.path is not None:
            one.add_argument("path", metavar="DIR", type=Path, help=dataset.path)
        _add_flags(one, dataset, dataset.verify)
        one.set_defaults(run=partial(_verify, dataset))
    write = commands.add_parser("samples", help="write the embedded recordings as published data would be")
    write.add_argument(
        "out", metavar="OUT", type=Path, help="the folder to write, RAW of `prepare dvs_gesture`"
    )
    write.add_argument(
        "--seed", type=_seed, default=0, help="of the order of the digits and of the sensor's noise"
    )
    write.set_defaults(run=_samples)
    return parser


def _add_flags(parser: argparse.ArgumentParser, dataset: DataSet, command: Callable[..., Any]) -> None:
    """A flag for each keyword-only argument, by its annotation."""
    for flag, text in dataset.flags_of(command):
        word = f"--{flag.name.replace('_', '-')}"
        kinds = [k for k in typing.get_args(flag.annotation) if k is not type(None)] or [flag.annotation]
        if bool in kinds:
            parser.add_argument(word, action="store_true", help=text)
        elif typing.get_origin(flag.annotation) is typing.Literal:
            parser.add_argument(word, choices=kinds, default=flag.default, help=text)
        else:
            parser.add_argument(word, type=int if int in kinds else str, default=flag.default, help=text)


def main(words: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    print_any_name()
    args = _parser().parse_args(words)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            args.run(args)
    except (DataError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
