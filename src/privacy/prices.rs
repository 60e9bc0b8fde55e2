//! What requests cost, in integers.

use crate::outcome::Usage;

/// Prices in nano-units: 10^-9 of whatever currency the application counts in. 0.15 of it for a million tokens are
/// 150 nano-units for one.
///
/// With [`crate::Builder::prices`] each reply tells its cost ([`Usage::cost_nano`]), and so do events, spans and
/// metrics.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// For a token of the prompt that was computed.
    pub prompt_token_nano: u64,
    /// For a token of the prompt whose keys and values were there already ([`Usage::cached_tokens`]).
    pub cached_token_nano: u64,
    /// For a generated token.
    pub completion_token_nano: u64,
    /// For a request that ended well, whatever its tokens.
    pub request_nano: u64,
}

impl Prices {
    /// Everything is free.
    ///
    /// ```
    /// use amnesic::privacy::Prices;
    ///
    /// // 0.15 for a million tokens of the prompt, half of it where they were cached, and 0.60 for a million of the reply
    /// let prices = Prices::new().prompt_token_nano(150).cached_token_nano(75).completion_token_nano(600);
    /// assert_eq!(prices.request_nano, 0);
    /// ```
    pub const fn new() -> Self {
        Self { prompt_token_nano: 0, cached_token_nano: 0, completion_token_nano: 0, request_nano: 0 }
    }

    /// Sets what a token of the prompt costs that was computed.
    pub const fn prompt_token_nano(mut self, nano: u64) -> Self {
        self.prompt_token_nano = nano;
        self
    }

    /// Sets what a token of the prompt costs whose keys and values were there already.
    pub const fn cached_token_nano(mut self, nano: u64) -> Self {
        self.cached_token_nano = nano;
        self
    }

    /// Sets what a generated token costs.
    pub const fn completion_token_nano(mut self, nano: u64) -> Self {
        self.completion_token_nano = nano;
        self
    }

    /// Sets what a request costs that ended well, whatever its tokens.
    pub const fn request_nano(mut self, nano: u64) -> Self {
        self.request_nano = nano;
        self
    }

    /// What a request of this usage costs; what is more than [`u64::MAX`] is that.
    ///
    /// `request + (prompt - cached) * prompt_token + cached * cached_token + completion * completion_token`: a cached
    /// token is charged once. Guesses of speculation are free: they are not tokens of the reply.
    pub fn cost(&self, usage: &Usage) -> u64 {
        let cached = usage.cached_tokens.min(usage.prompt_tokens);
        let charge = |tokens: usize, nano: u64| tokens as u128 * u128::from(nano); // below 2^128
        let parts = [
            charge(usage.prompt_tokens - cached, self.prompt_token_nano),
            charge(cached, self.cached_token_nano),
            charge(usage.completion_tokens, self.completion_token_nano),
            u128::from(self.request_nano),
        ];
        let sum = parts.into_iter().fold(0, u128::saturating_add);
        u64::try_from(sum).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Usage {
        Usage { prompt_tokens, cached_tokens, completion_tokens, ..Usage::default() }
    }

    const PRICES: Prices = Prices {
        prompt_token_nano: 150,
        cached_token_nano: 75,
        completion_token_nano: 600,
        request_nano: 1000,
    };

    #[test]
    fn known_costs() {
        assert_eq!(PRICES.cost(&usage(0, 0, 0)), 1000);
        assert_eq!(PRICES.cost(&usage(1000, 0, 200)), 1000 + 150_000 + 120_000);
        assert_eq!(PRICES.cost(&usage(1000, 900, 200)), 1000 + 100 * 150 + 900 * 75 + 120_000);
        assert_eq!(PRICES.cost(&usage(10, 10, 0)), 1000 + 750);
        // a million prompt tokens at 0.15 are 0.15
        assert_eq!(Prices { request_nano: 0, ..PRICES }.cost(&usage(1_000_000, 0, 0)), 150_000_000);
        assert_eq!(Prices::default().cost(&usage(7, 3, 5)), 0);
    }

    #[test]
    fn guesses_are_free_and_an_earlier_cost_is_not_charged() {
        let more = Usage { drafted_tokens: 9, accepted_tokens: 7, cost_nano: Some(5), ..usage(4, 1, 2) };
        assert_eq!(PRICES.cost(&more), PRICES.cost(&usage(4, 1, 2)));
    }

    #[test]
    fn nothing_overflows() {
        let most = u64::MAX;
        let all = Prices {
            prompt_token_nano: most,
            cached_token_nano: most,
            completion_token_nano: most,
            request_nano: most,
        };
        assert_eq!(all.cost(&usage(usize::MAX, usize::MAX / 2, usize::MAX)), u64::MAX);
        assert_eq!(all.cost(&usage(0, 0, 0)), u64::MAX);
        assert_eq!(all.cost(&usage(1, 5, 0)), u64::MAX); // more cached than there are: not below zero
    }

    #[test]
    fn more_tokens_never_cost_less() {
        let mut state = 7_u64;
        let mut draw = move |bits: u32| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> (64 - bits)
        };
        for round in 0..20_000 {
            let bits = 1 + round % 64;
            let prices = Prices {
                prompt_token_nano: draw(bits),
                cached_token_nano: draw(bits),
                completion_token_nano: draw(bits),
                request_nano: draw(bits),
            };
            let (prompt, completion) = (draw(32) as usize, draw(32) as usize);
            let cached = draw(32) as usize % (prompt + 1);
            let cost = prices.cost(&usage(prompt, cached, completion));
            let more = 1 + draw(20) as usize;
            assert!(prices.cost(&usage(prompt + more, cached, completion)) >= cost);
            assert!(prices.cost(&usage(prompt + more, cached + more, completion)) >= cost);
            assert!(prices.cost(&usage(prompt, cached, completion + more)) >= cost);
            assert!(prices.cost(&usage(prompt, cached, 0)) <= cost);
        }
    }
}
