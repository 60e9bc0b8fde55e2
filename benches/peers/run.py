#!/usr/bin/env python3
"""Measures amnesic, llama.cpp and candle in turn on the same random weights, and prints Markdown tables.

    benches/peers/run.py --work DIR

Builds what is missing in DIR, and writes nowhere else. See README.md beside this file.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

PACKAGES = ["numpy==2.4.6", "gguf==0.19.0", "cmake==4.4.4", "ninja==1.13.2"]
LLAMA_VERSION = "0.3.36"  # of llama-cpp-python, whose source distribution holds llama.cpp's
LLAMA_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
LLAMA_PROGRAMS = ["llama-bench", "llama-batched-bench", "llama-quantize"]
LLAMA_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_C_COMPILER=clang-19",  # GCC 12 miscompiles the AMX kernels
    "-DCMAKE_CXX_COMPILER=clang++-19",
    "-DGGML_NATIVE=ON",
    "-DGGML_OPENMP=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
]

# Each precision: `--quantize` of ours, llama.cpp's type, and the instructions whose peak bounds the arithmetic: the
# first that the machine has.
PRECISIONS = {
    "bf16": ("none", None, ("tdpbf16ps", "vdpbf16ps", "fma")),
    "q8": ("q8", "Q8_0", ("tdpbusd", "vpdpbusd", "fma")),
    "q4": ("q4", "Q4_0", ("tdpbusd", "vpdpbusd", "fma")),
}

# Tokens of KV cache, of a logical batch and of a step, for both engines.
KV_TOKENS, BATCH_TOKENS, STEP_TOKENS = 8192, 2048, 512
CANDLE_TOKENS = 4


def main():
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children end with this script
    need("cargo", "Rust's, from https://rustup.rs")
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    llama_programs = work / "build" / "bin"
    build_llama(work)
    write_weights(work, options.precisions)
    programs = build_amnesic(work, options.candle)
    measured = Measured(work / "results.jsonl")
    for round_ in range(options.rounds):
        for precision in options.precisions:
            print(f"round {round_ + 1} of {options.rounds}, {precision}", file=sys.stderr)
            measured.begin(precision)
            measured.add("ceiling", *measure_ceilings(programs, options))
            measured.add("llama.cpp", *measure_llama(llama_programs, gguf(work, precision), options))
            measured.add("amnesic", *measure_amnesic(programs, work / "qwen05", precision, options))
            if options.candle and precision == "bf16":
                measured.add("candle", *measure_candle(programs, work / "qwen05", options))
    print_tables(measured, work, options)


def parse_options():
    def counts(text):
        values = [int(part) for part in text.split(",") if part]
        if not values or min(values) < 1:
            raise argparse.ArgumentTypeError("a list of counts, as 1,4,8")
        return values

    def precisions(text):
        names = text.split(",")
        if not set(names) <= PRECISIONS.keys():
            raise argparse.ArgumentTypeError(f"some of {','.join(PRECISIONS)}")
        return names

    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where all is built and written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precisions", type=precisions, default=list(PRECISIONS), help="default: bf16,q8,q4")
    parser.add_argument("--threads", type=int, default=cores, help="of every engine; default: %(default)s")
    parser.add_argument("--prefill", type=counts, default=[128, 512, 2048], help="default: 128,512,2048")
    parser.add_argument("--decode", type=counts, default=[1, 4, 8, 16, 32], help="default: 1,4,8,16,32")
    parser.add_argument("--after", type=int, default=128, help="prompt tokens before decoding; default: 128")
    parser.add_argument("--tokens", type=int, default=32, help="steps that a decode test counts; default: 32")
    parser.add_argument("--no-candle", dest="candle", action="store_false", help="leave candle out")
    options = parser.parse_args()
    if min(options.rounds, options.threads, options.after, options.tokens) < 1:
        parser.error("counts are at least 1")
    # llama.cpp gives each of its sequences an equal part of the cache
    if max(options.decode) * (options.after + options.tokens) > KV_TOKENS or max(options.prefill) >= KV_TOKENS:
        parser.error(f"the tests must fit into {KV_TOKENS} tokens of KV cache")
    return options


# Preparing: each step is skipped when what it makes is there.


def build_llama(work):
    programs = work / "build" / "bin"
    if all((programs / name).exists() for name in LLAMA_PROGRAMS):
        return
    for compiler in ("clang-19", "clang++-19"):
        need(compiler, "Debian's package clang-19")
    python = venv(work)
    name = f"llama_cpp_python-{LLAMA_VERSION}"
    archive, source = work / f"{name}.tar.gz", work / name
    if not archive.exists():
        requirement = f"llama-cpp-python=={LLAMA_VERSION}"
        run([python, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", requirement], cwd=work)
    if not source.exists():
        if hashlib.sha256(archive.read_bytes()).hexdigest() != LLAMA_SHA256:
            sys.exit(f"error: {archive} is not the source distribution that this script was written for")
        with tempfile.TemporaryDirectory(dir=work) as temporary, tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
            os.replace(Path(temporary) / name, source)
    cmake, ninja = python.with_name("cmake"), python.with_name("ninja")
    configure = [cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *LLAMA_OPTIONS]
    run([*configure, "-S", source / "vendor" / "llama.cpp", "-B", work / "build"])
    run([cmake, "--build", work / "build", "--target", *LLAMA_PROGRAMS])


def venv(work):
    """The Python of a virtual environment with what is needed."""
    tools = work / "venv" / "bin"
    if not all((tools / name).exists() for name in ("python", "cmake", "ninja")):
        run([sys.executable, "-m", "venv", work / "venv"])
        run([tools / "python", "-m", "pip", "install", "--quiet", *PACKAGES])
    return tools / "python"


def write_weights(work, precisions):
    base = gguf(work, "bf16")
    if not ((work / "qwen05" / "model.safetensors").exists() and base.exists()):
        run([venv(work), HERE / "checkpoint.py", work / "qwen05", base])
    for precision in precisions:
        kind, path = PRECISIONS[precision][1], gguf(work, precision)
        if kind and not path.exists():
            partial = path.with_name(path.name + ".partial")
            run([work / "build" / "bin" / "llama-quantize", base, partial, kind])
            os.replace(partial, path)


def gguf(work, precision):
    return work / f"qwen05-{precision}.gguf"


def build_amnesic(work, with_candle):
    """Builds the benches, and gives their paths by name."""
    environment = {"CARGO_TARGET_DIR": str(work / "target")}
    benches = ["bench", "-p", "amnesic-benches", "--no-run", "--bench", "throughput", "--bench", "ceilings"]
    # the workspace compiles candle quickly, for its tests: here it is compiled as well as amnesic is
    quickly = tomllib.loads((ROOT / "Cargo.toml").read_text())["profile"]["release"]["package"]
    well = [part for name in quickly for part in ("--config", f"profile.release.package.{name}.opt-level=3")]
    example = ["build", "--release", "-p", "amnesic-oracle", "--example", "candle_throughput", *well]
    programs = {}
    for arguments in [benches, example] if with_candle else [benches]:
        ran = run(["cargo", *arguments, "--message-format=json-render-diagnostics"], environment, ROOT)
        for line in json_lines(ran.output):
            if line.get("executable"):
                programs[line["target"]["name"]] = line["executable"]
    return programs


# Measuring: each gives its values by test, and how its program ran.


def measure_ceilings(programs, options):
    ran = run([programs["ceilings"], "--threads", options.threads, "--json"])
    values = {}
    for line in json_lines(ran.output):
        if "instruction" in line:
            values[line["instruction"]] = line["flops_per_second"]
        else:
            values["memory"] = line["bytes_per_second"]
    return values, ran


def measure_amnesic(programs, folder, precision, options):
    command = [programs["throughput"], "--model", folder, "--quantize", PRECISIONS[precision][0]]
    command += ["--threads", options.threads, "--prefill", commas(options.prefill), "--decode", commas(options.decode)]
    command += ["--after", options.after, "--tokens", options.tokens, "--kv-tokens", KV_TOKENS, "--json"]
    ran = run(command)
    return our_lines(ran.output), ran


def measure_candle(programs, folder, options):
    command = [programs["candle_throughput"], "--model", folder, "--prefill", candle_prefill(options)]
    command += ["--after", options.after, "--tokens", CANDLE_TOKENS]
    ran = run(command, {"RAYON_NUM_THREADS": str(options.threads)})
    return our_lines(ran.output), ran


def candle_prefill(options):
    """candle is slow: one length, about 512."""
    return min(options.prefill, key=lambda tokens: abs(tokens - 512))


def our_lines(output):
    values = {}
    for line in json_lines(output):
        match line["test"]:
            case "prefill":
                values["prefill", line["tokens"]] = line["per_second"]
            case "decode":
                values["decode", line["batch"]] = line["per_second"]
            case "memory":
                values["weights"] = line["weights_bytes"]
    return values


def measure_llama(programs, model, options):
    threads = ["-t", options.threads]
    batch = ["-b", BATCH_TOKENS, "-ub", STEP_TOKENS]
    command = [programs / "llama-bench", "-m", model, *threads, *batch, "-p", commas(options.prefill)]
    prefill = run([*command, "-n", 0, "-r", 1, "-o", "jsonl"])
    values = {("prefill", line["n_prompt"]): line["avg_ts"] for line in json_lines(prefill.output)}
    command = [programs / "llama-batched-bench", "-m", model, *threads, "-tb", options.threads, "-c", KV_TOKENS, *batch]
    command += ["-npp", options.after, "-ntg", options.tokens, "-npl", commas(options.decode)]
    decode = run([*command, "--output-format", "jsonl"])
    values |= {("decode", line["pl"]): line["speed_tg"] for line in json_lines(decode.output)}
    return values, decode._replace(others=max(prefill.others, decode.others))


class Measured:
    """All values of all rounds; also written to a file, a line for each engine's turn."""

    def __init__(self, path):
        self.path = path
        self.rounds = defaultdict(list)
        path.write_text("")

    def begin(self, precision):
        self.precision = precision
        self.rounds[precision].append(defaultdict(dict))

    def add(self, engine, values, ran):
        values = values | {"peak": ran.peak_bytes, "others": ran.others}
        self.rounds[self.precision][-1][engine] = values
        named = {key if isinstance(key, str) else "{} {}".format(*key): value for key, value in values.items()}
        with self.path.open("a") as file:
            print(json.dumps({"precision": self.precision, "engine": engine, **named}), file=file)

    def most_others(self):
        """The largest share of the processors that other processes took in any turn."""
        rounds = (round_ for rounds in self.rounds.values() for round_ in rounds)
        return max(values["others"] for round_ in rounds for values in round_.values())

    def median(self, precision, of):
        """The median over the rounds of what `of` computes from one round's values, None where a value is missing."""
        values = []
        for round_ in self.rounds[precision]:
            try:
                values.append(of(round_))
            except KeyError:
                return None
        return median(values)


