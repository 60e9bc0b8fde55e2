#!/usr/bin/env python3
"""Measures amnesic on a CUDA device beside transformers and what other engines are installed, and prints Markdown tables.

    benches/peers/gpu.py --work DIR [--shapes 1b,8b] [--quick]

Needs Rust and numpy; PyTorch and transformers to compare with, vLLM, SGLang or llama.cpp's programs where they are
installed. What is missing or fails is named in the tables. Checkpoints of random weights are made in DIR. See README.md
beside this file.
"""

import argparse
import datetime
import gc
import importlib.metadata
import importlib.util
import inspect
import json
import os
import queue
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
AFTER = 128  # tokens of each prompt before decoding
TOKENS = 32  # steps that are counted
STEP_TOKENS = 2048
BLOCK = 64  # positions of a block of our cache


def llama(hidden, layers, heads, kv_heads, head_dim, inner, vocab, tied):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 16384,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }


SHAPES = {
    "1b": llama(2048, 16, 32, 8, 64, 8192, 128256, True),
    "8b": llama(4096, 32, 32, 8, 128, 14336, 128256, False),
    "tiny": llama(64, 2, 4, 2, 16, 128, 512, False),  # to see that all of this runs
}

# Bits of a weight of the layers, and of the output matrix.
BITS = {"none": (16, 16), "q8": (8.5, 8.5), "q4": (4.5, 8.5)}


def main():
    options = parse_options()
    # so that what was measured is printed, and children end with this script
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.work.mkdir(parents=True, exist_ok=True)
    report = Report(options)
    status = 0
    try:
        measure_all(options, report)
    except KeyboardInterrupt:
        report.note("interrupted: the rest was not measured")
        status = 130
    except SystemExit as end:
        report.note(f"ended early ({end.code}): the rest was not measured")
        status = 143 if end.code == 143 else 1
    except Exception as error:
        traceback.print_exc()
        report.note(f"ended early ({named(error)}): the rest was not measured")
        status = 1
    finally:
        report.print()
    sys.exit(status or int(report.ours_failed))


def parse_options():
    def counts(text):
        values = [int(part) for part in text.split(",") if part]
        if not values or min(values) < 1:
            raise argparse.ArgumentTypeError("a list of counts, as 1,8,64")
        return values

    def some_of(known):
        def parse(text):
            names = text.split(",")
            if not set(names) <= set(known):
                raise argparse.ArgumentTypeError(f"some of {','.join(known)}")
            return names

        return parse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where checkpoints are written")
    parser.add_argument("--shapes", type=some_of(SHAPES), default=["1b", "8b"], help="default: 1b,8b")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 3")
    parser.add_argument("--prefill", type=counts, help="default: 512,2048,8192")
    parser.add_argument("--decode", type=counts, help="default: 1,2,4,8,16,32,64,128,256")
    parser.add_argument("--precisions", type=some_of(BITS), default=list(BITS), help="ours; default: none,q8,q4")
    parser.add_argument("--engines", type=some_of(ENGINES), default=list(ENGINES), help=f"default: {','.join(ENGINES)}")
    parser.add_argument("--compile", action="store_true", help="also transformers with torch.compile, which takes minutes")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="start nothing after that")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--engine-child", nargs=2, metavar=("NAME", "CHECKPOINT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.prefill = options.prefill or ([512, 2048] if options.quick else [512, 2048, 8192])
    options.decode = options.decode or ([1, 8, 64, 256] if options.quick else [1, 2, 4, 8, 16, 32, 64, 128, 256])
    options.until = time.monotonic() + options.budget
    if max(options.decode) > STEP_TOKENS // 2:
        parser.error(f"batches of {STEP_TOKENS // 2} at most")
    if options.engine_child:
        sys.exit(engine_child(options, *options.engine_child))
    return options


def measure_all(options, report):
    if not importlib.util.find_spec("numpy"):
        sys.exit("numpy is not installed")
    programs = build(options)
    measure_ceilings(options, programs, report)
    folders = {}
    for shape in options.shapes:
        say(f"{shape}: weights")
        folders[shape] = checkpoint(options.work / f"llama-{shape}", SHAPES[shape])
    # what says the most comes first: the time may be over
    for precision in options.precisions:
        for shape, folder in folders.items():
            measure_shape(options, programs, report, shape, folder, precision)
    for engine in options.engines:
        for shape, folder in folders.items():
            if engine != "transformers":
                alone(options, report, shape, folder, engine)


