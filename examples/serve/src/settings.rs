//! What completions and chats have in common: how a reply is drawn, and when it ends.

use amnesic::Request;
use serde_json::Value;

use crate::error::{ApiError, Result};
use crate::fields::Fields;

/// Most choices of one HTTP request, over all its prompts.
pub const MAX_CHOICES: usize = Request::MAX_N;

/// Fields that change nothing here: labels, hints, and defaults said aloud.
pub const HARMLESS: [&str; 7] = [
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
];

/// How many tokens a reply may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Tokens(usize),
    /// The reply may fill the context: `-1`, which llama.cpp and others take, too.
    Context,
}

/// Parsed, and applied to a request for each prompt. The engine checks the bounds.
pub struct Settings {
    pub max_tokens: Option<Limit>,
    pub n: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    top_k: Option<usize>,
    min_tokens: Option<usize>,
    seed: Option<i64>,
    ignore_eos: bool,
    stop: Vec<String>,
    stop_tokens: Vec<u32>,
    logit_bias: Vec<(u32, f32)>,
    pub prompt_logprobs: Option<usize>,
}

/// Whether and how a reply comes as events.
#[derive(Clone, Copy, Debug)]
pub struct Streaming {
    /// The last event tells the usage.
    pub usage: bool,
    /// Events are filled up; see [`crate::obfuscation`].
    pub obfuscation: bool,
}

impl Settings {
    /// Takes its fields, and `store`, which must be false.
    ///
    /// # Errors
    /// A field is of the wrong type, or the request wants to be stored.
    pub fn take(fields: &mut Fields) -> Result<Self> {
        if fields.flag("store")? == Some(true) {
            return Err(ApiError::unsupported("store", "nothing of a request is kept"));
        }
        Ok(Self {
            max_tokens: limit(fields, "max_tokens")?,
            n: fields.count("n")?,
            temperature: fields.number("temperature")?,
            top_p: fields.number("top_p")?,
            min_p: fields.number("min_p")?,
            typical_p: fields.number("typical_p")?,
            repetition_penalty: fields.number("repetition_penalty")?,
            presence_penalty: fields.number("presence_penalty")?,
            frequency_penalty: fields.number("frequency_penalty")?,
            top_k: top_k(fields)?,
            min_tokens: fields.count("min_tokens")?,
            seed: fields.integer("seed")?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            stop: stop(fields)?,
            stop_tokens: stop_tokens(fields)?,
            logit_bias: logit_bias(fields)?,
            prompt_logprobs: fields.count("prompt_logprobs")?,
        })
    }

    /// `request` with these settings.
    pub fn apply(&self, mut request: Request) -> Request {
        // calls `request.verb(value)` where there is a value.
        macro_rules! set {
            ($($verb:ident)*) => { $(if let Some(value) = self.$verb { request = request.$verb(value); })* };
        }
        request = match self.max_tokens {
            None => request,
            Some(Limit::Tokens(count)) => request.max_tokens(count),
            Some(Limit::Context) => request.fill_context(),
        };
        set!(min_tokens n temperature top_k top_p min_p typical_p);
        set!(repetition_penalty presence_penalty frequency_penalty prompt_logprobs);
        if let Some(seed) = self.seed {
            request = request.seed(seed.cast_unsigned());
        }
        request = self.stop.iter().fold(request.ignore_eos(self.ignore_eos), Request::stop);
        request = self.stop_tokens.iter().fold(request, |request, &id| request.stop_token(id));
        self.logit_bias.iter().fold(request, |request, &(id, value)| request.logit_bias(id, value))
    }
}

/// `max_tokens` and its like.
pub fn limit(fields: &mut Fields, name: &str) -> Result<Option<Limit>> {
    match fields.integer(name)? {
        None => Ok(None),
        Some(-1) => Ok(Some(Limit::Context)),
        Some(count) => match usize::try_from(count) {
            Ok(count) => Ok(Some(Limit::Tokens(count))),
            Err(_) => Err(fields.wrong(name, "a whole number from 0, or -1 for the rest of the context")),
        },
    }
}

/// `stream` and `stream_options`; none for a reply in one piece.
pub fn streaming(fields: &mut Fields) -> Result<Option<Streaming>> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(stream.then_some(Streaming { usage: false, obfuscation: true }));
    };
    if !stream {
        return Err(ApiError::field("stream_options", "left out unless `stream` is true"));
    }
    let usage = options.flag("include_usage")?.unwrap_or(false);
    let obfuscation = options.flag("include_obfuscation")?.unwrap_or(true);
    options.done(&[], &[("continuous_usage_stats", "usage comes with the last event")])?;
    Ok(Some(Streaming { usage, obfuscation }))
}

/// vLLM says -1 where the engine says 0: all.
fn top_k(fields: &mut Fields) -> Result<Option<usize>> {
    match fields.integer("top_k")? {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(count) => {
            usize::try_from(count).map(Some).map_err(|_| fields.wrong("top_k", "a whole number from -1"))
        }
    }
}

