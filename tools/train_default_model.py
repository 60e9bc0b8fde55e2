#!/usr/bin/env python3
"""Train the small model in models/default/ from scratch, on a CPU.

usage: python tools/train_default_model.py CORPUS OUT_DIR [--minutes N] [--seed N] ...

CORPUS   a text file whose documents are separated by <|endoftext|>
         (tools/rust_docs_corpus.py writes one)
OUT_DIR  the Hugging Face model folder to write

needs: torch, transformers, tokenizers, safetensors

The script trains a byte-level BPE tokenizer and then a Llama-architecture model
of about 5.5 million parameters. Every hundredth document is held out for the
validation loss. The learning rate follows the elapsed time, so the budget is in
minutes, whatever the machine; the seed fixes the initial weights and the order
of the data, and what still differs between two runs is how many steps fit in.

A checkpoint is written beside the corpus at every evaluation; --resume goes on
from it. Ctrl-C (or SIGTERM) ends the training early. Either way the weights with
the best validation loss are exported in bf16 at the end.
"""

import argparse
import json
import math
import os
import signal
import time

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

END_OF_TEXT = "<|endoftext|>"

# The pattern of Llama 3's tokenizer: contractions, words, numbers of up to three
# digits, punctuation, white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The shape of the model, in the terms of transformers' LlamaConfig.
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
ROPE_THETA = 10000.0


# ---------------------------------------------------------------- data


def read_documents(path):
    """The documents for training and the held-out ones (every hundredth)."""
    with open(path, encoding="utf-8") as file:
        documents = [document.strip() for document in file.read().split(END_OF_TEXT)]
    documents = [document for document in documents if document]
    held_out = documents[50::100]
    del documents[50::100]
    return documents, held_out


def train_tokenizer(documents):
    """A byte-level BPE tokenizer that adds no special tokens by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    assert tokenizer.get_vocab_size() == SHAPE["vocab_size"]
    return tokenizer


def encode(tokenizer, documents):
    """All documents as one stream of ids, each document ended by <|endoftext|>."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = []
    for encoding in tokenizer.encode_batch(documents):
        ids.extend(encoding.ids)
        ids.append(end)
    return torch.tensor(ids, dtype=torch.int32)


def batches(stream, batch_tokens, length_of, generator):
    """Endless batches of token windows, shuffled anew in every pass over the stream.

    `length_of()` is asked for the sequence length before each batch, because the
    training turns to longer sequences near its end.
    """
    while True:
        length = length_of()
        offset = int(torch.randint(length, (1,), generator=generator))
        count = (len(stream) - offset - 1) // length
        order = torch.randperm(count, generator=generator) * length + offset
        size = batch_tokens // length
        for first in range(0, count - size + 1, size):
            if length_of() != length:
                break
            starts = order[first : first + size]
            window = stream[starts[:, None] + torch.arange(length + 1)].long()
            yield window[:, :-1], window[:, 1:]


# ---------------------------------------------------------------- model


class RmsNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + SHAPE["rms_norm_eps"])
        return (x32 * scale * self.weight).to(x.dtype)


