#!/usr/bin/env python3
"""Write what transformers computes at positions beyond those that a model was trained on, with each kind of scaled rope, to
tests/fixtures/ropes.json.

usage: python tools/fixture_ropes.py

The weights are those of tests/fixtures/families/llama_yarn; a case has the fields of config.json that are changed, a prompt
longer than the original positions, the logits behind it in f32, and what the reference is off by in bf16. Scalings that depend
on the length of the text are given one token more than the prompt has, as a session of `context` positions counts.
`positions` are what vLLM derives as the longest text (`_get_and_verify_max_len`).

needs: torch, transformers
"""

import json
import os
import random

import torch
import transformers as hf

import make_fixtures as base

WEIGHTS = os.path.join(base.FIXTURES, "families", "llama_yarn")
THETA = {"rope_theta": 10000.0}
PROMPT = 100

# name: (fields of config.json, positions)
CASES = {
    "yarn": ({"max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, **THETA}}, 128),
    "yarn_mscale_zero": ({"max_position_embeddings": 128, "rope_parameters": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "mscale": 0, "mscale_all_dim": 0.5,
        **THETA}}, 128),
    "yarn_original_beside": ({"max_position_embeddings": 128, "original_max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, **THETA}}, 128),
    "linear": ({"max_position_embeddings": 32, "rope_parameters": {"rope_type": "linear", "factor": 4.0, **THETA}}, 128),
    "dynamic": ({"max_position_embeddings": 32, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, **THETA}}, 128),
    "llama3": ({"max_position_embeddings": 128, "rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, **THETA}}, 128),
    "longrope": ({"max_position_embeddings": 128, "original_max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "longrope", "short_factor": [1.0 + i / 16 for i in range(12)],
        "long_factor": [1.5 + i / 4 for i in range(12)], **THETA}}, 128),
}


@torch.no_grad()
def logits(config, prompt, dtype):
    model = base.load(WEIGHTS, dtype, config=config)
    return model(torch.tensor([prompt + [3]]), use_cache=False).logits[0, len(prompt) - 1].float()


def main():
    torch.set_num_threads(1)
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    draw = random.Random(1)
    cases = {}
    for name, (fields, positions) in CASES.items():
        plain = json.load(open(os.path.join(WEIGHTS, "config.json")))
        plain.update(fields)
        prompt = [draw.randrange(3, 112) for _ in range(PROMPT)]
        # read as a file would be: transformers moves fields of ropes when it reads them
        config = hf.LlamaConfig.from_dict(plain)
        exact, low = logits(config, prompt, torch.float32), logits(config, prompt, torch.bfloat16)
        without = hf.LlamaConfig.from_dict(plain | {"rope_parameters": {"rope_type": "default", **THETA}})
        off, other = (low - exact).abs(), (logits(without, prompt, torch.float32) - exact).abs().max()
        print(f"{name}: off by {off.max():.4f}, without the scaling {other:.3f}")
        assert other > 10 * off.max(), "the case does not test this"
        cases[name] = {
            "config": fields,
            "positions": positions,
            "context": PROMPT + 1,
            "prompt": prompt,
            "low_max_abs": float(off.max()),
            "low_rms": float(off.square().mean().sqrt()),
            "logits": [float(f"{value:.7g}") for value in exact.tolist()],
        }
    with open(os.path.join(base.FIXTURES, "ropes.json"), "w") as file:
        file.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in cases.items()) + "\n}\n")


if __name__ == "__main__":
    main()
