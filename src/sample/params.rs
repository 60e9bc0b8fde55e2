//! Settings of sampling that an application keeps, and gives to one request after another.

use super::{Dry, Sampling};
use crate::error::{Error, Result};

/// Choices that a request may have.
pub(crate) const MAX_CHOICES: usize = 128;

/// What a request says about sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Overrides {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub dry: Option<Dry>,
    pub min_tokens: Option<usize>,
    pub seed: Option<u64>,
}

impl Overrides {
    /// What `other` sets, and where it sets nothing what this does.
    pub fn or(self, other: Self) -> Self {
        macro_rules! either {
            ($($field:ident)*) => { Self { $($field: other.$field.or(self.$field)),* } };
        }
        either!(temperature top_k top_p min_p typical_p repetition_penalty presence_penalty frequency_penalty dry min_tokens seed)
    }

    /// What holds where `defaults` are overruled; `seed` where none was given.
    pub fn over(&self, defaults: &Sampling, seed: u64) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            typical_p: self.typical_p.unwrap_or(defaults.typical_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            dry: self.dry.or(defaults.dry),
            min_tokens: self.min_tokens.unwrap_or(defaults.min_tokens),
            seed: self.seed.unwrap_or(seed),
        }
    }
}

/// How tokens are chosen and how many, as a value: made once, kept, and given to any number of requests with
/// [`crate::Request::sampling`]. It holds no content, so it may be cloned, compared and printed. What is left unset stays as the
/// request or its checkpoint has it. Stop strings, bias of tokens and response formats are the request's own.
///
/// ```
/// use amnesic::{Request, SamplingParams, user};
///
/// let careful = SamplingParams::new().temperature(0.3).top_p(0.9).max_tokens(200);
/// careful.check()?;
/// let first = Request::chat([user("Summarise this.")]).sampling(&careful);
/// let second = Request::prompt("Once").sampling(&careful.seed(7)).temperature(1.0); // what is set later holds
/// # let _ = (first, second);
/// # Ok::<(), amnesic::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingParams {
    pub(crate) sampling: Overrides,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) n: Option<usize>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) ignore_eos: Option<bool>,
}

/// Setters, each as [`crate::Request`]'s of the same name.
macro_rules! setters {
    ($($name:ident: $type:ty => $($place:ident).+;)*) => {$(
        #[doc = concat!("See [`crate::Request::", stringify!($name), "`].")]
        #[must_use]
        pub fn $name(mut self, value: $type) -> Self {
            self.$($place).+ = Some(value);
            self
        }
    )*};
}

impl SamplingParams {
    /// With nothing set.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        temperature: f32 => sampling.temperature;
        top_k: usize => sampling.top_k;
        top_p: f32 => sampling.top_p;
        min_p: f32 => sampling.min_p;
        typical_p: f32 => sampling.typical_p;
        repetition_penalty: f32 => sampling.repetition_penalty;
        presence_penalty: f32 => sampling.presence_penalty;
        frequency_penalty: f32 => sampling.frequency_penalty;
        dry: Dry => sampling.dry;
        min_tokens: usize => sampling.min_tokens;
        seed: u64 => sampling.seed;
        max_tokens: usize => max_tokens;
        n: usize => n;
        logprobs: usize => logprobs;
        ignore_eos: bool => ignore_eos;
    }

    /// Checks the bounds, as a session does when it takes a request in.
    ///
    /// # Errors
    /// [`Error::Request`] with the first field that is out of bounds.
    pub fn check(&self) -> Result<()> {
        self.sampling.over(&Sampling::default(), 0).check()?;
        if self.max_tokens == Some(0) {
            return Err(Error::request("max_tokens", "at least 1"));
        }
        if !(1..=MAX_CHOICES).contains(&self.n.unwrap_or(1)) {
            return Err(Error::request("n", format!("from 1 to {}", MAX_CHOICES)));
        }
        super::Logprobs::check("logprobs", self.logprobs.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Request;

    #[test]
    fn a_kept_value_sets_what_it_has_and_nothing_else() {
        let params = SamplingParams::new().temperature(0.5).top_k(3).seed(9).max_tokens(4).n(2);
        let request = Request::prompt("x").top_p(0.25).top_k(8).sampling(&params).seed(1);
        let set = request.sampling;
        assert_eq!(
            (set.temperature, set.top_k, set.top_p, set.seed),
            (Some(0.5), Some(3), Some(0.25), Some(1))
        );
        assert_eq!((request.max_tokens, request.n, request.logprobs), (Some(4), Some(2), None));
        let all = SamplingParams::new()
            .min_p(0.1)
            .typical_p(0.9)
            .repetition_penalty(1.1)
            .presence_penalty(0.2)
            .frequency_penalty(0.3)
            .dry(Dry::default())
            .min_tokens(1)
            .logprobs(2)
            .ignore_eos(true);
        let request = Request::prompt("x").sampling(&params).sampling(&all);
        assert_eq!(request.sampling.temperature, Some(0.5), "what the second leaves unset stays");
        assert_eq!((request.sampling.min_p, request.sampling.dry), (Some(0.1), Some(Dry::default())));
        assert!(request.ignore_eos && request.logprobs == Some(2));
    }

    #[test]
    fn bounds_are_checked_before_any_request() {
        let field = |params: SamplingParams| match params.check() {
            Err(Error::Request { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert!(SamplingParams::new().temperature(1.0).check().is_ok());
        assert_eq!(field(SamplingParams::new().temperature(3.0)), "temperature");
        assert_eq!(field(SamplingParams::new().top_p(0.0)), "top_p");
        assert_eq!(field(SamplingParams::new().n(0)), "n");
        assert_eq!(field(SamplingParams::new().max_tokens(0)), "max_tokens");
        assert_eq!(field(SamplingParams::new().logprobs(21)), "logprobs");
    }
}
