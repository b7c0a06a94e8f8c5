"""python -m attsnn.data: list, prepare and verify data sets, write the sample recordings.

Exit code 0, 2 for a command that is not understood, 3 for data that is missing or broken, or that needs a
package which is not installed (one sentence on stderr).
"""

import argparse
import sys
import warnings

from attsnn.data import dvs_gesture, imagenet, imagenet_archives, samples
from attsnn.data.errors import DataError
from attsnn.data.store import Store

DATASETS = {"dvs_gesture": dvs_gesture, "imagenet": imagenet}


def _list(_: argparse.Namespace) -> None:
    for name, module in DATASETS.items():
        print(f"{name}: {module.__doc__.splitlines()[0]}\n  {module.WHERE}")
    print(f"samples: {samples.__doc__.splitlines()[0]}\n  run `python -m attsnn.data samples OUT`")


def _prepare_gesture(args: argparse.Namespace) -> None:
    path = dvs_gesture.prepare(args.raw, args.out, strict=args.strict, fix_known_labels=args.fix_known_labels)
    _describe(Store(path))


def _prepare_imagenet(args: argparse.Namespace) -> None:
    written = imagenet_archives.prepare(args.raw, args.out, val_labels=args.val_labels)
    images = " and ".join(f"{number:,} {split} images" for split, number in written.items())
    print(f"{args.out}: {images}; now run `python -m attsnn.data verify imagenet {args.out}`")


def _verify_gesture(args: argparse.Namespace) -> None:
    store = Store(args.out)
    store.verify()
    _describe(store)


def _verify_imagenet(args: argparse.Namespace) -> None:
    imagenet.verify(args.dir, full=args.decode, subset=args.subset)


def _samples(args: argparse.Namespace) -> None:
    out = samples.write_recordings(args.out, args.seed)
    print(f"{out}: written; now run `python -m attsnn.data prepare dvs_gesture {out} STORE`")


def _describe(store: Store) -> None:
    clips = {split: sum(c.split == split for c in store.clips) for split in ("train", "test")}
    print(
        f"{store.path}: {clips['train']} train and {clips['test']} test clips, {len(store.classes)} classes, "
        f"{store.manifest['events']:,} events, {store.manifest.get('sorted_events', 0)} sorted"
    )


def _seed(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted an integer that is not negative, got {word!r}")
    return int(word)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attsnn.data", description="Data sets.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the data sets, and where to get them").set_defaults(run=_list)
    prepare = commands.add_parser("prepare", help="published files -> what the loaders read")
    _add_prepare(prepare.add_subparsers(dest="dataset", required=True))
    verify = commands.add_parser("verify", help="what is found, missing and corrupt")
    _add_verify(verify.add_subparsers(dest="dataset", required=True))
    write = commands.add_parser("samples", help="write the embedded recordings as published data would be")
    write.add_argument("out", metavar="OUT")
    write.add_argument("--seed", type=_seed, default=0)
    write.set_defaults(run=_samples)
    return parser


def _add_prepare(datasets) -> None:
    gesture = datasets.add_parser("dvs_gesture", help="recordings -> a verified, memory-mapped store")
    gesture.add_argument("raw", metavar="RAW", help="folder or .tar.gz as published")
    gesture.add_argument("out", metavar="OUT", help="the store, which must not be there yet")
    gesture.add_argument("--strict", action="store_true", help="refuse any time that decreases")
    gesture.add_argument("--fix-known-labels", action="store_true", help="correct class 9 of user22_led")
    gesture.set_defaults(run=_prepare_gesture)
    images = datasets.add_parser("imagenet", help="the official archives -> folders of classes")
    images.add_argument("raw", metavar="RAW", help="the folder of the archives")
    images.add_argument("out", metavar="OUT", help="the folder of train/ and val/, not there yet")
    images.add_argument("--val-labels", metavar="FILE", help="a wnid a line, in place of the development kit")
    images.set_defaults(run=_prepare_imagenet)


def _add_verify(datasets) -> None:
    gesture = datasets.add_parser("dvs_gesture", help="every file of a store against its checksum")
    gesture.add_argument("out", metavar="OUT", help="the store")
    gesture.set_defaults(run=_verify_gesture)
    images = datasets.add_parser("imagenet", help="folders or shards: classes, images, corrupt images")
    images.add_argument("dir", metavar="DIR")
    images.add_argument("--decode", action="store_true", help="decode every image, not only odd ones")
    images.add_argument("--subset", action="store_true", help="any number of classes and images is complete")
    images.set_defaults(run=_verify_imagenet)


def main(words: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args = _parser().parse_args(words)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        args.run(args)
    except (DataError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
