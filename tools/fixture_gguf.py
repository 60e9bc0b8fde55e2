#!/usr/bin/env python3
"""Write tests/fixtures/gguf/: files as llama.cpp's converters write them, and what the reference makes of them.

usage: python tools/fixture_gguf.py [NAME ...]

`blocks.safetensors` holds random blocks of each quantized type, and their values by llama.cpp's package `gguf`. Each model
is a folder with model.gguf, expected.json and expected.safetensors, which are as in the other fixtures: the reference is
transformers with the weights that `gguf` decodes. `tokenizers/` holds the tokenizers of tests/fixtures/tokenizers/ as GGUF.

needs: gguf, numpy, torch, transformers, safetensors
"""

import json
import os
import shutil
import sys
import tempfile

import gguf
import numpy as np
import safetensors.torch
import torch
import transformers as hf
from safetensors.numpy import save_file

import make_fixtures as base
from fixture_families import find_prompt

FOLDER = os.path.join(base.FIXTURES, "gguf")
KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
         "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "NVFP4"]
# where a type's halves are in its block, and by how much the offset is larger than the scale, so that values are around zero
HALVES = {"Q4_1": ([0, 2], -7.5), "Q5_1": ([0, 2], -15.5), "Q2_K": ([80, 82], 1.5), "Q3_K": ([108], 0), "Q4_K": ([0, 2], 7.5),
          "Q5_K": ([0, 2], 15.5), "Q6_K": ([208], 0), "TQ1_0": ([52], 0), "TQ2_0": ([64], 0), "NVFP4": ([], 0), "IQ1_M": ([], 0)}
# grids in the order of src/weights/gguf/grids.rs, and the bits of a coordinate
GRIDS = [("IQ2_XXS", 2), ("IQ2_XS", 2), ("IQ2_S", 2), ("IQ1_S", 2), ("IQ3_XXS", 3), ("IQ3_S", 3)]


def grids():
    """Writes src/weights/gguf/grids.bin: the points of the grids, each in a number of 16 bits."""
    points = []
    for name, bits in GRIDS:
        kind = getattr(gguf.quants, name)
        kind.init_grid()
        levels = {float(level): index for index, level in enumerate(kind.grid_map)}
        for point in kind.grid.reshape(kind.grid_shape):
            points.append(sum(levels[float(value)] << (bits * at) for at, value in enumerate(point)))
    path = os.path.join(os.path.dirname(base.FIXTURES), os.pardir, "src", "weights", "gguf", "grids.bin")
    np.array(points, dtype="<u2").tofile(path)


def blocks():
    draw, tensors = np.random.default_rng(4), {}
    for name in KINDS:
        kind = gguf.GGMLQuantizationType[name]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        count = 512 // values
        data = draw.integers(0, 256, (count, size), dtype=np.uint8)
        for at in [] if name == "MXFP4" else HALVES.get(name, ([0], 0))[0]:
            scales = draw.normal(size=(count, 1)).astype(np.float16)
            data[:, at : at + 2] = scales.view(np.uint8)
        if name == "MXFP4":
            data[:, 0] = draw.integers(0, 140, count, dtype=np.uint8)
            data[:3, 0] = [0, 1, 2]
        if name == "IQ1_M":
            # the scale's pieces, in the highest bits of four words
            scale = draw.normal(size=count).astype(np.float16).view(np.uint16)
            for at in range(4):
                data[:, 49 + 2 * at] = data[:, 49 + 2 * at] & 0x0F | ((scale >> (4 * at) & 15) << 4).astype(np.uint8)
        if name == "NVFP4":
            data[:, 0] = [0, 1, 0x7F, 0xFF, 0x7E, 8, 0x80, 0x38]
        tensors[f"{int(kind)}.blocks"] = data
        tensors[f"{int(kind)}.values"] = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(-1)
    save_file(tensors, os.path.join(FOLDER, "blocks.safetensors"))


