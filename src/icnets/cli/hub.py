"""``icnets hub save`` and ``icnets hub push``: a checkpoint with its model card, in a folder or on the Hub."""

from collections.abc import Sequence
from pathlib import Path

from icnets.cli.parser import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    parser = Parser(prog="icnets hub", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="save|push", required=True)
    for verb in ("save", "push"):
        add = verbs.add_parser(verb, description=__doc__).add_argument
        add("checkpoint", metavar="CHECKPOINT", type=Path, help="what icnets.save or icnets fit wrote (.safetensors)")
        if verb == "save":
            add("target", metavar="DIR", type=Path, help="the folder; made if missing")
            add("--overwrite", action="store_true", help="replace the network that DIR holds")
        else:
            add("target", metavar="OWNER/NAME", help="the repository; made if missing")
            add("--private", action="store_true", default=None, help="a new repository is private")
            add("--revision", metavar="NAME", help="the branch")
        add("--description", metavar="FILE", type=Path, help="Markdown for the card, such as a comparison's results.md")
        add("--title", metavar="TEXT", help="of the card (default: the name of the folder or repository)")
        add("--license", metavar="ID", default="unknown", help="of the weights, in the Hub's words (default: unknown)")
        add("--dataset", metavar="ID", dest="datasets", action="append", default=[], help="on the Hub; several times")
    args = parser.parse_args(argv)

    from icnets.checkpoint import load_with_notes
    from icnets.hub import Card, push_to_hub, save_pretrained

    model, notes = load_with_notes(args.checkpoint)
    description = "" if args.description is None else args.description.read_text(encoding="utf-8")
    card = Card(args.title, args.license, args.datasets, description=description)
    if args.verb == "save":
        save_pretrained(model, args.target, card=card, metadata=notes, overwrite=args.overwrite)
        print(f"{args.target} has the network and its card; icnets.hub.from_pretrained({str(args.target)!r}) loads it")
        return 0
    print(push_to_hub(model, args.target, card=card, metadata=notes, private=args.private, revision=args.revision))
    return 0
