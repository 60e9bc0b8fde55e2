//! How texts are read: prompts and the tokenizer. On threads of their own, so a long text delays no step, and nobody
//! else's.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use super::job::{EncodeJob, EncodeMessage, Finish, Item, Wanted};
use crate::clock::Clock;
use crate::embed::{EmbedRequest, RerankRequest, TextPrompt};
use crate::engine::message::WorkerMessage;
use crate::engine::readers::{Arrived, Notify};
use crate::engine::receipts::About;
use crate::engine::status::Shared;
use crate::engine::{inspect, intake};
use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::memory::ledger::Accounts;
use crate::outcome::{FinishReason, RequestId, Timing};
use crate::privacy::receipt::Subject;
use crate::privacy::trace::Trace;
use crate::request::Prompt;
use crate::text::Text;

/// Values of the hidden states of a request: 1 GiB.
const MAX_VALUES: usize = 1 << 28;

/// What the checkpoint and the session say.
#[derive(Debug)]
pub struct Settings {
    /// Where a tokenizer was looked for.
    pub tokenizer_file: PathBuf,
    /// Tokens in the model's vocabulary; the tokenizer may have more.
    pub vocab: usize,
    /// Tokens of a text, special ones included.
    pub context: usize,
    /// Values of an embedding; none for a checkpoint that scores.
    pub width: Option<usize>,
    /// Values of a token's row.
    pub hidden: usize,
    pub normalize: bool,
    /// Scores of a text, if the checkpoint scores, and whether a sigmoid belongs to them.
    pub labels: usize,
    pub sigmoid: bool,
    pub include_prompt: bool,
    pub lower_case: bool,
    pub prompts: BTreeMap<String, String>,
    pub default_prompt: Option<String>,
}

/// What reads texts, on several threads at once.
pub struct EncodeReader {
    pub text: Option<Arc<Text>>,
    pub settings: Settings,
    pub shared: Arc<Shared>,
    pub clock: Arc<dyn Clock>,
    pub worker: Sender<WorkerMessage>,
    /// Names the session in request ids.
    pub session: u64,
}

/// Texts that were read.
#[derive(Default)]
struct Encoded {
    ids: Secret<[u32]>,
    items: Vec<Item>,
    truncated: usize,
}

impl EncodeReader {
    /// Reads what a caller asks. A caller that is gone has dropped what it asked for, and hears nothing.
    pub fn read(&self, ask: intake::IntakeMessage, arrived: Arrived) -> Notify {
        match ask {
            intake::IntakeMessage::Texts(ask) => self.take(*ask, arrived),
            intake::IntakeMessage::Inspect(inspection) => {
                inspection.answer(&self.worker, |wanted| self.guarded(|| self.inspected(wanted)))
            }
            intake::IntakeMessage::Submit(requests, answer) => {
                if arrived.room.is_ok() {
                    self.shared.requests.fetch_sub(requests.len(), Ordering::SeqCst);
                }
                let error = self.settings.wrong_task("generate");
                let nonces: Vec<_> = requests.iter().map(|(request, ..)| request.nonce).collect();
                drop(requests);
                let abouts =
                    nonces.into_iter().zip(arrived.first..).enumerate().map(|(index, (nonce, count))| {
                        let subject = Subject::Request { id: self.id(count) };
                        About::refused(subject, nonce, arrived.began, Trace::refusal_of(index, 0, &error))
                    });
                let (abouts, worker) = (abouts.collect(), self.worker.clone());
                Box::new(move |proof| {
                    let _ = worker.send(WorkerMessage::Over(abouts, Some(proof)));
                    let _ = answer.send(Err((0, error)));
                })
            }
            intake::IntakeMessage::Encode(request, answer) => {
                let error = self.settings.wrong_task("generate");
                let subject = Subject::Publish { id: self.id(self.shared.next_ids(1)) };
                let about = About::refused(subject, request.nonce, arrived.began, error.kind());
                drop(request);
                let worker = self.worker.clone();
                Box::new(move |proof| {
                    let _ = worker.send(WorkerMessage::Over(vec![about], Some(proof)));
                    let _ = answer.send(Err(error));
                })
            }
            intake::IntakeMessage::Rehearse(_, done) => {
                // what it refuses, or panics at, a request is told of
                let read = || self.text.as_ref().map(|text| text.encode("a", true, &mut Secret::default()));
                let _ = catch_unwind(AssertUnwindSafe(|| drop(read())));
                Box::new(move |_| {
                    let _ = done.send(());
                })
            }
        }
    }

