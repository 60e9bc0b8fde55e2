#!/usr/bin/env python3
"""Measures amnesic and sentence-transformers in turn on the same model and texts, and prints a Markdown table.

    benches/peers/embed.py MODEL TEXTS [--rounds N]

MODEL is a folder (`tools/fetch_minilm` prints one), TEXTS a file with one text a line. Needs torch and
sentence-transformers, and Rust. Both use all processors; each round runs sentence-transformers with batches of 16, 32 and
64 texts, and its best one counts.
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from statistics import median

from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).resolve().parents[2]


def ours():
    """The bench, built; and what it is called with."""
    command = ["cargo", "bench", "-p", "amnesic-benches", "--bench", "embed", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    artifacts = [json.loads(line) for line in lines]
    return next(a["executable"] for a in artifacts if a.get("executable") and a["target"]["name"] == "embed")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    bench = ours()
    texts = open(options.texts).read().splitlines()
    model = SentenceTransformer(options.model, device="cpu")
    model.encode(texts)
    times = {"amnesic": [], "amnesic, q8": [], "sentence-transformers": []}
    for _ in range(options.rounds):
        for name, extra in [("amnesic", []), ("amnesic, q8", ["--q8"])]:
            command = [bench, options.model, options.texts, "--rounds", "3", "--json", *extra]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            times[name].append(figures["seconds"])
        best = float("inf")
        for size in (16, 32, 64):
            began = time.perf_counter()
            model.encode(texts, batch_size=size)
            best = min(best, time.perf_counter() - began)
        times["sentence-transformers"].append(best)
    base = median(times["sentence-transformers"])
    tokens = figures["tokens"]
    print(f"{len(texts)} texts, {tokens} tokens, {figures['device']}, {os.cpu_count()} processors, {options.rounds} rounds\n")
    print("| | texts/s | tokens/s | against sentence-transformers |\n|---|---|---|---|")
    for name, values in times.items():
        secs = median(values)
        print(f"| {name} | {len(texts) / secs:.0f} | {tokens / secs:.0f} | {base / secs:.2f}x |")


if __name__ == "__main__":
    main()
