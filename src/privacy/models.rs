//! Models, each of one policy class.

use std::any::TypeId;
use std::fmt;
use std::marker::PhantomData;

use super::alias::Alias;
use super::policy::{LOCAL, Policy, Provider};

/// The class of models that run in this process. No value of it exists.
#[derive(Debug)]
pub enum Local {}

/// The class of models that provider `P` runs. No value of it exists.
#[derive(Debug)]
pub struct ThirdParty<P: Provider>(PhantomData<fn() -> P>);

/// [`Local`], or [`ThirdParty`] of one provider; nothing else can be one.
///
/// ```compile_fail,E0277
/// enum Other {}
/// impl amnesic::privacy::PolicyClass for Other {}
/// ```
pub trait PolicyClass: sealed::Sealed + 'static {
    /// What becomes of content that goes to models of this class.
    fn policy() -> Policy;
}

impl PolicyClass for Local {
    fn policy() -> Policy {
        Policy::Local
    }
}

impl<P: Provider> PolicyClass for ThirdParty<P> {
    fn policy() -> Policy {
        Policy::of::<P>()
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Local {}
    impl<P: super::Provider> Sealed for super::ThirdParty<P> {}
}

/// The name of a model of policy class `C`: a local one is no third party's, and the other way round.
///
/// ```
/// use amnesic::privacy::{Alias, Local, Model, Policy};
///
/// fn run_here(model: &Model<Local>) {}
/// let qwen = Model::<Local>::new(Alias::new("qwen")?);
/// run_here(&qwen);
/// assert_eq!(qwen.policy(), Policy::Local);
/// # Ok::<(), amnesic::Error>(())
/// ```
///
/// ```compile_fail,E0308
/// # use amnesic::privacy::{Alias, Google, Local, Model, ThirdParty};
/// fn run_here(model: &Model<Local>) {}
/// let gemini = Model::<ThirdParty<Google>>::new(Alias::new("gemini")?);
/// run_here(&gemini);
/// # Ok::<(), amnesic::Error>(())
/// ```
pub struct Model<C: PolicyClass> {
    alias: Alias,
    class: PhantomData<fn() -> C>,
}

impl<C: PolicyClass> Model<C> {
    /// The model that is called `alias` where it runs.
    pub fn new(alias: Alias) -> Self {
        Self { alias, class: PhantomData }
    }

    /// Its name.
    pub fn alias(&self) -> Alias {
        self.alias
    }

    /// What becomes of content that goes to it.
    pub fn policy(&self) -> Policy {
        C::policy()
    }
}

impl<C: PolicyClass> Clone for Model<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: PolicyClass> Copy for Model<C> {}

impl<C: PolicyClass> fmt::Debug for Model<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({}, {})", self.alias, Class::of::<C>().name())
    }
}

/// A policy class as a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    id: TypeId,
    pub policy: Policy,
}

impl Class {
    pub fn of<C: PolicyClass>() -> Self {
        Self { id: TypeId::of::<C>(), policy: C::policy() }
    }

    pub fn name(self) -> &'static str {
        match self.policy {
            Policy::Local => LOCAL,
            Policy::ThirdParty { provider, .. } => provider,
        }
    }
}

/// Two providers are two classes, also where they publish the same words.
impl PartialEq for Class {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}
