//! What a GGUF file says of a model, in the terms of config.json and of the families: its architecture, its configuration, and
//! the names of its tensors. The file itself is [`crate::weights::gguf`]'s.

mod arch;
mod config;
mod names;
