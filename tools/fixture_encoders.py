#!/usr/bin/env python3
"""Write tiny checkpoints that embed texts or score them below tests/fixtures/encoders/, with sentence-transformers as the
reference.

usage: python tools/fixture_encoders.py [NAME ...]

A folder holds a checkpoint as it is published (weights in bf16, a tokenizer, modules.json and the files that it names),
expected.json (texts or pairs, how they are asked for, and the largest and the root-mean-square error of the reference's own
run in bf16) and expected.safetensors (what the reference gives in f32: `values`, one row for each text or pair).

needs: torch, transformers, sentence-transformers, safetensors
"""

import json
import os
import shutil
import sys

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import make_fixtures as base

FOLDER = os.path.join(base.FIXTURES, "encoders")
VOCAB = 96
MOST = 40  # tokens of a text

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
OFFSET = SMALL | {"pad_token_id": 1, "max_position_embeddings": 66, "type_vocab_size": 1}
DISTIL = {
    "vocab_size": VOCAB,
    "dim": 40,
    "hidden_dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODERN = SMALL | {"num_hidden_layers": 4, "local_attention": 8, "cls_token_id": 2, "sep_token_id": 3}
LATER = SMALL | {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3}
SCORES = {"num_labels": 1}

# name: (model class, config class, config, tokenizer, modules, how it is asked for)
TABLE = {
    "bert": (hf.BertModel, hf.BertConfig, SMALL | {"hidden_size": 60, "num_attention_heads": 3}, "bert",
             ["mean", "normalize"], {}),
    "bert_plain": (hf.BertForMaskedLM, hf.BertConfig, SMALL | {"hidden_act": "gelu_new"}, "bert", None, {}),
    "bert_matryoshka": (hf.BertModel, hf.BertConfig, SMALL, "bert", ["cls", "normalize"], {"dimensions": 20}),
    "roberta": (hf.RobertaModel, hf.RobertaConfig, OFFSET, "roberta", ["cls", "tanh"], {}),
    "xlm_roberta": (hf.XLMRobertaModel, hf.XLMRobertaConfig, OFFSET, "roberta", ["mean", "normalize"],
                    {"prompt_name": "query"}),
    "camembert": (hf.CamembertForMaskedLM, hf.CamembertConfig, OFFSET, "roberta", ["mean"], {}),
    "electra": (hf.ElectraModel, hf.ElectraConfig, SMALL | {"embedding_size": 40}, "bert", ["mean_sqrt_len_tokens"], {}),
    "distilbert": (hf.DistilBertModel, hf.DistilBertConfig, DISTIL, "bert", ["max"], {}),
    "mpnet": (hf.MPNetModel, hf.MPNetConfig, OFFSET | {"relative_attention_num_buckets": 32}, "roberta",
              ["mean", "normalize"], {}),
    "modernbert": (hf.ModernBertModel, hf.ModernBertConfig, MODERN, "bert", ["cls", "normalize"], {}),
    "modernbert_biased": (
        hf.ModernBertForMaskedLM,
        hf.ModernBertConfig,
        MODERN | {"norm_bias": True, "attention_bias": True, "mlp_bias": True},
        "bert",
        ["mean"],
        {},
    ),
    "nomic": (hf.NomicBertModel, hf.NomicBertConfig, SMALL, "bert", ["mean", "normalize"], {"prompt": "ab cd "}),
    "nomic_published": (hf.NomicBertModel, hf.NomicBertConfig, SMALL, "bert", ["mean", "normalize"], {}),
    "gte": (hf.GteModel, hf.GteConfig, SMALL | {"type_vocab_size": 1}, "bert", ["cls", "normalize"], {}),
    "gte_published": (hf.GteModel, hf.GteConfig, SMALL | {"type_vocab_size": 0}, "bert", ["cls"], {}),
    "eurobert": (hf.EuroBertModel, hf.EuroBertConfig, LATER | {"head_dim": 20}, "bert", ["mean"], {}),
    "qwen3_embedding": (hf.Qwen3Model, hf.Qwen3Config, LATER | {"head_dim": 20}, "causal", ["lasttoken", "normalize"],
                        {"prompt_name": "query"}),
    "gemma3_embedding": (
        hf.Gemma3TextModel,
        hf.Gemma3TextConfig,
        LATER | {"head_dim": 20, "num_hidden_layers": 3, "sliding_window": 8, "use_bidirectional_attention": True,
                 "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "causal",
        ["mean", "wide", "narrow", "normalize"],
        {"prompt_name": "document"},
    ),
    "llama_weighted": (hf.LlamaModel, hf.LlamaConfig, LATER, "causal", ["weightedmean"], {}),
    "instructed": (hf.BertModel, hf.BertConfig, SMALL, "bert", ["mean without prompt"], {"prompt_name": "query"}),
    "bert_scores": (hf.BertForSequenceClassification, hf.BertConfig, SMALL | SCORES, "bert", None, {}),
    "roberta_scores": (hf.RobertaForSequenceClassification, hf.RobertaConfig, OFFSET | SCORES, "roberta", None, {}),
    "electra_scores": (hf.ElectraForSequenceClassification, hf.ElectraConfig, SMALL | SCORES | {"embedding_size": 40},
                       "bert", None, {}),
    "distilbert_scores": (hf.DistilBertForSequenceClassification, hf.DistilBertConfig, DISTIL | SCORES, "bert", None, {}),
    "modernbert_scores": (
        hf.ModernBertForSequenceClassification,
        hf.ModernBertConfig,
        MODERN | SCORES | {"classifier_pooling": "mean"},
        "bert",
        None,
        {},
    ),
    "gte_scores": (hf.GteForSequenceClassification, hf.GteConfig, SMALL | SCORES | {"type_vocab_size": 1}, "bert", None, {}),
    "qwen3_scores": (hf.Qwen3ForSequenceClassification, hf.Qwen3Config, LATER | SCORES | {"head_dim": 20}, "causal", None,
                     {"raw": True}),
}

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = {"query": "seek: ", "document": "text: "}


def words(generator):
    """A text of made-up words."""
    count = int(torch.randint(1, 14, (1,), generator=generator))
    pick = lambda: LETTERS[int(torch.randint(0, len(LETTERS), (1,), generator=generator))]
    return " ".join("".join(pick() for _ in range(1 + int(torch.randint(0, 5, (1,), generator=generator)))) for _ in range(count))


def word_piece():
    """[PAD], [UNK], [CLS] and [SEP]; letters, alone and inside a word; pairs."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ":", *LETTERS, *("##" + letter for letter in LETTERS)]
    vocab += [a + b for a, b in zip(LETTERS, LETTERS[3:])]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab[:VOCAB])}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer, {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def byte_level(post):
    """Bytes as letters; RoBERTa's marks, or one at the end."""
    alphabet = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter in LETTERS + ":Ġ"]
    names = ["<s>", "<pad>", "</s>", "<unk>"] if post == "roberta" else ["<pad>", "<unk>", "<s>", "</s>"]
    merges = [(a, b) for a, b in zip(LETTERS, LETTERS[3:])]
    vocab = [*names, *alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab[:VOCAB])}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if post == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A $B:1 </s>:1", special_tokens=[("</s>", 3)]
        )
    tokenizer.add_special_tokens(names)
    return tokenizer, {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


@torch.no_grad()
def randomize(model, generator):
    """So that texts differ, attention is not flat, and biases and norms matter."""
    near = 0 if model.config.model_type.startswith("gemma") else 1
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            value = near + 0.2 * noise.clamp(-2, 2)
        elif name.endswith("bias"):
            value = 0.2 * noise
        elif "relative_attention_bias" in name or "embed" in name:
            value = noise
        else:
            value = noise * 1.5 / parameter.shape[-1] ** 0.5
        parameter.copy_(value)


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def write_modules(folder, kinds, width, generator):
    """modules.json and what it names, in the spellings of several years."""
    old = "sentence_transformers.models."
    modules = [{"idx": 0, "name": "0", "path": "", "type": old + "Transformer"}]
    for index, kind in enumerate(kinds, 1):
        name = {"normalize": "Normalize", "tanh": "Dense", "wide": "Dense", "narrow": "Dense"}.get(kind, "Pooling")
        path = f"{index}_{name}"
        modules.append({"idx": index, "name": str(index), "path": path, "type": old + name})
        if name == "Pooling":
            config = {"word_embedding_dimension": width}
            if kind in ("cls", "max"):
                config |= {"pooling_mode_cls_token": kind == "cls", "pooling_mode_max_tokens": kind == "max"}
                config |= {"pooling_mode_mean_tokens": False}
            else:
                config |= {"pooling_mode": kind.split()[0]}
            if "without" in kind:
                config |= {"include_prompt": False}
            write_json(f"{folder}/{path}/config.json", config)
        elif name == "Dense":
            outputs = {"tanh": width, "wide": 2 * width, "narrow": width // 2}[kind]
            activation = "torch.nn.modules.activation.Tanh" if kind == "tanh" else "torch.nn.modules.linear.Identity"
            bias = kind == "tanh"
            config = {"in_features": width, "out_features": outputs, "bias": bias, "activation_function": activation}
            write_json(f"{folder}/{path}/config.json", config)
            weights = {"linear.weight": torch.randn(outputs, width, generator=generator) / width**0.5}
            if bias:
                weights["linear.bias"] = 0.2 * torch.randn(outputs, generator=generator)
            weights = {name: tensor.bfloat16() for name, tensor in weights.items()}
            save_file(weights, f"{folder}/{path}/model.safetensors", metadata={"format": "pt"})
            width = outputs
    write_json(f"{folder}/modules.json", modules)
    prompts = {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(f"{folder}/config_sentence_transformers.json", prompts)
    write_json(f"{folder}/sentence_bert_config.json", {"max_seq_length": MOST, "do_lower_case": False})


def run(folder, scores, inputs, asked, dtype):
    """What the reference gives in `dtype`; one text at a time, so that nothing is padded."""
    options = {"device": "cpu", "model_kwargs": {"dtype": dtype}}
    with torch.no_grad():
        if scores:
            model = CrossEncoder(folder, **options, processor_kwargs={"model_max_length": MOST})
            activation = torch.nn.Identity() if asked.get("raw") else None
            rows = [model.predict([tuple(pair)], activation_fn=activation, convert_to_tensor=True) for pair in inputs]
            return torch.stack([row.float().flatten() for row in rows])
        model = SentenceTransformer(folder, **options).to(dtype)
        options = {key: asked[key] for key in ("prompt", "prompt_name") if key in asked}
        options |= {"truncate_dim": asked.get("dimensions"), "convert_to_tensor": True}
        options |= {"normalize_embeddings": "dimensions" in asked}  # the module comes before the cut
        return torch.stack([model.encode(text, **options).float() for text in inputs])


# model_type, fields by their published names, other fields, what names of tensors begin with
PUBLISHED = {
    "nomic_published": (
        "nomic_bert",
        {
            "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
            "n_inner": "intermediate_size", "n_positions": "max_position_embeddings",
            "layer_norm_epsilon": "layer_norm_eps", "vocab_size": "vocab_size", "type_vocab_size": "type_vocab_size",
        },
        {"activation_function": "swiglu", "prenorm": False, "qkv_proj_bias": False, "rotary_emb_base": 1000,
         "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "use_rms_norm": False},
        "",
    ),
    "gte_published": (
        "new",
        {name: name for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                                 "max_position_embeddings", "layer_norm_eps", "vocab_size", "type_vocab_size",
                                 "hidden_act")},
        {"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "rope_theta": 160000.0, "pack_qkv": True},
        "new.",
    ),
}


def publish(name, folder):
    """Rewrites a checkpoint as its authors have it. transformers stores its tensors under their names already."""
    kind, fields, extra, prefix = PUBLISHED[name]
    path = f"{folder}/config.json"
    config = json.load(open(path))
    write_json(path, {new: config[old] for new, old in fields.items()} | extra | {"torch_dtype": "bfloat16", "model_type": kind})
    weights = {prefix + key: value for key, value in load_file(f"{folder}/model.safetensors").items()}
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})


def as_tensorflow_named(folder):
    path = f"{folder}/model.safetensors"
    names = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]
    weights = load_file(path)
    for old, new in names:
        weights = {key.replace(old, new): value for key, value in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})


