#!/usr/bin/env python3
"""Write the test fixtures below tests/fixtures/ with transformers as the reference.

usage: python tools/make_fixtures.py [--corpus CORPUS] [NAME ...]

NAME   a checkpoint of CHECKPOINTS below, `tokenizers` or `default_model`;
       without names everything is written
CORPUS the text that the small tokenizers are trained on, needed for `tokenizers`
       (tools/rust_docs_corpus.py writes it)

needs: torch, transformers, tokenizers, safetensors

A checkpoint folder holds what save_pretrained writes, and

expected.json          dtype, three prompts, 32 greedy ids for each, and how far the
                       logits are off when transformers runs in low precision
expected.safetensors   logits.0 to logits.2, f32 [32, vocab]: the logits that each
                       greedy id was chosen from

The reference is transformers in f32 with eager attention on exactly the weights
in the files. The low-precision run uses the dtype of the checkpoint (bf16 for the
f32 checkpoint) and is given the reference's tokens. Prompts are searched for until
the distance between the best and the second-best logit is, at every step, above
twice the largest error of the low-precision run, so that a correct engine cannot
choose another token.
"""

import argparse
import json
import math
import os
import re
import shutil
import sys

import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIXTURES = os.path.join(ROOT, "tests", "fixtures")

PROMPT_LENGTHS = [1, 7, 45]
STEPS = 32


# ---------------------------------------------------------------- checkpoints


def default_rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


def llama3_rope(theta, factor, original):
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }


COMMON = {
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# name: (config, dtype, eos ids of generation_config.json, largest shard in bytes)
CHECKPOINTS = {
    # Llama 2: as many key/value heads as heads, untied head.
    "llama2_f32": (
        LlamaConfig(
            **COMMON,
            vocab_size=128,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=False,
            rope_parameters=default_rope(10000.0),
        ),
        torch.float32,
        2,
        None,
    ),
    # Llama 3: grouped heads whose size is not hidden / heads, scaled rope, tied head,
    # two ids that end a text.
    "llama3_bf16": (
        LlamaConfig(
            **COMMON,
            vocab_size=160,
            hidden_size=96,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=40,
            tie_word_embeddings=True,
            rope_parameters=llama3_rope(10000.0, 8.0, 32),
        ),
        torch.bfloat16,
        [2, 5],
        None,
    ),
    # f16, and sizes that are no multiples of a SIMD width.
    "smollm_f16": (
        LlamaConfig(
            **COMMON,
            vocab_size=131,
            hidden_size=72,
            intermediate_size=100,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=18,
            tie_word_embeddings=True,
            rope_parameters=default_rope(10000.0),
        ),
        torch.float16,
        2,
        None,
    ),
    # A bias on every projection.
    "biases_bf16": (
        LlamaConfig(
            **COMMON,
            vocab_size=128,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=False,
            rope_parameters=default_rope(10000.0),
        ),
        torch.bfloat16,
        2,
        None,
    ),
    # Attention to the last 8 positions only; several files.
    "mistral_bf16_sharded": (
        MistralConfig(
            **COMMON,
            vocab_size=128,
            hidden_size=96,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            sliding_window=8,
            tie_word_embeddings=False,
            rope_parameters=default_rope(10000.0),
        ),
        torch.bfloat16,
        2,
        150_000,
    ),
    # The config.json is rewritten as transformers 4 wrote it.
    "llama_v4_spelling": (
        LlamaConfig(
            **COMMON,
            vocab_size=128,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_parameters=llama3_rope(5000.0, 4.0, 32),
        ),
        torch.bfloat16,
        2,
        None,
    ),
    # Qwen 2: biases on the query, key and value projections only.
    "qwen2_bf16": (
        Qwen2Config(
            **COMMON,
            vocab_size=144,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_parameters=default_rope(1000000.0),
        ),
        torch.bfloat16,
        2,
        None,
    ),
}


@torch.no_grad()
def randomize(model, generator):
    """Weights that give logits of a standard deviation near 3, and attention that looks around.

    The default initialisation would give nearly flat logits, where rounding decides. With a
    tied head the first layer must drown the embedding, or every id would predict itself.
    """
    hidden, tied = model.config.hidden_size, model.config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.2 * noise.clamp(-2, 2)
        elif name.endswith(".bias"):
            value = 0.3 * noise
        elif "embed_tokens" in name:
            value = noise * (3 / math.sqrt(hidden) if tied else 1)
        elif "lm_head" in name:
            value = noise * 3 / math.sqrt(hidden)
        else:
            gain = 1.0
            if "o_proj" in name or "down_proj" in name:
                first, later = (5.0, 2.0) if tied else (1.0, 0.8)
                gain = first if ".layers.0." in name else later
            value = noise * gain / math.sqrt(parameter.shape[1])
        parameter.copy_(value)


def write_checkpoint(folder, name, seed):
    config, dtype, eos, shard_bytes = CHECKPOINTS[name]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, torch.Generator().manual_seed(seed))
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=eos, do_sample=False)
    options = {"max_shard_size": shard_bytes} if shard_bytes else {}
    model.to(dtype).save_pretrained(folder, **options)
    if name == "llama_v4_spelling":
        spell_like_version_4(os.path.join(folder, "config.json"))


