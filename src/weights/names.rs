//! Names of tensors without what is put before them when a model is stored as a part of something else.

use std::borrow::Cow;

/// What wrappers of modules put into names, wherever the module is: `torch.compile`, FSDP, activation checkpointing.
const WRAPPERS: [&str; 3] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."];

/// Before all names of a model that ran on several devices (`DistributedDataParallel`).
const PARALLEL: &str = "module.";

/// Where models of texts and images keep their language model. What is behind it may lack the model's own prefix.
const INSIDE: [&str; 4] = ["model.language_model.", "language_model.", "model.text_model.", "text_model."];

/// The name as a model of texts alone has it.
pub fn plain(name: &str) -> Cow<'_, str> {
    let mut name = Cow::Borrowed(name);
    for wrapper in WRAPPERS {
        if name.contains(wrapper) {
            name = name.replace(wrapper, "").into();
        }
    }
    for prefix in [PARALLEL].into_iter().chain(INSIDE) {
        if let Some(rest) = name.strip_prefix(prefix) {
            name = rest.to_owned().into();
            if prefix != PARALLEL {
                break;
            }
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_their_combinations() {
        for (stored, expected) in [
            ("model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("_orig_mod.model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("model.layers.0._orig_mod.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("module._orig_mod.lm_head.weight", "lm_head.weight"),
            ("language_model.model.norm.weight", "model.norm.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("model.language_model.norm.weight", "norm.weight"),
            (
                "_orig_mod.model.language_model.layers.1.input_layernorm.weight",
                "layers.1.input_layernorm.weight",
            ),
            ("model.text_model.norm.weight", "norm.weight"),
            ("lm_head.weight", "lm_head.weight"),
        ] {
            assert_eq!(plain(stored), expected, "{stored}");
        }
    }
}
