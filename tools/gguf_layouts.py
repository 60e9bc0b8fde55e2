#!/usr/bin/env python3
"""Write tests/fixtures/gguf/layouts.json and encoders.json: what llama.cpp's converter makes of the checkpoints in
tests/fixtures/families/, and of some in tests/fixtures/encoders/, those with their tokenizers.

usage: python tools/gguf_layouts.py LLAMA_CPP [NAME ...]

LLAMA_CPP is a checkout of llama.cpp. Its `convert_hf_to_gguf.py` converts every checkpoint to f32; what it wrote is
described, not kept: the metadata, and for each tensor the rows of the checkpoint's tensors that it consists of. From that
`tests/models/gguf.rs` makes the same files again, and holds them to the logits that the checkpoints are held to. A checkpoint whose
model llama.cpp does not know, or whose configuration a GGUF file cannot say, is left out. gpt-oss's experts are blocks: the
file that is made of tests/fixtures/quantized/mxfp4 is kept as tests/fixtures/gguf/gpt_oss.gguf.

needs: torch, transformers, safetensors, numpy, and what llama.cpp's converter needs
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
OUT = FIXTURES / "gguf" / "layouts.json"
ENCODERS_OUT = FIXTURES / "gguf" / "encoders.json"

# Encoders, and how their tokenizers cut texts into words, which the converter would look up by a hash.
ENCODERS = {
    "bert": "bert-bge", "eurobert": "bert-bge", "gemma3_embedding": "gpt-2", "modernbert": "bert-bge",
    "nomic_published": "bert-bge", "qwen3_embedding": "gpt-2",
}

# What the converter does not write, by fixture: the model that it describes is another.
NOT_SAID = {
    "cohere2_other": "layers that look back in another pattern",
    "deepseek_v2": "two values of mscale",
    "deepseek_v3": "two values of mscale",
    "deepseek_v3_other": "that halves of a head turn together",
    "dots1_other": "a window",
    "falcon_groups": "an MLP that is not four times as wide",
    "gemma2": "a scale of scores",
    "gemma_other": "linear interpolation",
    "glm": "heads wider than their share",
    "glm_other": "linear interpolation",
    "gpt_neox_in_turn": "another activation",
    "gpt_oss_other": "a limit of the activation",
    "llama_dynamic": "dynamic interpolation",
    "mistral_other": "a window",
    "mixtral_other": "a window",
    "nemotron_other": "heads wider than their share",
    "olmoe_other": "whether weights of experts are normalized",
    "phi": "fewer heads of keys, and an MLP that is not four times as wide",
    "phimoe_other": "the noise of the router",
    "qwen3_other": "Llama 3's interpolation",
    "smollm3_other": "layers without rotation in another pattern",
    "starcoder2": "a window",
    "youtu_other": "that halves of a head turn together",
}
# What it does not write, or writes otherwise than the checkpoint has it, though a key for it is read.
ADDED = {
    "gemma3_embedding": ["gemma-embedding.attention.sliding_window_pattern", [9, 7], [True, False, True]],
    "olmoe": ["olmoe.attention.clamp_kqv", [6], 1.0],
    "qwen2_moe_other": ["qwen2moe.expert_weights_norm", [7], True],
    "qwen3_moe_other": ["qwen3moe.expert_weights_norm", [7], False],
}


def as_published(config):
    """The spellings of older versions of transformers, where the converter knows no others."""
    if config["model_type"] == "phimoe":
        config["architectures"] = ["PhiMoEForCausalLM"]
    if config["model_type"] == "nomic_bert":
        # no other lengths are known; published ones say all of the rest
        said = {"causal": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "prenorm": False, "qkv_proj_bias": False,
                "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None}
        config = said | config | {"architectures": ["NomicBertModel"], "n_positions": 8192, "max_trained_positions": 2048}
    return config


def convert(folder, out, half=False, words=None):
    import conversion
    import gguf

    # layers with one MLP among those with experts, which no published model of these has
    for arch in (gguf.MODEL_ARCH.QWEN2MOE, gguf.MODEL_ARCH.QWEN3MOE):
        one = [gguf.MODEL_TENSOR.FFN_GATE, gguf.MODEL_TENSOR.FFN_UP, gguf.MODEL_TENSOR.FFN_DOWN]
        gguf.MODEL_TENSORS[arch] += [tensor for tensor in one if tensor not in gguf.MODEL_TENSORS[arch]]

    hparams = conversion.ModelBase.load_hparams(folder, False)
    name = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    model = conversion.get_model_class(name)
    if hasattr(model, "no_mtp"):
        model.no_mtp = False
    if words is None:
        model.set_vocab = lambda self: None
    elif name in ("ModernBertModel", "EuroBertModel"):
        # published ones have byte-level BPE; ours has the tokenizer of BERT
        model.set_vocab = conversion.get_model_class("BertModel").set_vocab
        model.vocab_size = None
    elif words == "gpt-2":
        model.set_vocab = lambda self: self._set_vocab_gpt2()
    conversion.ModelBase.get_vocab_base_pre = lambda self, tokenizer: words
    conversion.TextModel.get_vocab_base_pre = lambda self, tokenizer: words
    with torch.inference_mode():
        kind = gguf.LlamaFileType.MOSTLY_BF16 if half else gguf.LlamaFileType.ALL_F32
        if hparams["model_type"] == "nomic_bert":
            # these are its own names, and transformers does not know them
            own = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                   "intermediate_size": "n_inner", "head_dim": None, "layer_norm_eps": "layer_norm_epsilon"}
            for theirs, ours in own.items():
                hparams[theirs] = hparams[ours] if ours else hparams["n_embd"] // hparams["n_head"]
        dense = words is not None
        instance = model(folder, kind, out, eager=True, hparams=hparams, sentence_transformers_dense_modules=dense)
        if name == "EuroBertModel":
            instance.hparams.pop("classifier_pooling")  # transformers' default, of classifiers
        parameters = instance.hparams.get("rope_parameters", {})
        instance.hparams.setdefault("rotary_pct", parameters.get("partial_rotary_factor", 1.0))
        instance.rope_parameters.setdefault("original_max_position_embeddings", instance.hparams["max_position_embeddings"])
        instance.write()


def runs(indices):
    """[first, count, step] of stretches."""
    found = []
    at = 0
    while at < len(indices):
        count, step = 1, 1
        if at + 1 < len(indices):
            step = indices[at + 1] - indices[at]
            while at + count < len(indices) and indices[at + count] - indices[at + count - 1] == step:
                count += 1
        found.append([indices[at], count, step])
        at += count
    return found


class Rows:
    """The rows of all tensors of a checkpoint, by their values."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.rows = {}
        views = {
            "plain": lambda tensor: tensor,
            "transposed": lambda tensor: tensor.swapaxes(-1, -2) if tensor.ndim == 3 else None,
            "even": lambda tensor: tensor[..., ::2] if tensor.ndim == 2 else None,
            "odd": lambda tensor: tensor[..., 1::2] if tensor.ndim == 2 else None,
        }
        for how, view in views.items():
            for name, tensor in sorted(tensors.items()):
                values = view(tensor)
                if values is None:
                    continue
                values = np.ascontiguousarray(values)
                for index, row in enumerate(values.reshape(-1, values.shape[-1])):
                    self.rows.setdefault((len(row), row.tobytes()), (name, how, index))

    def describe(self, name, values):
        if values.ndim == 1:
            return self.vector(name, values)
        if name.endswith("attn_k_b.weight"):
            return self.keys(name, values)
        parts = []
        for row in values.reshape(-1, values.shape[-1]):
            source, how, index = self.rows[len(row), np.ascontiguousarray(row).tobytes()]
            if not parts or parts[-1][:2] != [source, how]:
                parts.append([source, how, []])
            parts[-1][2].append(index)
        return {"rows": [[source, how, runs(indices)] for source, how, indices in parts]}

    def vector(self, name, values):
        for source, tensor in sorted(self.tensors.items()):
            flat = tensor.reshape(-1)
            if flat.shape == values.shape and np.array_equal(flat, values):
                return {"whole": source}
            if flat.shape == values.shape and tensor.ndim == 1 and np.array_equal(flat + 1, values):
                return {"plus_one": source}
        layer = ".".join(name.split(".")[:2]).replace("blk", "layers")
        for source, tensor in sorted(self.tensors.items()):
            if layer in source and tensor.ndim == 1 and set(values.tolist()) <= set(tensor.tolist()):
                places = {value: index for index, value in enumerate(tensor.tolist())}
                return {"values": [source, runs([places[value] for value in values.tolist()])]}
        return {"numbers": [float(value) for value in values]}

    def keys(self, name, values):
        """MLA's matrix to keys, transposed head by head."""
        layer = name.split(".")[1]
        source = f"model.layers.{layer}.self_attn.kv_b_proj.weight"
        heads, _, size = values.shape
        stride = len(self.tensors[source]) // heads
        for head in range(heads):
            assert np.array_equal(values[head].T, self.tensors[source][head * stride : head * stride + size])
        return {"keys": [source, stride, size]}


