//! `config.json`: fields that are missing, out of bounds, or ask for what no session computes.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::common;
use super::parts::Parts;
use super::{CONFIG, EMBED, Is, Q, WEIGHTS, builder, greedy, refuses};

#[test]
fn config_as_a_whole() {
    let parts = Parts::small();
    let nowhere = tempdir().unwrap().path().join("nowhere");
    refuses("no folder", builder(&nowhere), Is::Read, &["nowhere", CONFIG]);
    let nested = "[".repeat(100_000);
    let cases: [(&str, &[u8], Is); 8] = [
        ("empty", b"", Is::Config("")),
        ("not JSON", b"model_type = llama", Is::Config("")),
        ("an array", b"[]", Is::Config("")),
        ("a number", b"1", Is::Config("")),
        ("not UTF-8", b"{\"model_type\": \"\xff\"}", Is::Read),
        ("cut off", b"{\"model_type\": \"llama\",", Is::Config("")),
        ("a number out of range", b"{\"hidden_size\": 1e999}", Is::Config("")),
        ("deeply nested", nested.as_bytes(), Is::Config("")),
    ];
    for (what, text, expected) in cases {
        let folder = parts.write();
        std::fs::write(folder.path().join(CONFIG), text).unwrap();
        let words: &[&str] = if expected == Is::Read { &[CONFIG] } else { &[CONFIG, "a JSON object"] };
        refuses(what, builder(folder.path()), expected, words);
    }
    let folder = parts.write();
    std::fs::remove_file(folder.path().join(CONFIG)).unwrap();
    refuses("no config", builder(folder.path()), Is::Read, &[CONFIG]);
}

#[test]
fn sizes_in_config() {
    let required =
        ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"];
    let optional = ["num_key_value_heads", "head_dim", "max_position_embeddings"];
    let wrong = [
        json!(0),
        json!(-1),
        json!(64.5),
        json!("64"),
        json!(1_u64 << 63),
        json!(u64::MAX),
        json!(1e300),
        json!([64]),
        json!(true),
    ];
    for field in required.into_iter().chain(optional) {
        let missing = required.contains(&field).then_some(Value::Null);
        for value in wrong.iter().cloned().chain(missing) {
            let what = format!("{field}: {value}");
            let mut parts = Parts::small();
            parts.config[field] = value;
            refuses(
                &what,
                builder(parts.write().path()),
                Is::Config(field),
                &[CONFIG, field, "a whole number from 1"],
            );
        }
    }
}

/// Configs of a model whose keys and values come from a latent are refused by field.
#[test]
fn fields_of_latents() {
    let folder = common::fixture("families/deepseek_v2_other");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let kv_b = "model.layers.0.self_attn.kv_b_proj.weight";
    let cases: Vec<(&str, Value, Is, &[&str])> = vec![
        ("kv_lora_rank", json!(null), Is::Config("kv_lora_rank"), &["whole number"]),
        ("kv_lora_rank", json!(24), Is::Config("kv_lora_rank"), &["multiple of 16"]),
        ("kv_lora_rank", json!(528), Is::Config("kv_lora_rank"), &["512"]),
        ("v_head_dim", json!(17), Is::Config("v_head_dim"), &["multiple of 16"]),
        ("qk_nope_head_dim", json!("12"), Is::Config("qk_nope_head_dim"), &["whole number"]),
        ("qk_rope_head_dim", json!(7), Is::Config("qk_rope_head_dim"), &["even"]),
        ("qk_rope_head_dim", json!(0), Is::Config("qk_rope_head_dim"), &["whole number"]),
        ("num_attention_heads", json!(1 << 17), Is::Config("num_attention_heads"), &["values"]),
        ("topk_method", json!("noaux_tc"), Is::Config("topk_method"), &["group_limited_greedy"]),
        ("mlp_layer_types", json!(["dense"]), Is::Config("mlp_layer_types"), &["a list of 2"]),
        ("mlp_layer_types", json!(["dense", "thin"]), Is::Config("mlp_layer_types"), &["sparse"]),
        ("v_head_dim", json!(48), Is::Tensor(kv_b), &["[372, 16]", "[276, 16]"]),
    ];
    for (field, value, is, words) in cases {
        let changed = tempfile::tempdir().unwrap();
        let mut config = config.clone();
        config[field] = value;
        std::fs::write(changed.path().join("config.json"), config.to_string()).unwrap();
        std::fs::copy(folder.join("model.safetensors"), changed.path().join("model.safetensors")).unwrap();
        refuses(field, builder(changed.path()), is, words);
    }
}