# Tables.


def print_tables(measured, work, options):
    parameters = prompt_parameters(work / "qwen05" / "model.safetensors")
    rounds = f"{options.rounds} round{'s'[: options.rounds > 1]}"
    print(f"{options.threads} threads; tokens a second, medians of {rounds}.")
    print("A ratio is amnesic's rate over the other's; like the share, it is the median of each round's.")
    print(f"Other processes took at most {100 * measured.most_others():.0f} % of the processors in any turn.")
    for precision in options.precisions:
        print(f"\n### {precision}\n")
        print_speed(measured, precision, parameters, options)
    print("\n### Memory\n")
    print_memory(measured, work, options)


def print_speed(measured, precision, parameters, options):
    def value(engine, test):
        return measured.median(precision, lambda round_: round_[engine][test])

    def ratio(engine, test):
        return measured.median(precision, lambda round_: round_["amnesic"][test] / round_[engine][test])

    instruction = next(name for name in PRECISIONS[precision][2] if value("ceiling", name) is not None)

    def share(test, ceiling, work):
        """The part of a ceiling that we reach, if one token takes `work(our values)` of it."""
        return measured.median(
            precision,
            lambda round_: work(round_["amnesic"]) * round_["amnesic"][test] / round_["ceiling"][ceiling],
        )

    def share_text(test):
        match test:
            case ("prefill", _):
                return percent(share(test, instruction, lambda _: 2 * parameters), instruction)
            case ("decode", 1):
                return percent(share(test, "memory", lambda ours: ours["weights"]), "bandwidth")
        return ""

    peers = ["llama.cpp", "candle"] if options.candle and precision == "bf16" else ["llama.cpp"]
    heads = ["test", "amnesic", *(head for peer in peers for head in (peer, "ratio")), "share of the ceiling"]
    rows = []
    tests = [("prefill", tokens) for tokens in options.prefill] + [("decode", batch) for batch in options.decode]
    for test in tests:
        name = f"prefill, {test[1]} tokens" if test[0] == "prefill" else f"decode, batch {test[1]}"
        cells = [name, number(value("amnesic", test))]
        for peer in peers:
            cells += [number(value(peer, test)), number(ratio(peer, test), "{:.2f}")]
        rows.append([*cells, share_text(test)])
    print_table(heads, rows)
    memory, peak = value("ceiling", "memory"), value("ceiling", instruction)
    arithmetic = f", {instruction} at {peak / 1e9:.0f} G operations/s" if peak else ""
    print(f"\nCeilings: memory read at {memory / 1e9:.1f} GB/s{arithmetic}.")


