#!/usr/bin/env python3
"""Write small matrices in each form that torchao and HQQ have for them, below tests/fixtures/quantized_matrices/.

usage: python tools/fixture_matrices.py

A folder holds a checkpoint of matrices alone, named by their form, and expected.safetensors with what the package's own code
decodes them to, in f32. torchao's are taken apart by its `flatten_tensor_state_dict`, as transformers does on saving; HQQ's
are what `HQQLinear.state_dict` gives. Two of torchao's forms its code makes and reads on a GPU only: numbers of `Int4Tensor`
are made by the formulas of FBGEMM's `int4_row_quantize_zp` and `pack_int4`, and those of `Int4TilePackedTo4dTensor` are put in
place thread by thread as PyTorch's `matrix_to_m16n8k16_Bint4_layout` does; the decoder of both is torchao's formula, written
here.

needs: torch, torchao, hqq, safetensors
"""

import json
import os
import shutil

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
from safetensors.torch import save_file
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8Tensor,
    Int4Tensor,
    Int4TilePackedTo4dTensor,
    Int8Tensor,
    IntxUnpackedToInt8Tensor,
    MappingType,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
)
from torchao.quantization.quant_primitives import _DTYPE_TO_QVALUE_BOUNDS, dequantize_affine
from torchao.quantization.utils import pack_tinygemm_scales_and_zeros

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "tests", "fixtures", "quantized_matrices")
ROWS, COLS, GROUP = 8, 64, 32


def weights(rows=ROWS, cols=COLS, seed=0):
    """Rows of different size, around a mean that is not 0."""
    noise = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    return ((noise + 0.4) * torch.linspace(0.5, 2, rows)[:, None]).bfloat16()


def whole(tensor):
    low, high = _DTYPE_TO_QVALUE_BOUNDS[getattr(tensor, "target_dtype", torch.int8)]
    return dequantize_affine(
        tensor.qdata, tensor.block_size, tensor.scale, tensor.zero_point, torch.int8, low, high, output_dtype=torch.float32
    )


def int4(symmetric=False, before=False):
    """`int4_row_quantize_zp`, or `int4_row_quantize`, and `pack_int4`."""
    weight = weights()
    parts = weight.float().reshape(ROWS, -1, GROUP)
    if symmetric:
        scale = (parts.abs().amax(2) / 8).bfloat16()
        zero = torch.zeros_like(scale)
        numbers = (parts / scale.float()[..., None]).round().clamp(-8, 7)
    else:
        low, high = parts.amin(2), parts.amax(2)
        exact = (high - low) / 15
        numbers = ((parts - low[..., None]) / exact[..., None]).round().clamp(0, 15) - 8
        scale, zero = exact.bfloat16(), (low + 8 * exact).bfloat16()
    decoded = (numbers * scale.float()[..., None] + zero.float()[..., None]).reshape(ROWS, COLS)
    numbers = numbers.reshape(ROWS, COLS).to(torch.int8)
    packed = (numbers[:, ::2] & 15) | (numbers[:, 1::2] << 4)
    tensor = Int4Tensor(packed, scale.T.contiguous(), zero.T.contiguous(), [1, GROUP], weight.shape)
    if before:
        tensor.act_pre_scale = torch.linspace(0.5, 1.5, COLS).bfloat16()
        decoded = decoded * tensor.act_pre_scale.float()
    return tensor, decoded


