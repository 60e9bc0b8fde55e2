#!/usr/bin/env python3
"""Extract a plain-text corpus from the Rust documentation that ships with a toolchain.

usage: python tools/rust_docs_corpus.py ROOT OUT

ROOT is the html folder of the `rust-docs` component, for example
  "$(rustc --print sysroot)/share/doc/rust/html"
OUT  is the text file to write: one document per page, separated by <|endoftext|>.

The documentation is licensed MIT OR Apache-2.0. Only the standard library of
Python is needed. The output is deterministic for a given toolchain.
"""

import hashlib
import os
import re
import sys
from html.parser import HTMLParser

SEPARATOR = "\n\n<|endoftext|>\n\n"

# Elements without a closing tag: they must not change the nesting depth.
VOID = {"br", "img", "hr", "input", "meta", "link", "wbr", "source", "col"}
# Elements whose text is not prose.
SKIPPED = {"script", "style", "nav", "button", "svg"}
# Elements that begin a new paragraph.
BLOCKS = {"p", "h1", "h2", "h3", "h4", "div", "tr", "ul", "ol", "table"}

IGNORED_FILES = {"print.html", "toc.html", "404.html"}


def in_main(tag, classes):
    """mdBook pages: the text is inside <main>."""
    return tag == "main"


def in_docblock(tag, classes):
    """rustdoc pages: the text is inside the doc blocks."""
    return "docblock" in classes and "item-decl" not in classes


# The parts of the documentation that are used, in order, and what holds their text.
# Earlier parts win where paragraphs repeat (core and alloc repeat most of std).
PARTS = [
    ("book", in_main),
    ("reference", in_main),
    ("rust-by-example", in_main),
    ("nomicon", in_main),
    ("cargo", in_main),
    ("edition-guide", in_main),
    ("embedded-book", in_main),
    ("error_codes", in_main),
    ("rustc", in_main),
    ("clippy", in_main),
    ("rustdoc", in_main),
    ("style-guide", in_main),
    ("std", in_docblock),
    ("core", in_docblock),
    ("alloc", in_docblock),
    ("proc_macro", in_docblock),
    ("test", in_docblock),
]


class TextExtractor(HTMLParser):
    """Collects the text of the elements that `wanted` selects, in a Markdown-like form."""

    def __init__(self, wanted):
        super().__init__(convert_charrefs=True)
        self.wanted = wanted
        self.depth = 0  # nesting inside a wanted element, 0 outside
        self.skipping = 0  # nesting inside skipped elements
        self.preformatted = 0  # nesting inside <pre>
        self.out = []

    def handle_starttag(self, tag, attrs):
        if tag in SKIPPED:
            self.skipping += 1
        if tag in VOID:
            return
        classes = (dict(attrs).get("class") or "").split()
        if self.depth:
            self.depth += 1
        elif self.wanted(tag, classes):
            self.depth = 1
            self.out.append("\n\n")
        if not self.depth:
            return
        if tag == "pre":
            self.preformatted += 1
            self.out.append("\n```\n")
        elif tag == "li":
            self.out.append("\n- ")
        elif tag in BLOCKS:
            self.out.append("\n\n")

    def handle_endtag(self, tag):
        if tag in SKIPPED:
            self.skipping = max(0, self.skipping - 1)
        if tag in VOID or not self.depth:
            return
        if tag == "pre":
            self.preformatted = max(0, self.preformatted - 1)
            self.out.append("\n```\n")
        self.depth -= 1

    def handle_data(self, data):
        if self.depth and not self.skipping:
            self.out.append(data if self.preformatted else re.sub(r"\s+", " ", data))

    def text(self):
        text = "".join(self.out)
        text = text.replace("\u24d8", "").replace("\u00a7", "")  # decorations of rustdoc
        text = text.replace("\u00a0", " ").replace("\u200b", "")
        text = re.sub(r"[ \t]+\n", "\n", text)
        return re.sub(r"\n{3,}", "\n\n", text)


def unique_paragraphs(text, seen):
    """Drops the paragraphs that an earlier page already had, except very short ones."""
    kept = []
    for paragraph in text.split("\n\n"):
        if len(paragraph.strip()) < 3:
            continue
        if len(paragraph) > 60:
            digest = hashlib.md5(paragraph.strip().encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(paragraph)
    return "\n\n".join(kept).strip()


def pages(folder):
    """All HTML pages below the folder, in a fixed order."""
    for directory, subdirectories, files in os.walk(folder):
        subdirectories.sort()
        for name in sorted(files):
            if name.endswith(".html") and name not in IGNORED_FILES:
                yield os.path.join(directory, name)


def main(root, out):
    seen = set()
    total = 0
    with open(out, "w", encoding="utf-8") as file:
        for part, wanted in PARTS:
            for path in pages(os.path.join(root, part)):
                extractor = TextExtractor(wanted)
                with open(path, encoding="utf-8", errors="replace") as page:
                    extractor.feed(page.read())
                text = unique_paragraphs(extractor.text(), seen)
                if len(text) > 200:
                    file.write(text + SEPARATOR)
                    total += len(text)
            print(f"{part}: {total} characters so far", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
