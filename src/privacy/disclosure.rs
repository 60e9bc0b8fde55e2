//! No content goes to a third party before the application has told its user under which policy.

use std::fmt;
use std::marker::PhantomData;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::models::{Model, ThirdParty};
use super::policy::{Policy, Provider};
pub use crate::error::DisclosureReason;
use crate::error::{Error, Result};
use crate::request::Request;

/// Proof that the application has shown its user the policy of provider `P`.
///
/// Made by one explicit act, [`Disclosure::acknowledged`]. No `Default`, no `Clone`, no `Deserialize`, no conversion
/// from another provider's. What it cannot prove is that somebody read it: the application says so, and its code can
/// be searched for where.
pub struct Disclosure<P: Provider> {
    at: SystemTime,
    provider: PhantomData<fn() -> P>,
}

impl<P: Provider> Disclosure<P> {
    /// States that the application's user was shown `policy` and has acknowledged it, `at` this time.
    ///
    /// # Errors
    /// [`Error::Disclosure`]: `policy` is not that of `P`, as [`Policy::of`] gives it, or `at` is before 1970.
    pub fn acknowledged(policy: &Policy, at: SystemTime) -> Result<Self> {
        if *policy != Policy::of::<P>() {
            return Err(Error::Disclosure(DisclosureReason::OtherPolicy { provider: P::NAME }));
        }
        if at < UNIX_EPOCH {
            return Err(Error::Disclosure(DisclosureReason::Time));
        }
        Ok(Self { at, provider: PhantomData })
    }

    /// What was shown.
    pub fn policy(&self) -> Policy {
        Policy::of::<P>()
    }

    /// When it was acknowledged.
    pub fn at(&self) -> SystemTime {
        self.at
    }
}

impl<P: Provider> fmt::Debug for Disclosure<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disclosure").field("provider", &P::NAME).field("at", &self.at).finish()
    }
}

/// For the application's records: the policy, and `at` as seconds since 1970.
impl<P: Provider> Serialize for Disclosure<P> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let seconds = self.at.duration_since(UNIX_EPOCH).map_err(serde::ser::Error::custom)?.as_secs();
        let mut fields = serializer.serialize_struct("Disclosure", 2)?;
        fields.serialize_field("policy", &self.policy())?;
        fields.serialize_field("at", &seconds)?;
        fields.end()
    }
}

/// A request on its way to a model of provider `P`: what a client for that provider takes, instead of a [`Request`].
///
/// It is made only of a model of `P`, and of a [`Disclosure`] of that very provider:
///
/// ```
/// # use std::time::SystemTime;
/// use amnesic::Request;
/// use amnesic::privacy::{Alias, Disclosure, Google, Model, Policy, ThirdParty, ThirdPartyRequest};
///
/// let gemini = Model::<ThirdParty<Google>>::new(Alias::new("gemini")?);
/// let policy = Policy::of::<Google>();
/// println!("{policy}"); // shown to the user, who agrees
/// let disclosure = Disclosure::<Google>::acknowledged(&policy, SystemTime::now())?;
/// let request = ThirdPartyRequest::new(&gemini, Request::prompt("Hello"), &disclosure);
/// assert_eq!(request.disclosure().policy(), policy);
/// # Ok::<(), amnesic::Error>(())
/// ```
///
/// Without a disclosure it does not compile:
///
/// ```compile_fail,E0061
/// # use amnesic::Request;
/// # use amnesic::privacy::{Alias, Google, Model, ThirdParty, ThirdPartyRequest};
/// let gemini = Model::<ThirdParty<Google>>::new(Alias::new("gemini")?);
/// let request = ThirdPartyRequest::new(&gemini, Request::prompt("Hello"));
/// # Ok::<(), amnesic::Error>(())
/// ```
///
/// Nor with that of another provider:
///
/// ```compile_fail,E0308
/// # use std::time::SystemTime;
/// # use amnesic::Request;
/// # use amnesic::privacy::{Alias, Anthropic, Disclosure, Google, Model, Policy, ThirdParty, ThirdPartyRequest};
/// let gemini = Model::<ThirdParty<Google>>::new(Alias::new("gemini")?);
/// let other = Disclosure::<Anthropic>::acknowledged(&Policy::of::<Anthropic>(), SystemTime::now())?;
/// let request = ThirdPartyRequest::new(&gemini, Request::prompt("Hello"), &other);
/// # Ok::<(), amnesic::Error>(())
/// ```
///
/// Nor for a local model:
///
/// ```compile_fail,E0308
/// # use std::time::SystemTime;
/// # use amnesic::Request;
/// # use amnesic::privacy::{Alias, Disclosure, Google, Local, Model, Policy, ThirdPartyRequest};
/// let local = Model::<Local>::new(Alias::new("qwen")?);
/// let disclosure = Disclosure::<Google>::acknowledged(&Policy::of::<Google>(), SystemTime::now())?;
/// let request = ThirdPartyRequest::new(&local, Request::prompt("Hello"), &disclosure);
/// # Ok::<(), amnesic::Error>(())
/// ```
///
/// A client that takes this type cannot be handed a plain request:
///
/// ```compile_fail,E0308
/// # use amnesic::Request;
/// # use amnesic::privacy::{Google, ThirdPartyRequest};
/// fn send(request: ThirdPartyRequest<'_, Google>) {}
/// send(Request::prompt("Hello"));
/// ```
///
/// Nor can a session run one:
///
/// ```compile_fail,E0308
/// # use amnesic::Session;
/// # use amnesic::privacy::{Google, ThirdPartyRequest};
/// fn run(session: &Session, request: ThirdPartyRequest<'_, Google>) {
///     let _ = session.generate(request);
/// }
/// ```
///
/// A proof is made by its one act alone, not copied, not defaulted, and not read from a file:
///
/// ```compile_fail,E0277
/// # use amnesic::privacy::{Disclosure, Google};
/// let disclosure: Disclosure<Google> = serde_json::from_str("{}").unwrap();
/// ```
///
/// ```compile_fail,E0277
/// # use amnesic::privacy::{Disclosure, Google};
/// fn default<T: Default>() {}
/// default::<Disclosure<Google>>();
/// ```
///
/// ```compile_fail,E0277
/// # use amnesic::privacy::{Disclosure, Google};
/// fn clone<T: Clone>() {}
/// clone::<Disclosure<Google>>();
/// ```
pub struct ThirdPartyRequest<'a, P: Provider> {
    model: &'a Model<ThirdParty<P>>,
    request: Request,
    disclosure: &'a Disclosure<P>,
}