    fn take(&self, ask: EncodeMessage, arrived: Arrived) -> Notify {
        let EncodeMessage { wanted, trace, ticket, answer } = ask;
        let Arrived { at: accepted, began, first, room, .. } = arrived;
        let common = wanted.common();
        let nonce = common.nonce;
        let until = common.timeout.and_then(|timeout| accepted.checked_add(timeout));
        let deadline = common.deadline.into_iter().chain(until).min();
        let has_room = room.is_ok();
        let read = self.guarded(|| {
            room?;
            self.encode(&wanted, &|| deadline.is_some_and(|deadline| deadline <= self.clock.now()))
        });
        let id = self.id(first);
        drop(wanted); // read, and overwritten
        match read {
            Ok((Encoded { ids, items, truncated }, finish, width)) => {
                trace.accepted(id, ids.expose().len(), 0);
                let mut values = Secret::<[f32]>::default();
                values.refill(std::iter::repeat_n(0.0, finish.rows(items.len(), ids.expose().len()) * width));
                let job = EncodeJob {
                    id,
                    trace,
                    ticket,
                    answer,
                    ids,
                    items,
                    truncated,
                    finish,
                    width,
                    values,
                    begun: 0,
                    accepted,
                    began,
                    nonce,
                    deadline,
                    accounts: Accounts::default(),
                    timing: Timing::default(),
                    failed: None,
                };
                let (job, worker) = (Box::new(job), self.worker.clone());
                Box::new(move |proof| {
                    let _ = worker.send(WorkerMessage::Texts(job, proof));
                })
            }
            Err(error) => {
                let about = About::refused(Subject::Request { id }, nonce, began, error.kind());
                if has_room {
                    self.shared.requests.fetch_sub(1, Ordering::SeqCst);
                }
                let worker = self.worker.clone();
                Box::new(move |proof| {
                    let _ = worker.send(WorkerMessage::Over(vec![about], Some(proof)));
                    let _ = answer.send(Err(error)); // the caller tells of it
                })
            }
        }
    }

    fn id(&self, count: u64) -> RequestId {
        RequestId { session: self.session, count }
    }

