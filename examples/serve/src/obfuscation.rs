//! OpenAI's `obfuscation`: random characters in each event of a stream, so that whoever sees the lengths of encrypted
//! packets does not learn from them how long each token is, and from that what the reply says.
//!
//! What varies in an event (all but its id, the time and the model's name, which are the same throughout a stream) is
//! filled up to [`LEAST`] bytes, or to the next power of two where it is more than that. So a token has to have some 150
//! bytes before its event is any longer than others.

use std::hash::{BuildHasher, RandomState};

/// What varies in an event has at least so many bytes.
const LEAST: usize = 256;

/// Fills events up. The characters are random lest a proxy that compresses undoes it; they need not be secret.
pub struct Obfuscation {
    state: u64,
}

impl Obfuscation {
    /// With other characters each time.
    pub fn new() -> Self {
        Self { state: RandomState::new().hash_one(0) }
    }

    /// Fills up an event that ends with an empty field `obfuscation`; `fixed` of its bytes are the same in all events.
    pub fn fill(&mut self, json: &mut Vec<u8>, fixed: usize) {
        const END: &[u8] = b"\"}";
        debug_assert!(json.ends_with(b"\"obfuscation\":\"\"}"));
        json.truncate(json.len() - END.len());
        let varies = json.len() + END.len() - fixed;
        let missing = varies.next_power_of_two().max(LEAST) - varies;
        json.reserve_exact(missing + END.len());
        json.extend((0..missing).map(|_| self.character()));
        json.extend_from_slice(END);
    }

    /// One that JSON writes as it is.
    fn character(&mut self) -> u8 {
        // SplitMix64
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
        LETTERS[((bits ^ (bits >> 31)) & 63) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        let mut json = format!(r#"{{"text":"{text}","obfuscation":""}}"#).into_bytes();
        let fixed = r#"{"text":"","obfuscation":""}"#.len();
        Obfuscation::new().fill(&mut json, fixed);
        assert!(json.len() - fixed >= text.len());
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn lengths_tell_the_power_of_two_alone() {
        let fixed = filled("").len() - 256;
        for (length, expected) in [(1, 256), (7, 256), (255, 256), (256, 256), (257, 512), (513, 1024)] {
            let json = filled(&"x".repeat(length));
            assert_eq!(json.len() - fixed, expected, "{length}");
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(value["text"].as_str().unwrap().len(), length);
        }
        assert_ne!(filled(""), filled(""), "other characters each time");
    }
}
