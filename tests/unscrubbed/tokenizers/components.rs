//! Small tokenizers with each component in each of its settings.

use serde_json::{Map, Value, json};

use crate::common::Random;

/// Characters that the small vocabularies have. Others are unknown to them.
const ALPHABET: &str = "abcdefghilmnorstuxABCDE 0123459.,'-_!<>\n▁éßабвежзи一二的語가각ก\u{301}\u{323}ĠĊ½²①";

/// All normalizers, each with what sets it apart.
pub fn normalizers() -> Vec<Value> {
    let bert = |clean: bool, chinese: bool, accents: Value, lower: bool| {
        json!({"type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": chinese, "strip_accents": accents,
            "lowercase": lower})
    };
    let replace = |kind: &str, pattern: &str, content: &str| json!({"type": "Replace", "pattern": {kind: pattern}, "content": content});
    let mut all = vec![
        Value::Null,
        json!({"type": "NFC"}),
        json!({"type": "NFD"}),
        json!({"type": "NFKC"}),
        json!({"type": "NFKD"}),
        json!({"type": "Lowercase"}),
        json!({"type": "StripAccents"}),
        json!({"type": "Nmt"}),
        json!({"type": "Prepend", "prepend": "▁a"}),
        json!({"type": "Strip", "strip_left": true, "strip_right": false}),
        json!({"type": "Strip", "strip_left": false, "strip_right": true}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        replace("String", " ", "▁"),
        replace("String", "ab", "ba"),
        replace("String", "``", "\""),
        replace("Regex", " {2,}", " "),
        replace("Regex", r"\s+", ""),
        replace("Regex", r"[\p{L}&&[^a-z]]+|\d{2}", "x."),
        bert(true, true, Value::Null, true),
        bert(true, false, json!(false), true),
        bert(false, true, json!(true), false),
        bert(false, false, Value::Null, false),
        json!({"type": "Precompiled", "precompiled_charsmap": charsmap(&[
            ("é", "e"), ("\u{301}", ""), ("½", "1/2"), ("e\u{301}", "E"), ("ﬁ", "fi"), ("\u{a0}", " "), ("\t", " "), ("à\u{323}", "aaaa"),
            ("①", "1"), ("\u{200d}", ""), ("A", "a"),
        ])}),
    ];
    let both = |first: &Value, second: &Value| json!({"type": "Sequence", "normalizers": [first, second]});
    let pairs = [(3, 5), (2, 6), (8, 12), (12, 8), (16, 3), (22, 15), (11, 8)];
    all.extend(pairs.map(|(first, second): (usize, usize)| both(&all[first], &all[second])));
    all
}

/// All pre-tokenizers that have no fallback, each in its settings.
pub fn pre_tokenizers() -> Vec<Value> {
    let split = |kind: &str, pattern: &str, behavior: &str, invert: bool| json!({"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert});
    let bytes = |prefix: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
    let mut all = vec![
        Value::Null,
        json!({"type": "Whitespace"}),
        json!({"type": "WhitespaceSplit"}),
        json!({"type": "BertPreTokenizer"}),
    ];
    for scheme in ["first", "never", "always"] {
        for cut in [true, false] {
            all.push(
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}),
            );
        }
    }
    for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] {
        all.push(json!({"type": "Punctuation", "behavior": behavior}));
        for invert in [true, false] {
            let splits = [
                split("String", " ", behavior, invert),
                split("Regex", r"\p{L}+|\p{N}{1,3}", behavior, invert),
                split("Regex", r"[0-9][0-9][0-9]", behavior, invert),
            ];
            // a tokenizer that has nothing left of the letter a does not open
            let opens = |at: usize| behavior != "Removed" || invert == (at == 1);
            all.extend(splits.into_iter().enumerate().filter(|(at, _)| opens(*at)).map(|(_, split)| split));
        }
    }
    for alone in [true, false] {
        all.push(json!({"type": "Digits", "individual_digits": alone}));
        all.extend([bytes(alone, true), bytes(alone, false)]);
    }
    all.push(json!({"type": "CharDelimiterSplit", "delimiter": "e"}));
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
    let contiguous = json!({"type": "Punctuation", "behavior": "Contiguous"});
    let digits = |alone: bool| json!({"type": "Digits", "individual_digits": alone});
    let first = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    // Falcon's, StarCoder's, T5's and others
    all.push(sequence(vec![
        contiguous,
        bytes(false, true),
        digits(false),
        split("Regex", "[0-9][0-9][0-9]", "Isolated", false),
    ]));
    all.push(sequence(vec![digits(true), bytes(false, true)]));
    all.push(sequence(vec![json!({"type": "WhitespaceSplit"}), first.clone()]));
    all.push(sequence(vec![digits(true), first]));
    for (_, pattern) in PUBLISHED {
        all.push(sequence(vec![split("Regex", pattern, "Isolated", false), bytes(false, false)]));
    }
    all
}