def print_memory(measured, work, options):
    def peak(precision, engine):
        return mib(measured.median(precision, lambda round_: round_[engine]["peak"]))

    rows = []
    for precision in options.precisions:
        weights = measured.median(precision, lambda round_: round_["amnesic"]["weights"])
        rows.append([precision, mib(weights), peak(precision, "amnesic"), mib(gguf(work, precision).stat().st_size)])
        rows[-1] += [peak(precision, "llama.cpp"), peak(precision, "candle")]
    print_table(["", "amnesic: weights", "peak", "llama.cpp: GGUF", "peak", "candle: peak"], rows)


def print_table(heads, rows):
    print(f"| {' | '.join(heads)} |")
    print(f"|---|{'---:|' * (len(heads) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def number(value, form="{:.1f}"):
    return "" if value is None else form.format(value)


def percent(value, of):
    return "" if value is None else f"{100 * value:.0f} % of {of}"


def mib(value):
    return "" if value is None else f"{value / 2**20:.0f} MiB"


def prompt_parameters(path):
    """Weights that every prompt token is multiplied with: all but the vectors, the embedding, and the output matrix,
    which only the last token needs."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        tensors = json.loads(file.read(length))
    shapes = [tensor["shape"] for name, tensor in tensors.items() if name.startswith("model.layers.")]
    return sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)


# Running programs.


def need(program, what):
    if not shutil.which(program):
        sys.exit(f"error: {program} is missing ({what})")


class Ran(NamedTuple):
    output: str  # what it wrote to stdout
    peak_bytes: int  # of its memory
    others: float  # the share of the processors that other processes, or other guests of the host, took meanwhile


def run(command, environment=None, cwd=None):
    """Runs a command to its end. The command and all that it starts form a group of processes, which ends with this
    script."""
    command = [str(part) for part in command]
    prefix = [f"{name}={value}" for name, value in (environment or {}).items()]
    print(f"+ {shlex.join([*prefix, *command])}", file=sys.stderr, flush=True)
    environment = os.environ | (environment or {})
    settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    started, busy = time.monotonic(), busy_secs()
    with subprocess.Popen(command, env=environment, cwd=cwd, **settings) as child:
        try:
            output = child.stdout.read()
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            raise
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.stderr.write(output[-4000:])
        sys.exit(f"error: {Path(command[0]).name} ended with {child.returncode}")
    others = busy_secs() - busy - usage.ru_utime - usage.ru_stime
    share = max(0, others) / (time.monotonic() - started) / os.cpu_count()
    return Ran(output, usage.ru_maxrss * 1024, share)


def busy_secs():
    """Seconds that all processors together have been busy, or taken away by the host."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def json_lines(output):
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def commas(values):
    return ",".join(map(str, values))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
