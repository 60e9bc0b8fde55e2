//! A device chooses what the sampler chooses, to the bit, and leaves nothing of it.

use std::sync::Arc;

use super::Cuda;
use super::emulated::Emulated;
use crate::backend::sample_batch::SampleBatch;
use crate::backend::{Batch, Buf, DeviceMemory, Kv, KvShape, Ops};
use crate::memory::Layout;
use crate::sample::{Context, Dry, LogitBias, Logprobs, Sampler, Sampling, rng};

/// A device with logits.
fn device(rows: usize, vocab: usize) -> (Cuda<Emulated>, Buf) {
    let mut backend = Cuda::new(Arc::new(Emulated::default()));
    let mut layout = Layout::default();
    let logits = Buf::plan(&mut layout, rows, vocab).unwrap();
    let kv = Kv::plan::<Cuda<Emulated>>(&mut layout, KvShape::SMALLEST, 1).unwrap();
    backend.reserve(layout, kv, Some(logits)).unwrap();
    (backend, logits)
}

/// Random numbers in order.
struct Random(u64, u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.1 += 1;
        rng::uniform(self.0, self.1)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    fn logits(&mut self, vocab: usize) -> Vec<f32> {
        let kind = self.below(9);
        let mut logits: Vec<f32> = (0..vocab)
            .map(|_| match kind {
                0 => (self.unit() * 4.0) as f32,
                1 => (self.unit() * 60.0 - 30.0) as f32,
                2 => self.one_of(&[0.0, -0.0, 1.0, -1.0]), // ties
                3 => (self.unit() * 6.0).floor() as f32,
                4 => self.one_of(&[f32::MAX, f32::MIN, 1.0, 1e-40]),
                5 => 7.0,
                6 => (self.unit().powi(12) * 20.0) as f32, // a head
                _ => (self.unit() * self.unit() * 25.0) as f32 - 12.0,
            })
            .collect();
        if self.below(40) == 0 {
            let at = self.below(vocab);
            logits[at] = self.one_of(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        }
        logits
    }

    fn sampling(&mut self, vocab: usize) -> Sampling {
        let mut half = || self.below(2) == 0;
        let [hot, top_k, top_p, min_p, typical] =
            [half() || half(), half(), half(), half() && half(), half() && half()];
        let [changed, dry, early] = [half(), half(), half() && half()];
        let temperature = self.one_of(&[0.001, 0.3, 0.7, 1.0, 1.3, 2.0, 1e-42]);
        Sampling {
            temperature: if hot { temperature } else { 0.0 },
            top_k: if top_k { self.one_of(&[1, 2, 3, 40, 300, 700, vocab, vocab / 2 + 1]) } else { 0 },
            top_p: if top_p { self.one_of(&[1e-6, 0.3, 0.9, 0.95, 0.9999, 0.999_999_94]) } else { 1.0 },
            min_p: if min_p { self.one_of(&[1e-9, 0.05, 0.5, 1.0]) } else { 0.0 },
            typical_p: if typical { self.one_of(&[0.01, 0.5, 0.95, 0.9999]) } else { 1.0 },
            repetition_penalty: if changed { self.one_of(&[1.0, 1.3, 0.01, 5.0]) } else { 1.0 },
            presence_penalty: if changed { self.one_of(&[0.0, 0.7, -2.0]) } else { 0.0 },
            frequency_penalty: if changed { self.one_of(&[0.0, 0.3, 2.0]) } else { 0.0 },
            dry: if dry && changed {
                let multiplier = self.one_of(&[0.0, 0.8, 100.0]);
                Some(Dry {
                    multiplier,
                    base: self.one_of(&[1.0, 1.75, 100.0]),
                    allowed_length: 1,
                    range: self.one_of(&[0, 9]),
                })
            } else {
                None
            },
            min_tokens: if early { 1000 } else { 0 },
            seed: self.below(1000) as u64,
        }
    }
}

/// What belongs to a case's context.
struct Case {
    logits: Vec<f32>,
    sampling: Sampling,
    ids: Vec<u32>,
    prompt: usize,
    end_tokens: Vec<u32>,
    bias: LogitBias,
    mask: Option<Vec<u32>>,
    breakers: Vec<u32>,
    /// The prompt's log probabilities are wanted: those of this token.
    given: Option<u32>,
}

impl Case {
    fn new(random: &mut Random, vocab: usize) -> Self {
        let letters = 1 + random.below(vocab.min(5) + 3);
        let ids: Vec<u32> =
            (0..random.below(90)).map(|_| (random.below(letters) * 7 % (vocab + 1)) as u32).collect();
        let mut bias = LogitBias::default();
        if random.below(3) == 0 {
            for _ in 0..random.below(8) {
                let value = random.one_of(&[-100.0, 100.0, -1.5, 0.25, 3.0]);
                bias.push(random.below(vocab + 1) as u32, value);
            }
        }
        let open = random.one_of(&[0.0, 0.1, 0.9]);
        let words = vocab.div_ceil(32).saturating_sub(random.below(2)) + random.below(2);
        let mask =
            (0..words).map(|_| (0..32).fold(0, |word, bit| word | u32::from(random.unit() < open) << bit));
        let mask: Vec<u32> = mask.collect();
        Self {
            logits: random.logits(vocab),
            sampling: random.sampling(vocab),
            prompt: random.below(ids.len() + 1),
            ids,
            end_tokens: (0..random.below(4)).map(|_| random.below(vocab + 2) as u32).collect(),
            bias,
            mask: (random.below(4) == 0).then_some(mask),
            breakers: if random.below(4) == 0 { vec![random.below(vocab) as u32] } else { Vec::new() },
            given: (random.below(12) == 0).then(|| random.below(vocab) as u32),
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            ids: &self.ids,
            prompt: self.prompt,
            end_tokens: &self.end_tokens,
            bias: Some(&self.bias),
            mask: self.mask.as_deref(),
            breakers: &self.breakers,
        }
    }
}

/// Words of a record.
fn record(logprobs: &Logprobs) -> Vec<u32> {
    let words = logprobs.iter().flat_map(|record| {
        let top: Vec<u32> = record.top().flat_map(|(id, logprob)| [id, logprob.to_bits()]).collect();
        [vec![record.token, record.logprob.to_bits(), record.rank], top].concat()
    });
    words.collect()
}

/// Asks for the choices of all these at once, and compares.
fn compare(backend: &mut Cuda<Emulated>, logits: Buf, cases: &[Case], what: &str) -> [usize; 4] {
    let mut sampler = Sampler::new(logits.cols);
    let mut queries = SampleBatch::default();
    backend.set_operand(logits, &cases.iter().flat_map(|case| case.logits.clone()).collect::<Vec<_>>());
    for (row, case) in cases.iter().enumerate() {
        match case.given {
            Some(token) => Sampler::ask_logprobs(row, token, &mut queries),
            None => sampler.ask(row, &case.sampling, &case.context(), row % 2 == 0, &mut queries),
        }
    }
    let fence = backend.submit(&Batch::default(), |_| ());
    backend.sample_on_device(&fence, logits, &mut queries);
    let mut seen = [0; 4];
    for (row, case) in cases.iter().enumerate() {
        let what = || format!("{what}, row {row}: {:?} {:?} {:?}", case.sampling, case.context(), case.given);
        let answer = queries.answer(row);
        let expected = match case.given {
            Some(token) => sampler.logprobs(&case.logits, token, &mut Logprobs::new(0)).map(|()| token),
            None => sampler.sample(&case.logits, &case.sampling, &case.context()),
        };
        let told = answer.token();
        assert_eq!(format!("{told:?}"), format!("{expected:?}"), "{}", what());
        seen[match expected {
            Err(crate::Error::NotFinite) => 0,
            Err(_) => 1,
            Ok(_) => 2,
        }] += 1;
        let Ok(token) = expected else { continue };
        if case.given.is_some() || row % 2 == 0 {
            let top = [0, 1, 5, 20][row % 4];
            let [mut mine, mut expected] = [Logprobs::new(top), Logprobs::new(top)];
            mine.take(answer).unwrap();
            sampler.logprobs(&case.logits, token, &mut expected).unwrap();
            // a logprob has fewer bits than what it is made of
            let total = crate::sample::total_weight(&case.logits);
            assert_eq!(answer.total().to_bits(), total.to_bits(), "{}", what());
            assert_eq!(record(&mine), record(&expected), "{}", what());
            seen[3] += 1;
        }
    }
    seen
}

#[test]
fn a_device_chooses_what_the_sampler_does() {
    let mut seen = [0; 4];
    for (vocab, launches) in
        [(1, 3), (2, 3), (31, 6), (63, 6), (64, 6), (65, 6), (130, 6), (600, 3), (1000, 3)]
    {
        // more rows than questions of a launch
        let (mut backend, logits) = device(80, vocab);
        for launch in 0..launches {
            let mut random = Random(1000 * vocab as u64 + launch, 0);
            let cases: Vec<Case> = (0..80).map(|_| Case::new(&mut random, vocab)).collect();
            let found = compare(&mut backend, logits, &cases, &format!("{vocab} tokens, launch {launch}"));
            seen.iter_mut().zip(found).for_each(|(seen, found)| *seen += found);
        }
    }
    assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
}

/// Where more is kept than fits shared memory, and where one of the last bits would show.
#[test]
fn a_device_chooses_what_the_sampler_does_from_large_vocabularies() {
    let (mut backend, logits) = device(12, 33_001);
    for launch in 0..6 {
        let mut random = Random(77 + launch, 0);
        let mut cases: Vec<Case> = (0..12).map(|_| Case::new(&mut random, 33_001)).collect();
        for (case, kind) in cases.iter_mut().zip(launch as usize % 2 * 12..) {
            let off = Sampling { temperature: 2.0, seed: case.sampling.seed, ..Sampling::default() };
            case.sampling = match kind {
                0 => Sampling { top_p: 0.9999, ..off },
                1 => Sampling { typical_p: 0.95, ..off },
                2 => Sampling { typical_p: 0.2, ..off },
                3 => Sampling { top_k: 20_000, ..off },
                4 => Sampling { top_k: 20_000, top_p: 0.99, typical_p: 0.9, ..off },
                5 => Sampling { min_p: 1e-6, ..off },
                6 => Sampling { top_p: 0.9999, typical_p: 0.99, ..off },
                7 => Sampling { top_k: 1500, ..off },
                8 => Sampling { top_p: 0.3, min_p: 0.01, ..off },
                9 => off,
                _ => case.sampling,
            };
            if kind < 12 {
                case.given = None;
            }
        }
        compare(&mut backend, logits, &cases, &format!("launch {launch}"));
    }
}

/// The kernel divides by multiplying: those are the quotients that IEEE 754 wants, for all that can be divided there.
#[test]
fn quotients_are_rounded_as_divisions_are() {
    for i in 0..3_000_000 {
        let mut random = Random(9, 4 * i);
        let below = f32::from_bits((random.unit() * f64::from(0x7f7f_ffff_u32)) as u32);
        let below = if i % 2 == 0 { -(random.unit() * 40.0) as f32 } else { -below };
        let of_any_size = f32::from_bits((random.unit() * f64::from(2.0_f32.to_bits())) as u32).max(1e-45);
        let temperature = if i % 3 == 0 { of_any_size } else { (random.unit() * 2.0) as f32 + 1e-6 };
        let (x, temperature) = (f64::from(below), f64::from(temperature));
        let inverse = 1.0 / temperature;
        let mut quotient = x * inverse;
        for _ in 0..2 {
            quotient = (-quotient).mul_add(temperature, x).mul_add(inverse, quotient);
        }
        assert!(quotient == x / temperature, "{x:e} / {temperature:e}");
    }
}

#[test]
fn nothing_of_questions_stays() {
    let (mut backend, logits) = device(40, 500);
    let mut random = Random(5, 0);
    let cases: Vec<Case> = (0..40).map(|_| Case::new(&mut random, 500)).collect();
    compare(&mut backend, logits, &cases, "scrub");
    assert!(!backend.is_zero());
    let (_, proof) = backend.scrub_steps([(logits, 40)].into_iter());
    assert!(!proof.is_dirty() && backend.is_zero());
}

/// Sessions on the emulated device, which need the feature.
#[cfg(feature = "testing")]
mod sessions {
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    use crate::testing::LogitsTap;
    use crate::{Builder, Device, Dry, Reply, Request, ResponseFormat, Session, Speculation};

    /// Requests that ask for all that sampling does, with each other's seeds.
    fn requests() -> Vec<Request> {
        let ask = |seed| Request::prompt("The struct is a struct").max_tokens(7).temperature(0.9).seed(seed);
        let lookup = Speculation::PromptLookup { ngram: 2, tokens: 3 };
        vec![
            ask(1).temperature(0.0).logprobs(0),
            ask(2).n(3).logprobs(2).top_k(40),
            ask(3).repetition_penalty(1.3).frequency_penalty(0.4).presence_penalty(0.2).dry(Dry::default()),
            ask(4).top_p(0.9).logprobs(5).prompt_logprobs(3),
            ask(5).speculate(lookup).n(2).logprobs(1),
            ask(6).speculate(Speculation::Draft { tokens: 3 }).typical_p(0.8),
            ask(7).response_format(ResponseFormat::regex("(yes|no|maybe)!")).n(2).logprobs(20),
            ask(8).response_format(ResponseFormat::json_object()).speculate(lookup),
            ask(9).logit_bias(7, -100.0).logit_bias(300, 5.0).min_tokens(6).min_p(0.01),
        ]
    }

    fn builder() -> Builder {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
        let builder = Session::builder(&folder).device(Device::CudaEmulated).draft(&folder);
        builder.max_sequences(16).step_tokens(32).kv_tokens(2048)
    }

    /// All that a reply says of its tokens.
    fn content(reply: &Reply) -> String {
        let record = |of: crate::TokenLogprobs<'_>| {
            let top: Vec<(u32, u32)> = of.top().map(|(id, logprob)| (id, logprob.to_bits())).collect();
            (of.token, of.logprob.to_bits(), of.rank, top)
        };
        let records = |of: &crate::Logprobs| of.iter().map(record).collect::<Vec<_>>();
        let choices = reply.choices().iter().map(|choice| {
            (choice.tokens().to_vec(), records(choice.logprobs()), format!("{:?}", choice.finish_reason))
        });
        format!("{:?} {:?}", choices.collect::<Vec<_>>(), records(reply.prompt_logprobs()))
    }

    #[test]
    fn replies_do_not_tell_who_chose_their_tokens() {
        let replies = |builder: Builder| -> Vec<String> {
            let session = builder.open().unwrap();
            let replies = session.generate_batch(requests()).unwrap();
            let content = replies.iter().map(content).collect();
            assert!(session.close().is_ok());
            content
        };
        let (mine, expected) = (replies(builder()), replies(builder().sample_on_host()));
        for (number, (mine, expected)) in mine.iter().zip(&expected).enumerate() {
            assert_eq!(mine, expected, "request {number}");
        }
    }

    /// Answers of 192 bytes, and now and then a few words of how a scrub went.
    #[test]
    fn no_row_of_logits_is_copied_to_the_host() {
        let read = |builder: Builder, request: Request| {
            let count: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
            let session = builder.count_read_bytes(count).open().unwrap();
            let before = count.load(Ordering::Relaxed);
            session.generate(request).unwrap();
            count.load(Ordering::Relaxed) - before
        };
        let request =
            || Request::prompt("The struct").max_tokens(8).temperature(1.0).top_p(0.9).seed(3).logprobs(3);
        let bytes = read(builder(), request());
        assert!((8 * 192..8 * (192 + 16) + 1024).contains(&bytes), "{bytes}");
        let row = 4 * 4096;
        assert!(read(builder().sample_on_host(), request()) >= 8 * row, "the count sees it");
        let tap = LogitsTap::default();
        assert!(read(builder(), request().tap_logits(&tap)) >= 8 * row);
        assert_eq!(tap.values().len(), 8 * 4096);
    }
}
