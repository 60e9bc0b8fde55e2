//! Many requests at once: batching, preemption, choices, ends of all kinds, guesses; [`conversations`] and public prompts;
//! [`streams`].

mod conversations;
mod streams;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amnesic::clock::Clock;
use amnesic::privacy::Subject;
use amnesic::{
    Builder, CancelToken, Dry, Error, FinishReason, Priority, Reply, Request, SamplingParams, Session,
    Speculation,
};

use crate::common::{Hands, Random, Recipe, default_model, in_a_process_of_its_own, resident};

const VOCAB: usize = 512;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["tie_word_embeddings"] = false.into(); // tied random weights repeat one token
    recipe.config["max_position_embeddings"] = 16_384.into();
    recipe.write(folder.path(), None);
    folder
}

fn builder(folder: &Path) -> Builder {
    Session::builder(folder).threads(2)
}

/// Requests of all kinds, whose replies must not depend on what else runs.
fn mixed(random: &mut Random, count: usize) -> Vec<Box<dyn Fn() -> Request>> {
    (0..count)
        .map(|_| {
            let prompt: Vec<u32> = (0..1 + random.below(150)).map(|_| random.below(VOCAB) as u32).collect();
            let (max, seed, kind) = (1 + random.below(90), random.next(), random.below(6));
            Box::new(move || {
                // one tenant's, or none would guess beside others
                let request = Request::tokens(prompt.clone()).max_tokens(max).seed(seed).tenant(1_u64);
                match kind {
                    0 => request,
                    1 => request.temperature(1.0).n(3),
                    2 => request.temperature(0.8).repetition_penalty(1.3).frequency_penalty(0.4),
                    3 => request.temperature(1.2).top_p(0.9).logprobs(3),
                    4 => request.dry(Dry::default()).presence_penalty(0.5).prompt_logprobs(2),
                    _ => request.speculate(Speculation::PromptLookup { ngram: 3, tokens: 4 }),
                }
            }) as Box<dyn Fn() -> Request>
        })
        .collect()
}

/// All that a reply says of its tokens.
fn content(reply: &Reply) -> Vec<(Vec<u32>, Vec<u32>, FinishReason)> {
    let bits = |logprobs: &amnesic::Logprobs| -> Vec<u32> {
        let all = logprobs.iter().map(|of| (of.logprob, of.rank, of.top().collect::<Vec<_>>()));
        all.flat_map(|(own, rank, top)| {
            let top = top.into_iter().flat_map(|(id, logprob)| [id, logprob.to_bits()]);
            [own.to_bits(), rank].into_iter().chain(top).collect::<Vec<_>>()
        })
        .collect()
    };
    let prompt = bits(reply.prompt_logprobs());
    reply
        .choices()
        .iter()
        .map(|choice| {
            let told = bits(choice.logprobs()).into_iter().chain(prompt.iter().copied()).collect();
            (choice.tokens().to_vec(), told, choice.finish_reason)
        })
        .collect()
}

#[test]
fn memory_pressure_and_other_requests_change_no_token() {
    let folder = folder();
    let requests = mixed(&mut Random(5), 60);
    let alone = builder(folder.path()).open().unwrap();
    let expected: Vec<_> =
        requests.iter().map(|request| content(&alone.generate(request()).unwrap())).collect();
    for (kv_tokens, sequences, step_tokens) in [(448, 16, 32), (704, 5, 64), (512, 32, 512)] {
        let session = builder(folder.path())
            .context_length(384)
            .kv_tokens(kv_tokens)
            .max_sequences(sequences)
            .step_tokens(step_tokens)
            .open()
            .unwrap();
        let replies = session.generate_batch(requests.iter().map(|request| request())).unwrap();
        let found: Vec<_> = replies.iter().map(content).collect();
        assert!(found == expected, "{kv_tokens} tokens of cache, {sequences} at once");
        let load = session.load();
        assert!(load.preemptions > 0, "memory was never short: a lame test");
        assert_eq!((load.running, load.waiting, load.kv_blocks_used), (0, 0, 0));
    }
}

