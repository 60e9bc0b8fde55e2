#!/usr/bin/env python3
"""Write adapters of low rank for some of the checkpoints in tests/fixtures/families/ below tests/fixtures/adapters/, with
PEFT as the reference.

usage: python tools/fixture_adapters.py [NAME ...]

A folder holds two adapters, `all` (on every linear layer, or as many as can stay beside the weights) and `some` (on a few, with another rank, scaled by its root, and
another alpha for one of them), each with adapter_config.json and adapter_model.safetensors as PEFT saves them, and
expected.json and expected.safetensors as the other fixtures: by adapter, a prompt, its greedy path, its logits, and what
the reference is off by in bf16.

needs: torch, transformers, peft, safetensors
"""

import json
import os
import shutil
import sys

import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

import make_fixtures as base
from fixture_families import find_prompt

FOLDER = os.path.join(base.FIXTURES, "adapters")
FAMILIES = os.path.join(base.FIXTURES, "families")

# name of the checkpoint: the linear layers of `some`, and the one with an alpha of its own
TABLE = {
    "qwen3": (["q_proj", "v_proj", "down_proj"], "v_proj"),
    "phi3": (["qkv_proj", "gate_up_proj"], "qkv_proj"),
    "starcoder2": (["c_fc", "o_proj"], "o_proj"),
    "olmo2": (["k_proj", "up_proj", "down_proj"], "up_proj"),
    "gpt_neox": (["query_key_value"], "query_key_value"),
    "deepseek_v3": (["kv_a_proj_with_mqa", "o_proj"], "o_proj"),
}

# what `all` is on, where that is not every linear layer
ALL = {"deepseek_v3": ["q_b_proj", "kv_a_proj_with_mqa", "o_proj"]}


@torch.no_grad()
def randomize(model, generator):
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[1] ** 0.5 * (1.0 if "lora_A" in name else 0.35))


def write(folder, name, kind, seed):
    """One adapter."""
    some, special = TABLE[name]
    if kind == "all":
        config = LoraConfig(r=4, lora_alpha=6, target_modules=ALL.get(name, "all-linear"), task_type="CAUSAL_LM")
    else:
        config = LoraConfig(r=3, lora_alpha=2, target_modules=some, use_rslora=True, alpha_pattern={special: 4},
                            task_type="CAUSAL_LM")
    model = get_peft_model(base.load(os.path.join(FAMILIES, name), torch.float32), config)
    randomize(model, torch.Generator().manual_seed(seed))
    model.to(torch.bfloat16).save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    config = json.load(open(path))
    config["base_model_name_or_path"] = name  # not where it was made
    base.write_json(path, config)


def checkpoint(name):
    folder = os.path.join(FOLDER, f".{name}.new")
    weights = os.path.join(FAMILIES, name)
    expected, logits = {}, {}
    plain = base.load(weights, torch.float32)
    eos = plain.config.eos_token_id
    ends = set(eos) if isinstance(eos, list) else {eos}
    for kind in ("all", "some"):
        inside = os.path.join(folder, kind)
        for seed in range(1, 40):
            shutil.rmtree(inside, ignore_errors=True)
            write(inside, name, kind, seed)
            load = lambda dtype: PeftModel.from_pretrained(base.load(weights, dtype), inside)
            exact, low = load(torch.float32).merge_and_unload(), load(torch.bfloat16)
            found = find_prompt(exact, low, 21, torch.Generator().manual_seed(seed), ends)
            if found is not None:
                break
        else:
            sys.exit(f"{name}: no seed gives a clear path")
        prompt, path, high, _ = found
        expected[kind] = base.figures(*found)
        off = expected[kind]["low_max_abs"]
        without = (base.teacher_forced(plain, prompt, path) - high).abs().max()
        print(f"{name}, {kind}: seed {seed}, off by {off:.3f}, without it {float(without):.3f}", flush=True)
        assert without > 5 * off, "the adapter does too little"
        logits[kind] = high.contiguous()
    base.write_json(os.path.join(folder, "expected.json"), expected)
    save_file(logits, os.path.join(folder, "expected.safetensors"))
    base.replace(folder, os.path.join(FOLDER, name))


if __name__ == "__main__":
    base.STEPS = 16
    base.write_all(FOLDER, TABLE, checkpoint)