def described(folder, words=None):
    import gguf

    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for path in sorted(folder.glob("*_Dense/model.safetensors")):
        dense = safetensors.torch.load_file(path).items()
        tensors |= {f"{path.parent.name}/{name}": tensor for name, tensor in dense}
    rows = Rows({name: tensor.float().numpy() for name, tensor in tensors.items()})
    with tempfile.TemporaryDirectory() as work:
        work, out = Path(work), Path(work) / "model.gguf"
        shutil.copytree(folder, work, dirs_exist_ok=True)
        (work / "config.json").write_text(json.dumps(as_published(json.loads((folder / "config.json").read_text()))))
        convert(work, out, words=words)
        reader = gguf.GGUFReader(out)
        values = []
        for key, field in reader.fields.items():
            if key.startswith(("GGUF.", "general.")) and key != "general.architecture":
                continue
            contents = field.contents()
            contents = contents if isinstance(contents, (str, bool)) else np.asarray(contents).tolist()
            values.append([key, [int(kind) for kind in field.types], contents])
        found = []
        for tensor in reader.tensors:
            data = np.array(tensor.data).astype(np.float32).reshape(list(reversed(tensor.shape.tolist())))
            found.append([tensor.name, list(data.shape), rows.describe(tensor.name, data)])
    return {"metadata": values, "tensors": found}