#[test]
fn choices_are_those_of_their_seeds_and_the_prompt_is_computed_once() {
    let folder = folder();
    let session = builder(folder.path()).open().unwrap();
    let request = || Request::tokens((0..200).collect::<Vec<_>>()).max_tokens(20).temperature(1.0);
    let before = session.counters().tokens;
    let reply = session.generate(request().seed(7).n(4)).unwrap();
    let computed = session.counters().tokens - before;
    assert_eq!(reply.choices().len(), 4);
    assert_eq!(reply.usage.completion_tokens, 80);
    assert_eq!(computed, 200 + 4 * 19, "the prompt once, and each choice's tokens but its first");
    for (index, choice) in reply.choices().iter().enumerate() {
        assert_eq!(choice.seed, 7 + index as u64);
        let single = session.generate(request().seed(choice.seed)).unwrap();
        assert_eq!(single.tokens(), choice.tokens());
    }
    // more choices than run at once: the others wait, and get the same
    let narrow = builder(folder.path()).max_sequences(2).open().unwrap();
    let narrowed = narrow.generate(request().seed(7).n(4)).unwrap();
    assert_eq!(content(&narrowed), content(&reply));
    let many = narrow.generate(request().seed(1).n(Request::MAX_N).max_tokens(2)).unwrap();
    assert_eq!(many.choices().len(), Request::MAX_N);
    assert_eq!(narrow.load().kv_blocks_used, 0);
}

#[test]
fn logprobs_are_those_of_the_logits() {
    let folder = folder();
    let session = builder(folder.path()).step_tokens(16).open().unwrap();
    let prompt: Vec<u32> = (3..60).collect();
    let tap = amnesic::testing::LogitsTap::default();
    let request = Request::tokens(prompt.clone()).max_tokens(6).logprobs(5).prompt_logprobs(4);
    let reply = session.generate(request.tap_logits(&tap)).unwrap();
    let rows = tap.values();
    let softmax = |row: &[f32], id: u32| {
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        f64::from(row[id as usize]) - sum.ln()
    };
    let told = reply.choices()[0].logprobs();
    assert_eq!(told.len(), 6);
    for ((of, &id), row) in told.iter().zip(reply.tokens()).zip(rows.chunks(VOCAB)) {
        assert_eq!((of.token, of.rank), (id, 1), "greedy takes the first");
        assert!((f64::from(of.logprob) - softmax(row, id)).abs() < 1e-4);
        let top: Vec<(u32, f32)> = of.top().collect();
        assert!(top.len() == 5 && top[0].0 == id && top.is_sorted_by(|a, b| a.1 >= b.1));
    }
    // a prompt's token has the log probability that it has as the reply to what is before it
    let told = reply.prompt_logprobs();
    assert_eq!(told.len(), prompt.len() - 1);
    for place in [1, 17, 40] {
        let tap = amnesic::testing::LogitsTap::default();
        let one = Request::tokens(prompt[..place].to_vec()).max_tokens(1).tap_logits(&tap);
        session.generate(one).unwrap();
        let of = told.get(place - 1).unwrap();
        assert_eq!(of.token, prompt[place]);
        assert!((f64::from(of.logprob) - softmax(&tap.values(), of.token)).abs() < 1e-4, "place {place}");
    }
}

#[test]
fn bias_bans_and_minimums_hold() {
    let folder = folder();
    let session = builder(folder.path()).open().unwrap();
    let request = || Request::tokens([1, 2, 3]).max_tokens(30);
    let plain = session.generate(request()).unwrap();
    let first = plain.tokens()[0];
    let banned = session.generate(request().logit_bias(first, -100.0)).unwrap();
    assert!(!banned.tokens().contains(&first));
    let forced = session.generate(request().max_tokens(5).logit_bias(77, 100.0)).unwrap();
    assert_eq!(forced.tokens(), [77; 5]);
    let stop = plain.tokens()[4];
    let short = session.generate(request().stop_token(stop)).unwrap();
    let long = session.generate(request().stop_token(stop).min_tokens(12)).unwrap();
    assert!(short.tokens().len() <= 4 && long.tokens().len() >= 12);
    assert!(matches!(
        session.generate(request().logit_bias(VOCAB as u32, 1.0)),
        Err(Error::Request { field: "logit_bias", .. })
    ));
}

