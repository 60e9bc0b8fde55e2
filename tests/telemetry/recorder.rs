//! A subscriber that writes down all it is told: every span, event, field and value, as text.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

thread_local! {
    /// The spans that this thread has entered.
    static ENTERED: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
}

/// Clones write into the same lines.
#[derive(Clone, Default)]
pub struct Recorder {
    lines: Arc<Mutex<Vec<String>>>,
    ids: Arc<AtomicU64>,
    /// How many hold each span.
    owners: Arc<Mutex<HashMap<u64, usize>>>,
}

impl Recorder {
    /// What was told so far, a line for each time.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// For each span of a name, in order: the lines of its fields, from its beginning to its close.
    pub fn spans(&self, name: &str) -> Vec<Vec<String>> {
        let lines = self.lines();
        let begins =
            lines.iter().filter(|line| line.starts_with("span ") && line.contains(&format!(" {name} ")));
        begins
            .map(|line| {
                let id = line.split(' ').nth(1).unwrap();
                let mine = |line: &&String| {
                    ["span", "record", "close"].iter().any(|kind| line.starts_with(&format!("{kind} {id} ")))
                };
                lines.iter().filter(mine).cloned().collect()
            })
            .collect()
    }

    fn write(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        write!(self.0, " {}={value}", field.name()).unwrap();
    }
}

fn parent(explicit: Option<&Id>, contextual: bool) -> u64 {
    let current = || ENTERED.with_borrow(|entered| entered.last().cloned());
    let id = explicit.cloned().or_else(|| contextual.then(current).flatten());
    id.map_or(0, |id| id.into_u64())
}

impl Subscriber for Recorder {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = self.ids.fetch_add(1, Ordering::SeqCst) + 1;
        let (of, below) = (span.metadata(), parent(span.parent(), span.is_contextual()));
        let mut fields = Fields(String::new());
        span.record(&mut fields);
        self.owners.lock().unwrap().insert(id, 1);
        self.write(format!("span {id} below {below} {} {} {}", of.target(), of.name(), fields.0));
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut fields = Fields(String::new());
        values.record(&mut fields);
        self.write(format!("record {} {}", span.into_u64(), fields.0));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let (of, below) = (event.metadata(), parent(event.parent(), event.is_contextual()));
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.write(format!("event below {below} {} {}{}", of.target(), of.level(), fields.0));
    }

    fn enter(&self, span: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(span.clone()));
    }

    fn exit(&self, _: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.pop());
    }

    fn clone_span(&self, span: &Id) -> Id {
        *self.owners.lock().unwrap().get_mut(&span.into_u64()).unwrap() += 1;
        span.clone()
    }

    fn try_close(&self, span: Id) -> bool {
        let id = span.into_u64();
        let mut owners = self.owners.lock().unwrap();
        let left = owners.get_mut(&id).unwrap();
        *left -= 1;
        let closed = *left == 0;
        if closed {
            self.write(format!("close {id} "));
        }
        closed
    }
}
