#!/usr/bin/env python3
"""Write tests/fixtures/gguf/blocks.safetensors: random blocks of each quantized type of GGUF, and their values by llama.cpp's
package `gguf`.

usage: python tools/fixture_gguf.py

needs: gguf, numpy, safetensors
"""

import os

import gguf
import numpy as np
from safetensors.numpy import save_file

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fixtures", "gguf")
KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
# where a type's halves are in its block
HALVES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
          "MXFP4": []}


def main():
    draw, tensors = np.random.default_rng(4), {}
    for name in KINDS:
        kind = gguf.GGMLQuantizationType[name]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        count = 512 // values
        blocks = draw.integers(0, 256, (count, size), dtype=np.uint8)
        for at in HALVES.get(name, [0]):
            scales = draw.normal(size=(count, 1)).astype(np.float16)
            blocks[:, at : at + 2] = scales.view(np.uint8)
        if name == "MXFP4":
            blocks[:, 0] = draw.integers(0, 140, count, dtype=np.uint8)
            blocks[:3, 0] = [0, 1, 2]
        tensors[f"{int(kind)}.blocks"] = blocks
        tensors[f"{int(kind)}.values"] = gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(-1)
    os.makedirs(FOLDER, exist_ok=True)
    save_file(tensors, os.path.join(FOLDER, "blocks.safetensors"))


if __name__ == "__main__":
    main()
