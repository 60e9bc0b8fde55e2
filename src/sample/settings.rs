//! What a request may ask of the sampler, and its bounds.

use super::dry;
use crate::error::{Error, Result};

/// How a token is chosen. The default is greedy, with everything else off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; above, up to 2, logits are divided by it.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens whose probabilities first sum to this: above 0, up to 1, which keeps all.
    pub top_p: f32,
    /// Keep tokens at least this times as likely as the most likely one: 0, which keeps all, to 1.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest to the expected one until their probabilities first sum to this:
    /// above 0, up to 1, which keeps all (locally typical sampling, Meister et al. 2022).
    pub typical_p: f32,
    /// Divides the positive logits and multiplies the negative ones of tokens in prompt or reply: 0.01 to 5, 1 is
    /// off (CTRL, Keskar et al. 2019; Hugging Face).
    pub repetition_penalty: f32,
    /// Is subtracted from the logits of tokens in the reply: -2 to 2, 0 is off (OpenAI).
    pub presence_penalty: f32,
    /// Is subtracted from the logits of tokens in the reply, once for each time: -2 to 2, 0 is off (OpenAI).
    pub frequency_penalty: f32,
    /// Against repeated sequences.
    pub dry: Option<Dry>,
    /// End tokens are impossible before the reply has this many tokens.
    pub min_tokens: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry: None,
            min_tokens: 0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks every bound; a number that is not finite is in none.
    ///
    /// # Errors
    /// [`Error::Request`] with the first field that is out of bounds.
    pub fn check(&self) -> Result<()> {
        let within = |field, value: f32, low: f32, high: f32| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(Error::request(field, format!("from {low} to {high}"))),
        };
        let share = |field, value: f32| match value > 0.0 && value <= 1.0 {
            true => Ok(()),
            false => Err(Error::request(field, "above 0 and up to 1")),
        };
        within("temperature", self.temperature, 0.0, 2.0)?;
        share("top_p", self.top_p)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        share("typical_p", self.typical_p)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 5.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if let Some(dry) = &self.dry {
            within("dry.multiplier", dry.multiplier, 0.0, 100.0)?;
            within("dry.base", dry.base, 1.0, 100.0)?;
            if !(1..=dry::MAX_MATCH).contains(&dry.allowed_length) {
                return Err(Error::request("dry.allowed_length", format!("from 1 to {}", dry::MAX_MATCH)));
            }
        }
        Ok(())
    }
}

/// DRY, "don't repeat yourself" (p-e-w, text-generation-webui; llama.cpp): a token that would prolong a
/// repetition of `length` tokens loses `multiplier * base ^ (length - allowed_length)`, from `allowed_length` on.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dry {
    /// Strength: 0, which is off, to 100.
    pub multiplier: f32,
    /// Growth with each repeated token: 1 to 100.
    pub base: f32,
    /// Shortest repetition that is penalised: 1 to 1024.
    pub allowed_length: usize,
    /// How many of the last tokens of prompt and reply are looked at; 0 for all.
    pub range: usize,
}

impl Dry {
    /// The values that its author recommends: a multiplier of 0.8, a base of 1.75, an allowed length of 2, and all tokens.
    ///
    /// ```
    /// use amnesic::{Dry, Request};
    ///
    /// let request = Request::prompt("Once upon a time").dry(Dry::new().multiplier(1.2).range(512));
    /// # let _ = request;
    /// ```
    pub const fn new() -> Self {
        Self { multiplier: 0.8, base: 1.75, allowed_length: 2, range: 0 }
    }

    /// Sets the strength: 0, which is off, to 100.
    pub const fn multiplier(mut self, multiplier: f32) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// Sets the growth with each repeated token: 1 to 100.
    pub const fn base(mut self, base: f32) -> Self {
        self.base = base;
        self
    }

    /// Sets the shortest repetition that is penalised: 1 to 1024 tokens.
    pub const fn allowed_length(mut self, tokens: usize) -> Self {
        self.allowed_length = tokens;
        self
    }

    /// Sets how many of the last tokens of prompt and reply are looked at; 0 for all.
    pub const fn range(mut self, tokens: usize) -> Self {
        self.range = tokens;
        self
    }
}

impl Default for Dry {
    /// [`Dry::new`].
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sampling: Sampling) -> Option<&'static str> {
        match sampling.check() {
            Ok(()) => None,
            Err(Error::Request { field, .. }) => Some(field),
            Err(other) => panic!("{other}"),
        }
    }

    /// Sets the field, and says how it is called and what its ends are (`open` where the low end is outside).
    type Field = (&'static str, fn(&mut Sampling, f32), f32, f32, bool);

    #[test]
    fn every_bound_is_checked_and_its_field_named() {
        let fields: [Field; 9] = [
            ("temperature", |s, v| s.temperature = v, 0.0, 2.0, false),
            ("top_p", |s, v| s.top_p = v, 0.0, 1.0, true),
            ("min_p", |s, v| s.min_p = v, 0.0, 1.0, false),
            ("typical_p", |s, v| s.typical_p = v, 0.0, 1.0, true),
            ("repetition_penalty", |s, v| s.repetition_penalty = v, 0.01, 5.0, false),
            ("presence_penalty", |s, v| s.presence_penalty = v, -2.0, 2.0, false),
            ("frequency_penalty", |s, v| s.frequency_penalty = v, -2.0, 2.0, false),
            (
                "dry.multiplier",
                |s, v| s.dry = Some(Dry { multiplier: v, ..Dry::default() }),
                0.0,
                100.0,
                false,
            ),
            ("dry.base", |s, v| s.dry = Some(Dry { base: v, ..Dry::default() }), 1.0, 100.0, false),
        ];
        for (name, set, low, high, open) in fields {
            let with = |value| {
                let mut sampling = Sampling::default();
                set(&mut sampling, value);
                refused(sampling)
            };
            assert_eq!(with(low), open.then_some(name));
            assert_eq!(
                (with(low.next_up()), with(high.next_down()), with(high)),
                (None, None, None),
                "{name}"
            );
            for bad in [low.next_down(), high.next_up(), f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(with(bad), Some(name), "{bad}");
            }
        }
        let allowed = |length| {
            refused(Sampling {
                dry: Some(Dry { allowed_length: length, ..Dry::default() }),
                ..Sampling::default()
            })
        };
        assert_eq!((allowed(1), allowed(dry::MAX_MATCH)), (None, None));
        assert_eq!(
            (allowed(0), allowed(dry::MAX_MATCH + 1)),
            (Some("dry.allowed_length"), Some("dry.allowed_length"))
        );
    }

    #[test]
    fn the_default_passes() {
        assert_eq!(refused(Sampling::default()), None);
        assert_eq!(refused(Sampling { dry: Some(Dry::default()), ..Sampling::default() }), None);
    }
}