/// A string or an array of strings.
fn stop(fields: &mut Fields) -> Result<Vec<String>> {
    let wrong = || ApiError::field("stop", "a string or an array of strings");
    match fields.take("stop") {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text]),
        Some(Value::Array(texts)) if texts.len() > Request::MAX_STOPS => {
            Err(ApiError::field("stop", format!("at most {} strings", Request::MAX_STOPS)))
        }
        Some(Value::Array(texts)) => texts
            .into_iter()
            .map(|text| match text {
                Value::String(text) => Ok(text),
                _ => Err(wrong()),
            })
            .collect(),
        Some(_) => Err(wrong()),
    }
}

fn stop_tokens(fields: &mut Fields) -> Result<Vec<u32>> {
    let wrong = || ApiError::field("stop_token_ids", "an array of token ids");
    let ids = fields.array("stop_token_ids")?.unwrap_or_default();
    ids.iter().map(|id| token_id(id).ok_or_else(wrong)).collect()
}

/// A whole number of 32 bits.
pub fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// `{"50256": -100}`
fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>> {
    let wrong = || ApiError::field("logit_bias", "an object of token ids with a number each");
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(map) = value else { return Err(wrong()) };
    map.iter()
        .map(|(id, bias)| Ok((id.parse().map_err(|_| wrong())?, bias.as_f64().ok_or_else(wrong)? as f32)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(body: &str) -> Result<Settings> {
        Settings::take(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn all_settings_are_taken() {
        let body = r#"{"max_tokens": 5, "n": 2, "temperature": 0.5, "top_p": 0.9, "min_p": 0.1,
            "typical_p": 0.8, "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "top_k": -1,
            "min_tokens": 1, "seed": -7, "ignore_eos": true, "stop": ["a", "b"], "stop_token_ids": [3],
            "logit_bias": {"7": -100}, "prompt_logprobs": 0, "store": false}"#;
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        let settings = Settings::take(&mut fields).unwrap();
        assert!(fields.done(&[], &[]).is_ok());
        let printed = format!("{:?}", settings.apply(Request::prompt("x")));
        for part in [
            "max_tokens: Some(5)",
            "n: 2",
            "temperature: Some(0.5)",
            "top_k: Some(0)",
            "top_p: Some(0.9)",
            "min_p: Some(0.1)",
            "typical_p: Some(0.8)",
            "repetition_penalty: Some(1.1)",
            "presence_penalty: Some(0.2)",
            "frequency_penalty: Some(0.3)",
            "min_tokens: Some(1)",
            "seed: Some(18446744073709551609)",
            "logit_bias: 1",
            "stop: 2",
            "stop_tokens: 1",
        ] {
            assert!(printed.contains(part), "{part}: {printed}");
        }
    }

    #[test]
    fn a_limit_may_be_the_context() {
        let limit = |body: &str| take(body).unwrap().max_tokens;
        assert_eq!(limit(r#"{"max_tokens": -1}"#), Some(Limit::Context));
        assert_eq!(limit(r#"{"max_tokens": 7}"#), Some(Limit::Tokens(7)));
        assert_eq!((limit(r#"{"max_tokens": null}"#), limit("{}")), (None, None));
    }

    #[test]
    fn wrong_types_are_named() {
        let cases = [
            ("store", r#"{"store": true}"#),
            ("top_k", r#"{"top_k": -2}"#),
            ("max_tokens", r#"{"max_tokens": -2}"#),
            ("max_tokens", r#"{"max_tokens": "canary"}"#),
            ("stop", r#"{"stop": [1]}"#),
            ("stop", r#"{"stop": 1}"#),
            ("stop_token_ids", r#"{"stop_token_ids": [4294967296]}"#),
            ("logit_bias", r#"{"logit_bias": {"canary": 1}}"#),
            ("logit_bias", r#"{"logit_bias": {"1": "canary"}}"#),
            ("logit_bias", r#"{"logit_bias": []}"#),
        ];
        for (param, body) in cases {
            let json = String::from_utf8(take(body).err().unwrap().json()).unwrap();
            assert!(json.contains(&format!(r#""param":"{param}""#)) && !json.contains("canary"), "{json}");
        }
    }

    #[test]
    fn streaming_has_options() {
        let parse = |body: &str| streaming(&mut Fields::parse(body.as_bytes()).unwrap());
        assert!(parse("{}").unwrap().is_none());
        let options = parse(r#"{"stream": true}"#).unwrap().unwrap();
        assert!(!options.usage && options.obfuscation);
        let body = r#"{"stream": true, "stream_options": {"include_usage": true}}"#;
        let options = parse(body).unwrap().unwrap();
        assert!(options.usage && options.obfuscation);
        let body = r#"{"stream": true, "stream_options": {"include_obfuscation": false}}"#;
        assert!(!parse(body).unwrap().unwrap().obfuscation);
        assert!(parse(r#"{"stream": true, "stream_options": {"include_obfuscation": "no"}}"#).is_err());
        assert!(parse(r#"{"stream_options": {"include_usage": true}}"#).is_err());
    }
}
