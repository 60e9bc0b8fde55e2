#!/usr/bin/env python3
"""Write tiny quantized checkpoints below tests/fixtures/quantized/, in the formats that people publish.

usage: python tools/fixture_quantized.py [NAME ...]

What a folder holds, and by which rule prompts are chosen: see tools/make_fixtures.py and tools/fixture_families.py, whose
functions these are. Logits are those of transformers with the weights that the format's own decoder gives: that of the
packages compressed-tensors and bitsandbytes, of PyTorch for FP8, of transformers for MXFP4. For GPTQ and AWQ, whose
packages want a GPU, decoder and encoder are written here, from the formulas of AutoGPTQ and AutoAWQ.

needs: torch, transformers, safetensors, compressed-tensors, bitsandbytes
"""

import json
import os
import sys

import bitsandbytes.functional as bnb
import safetensors.torch
import torch
import transformers as hf
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.utils.helpers import calculate_qparams
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import fixture_families as families
import make_fixtures as base

GROUP = 32
SIZES = families.COMMON | {"intermediate_size": 96, "head_dim": 24}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def words(numbers, bits, dim):
    """Packs whole numbers from 0 along `dim`, the first in the lowest bits of a word."""
    numbers = numbers.movedim(dim, -1).to(torch.int64)
    numbers = numbers.unflatten(-1, (-1, 32 // bits))
    packed = (numbers << (torch.arange(32 // bits) * bits)).sum(-1)
    return packed.where(packed < 1 << 31, packed - (1 << 32)).to(torch.int32).movedim(-1, dim).contiguous()


def affine(weight, groups, count, bits, symmetric):
    """Numbers and zeros from 0, and scales (rows, groups) in half precision, of columns in the given groups."""
    top = (1 << bits) - 1
    columns = [weight[:, groups == group] for group in range(count)]
    low = torch.stack([part.amin(1).clamp(max=0) for part in columns], 1)
    high = torch.stack([part.amax(1).clamp(min=0) for part in columns], 1)
    if symmetric:
        scales = (2 * torch.maximum(-low, high) / top).half()
        zeros = torch.full_like(low, (top + 1) // 2)
    else:
        scales = ((high - low) / top).half()
        zeros = (-low / scales.float()).round().clamp(0, top)
    numbers = (weight / scales.float()[:, groups] + zeros[:, groups]).round().clamp(0, top)
    return numbers, zeros, scales, (numbers - zeros[:, groups]) * scales.float()[:, groups]


def gptq(bits=4, symmetric=True, ordered=False, version=1):
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "sym": symmetric,
        "desc_act": ordered,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }

    def encode(name, weight):
        cols = weight.shape[1]
        groups = torch.arange(cols) // GROUP
        if ordered:
            groups = groups[torch.randperm(cols, generator=torch.Generator().manual_seed(cols))]
        numbers, zeros, scales, decoded = affine(weight, groups, cols // GROUP, bits, symmetric)
        stored = {
            "qweight": words(numbers.T, bits, 0),
            "qzeros": words((zeros.T - int(version == 1)) % (1 << bits), bits, 1),
            "scales": scales.T.contiguous(),
            "g_idx": groups.to(torch.int32),
        }
        return {f"{name}.{key}": value for key, value in stored.items()}, decoded

    return config, encode


def awq():
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}

    def encode(name, weight):
        groups = torch.arange(weight.shape[1]) // GROUP
        numbers, zeros, scales, decoded = affine(weight, groups, weight.shape[1] // GROUP, 4, False)
        shuffled = [value.T.unflatten(-1, (-1, 8))[..., AWQ_ORDER].flatten(-2) for value in (numbers, zeros)]
        stored = {
            "qweight": words(shuffled[0], 4, 1),
            "qzeros": words(shuffled[1], 4, 1),
            "scales": scales.T.contiguous(),
        }
        return {f"{name}.{key}": value for key, value in stored.items()}, decoded

    return config, encode


def compressed(form, **weights):
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme.weights.model_dump(mode="json")}},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }
    packed = form == "pack-quantized"
    compressor = PackedQuantizationCompressor if packed else NaiveQuantizationCompressor

    def encode(name, weight):
        rows, cols = weight.shape
        strategy = weights["strategy"]
        if strategy == "block":
            down, across = weights["block_structure"]
            parts = weight.reshape(rows // down, down, cols // across, across)
            least, most = parts.amin((1, 3)), parts.amax((1, 3))
        else:
            parts = weight.reshape(rows, -1, weights.get("group_size") or cols)
            least, most = parts.amin(2), parts.amax(2)
            if strategy == "tensor":
                least, most = least.amin().reshape(1), most.amax().reshape(1)
        scale, zero = calculate_qparams(least, most, scheme.weights)
        state = {"weight": weight, "weight_scale": scale.bfloat16().float(), "weight_zero_point": zero}
        if scheme.weights.symmetric:
            del state["weight_zero_point"]
        stored = compressor.compress(state, scheme)
        decoded = compressor.decompress(dict(stored), scheme)["weight"].float()
        stored["weight_scale"] = stored["weight_scale"].bfloat16()
        return {f"{name}.{key}": value.contiguous() for key, value in stored.items()}, decoded

    return config, encode


def fp8():
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [GROUP, GROUP]}

    def encode(name, weight):
        down, across = (-(-side // GROUP) for side in weight.shape)
        padded = torch.zeros(down * GROUP, across * GROUP)
        padded[: weight.shape[0], : weight.shape[1]] = weight
        blocks = padded.reshape(down, GROUP, across, GROUP)
        scales = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        decoded = (codes.float() * scales[:, None, :, None]).reshape(padded.shape)
        inside = tuple(slice(side) for side in weight.shape)
        codes = codes.reshape(padded.shape)[inside].contiguous()
        return {f"{name}.weight": codes, f"{name}.weight_scale_inv": scales}, decoded[inside]

    return config, encode


def bnb4(nested):
    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": nested,
    }

    def encode(name, weight):
        packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type="nf4")
        stored = {f"{name}.weight": packed} | {
            f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()
        }
        return stored, bnb.dequantize_4bit(packed, state).float()

    return config, encode


def bnb8():
    config = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}

    def encode(name, weight):
        numbers, largest, _ = bnb.int8_vectorwise_quant(weight.half())
        stored = {
            f"{name}.weight": numbers,
            f"{name}.SCB": largest,
            f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8),
        }
        return stored, bnb.int8_vectorwise_dequant(numbers, largest)

    return config, encode


def mxfp4():
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn", "router", "embed", "lm_head"]}

    def encode(name, weight):
        experts, cols, rows = weight.shape  # (experts, in, out) in transformers
        parts = weight.transpose(1, 2).reshape(experts, rows, cols // GROUP, GROUP)
        exponents = (parts.abs().amax(-1) / 6).log2().ceil()
        values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        scaled = parts / 2 ** exponents[..., None]
        codes = (scaled.abs()[..., None] - values).abs().argmin(-1) + 8 * (scaled < 0)
        blocks = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        scales = (exponents + 127).to(torch.uint8)
        decoded = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32)
        assert decoded.shape == weight.shape
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}, decoded

    return config, encode


