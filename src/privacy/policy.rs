//! What becomes of data that go to a model: kept here, or under a third party's published policy.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// What becomes of the content of a request to a model. Fixed per class of models: see [`super::PolicyClass`].
///
/// `Display` writes a sentence for the application's user, `Serialize` the same as fields.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "class", rename_all = "snake_case")]
pub enum Policy {
    /// The model runs in this process: content is overwritten when the request ends.
    Local,
    /// Content leaves for a provider: [`Policy::of`] says which.
    #[non_exhaustive]
    ThirdParty {
        /// [`Provider::NAME`].
        provider: &'static str,
        /// [`Provider::POLICY_URL`].
        policy_url: &'static str,
        /// [`Provider::RETAINS`].
        retains: Retention,
        /// [`Provider::TRAINS`].
        trains: Trains,
    },
}

impl Policy {
    /// The policy of provider `P`.
    ///
    /// A provider whose constants are out of bounds does not compile here:
    ///
    /// ```compile_fail,E0080
    /// use amnesic::privacy::{Policy, Provider, Retention, Trains};
    ///
    /// struct Plain;
    /// impl Provider for Plain {
    ///     const NAME: &'static str = "Plain";
    ///     const POLICY_URL: &'static str = "http://plain.example/privacy"; // not https
    ///     const RETAINS: Retention = Retention::Unknown;
    ///     const TRAINS: Trains = Trains::Unknown;
    /// }
    /// println!("{}", Policy::of::<Plain>());
    /// ```
    pub const fn of<P: Provider>() -> Self {
        const {
            assert!(is_name(P::NAME), "Provider::NAME: see its documentation for what it may be");
            assert!(is_url(P::POLICY_URL), "Provider::POLICY_URL: see its documentation for what it may be");
        };
        Self::ThirdParty {
            provider: P::NAME,
            policy_url: P::POLICY_URL,
            retains: P::RETAINS,
            trains: P::TRAINS,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => {
                f.write_str("local: content stays in this process and is overwritten when it ends")
            }
            Self::ThirdParty { provider, policy_url, retains, trains } => {
                write!(
                    f,
                    "third party: content goes to {provider}, which {retains} and {trains}; {policy_url}"
                )
            }
        }
    }
}

/// How long a provider keeps content. `Display` continues "which ...".
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Retention {
    /// Not beyond the reply.
    None,
    /// At most this long, but for what its policy makes an exception of (the law, abuse).
    #[serde(rename = "for_seconds", serialize_with = "seconds")]
    For(Duration),
    /// Until the customer deletes it.
    UntilDeleted,
    /// Not stated, or it depends on a contract that this library cannot see.
    Unknown,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("keeps nothing"),
            Self::For(duration) => {
                let seconds = duration.as_secs();
                let (count, unit) = match seconds {
                    0 => (1, "second"), // less than one
                    _ if seconds.is_multiple_of(86_400) => (seconds / 86_400, "day"),
                    _ if seconds.is_multiple_of(3600) => (seconds / 3600, "hour"),
                    _ => (seconds, "second"),
                };
                write!(f, "keeps it for up to {count} {unit}{}", if count == 1 { "" } else { "s" })
            }
            Self::UntilDeleted => f.write_str("keeps it until it is deleted"),
            Self::Unknown => f.write_str("may keep it"),
        }
    }
}

/// Whether a provider trains models on content. `Display` continues "which ...".
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trains {
    /// It does not.
    Never,
    /// Only on what the customer offers for it.
    OptIn,
    /// Unless the customer objects.
    UnlessOptedOut,
    /// Not stated, or it depends on a contract that this library cannot see.
    Unknown,
}

impl fmt::Display for Trains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "does not train on it",
            Self::OptIn => "trains on it only with consent",
            Self::UnlessOptedOut => "trains on it unless told not to",
            Self::Unknown => "may train on it",
        })
    }
}

/// Somebody who runs models for others, under one published policy.
///
/// A policy belongs to a type. An application with a contract of its own, or with another provider, writes a type of
/// its own; the ones here state the published default for paying customers of the API where there is one answer, and
/// `Unknown` where there is none. Policies change: an application answers for the constants it relies on.
///
/// ```
/// use std::time::Duration;
/// use amnesic::privacy::{Policy, Provider, Retention, Trains};
///
/// struct InHouse;
/// impl Provider for InHouse {
///     const NAME: &'static str = "Inference team";
///     const POLICY_URL: &'static str = "https://intranet.example/inference/privacy";
///     const RETAINS: Retention = Retention::For(Duration::from_secs(86_400));
///     const TRAINS: Trains = Trains::Never;
/// }
/// assert_eq!(
///     Policy::of::<InHouse>().to_string(),
///     "third party: content goes to Inference team, which keeps it for up to 1 day and does not train on it; \
///      https://intranet.example/inference/privacy",
/// );
/// ```
pub trait Provider: 'static {
    /// Whom to name to the user: 1 to 64 printable ASCII characters, other than `local`.
    const NAME: &'static str;
    /// Where the policy is published: `https://` and up to 248 printable ASCII characters without spaces.
    const POLICY_URL: &'static str;
    /// How long content is kept.
    const RETAINS: Retention;
    /// Whether models are trained on content.
    const TRAINS: Trains;
}