#[test]
fn a_cancel_token_ends_requests_with_what_there_is() {
    let folder = folder();
    let session = builder(folder.path()).kv_tokens(16_384).max_sequences(2).open().unwrap();
    let token = CancelToken::new();
    let long = || Request::tokens([1, 2, 3]).max_tokens(8000).ignore_eos(true).cancel_token(&token);
    let replies = std::thread::scope(|scope| {
        // first those that run, so that nobody who comes a little later has come before them by the session's clock
        let mut waiting = Vec::new();
        for load in [(2, 0), (2, 2)] {
            waiting.extend((0..2).map(|_| scope.spawn(|| session.generate(long()))));
            while (session.load().running, session.load().waiting) != load {
                std::thread::yield_now();
            }
        }
        let steps = session.counters().steps;
        while session.counters().steps < steps + 20 {
            std::thread::yield_now();
        }
        token.cancel();
        waiting.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect::<Vec<_>>()
    });
    assert!(replies.iter().all(|reply| reply.finish_reason() == FinishReason::Cancelled));
    assert_eq!(replies.iter().filter(|reply| reply.tokens().len() > 5).count(), 2, "two ran, two waited");
    assert!(replies.iter().all(|reply| reply.tokens().len() < 8000));
    let late = session.generate(long().n(3)).unwrap();
    assert_eq!((late.choices().len(), late.finish_reason()), (3, FinishReason::Cancelled));
    let after = session.generate(Request::tokens([1]).max_tokens(3)).unwrap();
    assert_eq!(after.finish_reason(), FinishReason::Length);
}

#[test]
fn a_deadline_ends_a_request_with_what_there_is() {
    let folder = folder();
    let hands = Hands::new();
    let session =
        builder(folder.path()).kv_tokens(16_384).max_sequences(1).clock(hands.clone()).open().unwrap();
    let long =
        || Request::tokens([1, 2, 3]).max_tokens(8000).ignore_eos(true).timeout(Duration::from_secs(60));
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| session.generate(long()));
        let two = scope.spawn(|| session.generate(long().deadline(hands.now())));
        let two = two.join().unwrap().unwrap();
        while session.counters().steps < 20 {
            std::thread::yield_now();
        }
        hands.turn(Duration::from_secs(61));
        (one.join().unwrap().unwrap(), two)
    });
    assert_eq!((two.finish_reason(), two.tokens().len()), (FinishReason::Deadline, 0));
    assert_eq!(one.finish_reason(), FinishReason::Deadline);
    assert!((10..8000).contains(&one.tokens().len()));
}