#[test]
fn fields_of_config() {
    let llama3 = |field: &str, value: Value| {
        let mut rope = json!({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
        rope[field] = value;
        rope
    };
    let rope = |field: &str, value: Value| json!({"rope_type": "default", "rope_theta": 1e4, field: value});
    let shape = |field| Is::Config(field);
    let cases: Vec<(&str, Value, Is, &[&str])> = vec![
        ("num_key_value_heads", json!(3), shape("num_key_value_heads"), &["divisor", "4"]),
        ("num_key_value_heads", json!(8), shape("num_key_value_heads"), &["divisor", "4"]),
        ("head_dim", json!(31), shape("head_dim"), &["even"]),
        ("head_dim", json!(514), shape("head_dim"), &["512"]),
        ("num_attention_heads", json!(1 << 20), shape("head_dim"), &["heads"]),
        ("model_type", json!("qwen4"), Is::Family, &["qwen4", "qwen2", "qwen3"]),
        ("model_type", json!("Gemma3ForCausalLM"), Is::Family, &["gemma3_text"]),
        ("model_type", json!(null), Is::Family, &["llama"]),
        ("model_type", json!(7), shape("model_type"), &["a string"]),
        ("dtype", json!("float8"), shape("dtype"), &["bfloat16"]),
        ("torch_dtype", json!("float8"), shape("torch_dtype"), &["bfloat16"]),
        ("torch_dtype", json!(16), shape("torch_dtype"), &["a string"]),
        ("hidden_act", json!("snake"), shape("hidden_act"), &["silu"]),
        (
            "quantization_config",
            json!({"quant_method": "eetq"}),
            shape("quantization_config.quant_method"),
            &["gptq", "mxfp4"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 5, "group_size": 32}),
            shape("quantization_config.bits"),
            &["2, 3, 4 or 8"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 4}),
            shape("quantization_config.group_size"),
            &["a whole number"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv_fast"}),
            shape("quantization_config.version"),
            &["gemm or gemv"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "bitsandbytes"}),
            shape("quantization_config.load_in_4bit"),
            &["load_in_8bit"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "fp8", "fmt": "e3m4"}),
            shape("quantization_config.fmt"),
            &["e4m3"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "compressed-tensors", "config_groups": {"a": {}, "b": {}}}),
            shape("quantization_config.config_groups"),
            &["one with `weights`"],
        ),
        ("tie_word_embeddings", json!("yes"), shape("tie_word_embeddings"), &["true or false"]),
        ("attention_bias", json!(1), shape("attention_bias"), &["true or false"]),
        ("mlp_bias", json!([]), shape("mlp_bias"), &["true or false"]),
        ("rms_norm_eps", json!(0), shape("rms_norm_eps"), &["above 0"]),
        ("rms_norm_eps", json!(-1e-5), shape("rms_norm_eps"), &["above 0"]),
        ("rms_norm_eps", json!("1e-5"), shape("rms_norm_eps"), &["above 0"]),
        ("eos_token_id", json!("</s>"), shape("eos_token_id"), &["token id"]),
        ("eos_token_id", json!(1.5), shape("eos_token_id"), &["token id"]),
        ("eos_token_id", json!([1, "2"]), shape("eos_token_id"), &["token id"]),
        ("eos_token_id", json!(1_u64 << 32), shape("eos_token_id"), &["token id"]),
        ("rope_parameters", json!("default"), shape("rope_parameters"), &["an object"]),
        (
            "rope_parameters",
            rope("rope_type", json!("spiral")),
            shape("rope_parameters.rope_type"),
            &["llama3"],
        ),
        ("rope_parameters", rope("rope_type", json!(3)), shape("rope_parameters.rope_type"), &["a string"]),
        ("rope_parameters", json!({"type": "spiral"}), shape("rope_parameters.type"), &["llama3"]),
        ("rope_parameters", json!({"type": "linear"}), shape("rope_parameters.factor"), &["above 0"]),
        (
            "rope_parameters",
            json!({"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0]}),
            shape("rope_parameters.short_factor"),
            &["a list of"],
        ),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1e-9, "beta_slow": 1e9}),
            shape("rope_parameters.beta_fast"),
            &["above beta_slow"],
        ),
        ("partial_rotary_factor", json!(0.01), shape("partial_rotary_factor"), &["even number"]),
        ("partial_rotary_factor", json!(2.0), shape("partial_rotary_factor"), &["even number"]),
        (
            "rope_parameters",
            rope("rope_theta", json!(-1e4)),
            shape("rope_parameters.rope_theta"),
            &["above 0"],
        ),
        ("rope_parameters", rope("rope_theta", json!(0)), shape("rope_parameters.rope_theta"), &["above 0"]),
        (
            "rope_parameters",
            rope("rope_theta", json!("NaN")),
            shape("rope_parameters.rope_theta"),
            &["above 0"],
        ),
        ("rope_parameters", llama3("factor", json!(null)), shape("rope_parameters.factor"), &["above 0"]),
        ("rope_parameters", llama3("factor", json!("NaN")), shape("rope_parameters.factor"), &["above 0"]),
        (
            "rope_parameters",
            llama3("low_freq_factor", json!(null)),
            shape("rope_parameters.low_freq_factor"),
            &["above 0"],
        ),
        (
            "rope_parameters",
            llama3("high_freq_factor", json!(null)),
            shape("rope_parameters.high_freq_factor"),
            &["above 0"],
        ),
        (
            "rope_parameters",
            llama3("original_max_position_embeddings", json!(null)),
            shape("rope_parameters.original_max_position_embeddings"),
            &["above 0"],
        ),
        (
            "rope_parameters",
            llama3("low_freq_factor", json!(4.0)),
            shape("rope_parameters.high_freq_factor"),
            &["low_freq_factor"],
        ),
        (
            "rope_parameters",
            llama3("low_freq_factor", json!(5.0)),
            shape("rope_parameters.high_freq_factor"),
            &["low_freq_factor"],
        ),
        // sizes that the tensors do not have
        ("vocab_size", json!(65), Is::Tensor(EMBED), &[WEIGHTS, "[65, 64]", "[64, 64]"]),
        ("vocab_size", json!(1 << 24), Is::Tensor(EMBED), &["[16777216, 64]"]),
        ("hidden_size", json!(128), Is::Tensor(EMBED), &["[64, 128]"]),
        ("hidden_size", json!(1 << 20), Is::Tensor(EMBED), &["[64, 1048576]"]),
        (
            "intermediate_size",
            json!(1 << 20),
            Is::Tensor("model.layers.0.mlp.gate_proj.weight"),
            &["[1048576, 64]"],
        ),
        ("num_attention_heads", json!(2), Is::Tensor(Q), &["[64, 64]", "[128, 64]"]),
        (
            "num_hidden_layers",
            json!(3),
            Is::Tensor("model.layers.2.input_layernorm.weight"),
            &["be there", "[64]"],
        ),
        (
            "num_hidden_layers",
            json!(4096),
            Is::Tensor("model.layers.2.input_layernorm.weight"),
            &["be there"],
        ),
        ("tie_word_embeddings", json!(false), Is::Tensor("lm_head.weight"), &["be there", "[64, 64]"]),
        (
            "attention_bias",
            json!(true),
            Is::Tensor("model.layers.0.self_attn.q_proj.bias"),
            &["be there", "[128]"],
        ),
        ("model_type", json!("qwen2"), Is::Tensor("model.layers.0.self_attn.q_proj.bias"), &["be there"]),
    ];
    for (field, value, expected, words) in cases {
        let what = format!("{field}: {value}");
        let mut parts = Parts::small();
        parts.config[field] = value;
        if what.starts_with("num_attention_heads: 1048576") {
            parts.config["num_key_value_heads"] = json!(1);
        }
        refuses(&what, builder(parts.write().path()), expected, words);
    }
    let mut parts = Parts::small();
    parts.config["head_dim"] = json!(null);
    parts.config["num_attention_heads"] = json!(6);
    refuses(
        "heads that do not divide",
        builder(parts.write().path()),
        Is::Config("head_dim"),
        &["do not divide"],
    );
    for types in [
        json!(["full_attention"]),
        json!(["full_attention", "linear"]),
        json!("full_attention"),
        json!([1, 2]),
    ] {
        let mut parts = Parts::small();
        parts.config["model_type"] = json!("mistral");
        parts.config["sliding_window"] = json!(8);
        parts.config["layer_types"] = types;
        refuses("layer types", builder(parts.write().path()), Is::Config("layer_types"), &["a list of 2"]);
    }
}

#[test]
fn the_largest_context_just_opens() {
    let mut parts = Parts::small();
    let expected = greedy(&builder(parts.write().path()).open().unwrap());
    parts.config["max_position_embeddings"] = json!(1_u64 << 31);
    let session = builder(parts.write().path()).open().unwrap();
    assert_eq!(session.context_length(), 64);
    assert_eq!(greedy(&session), expected);
}

#[test]
fn epsilons_beyond_single_precision() {
    for epsilon in [1e300, 1e-300] {
        let mut parts = Parts::small();
        parts.config["rms_norm_eps"] = json!(epsilon);
        refuses(
            &format!("rms_norm_eps: {epsilon:e}"),
            builder(parts.write().path()),
            Is::Config("rms_norm_eps"),
            &["number"],
        );
    }
}