    /// Runs `act`; a panic in it poisons the session.
    fn guarded<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        if let Some(reason) = self.shared.poison.reason() {
            return Err(Error::Poisoned(reason));
        }
        catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
            let reason = crate::PoisonReason::Panic;
            self.shared.poison.set(reason);
            let _ = self.worker.send(WorkerMessage::Poison);
            Err(Error::Poisoned(reason))
        })
    }

    /// The ids that a text has when it is embedded or scored, without a prompt before it.
    fn inspected(&self, wanted: &inspect::Question) -> Result<inspect::Answer> {
        let inspect::Question::Ids(request) = wanted else {
            let asked = if matches!(wanted, inspect::Question::Text { .. }) { "detokenize" } else { "chat" };
            return Err(self.settings.wrong_task(asked));
        };
        let mut ids = Secret::<[u32]>::default();
        match &request.prompt {
            Prompt::Text(text) => {
                let (lowered, specials) =
                    (self.lowered(text.expose()), request.special_tokens.unwrap_or(true));
                self.text()?.encode_prompt(&lowered, request.literal, specials, &mut ids)?;
            }
            Prompt::Tokens(given) => ids.extend(given.expose()),
            Prompt::Chat(_) => return Err(self.settings.wrong_task("chat")),
        }
        Ok(inspect::Answer::Ids(ids))
    }

    fn encode(&self, wanted: &Wanted, late: &dyn Fn() -> bool) -> Result<(Encoded, Finish, usize)> {
        match wanted {
            Wanted::Embeddings(request) => self.texts(request, late),
            Wanted::Scores(request) => self.pairs(request, late),
        }
    }

    fn text(&self) -> Result<&Text> {
        let file = || self.settings.tokenizer_file.clone();
        self.text.as_deref().ok_or_else(|| Error::NoTokenizer { file: file() })
    }

    fn texts(&self, request: &EmbedRequest, late: &dyn Fn() -> bool) -> Result<(Encoded, Finish, usize)> {
        let settings = &self.settings;
        let Some(most) = settings.width else { return Err(settings.wrong_task("embed")) };
        let width = match request.hidden_states {
            true => settings.hidden,
            false => request.dimensions.unwrap_or(most),
        };
        if !request.hidden_states && !(1..=most).contains(&width) {
            return Err(Error::request("dimensions", format!("from 1 to {most}")));
        }
        let whole =
            [("dimensions", request.dimensions.is_some()), ("normalize", request.normalize.is_some())];
        if let Some((field, _)) = whole.into_iter().find(|(_, set)| *set && request.hidden_states) {
            return Err(Error::request(field, "left out: hidden states are what the layers give"));
        }
        let prompt = self.prompt(&request.prompt)?;
        let text = self.text()?;
        // the rows of the prompt, and of what is before it
        let mut skipped = 0;
        if !settings.include_prompt && !prompt.is_empty() && !request.hidden_states {
            let mut ids = Secret::<[u32]>::default();
            text.encode(&self.lowered(prompt), false, &mut ids)?;
            skipped = text.specials_before() + ids.expose().len();
        }
        let mut all = Encoded::default();
        for (index, each) in request.texts.iter().enumerate() {
            in_time(late)?;
            let mut with_prompt = Secret::<[u8]>::with_capacity(prompt.len() + each.expose().len());
            with_prompt.extend(prompt.as_bytes());
            with_prompt.extend(each.expose().as_bytes());
            let whole = Secret::<str>::from_utf8(with_prompt).expect("texts behind one another");
            let whole = self.lowered(whole.expose());
            let start = all.ids.expose().len();
            let read = text
                .encode_cut(&whole, settings.context, &mut all.ids)
                .and_then(|cut| self.check(cut, request.common.refuse_long, &all.ids.expose()[start..]));
            all.truncated += usize::from(read.map_err(in_batch(index))?);
            let tokens = all.ids.expose().len() - start;
            if request.hidden_states && all.ids.expose().len() > MAX_VALUES / width {
                let most = MAX_VALUES / width;
                return Err(Error::request(
                    "texts",
                    format!("of at most {most} tokens together, special ones included"),
                ));
            }
            let skipped = if skipped < tokens { skipped } else { 0 };
            all.items.push(Item { start, tokens, second: tokens, skipped });
        }
        let normalize = request.normalize.unwrap_or(settings.normalize);
        let finish = match request.hidden_states {
            true => Finish::HiddenStates,
            false => Finish::Embedding { normalize },
        };
        Ok((all, finish, width))
    }

    fn pairs(&self, request: &RerankRequest, late: &dyn Fn() -> bool) -> Result<(Encoded, Finish, usize)> {
        let settings = &self.settings;
        if settings.width.is_some() {
            return Err(settings.wrong_task("rerank"));
        }
        if settings.labels != 1 {
            let expected = format!("one label: that of the checkpoint has {}", settings.labels);
            return Err(Error::request("rerank", format!("asked of a model with {expected}")));
        }
        let text = self.text()?;
        let query = self.lowered(request.query.expose());
        let mut all = Encoded::default();
        for (index, document) in request.documents.iter().enumerate() {
            in_time(late)?;
            let start = all.ids.expose().len();
            let document = self.lowered(document.expose());
            let read = text.encode_pair(&query, &document, settings.context, &mut all.ids);
            let read = read.and_then(|(second, cut)| {
                let cut = self.check(cut, request.common.refuse_long, &all.ids.expose()[start..])?;
                Ok((second, cut))
            });
            let (second, cut) = read.map_err(in_batch(index))?;
            all.truncated += usize::from(cut);
            let tokens = all.ids.expose().len() - start;
            all.items.push(Item { start, tokens, second, skipped: 0 });
        }
        let sigmoid = settings.sigmoid && !request.raw;
        Ok((all, Finish::Score { sigmoid }, 1))
    }

    /// Whether a text was cut, unless that is refused, as are tokens that the model has not.
    fn check(&self, cut: bool, refuse_long: bool, ids: &[u32]) -> Result<bool> {
        if cut && refuse_long {
            let expected = format!("at most {} tokens long, special ones included", self.settings.context);
            return Err(Error::request("text", expected));
        }
        if ids.is_empty() {
            return Err(Error::request("text", "one that gives at least one token"));
        }
        let vocab = self.settings.vocab;
        if ids.iter().any(|&id| id as usize >= vocab) {
            return Err(Error::request("text", format!("one whose token ids are below vocab_size, {vocab}")));
        }
        Ok(cut)
    }

    fn prompt<'a>(&'a self, prompt: &'a TextPrompt) -> Result<&'a str> {
        let named = |name: &str| self.settings.prompts.get(name).map(String::as_str);
        match prompt {
            TextPrompt::Text(text) => Ok(text.expose()),
            TextPrompt::Default => Ok(self.settings.default_prompt.as_deref().and_then(named).unwrap_or("")),
            TextPrompt::Named(name) => named(name.expose()).ok_or_else(|| {
                let known: Vec<&str> = self.settings.prompts.keys().map(String::as_str).collect();
                Error::request("prompt_name", format!("one of the checkpoint's: {}", known.join(", ")))
            }),
        }
    }

    /// In small letters, if the checkpoint wants that.
    fn lowered<'a>(&self, text: &'a str) -> Lowered<'a> {
        if self.settings.lower_case {
            Lowered::Owned(Secret::new(text.to_lowercase()))
        } else {
            Lowered::Same(text)
        }
    }
}

/// A text, perhaps a copy of it.
enum Lowered<'a> {
    Same(&'a str),
    Owned(Secret<str>),
}

impl std::ops::Deref for Lowered<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Same(text) => text,
            Self::Owned(text) => text.expose(),
        }
    }
}

/// Ends the reading of a request whose time is over.
fn in_time(late: &dyn Fn() -> bool) -> Result<()> {
    if late() { Err(Error::Interrupted { finish_reason: FinishReason::Deadline }) } else { Ok(()) }
}

fn in_batch(index: usize) -> impl FnOnce(Error) -> Error {
    move |error| Error::InBatch { index, source: Box::new(error) }
}

impl Settings {
    fn wrong_task(&self, asked: &'static str) -> Error {
        let can = if self.width.is_some() { "embed" } else { "rerank" };
        Error::WrongTask { asked, can }
    }
}
