//! Conversations and public prompts: what is kept between requests, and what of it is shared.

use amnesic::Request;

use super::{VOCAB, builder, folder};
use crate::common::default_model;

#[test]
fn a_conversation_computes_only_what_is_new() {
    let session = builder(&default_model()).open().unwrap();
    let mut conversation = session.conversation();
    let first = conversation.generate(Request::prompt("Ownership is Rust's").max_tokens(30)).unwrap();
    assert_eq!(first.usage.cached_tokens, 0);
    let before = session.counters().tokens;
    let second = conversation.generate(Request::prompt(" A slice is").max_tokens(10)).unwrap();
    // all but the last token of the reply, whose keys and values nobody had asked for yet
    assert_eq!(second.usage.cached_tokens, first.usage.total_tokens() - 1);
    let computed = (session.counters().tokens - before) as usize;
    assert_eq!(computed, second.usage.prompt_tokens - second.usage.cached_tokens + 9);
    // the same tokens, computed from nothing
    let text = format!("Ownership is Rust's{} A slice is", first.text());
    let ids = amnesic::testing::Tokenizer::open(&default_model(), session.vocab_size()).unwrap();
    let mut prompt = ids.encode("Ownership is Rust's", true);
    prompt.extend(first.tokens());
    prompt.extend(ids.encode(" A slice is", false));
    let alone = session.generate(Request::tokens(prompt).max_tokens(10)).unwrap();
    assert_eq!(alone.tokens(), second.tokens());
    assert_eq!(alone.usage.cached_tokens, 0, "nobody else has anything of a conversation: {}", text.len());
    assert!(session.load().kv_blocks_used > 0);
    drop(conversation);
    let other = session.generate(Request::prompt("x").max_tokens(1)).unwrap();
    assert_eq!((other.usage.cached_tokens, session.load().kv_blocks_used), (0, 0));
}

#[test]
fn an_idle_conversation_gives_its_memory_to_others_and_loses_no_token() {
    let folder = folder();
    let session = builder(folder.path()).context_length(512).kv_tokens(512).open().unwrap();
    let turns: [Vec<u32>; 3] = [(0..100).collect(), (30..60).collect(), (5..9).collect()];
    let run = |disturb: bool| -> Vec<(Vec<u32>, usize)> {
        let mut conversation = session.conversation();
        turns
            .iter()
            .map(|turn| {
                let request = Request::tokens(turn.clone()).max_tokens(20).temperature(1.0).seed(3);
                let reply = conversation.generate(request).unwrap();
                if disturb {
                    session.generate(Request::tokens([9; 400]).max_tokens(100)).unwrap();
                }
                (reply.tokens().to_vec(), reply.usage.cached_tokens)
            })
            .collect()
    };
    let (quiet, disturbed) = (run(false), run(true));
    let tokens =
        |run: &[(Vec<u32>, usize)]| -> Vec<Vec<u32>> { run.iter().map(|(t, _)| t.clone()).collect() };
    assert_eq!(tokens(&quiet), tokens(&disturbed));
    assert!(quiet[1].1 > 0 && disturbed[1].1 == 0, "{quiet:?} {disturbed:?}");
}

#[test]
fn a_conversation_with_choices_goes_on_from_the_first() {
    let folder = folder();
    let session = builder(folder.path()).open().unwrap();
    let mut conversation = session.conversation();
    let request = || Request::tokens((0..90).collect::<Vec<_>>()).max_tokens(25).temperature(1.0).seed(1);
    let first = conversation.generate(request().n(3)).unwrap();
    let second = conversation.generate(Request::tokens([4, 5]).max_tokens(8)).unwrap();
    let mut prompt: Vec<u32> = (0..90).collect();
    prompt.extend(first.tokens());
    prompt.extend([4, 5]);
    let alone = session.generate(Request::tokens(prompt).max_tokens(8)).unwrap();
    assert_eq!(alone.tokens(), second.tokens());
    assert_eq!(second.usage.cached_tokens, 90 + 24);
    drop(conversation);
    assert_eq!(session.load().kv_blocks_used, 0);
}

#[test]
fn only_what_is_declared_public_is_shared() {
    let folder = folder();
    let session = builder(folder.path()).open().unwrap();
    let shared: Vec<u32> = (0..200).map(|i| i * 7 % VOCAB as u32).collect();
    let public = session.publish(Request::tokens(shared.clone())).unwrap();
    assert_eq!(public.tokens(), 200);
    let request = |tail: u32| {
        let prompt: Vec<u32> = shared.iter().copied().chain([tail, tail + 1]).collect();
        Request::tokens(prompt).max_tokens(9)
    };
    let expected: Vec<_> = (0..4).map(|tail| session.generate(request(tail)).unwrap()).collect();
    assert!(expected.iter().all(|reply| reply.usage.cached_tokens == 0), "not named, so not shared");
    let cached: Vec<usize> = (0..4)
        .map(|tail| {
            let reply = session.generate(request(tail).shares(&public)).unwrap();
            assert_eq!(reply.tokens(), expected[tail as usize].tokens());
            reply.usage.cached_tokens
        })
        .collect();
    assert_eq!(cached, [0, 192, 192, 192], "whole blocks, once the first has computed them");
    let again = session.generate(request(1)).unwrap();
    assert_eq!(again.usage.cached_tokens, 0);
    // a prompt that has little in common shares little
    let other: Vec<u32> = shared[..100].iter().copied().chain([1, 1, 1]).collect();
    let reply = session.generate(Request::tokens(other).max_tokens(2).shares(&public)).unwrap();
    assert_eq!(reply.usage.cached_tokens, 64);
    // requests that name it together
    let together = session.generate_batch((0..4).map(|tail| request(tail).shares(&public))).unwrap();
    assert!(together.iter().zip(&expected).all(|(a, b)| a.tokens() == b.tokens()));
    assert_eq!(session.load().kv_blocks_used, 3);
    drop(public);
    session.generate(Request::tokens([1]).max_tokens(1)).unwrap();
    assert_eq!(session.load().kv_blocks_used, 0);
}