def spell_like_version_4(path):
    with open(path) as file:
        config = json.load(file)
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    config.pop("head_dim", None)
    write_json(path, config)


def load(folder, dtype, **overrides):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", **overrides
    ).eval()


@torch.no_grad()
def greedy_paths(model, prompts):
    """Greedy continuations of many prompts of one length, and the least margin of each."""
    cache = DynamicCache(config=model.config)
    ids, path = prompts, []
    least = torch.full((len(prompts),), math.inf)
    for _ in range(STEPS):
        logits = model(ids, past_key_values=cache, use_cache=True).logits[:, -1]
        best = logits.topk(2)
        least = torch.minimum(least, best.values[:, 0] - best.values[:, 1])
        ids = best.indices[:, :1]
        path.append(ids)
    return torch.cat(path, dim=1), least


@torch.no_grad()
def teacher_forced(model, prompt, path):
    """The logits that each id of the path was chosen from, f32 [len(path), vocab]."""
    ids = torch.tensor([prompt + path[:-1]])
    return model(ids, use_cache=False).logits[0, len(prompt) - 1 :].float()


def find_prompt(reference, low, length, generator, ends):
    """A prompt whose greedy path is clear, with its path and both logits; None if there is none."""
    vocab = reference.config.vocab_size
    allowed = torch.tensor([i for i in range(vocab) if i not in ends and i != 1])
    for _ in range(1 if length == 1 else 6):
        if length == 1:
            prompts = allowed[:, None]
        else:
            prompts = allowed[torch.randint(len(allowed), (256, length), generator=generator)]
        paths, least = greedy_paths(reference, prompts)
        for index in least.argsort(descending=True)[:6].tolist():
            prompt, path = prompts[index].tolist(), paths[index].tolist()
            if least[index] < 0.02 or ends & set(path):
                continue
            exact, rounded = (teacher_forced(model, prompt, path) for model in (reference, low))
            best = exact.topk(2)
            margin = (best.values[:, 0] - best.values[:, 1]).min()
            clear = margin > 2.05 * (rounded - exact).abs().max()
            # A path of one repeated id would test little.
            if clear and len(set(path)) >= 8 and best.indices[:, 0].tolist() == path:
                return prompt, path, exact, rounded
    return None