LLAMA = (hf.LlamaConfig, {})
QWEN = (hf.Qwen2Config, {})
MIXTURE = (hf.Qwen3MoeConfig, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64})
GPT_OSS = (
    hf.GptOssConfig,
    {"intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": families.PATTERN[:2]},
)
LATENT = (
    hf.DeepseekV3Config,
    families.LATENT
    | {"head_dim": 8, "q_lora_rank": 32, "moe_intermediate_size": 32, "intermediate_size": 64, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
)
WIDE = {"intermediate_size": 128, "head_dim": 16}  # blocks of 64 that go on in the next row are beyond bitsandbytes' CPU decoder
TABLE = {
    "gptq": (LLAMA, gptq()),
    "gptq_8": (LLAMA, gptq(bits=8)),
    "gptq_ordered": (QWEN, gptq(symmetric=False, ordered=True, version=2)),
    "awq": (QWEN, awq()),
    "packed_4": (LLAMA, compressed("pack-quantized", num_bits=4, strategy="group", group_size=GROUP)),
    "packed_4_zeros": (
        QWEN,
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=GROUP, symmetric=False),
    ),
    "int_8": (QWEN, compressed("int-quantized", num_bits=8, strategy="channel")),
    "float_8": (LLAMA, compressed("float-quantized", num_bits=8, type="float", strategy="channel")),
    "float_8_all": (LLAMA, compressed("float-quantized", num_bits=8, type="float", strategy="tensor")),
    "fp8": (MIXTURE, fp8()),
    "fp8_latent": (LATENT, fp8()),
    "gptq_latent": (LATENT, gptq()),
    "nf4": ((hf.LlamaConfig, WIDE), bnb4(False)),
    "nf4_nested": ((hf.Qwen2Config, WIDE), bnb4(True)),
    "bnb_8": (LLAMA, bnb8()),
    "mxfp4": (GPT_OSS, mxfp4()),
}

stored = {}


def write_checkpoint(folder, name, seed):
    """Writes the checkpoint with decoded weights, in single precision, and keeps what is stored instead of them."""
    (make, switches), (_, encode) = TABLE[name]
    model = hf.AutoModelForCausalLM.from_config(make(**(SIZES | switches)), dtype=torch.float32)
    families.randomize(model, torch.Generator().manual_seed(seed))
    model.generation_config = hf.GenerationConfig(bos_token_id=1, eos_token_id=2, do_sample=False)
    model.bfloat16().float().save_pretrained(folder)
    path = os.path.join(folder, "model.safetensors")
    tensors = safetensors.torch.load_file(path)
    stored.clear()
    for key, tensor in tensors.items():
        experts = name == "mxfp4" and key.endswith(("gate_up_proj", "down_proj"))
        linear = key.endswith(("_proj.weight", "_with_mqa.weight")) and name != "mxfp4"
        if linear or experts:
            parts, tensors[key] = encode(key.removesuffix(".weight"), tensor)
            stored.update(parts)
        else:
            stored[key] = tensor.bfloat16()
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)


def report(name, seed, folder, found, expected):
    """Puts what is stored in the place of what was decoded."""
    safetensors.torch.save_file(stored, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    config |= {"dtype": "bfloat16", "quantization_config": TABLE[name][1][0]}
    base.write_json(path, config)
    print(f"{name}: seed {seed}, low precision is off by {max(expected['low_max_abs']):.3f}", flush=True)


def main():
    torch.set_num_threads(1)
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    base.FIXTURES = os.path.join(base.FIXTURES, "quantized")
    base.PROMPT_LENGTHS = [5, 37]
    base.write_checkpoint, base.find_prompt, base.report = write_checkpoint, families.find_prompt, report
    os.makedirs(base.FIXTURES, exist_ok=True)
    for name in sys.argv[1:] or TABLE:
        base.CHECKPOINTS[name] = (None, torch.float32, 2, None)
        base.checkpoint(name)


if __name__ == "__main__":
    main()
