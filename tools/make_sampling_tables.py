#!/usr/bin/env python3
"""Write tests/fixtures/sampling.json: what the sampler's chain must make of some logits.

usage: python tools/make_sampling_tables.py

needs: torch, transformers

The reference for temperature, top-k, top-p, min-p, typical-p, repetition penalty and the
ban of end tokens are the logits processors of transformers. Presence and frequency
penalties (OpenAI, vLLM) and DRY (p-e-w, text-generation-webui) are written here,
as directly as their definitions.

Each case has `logits`, `settings` (named as in the request; absent is off), `ids`,
`prompt` (how many of the ids), `end_tokens` and `breakers`. Cases with a temperature
have `expected`: pairs of id and probability of the tokens that are kept, by rising id.
Cases without have `changed`: the logits as they are after penalties, null for a token
that is banned. A case is taken only if a run in f64 and one in f32 keep the same tokens.
"""

import json
import math
import random
from pathlib import Path

import torch
from transformers.generation import logits_process as hf

MAX_MATCH = 1024


def presence_and_frequency(scores, reply, presence, frequency):
    for token in range(len(scores)):
        count = reply.count(token)
        if count > 0:
            scores[token] -= frequency * count
            scores[token] -= presence
    return scores


def dry(scores, ids, breakers, multiplier, base, allowed_length, range_):
    if range_ > 0:
        ids = ids[-range_:]
    longest = {}
    for end in range(len(ids) - 1):
        length = 0
        while (
            length < MAX_MATCH
            and end - length >= 0
            and ids[end - length] == ids[len(ids) - 1 - length]
            and ids[end - length] not in breakers
        ):
            length += 1
        following = ids[end + 1]
        if following not in breakers:
            longest[following] = max(longest.get(following, 0), length)
    for token, length in longest.items():
        if length >= allowed_length:
            scores[token] -= multiplier * base ** (length - allowed_length)
    return scores


def run(case, dtype):
    settings, ids = case["settings"], case["ids"]
    scores = torch.tensor([case["logits"]], dtype=dtype)
    inputs = torch.tensor([ids], dtype=torch.long)
    if "repetition_penalty" in settings:
        scores = hf.RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"])(inputs, scores)
    reply = ids[case["prompt"]:]
    row = presence_and_frequency(
        scores[0].clone(), reply, settings.get("presence_penalty", 0.0), settings.get("frequency_penalty", 0.0)
    )
    if "dry" in settings:
        row = dry(row, ids, case["breakers"], *settings["dry"])
    scores = row[None]
    if "min_tokens" in settings:
        processor = hf.MinNewTokensLengthLogitsProcessor(case["prompt"], settings["min_tokens"], case["end_tokens"])
        scores = processor(inputs, scores)
    for name, warper in [
        ("temperature", hf.TemperatureLogitsWarper),
        ("top_k", hf.TopKLogitsWarper),
        ("top_p", hf.TopPLogitsWarper),
        ("min_p", hf.MinPLogitsWarper),
        ("typical_p", hf.TypicalLogitsWarper),
    ]:
        if name in settings:
            scores = warper(settings[name])(inputs, scores)
    return scores[0]


def finished(case):
    """The case with what is expected of it, or None if that hangs on the last bits."""
    single, double = run(case, torch.float32), run(case, torch.float64)
    if not torch.equal(single.isinf(), double.isinf()):
        return None
    if "temperature" not in case["settings"]:
        return case | {"changed": [None if math.isinf(x) else x for x in single.tolist()]}
    probabilities = double.softmax(-1).tolist()
    kept = [[i, round(p, 9)] for i, p in enumerate(probabilities) if not math.isinf(double[i])]
    return case | {"expected": kept}


def plain(numbers, **settings):
    """A case without a history."""
    return {"logits": numbers, "settings": settings, "ids": [0], "prompt": 1, "end_tokens": [], "breakers": []}


def f32(numbers):
    return torch.tensor(numbers, dtype=torch.float32).tolist()


def tables():
    """Four tokens and one filter at a time, around every border."""
    logits = f32([math.log(p) for p in (0.25, 0.1, 0.5, 0.15)])
    for temperature in (0.25, 1.0, 2.0):
        yield plain(logits, temperature=temperature)
    for top_k in (1, 2, 3, 4, 9):
        yield plain(logits, temperature=1.0, top_k=top_k)
    for top_p in (0.3, 0.49, 0.51, 0.74, 0.76, 0.89, 0.91, 0.99):
        yield plain(logits, temperature=1.0, top_p=top_p)
    for min_p in (0.1, 0.19, 0.21, 0.29, 0.31, 0.49, 0.51, 1.0):
        yield plain(logits, temperature=1.0, min_p=min_p)
    for typical_p in (0.1, 0.24, 0.26, 0.39, 0.41, 0.5, 0.7, 0.8, 0.95):
        yield plain(logits, temperature=1.0, typical_p=typical_p)


def logits(rng, vocab):
    """Short numbers, exact in f32, no two of them equal: at ties transformers keeps more than it was asked to."""
    distinct = set()
    while len(distinct) < vocab:
        distinct.add(round(rng.gauss(0.0, 3.0) * 1024) / 1024)
    return rng.sample(sorted(distinct), vocab)


def random_case(rng, vocab):
    def maybe(settings, name, value):
        if rng.random() < 0.5:
            settings[name] = f32([value])[0] if isinstance(value, float) else value

    letters = min(rng.choice([3, 10, vocab]), vocab)
    ids = [rng.randrange(letters) for _ in range(rng.randrange(1, 60))]
    settings = {}
    maybe(settings, "repetition_penalty", rng.choice([0.5, 1.25, 2.0]))
    maybe(settings, "presence_penalty", rng.choice([-1.0, 0.5, 2.0]))
    maybe(settings, "frequency_penalty", rng.choice([-0.5, 0.25, 1.5]))
    maybe(settings, "dry", [rng.choice([0.5, 2.0]), rng.choice([1.25, 1.75]), rng.randrange(1, 4), rng.choice([0, 20])])
    maybe(settings, "min_tokens", rng.randrange(1, 60))
    if rng.random() < 0.75:
        settings["temperature"] = rng.choice([0.5, 1.0, 1.5])
        maybe(settings, "top_k", rng.randrange(1, vocab))
        maybe(settings, "top_p", rng.uniform(0.2, 0.999))
        maybe(settings, "min_p", rng.uniform(0.0001, 0.3))
        maybe(settings, "typical_p", rng.uniform(0.2, 0.999))
    return {
        "logits": logits(rng, vocab),
        "settings": settings,
        "ids": ids,
        "prompt": rng.randrange(len(ids) + 1),
        "end_tokens": rng.sample(range(vocab), 2),
        "breakers": sorted(rng.sample(range(vocab), rng.choice([0, 2]))),
    }


def main():
    rng = random.Random(20261123)
    cases = [finished(case) for case in tables()]
    assert None not in cases, "a table's border hangs on the last bits"
    while len(cases) < 160:
        case = finished(random_case(rng, rng.choice([5, 12, 40, 150])))
        if case is not None:
            cases.append(case)
    lines = ",\n".join(json.dumps(case) for case in cases)
    path = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "sampling.json"
    path.write_text(f"[\n{lines}\n]\n")
    print(f"{len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
