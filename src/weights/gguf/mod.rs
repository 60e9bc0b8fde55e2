//! GGUF files, as llama.cpp writes them (`docs/gguf.md` of ggml): metadata, a tokenizer among it, and tensors.

mod blocks;