def checkpoint(name):
    folder = os.path.join(FIXTURES, f".{name}.new")
    dtype = CHECKPOINTS[name][1]
    low_dtype = torch.bfloat16 if dtype == torch.float32 else dtype
    eos = CHECKPOINTS[name][2]
    ends = set(eos) if isinstance(eos, list) else {eos}
    for seed in range(1, 4000):
        shutil.rmtree(folder, ignore_errors=True)
        write_checkpoint(folder, name, seed)
        reference, low = load(folder, torch.float32), load(folder, low_dtype)
        generator = torch.Generator().manual_seed(seed)
        found = []
        for length in PROMPT_LENGTHS:
            one = find_prompt(reference, low, length, generator, ends)
            if one is None:
                break
            found.append(one)
        if len(found) == len(PROMPT_LENGTHS):
            break
    else:
        sys.exit(f"{name}: no seed gives clear paths")

    prompts, greedy, exact, rounded = zip(*found)
    errors = [low - high for low, high in zip(rounded, exact)]
    expected = {
        "dtype": str(dtype).removeprefix("torch."),
        "prompts": list(prompts),
        "greedy": list(greedy),
        "low_dtype": str(low_dtype).removeprefix("torch."),
        "low_max_abs": [float(error.abs().max()) for error in errors],
        "low_rms": [float(error.square().mean().sqrt()) for error in errors],
        "min_margin": [least_margin(logits) for logits in exact],
    }
    write_json(os.path.join(folder, "expected.json"), expected)
    safetensors.torch.save_file(
        {f"logits.{i}": logits.contiguous() for i, logits in enumerate(exact)},
        os.path.join(folder, "expected.safetensors"),
    )
    report(name, seed, folder, found, expected)
    replace(folder, os.path.join(FIXTURES, name))


def figures(prompt, path, exact, rounded):
    """What is expected of one prompt."""
    off = rounded - exact
    return {
        "prompt": prompt,
        "greedy": path,
        "low_max_abs": float(off.abs().max()),
        "low_rms": float(off.square().mean().sqrt()),
    }


def least_margin(logits):
    best = logits.topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def report(name, seed, folder, found, expected):
    """Prints the figures, and checks that what the fixture is about changes the logits."""
    print(f"{name}: seed {seed}")
    for key in ("low_max_abs", "low_rms", "min_margin"):
        print(f"  {key}: " + " ".join(f"{value:.4f}" for value in expected[key]))
    print("  std of logits: " + " ".join(f"{logits.std():.2f}" for _, _, logits, _ in found))
    print("  different ids: " + " ".join(str(len(set(path))) for _, path, _, _ in found))
    prompt, path, exact, _ = found[2]
    rope = CHECKPOINTS[name][0].rope_parameters
    variants = {"without rope scaling": {"rope_parameters": default_rope(rope["rope_theta"])}}
    if rope["rope_type"] == "default":
        variants = {"with rope theta 100": {"rope_parameters": default_rope(100.0)}}
    if name == "mistral_bf16_sharded":
        variants["without sliding window"] = {"sliding_window": None}
    for label, overrides in variants.items():
        config = transformers.AutoConfig.from_pretrained(folder)
        for key, value in overrides.items():
            setattr(config, key, value)
        other = teacher_forced(load(folder, torch.float32, config=config), prompt, path)
        difference = float((other - exact).abs().max())
        print(f"  {label}: logits differ by {difference:.3f}")
        assert difference > 10 * expected["low_max_abs"][2], "the fixture does not test this"


# ---------------------------------------------------------------- tokenizers

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special(content):
    return AddedToken(content, special=True, normalized=False)


def trained_bpe(pre_tokenizer, sample, size, alphabet, limit=None):
    """Vocabulary (in order of the ids) and merges of a BPE trained on the sample."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    options = {"limit_alphabet": limit} if limit else {}
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, show_progress=False, **options
    )
    tokenizer.train_from_iterator(sample.split("\n"), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = sorted(model["vocab"], key=model["vocab"].get)
    return vocab, [tuple(merge) for merge in model["merges"]]


def byte_level(sample):
    """GPT-2: byte-level BPE, the special token beside the vocabulary, no post-processor."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocab, merges = trained_bpe(words, sample, 700, pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, merges))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([special("<|endoftext|>")])
    return tokenizer, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def llama3_style(sample):
    """Llama 3: its own split pattern, ignore_merges, and a post-processor that adds the start."""
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    vocab, merges = trained_bpe(words, sample, 800, pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [special(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "eot_id")]
    )
    start = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{start} $A",
                pair=f"{start} $A {start}:1 $B:1",
                special_tokens=[(start, tokenizer.token_to_id(start))],
            ),
        ]
    )
    return tokenizer, {"bos_token": start, "eos_token": "<|eot_id|>"}