#[test]
fn priorities_decide_who_goes_first() {
    let folder = folder();
    let ended = Arc::new(Mutex::new(Vec::new()));
    let list = ended.clone();
    // as the worker ends them: callers wake in any order
    let builder = builder(folder.path()).on_receipt(move |receipt| {
        if let Subject::Request { id } = receipt.subject {
            list.lock().unwrap().push(id);
        }
    });
    let session = builder.max_sequences(1).kv_tokens(8192).open().unwrap();
    let mut busy =
        session.stream(Request::tokens([1]).max_tokens(4000).ignore_eos(true).stream_buffer(4000)).unwrap();
    assert!(busy.next().unwrap().is_ok());
    let orders = [Priority::Low, Priority::Normal, Priority::High];
    let ids: Vec<_> = std::thread::scope(|scope| {
        let callers = orders.into_iter().enumerate().map(|(arrived, priority)| {
            let session = &session;
            let request = Request::tokens([5, 6]).max_tokens(20).priority(priority);
            let caller = scope.spawn(move || session.generate(request).unwrap().request_id);
            // each has arrived before the next one does; the last one takes the place of the busy one
            while session.load().waiting + ended.lock().unwrap().len() <= arrived {
                std::thread::yield_now();
            }
            caller
        });
        let callers: Vec<_> = callers.collect();
        drop(busy);
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    let ended = ended.lock().unwrap();
    let ranks = ids.iter().map(|id| ended.iter().position(|other| other == id).unwrap());
    assert!(ranks.rev().is_sorted(), "{ended:?} of {ids:?}");
}

#[test]
fn guesses_change_no_token_and_save_steps() {
    let folder = folder();
    let draft = default_model(); // a draft that is as good as the model itself
    let session = builder(&default_model()).draft(&draft).open().unwrap();
    let code = "fn add(a: i32, b: i32) -> i32 { a + b }\nfn add(a: i32, b: i32) -> i32 {";
    for (temperature, seed) in [(0.0, 1), (0.9, 2), (1.3, 3)] {
        let request = || Request::prompt(code).max_tokens(80).temperature(temperature).seed(seed);
        let plain = session.generate(request()).unwrap();
        for speculation in
            [Speculation::PromptLookup { ngram: 3, tokens: 6 }, Speculation::Draft { tokens: 4 }]
        {
            let steps = session.counters().steps;
            let guessed = session.generate(request().speculate(speculation)).unwrap();
            let steps = (session.counters().steps - steps) as usize;
            assert_eq!(guessed.tokens(), plain.tokens(), "{speculation:?} at {temperature}");
            let (drafted, accepted) = (guessed.usage.drafted_tokens, guessed.usage.accepted_tokens);
            assert!(accepted <= drafted && steps == 80 - accepted, "{steps} steps, {accepted} accepted");
            match speculation {
                Speculation::Draft { .. } => assert_eq!(accepted, drafted, "the same model guesses right"),
                _ => assert!(temperature > 0.0 || accepted > 5, "{accepted} of {drafted}"),
            }
        }
    }
    drop(session);
    // a draft that is nothing like the model
    let target = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["max_position_embeddings"] = 16_384.into();
    recipe.seed = 99;
    recipe.write(target.path(), None);
    let session = builder(folder.path()).draft(target.path()).kv_tokens(1024).open().unwrap();
    let request =
        |i: u32| Request::tokens(vec![i, 8, i]).max_tokens(60 + i as usize).temperature(0.7).seed(9);
    let plain: Vec<_> = (0..12).map(|i| session.generate(request(i)).unwrap().tokens().to_vec()).collect();
    let guessing = (0..12).map(|i| {
        let speculation = Speculation::Draft { tokens: 1 + i as usize % 5 };
        request(i).speculate(speculation).tenant("all of them")
    });
    let replies = session.generate_batch(guessing).unwrap();
    assert!(replies.iter().zip(&plain).all(|(reply, plain)| reply.tokens() == plain));
    assert!(replies.iter().map(|reply| reply.usage.drafted_tokens).sum::<usize>() > 100);
    let mut conversation = session.conversation();
    let turn = || Request::tokens([3, 4, 5]).max_tokens(70).speculate(Speculation::Draft { tokens: 3 });
    let turns: Vec<u32> =
        (0..3).flat_map(|_| conversation.generate(turn()).unwrap().tokens().to_vec()).collect();
    drop(conversation);
    let mut conversation = session.conversation();
    let plain = || Request::tokens([3, 4, 5]).max_tokens(70);
    let expected: Vec<u32> =
        (0..3).flat_map(|_| conversation.generate(plain()).unwrap().tokens().to_vec()).collect();
    assert_eq!(turns, expected);
    assert!(matches!(
        builder(folder.path()).open().unwrap().generate(turn()),
        Err(Error::Request { field: "speculate", .. })
    ));
}

#[test]
fn drafts_with_another_vocabulary_are_refused() {
    let folder = folder();
    let error = builder(folder.path()).draft(default_model()).open().unwrap_err();
    assert!(matches!(&error, Error::Config { field, .. } if field == "vocab_size"), "{error}");
}

#[test]
fn ten_thousand_at_once_wait_within_the_plan() {
    in_a_process_of_its_own(
        module_path!(),
        "ten_thousand_at_once_wait_within_the_plan",
        ten_thousand_at_once,
    );
}

fn ten_thousand_at_once() {
    let folder = folder();
    let session = builder(folder.path()).kv_tokens(2048).max_requests(10_000).open().unwrap();
    let requests = |count: u32| (0..count).map(|i| Request::tokens([i % 500, 3]).max_tokens(2));
    let busy = session.generate_batch(requests(10_001)).unwrap_err();
    assert!(matches!(busy, Error::Busy { waiting: 0, limit: 10_000, .. }), "{busy}");
    let before = resident();
    let replies = session.generate_batch(requests(10_000)).unwrap();
    let grown = resident().saturating_sub(before);
    assert!(replies.len() == 10_000 && replies.iter().all(|reply| reply.tokens().len() == 2));
    // about 3 KB for each: its buffers, and the reply itself
    assert!(grown < 64 << 20, "{grown} bytes");
    assert_eq!(session.load().kv_blocks_used, 0);
}

/// A full session hands back what it does not take: the same requests, in their order.
#[test]
fn a_full_session_hands_requests_back() {
    let session = builder(&default_model()).max_requests(2).open().unwrap();
    let request = |seed: u64| Request::prompt("Ownership is").max_tokens(6).temperature(0.9).seed(seed);
    let expected: Vec<Vec<u32>> =
        (0..3).map(|seed| session.generate(request(seed)).unwrap().tokens().to_vec()).collect();
    let busy = session.generate_batch((0..3).map(request)).unwrap_err();
    assert!(matches!(&busy, Error::Busy { requests, .. } if requests.len() == 3), "{busy:?}");
    assert!(!format!("{busy} {busy:?}").contains("Ownership"), "{busy:?}");
    let again: Vec<Vec<u32>> = busy
        .into_requests()
        .into_iter()
        .map(|request| session.generate(request).unwrap().tokens().to_vec())
        .collect();
    assert_eq!(again, expected);
    // Of any other error there is nothing to hand back.
    assert!(session.generate(request(0).temperature(9.0)).unwrap_err().into_requests().is_empty());
    let running = session.generate_batch((0..2).map(request)).unwrap();
    assert_eq!((running[0].tokens(), running[1].tokens()), (&expected[0][..], &expected[1][..]));
}

#[test]
fn kept_settings_give_the_replies_of_the_same_settings() {
    let session = builder(&default_model()).open().unwrap();
    let params = SamplingParams::new().temperature(0.9).top_k(40).seed(5).max_tokens(20);
    let kept = session.generate(Request::prompt("A slice is").sampling(&params)).unwrap();
    let plain = Request::prompt("A slice is").temperature(0.9).top_k(40).seed(5).max_tokens(20);
    assert_eq!(kept.tokens(), session.generate(plain).unwrap().tokens());
    let again = session.generate(Request::prompt("A slice is").sampling(&params.seed(6))).unwrap();
    assert_ne!(kept.tokens(), again.tokens());
    let context = session.context_length();
    let full = Request::prompt("A slice is").sampling(&params).ignore_eos(true).fill_context();
    let full = session.generate(full).unwrap();
    assert_eq!(full.usage.total_tokens(), context);
}

/// Of `config.json`, the tensors and the model card.
#[test]
fn a_session_tells_what_its_checkpoint_says_of_itself() {
    let session = builder(&default_model()).open().unwrap();
    let model = session.model();
    assert_eq!((model.family.as_str(), model.architecture.as_deref()), ("llama", Some("LlamaForCausalLM")));
    assert_eq!((model.license.as_deref(), model.license_link.as_deref()), (Some("mit OR apache-2.0"), None));
    assert_eq!(
        (model.context_length, model.vocab_size, model.layers, model.hidden_size),
        (1024, 4096, 6, 256)
    );
    assert_eq!((model.weights.as_str(), model.quantization.as_deref()), ("bf16", None));
    // As safetensors' own header counts them.
    let file = std::fs::read(default_model().join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let count: u64 =
        tensors.tensors().iter().map(|(_, tensor)| tensor.shape().iter().product::<usize>() as u64).sum();
    assert_eq!(model.parameters, count);
    assert!(session.adapters().is_empty());
}
