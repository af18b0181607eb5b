"""What can be wrong with a data set: the kinds, and one problem of a file, a class or a shard."""

from dataclasses import dataclass

# Kind: its severity, and what it means. An error stops a training or makes it silently wrong; a warning works.
KINDS: dict[str, tuple[str, str]] = {
    "empty-file": ("error", "files of zero bytes"),
    "truncated": ("error", "files that end before their image does"),
    "unreadable": ("error", "files that are no image, or a damaged one"),
    "bomb": ("error", "images of so many pixels that Pillow refuses to decode them"),
    "crash": ("error", "files at which the process that decoded them died, perhaps for want of memory"),
    "16-bit": (
        "error",
        "images of more than 8 bits a pixel in one channel: reading them as colours clips them to white",
    ),
    "empty-class": ("error", "classes without images"),
    "class-difference": ("error", "classes that are not in every split"),
    "duplicate-class": ("error", "the same file in two classes"),
    "duplicate-split": ("error", "the same file in two splits"),
    "shard-damaged": ("error", "shards that are no tar archive, a damaged one, or cut off"),
    "no-partner": ("error", "images without a class, or classes without an image, among their neighbours in the shard"),
    "bad-label": ("error", "class indices that are no whole number from 0"),
    "repeated-key": ("error", "several images of one key in a shard"),
    "unsafe-name": ("error", "members whose name leads out of the archive's folder"),
    "link": ("error", "members that are links or devices"),
    "cmyk": ("warning", "images in the colours of print, whose conversion to RGB is a guess"),
    "mode": ("warning", "images that are neither RGB nor grey; transparency is dropped"),
    "animated": ("warning", "files of several images, of which training sees the first"),
    "wrong-extension": ("warning", "images of another format than their name says"),
    "ignored-image": ("warning", "images in class folders whose extension training doesn't read"),
    "not-image": ("warning", "files that are no images among them"),
    "outside-class": ("warning", "images outside of every class folder, which training doesn't see"),
    "huge": ("warning", "images of so many pixels that Pillow warns; not decoded here"),
    "small": ("warning", "images that are very small"),
    "duplicate": ("warning", "the same file twice in one class of a split"),
}


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: where (relative to the data set), one of ``KINDS``, and the details."""

    path: str
    kind: str
    reason: str

    @property
    def severity(self) -> str:
        """ "error" or "warning"."""
        return KINDS[self.kind][0]


def printable(text: str) -> str:
    """``text`` with escapes for what a terminal would obey or can't show: names come from strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
