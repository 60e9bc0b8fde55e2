//! What callers ask of the tokenizer and the chat templates alone: ids of a prompt, text of ids, a prompt as its template
//! writes it. Read where requests are read, since that leaves content on the stack. Nothing is computed, so there is no
//! receipt.

use std::sync::mpsc::{Sender, SyncSender};

use super::intake::Intake;
use super::message::WorkerMessage;
use super::readers::Notify;
use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::request::{Prompt, Request};
use crate::text::{Detokenizer, Text};

/// A question.
#[derive(Debug)]
pub struct Inspection {
    pub question: Question,
    pub answer: SyncSender<Result<Answer>>,
}

/// What is asked.
#[derive(Debug)]
pub enum Question {
    /// The ids of a request's prompt.
    Ids(Box<Request>),
    /// The prompt of a chat.
    Prompt(Box<Request>),
    /// The text of ids.
    Text { ids: Secret<[u32]>, skip_special_tokens: bool },
}

/// What is answered.
#[derive(Debug)]
pub enum Answer {
    Ids(Secret<[u32]>),
    Text(Secret<str>),
}

impl Inspection {
    /// How many bytes are read.
    pub fn bytes(&self) -> usize {
        match &self.question {
            Question::Ids(request) | Question::Prompt(request) => request.prompt_bytes(),
            Question::Text { ids, .. } => size_of_val(ids.expose()),
        }
    }

    /// Answers with what `read` makes of the question, once nothing of it is on the stack any more, for which `worker`
    /// accounts.
    pub fn answer(
        self,
        worker: &Sender<WorkerMessage>,
        read: impl FnOnce(&Question) -> Result<Answer>,
    ) -> Notify {
        let (Self { question, answer }, worker) = (self, worker.clone());
        let read = read(&question);
        drop(question);
        Box::new(move |proof| {
            let _ = worker.send(WorkerMessage::Over(Vec::new(), Some(proof)));
            let _ = answer.send(read);
        })
    }
}

impl Intake {
    /// Reads a question.
    pub(super) fn inspect(&self, inspection: Inspection) -> Notify {
        inspection.answer(&self.worker, |question| self.guarded(|| self.inspected(question)))
    }

    fn inspected(&self, question: &Question) -> Result<Answer> {
        match question {
            Question::Ids(request) => {
                let mut ids = Secret::<[u32]>::default();
                self.read_prompt(request, &|_| Ok(()), &mut ids)?;
                Ok(Answer::Ids(ids))
            }
            Question::Prompt(request) => {
                let Prompt::Chat(messages) = &request.prompt else {
                    return Err(Error::request("messages", "those of a chat"));
                };
                Ok(Answer::Text(self.render(request, messages)?.text))
            }
            Question::Text { ids, skip_special_tokens } => {
                decode(self.text()?, ids.expose(), *skip_special_tokens).map(Answer::Text)
            }
        }
    }
}

fn decode(text: &Text, ids: &[u32], skip_special_tokens: bool) -> Result<Secret<str>> {
    let pieces = text.pieces();
    if ids.iter().any(|&id| id as usize >= pieces.size()) {
        return Err(Error::request("ids", format!("token ids below {}", pieces.size())));
    }
    let text = Detokenizer::decode(pieces, ids, skip_special_tokens);
    Ok(Secret::from_utf8(text).expect("a detokenizer gives whole characters"))
}