/// Google's Gemini API. Prompts and replies are logged for 55 days to find abuse; whether content is used to train
/// depends on whether the project pays.
#[derive(Debug)]
pub struct Google;

impl Provider for Google {
    const NAME: &'static str = "Google (Gemini API)";
    const POLICY_URL: &'static str = "https://ai.google.dev/gemini-api/terms";
    const RETAINS: Retention = Retention::For(Duration::from_secs(55 * 86_400));
    const TRAINS: Trains = Trains::Unknown;
}

/// Anthropic's API under its commercial terms. Prompts and replies are deleted within 30 days, unless they were
/// flagged or the law demands more; what customers offer (feedback, programmes) may be trained on.
#[derive(Debug)]
pub struct Anthropic;

impl Provider for Anthropic {
    const NAME: &'static str = "Anthropic (API)";
    const POLICY_URL: &'static str = "https://www.anthropic.com/legal/commercial-terms";
    const RETAINS: Retention = Retention::For(Duration::from_secs(30 * 86_400));
    const TRAINS: Trains = Trains::OptIn;
}

/// What the class of local models is called where a provider has its name.
pub(super) const LOCAL: &str = "local";

const fn is_name(name: &str) -> bool {
    all_from(name.as_bytes(), 0, b' ')
        && name.len() <= 64
        && !name.is_empty()
        && !name.eq_ignore_ascii_case(LOCAL)
}

const fn is_url(url: &str) -> bool {
    const SCHEME: &str = "https://";
    let bytes = url.as_bytes();
    let mut at = 0;
    while at < SCHEME.len() {
        if at == bytes.len() || bytes[at] != SCHEME.as_bytes()[at] {
            return false;
        }
        at += 1;
    }
    bytes.len() > at && bytes.len() <= 256 && all_from(bytes, at, b'!')
}

/// Whether all of `bytes` from `at` on are ASCII characters between `lowest` and `~`.
const fn all_from(bytes: &[u8], mut at: usize, lowest: u8) -> bool {
    while at < bytes.len() {
        if bytes[at] < lowest || bytes[at] > b'~' {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_programs_read_the_same_policy() {
        assert_eq!(
            Policy::of::<Google>().to_string(),
            "third party: content goes to Google (Gemini API), which keeps it for up to 55 days and may train on it; \
             https://ai.google.dev/gemini-api/terms"
        );
        assert_eq!(
            serde_json::to_value(Policy::of::<Anthropic>()).unwrap(),
            serde_json::json!({
                "class": "third_party",
                "provider": "Anthropic (API)",
                "policy_url": "https://www.anthropic.com/legal/commercial-terms",
                "retains": { "for_seconds": 2_592_000 },
                "trains": "opt_in",
            })
        );
        assert_eq!(serde_json::to_value(Policy::Local).unwrap(), serde_json::json!({ "class": "local" }));
        assert!(Policy::Local.to_string().starts_with("local: "));
    }

    #[test]
    fn every_word_of_a_policy_can_be_told_from_the_others() {
        let hour = Retention::For(Duration::from_secs(3600));
        let half = Retention::For(Duration::from_millis(500));
        let kept = [Retention::None, hour, half, Retention::UntilDeleted, Retention::Unknown];
        let told = ["keeps nothing", "keeps it for up to 1 hour", "keeps it for up to 1 second"];
        let told = told.into_iter().chain(["keeps it until it is deleted", "may keep it"]);
        assert!(kept.iter().map(Retention::to_string).eq(told));
        let trains = [Trains::Never, Trains::OptIn, Trains::UnlessOptedOut, Trains::Unknown];
        let told: std::collections::HashSet<String> = trains.iter().map(Trains::to_string).collect();
        assert_eq!(told.len(), trains.len());
    }

    #[test]
    fn names_and_addresses_have_bounds() {
        assert!(is_name("x") && is_name(&"x".repeat(64)));
        for name in ["", "local", "Local", "two\nlines", "naïve", &"x".repeat(65)] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_url("https://x"));
        for url in ["", "https:/", "https://", "http://x", "https://a b", "https://ä", "javascript:https://x"]
        {
            assert!(!is_url(url), "{url:?}");
        }
        assert!(!is_url(&format!("https://{}", "x".repeat(249))));
    }
}
