"""``icnets hub save`` and ``icnets hub push``: a checkpoint with its model card, in a folder or on the Hub."""

from collections.abc import Sequence
from pathlib import Path

from icnets.cli.parser import Parser


def _parser(verb: str) -> Parser:
    parser = Parser(prog=f"icnets hub {verb}", description=__doc__)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", type=Path, help="what icnets.save or icnets fit wrote (.safetensors)")
    if verb == "save":
        add("target", metavar="DIR", type=Path, help="the folder; made if missing")
        add("--overwrite", action="store_true", help="replace the network that DIR holds")
    else:
        add("target", metavar="OWNER/NAME", help="the repository; made if missing")
        add("--private", action="store_true", help="a new repository is private")
        add("--revision", metavar="NAME", help="the branch")
    add("--evidence", metavar="DIR", type=Path, help="folder of icnets compare or icnets fit")
    add("--method", metavar="NAME", help="of a comparison, the row that the network is of")
    add("--title", metavar="TEXT", help="of the card (default: the name of the folder or repository)")
    add("--license", metavar="ID", default="unknown", help="of the weights, in the Hub's words (default: unknown)")
    add("--dataset", metavar="ID", action="append", default=[], help="on the Hub; can be given several times")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    argv = list(argv or [])
    if argv[:1] == ["--help"]:
        print(_parser("save").format_help(), _parser("push").format_help(), sep="\n", end="")
        raise SystemExit
    if argv[:1] not in (["save"], ["push"]):
        raise ValueError("hub needs a verb: icnets hub save CHECKPOINT DIR, or icnets hub push CHECKPOINT OWNER/NAME")
    args = _parser(argv[0]).parse_args(argv[1:])

    from icnets.checkpoint import load_with_notes
    from icnets.hub import Card, push_to_hub, save_pretrained

    model, notes = load_with_notes(args.checkpoint)
    names = ("title", "license", "evidence", "method")
    card = Card(datasets=args.dataset, **{name: getattr(args, name) for name in names})
    if argv[0] == "save":
        save_pretrained(model, args.target, card=card, metadata=notes, overwrite=args.overwrite)
        print(f"{args.target} has the network and its card; icnets.hub.from_pretrained({str(args.target)!r}) loads it")
        return 0
    private = True if args.private else None
    print(push_to_hub(model, args.target, card=card, metadata=notes, private=private, revision=args.revision))
    return 0
