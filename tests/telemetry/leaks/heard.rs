//! What the child prints, logs and tells, and the types that it showed.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use amnesic::Error;
use amnesic::privacy::Event;

use crate::recorder::Recorder;

/// What was printed, logged and said by panics in the child.
pub(super) static PRINTED: Mutex<String> = Mutex::new(String::new());
pub(super) static RECORDER: OnceLock<Recorder> = OnceLock::new();

struct Log;

/// All there is to hear, but what holds every character of a text: while anybody hears that, none is read.
pub(super) static ALL: AtomicBool = AtomicBool::new(false);

impl log::Log for Log {
    fn enabled(&self, of: &log::Metadata<'_>) -> bool {
        !of.target().starts_with("tokenizers") || of.level() < log::Level::Trace || ALL.load(Ordering::SeqCst)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        print(&format!("log {} {}", record.target(), record.args()));
    }

    fn flush(&self) {}
}

pub(super) fn print(text: &str) {
    let mut printed = PRINTED.lock().unwrap();
    printed.push_str(text);
    printed.push('\n');
}

/// Types whose `Debug`, and whose `Display`, was printed.
pub(super) static SHOWN: Mutex<[BTreeSet<String>; 2]> = Mutex::new([BTreeSet::new(), BTreeSet::new()]);

/// Remembers that a type was shown: `amnesic::request::Request`, without references and parameters.
fn note<T: ?Sized>(way: usize) {
    let name = std::any::type_name::<T>().trim_start_matches('&').split('<').next().unwrap();
    SHOWN.lock().unwrap()[way].insert(name.to_owned());
}

pub(super) fn show<T: Debug>(value: &T) {
    note::<T>(0);
    print(&format!("{value:?}"));
    print(&format!("{value:#?}"));
}

pub(super) fn show_error(error: &Error) {
    show(error);
    note::<Error>(1);
    print(&format!("{error} ({})", error.kind()));
    show_both(&error.kind());
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        print(&format!("{inner} {inner:?}"));
        source = inner.source();
    }
}

pub(super) fn show_event(event: &Event) {
    show(event);
    match event {
        Event::Accepted(inner) => {
            show(inner);
            show(&inner.asked);
        }
        Event::Refused(inner) => show(inner),
        Event::FirstToken(inner) => show(inner),
        Event::Ended(inner) => show(inner),
        Event::Failed(inner) => show(inner),
        Event::SessionOpened(inner) => show(inner),
        Event::SessionClosed(inner) => show(inner),
        _ => {}
    }
}

pub(super) fn show_both<T: Debug + Display>(value: &T) {
    show(value);
    note::<T>(1);
    print(&value.to_string());
}

pub(super) fn listen() {
    let recorder = RECORDER.get_or_init(Recorder::default).clone();
    tracing::subscriber::set_global_default(recorder).unwrap();
    log::set_logger(&Log).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    // before it comes the one that the standard library has, which writes to stderr
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(&format!("panic {info}"));
        before(info);
    }));
}
