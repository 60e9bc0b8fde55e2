//! How requests are read: chat templates, tokenizer, grammars. On threads of their own ([`super::readers`]), so a long
//! prompt delays no step, and nobody else's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, SyncSender};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use super::inspect::Inspection;
use super::job::Job;
use super::mailbox::Outbox;
use super::masks::GrammarState;
use super::message::{Message, Prepared};
use super::readers::{Arrived, Lane, Tell};
use super::receipts::About;
use super::scheduler::{Arrival, Id, Owner, Prefix};
use super::sequence::{Common, Sequence};
use super::status::Shared;
use super::thinking::{Ending, Thinking};
use crate::chat::{
    self, ChatInput, PromptOptions, ReasoningEnd, Rendered, Style, Templates, Tool, ToolCallParser,
};
use crate::clock::Clock;
use crate::error::{Error, Result, Returned};
use crate::grammar::{Grammars, ReplyForm, ResponseFormat, ToolChoice};
use crate::lease::PrefixHandle;
use crate::memory::Secret;
use crate::memory::ledger::Accounts;
use crate::model::decoder::Limits;
use crate::outcome::{RequestId, Timing, Usage};
use crate::privacy::receipt::Subject;
use crate::privacy::trace::Trace;
use crate::request::{ConstrainFrom, Prompt, Request, Speculation};
use crate::sample::{Logprobs, Sampling};
use crate::text::{Pieces, Text, stop};

/// What the checkpoint and the session say where a request is silent.
#[derive(Debug)]
pub struct Defaults {
    /// From generation_config.json, if that samples; else greedy.
    pub sampling: Sampling,
    /// End tokens from both config files.
    pub eos: Vec<u32>,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Where a tokenizer was looked for.
    pub tokenizer_file: PathBuf,
    /// How calls of tools are written, if not as the chat template teaches.
    pub parser: Option<ToolCallParser>,
    /// Whether there is a draft model.
    pub draft: bool,
    /// Names of adapters, in their order.
    pub adapters: Vec<String>,
    /// Requests that may be in the session at once.
    pub max_requests: usize,
    pub limits: Limits,
}

/// What callers ask for.
#[derive(Debug)]
pub enum IntakeMessage {
    /// Requests that come in together: all are accepted, or none; told once, an error with its place.
    Submit(Vec<(Request, Outbox, Trace)>, SyncSender<std::result::Result<(), (usize, Error)>>),
    /// The ids of a prompt that is to be public.
    Encode(Box<Request>, SyncSender<Result<Secret<[u32]>>>),
    /// Ids or text, of which nothing is computed.
    Inspect(Box<Inspection>),
    /// Texts to embed or to score.
    Texts(Box<super::encode::job::Ask>),
    /// Nothing: what requests of this lane are made of is read once, and dropped. See [`super::readers::Readers::rehearse`].
    Rehearse(Lane, SyncSender<()>),
}

/// Bytes of prompts up to which they are read in the quick lane: a millisecond or two.
const QUICK_BYTES: usize = 16 << 10;

impl IntakeMessage {
    /// Where it is read. Decided by sizes alone.
    pub fn lane(&self) -> Lane {
        let quick = match self {
            Self::Submit(requests, _) => {
                let bytes: usize = requests.iter().map(|(request, ..)| request.prompt_bytes()).sum();
                bytes <= QUICK_BYTES && requests.iter().all(|(request, ..)| request.reads_quickly())
            }
            Self::Encode(request, _) => request.prompt_bytes() <= QUICK_BYTES,
            Self::Inspect(inspection) => inspection.bytes() <= QUICK_BYTES,
            Self::Texts(ask) => ask.wanted.bytes() <= QUICK_BYTES,
            Self::Rehearse(lane, _) => return *lane,
        };
        if quick { Lane::Quick } else { Lane::Slow }
    }

    /// How many requests it is.
    pub fn requests(&self) -> usize {
        match self {
            Self::Submit(requests, _) => requests.len(),
            Self::Encode(..) | Self::Inspect(_) | Self::Rehearse(..) => 0,
            Self::Texts(_) => 1,
        }
    }
}

/// What reads requests, on several threads at once.
pub struct Intake {
    pub text: Option<Arc<Text>>,
    pub templates: Option<Templates>,
    /// Characters with which control tokens begin or end: see [`chat::edges`].
    pub edges: Vec<char>,
    pub vocabulary: Option<Vocabulary>,
    pub defaults: Defaults,
    /// Bytes of the longest token.
    pub longest_token: usize,
    pub shared: Arc<Shared>,
    pub clock: Arc<dyn Clock>,
    pub worker: Sender<Message>,
    /// Names the session in request ids.
    pub session: u64,
}