/// Patterns of published tokenizers.
pub const PUBLISHED: [(&str, &str); 14] = [
    ("GPT-2", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    (
        "Llama 3",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "Qwen 2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "Qwen 3.5",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "GPT-4",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    (
        "GPT-4o",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "Mistral Nemo",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    ("DeepSeek V3, numbers", r"\p{N}{1,3}"),
    ("DeepSeek V3, Chinese and Japanese", "[一-龥぀-ゟ゠-ヿ]+"),
    (
        "DeepSeek V3",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ),
    ("DeepSeek LLM, words", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽ]+"),
    ("DeepSeek LLM, punctuation", "\\s?[!-/:-~！-／：-～‘-‟　-。]+"),
    ("DeepSeek LLM, the end", r"\s+$"),
    ("BLOOM", r" ?[^(\s|[.,!?…。，、।۔،])]+"),
];

/// BPE with random merges, by which many ways lead to the same token; with and without bytes, affixes and the rest.
pub fn bpe(random: &mut Random, variant: usize) -> Value {
    let flag = |bit: usize| variant >> bit & 1 == 1;
    let affix = |bit: usize, affix: &str| if flag(bit) { affix.to_owned() } else { String::new() };
    let (prefix, suffix) = (affix(3, "##"), affix(4, "</w>"));
    let mut tokens: Vec<String> = vec!["<unk>".into()];
    let mut firsts: Vec<String> = Vec::new();
    for character in ALPHABET.chars() {
        firsts.push(character.into());
        for token in [
            format!("{prefix}{character}"),
            format!("{character}{suffix}"),
            format!("{prefix}{character}{suffix}"),
        ] {
            firsts.push(token);
        }
    }
    firsts.sort();
    firsts.dedup();
    tokens.extend(firsts);
    if flag(0) {
        tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    }
    let mut merges = Vec::new();
    while merges.len() < 700 {
        let (left, right) =
            (&tokens[1 + random.below(tokens.len() - 1)], &tokens[1 + random.below(tokens.len() - 1)]);
        let Some(behind) = right.strip_prefix(prefix.as_str()) else { continue };
        let ends = !suffix.is_empty() && left.ends_with(suffix.as_str());
        let merged = format!("{left}{behind}");
        if ends || merged.chars().count() > 12 {
            continue;
        }
        merges.push(json!([left, right]));
        if !tokens.contains(&merged) {
            tokens.push(merged);
        }
    }
    json!({"type": "BPE", "dropout": null, "unk_token": flag(1).then_some("<unk>"), "continuing_subword_prefix": prefix,
        "end_of_word_suffix": suffix, "fuse_unk": flag(2), "byte_fallback": flag(0), "ignore_merges": flag(5),
        "vocab": numbered(&tokens), "merges": merges})
}

/// Pieces of random length with random scores, some of them equal.
pub fn unigram(random: &mut Random, byte_fallback: bool) -> Value {
    let alphabet: Vec<char> = ALPHABET.chars().collect();
    let mut vocab = vec![json!(["<unk>", 0.0])];
    vocab.extend(alphabet.iter().skip(3).map(|character| json!([character, -4.0])));
    for _ in 0..900 {
        let piece: String =
            (0..2 + random.below(3)).map(|_| alphabet[random.below(alphabet.len())]).collect();
        vocab.push(json!([piece, -3.0 - random.below(40) as f64 / 8.0]));
    }
    if byte_fallback {
        vocab.extend((0..=255).map(|byte| json!([format!("<0x{byte:02X}>"), -9.0])));
    }
    json!({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": byte_fallback})
}

/// Words of one to three characters, alone and as what goes on.
pub fn word_piece(random: &mut Random) -> Value {
    let alphabet: Vec<char> = ALPHABET.chars().collect();
    let mut tokens: Vec<String> = vec!["[UNK]".into()];
    tokens.extend(
        alphabet.iter().skip(2).flat_map(|character| [character.to_string(), format!("##{character}")]),
    );
    for _ in 0..900 {
        let piece: String =
            (0..2 + random.below(3)).map(|_| alphabet[random.below(alphabet.len())]).collect();
        tokens.push(if random.below(2) == 0 { piece } else { format!("##{piece}") });
    }
    json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 20,
        "vocab": numbered(&tokens)})
}

/// Single characters and words.
pub fn word_level(random: &mut Random) -> Value {
    let alphabet: Vec<char> = ALPHABET.chars().collect();
    let mut tokens: Vec<String> = vec!["[UNK]".into()];
    tokens.extend(alphabet.iter().map(char::to_string));
    tokens.extend((0..500).map(|_| (0..2).map(|_| alphabet[random.below(alphabet.len())]).collect()));
    json!({"type": "WordLevel", "unk_token": "[UNK]", "vocab": numbered(&tokens)})
}

fn numbered(tokens: &[String]) -> Map<String, Value> {
    let mut numbered = Map::new();
    for token in tokens {
        let id = numbered.len();
        numbered.entry(token.clone()).or_insert_with(|| id.into());
    }
    numbered
}

/// Added tokens with all settings.
pub fn added(first_id: usize) -> Value {
    let token = |at: usize, content: &str, flags: [bool; 5]| {
        let [single_word, lstrip, rstrip, normalized, special] = flags;
        json!({"id": first_id + at, "content": content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip,
            "normalized": normalized, "special": special})
    };
    json!([
        token(0, "<s>", [false, false, false, false, true]),
        token(1, "<mask>", [false, true, false, false, true]),
        token(2, "<sep>", [false, false, true, false, true]),
        token(3, "<both>", [false, true, true, false, false]),
        token(4, "ing", [true, false, false, false, false]),
        token(5, "The", [false, false, false, true, false]),
        token(6, "É ", [true, true, true, true, false]),
        token(7, "<s><s>", [false, false, false, false, false]),
        token(8, " \n ", [false, false, false, false, false]),
    ])
}

/// A whole file.
pub fn file(normalizer: &Value, pre_tokenizer: &Value, model: &Value, with_added: bool) -> Value {
    let count = model["vocab"].as_object().map_or_else(|| model["vocab"].as_array().unwrap().len(), Map::len);
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": if with_added { added(count) } else { json!([]) },
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}, "model": model})
}