def checkpoint(name):
    model_class, config_class, switches, tokenizer, modules, asked = TABLE[name]
    folder = os.path.join(FOLDER, f".{name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(len(name) * 7 + sum(map(ord, name)))
    model = model_class(config_class(**switches)).eval()
    randomize(model, generator)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer, marks = word_piece() if tokenizer == "bert" else byte_level(tokenizer)
    tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
    marks |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MOST}
    if tokenizer.token_to_id("[CLS]") is not None:
        marks |= {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    if switches.get("type_vocab_size") in (0, 1) or "distil" in name or "modern" in name or "eurobert" in name:
        marks |= {"model_input_names": ["input_ids", "attention_mask"]}
    write_json(f"{folder}/tokenizer_config.json", marks)
    scores = name.endswith("scores")
    if modules:
        write_modules(folder, modules, model.config.hidden_size, generator)
    texts = ["", "a", "seek: dg", *(words(generator) for _ in range(9)), " ".join(words(generator) for _ in range(9))]
    inputs = [[texts[4], text] for text in texts[1:]] + [[texts[-1], texts[5]]] if scores else texts
    if "causal" == TABLE[name][3]:
        inputs = [text for text in inputs if text != ""]
    exact = run(folder, scores, inputs, asked, torch.float32)
    off = run(folder, scores, inputs, asked, torch.bfloat16) - exact
    expected = {
        "scores": scores,
        "inputs": inputs,
        "asked": asked,
        "low_max_abs": float(off.abs().max()),
        "low_rms": float(off.square().mean().sqrt()),
    }
    spread = (exact - exact.mean(0)).square().mean().sqrt()
    print(f"{name}: low precision is off by {expected['low_rms']:.5f}, texts differ by {float(spread):.3f}", flush=True)
    assert spread > 5 * expected["low_rms"], "the fixture does not tell texts apart"
    if name in PUBLISHED:
        publish(name, folder)
    if name == "bert_matryoshka":
        as_tensorflow_named(folder)
    write_json(f"{folder}/expected.json", expected)
    save_file({"values": exact.contiguous()}, f"{folder}/expected.safetensors")
    for path in ("README.md", "generation_config.json"):
        if os.path.exists(f"{folder}/{path}"):
            os.remove(f"{folder}/{path}")
    final = os.path.join(FOLDER, name)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(folder, final)


if __name__ == "__main__":
    base.write_all(FOLDER, TABLE, checkpoint)