def over(options, report, what):
    """Whether the time is over."""
    if time.monotonic() < options.until:
        return False
    report.note(f"{what}: not measured, the time was over")
    return True


# ---- checkpoints


def tensors(config):
    """Every tensor's name and shape."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q, kv = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (q, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (kv, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (kv, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, q)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def size(shape):
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def checkpoint(folder, config, shard_bytes=4 << 30):
    """A folder with random weights, normal of deviation 0.02: pieces of one pool of random numbers, so that 16 GB take
    no longer than writing them."""
    import numpy as np

    index = folder / "model.safetensors.index.json"
    if index.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pool = (0.02 * rng.standard_normal(1 << 24, np.float32)).view(np.uint32)
    pool = ((pool + 0x8000) >> 16).astype("<u2")  # a bf16 is the upper half of an f32
    shards, room = [[]], shard_bytes
    for name, shape in tensors(config):
        if shards[-1] and 2 * size(shape) > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append((name, shape))
        room -= 2 * size(shape)
    places = {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, end = {}, 0
        for name, shape in shard:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * size(shape)]}
            end += 2 * size(shape)
            places[name] = file_name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file_name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, shape in shard:
                if len(shape) == 1:
                    np.full(shape, 0x3F80, "<u2").tofile(file)  # ones
                    continue
                left = size(shape)
                while left > 0:
                    start = int(rng.integers(len(pool) // 2))
                    piece = pool[start : start + left]
                    piece.tofile(file)
                    left -= len(piece)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    total = sum(2 * size(shape) for _, shape in tensors(config))
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return folder


# ---- what a step takes


def layer_weights(config):
    return sum(size(shape) for name, shape in tensors(config) if name.startswith("model.layers.") and len(shape) == 2)


def decode_bytes(config, precision, batch):
    """Weights and KV cache that a step of a whole batch reads, in the middle of the steps that are counted."""
    of_layers, of_output = BITS[precision]
    weights = layer_weights(config) * of_layers + config["vocab_size"] * config["hidden_size"] * of_output
    kv = config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2 * 2
    return weights / 8 + batch * (AFTER + TOKENS / 2) * kv


def prefill_operations(config, tokens):
    """Multiplications and additions: the layers for each token, the output matrix for the last one, and half of the square
    of queries and keys, which is what causal attention needs."""
    heads = config["num_attention_heads"] * config["head_dim"] * config["num_hidden_layers"]
    output = config["vocab_size"] * config["hidden_size"]
    return 2 * layer_weights(config) * tokens + 2 * output + 2 * tokens**2 * heads


def prompt(vocab, start, length):
    """The prompts of benches/throughput.rs."""
    return [i * 7919 % vocab for i in range(start, start + length)]


# ---- ours


def build(options):
    command = ["cargo", "bench", "--no-run", "-p", "amnesic", "-p", "amnesic-benches", "--all-features"]
    command += ["--bench", "throughput", "--bench", "device"]
    command += ["--message-format", "json-render-diagnostics"]
    say("building")
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if ran.returncode != 0:
        sys.exit("our benches do not build")
    artifacts = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    return {one["target"]["name"]: one["executable"] for one in artifacts if one.get("executable")}


class Ours:
    """benches/throughput.rs, which holds its session open and measures when it is told to."""

    def __init__(self, options, programs, folder, precision):
        kv_tokens = max(options.prefill) + BLOCK
        for batch in options.decode:
            ahead = -(-batch * AFTER // (STEP_TOKENS - batch)) + 1
            kv_tokens = max(kv_tokens, batch * -(-(AFTER + TOKENS + 1 + ahead) // BLOCK) * BLOCK)
        command = [programs["throughput"], "--model", folder, "--quantize", precision, "--device", options.device]
        command += ["--prefill", commas(options.prefill), "--decode", commas(options.decode)]
        command += ["--after", AFTER, "--tokens", TOKENS, "--step-tokens", STEP_TOKENS, "--kv-tokens", kv_tokens]
        self.log = (options.work / "throughput.log").open("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        command = [str(part) for part in command] + ["--json", "--wait"]
        self.child = subprocess.Popen(command, text=True, bufsize=1, **pipes)
        self.lines = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()
        self.device = self.line()["device"]

    def listen(self):
        for line in self.child.stdout:
            if line.startswith("{"):
                self.lines.put(json.loads(line))
        self.lines.put(None)

    def line(self, patience=600):
        try:
            line = self.lines.get(timeout=patience)
        except queue.Empty:
            raise RuntimeError(f"said nothing for {patience} seconds") from None
        if line is None:
            self.log.seek(0)
            said = self.log.read().strip().splitlines()
            raise RuntimeError(said[-1] if said else "ended without a word")
        return line

    def round(self):
        values = {}
        self.child.stdin.write("\n")
        while (line := self.line())["test"] != "memory":
            values[line["test"], line.get("tokens", line.get("batch"))] = line["per_second"]
        return values

    def close(self):
        self.child.kill()
        self.child.wait()
        self.log.close()


def measure_shape(options, programs, report, shape, folder, precision):
    """Ours, and transformers in turn with it where the weights are the same."""
    if over(options, report, f"{shape}, {precision}"):
        return
    ours = theirs = None
    try:
        say(f"{shape}, {precision}: amnesic")
        ours = Ours(options, programs, folder, precision)
        report.device = ours.device
        ours.round()  # graphs are recorded, clocks go up
    except (OSError, RuntimeError) as error:
        report.failed(shape, precision, "amnesic", error)
        ours = ours and ours.close()
    if precision == "none" and "transformers" in options.engines:
        try:
            theirs = Transformers(options, folder)
            theirs.round(report, shape)
        except Exception as error:  # whatever it is, it is named
            report.failed(shape, precision, "transformers", error)
            theirs = None
            free()
    rounds = options.rounds if precision == "none" else max(1, options.rounds - 2)
    for number in range(rounds):
        if over(options, report, f"{shape}, {precision}, from round {number + 1} on"):
            break
        say(f"{shape}, {precision}: round {number + 1} of {rounds}")
        if ours:
            try:
                report.add(shape, precision, "amnesic", ours.round())
            except (OSError, RuntimeError) as error:
                report.failed(shape, precision, "amnesic", error)
                ours = ours.close()
        if theirs:
            report.add(shape, precision, "transformers", theirs.round(report, shape))
    if ours:
        ours.close()
    del theirs
    free()


# ---- transformers


def torch_here():
    return importlib.util.find_spec("torch") is not None


def free():
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()


class Transformers:
    """Greedy steps of the model itself: no pipeline and no generate(), whose work between steps it is spared."""

    def __init__(self, options, folder):
        say(f"{folder.name}: transformers")
        import torch
        import transformers

        self.torch, self.transformers, self.options = torch, transformers, options
        if options.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("this PyTorch finds no CUDA device")
        kind = {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": torch.bfloat16}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **kind)
        self.model = model.to(options.device).eval()
        self.vocab = model.config.vocab_size
        # what the cache is called: newer versions have another name
        known = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in known else "past_key_values"
        self.ways = {"dynamic cache": (self.model, False), "static cache": (self.model, True)}
        if options.compile:
            compiled = torch.compile(self.model, mode="reduce-overhead", fullgraph=True)
            self.ways["compiled, static cache"] = (compiled, True)
        self.failed = {}

    def synchronize(self):
        if self.options.device == "cuda":
            self.torch.cuda.synchronize()

    def cache(self, static, length):
        if not static:
            return self.transformers.DynamicCache()
        return self.transformers.StaticCache(config=self.model.config, max_cache_len=length)

    def step(self, model, ids, cache):
        logits = model(input_ids=ids, use_cache=True, logits_to_keep=1, **{self.cache_name: cache}).logits
        return logits[:, -1:].argmax(-1)

    def ids(self, prompts):
        return self.torch.tensor(prompts, device=self.options.device)

    def prefill(self, tokens):
        ids = self.ids([prompt(self.vocab, 0, tokens)])
        self.synchronize()
        began = time.perf_counter()
        self.step(self.model, ids, self.cache(False, tokens)).item()
        return tokens / (time.perf_counter() - began)

    def decode(self, batch, model, static):
        cache = self.cache(static, AFTER + TOKENS + 2)
        ids = self.step(self.model, self.ids([prompt(self.vocab, at * AFTER, AFTER) for at in range(batch)]), cache)
        ids = self.step(model, ids, cache)  # the first one is slower
        self.synchronize()
        began = time.perf_counter()
        for _ in range(TOKENS):
            ids = self.step(model, ids, cache).clone()
        self.synchronize()
        return batch * TOKENS / (time.perf_counter() - began)

    def round(self, report, shape):
        """The best of its ways. What fails once is not tried again."""
        values = {}
        with self.torch.inference_mode():
            for tokens in self.options.prefill:
                self.attempt(values, report, shape, ("prefill", tokens), "eager", lambda: self.prefill(tokens))
            for batch in self.options.decode:
                for way, (model, static) in self.ways.items():
                    test = ("decode", batch)
                    self.attempt(values, report, shape, test, way, lambda: self.decode(batch, model, static))
        return values

    def attempt(self, values, report, shape, test, way, measure):
        if (test, way) in self.failed:
            return
        try:
            values[test] = max(values.get(test, 0), measure())
        except Exception as error:
            self.failed[test, way] = error
            report.note(f"{shape}: transformers, {way}, {test[0]} {test[1]}: {named(error)}")
            free()


# ---- other engines: each alone on the device, in a process of its own


def run_vllm(options, folder, config):
    from vllm import LLM, SamplingParams

    engine = LLM(model=str(folder), skip_tokenizer_init=True, dtype="bfloat16", enable_prefix_caching=False,
                 max_model_len=max(options.prefill) + 64, max_num_seqs=max(options.decode), gpu_memory_utilization=0.85)

    def generate(prompts, tokens):
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        engine.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)

    return whole_requests(options, config, generate)


def run_sglang(options, folder, config):
    import sglang

    engine = sglang.Engine(model_path=str(folder), skip_tokenizer_init=True, dtype="bfloat16", disable_radix_cache=True,
                           mem_fraction_static=0.85)

    def generate(prompts, tokens):
        params = {"temperature": 0.0, "max_new_tokens": tokens, "ignore_eos": True}
        engine.generate(input_ids=prompts, sampling_params=params)

    try:
        return whole_requests(options, config, generate)
    finally:
        engine.shutdown()


def whole_requests(options, config, generate):
    """Rates of an engine that only takes whole requests: a decode step is what a longer reply takes longer."""
    vocab, values = config["vocab_size"], {}

    def seconds(prompts, tokens):
        times = []
        for _ in range(options.rounds + 1):
            began = time.perf_counter()
            generate(prompts, tokens)
            times.append(time.perf_counter() - began)
        return median(times[1:])

    for tokens in options.prefill:
        values["prefill", tokens] = tokens / seconds([prompt(vocab, 0, tokens)], 1)
    for batch in options.decode:
        prompts = [prompt(vocab, at * AFTER, AFTER) for at in range(batch)]
        longer = seconds(prompts, 1 + TOKENS) - seconds(prompts, 1)
        if longer > 0:
            values["decode", batch] = batch * TOKENS / longer
    return values


def run_llama(options, folder, config):
    """llama-bench and, for batches, llama-batched-bench, on a GGUF of the same shape."""
    path = gguf_file(folder, config)
    bench = ["llama-bench", "-m", path, "-ngl", 99, "-fa", 1, "-ub", STEP_TOKENS, "-b", STEP_TOKENS, "-o", "jsonl"]
    bench += ["-r", options.rounds, "-p", commas(options.prefill), "-n", TOKENS]
    values = {}
    for line in lines_of(bench):
        values["decode" if line["n_gen"] else "prefill", 1 if line["n_gen"] else line["n_prompt"]] = line["avg_ts"]
    if shutil.which("llama-batched-bench"):
        room = max(options.decode) * (AFTER + TOKENS + 8)
        batched = ["llama-batched-bench", "-m", path, "-ngl", 99, "-fa", "on", "-c", room, "-b", STEP_TOKENS]
        batched += ["-ub", STEP_TOKENS, "-npp", AFTER, "-ntg", TOKENS, "-npl", commas(options.decode)]
        for line in lines_of([*batched, "--output-format", "jsonl"]):
            values["decode", line["pl"]] = line["speed_tg"]
    return values


def lines_of(command):
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if ran.returncode != 0:
        said = ran.stderr.strip().splitlines()
        raise RuntimeError(f"{command[0]}: {said[-1] if said else ran.returncode}")
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


def gguf_file(folder, config):
    """The shape for llama.cpp, with random weights of its own."""
    import numpy as np
    from checkpoint import write_gguf_file  # needs gguf

    path = folder / "model.gguf"
    if path.exists():
        return path
    pool = (0.02 * np.random.default_rng(1).standard_normal(1 << 22, np.float32)).view(np.uint32)
    pool = (pool >> 16).astype("<u2")
    one = 0x3F80
    values = ((name, np.full(shape, one, "<u2") if len(shape) == 1 else np.resize(pool, shape)) for name, shape in tensors(config))
    write_gguf_file(path, "llama", config, values)
    return path


# Each: how it is measured, and what is missing where it is not installed.
ENGINES = {
    "transformers": (None, lambda: [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]),
    "vllm": (run_vllm, lambda: [] if importlib.util.find_spec("vllm") else ["vllm"]),
    "sglang": (run_sglang, lambda: [] if importlib.util.find_spec("sglang") else ["sglang"]),
    "llama.cpp": (
        run_llama,
        lambda: ([] if shutil.which("llama-bench") else ["llama-bench"])
        + ([] if importlib.util.find_spec("gguf") else ["Python's gguf"]),
    ),
}


def alone(options, report, shape, folder, engine):
    missing = ENGINES[engine][1]()
    if missing:
        report.note(f"{engine}: not installed ({' and '.join(missing)})", once=True)
        return
    if over(options, report, f"{shape}, {engine}"):
        return
    say(f"{shape}: {engine}")
    command = [sys.executable, __file__, "--work", options.work, "--device", options.device]
    command += ["--rounds", options.rounds, "--prefill", commas(options.prefill), "--decode", commas(options.decode)]
    command += ["--engine-child", engine, folder]
    patience = min(900, options.until - time.monotonic() + 60)
    try:
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        with subprocess.Popen([str(part) for part in command], **settings) as child:
            try:
                output, _ = child.communicate(timeout=patience)
            except BaseException:
                os.killpg(child.pid, signal.SIGKILL)
                raise
        found = [line.removeprefix("measured ") for line in output.splitlines() if line.startswith("measured ")]
        if not found:
            said = [line for line in output.strip().splitlines() if line.strip()]
            raise RuntimeError(said[-1] if said else f"ended with {child.returncode}")
        values = {(kind, count): value for kind, count, value in json.loads(found[-1])}
        report.add(shape, "none", engine, values)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        report.failed(shape, "none", engine, error)


def engine_child(options, engine, folder):
    """In the process of an engine."""
    config = json.loads((Path(folder) / "config.json").read_text())
    values = ENGINES[engine][0](options, Path(folder), config)
    print("\nmeasured " + json.dumps([[*test, value] for test, value in values.items()]), flush=True)
    return 0


# ---- ceilings


def measure_ceilings(options, programs, report):
    if options.device == "cuda":
        say("ceilings: ours")
        command = [programs["device"], "--json", *(["--quick"] if options.quick else [])]
        try:
            rates = {line["what"]: line for line in lines_of(command)}
            report.copy["amnesic"] = rates["copy"]["bytes"] / rates["copy"]["seconds"]
            products = [line for line in rates.values() if line["library_seconds"]]
            if products:
                report.peak["cuBLASLt"] = max(line["operations"] / line["library_seconds"] for line in products)
        except (OSError, RuntimeError, KeyError) as error:
            report.note(f"benches/device.rs: {named(error)}")
    if not torch_here():
        report.note("PyTorch is not installed: there is nothing to compare with but what runs by itself")
        return
    say("ceilings: PyTorch's")
    try:
        torch_ceilings(options, report)
    except Exception as error:
        report.note(f"PyTorch's ceilings: {named(error)}")
    free()


def torch_ceilings(options, report):
    import torch

    on_gpu = options.device == "cuda"

    def fastest(work, times):
        best = float("inf")
        for _ in range(times):
            if on_gpu:
                torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(8):
                work()
            if on_gpu:
                torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - began) / 8)
        return best

    count = 1 << (29 if on_gpu else 24)
    a = torch.zeros(count, dtype=torch.bfloat16, device=options.device)
    b = torch.ones_like(a)
    report.copy["PyTorch"] = 2 * 2 * count / fastest(lambda: b.copy_(a), 8)
    del a, b
    peak = 0
    for side in (4096, 8192) if on_gpu else (512,):
        x, y = (torch.randn(side, side, device=options.device).to(torch.bfloat16) for _ in range(2))
        out = torch.empty_like(x)
        peak = max(peak, 2 * side**3 / fastest(lambda: torch.matmul(x, y, out=out), 6))
    report.peak["torch.matmul"] = peak


# ---- what is printed


class Report:
    def __init__(self, options):
        self.options, self.device = options, None
        self.copy, self.peak = {}, {}
        self.values, self.failures = {}, {}
        self.notes = []

    def add(self, shape, precision, engine, values):
        for test, value in values.items():
            self.values.setdefault((shape, precision, engine, test), []).append(value)

    def failed(self, shape, precision, engine, error):
        say(f"{shape}, {precision}, {engine}: {named(error)}")
        self.failures[shape, precision, engine] = named(error)

    @property
    def ours_failed(self):
        return any(engine == "amnesic" for _, _, engine in self.failures)

    def note(self, text, once=False):
        say(text)
        if not (once and text in self.notes):
            self.notes.append(text)

    def median(self, *key):
        values = self.values.get(key)
        return median(values) if values else None

    def print(self):
        raw = [[*key[:3], *key[3], values] for key, values in self.values.items()]
        (self.options.work / "gpu-results.json").write_text(json.dumps(raw, indent=1))
        print(f"\n{', '.join(self.versions())}\n")
        for what, rates, unit in (("Copies", self.copy, "GB/s"), ("Products in bf16", self.peak, "TFLOP/s")):
            scale = 1e9 if unit == "GB/s" else 1e12
            if rates:
                print(f"{what}: {', '.join(f'{who} {rate / scale:.4g} {unit}' for who, rate in rates.items())}.")
        print("The larger one is the ceiling. Medians of rounds in turn, in tokens/s.")
        for shape in self.options.shapes:
            for precision in self.options.precisions:
                self.print_table(shape, precision)
        if self.notes or self.failures:
            print("\nNot measured:\n")
        for (shape, precision, engine), why in self.failures.items():
            print(f"- {engine}, {shape}, {precision}: {why}")
        for note in self.notes:
            print(f"- {note}")
        sys.stdout.flush()

    def versions(self):
        yield datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
        yield self.device or "amnesic was not measured"
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
            said = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
            if said:
                name, _, driver = said[0].partition(", ")
                yield f"{name}, driver {driver}"
        for name in ("torch", "transformers", "vllm", "sglang"):
            try:
                yield f"{name} {importlib.metadata.version(name)}"
            except importlib.metadata.PackageNotFoundError:
                pass

    def print_table(self, shape, precision):
        config = SHAPES[shape]
        measured = {key[2] for key in self.values if key[:2] == (shape, precision)}
        failed = {key[2] for key in self.failures if key[:2] == (shape, precision)}
        if not measured | failed:
            return
        peers = [name for name in ENGINES if name in measured | failed]
        name = {"none": "bf16"}.get(precision, precision)
        print(f"\n### Llama-shaped {shape}, {name}\n")
        heads = ["test", "amnesic", *(head for peer in peers for head in (peer, "ratio")), "share of the ceiling"]
        print(f"| {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) - 1)}")
        tests = [("prefill", tokens) for tokens in self.options.prefill]
        tests += [("decode", batch) for batch in self.options.decode]
        for test in tests:
            mine = self.median(shape, precision, "amnesic", test)
            cells = [f"prefill, {test[1]} tokens" if test[0] == "prefill" else f"decode, batch {test[1]}"]
            cells.append(number(mine) or ("failed" if "amnesic" in failed else ""))
            for peer in peers:
                theirs = self.median(shape, precision, peer, test)
                cells.append(number(theirs) or ("failed" if peer in failed else ""))
                cells.append(f"{mine / theirs:.2f}" if mine and theirs else "")
            cells.append(self.share(config, precision, test, mine))
            print(f"| {' | '.join(cells)} |")

    def share(self, config, precision, test, rate):
        kind, count = test
        if not rate:
            return ""
        if kind == "prefill" and self.peak:
            share = prefill_operations(config, count) * rate / count / max(self.peak.values())
            return f"{100 * share:.0f} % of products in bf16"
        if kind == "decode" and self.copy:
            share = decode_bytes(config, precision, count) * rate / count / max(self.copy.values())
            return f"{100 * share:.0f} % of copies"
        return ""


def number(value):
    return "" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def named(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def commas(values):
    return ",".join(map(str, values))


def say(text):
    print(f"+ {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