def rotate(x, cos, sin):
    """Rotary position embedding in Llama's layout: the two halves of a head are the pairs."""
    left, right = x.float().chunk(2, dim=-1)
    turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
    return turned.to(x.dtype)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        hidden, size = SHAPE["hidden_size"], SHAPE["head_dim"]
        self.heads, self.kv_heads = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
        self.q_proj = nn.Linear(hidden, self.heads * size, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * size, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * size, bias=False)
        self.o_proj = nn.Linear(self.heads * size, hidden, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        shape = (batch, length, -1, SHAPE["head_dim"])
        q = rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        hidden, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = RmsNorm(SHAPE["hidden_size"])
        self.self_attn = Attention()
        self.post_attention_layernorm = RmsNorm(SHAPE["hidden_size"])
        self.mlp = Mlp()

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Only what training needs; the parameters have the names of transformers' LlamaModel."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(SHAPE["vocab_size"], SHAPE["hidden_size"])
        self.layers = nn.ModuleList(Layer() for _ in range(SHAPE["num_hidden_layers"]))
        self.norm = RmsNorm(SHAPE["hidden_size"])

        size = SHAPE["head_dim"]
        frequencies = ROPE_THETA ** -(torch.arange(0, size, 2).float() / size)
        angles = torch.outer(torch.arange(SHAPE["max_position_embeddings"]).float(), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

        # The two projections that end a residual branch begin small.
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 if "embed" in name else 0.5 / math.sqrt(parameter.shape[1])
                nn.init.normal_(parameter, std=0.2 * std if ends_branch else std)

    def forward(self, ids, targets):
        """The mean cross-entropy, in nats per token."""
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


# ---------------------------------------------------------------- optimiser


def orthogonalize(stack):
    """Newton-Schulz iteration of Muon: the nearest (semi-)orthogonal matrix, roughly."""
    x = stack.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Muon (Keller Jordan, 2024) for the weight matrices, one batched update per shape."""

    def __init__(self, parameters, momentum=0.95, weight_decay=0.1):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.groups = {}
        for parameter in parameters:
            self.groups.setdefault(tuple(parameter.shape), []).append(parameter)
        self.buffers = {
            shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, rate):
        for shape, group in self.groups.items():
            gradient = torch.stack([parameter.grad for parameter in group])
            buffer = self.buffers[shape]
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalize(gradient.lerp(buffer, self.momentum))
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, change in zip(group, update):
                parameter.mul_(1 - rate * self.weight_decay)
                parameter.add_(change, alpha=-rate * scale)


def schedule(progress):
    """Warm-up over the first 2 %, constant up to 35 %, then linear down to zero."""
    return min(1.0, progress / 0.02, max(0.0, 1.0 - progress) / 0.65)


# ---------------------------------------------------------------- training


@torch.no_grad()
def evaluate(model, stream, length=512, size=16):
    """Mean cross-entropy over the held-out stream, in nats per token."""
    count = (len(stream) - 1) // length // size * size
    windows = stream[: count * length].long().view(count, length)
    targets = stream[1 : count * length + 1].long().view(count, length)
    losses = []
    for first in range(0, count, size):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(windows[first : first + size], targets[first : first + size])
        losses.append(float(loss))
    return sum(losses) / len(losses)


def train(args, stream, held_out, checkpoint_path):
    """Trains until the time is up or a signal comes; returns the best weights and the figures."""
    torch.manual_seed(args.seed)
    model = Llama()
    count = sum(parameter.numel() for parameter in model.parameters())
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    compiled = torch.compile(model, dynamic=False) if args.compile else model

    tokens, spent, best = 0, 0.0, None
    if args.resume:
        saved = torch.load(checkpoint_path)
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        muon.buffers = saved["muon"]
        tokens, spent, best = saved["tokens"], saved["seconds"], saved["best"]

    stopped = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(True))

    budget = args.minutes * 60
    start = time.monotonic() - spent
    progress = lambda: (time.monotonic() - start) / budget
    length_of = lambda: args.long_length if progress() > args.long_from else args.length
    # A resumed run draws another order of the data, not the same one again.
    generator = torch.Generator().manual_seed(args.seed + tokens)
    next_report = next_evaluation = 0.0
    average = None

    for ids, targets in batches(stream, args.batch_tokens, length_of, generator):
        now = progress()
        if now >= 1 or stopped:
            break
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = compiled(ids, targets)
        loss.backward()
        scale = schedule(now)
        muon.step(args.muon_rate * scale)
        adam.param_groups[0]["lr"] = args.adam_rate * scale
        adam.step()
        model.zero_grad(set_to_none=True)
        tokens += ids.numel()
        value = float(loss.detach())
        average = value if average is None else 0.95 * average + 0.05 * value

        elapsed = time.monotonic() - start
        if elapsed >= next_report:
            next_report = elapsed + 20
            print(
                f"{elapsed / 60:6.1f} min  {tokens / 1e6:7.2f}M tokens  "
                f"{tokens / len(stream):5.2f} passes  loss {average:.4f}  rate x{scale:.3f}",
                flush=True,
            )
        if elapsed >= next_evaluation and tokens > ids.numel():
            next_evaluation = elapsed + args.evaluate_every * 60
            best = keep_best(model, evaluate(model, held_out), tokens, best)
            state = {
                "model": model.state_dict(),
                "adam": adam.state_dict(),
                "muon": muon.buffers,
                "tokens": tokens,
                "seconds": time.monotonic() - start,
                "best": best,
            }
            torch.save(state, checkpoint_path + ".new")
            os.replace(checkpoint_path + ".new", checkpoint_path)

    best = keep_best(model, evaluate(model, held_out), tokens, best)
    return {**best, "parameters": count, "seconds": time.monotonic() - start}


def keep_best(model, loss, tokens, best):
    print(f"            validation loss {loss:.4f}", flush=True)
    if best is not None and best["loss"] <= loss:
        return best
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return {"weights": weights, "loss": loss, "tokens": tokens}


# ---------------------------------------------------------------- export


def export(out, tokenizer, figures, bytes_per_token):
    """Writes the folder the way transformers' save_pretrained does, and a model card."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    end = tokenizer.token_to_id(END_OF_TEXT)
    config = LlamaConfig(
        **SHAPE,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=end,
        eos_token_id=end,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    weights = {f"model.{name}": value for name, value in figures["weights"].items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, do_sample=False
    )
    model.save_pretrained(out)
    os.chmod(os.path.join(out, "model.safetensors"), 0o644)
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": SHAPE["max_position_embeddings"],
    }
    with open(os.path.join(out, "tokenizer_config.json"), "w") as file:
        json.dump(tokenizer_config, file, indent=2)
        file.write("\n")
    with open(os.path.join(out, "README.md"), "w") as file:
        file.write(model_card(figures, bytes_per_token))


def model_card(figures, bytes_per_token):
    loss = figures["loss"]
    values = {
        **SHAPE,
        "parameters": f"{figures['parameters'] / 1e6:.1f} million",
        "megabytes": f"{figures['parameters'] * 2 / 1e6:.0f} MB",
        "tokens": f"{figures['tokens'] / 1e6:.1f} million",
        "passes": f"{figures['passes']:.1f}",
        "minutes": f"{figures['seconds'] / 60:.0f}",
        "loss": f"{loss:.3f}",
        "perplexity": f"{math.exp(loss):.1f}",
        "bits": f"{loss / math.log(2) / bytes_per_token:.3f}",
    }
    return MODEL_CARD.format(**values)


MODEL_CARD = """\
---
license: mit OR apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# amnesic default model

A very small Llama-architecture language model that continues text in the manner
of the Rust documentation. It comes with the `amnesic` crate so that the engine
can be tried and tested without a download.

| | |
|---|---|
| Parameters | {parameters} (bf16, {megabytes}) |
| Shape | {num_hidden_layers} layers, hidden {hidden_size}, intermediate {intermediate_size}, {num_attention_heads} heads, {num_key_value_heads} key/value heads, tied embeddings |
| Context | {max_position_embeddings} tokens |
| Tokenizer | byte-level BPE, {vocab_size} entries; `<|endoftext|>` begins and ends documents |
| Data | the documentation that ships with the Rust 1.95 toolchain |
| Training | {tokens} tokens ({passes} passes over the data), {minutes} minutes on 2 CPU cores, 2026-11 |
| Held-out loss | {loss} nats per token (perplexity {perplexity}, {bits} bits per byte) |
| License | MIT OR Apache-2.0, as the documentation it was trained on |

## What it is good for

A demonstration, a smoke test, a benchmark of a tiny model: it loads at once, and
its continuations of Rust prose and doc comments look like documentation at a
glance. Greedy text soon repeats itself; sampling near temperature 0.7 reads better.

## What it is not good for

Facts, working code, instructions, conversation, or any language other than the
English of technical documentation. It was never tuned to follow instructions or
to refuse anything. Nothing it says about Rust should be believed. Most of the
training used sequences of 512 tokens, so the second half of the context is weaker.

## How it was made

```text
python tools/rust_docs_corpus.py "$(rustc --print sysroot)/share/doc/rust/html" corpus.txt
python tools/train_default_model.py corpus.txt models/default
```

The training starts from random weights. Every hundredth document was held out
for the figures above; the documentation repeats itself (many integer types have
much the same pages), so they flatter the model. The weights load in `transformers`
as they are.
"""


def main():
    parser = argparse.ArgumentParser(description="Train the default model.")
    parser.add_argument("corpus")
    parser.add_argument("out_dir")
    parser.add_argument("--minutes", type=float, default=62)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=512, help="sequence length at first")
    parser.add_argument("--long-length", type=int, default=1024, help="and near the end")
    parser.add_argument("--long-from", type=float, default=0.85, help="where the end begins")
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=0.003)
    parser.add_argument("--evaluate-every", type=float, default=4, help="minutes")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    documents, held_out = read_documents(args.corpus)
    tokenizer = train_tokenizer(documents)
    stream, held_out_stream = encode(tokenizer, documents), encode(tokenizer, held_out)
    held_out_bytes = sum(len(document.encode()) for document in held_out)
    bytes_per_token = held_out_bytes / len(held_out_stream)
    print(
        f"{len(stream)} tokens for training, {len(held_out_stream)} held out, "
        f"{bytes_per_token:.3f} bytes per token",
        flush=True,
    )

    figures = train(args, stream, held_out_stream, args.corpus + ".checkpoint")
    figures["passes"] = figures["tokens"] / len(stream)
    os.makedirs(args.out_dir, exist_ok=True)
    export(args.out_dir, tokenizer, figures, bytes_per_token)
    print(
        f"exported: {figures['tokens']} tokens, loss {figures['loss']:.4f}, "
        f"{figures['loss'] / math.log(2) / bytes_per_token:.4f} bits per byte"
    )


if __name__ == "__main__":
    main()
