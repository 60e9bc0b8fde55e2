//! One line for each HTTP request: what it cost and how it ended. Metadata only: no content, no address, no header, and
//! of the path only the route that matched.

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use amnesic::Usage;
use axum::http::{HeaderName, HeaderValue};

/// What is known of one HTTP request. Its last owner drops it when the response is over, and that writes the line.
#[derive(Debug)]
pub struct Record {
    /// Names the request: a number drawn when the program started, and a count.
    pub id: String,
    route: String,
    start: Instant,
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    status: Option<u16>,
    usage: Option<Usage>,
    finish: Option<String>,
    /// Fields of the request that were ignored. Not in the line: a client may name them as it likes.
    ignored: Vec<String>,
    not_enforced: Vec<&'static str>,
}

impl Record {
    /// `route` as the router spells it.
    pub fn new(route: &str) -> Self {
        static PROGRAM: OnceLock<u64> = OnceLock::new();
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let program = PROGRAM.get_or_init(|| RandomState::new().hash_one(0));
        let id = format!("{program:016x}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Self { id, route: route.to_owned(), start: Instant::now(), facts: Mutex::default() }
    }

    /// The response's status.
    pub fn status(&self, status: u16) {
        self.facts().status = Some(status);
    }

    /// What the reply cost, and why its choices ended.
    pub fn finished(&self, usage: Usage, finish: String) {
        let mut facts = self.facts();
        (facts.usage, facts.finish) = (Some(usage), Some(finish));
    }

    /// What the client is told in headers: fields that were ignored.
    pub fn ignored(&self, fields: Vec<String>) {
        self.facts().ignored = fields;
    }

    /// What the client is told in headers: keywords of a schema that are not enforced.
    pub fn not_enforced(&self, keywords: Vec<&'static str>) {
        self.facts().not_enforced = keywords;
    }

    /// The headers that tell it.
    pub fn headers(&self) -> [(HeaderName, Option<HeaderValue>); 2] {
        let facts = self.facts();
        let value = |list: String| (!list.is_empty()).then(|| HeaderValue::try_from(list).ok()).flatten();
        [
            (HeaderName::from_static("x-amnesic-ignored"), value(facts.ignored.join(", "))),
            (HeaderName::from_static("x-amnesic-not-enforced"), value(facts.not_enforced.join(", "))),
        ]
    }

    /// The reply ended early: by an error, or because nobody reads it.
    pub fn broken(&self, why: &str) {
        self.facts().finish.get_or_insert_with(|| why.to_owned());
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self) -> String {
        let facts = self.facts();
        let mut line = format!("time={:.3} id={} route={}", unix_secs(), self.id, self.route);
        // without a status the client left before there was a response
        let finish = facts.finish.as_deref().or(facts.status.is_none().then_some(DISCONNECTED));
        facts.status.iter().for_each(|status| line += &format!(" status={status}"));
        if let Some(usage) = facts.usage {
            let Usage { prompt_tokens, completion_tokens, cached_tokens, .. } = usage;
            line += &format!(" prompt_tokens={prompt_tokens} completion_tokens={completion_tokens}");
            line += &format!(" cached_tokens={cached_tokens}");
        }
        finish.iter().for_each(|finish| line += &format!(" finish={finish}"));
        line + &format!(" ms={}", self.start.elapsed().as_millis())
    }
}

/// How a request ended whose client left.
pub const DISCONNECTED: &str = "disconnected";

impl Drop for Record {
    fn drop(&mut self) {
        say(&self.line());
    }
}

/// A line to stderr; nothing can be done about one that is gone.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Seconds since 1970.
pub fn unix_secs() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A panic tells its place; its message may quote what it tripped over.
pub fn panics_tell_only_places() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or("an unknown place".into(), ToString::to_string);
        say(&format!("panic at {place}"));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_is_known() {
        let record = Record::new("/v1/completions");
        assert!(
            record.line().contains(" route=/v1/completions finish=disconnected ms="),
            "{}",
            record.line()
        );
        record.status(200);
        assert!(record.line().contains(" status=200 ms="), "{}", record.line());
        record.finished(Usage::default(), "stop".into());
        record.broken(DISCONNECTED);
        let tail = " status=200 prompt_tokens=0 completion_tokens=0 cached_tokens=0 finish=stop ms=";
        assert!(record.line().contains(tail), "{}", record.line());
        assert_ne!(record.id, Record::new("-").id);
    }
}