def main():
    sys.path[:0] = [sys.argv[1], os.path.join(sys.argv[1], "gguf-py")]
    torch.set_num_threads(1)
    names = [name for name in sys.argv[2:] if name not in ENCODERS]
    encoders([name for name in sys.argv[2:] if name in ENCODERS] or ([] if names else ENCODERS))
    if sys.argv[2:] and not names:
        return
    if not names:
        convert(FIXTURES / "quantized" / "mxfp4", FIXTURES / "gguf" / "gpt_oss.gguf", half=True)
    layouts = json.loads(OUT.read_text()) if names and OUT.exists() else {}
    for name in names or sorted(path.name for path in (FIXTURES / "families").iterdir() if path.is_dir()):
        if name in NOT_SAID:
            print(f"{name}: a GGUF file does not say {NOT_SAID[name]}", flush=True)
            continue
        try:
            layouts[name] = described(FIXTURES / "families" / name)
            layouts[name]["metadata"] += [ADDED[name]] if name in ADDED else []
            print(f"{name}: {len(json.dumps(layouts[name]))} bytes", flush=True)
        except (Exception, SystemExit) as problem:
            layouts.pop(name, None)
            print(f"{name}: {type(problem).__name__}: {problem}", flush=True)
    write(OUT, layouts)


def write(out, layouts):
    lines = [f"{json.dumps(name)}: {json.dumps(layouts[name], separators=(',', ':'))}" for name in sorted(layouts)]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def scale_queries(folder, tensors):
    """A file does not say that scores have another scale than that of heads: that goes into the norm of queries."""
    config = json.loads((folder / "config.json").read_text())
    factor = (config["head_dim"] / config["query_pre_attn_scalar"]) ** 0.5
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    for name, _, described in tensors:
        if name.endswith("attn_q_norm.weight"):
            values = (stored[described["plus_one"]].float() + 1) * factor
            described.clear()
            described["numbers"] = values.tolist()


def encoders(names):
    layouts = json.loads(ENCODERS_OUT.read_text()) if ENCODERS_OUT.exists() else {}
    for name in names:
        layouts[name] = described(FIXTURES / "encoders" / name, ENCODERS[name])
        layouts[name]["metadata"] += [ADDED[name]] if name in ADDED else []
        if name == "gemma3_embedding":
            scale_queries(FIXTURES / "encoders" / name, layouts[name]["tensors"])
        print(f"{name}: {len(json.dumps(layouts[name]))} bytes", flush=True)
    write(ENCODERS_OUT, layouts)


if __name__ == "__main__":
    main()