/// What reading requests needs to know of all tokens at once. Worked out when the session opens: if the first request
/// that needs it did that, the next one could tell from its own time that there had been one.
#[derive(Debug)]
pub struct Vocabulary {
    grammars: Grammars,
    /// Tokens at which DRY stops when a request names none.
    breakers: Arc<Secret<[u32]>>,
}

impl Vocabulary {
    /// For a model of `vocab` tokens, of which `end_tokens` end a reply. Takes some 0.2 s for 150,000.
    pub fn new(pieces: &Pieces, vocab: usize, end_tokens: &[u32]) -> Self {
        let grammars = Grammars::new(pieces, vocab, end_tokens);
        Self { grammars, breakers: Arc::new(tokens_with(pieces, vocab, &BREAKERS)) }
    }

    /// Counts grammars that are compiled in `count`.
    #[cfg(feature = "testing")]
    pub fn count_compiled(&mut self, count: &Arc<std::sync::atomic::AtomicU64>) {
        self.grammars.compiled = count.clone();
    }
}

/// Whether no turn was before it: neither of its conversation nor, in a chat that is sent whole, in its messages.
#[cfg(feature = "debug-sampler")]
fn begins(request: &Request) -> bool {
    let turns = request.prefix.as_ref().filter(|reuse| !reuse.public);
    let first = turns
        .is_none_or(|reuse| reuse.ids.lock().unwrap_or_else(PoisonError::into_inner).expose().is_empty());
    let answered = match &request.prompt {
        Prompt::Chat(messages) => messages.iter().any(|message| message.role() == chat::Role::Assistant),
        Prompt::Text(_) | Prompt::Tokens(_) => false,
    };
    first && !answered
}

/// Tokens whose text holds one of `texts`, rising.
fn tokens_with(pieces: &Pieces, vocab: usize, texts: &[&str]) -> Secret<[u32]> {
    let holds = |id: &u32| {
        let bytes = pieces.bytes(*id);
        texts.iter().any(|text| stop::find(bytes, text.as_bytes()).is_some())
    };
    let mut ids = Secret::<[u32]>::default();
    (0..vocab as u32).filter(holds).for_each(|id| ids.push(id));
    ids
}

/// The place of one request among all, and when its time is over.
struct Place {
    request: RequestId,
    id: Id,
    clock: u64,
    accepted: Instant,
    began: SystemTime,
    deadline: Option<Instant>,
}

/// A prompt that was read.
struct Encoded {
    ids: Secret<[u32]>,
    /// What of it may be in the cache.
    prefix: Option<Prefix>,
    /// How replies to a chat are written.
    style: Option<Style>,
    /// What comes before the reply follows its format.
    thinking: Option<Thinking>,
}

/// Where DRY's repetitions begin anew, as in llama.cpp.
const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

impl Intake {
    /// Reads what a caller asks. A caller that is gone has dropped what it asked for, and hears nothing.
    pub fn read(&self, ask: IntakeMessage, arrived: Arrived) -> Tell {
        let worker = self.worker.clone();
        match ask {
            IntakeMessage::Submit(requests, answer) => self.submit(requests, arrived, answer),
            IntakeMessage::Encode(request, answer) => {
                let nonce = request.nonce;
                let subject = Subject::Publish { id: self.id(self.shared.next_ids(1)) };
                let ids = self.guarded(|| self.encode(&request).map(|encoded| encoded.ids));
                drop(request);
                let about = match &ids {
                    Ok(_) => About::completed(subject, nonce, arrived.began),
                    Err(error) => About::refused(subject, nonce, arrived.began, error.kind()),
                };
                Box::new(move |proof| {
                    let _ = worker.send(Message::Over(vec![about], Some(proof)));
                    let _ = answer.send(ids);
                })
            }
            IntakeMessage::Inspect(inspection) => self.inspect(*inspection),
            IntakeMessage::Texts(ask) => {
                let asked = match ask.wanted {
                    super::encode::job::Wanted::Embeddings(_) => "embed",
                    super::encode::job::Wanted::Scores(_) => "rerank",
                };
                if arrived.room.is_ok() {
                    self.shared.requests.fetch_sub(1, Ordering::SeqCst);
                }
                let error = Error::WrongTask { asked, can: "generate" };
                let (nonce, subject) =
                    (ask.wanted.common().nonce, Subject::Request { id: self.id(arrived.first) });
                let answer = ask.answer;
                drop(ask.wanted);
                let about = About::refused(subject, nonce, arrived.began, error.kind());
                Box::new(move |proof| {
                    let _ = worker.send(Message::Over(vec![about], Some(proof)));
                    let _ = answer.send(Err(error));
                })
            }
            IntakeMessage::Rehearse(lane, done) => {
                // a panic, too, is for the request that meets it
                let _ = catch_unwind(AssertUnwindSafe(|| self.rehearse(lane)));
                Box::new(move |_| {
                    let _ = done.send(());
                })
            }
        }
    }