/// SentencePiece's map of these, in base64: a double array with one node for each place in a trie.
fn charsmap(pairs: &[(&str, &str)]) -> String {
    // nodes of the trie: their children by byte, and where the text of those is that end there
    let (mut children, mut ends, mut texts) = (vec![Vec::<(u8, usize)>::new()], vec![None], Vec::new());
    for (from, to) in pairs {
        let mut node = 0;
        for byte in from.bytes() {
            let found = children[node].iter().find(|(label, _)| *label == byte).map(|(_, child)| *child);
            node = found.unwrap_or_else(|| {
                children.push(Vec::new());
                ends.push(None);
                let child = children.len() - 1;
                children[node].push((byte, child));
                child
            });
        }
        ends[node] = Some(texts.len() as u32);
        texts.extend(to.bytes().chain([0]));
    }
    // the children of each node are in a block of 256 of its own, a leaf's value at its first place
    let blocks = children.len() + 1;
    let mut units = vec![0_u32; blocks * 256];
    let place = |block: usize, byte: u8| block * 256 + usize::from(byte);
    let offset = |from: usize, block: usize| ((from ^ (block * 256)) as u32) << 10;
    units[0] = offset(0, 1);
    for (node, children) in children.iter().enumerate() {
        let block = node + 1;
        for &(byte, child) in children {
            let at = place(block, byte);
            units[at] = u32::from(byte) | offset(at, child + 1) | u32::from(ends[child].is_some()) << 8;
        }
        if let Some(end) = ends[node] {
            units[place(block, 0)] = end | 1 << 31;
        }
    }
    let size = (units.len() * 4) as u32;
    let units = units.iter().flat_map(|unit| unit.to_le_bytes());
    let bytes: Vec<u8> = size.to_le_bytes().into_iter().chain(units).chain(texts).collect();
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut base64 = String::new();
    for group in bytes.chunks(3) {
        let value =
            group.iter().fold(0_u32, |value, &byte| value << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let shown = digit <= group.len();
            base64.push(if shown { DIGITS[(value >> (18 - 6 * digit)) as usize & 63] as char } else { '=' });
        }
    }
    base64
}