def tiles(inner=8):
    """Each of 32 threads takes four bytes, two numbers in each, from a row of two tiles of 16 columns."""
    weight, padded = weights(rows=13, cols=96), torch.zeros(16, 1024)
    padded[:13, :96] = weight.float()
    parts = padded.reshape(16, -1, GROUP)
    low, high = parts.amin(2), parts.amax(2)
    exact = ((high - low) / 15).clamp(min=1e-6)
    numbers = ((parts - low[..., None]) / exact[..., None]).round().clamp(0, 15)
    scale, zero = exact.bfloat16(), (low + 8 * exact).bfloat16()
    decoded = ((numbers - 8) * scale.float()[..., None] + zero.float()[..., None]).reshape(16, 1024)[:13, :96]
    numbers = numbers.reshape(16, 1024).to(torch.int64)
    taken = numbers[:, ::2] << 4 | numbers[:, 1::2]
    qdata = torch.zeros(2, 1024 // (inner * 16), 32, inner // 2, dtype=torch.int64)
    for row_tile in range(qdata.shape[0]):
        for outer in range(qdata.shape[1]):
            for thread in range(32):
                for tile in range(0, inner, 2):
                    base = (outer * inner + tile) * 8
                    first = base + thread % 4
                    v = [int(taken[row_tile * 8 + thread // 4, at]) for at in (first, first + 4, first + 8, first + 12)]
                    word = sum((byte >> 4) << 4 * i | (byte & 15) << 16 + 4 * i for i, byte in enumerate(v))
                    qdata[row_tile, outer, thread, tile // 2] = word - (word >> 31 << 32)
    both = pack_tinygemm_scales_and_zeros(scale, zero, torch.bfloat16)
    return Int4TilePackedTo4dTensor(qdata.to(torch.int32), both, [1, GROUP], weight.shape), decoded


def torchao_forms():
    """Tensors and what they decode to, by name."""
    weight = weights()
    forms = {
        "int8": Int8Tensor.from_hp(weight, PerRow()),
        "int8_all": Int8Tensor.from_hp(weight, PerTensor()),
        "int8_zeros": Int8Tensor.from_hp(weight, PerGroup(GROUP), MappingType.ASYMMETRIC),
        "intx_4": IntxUnpackedToInt8Tensor.from_hp(weight, (1, GROUP), torch.int4),
        "intx_3_zeros": IntxUnpackedToInt8Tensor.from_hp(weight, (1, GROUP), torch.int3, mapping_type=MappingType.ASYMMETRIC),
    }
    forms = {name: (tensor, whole(tensor)) for name, tensor in forms.items()}
    forms |= {"int4": int4(), "int4_symmetric": int4(symmetric=True), "int4_before": int4(before=True), "tiles": tiles()}
    wide = weights(rows=40, cols=96)
    floats = {
        "float8": Float8Tensor.from_hp(weight),
        "float8_all": Float8Tensor.from_hp(weight, granularity=PerTensor()),
        "float8_blocks": Float8Tensor.from_hp(weight, granularity=PerBlock([4, GROUP])),
        "float8_wide": Float8Tensor.from_hp(weight, float8_dtype=torch.float8_e5m2),
        "mx8": MXTensor.to_mx(weight, torch.float8_e4m3fn),
        "mx4": MXTensor.to_mx(weight, torch.float4_e2m1fn_x2),
        "mx4_blocked": MXTensor.to_mx(weight, torch.float4_e2m1fn_x2, is_swizzled_scales=True),
        "mx8_blocked": MXTensor.to_mx(weight, torch.float8_e4m3fn, is_swizzled_scales=True),
        "nvfp4": NVFP4Tensor.to_nvfp4(weight),
        "nvfp4_blocked": NVFP4Tensor.to_nvfp4(wide, per_tensor_scale=torch.tensor(0.01), is_swizzled_scales=True),
    }
    return forms | {name: (tensor, tensor.dequantize(torch.float32)) for name, tensor in floats.items()}


def hqq_forms():
    """Tensors by their names in the checkpoint, and what matrices decode to."""
    stored, decoded = {}, {}
    for axis in (0, 1):
        for bits in (8, 4, 3, 2, 1):
            name = f"axis{axis}_bits{bits}"
            settings = BaseQuantizeConfig(nbits=bits, group_size=GROUP, axis=axis, view_as_float=bits == 2)
            linear = torch.nn.Linear(COLS, ROWS, bias=False)
            linear.weight.data = weights().float()
            layer = HQQLinear(linear, settings, compute_dtype=torch.bfloat16, device="cpu")
            stored |= {f"{name}.{key}": value.clone() for key, value in layer.state_dict().items() if value is not None}
            decoded[name] = Quantizer.dequantize(layer.W_q, dict(layer.meta, compute_dtype=torch.float32)).float()
    # zeros are whole before they are improved
    settings = BaseQuantizeConfig(nbits=4, group_size=GROUP, axis=1)
    settings["weight_quant_params"]["optimize"] = False
    linear = torch.nn.Linear(COLS, ROWS, bias=False)
    linear.weight.data = weights().float()
    layer = HQQLinear(linear, settings, compute_dtype=torch.bfloat16, device="cpu")
    stored |= {f"whole.{key}": value.clone() for key, value in layer.state_dict().items() if value is not None}
    decoded["whole"] = Quantizer.dequantize(layer.W_q, dict(layer.meta, compute_dtype=torch.float32)).float()
    return stored, decoded


def write(name, config, stored, metadata, decoded):
    folder = os.path.join(FOLDER, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump({"quantization_config": config}, file, indent=2)
        file.write("\n")
    stored = {key: value.detach().contiguous() for key, value in stored.items()}
    save_file(stored, os.path.join(folder, "model.safetensors"), metadata=metadata)
    save_file({key: value.contiguous() for key, value in decoded.items()}, os.path.join(folder, "expected.safetensors"))


def main():
    forms = torchao_forms()
    stored, metadata = flatten_tensor_state_dict({f"{name}.weight": tensor for name, (tensor, _) in forms.items()})
    decoded = {name: values for name, (_, values) in forms.items()}
    write("torchao", {"quant_method": "torchao"}, stored, {"format": "pt"} | metadata, decoded)
    stored, decoded = hqq_forms()
    write("hqq", {"quant_method": "hqq"}, stored, {"format": "pt"}, decoded)


if __name__ == "__main__":
    main()