    /// Reads a text and a chat, and in the slow lane a grammar. Whatever this checkpoint refuses of that, a request that asks
    /// for it is told.
    fn rehearse(&self, lane: Lane) {
        drop(self.encode(&Request::prompt("a")));
        drop(self.encode(&Request::chat([chat::user("a")])));
        if let (Lane::Slow, Some(vocabulary)) = (lane, &self.vocabulary) {
            drop(vocabulary.grammars.compile(&ResponseFormat::json_object(), 1));
        }
    }

    fn submit(
        &self,
        requests: Vec<(Request, Outbox, Trace)>,
        arrived: Arrived,
        answer: SyncSender<std::result::Result<(), (usize, Error)>>,
    ) -> Tell {
        let (count, worker) = (requests.len(), self.worker.clone());
        let mut prepared = Vec::with_capacity(count);
        let (began, has_room) = (arrived.began, arrived.room.is_ok());
        let mut refused = arrived.room.err().map(|error| (0, error));
        // Of requests for which there is no room nothing was read: they go back to their caller.
        let mut returned = Vec::new();
        let named: Vec<_> = (arrived.first..)
            .zip(&requests)
            .map(|(count, (request, ..))| (self.id(count), request.nonce))
            .collect();
        for (index, (request, outbox, trace)) in requests.into_iter().enumerate() {
            if refused.is_none() {
                let until = request.timeout.and_then(|timeout| arrived.at.checked_add(timeout));
                let place = Place {
                    request: named[index].0,
                    id: arrived.first_id + index as u64,
                    clock: arrived.clock,
                    accepted: arrived.at,
                    began,
                    deadline: request.deadline.into_iter().chain(until).min(),
                };
                match self.guarded(|| self.prepare(request, outbox, trace, &place)) {
                    Ok(request) => prepared.push(request),
                    Err(error) => refused = Some((index, error)),
                }
            } else if !has_room {
                returned.push(request);
            }
        }
        if let Some((_, Error::Busy { requests, .. })) = &mut refused {
            let count = returned.len();
            *requests = Returned::new(returned, count);
        }
        let Some(refusal) = refused else {
            for Prepared { job, sequence, .. } in &prepared {
                job.trace.accepted(job.id, job.usage.prompt_tokens, sequence.sampling.seed);
            }
            return Box::new(move |proof| {
                let _ = worker.send(Message::Accept(prepared, proof));
                let _ = answer.send(Ok(()));
            });
        };
        drop(prepared);
        let abouts = named.into_iter().enumerate().map(|(index, (id, nonce))| {
            let error = Trace::refusal_of(index, refusal.0, &refusal.1);
            About::refused(Subject::Request { id }, nonce, began, error)
        });
        let abouts = abouts.collect();
        if has_room {
            self.shared.requests.fetch_sub(count, Ordering::SeqCst);
        }
        Box::new(move |proof| {
            let _ = worker.send(Message::Over(abouts, Some(proof)));
            let _ = answer.send(Err(refusal));
        })
    }

