//! What cuts a text into words before byte-level BPE merges anything, by the name that a GGUF file gives it
//! (`tokenizer.ggml.pre`).
//!
//! Names, and what else a name says, are those of llama.cpp's `llama-vocab.cpp`. Where llama.cpp rewrote an expression for
//! its own engine, the one here is the original of the published `tokenizer.json`, which is what the model was trained with.

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pre {
    /// Expressions that split one after another: matches and what lies between them are pieces.
    pub splits: &'static [&'static str],
    /// A piece that is a token as a whole is that token, whatever merges would make of it.
    pub ignores_merges: bool,
    /// Whether a BOS token goes before texts where `add_bos_token` is absent.
    pub bos: bool,
    /// Whether tokens are text, with `▁` for spaces, instead of bytes in GPT-2's alphabet.
    pub is_text: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const TURKISH: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
const SPARK: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+|[\r\n]|\\s+(?!\\S)|\\s+";
/// Characters of Chinese and Japanese that DeepSeek-V3 and others keep together.
const CJK: &str = "[一-龥぀-ゟ゠-ヿ]+";
/// Han characters, in the spelling of DeepSeek's first models.
const HAN: &str = "[一-龥ࠀ-一가-퟿]+";
/// Letters of alphabets with two cases, as DeepSeek's first models list them.
const LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const MARKS: &str = "\\s?[!-/:-~！-／：-～‘-‟　-。]+";
/// Scripts that AFMoE keeps together.
const ASIAN: &str = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+";
/// Groups of three digits, counted from the last.
const DIGITS_FROM_BEHIND: &str = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))";
const NO_MARKS: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const LINES: &str = r"[^\n]+|[\n]+";

const PLAIN: Pre = Pre { splits: &[GPT2], ignores_merges: false, bos: false, is_text: false };
const LLAMA_BPE: Pre = Pre { splits: &[LLAMA3], ignores_merges: true, bos: true, ..PLAIN };
const DIGITS: Pre = Pre { splits: &[r"\p{N}", GPT2], ..PLAIN };

/// What llama.cpp takes where a file names no kind, or `default`. Newer files always name theirs.
pub const DEFAULT: Pre =
    Pre { splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], ..PLAIN };

/// All names.
const KINDS: &[(&[&str], Pre)] = &[
    (&["default"], DEFAULT),
    (
        &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        LLAMA_BPE,
    ),
    (&["minicpm5"], Pre { splits: &[r"\p{N}{1,3}", MINICPM5], ignores_merges: true, ..PLAIN }),
    (&["deepseek-llm"], Pre { splits: &["[\r\n]", LETTERS, MARKS, r"\s+$", HAN, r"\p{N}+"], ..PLAIN }),
    (&["deepseek-coder"], Pre { splits: &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, r"\p{N}"], ..PLAIN }),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        Pre { splits: &[r"\p{N}{1,3}", CJK, DEEPSEEK3], ..PLAIN },
    ),
    (&["spark2_5"], Pre { splits: &[r"\p{N}{1,3}", CJK, SPARK, r"\p{N}"], ..PLAIN }),
    (
        &["youtu"],
        Pre {
            splits: &["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", YOUTU],
            ignores_merges: true,
            ..PLAIN
        },
    ),
    (&["falcon"], Pre { splits: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], ..PLAIN }),
    (&["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"], DIGITS),
    (
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
        ],
        PLAIN,
    ),
    (&["jais-2"], Pre { splits: &[JAIS2], ..PLAIN }),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        Pre { splits: &[QWEN2], ..PLAIN },
    ),
    (&["qwen35"], Pre { splits: &[QWEN35], ..PLAIN }),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], Pre { splits: &[LLAMA3], ..PLAIN }),
    (&["glm4", "glm5"], Pre { splits: &[LLAMA3], ignores_merges: true, ..PLAIN }),
    (&["poro-chat", "bloom", "gpt3-finnish"], Pre { splits: &[NO_MARKS], ..PLAIN }),
    (&["viking"], Pre { splits: &[NO_MARKS, r"\p{N}"], ..PLAIN }),
    (&["tekken"], Pre { splits: &[TEKKEN], ignores_merges: true, bos: true, ..PLAIN }),
    (
        &["chameleon"],
        Pre {
            splits: &[
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ],
            bos: true,
            ..PLAIN
        },
    ),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], Pre { splits: &[GPT4O], ..PLAIN }),
    (&["granite-embed-multi-97m"], Pre { splits: &[GPT4O], ignores_merges: true, ..PLAIN }),
    (&["tiny_aya", "cohere2moe"], Pre { splits: &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O], ..PLAIN }),
    (&["kimi-k2"], Pre { splits: &[KIMI], ..PLAIN }),
    (&["superbpe"], Pre { splits: &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"], ..PLAIN }),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], Pre { splits: &[BAILING], ..PLAIN }),
    (&["seed-coder"], Pre { splits: &[SEED], ..PLAIN }),
    (&["ufakzeka"], Pre { splits: &[TURKISH], ..PLAIN }),
    (&["afmoe"], Pre { splits: &[DIGITS_FROM_BEHIND, ASIAN, DEEPSEEK3], ..PLAIN }),
    (&["laguna"], Pre { splits: &[LINES, QWEN2], ..PLAIN }),
    (&["exaone-moe"], Pre { splits: &[EXAONE_MOE], ..PLAIN }),
    // llama.cpp gives Gemma 4 its BOS whatever the file says
    (&["gemma4", "granite-embed-multi-311m"], Pre { splits: &[], bos: true, is_text: true, ..PLAIN }),
    (&["sarvam-moe"], Pre { splits: &[], is_text: true, ..PLAIN }),
];

/// The kind of that name.
pub fn find(name: &str) -> Option<Pre> {
    KINDS.iter().find(|(names, _)| names.contains(&name)).map(|(_, pre)| *pre)
}

/// All names, for errors.
pub fn names() -> impl Iterator<Item = &'static str> {
    KINDS.iter().flat_map(|(names, _)| names.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;

    /// Every expression is one that the tokenizer compiles, and no name stands for two kinds.
    #[test]
    fn every_kind_opens() {
        let mut seen = std::collections::HashSet::new();
        for name in names() {
            assert!(seen.insert(name), "{name} stands twice");
            let splits = find(name).unwrap().splits.iter().map(|regex| {
                serde_json::json!({
                    "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false,
                })
            });
            let steps = splits.collect::<Vec<_>>();
            let json = serde_json::json!({
                "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
                "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
                "decoder": {
                    "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
                },
                "model": { "type": "BPE", "vocab": { "a": 0 }, "merges": [] },
            });
            let file = std::path::Path::new("tokenizer.json");
            assert!(Text::of(file, &json.to_string(), 1).is_ok(), "{name}");
        }
    }
}
