#!/usr/bin/env python3
"""Writes what a fuzz target begins with, made of the fixtures of the repository's tests, into a folder.

usage: fuzz/seeds.py TARGET FOLDER

Beside these stand the files of fuzz/corpus/TARGET: inputs by hand, and those that once found something.
"""

import json
import re
import struct
import sys
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
FIXTURES = FUZZ.parent / "tests/fixtures"


def listed(target, constant):
    """The strings of a constant in a target's source, in their order: the first byte of an input chooses among them."""
    source = (FUZZ / "fuzz_targets" / f"{target}.rs").read_text()
    text = re.search(rf"const {constant}: .*? = \[(.*?)\];", source, re.DOTALL)[1]
    return re.findall(r'"([^"]*)"', text)


def header(file):
    """The header of a safetensors file."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length]


def config():
    for which, name in enumerate(listed("config", "CHECKPOINTS")):
        yield bytes([which]) + (FIXTURES / name / "config.json").read_bytes()
    # of other families, beside the first one's weights: read, then refused for their tensors
    for file in sorted(FIXTURES.glob("families/*/config.json")):
        yield b"\0" + file.read_bytes() + b"\0" + (FIXTURES / "llama2_f32/generation_config.json").read_bytes()


def safetensors():
    for which, name in enumerate(listed("safetensors", "CHECKPOINTS")):
        text = header(FIXTURES / name / "model.safetensors")
        names = [key for key in json.loads(text) if key != "__metadata__"]
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model.safetensors")}
        yield bytes([which]) + text
        yield bytes([which]) + text + b"\0" + json.dumps(index).encode()
        yield bytes([which | 0x80]) + struct.pack("<Q", len(text)) + text


def adapter():
    adapters = listed("adapter", "ADAPTERS")[1::2]
    for which, name in enumerate(adapters):
        text = (FIXTURES / name / "adapter_config.json").read_bytes()
        tensors = header(FIXTURES / name / "adapter_model.safetensors")
        yield bytes([which]) + text
        yield bytes([which]) + b"\0" + tensors
        yield bytes([which | 0x80]) + text + b"\0" + tensors


def gguf():
    for file in sorted(FIXTURES.glob("gguf/**/*.gguf")):
        yield head(file.read_bytes())


def head(data):
    """A GGUF file up to its tensors, padding included."""
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    at = 8

    def number(form):
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value

    def skip(kind):
        nonlocal at
        if kind == 8:
            length = number("Q")
            at += length
        elif kind == 9:
            inner, count = number("I"), number("Q")
            for _ in range(count):
                skip(inner)
        else:
            at += sizes[kind]

    tensors, pairs = number("Q"), number("Q")
    for _ in range(pairs):
        skip(8)
        skip(number("I"))
    for _ in range(tensors):
        skip(8)
        dimensions = number("I")
        at += 8 * dimensions + 12
    return data[: (at + 31) // 32 * 32]


def tokenizer_json():
    for file in sorted(FIXTURES.glob("tokenizers/*/tokenizer.json")):
        whole = json.loads(file.read_text())
        model, merges = whole["model"], whole["model"].get("merges")
        # shorter: what is mutated should rarely be one of a thousand words
        if merges:
            vocab = {word: id for word, id in model["vocab"].items() if id < 300}
            both = lambda merge: merge if isinstance(merge, list) else merge.split(" ", 1)
            model["vocab"] = vocab
            model["merges"] = [m for m in merges if all(p in vocab for p in [*both(m), "".join(both(m))])][:20]
        text = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()
        yield text
        other = file.parent / "tokenizer_config.json"
        if other.exists():
            yield text + b"\0It's 12 o'clock\0" + other.read_bytes()


def template():
    for construct in json.loads((FIXTURES / "chat/constructs.json").read_text())["constructs"]:
        yield construct["template"].encode()
    for text in json.loads((FIXTURES / "chat/cases.json").read_text())["templates"].values():
        yield text.encode()


def grammar():
    for line in json.loads((FIXTURES / "schemas.json").read_text()):
        text = json.dumps(line["schema"]).encode()
        yield from (bytes([which]) + text for which in (1, 2, 4, 9))


def main():
    target, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for count, seed in enumerate(globals()[target](), 1):
        (folder / f"fixture-{count:04}").write_bytes(seed)
    print(f"{target}: {count} inputs made of the fixtures")
    if count == 0:
        sys.exit(1)


if __name__ == "__main__":
    main()