def random_matrix(draw, name, rows, cols, deviation):
    """Blocks of a type whose values have about this standard deviation, and the values."""
    kind = gguf.GGMLQuantizationType[name]
    if name in ("F32", "F16"):
        data = (draw.normal(size=(rows, cols)) * deviation).astype(np.float32 if name == "F32" else np.float16)
        return kind, data, data.astype(np.float32)
    values, size = gguf.GGML_QUANT_SIZES[kind]
    data = draw.integers(0, 256, (rows * cols // values, size), dtype=np.uint8)
    places, ratio = HALVES.get(name, ([0], 0))

    def scale(by):
        for at, factor in zip(places, [1, ratio]):
            data[:, at : at + 2] = np.full((len(data), 1), by * factor, dtype=np.float16).view(np.uint8)

    scale(0.01)
    scale(0.01 * deviation / gguf.quants.dequantize(data, kind).std())
    data = data.reshape(rows, cols // values * size)
    return kind, data, gguf.quants.dequantize(data, kind).astype(np.float32)


K_MIX = {"attn_q": "Q4_K", "attn_k": "Q5_K", "attn_v": "Q6_K", "attn_output": "Q5_1", "ffn_gate": "Q2_K", "ffn_up": "Q4_K",
         "ffn_down": "Q4_0", "token_embd": "Q3_K", "output": "Q6_K"}
MIX = {"attn_q": "Q8_0", "attn_k": "Q4_1", "attn_v": "Q5_0", "attn_output": "Q8_0", "ffn_gate": "Q4_0", "ffn_up": "Q4_0",
       "ffn_down": "IQ4_NL", "token_embd": "Q8_0", "output": "Q8_0"}
EIGHT = dict.fromkeys(MIX, "Q8_0") | {"attn_v": "F16"}
SMALL = {"vocab_size": 96, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 64, "intermediate_size": 96,
         "num_hidden_layers": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}

# name: (config, architecture of llama.cpp, types of matrices)
MODELS = {
    "llama": (
        hf.LlamaConfig(**SMALL | {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
                                  "intermediate_size": 64, "rope_parameters": LLAMA3}),
        "llama", K_MIX,
    ),
    "qwen3": (hf.Qwen3Config(**SMALL, tie_word_embeddings=True), "qwen3", MIX),
    "qwen2": (hf.Qwen2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}, tie_word_embeddings=True), "qwen2", EIGHT),
    "gemma2": (hf.Gemma2Config(**SMALL | {"sliding_window": 8, "query_pre_attn_scalar": 16}), "gemma2", EIGHT),
    "gemma3": (
        hf.Gemma3TextConfig(**SMALL | {"sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 2,
                                       "layer_types": ["sliding_attention"] * 2}),
        "gemma3", EIGHT,
    ),
    "phi3": (hf.Phi3Config(**SMALL), "phi3", EIGHT | {"attn_qkv": "Q8_0"}),
    "starcoder2": (hf.Starcoder2Config(**SMALL | {"sliding_window": None}), "starcoder2", EIGHT),
}

GEMMA = {"ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
         "post_ffw_norm": "post_feedforward_layernorm"}
NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_qkv": "self_attn.qkv_proj", "attn_q_norm": "self_attn.q_norm",
         "attn_k_norm": "self_attn.k_norm", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def tensor_names(model, arch):
    """Parameters of the model by llama.cpp's names."""
    own = NAMES | (GEMMA if arch.startswith("gemma") else {})
    own |= {"phi3": {"ffn_up": "mlp.gate_up_proj"}, "starcoder2": {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}}.get(arch, {})
    theirs = {ours: name for name, ours in own.items()}
    for name, parameter in model.named_parameters():
        stem, end = name.rsplit(".", 1)
        top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}.get(stem)
        if top is None:
            _, _, layer, part = stem.split(".", 3)
            top = f"blk.{layer}.{theirs[part]}"
        yield f"{top}.{end}", name, parameter