def sentencepiece_bpe(sample, size):
    """Llama 2's vocabulary: <unk>, <s>, </s>, the 256 bytes, merged pieces, single characters."""
    words = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    alphabet = sorted({c for c in sample if c.isascii() and c.isprintable()} - {" "}) + ["▁"]
    learned, merges = trained_bpe(words, sample, size, alphabet, len(alphabet))
    pieces = [piece for piece in learned if len(piece) > 1]
    single = [piece for piece in learned if len(piece) == 1]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate(tokens + pieces + single)}
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([special(token) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def llama2_style(sample):
    """Llama 2: spaces become ▁ in the normaliser, and nothing splits the text."""
    tokenizer, names = sentencepiece_bpe(sample, 500)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer, names


def metaspace(sample):
    """The same vocabulary with a Metaspace pre-tokenizer and decoder."""
    tokenizer, names = sentencepiece_bpe(sample, 600)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    )
    return tokenizer, names


TOKENIZERS = [byte_level, llama2_style, llama3_style, metaspace]


def sample_texts(sample, names):
    return [
        "",
        " ",
        "Ownership is Rust's most unique feature, and it has deep implications.",
        "fn main() {\n\tlet mut v: Vec<u32> = vec![1, 22, 333, 4444];\n    v.push(0x1F);\n}\n",
        "   three leading spaces and two trailing  ",
        "one\n\ntwo\n\n\n\nfour\r\nfive\n",
        "Emoji: 🦀 👩‍👩‍👧 👍🏽!",
        "所有権はRustの最も独特な機能であり、한국어도 있다。",
        "Combining: e\u0301 n\u0303 a\u0308\u0323 and composed: é ñ; Русский, עברית, ไทย",
        f"before{names['eos_token']} after {names['bos_token']}end",
        "We've 3.14159 don't I'LL 12345678 it's x_y-z\u00a0nbsp \u2581 \u0000 \u007f \ufeff",
        sample[20_000:22_500],
    ]


def all_tokenizers(corpus):
    with open(corpus, encoding="utf-8") as file:
        sample = file.read(400_000).replace("<|endoftext|>", "")
    folder = os.path.join(FIXTURES, ".tokenizers.new")
    shutil.rmtree(folder, ignore_errors=True)
    for make in TOKENIZERS:
        tokenizer, names = make(sample)
        here = os.path.join(folder, make.__name__)
        os.makedirs(here)
        tokenizer.save(os.path.join(here, "tokenizer.json"))
        tokenizer = Tokenizer.from_file(os.path.join(here, "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 256,
        }
        write_json(os.path.join(here, "tokenizer_config.json"), config)
        cases = []
        for text in sample_texts(sample, names):
            ids = tokenizer.encode(text).ids
            cases.append(
                {
                    "text": text,
                    "ids": ids,
                    "ids_plain": tokenizer.encode(text, add_special_tokens=False).ids,
                    "decoded": tokenizer.decode(ids, skip_special_tokens=True),
                }
            )
        write_json(os.path.join(here, "cases.json"), cases)
        exact = sum(case["text"] == case["decoded"] for case in cases)
        print(f"tokenizers/{make.__name__}: {tokenizer.get_vocab_size()} tokens, "
              f"{exact} of {len(cases)} texts come back unchanged")
    replace(folder, os.path.join(FIXTURES, "tokenizers"))


# ---------------------------------------------------------------- the default model

DEFAULT_MODEL_PROMPTS = [
    "Ownership is Rust's most unique feature, and",
    "The borrow checker",
    "A `Vec` is a contiguous growable array type. It",
    "Returns the number of elements in the",
    "Traits are similar to",
    "In this chapter, we",
    "This function will panic if",
    "The compiler will",
    "Each value in Rust has an",
    "When you run cargo build, Cargo",
    "Let\u2019s look at an example of",
    "The Iterator trait",
    "Converts a string slice to",
    "An error that can occur when",
]


@torch.no_grad()
def default_model(steps=64, margin=0.02):
    """Greedy text of models/default for the prompt with the most varied text among the clear ones."""
    folder = os.path.join(ROOT, "models", "default")
    model = load(folder, torch.float32)
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tried = []
    for prompt in DEFAULT_MODEL_PROMPTS:
        prompt_ids = tokenizer.encode(prompt).ids
        ids, margins = list(prompt_ids), []
        for _ in range(steps):
            best = model(torch.tensor([ids])).logits[0, -1].topk(2)
            margins.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
        greedy = ids[len(prompt_ids) :]
        text = tokenizer.decode(greedy)
        print(f"default_model: margin {min(margins):.4f} {prompt!r} -> {text!r}")
        tried.append(
            {
                "prompt": prompt,
                "prompt_ids": prompt_ids,
                "greedy": greedy,
                "text": text,
                "min_margin": min(margins),
            }
        )
    end = model.config.eos_token_id
    clear = [one for one in tried if one["min_margin"] >= margin and end not in one["greedy"]]
    if not clear:
        sys.exit("default_model: no prompt gives a clear path")
    best = max(clear, key=lambda one: len(set(one["greedy"])))
    write_json(os.path.join(FIXTURES, "default_model.json"), best)


# ---------------------------------------------------------------- files


def write_json(path, value):
    """Indented, with every list of numbers on one line; renamed into place."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    text = re.sub(r"\[\n[-+.,e\d\s]+\]", lambda found: "".join(found[0].split()), text) + "\n"
    assert json.loads(text) == value
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".new", path)


def replace(new, old):
    for name in os.listdir(new):
        if name.endswith(".safetensors"):
            os.chmod(os.path.join(new, name), 0o644)
    shutil.rmtree(old, ignore_errors=True)
    os.rename(new, old)


README = """\
# Fixtures

Tiny checkpoints with random weights, tokenizers trained on a little text, and what
`transformers` and `tokenizers` make of them. All of it is written by

```text
python tools/rust_docs_corpus.py "$(rustc --print sysroot)/share/doc/rust/html" corpus.txt
python tools/make_fixtures.py --corpus corpus.txt
```

last with Python {python}, torch {torch}, transformers {transformers}, tokenizers {tokenizers} and safetensors {safetensors}. The same
versions write the same files up to the last bits of the floating-point numbers. The head of
`tools/make_fixtures.py` says what the files hold and how the prompts were chosen; `sampling.json` is written
by `tools/make_sampling_tables.py`, `schemas.json` by `tools/make_schema_table.py`, `chat/` by
`tools/make_chat_fixtures.py`, `families/` by `tools/fixture_families.py`, `quantized/` by
`tools/fixture_quantized.py`, `quantized_matrices/` by `tools/fixture_matrices.py` (torchao 0.18.0, hqq
0.2.8.post1), `encoders/` by `tools/fixture_encoders.py`, `minilm/` by
`tools/make_embeddings.py`, `adapters/` by `tools/fixture_adapters.py`, `adapters_merged/` by
`tools/fixture_adapters_merged.py` (PEFT 0.21.2, transformers 5.24), `ropes.json` by `tools/fixture_ropes.py`
(transformers 5.24), and `gguf/` by `tools/fixture_gguf.py`, its `layouts.json`, `encoders.json` and
`gpt_oss.gguf` by `tools/gguf_layouts.py`.
`default_model.json` belongs to `models/default/` and is rewritten with
`python tools/make_fixtures.py default_model` when that model changes.
"""


def write_all(folder, table, write):
    """Calls `write` with each of the names on the command line, or with all of the table."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.makedirs(folder, exist_ok=True)
    for name in sys.argv[1:] or table:
        write(name)


def main():
    parser = argparse.ArgumentParser(description="Write the test fixtures.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--corpus")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    os.makedirs(FIXTURES, exist_ok=True)
    for name in args.names or [*CHECKPOINTS, "tokenizers", "default_model"]:
        if name == "tokenizers":
            all_tokenizers(args.corpus)
        elif name == "default_model":
            default_model()
        else:
            checkpoint(name)
    with open(os.path.join(FIXTURES, "README.md"), "w") as file:
        file.write(
            README.format(
                python=".".join(map(str, sys.version_info[:3])),
                torch=torch.__version__.split("+")[0],
                transformers=transformers.__version__,
                tokenizers=tokenizers.__version__,
                safetensors=safetensors.__version__,
            )
        )


if __name__ == "__main__":
    main()