    /// Runs `act`; a panic in it poisons the session.
    pub(super) fn guarded<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        if let Some(reason) = self.shared.poison.reason() {
            return Err(Error::Poisoned(reason));
        }
        catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
            let reason = crate::PoisonReason::Panic;
            self.shared.poison.set(reason);
            let _ = self.worker.send(Message::Poison);
            Err(Error::Poisoned(reason))
        })
    }

    fn id(&self, count: u64) -> RequestId {
        RequestId { session: self.session, count }
    }

    /// Encodes a request, and fills in what it left open.
    fn prepare(&self, mut request: Request, outbox: Outbox, trace: Trace, place: &Place) -> Result<Prepared> {
        #[cfg(feature = "testing")]
        request.taps.read();
        let Encoded { ids, prefix, style, thinking } = self.encode(&request)?;
        let visible = style.as_ref().map_or_else(Arc::default, |style| self.visible(style));
        let calls = self.calls(&request, style.as_ref())?;
        outbox.set_style(style);
        let format = calls.as_ref().unwrap_or(&request.format);
        let (prompt_tokens, context) = (ids.expose().len(), self.defaults.limits.context);
        let asked = request.max_tokens.unwrap_or(1);
        if prompt_tokens.checked_add(asked).is_none_or(|tokens| tokens > context) {
            return Err(Error::ContextLength { prompt_tokens, max_tokens: asked, context });
        }
        let max_tokens = request.most_tokens(context - prompt_tokens);
        request.logit_bias.check_ids(self.defaults.vocab)?;
        if matches!(request.speculation, Some(Speculation::Draft { .. })) && !self.defaults.draft {
            return Err(Error::request(
                "speculate",
                "without a draft checkpoint, prompt lookup: see Builder::draft",
            ));
        }
        let choices = request.choices();
        let adapter = self.adapter(&request)?;
        let mut guides = self
            .guides((&request, format), &outbox, choices, place.deadline, thinking)?
            .into_iter()
            .map(Box::new);
        let sampling = request.sampling.over(&self.defaults.sampling, getrandom::u64().unwrap_or(0));
        (0..choices).for_each(|choice| {
            outbox.output(choice, |output| {
                output.seed = sampling.seed.wrapping_add(choice as u64);
                output.without_text = self.text.is_none();
                output.logprobs = Logprobs::new(request.logprobs.unwrap_or(0));
            });
        });
        outbox.prompt_logprobs(|out| *out = Logprobs::new(request.prompt_logprobs.unwrap_or(0)));
        #[cfg(feature = "debug-sampler")]
        let begins = begins(&request);
        let mut sequence = self.sequence(&mut request, ids, sampling, (max_tokens, adapter, visible))?;
        sequence.guide = guides.next();
        let unborn = (1..choices).map(|choice| (choice, guides.next())).collect();
        let guided = sequence.guide.is_some();
        let usage = Usage { prompt_tokens, ..Usage::default() };
        let job = Job {
            id: place.request,
            trace,
            outbox,
            usage,
            accepted: place.accepted,
            began: place.began,
            nonce: request.nonce,
            captures: 0,
            #[cfg(feature = "debug-sampler")]
            begins,
            accounts: Accounts::default(),
            deadline: place.deadline,
            timing: Timing::default(),
            members: Vec::with_capacity(choices),
            unborn,
            guided,
            reuse: request.prefix.take(),
            adapter: request.adapter.take(),
            failed: None,
        };
        let outputs_from = if request.prompt_logprobs.is_some() { 0 } else { prompt_tokens - 1 };
        let conversation = job.reuse.as_ref().filter(|reuse| !reuse.public);
        let conversation = conversation.map(|reuse| Owner::Conversation(reuse.lease.key));
        let arrival = Arrival {
            clock: Some(place.clock),
            handicap: request.priority.handicap(),
            known: prompt_tokens,
            outputs_from,
            prefix,
            owner: request.tenant.map(|tenant| Owner::Tenant(tenant.0)).or(conversation),
        };
        Ok(Prepared { id: place.id, job: Box::new(job), sequence, arrival })
    }

    fn sequence(
        &self,
        request: &mut Request,
        ids: Secret<[u32]>,
        sampling: Sampling,
        (max_tokens, adapter, visible): (usize, Option<u32>, Arc<Vec<u32>>),
    ) -> Result<Sequence> {
        let pieces = self.text.as_deref().map(Text::pieces);
        let starts = pieces.is_some_and(|pieces| ids.expose().iter().all(|&id| pieces.is_special(id)));
        let mut end_tokens = std::mem::take(&mut request.stop_tokens);
        if !request.ignore_eos {
            end_tokens.extend(&self.defaults.eos);
        }
        // a special token gives no text in which a stop string could be found
        let named = |stop: &Secret<str>| self.text.as_deref()?.special(stop.expose().trim());
        request.stop.iter().filter_map(named).for_each(|id| end_tokens.push(id));
        let breakers = match &sampling.dry {
            None => Arc::default(),
            Some(_) => self.breakers(request.breakers.as_deref()),
        };
        let common = Common {
            prompt_tokens: ids.expose().len(),
            max_tokens,
            end_tokens,
            bias: std::mem::take(&mut request.logit_bias),
            breakers,
            stops: Arc::new(std::mem::take(&mut request.stop)),
            visible,
            logprobs: request.logprobs.is_some(),
            prompt_logprobs: request.prompt_logprobs.is_some(),
            speculation: request.speculation,
            adapter,
            starts,
        };
        let pieces = self.text.as_deref().map(Text::pieces);
        #[cfg_attr(
            not(feature = "forensics"),
            expect(unused_mut, reason = "only who searches memory asks for gates")
        )]
        let mut sequence = Sequence::new(ids, sampling, Arc::new(common), pieces);
        #[cfg(feature = "forensics")]
        {
            sequence.gates = std::mem::take(&mut request.gates);
        }
        #[cfg(feature = "testing")]
        {
            sequence.taps = std::mem::take(&mut request.taps);
        }
        Ok(sequence)
    }

    /// The number of the adapter that it names.
    fn adapter(&self, request: &Request) -> Result<Option<u32>> {
        let Some(name) = &request.adapter else { return Ok(None) };
        let found = self.defaults.adapters.iter().position(|known| known == name);
        found.map(|index| Some(index as u32)).ok_or_else(|| {
            // which others there are is nothing to tell: their names may be those of other tenants
            Error::request("adapter", "the name of one of the session's adapters: see Builder::adapter")
        })
    }

    /// Tokens at which DRY stops: those whose text holds one of `texts`.
    fn breakers(&self, texts: Option<&[Secret<str>]>) -> Arc<Secret<[u32]>> {
        let (Some(text), Some(vocabulary)) = (&self.text, &self.vocabulary) else { return Arc::default() };
        let Some(texts) = texts else { return vocabulary.breakers.clone() };
        let texts: Vec<&str> = texts.iter().map(Secret::expose).collect();
        Arc::new(tokens_with(text.pieces(), self.defaults.vocab, &texts))
    }

    /// The form of a reply whose calls of tools are not left to the model.
    fn calls(&self, request: &Request, style: Option<&Style>) -> Result<Option<ResponseFormat>> {
        let (calls, tools) = (&request.chat.calls, &request.chat.tools);
        if tools.is_empty() || !calls.need_grammar() {
            return Ok(None);
        }
        let Some((style, parser)) = style.and_then(|style| Some((style, style.parser()?))) else {
            let field = match (&calls.choice, calls.strict) {
                (ToolChoice::Auto, true) => "strict_tools",
                (ToolChoice::Auto, false) => "parallel_tool_calls",
                _ => "tool_choice",
            };
            let expected =
                "left to the model: neither the chat template nor the tokens tell how calls are written";
            return Err(Error::request(field, expected));
        };
        let vocabulary = self.vocabulary.as_ref().ok_or_else(|| self.no_tokenizer())?;
        let first = request.chat.constrain == Some(ConstrainFrom::FirstToken);
        let reply = ReplyForm {
            parser,
            mark: &|mark| vocabulary.grammars.mark(mark),
            answer: style.answer_marks(),
            reasoning: self.spelled_reasoning(request, style),
            thinks: !first,
            inside: style.begins_inside(),
            answers: style.begins_answer(),
        };
        calls.format(tools.iter().map(Tool::definition), &reply).map(Some)
    }

    /// A grammar for each choice: compiled once, and copied. None where the request's time is over: the worker ends it
    /// before it draws a token.
    fn guides(
        &self,
        (request, format): (&Request, &ResponseFormat),
        outbox: &Outbox,
        choices: usize,
        deadline: Option<Instant>,
        thinking: Option<Thinking>,
    ) -> Result<Vec<GrammarState>> {
        let late = || deadline.is_some_and(|deadline| deadline <= self.clock.now());
        if format.is_text() || late() {
            return Ok(Vec::new());
        }
        let vocabulary = self.vocabulary.as_ref().ok_or_else(|| self.no_tokenizer())?;
        let Some(mut begun) = vocabulary.grammars.compile(format, choices)? else {
            return Ok(Vec::new());
        };
        outbox.set_not_enforced(std::mem::take(&mut begun.not_enforced));
        let mut first = GrammarState::new(begun);
        if let Some(thinking) = thinking {
            // a call of a tool ends the reply as well, unless the grammar is that of the call
            let holds = request.chat.tools.is_empty() || request.chat.calls.need_grammar();
            first.think_before(thinking, holds);
        }
        #[cfg(feature = "testing")]
        first.tap(&request.taps);
        let mut guides = Vec::with_capacity(choices);
        for _ in 1..choices {
            if late() {
                return Ok(Vec::new());
            }
            guides.push(first.fork());
        }
        guides.insert(0, first);
        Ok(guides)
    }

    /// Refuses what can never fit before it spends time on it.
    fn check_length(&self, prompt: &str) -> Result<()> {
        // a normalizer may drop some of a text, so not the longest token alone
        const SLACK: usize = 4;
        let most = self.defaults.limits.context.saturating_mul(SLACK * self.longest_token);
        if prompt.len() > most {
            return Err(Error::request(
                "prompt",
                format!("at most {most} bytes for this context and vocabulary"),
            ));
        }
        Ok(())
    }

    pub(super) fn text(&self) -> Result<&Text> {
        self.text.as_deref().ok_or_else(|| self.no_tokenizer())
    }

    fn no_tokenizer(&self) -> Error {
        Error::NoTokenizer { file: self.defaults.tokenizer_file.clone() }
    }

    /// Reads the whole prompt.
    fn encode(&self, request: &Request) -> Result<Encoded> {
        let reuse = request.prefix.as_ref();
        // never while it reads: those who share a public prompt would wait for each other
        fn before(reuse: &PrefixHandle) -> MutexGuard<'_, Secret<[u32]>> {
            reuse.ids.lock().unwrap_or_else(PoisonError::into_inner)
        }
        let mut ids = Secret::<[u32]>::default();
        // a conversation goes on behind all that was before, but for a chat: its template writes all of it again
        let goes_on = |reuse: &&PrefixHandle| !reuse.public && !matches!(request.prompt, Prompt::Chat(_));
        if let Some(reuse) = reuse.filter(goes_on) {
            ids.extend(before(reuse).expose());
        }
        let (style, thinking) = self.read_prompt(request, &|text| self.check_length(text), &mut ids)?;
        if ids.expose().is_empty() {
            return Err(Error::request("prompt", "a text that gives at least one token"));
        }
        if ids.expose().iter().any(|&id| id as usize >= self.defaults.vocab) {
            return Err(Error::request("prompt", format!("token ids below {}", self.defaults.vocab)));
        }
        let prefix = reuse.map(|reuse| {
            let before = before(reuse);
            let common = ids.expose().iter().zip(before.expose()).take_while(|(a, b)| a == b).count();
            // keys and values of another adapter are others
            let common = if *reuse.adapter.lock().unwrap_or_else(PoisonError::into_inner) == request.adapter {
                common
            } else {
                0
            };
            Prefix { key: reuse.lease.key, tokens: common }
        });
        Ok(Encoded { ids, prefix, style, thinking })
    }

    /// Where a chat's reply begins to follow its format: how it is written then, what stands behind the prompt for that, and
    /// what comes before it.
    fn begin_format(
        &self,
        request: &Request,
        style: Style,
    ) -> Result<(Style, &'static str, Option<Thinking>)> {
        let calls = request.chat.calls.need_grammar() && !request.chat.tools.is_empty();
        if request.format.is_text() && !calls {
            return Ok((style, "", None));
        }
        let asked = request.chat.constrain;
        // the grammar of calls has the channels in it
        if asked == Some(ConstrainFrom::WholeReply) || calls && style.has_channels() {
            return Ok((style, "", None));
        }
        // so it has marks of reasoning that are no tokens
        if calls && self.spelled_reasoning(request, &style).is_some() {
            return Ok((style, "", None));
        }
        if asked != Some(ConstrainFrom::FirstToken) && !style.is_closed() {
            let ending = style.reasoning_end().and_then(|end| Ending::of(end, |mark| self.ids_of(mark)));
            if let Some(thinking) = ending.and_then(|ending| Thinking::new(ending, style.waits_for_answer()))
            {
                return Ok((style, "", Some(thinking)));
            }
            if asked.is_some() {
                let expected = "from the first token on: the chat template has no marks of reasoning that are \
                                tokens of the vocabulary";
                return Err(Error::request("constrain_from", expected));
            }
        }
        let header = style.answer_header();
        Ok((style.without_reasoning(), header, None))
    }

    /// The marks of a chat's reasoning that calls may stand behind, where its end is not one token.
    fn spelled_reasoning(
        &self,
        request: &Request,
        style: &Style,
    ) -> Option<(&'static [&'static str], &'static str)> {
        // marks that are no tokens are no sure sign of a model that thinks: the prompt or the request has to say so
        let thinks = match request.chat.constrain {
            None => style.begins_inside(),
            Some(from) => from == ConstrainFrom::EndOfReasoning && !style.is_closed(),
        };
        if !thinks {
            return None;
        }
        match style.reasoning_end()? {
            ReasoningEnd::Mark { opens, close } if self.ids_of(close).len() != 1 => Some((opens, close)),
            _ => None,
        }
    }

    /// The tokens of a mark.
    fn ids_of(&self, mark: &str) -> Vec<u32> {
        let Some(text) = self.text.as_deref() else { return Vec::new() };
        let mut ids = Secret::<[u32]>::default();
        if text.encode(mark, false, &mut ids).is_err() {
            return Vec::new();
        }
        ids.expose().to_vec()
    }

    /// Special tokens that the replies to a chat show: marks of tool calls and of reasoning.
    fn visible(&self, style: &Style) -> Arc<Vec<u32>> {
        let markers = style.markers();
        Arc::new(markers.iter().filter_map(|marker| self.text.as_deref()?.special(marker)).collect())
    }

    /// Appends the ids of a request's prompt, whose text `check` may refuse before it is encoded. Of a chat, says how
    /// replies are written, and what comes before the reply's format holds.
    pub(super) fn read_prompt(
        &self,
        request: &Request,
        check: &dyn Fn(&str) -> Result<()>,
        ids: &mut Secret<[u32]>,
    ) -> Result<(Option<Style>, Option<Thinking>)> {
        match &request.prompt {
            Prompt::Text(prompt) => {
                let (text, prompt) = (self.text()?, prompt.expose());
                check(prompt)?;
                let specials = ids.expose().is_empty() && request.special_tokens.unwrap_or(true);
                text.encode_prompt(prompt, request.literal, specials, ids)?;
                Ok((None, None))
            }
            Prompt::Tokens(given) => {
                ids.extend(given.expose());
                Ok((None, None))
            }
            Prompt::Chat(messages) => {
                let Rendered { text: prompt, literal } = self.render(request, messages)?;
                let template = request.chat.template.as_ref().map(|name| name.expose());
                let parser = request.chat.parser.or(self.defaults.parser);
                let style = self
                    .templates()?
                    .style(template, !request.chat.tools.is_empty())
                    .with_tools(&request.chat.tools, parser, |token| self.ids_of(token).len() == 1)
                    .after(prompt.expose());
                let (style, header, thinking) = self.begin_format(request, style)?;
                let prompt = prompt.followed_by(header);
                check(prompt.expose())?;
                self.text()?.encode_chat(prompt.expose(), &literal, ids)?;
                Ok((Some(style), thinking))
            }
        }
    }

    fn templates(&self) -> Result<&Templates> {
        let file = &self.defaults.tokenizer_file;
        let folder = || file.parent().unwrap_or(file).to_owned();
        self.templates.as_ref().ok_or_else(|| Error::NoChatTemplate { folder: folder() })
    }

    /// The prompt of a chat, and what of it is literal.
    pub(super) fn render(&self, request: &Request, messages: &[chat::Message]) -> Result<Rendered> {
        let continues = request.chat.continues;
        let input = ChatInput {
            messages,
            tools: &request.chat.tools,
            template: request.chat.template.as_ref().map(|name| name.expose()),
            add_generation_prompt: request.chat.generation_prompt.unwrap_or(!continues),
            variables: &request.chat.variables,
        };
        let options = PromptOptions { all_literal: request.literal, continues, edges: &self.edges };
        self.templates()?.render_parts(&input, options, self.clock.wall())
    }
}

#[cfg(all(test, feature = "debug-sampler"))]
mod tests {
    use super::*;
    use crate::chat::{assistant, system, user};

    #[test]
    fn a_chat_that_was_answered_is_no_first_turn() {
        assert!(begins(&Request::prompt("a text")) && begins(&Request::tokens([1])));
        assert!(begins(&Request::chat([system("be kind"), user("hello")])));
        assert!(!begins(&Request::chat([user("hello"), assistant("hello"), user("and?")])));
    }
}