impl<'a, P: Provider> ThirdPartyRequest<'a, P> {
    /// `request`, for `model`, to whose provider the user knows that it goes.
    pub fn new(model: &'a Model<ThirdParty<P>>, request: Request, disclosure: &'a Disclosure<P>) -> Self {
        Self { model, request, disclosure }
    }

    /// The model.
    pub fn model(&self) -> &'a Model<ThirdParty<P>> {
        self.model
    }

    /// The request: overwritten when this drops.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The proof.
    pub fn disclosure(&self) -> &'a Disclosure<P> {
        self.disclosure
    }
}

impl<P: Provider> fmt::Debug for ThirdPartyRequest<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThirdPartyRequest")
            .field("model", &self.model)
            .field("request", &self.request)
            .field("disclosure", &self.disclosure)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::policy::{Anthropic, Google};
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn only_the_current_policy_of_that_provider_can_be_acknowledged() {
        let disclosure = Disclosure::<Google>::acknowledged(&Policy::of::<Google>(), at(7)).unwrap();
        assert_eq!((disclosure.policy(), disclosure.at()), (Policy::of::<Google>(), at(7)));

        let Policy::ThirdParty { provider, policy_url, retains, .. } = Policy::of::<Google>() else {
            panic!("a third party")
        };
        let older = Policy::ThirdParty { provider, policy_url, retains, trains: super::super::Trains::Never };
        for policy in [Policy::Local, Policy::of::<Anthropic>(), older] {
            match Disclosure::<Google>::acknowledged(&policy, at(7)) {
                Err(Error::Disclosure(DisclosureReason::OtherPolicy { provider })) => {
                    assert_eq!(provider, Google::NAME);
                }
                other => panic!("{other:?}"),
            }
        }
        let before = UNIX_EPOCH - Duration::from_secs(1);
        let refused = Disclosure::<Google>::acknowledged(&Policy::of::<Google>(), before);
        assert!(matches!(refused, Err(Error::Disclosure(DisclosureReason::Time))));
    }

    #[test]
    fn the_record_says_what_was_shown_and_when() {
        let disclosure =
            Disclosure::<Google>::acknowledged(&Policy::of::<Google>(), at(1_790_000_000)).unwrap();
        let record = serde_json::to_value(&disclosure).unwrap();
        assert_eq!(record["at"], 1_790_000_000);
        assert_eq!(record["policy"], serde_json::to_value(Policy::of::<Google>()).unwrap());
    }

    #[test]
    fn debug_prints_no_content() {
        let disclosure = Disclosure::<Google>::acknowledged(&Policy::of::<Google>(), at(7)).unwrap();
        let model = Model::<ThirdParty<Google>>::new(super::super::Alias::new("gemini").unwrap());
        let request = ThirdPartyRequest::new(&model, Request::prompt("canary"), &disclosure);
        let printed = format!("{request:?}");
        assert!(printed.contains("gemini") && printed.contains(Google::NAME), "{printed}");
        assert!(!printed.contains("canary"), "{printed}");
        assert_eq!(request.model().alias().as_str(), "gemini");
        assert!(format!("{:?}", request.request()).contains(": 6"), "a length in place of the text");
        assert_eq!(request.disclosure().at(), at(7));
    }
}
