"""Writes random bf16 weights in the shape of Qwen2.5-0.5B, twice the same: as a Hugging Face folder and as a GGUF.

usage: python checkpoint.py FOLDER FILE.gguf      needs numpy and gguf

There is no tokenizer and no end token: prompts are token ids, and no reply ends early. What is there is not written
again.
"""

import json
import os
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "dtype": "bfloat16",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "use_sliding_window": False,
    "sliding_window": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}

# Tensors of a layer: the name here, the name in a GGUF.
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def shapes(config):
    """Every tensor's name and shape, in the order of the file."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            yield f"{layer}.self_attn.{name}_proj.weight", (rows, hidden)
            yield f"{layer}.self_attn.{name}_proj.bias", (rows,)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)


def random_bf16(rng, name, shape):
    """Normal weights of deviation 0.02, ones for norms, zeros for biases: as the model's own initialization."""
    if name.endswith("norm.weight"):
        values = np.ones(shape, np.float32)
    elif name.endswith("bias"):
        values = np.zeros(shape, np.float32)
    else:
        values = 0.02 * rng.standard_normal(shape, np.float32)
    return ((values.view(np.uint32) + 0x8000) >> 16).astype("<u2")  # a bf16 is the upper half of an f32


def write_folder(folder):
    """config.json and model.safetensors: the length of a JSON header, the header, the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    for name, shape in shapes(CONFIG):
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    partial = folder / "model.safetensors.partial"
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes(CONFIG):
            random_bf16(rng, name, shape).tofile(file)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    os.replace(partial, folder / "model.safetensors")


def read_folder(folder):
    """Every tensor's name and its bf16 values as numpy's uint16."""
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, "<u2", "r", offset=8 + length)
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            yield name, data[start // 2 : end // 2].reshape(tensor["shape"])


def gguf_name(name):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if name == "lm_head.weight":
        return "output.weight"
    _, _, layer, *middle, kind = name.split(".")
    return f"blk.{layer}.{LAYER['.'.join(middle)]}.{kind}"


def write_gguf_file(path, architecture, config, tensors):
    """`tensors`: names as Hugging Face has them, with bf16 as whole numbers. Matrices stay bf16, vectors become f32, which
    llama.cpp asks for."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("none")
    for name, values in tensors:
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), (values.astype(np.uint32) << 16).view(np.float32))
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), values, raw_shape=values.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)


def write_gguf(folder, path):
    write_gguf_file(path, "qwen2", json.loads((folder / "config.json").read_text()), read_folder(folder))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, path = map(Path, sys.argv[1:])
    if not (folder / "model.safetensors").exists():
        write_folder(folder)
    if not path.exists():
        write_gguf(folder, path)
