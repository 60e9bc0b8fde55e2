//! Models by name, each of one policy class, and names that never cross from one class to another.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use super::alias::Alias;
use super::policy::{LOCAL, Policy, Provider};
use crate::error::{Error, Result};

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

/// Models by the names that an application gives them, such as `default` or `fast`.
///
/// A name belongs to the policy class of its first model for as long as the registry lives, also after it was
/// removed: who has written `fast` somewhere, and knows that it is local, stays right. Names lead to models, or to
/// other names of the same class.
///
/// ```
/// use amnesic::privacy::{Alias, Google, Local, Model, ModelAliases, ThirdParty};
///
/// let (fast, qwen, gemini) = (Alias::new("fast")?, Alias::new("qwen")?, Alias::new("gemini")?);
/// let mut models = ModelAliases::default();
/// models.insert(fast, Model::<Local>::new(qwen))?;
/// assert_eq!(models.resolve::<Local>("fast")?.alias(), qwen);
/// assert!(models.resolve::<ThirdParty<Google>>("fast").is_err());
/// assert!(models.repoint(fast, Model::<ThirdParty<Google>>::new(gemini)).is_err());
/// # Ok::<(), amnesic::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct ModelAliases {
    entries: HashMap<Alias, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// For good.
    class: Class,
    /// None where it was removed.
    target: Option<Target>,
}

#[derive(Debug)]
enum Target {
    /// A `Model` of the entry's class.
    Model(Box<dyn Any + Send + Sync>),
    /// Another entry of the same class.
    Name(Alias),
}

impl ModelAliases {
    /// Most names, removed ones included.
    pub const MAX_NAMES: usize = 4096;

    /// Adds a name.
    ///
    /// # Errors
    /// [`Error::ModelAlias`]: the name is in use, was removed and is of another class, or there are too many.
    pub fn insert<C: PolicyClass>(&mut self, name: Alias, model: Model<C>) -> Result<()> {
        self.check_room(name)?;
        self.set(name, Class::of::<C>(), Target::Model(Box::new(model)))
    }

    /// Lets a name lead to another model of its class.
    ///
    /// # Errors
    /// [`Error::ModelAlias`]: the name is unknown, or of another class.
    pub fn repoint<C: PolicyClass>(&mut self, name: Alias, model: Model<C>) -> Result<()> {
        self.entry(name)?;
        self.set(name, Class::of::<C>(), Target::Model(Box::new(model)))
    }

    /// Lets `name`, new or of the same class, lead to wherever the name `to` leads.
    ///
    /// # Errors
    /// [`Error::ModelAlias`]: `to` is unknown, of another class, or leads to `name`; or there are too many names.
    pub fn chain(&mut self, name: Alias, to: Alias) -> Result<()> {
        let class = self.entry(to)?.class;
        let mut next = Some(to);
        while let Some(at) = next {
            if at == name {
                return Err(AliasReason::Circle.into());
            }
            next = match self.entries.get(&at).and_then(|entry| entry.target.as_ref()) {
                Some(Target::Name(further)) => Some(*further),
                _ => None,
            };
        }
        if self.entry(name).is_err() {
            self.check_room(name)?;
        }
        self.set(name, class, Target::Name(to))
    }

    /// Takes a name out of use: it, and those that lead to it, are unknown until they are set again, in their class.
    ///
    /// # Errors
    /// [`Error::ModelAlias`]: the name is unknown.
    pub fn remove(&mut self, name: Alias) -> Result<()> {
        self.entry(name)?;
        self.entries.get_mut(&name).expect("looked up above").target = None;
        Ok(())
    }

    /// The model that `name` leads to, of class `C`.
    ///
    /// # Errors
    /// [`Error::ModelAlias`]: the name is unknown, or of another class, which the error names.
    /// [`Error::Request`]: it is no [`Alias`].
    pub fn resolve<C: PolicyClass>(&self, name: &str) -> Result<&Model<C>> {
        let (class, model) = self.follow(Alias::new(name)?)?;
        let crossing = || AliasReason::OtherClass { class: class.name(), wanted: Class::of::<C>().name() };
        model.downcast_ref().ok_or_else(|| crossing().into())
    }

    /// What becomes of content that goes to the model that `name` leads to.
    ///
    /// # Errors
    /// As [`ModelAliases::resolve`], but for the class.
    pub fn policy(&self, name: &str) -> Result<Policy> {
        self.follow(Alias::new(name)?).map(|(class, _)| class.policy)
    }

    fn follow(&self, mut name: Alias) -> Result<(Class, &(dyn Any + Send + Sync))> {
        loop {
            let entry = self.entry(name)?;
            match entry.target.as_ref().ok_or(AliasReason::Unknown)? {
                Target::Model(model) => return Ok((entry.class, model.as_ref())),
                Target::Name(further) => name = *further, // comes to an end: `chain` makes no circle
            }
        }
    }

    /// The entry of a name in use.
    fn entry(&self, name: Alias) -> Result<&Entry> {
        let entry = self.entries.get(&name).filter(|entry| entry.target.is_some());
        entry.ok_or_else(|| AliasReason::Unknown.into())
    }

    /// Whether `name` can be added.
    fn check_room(&self, name: Alias) -> Result<()> {
        match self.entries.get(&name) {
            Some(Entry { target: Some(_), .. }) => Err(AliasReason::Taken.into()),
            None if self.entries.len() >= Self::MAX_NAMES => Err(AliasReason::Full.into()),
            _ => Ok(()),
        }
    }

    /// The one place that writes an entry: a name's class is set once.
    fn set(&mut self, name: Alias, class: Class, target: Target) -> Result<()> {
        let entry = self.entries.entry(name).or_insert(Entry { class, target: None });
        if entry.class != class {
            return Err(AliasReason::OtherClass { class: entry.class.name(), wanted: class.name() }.into());
        }
        entry.target = Some(target);
        Ok(())
    }
}

/// A policy class as a value.
#[derive(Clone, Copy, Debug)]
struct Class {
    id: TypeId,
    policy: Policy,
}

impl Class {
    fn of<C: PolicyClass>() -> Self {
        Self { id: TypeId::of::<C>(), policy: C::policy() }
    }

    fn name(self) -> &'static str {
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

/// Why a model's name cannot be set or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AliasReason {
    /// No such name, or what it leads to was removed.
    #[error("no model has this name")]
    Unknown,
    /// It would cross from one policy class to another.
    #[error("the name belongs to class `{class}`, not `{wanted}`")]
    OtherClass {
        /// The name's class: `local`, or a provider's name.
        class: &'static str,
        /// The class asked for.
        wanted: &'static str,
    },
    /// The name is in use: [`ModelAliases::repoint`] changes where it leads.
    #[error("the name is in use")]
    Taken,
    /// It would lead back to itself.
    #[error("the name would lead back to itself")]
    Circle,
    /// [`ModelAliases::MAX_NAMES`].
    #[error("there are {} names already", ModelAliases::MAX_NAMES)]
    Full,
}

impl From<AliasReason> for Error {
    fn from(reason: AliasReason) -> Self {
        Self::ModelAlias(reason)
    }
}

#[cfg(test)]
mod tests;
