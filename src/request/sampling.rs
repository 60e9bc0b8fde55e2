//! How tokens are chosen, how many, and what ends a reply.

use super::Request;
use crate::memory::Secret;
use crate::sample::{Dry, SamplingParams};

impl Request {
    /// At most this many tokens, from 1. [`Request::temperature`] has an example.
    pub fn max_tokens(mut self, count: usize) -> Self {
        (self.max_tokens, self.fills_context) = (Some(count), false);
        self
    }

    /// The reply may take all that the context has room for behind the prompt.
    ///
    /// ```
    /// use amnesic::Request;
    ///
    /// let request = Request::prompt("Once upon a time").fill_context();
    /// # let _ = request;
    /// ```
    pub fn fill_context(mut self) -> Self {
        (self.max_tokens, self.fills_context) = (None, true);
        self
    }

    /// No end token before this many tokens. Stop strings are not held up.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").min_tokens(20).max_tokens(100);
    /// # drop(request);
    /// ```
    pub fn min_tokens(mut self, count: usize) -> Self {
        self.sampling.min_tokens = Some(count);
        self
    }

    /// Sets what `params` sets.
    ///
    /// ```
    /// use amnesic::{Request, SamplingParams};
    ///
    /// let params = SamplingParams::new().temperature(0.7).seed(3);
    /// let request = Request::prompt("Once upon a time").sampling(&params);
    /// # let _ = request;
    /// ```
    pub fn sampling(mut self, params: &SamplingParams) -> Self {
        self.sampling = self.sampling.or(params.sampling);
        if let Some(count) = params.max_tokens {
            self = self.max_tokens(count);
        }
        self.n = params.n.or(self.n);
        self.logprobs = params.logprobs.or(self.logprobs);
        self.ignore_eos = params.ignore_eos.unwrap_or(self.ignore_eos);
        self
    }

    /// This many choices, 1 to [`Request::MAX_N`]. The prompt is computed once. Choice i draws with the seed plus i.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").n(3).temperature(0.9); // three stories
    /// # drop(request);
    /// ```
    pub fn n(mut self, count: usize) -> Self {
        self.n = Some(count);
        self
    }

    /// 0 takes the most likely token each time; up to 2.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").max_tokens(100).seed(7);
    /// let request = request.temperature(0.8).top_k(40).top_p(0.95).min_p(0.05).typical_p(0.9);
    /// # drop(request);
    /// ```
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.sampling.temperature = Some(temperature);
        self
    }

    /// Draws among this many most likely tokens; 0 for all. [`Request::temperature`] has an example.
    pub fn top_k(mut self, count: usize) -> Self {
        self.sampling.top_k = Some(count);
        self
    }

    /// Draws among the most likely tokens whose probabilities first sum to `share`: above 0, up to 1.
    /// [`Request::temperature`] has an example.
    pub fn top_p(mut self, share: f32) -> Self {
        self.sampling.top_p = Some(share);
        self
    }

    /// Draws among tokens at least `share` times as likely as the most likely one: 0 to 1.
    /// [`Request::temperature`] has an example.
    pub fn min_p(mut self, share: f32) -> Self {
        self.sampling.min_p = Some(share);
        self
    }

    /// Draws among the tokens whose surprise is nearest to the mean, until their probabilities sum to `share`: above
    /// 0, up to 1 for all. [`Request::temperature`] has an example.
    pub fn typical_p(mut self, share: f32) -> Self {
        self.sampling.typical_p = Some(share);
        self
    }

    /// Divides the positive logits of tokens of the prompt and the reply by this, and multiplies the negative ones:
    /// 0.01 to 5, 1 for none.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").repetition_penalty(1.1);
    /// let request = request.presence_penalty(0.5).frequency_penalty(0.2);
    /// # drop(request);
    /// ```
    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.sampling.repetition_penalty = Some(penalty);
        self
    }

    /// Takes this off the logits of tokens that the reply has: -2 to 2. [`Request::repetition_penalty`] has an example.
    pub fn presence_penalty(mut self, penalty: f32) -> Self {
        self.sampling.presence_penalty = Some(penalty);
        self
    }

    /// Takes this off the logits of tokens, as often as the reply has them: -2 to 2.
    /// [`Request::repetition_penalty`] has an example.
    pub fn frequency_penalty(mut self, penalty: f32) -> Self {
        self.sampling.frequency_penalty = Some(penalty);
        self
    }

    /// Makes tokens less likely that would go on with a sequence that was there before. [`Dry::new`] has an example.
    pub fn dry(mut self, dry: Dry) -> Self {
        self.sampling.dry = Some(dry);
        self
    }

    /// Text at which repeated sequences begin anew for [`Request::dry`]: by default a line's end, a colon, a double
    /// quote and an asterisk. Up to [`Request::MAX_BREAKERS`].
    ///
    /// ```
    /// # use amnesic::{Dry, Request};
    /// let request = Request::prompt("Once upon a time").dry(Dry::new()).dry_breakers(["\n", "\n\n"]);
    /// # drop(request);
    /// ```
    pub fn dry_breakers<S: Into<String>>(mut self, texts: impl IntoIterator<Item = S>) -> Self {
        self.breakers = Some(texts.into_iter().map(|text| Secret::new(text.into())).collect());
        self
    }

    /// Adds `value` to the logit of a token: -100 makes it impossible, 100 nearly certain.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").logit_bias(450, -100.0).logit_bias(11, 2.5);
    /// # drop(request);
    /// ```
    pub fn logit_bias(mut self, id: u32, value: f32) -> Self {
        self.logit_bias.push(id, value);
        self
    }

    /// Draws with this seed: the same seed gives the same reply, alone or in any batch. Without one a fresh seed is drawn, and
    /// the reply tells it. [`Request::temperature`] has an example.
    pub fn seed(mut self, seed: u64) -> Self {
        self.sampling.seed = Some(seed);
        self
    }

    /// Ends the reply before this text. Up to [`Request::MAX_STOPS`] of them.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").stop("\n\n").stop_token(13).ignore_eos(true);
    /// # drop(request);
    /// ```
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(Secret::new(text.into()));
        self
    }

    /// Ends the reply before this token, as the checkpoint's own end tokens do. [`Request::stop`] has an example.
    pub fn stop_token(mut self, id: u32) -> Self {
        self.stop_tokens.push(id);
        self
    }

    /// Goes on behind the checkpoint's end tokens. [`Request::stop`] has an example.
    pub fn ignore_eos(mut self, ignore: bool) -> Self {
        self.ignore_eos = ignore;
        self
    }

    /// Tells the log probability of each token of the reply, and of the `top` likeliest ones in its place: 0 to
    /// [`Request::MAX_LOGPROBS`]. They are the model's own: before penalties, bias, grammar and temperature.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let request = Request::prompt("A slice is").max_tokens(4).logprobs(2).prompt_logprobs(0);
    /// let reply = session.generate(request)?;
    /// assert_eq!(reply.choices()[0].logprobs().len(), reply.tokens().len());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn logprobs(mut self, top: usize) -> Self {
        self.logprobs = Some(top);
        self
    }

    /// Log probabilities of the tokens of the prompt, from the second on. [`Request::logprobs`] has an example.
    pub fn prompt_logprobs(mut self, top: usize) -> Self {
        self.prompt_logprobs = Some(top);
        self
    }
}
