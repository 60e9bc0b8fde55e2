//! Batch invariance: on each instruction set a request's tokens and logits are the same bits alone and in any batch,
//! with any chunk size and number of threads, for each precision of weights and cache. Instruction sets agree with each
//! other too, unless bf16 is multiplied by bf16.

use std::path::Path;

use amnesic::testing::LogitsTap;
use amnesic::{KvCache, Quantize, Request, Session};

use crate::common::{Random, Recipe, fixture, instruction_sets};

const VOCAB: usize = 150;

#[derive(Clone)]
struct Case {
    prompt: Vec<u32>,
    max_tokens: usize,
    temperature: f32,
    seed: u64,
}

impl Case {
    fn draw(draw: &mut Random, vocab: usize) -> Self {
        let len = 1 + draw.below(60);
        Self {
            prompt: (0..len).map(|_| draw.below(vocab) as u32).collect(),
            max_tokens: 1 + draw.below(24),
            temperature: [0.0, 0.7, 1.5][draw.below(3)],
            seed: draw.below(1000) as u64,
        }
    }

    fn request(&self, tap: &LogitsTap) -> Request {
        let request = Request::tokens(self.prompt.clone()).max_tokens(self.max_tokens).seed(self.seed);
        request.temperature(self.temperature).top_p(0.95).tap_logits(tap)
    }
}

/// What must not change: the tokens, and every bit of the logits that they were chosen from.
type Outcome = (Vec<u32>, Vec<u32>);

fn outcome(tokens: &[u32], tap: &LogitsTap) -> Outcome {
    (tokens.to_vec(), tap.values().into_iter().map(f32::to_bits).collect())
}

fn alone(session: &Session, case: &Case) -> Outcome {
    let tap = LogitsTap::default();
    outcome(session.generate(case.request(&tap)).unwrap().tokens(), &tap)
}

fn recipe() -> Recipe {
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["tie_word_embeddings"] = false.into();
    // sizes with tails: nothing is a multiple of the vector length
    recipe.config["hidden_size"] = 60.into();
    recipe.config["head_dim"] = 18.into();
    recipe
}

/// Precisions of weights and cache. The checkpoint is bf16.
const PRECISIONS: [(Option<Quantize>, KvCache); 4] = [
    (None, KvCache::Checkpoint),
    (None, KvCache::Int8),
    (Some(Quantize::Q8), KvCache::Int8),
    (Some(Quantize::Q4), KvCache::Bf16),
];

#[test]
fn no_other_request_changes_yours() {
    let folder = tempfile::tempdir().unwrap();
    recipe().write(folder.path(), None);
    stays_the_same(folder.path(), VOCAB, 30);
}

/// With keys and values of a latent, and with experts.
#[test]
fn no_other_request_changes_yours_in_a_mixture_over_latents() {
    stays_the_same(&fixture("families/deepseek_v3"), 112, 12);
}

fn stays_the_same(folder: &Path, vocab: usize, cases: usize) {
    let mut draw = Random(1);
    let cases: Vec<Case> = (0..cases).map(|_| Case::draw(&mut draw, vocab)).collect();
    let devices = instruction_sets();
    for precision in PRECISIONS {
        let (quantize, cache) = precision;
        let open = |device, threads, chunk| {
            let builder = Session::builder(folder).device(device).threads(threads);
            let builder = builder.step_tokens(chunk).max_sequences(9).kv_cache(cache);
            match quantize {
                Some(quantize) => builder.quantize(quantize).open().unwrap(),
                None => builder.open().unwrap(),
            }
        };
        let mut common: Option<Vec<Outcome>> = None;
        for &device in &devices {
            let judge = open(device, 1, 512);
            let expected: Vec<Outcome> = cases.iter().map(|case| alone(&judge, case)).collect();
            // a row for each token, and one for a token that ends the reply
            let rows = |(tokens, logits): &Outcome| (logits.len() / vocab).checked_sub(tokens.len());
            assert!(expected.iter().all(|outcome| matches!(rows(outcome), Some(0 | 1))));
            // Where nothing is multiplied bf16 by bf16, or the processor cannot, all instruction sets agree.
            let integers = quantize.is_some() && cache == KvCache::Int8;
            let own_way = ["amx", "bf16"].iter().any(|name| judge.device().contains(name));
            if integers || !own_way {
                let common = common.get_or_insert_with(|| expected.clone());
                assert!(*common == expected, "{device:?} gives other bits than the others, {precision:?}");
            }
            for (threads, chunk) in [(1, 64), (2, 512), (3, 9), (2, 13)] {
                let session = open(device, threads, chunk);
                for round in 0..2 {
                    let members: Vec<usize> =
                        (0..1 + draw.below(16)).map(|_| draw.below(cases.len())).collect();
                    let taps: Vec<LogitsTap> = members.iter().map(|_| LogitsTap::default()).collect();
                    let requests = members.iter().zip(&taps).map(|(&member, tap)| cases[member].request(tap));
                    let replies = session.generate_batch(requests).unwrap();
                    for ((&member, tap), reply) in members.iter().zip(&taps).zip(&replies) {
                        let same = outcome(reply.tokens(), tap) == expected[member];
                        assert!(
                            same,
                            "{device:?}, {precision:?}, {threads} threads, chunks of {chunk}, round {round}: \
                             case {member} differs"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn requests_from_many_threads_get_what_they_get_alone() {
    let folder = tempfile::tempdir().unwrap();
    recipe().write(folder.path(), None);
    let session = Session::builder(folder.path()).step_tokens(24).max_sequences(3).open().unwrap();
    let mut draw = Random(2);
    let cases: Vec<Case> = (0..24).map(|_| Case::draw(&mut draw, VOCAB)).collect();
    let expected: Vec<Outcome> = cases.iter().map(|case| alone(&session, case)).collect();
    std::thread::scope(|scope| {
        for chunk in cases.iter().zip(&expected).collect::<Vec<_>>().chunks(4) {
            let (session, chunk) = (&session, chunk.to_vec());
            scope.spawn(move || {
                for (case, expected) in chunk {
                    assert!(alone(session, case) == *expected);
                }
            });
        }
    });
}
