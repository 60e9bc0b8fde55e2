#!/usr/bin/env python3
"""Write adapters that change more than linear layers, or in other ways than by a product of low rank, below
tests/fixtures/adapters_merged/, with PEFT as the reference.

usage: python tools/fixture_adapters_merged.py [NAME ...]

A folder holds an adapter as PEFT saves it, for the checkpoint of tests/fixtures/families/ that `base_model_name_or_path`
names, and expected.json and expected.safetensors (`logits`) as the other adapters have them. The reference is the model
with the adapter beside it, not merged: PEFT's merging of an embedding table that is the head too would change the head.

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

FOLDER = os.path.join(base.FIXTURES, "adapters_merged")
FAMILIES = os.path.join(base.FIXTURES, "families")
PROJECTIONS = ["q_proj", "v_proj", "down_proj"]

# name: (checkpoint, settings)
TABLE = {
    "dora": ("qwen3", dict(target_modules=["q_proj", "k_proj", "o_proj", "up_proj"], use_dora=True)),
    "dora_joined": ("phi3", dict(target_modules=["qkv_proj", "gate_up_proj"], use_dora=True)),
    "dora_biases": ("starcoder2", dict(target_modules=["q_proj", "o_proj", "c_fc", "c_proj"], use_dora=True)),
    "dora_latent": ("deepseek_v3", dict(target_modules=["q_b_proj", "kv_a_proj_with_mqa", "o_proj"], use_dora=True)),
    "dora_head": ("qwen3", dict(target_modules=["lm_head", "down_proj"], use_dora=True)),
    "dora_embedding": ("qwen3", dict(target_modules=["embed_tokens", "q_proj"], use_dora=True)),
    "saved": ("qwen3", dict(target_modules=PROJECTIONS, modules_to_save=["embed_tokens", "lm_head"])),
    "saved_norms": ("qwen3", dict(target_modules=PROJECTIONS, modules_to_save=["input_layernorm", "up_proj"])),
    "head": ("qwen3", dict(target_modules=["lm_head", "q_proj"])),
    "embedding": ("qwen3", dict(target_modules=["embed_tokens", "lm_head", "v_proj"], use_rslora=True)),
    "embedding_tied": ("gemma", dict(target_modules=["embed_tokens", "v_proj"])),
    "head_tied": ("gemma", dict(target_modules=["lm_head", "v_proj"])),
    "saved_tied": ("gemma", dict(target_modules=PROJECTIONS, modules_to_save=["lm_head"])),
    "patterns": ("qwen3", dict(
        target_modules=["q_proj", "k_proj", "v_proj", "down_proj"],
        alpha_pattern={r"^model\.layers\.0\..*(q|v)_proj": 9, r"layers\.1\.self_attn\.q_proj": 1, "down_proj": 5},
        rank_pattern={r".*\.1\.self_attn\..*": 4, "^q_proj": 3},
    )),
}
#: Those that do not stay beside the weights: they replace what is there.
MERGED = ["saved", "saved_norms", "saved_tied"]


@torch.no_grad()
def randomize(model, generator):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "lora_magnitude_vector" in name:
            parameter.mul_(1 + 0.3 * noise.clamp(-2, 2))
        elif "lora_embedding" in name:
            parameter.copy_(noise * (0.5 if "_A" in name else 0.5))
        elif "lora_" in name:
            parameter.copy_(noise / parameter.shape[1] ** 0.5 * (1.0 if "lora_A" in name else 0.35))
        elif "modules_to_save" in name:
            parameter.add_(noise * 0.3 * parameter.std() if parameter.dim() > 1 else 0.2 * noise)


def write(folder, name, seed):
    weights, settings = TABLE[name]
    config = LoraConfig(**(dict(r=2, lora_alpha=3, task_type="CAUSAL_LM") | settings))
    model = get_peft_model(base.load(os.path.join(FAMILIES, weights), torch.float32), config)
    randomize(model, torch.Generator().manual_seed(seed))
    model.to(torch.bfloat16).save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    config = json.load(open(path))
    config["base_model_name_or_path"] = weights  # not where it was made
    config["target_modules"].sort()
    base.write_json(path, config)


def adapter(name):
    folder = os.path.join(FOLDER, f".{name}.new")
    weights = os.path.join(FAMILIES, TABLE[name][0])
    plain = base.load(weights, torch.float32)
    eos = plain.config.eos_token_id
    ends = set(eos) if isinstance(eos, list) else {eos}
    for seed in range(1, 60):
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, name, seed)
        load = lambda dtype: PeftModel.from_pretrained(base.load(weights, dtype), folder).eval()
        found = find_prompt(load(torch.float32), load(torch.bfloat16), 21, torch.Generator().manual_seed(seed), ends)
        if found is not None:
            break
    else:
        sys.exit(f"{name}: no seed gives a clear path")
    prompt, path, high, _ = found
    expected = base.figures(*found) | {"beside": name not in MERGED}
    without = float((base.teacher_forced(plain, prompt, path) - high).abs().max())
    print(f"{name}: seed {seed}, off by {expected['low_max_abs']:.3f}, without it {without:.3f}", flush=True)
    assert without > 5 * expected["low_max_abs"], "the adapter does too little"
    base.write_json(os.path.join(folder, "expected.json"), expected)
    save_file({"logits": high.contiguous()}, os.path.join(folder, "expected.safetensors"))
    base.replace(folder, os.path.join(FOLDER, name))


if __name__ == "__main__":
    base.STEPS = 12
    base.write_all(FOLDER, TABLE, adapter)