def permute(values, heads):
    """llama.cpp's order of the rows of q and k: neighbours turn together."""
    return values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def unpermute(values, heads):
    return values.reshape(heads, len(values) // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)


@torch.no_grad()
def write(name, folder, seed):
    """model.gguf; returns the model with the same weights."""
    config, arch, kinds = MODELS[name]
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    writer = gguf.GGUFWriter(os.path.join(folder, "model.gguf"), arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if arch not in ("qwen2", "phi3", "starcoder2"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if arch == "starcoder2":
        writer.add_layer_norm_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    parameters = config.rope_parameters
    theta = parameters.get("full_attention", parameters)["rope_theta"]
    writer.add_rope_freq_base(theta)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_eos_token_id(config.eos_token_id)
    draw = np.random.default_rng(seed)
    tied = config.tie_word_embeddings
    for theirs, _, parameter in tensor_names(model, arch):
        part = theirs.split(".")[-2]
        if parameter.ndim == 1:
            near = 1.0 if theirs.endswith("weight") else 0.0
            # embeddings are scaled there: branches are larger too
            near *= 6.0 if part.startswith("post_") and arch.startswith("gemma") else 1.0
            values = (near + 0.2 * draw.normal(size=parameter.shape).clip(-2, 2)).astype(np.float32)
            writer.add_tensor(theirs, values)
            shift = 1.0 if arch.startswith("gemma") else 0.0
            parameter.copy_(torch.from_numpy(values) - shift)
            continue
        rows, cols = parameter.shape
        deviation = cols**-0.5
        if part == "token_embd":
            deviation = 3 * cols**-0.5 if tied else 1.0
        elif part == "output":
            deviation *= 3
        elif part in ("attn_output", "ffn_down"):
            deviation *= (5 if ".0." in theirs else 2) if tied and arch not in ("gemma2", "gemma3") else 1
        kind, data, values = random_matrix(draw, kinds[part], rows, cols, deviation)
        writer.add_tensor(theirs, data, raw_dtype=kind)
        if arch == "llama" and part in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
            values = unpermute(values, heads)
            assert np.array_equal(permute(values, heads), unpermute(permute(permute(values, heads), heads), heads))
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
    if arch == "llama":
        # what Llama 3.1 divides its frequencies by
        plain = 10000.0 ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
        frequencies = model.model.rotary_emb.inv_freq.numpy().astype(np.float64)
        writer.add_tensor("rope_freqs.weight", (plain / frequencies).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def model(name):
    folder = os.path.join(FOLDER, f".{name}.new")
    for seed in range(1, 60):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        exact = write(name, folder, seed)
        with tempfile.TemporaryDirectory() as other:
            exact.save_pretrained(other)
            low = base.load(other, torch.bfloat16)
        found = find_prompt(exact, low, 21, torch.Generator().manual_seed(seed), {2})
        if found is not None:
            break
    else:
        sys.exit(f"{name}: no seed gives a clear path")
    expected, high = base.figures(*found), found[2]
    base.write_json(os.path.join(folder, "expected.json"), expected)
    safetensors.torch.save_file({"logits": high.contiguous()}, os.path.join(folder, "expected.safetensors"))
    size = os.path.getsize(os.path.join(folder, "model.gguf"))
    print(f"{name}: seed {seed}, {size} bytes, off by {expected['low_max_abs']:.3f}", flush=True)
    base.replace(folder, os.path.join(FOLDER, name))


def tokenizer(name, pre):
    """A tokenizer of tests/fixtures/tokenizers/ as GGUF, with a table of the right height."""
    source = json.load(open(os.path.join(base.FIXTURES, "tokenizers", name, "tokenizer.json")))
    ids = dict(source["model"]["vocab"])
    special = {token["content"]: token["special"] for token in source["added_tokens"]}
    ids |= {token["content"]: token["id"] for token in source["added_tokens"]}
    tokens = sorted(ids, key=ids.get)
    assert [ids[token] for token in tokens] == list(range(len(tokens)))
    folder = os.path.join(FOLDER, "tokenizers")
    os.makedirs(folder, exist_ok=True)
    writer = gguf.GGUFWriter(os.path.join(folder, f"{name}.gguf"), "llama")
    writer.add_token_list(tokens)
    byte = lambda token: len(token) == 6 and token.startswith("<0x")
    writer.add_token_types([3 if special.get(t) else 4 if t in special else 6 if byte(t) else 1 for t in tokens])
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in source["model"]["merges"]]
    if pre:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(merges)
    else:
        # the earlier a merge, the better the score of what it makes
        scores = {merge.replace(" ", ""): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}
        writer.add_token_scores([scores.get(token, -1e6) for token in tokens])
    for kind in ("bos", "eos"):
        names = {"bos": ["<s>", "<|begin_of_text|>"], "eos": ["</s>", "<|end_of_text|>"]}[kind]
        token = next((ids[name] for name in names if name in ids), None)
        if token is not None:
            (writer.add_bos_token_id if kind == "bos" else writer.add_eos_token_id)(token)
            if kind == "bos":
                writer.add_add_bos_token(True)
    if "<unk>" in ids:
        writer.add_unk_token_id(ids["<unk>"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    torch.set_num_threads(1)
    hf.utils.logging.set_verbosity_error()
    os.makedirs(FOLDER, exist_ok=True)
    base.STEPS = 16
    names = sys.argv[1:]
    if not names:
        grids()
        blocks()
        tokenizer("llama3_style", "llama-bpe")
        tokenizer("llama2_style", None)
    for name in names or MODELS:
        model(name)


if __name__ == "__main__":
    main()
