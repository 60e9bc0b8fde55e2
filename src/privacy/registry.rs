//! Models by name: a name never crosses from one policy class to another.

use std::any::Any;
use std::collections::HashMap;

use super::alias::Alias;
use super::models::{Class, Model, PolicyClass};
use super::policy::Policy;
pub use crate::error::AliasReason;
use crate::error::{MAX_ALIASES, Result};

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
    pub const MAX_NAMES: usize = MAX_ALIASES;

    /// Adds a name.
    ///
    /// # Errors
    /// [`crate::Error::ModelAlias`]: the name is in use, was removed and is of another class, or there are too many.
    pub fn insert<C: PolicyClass>(&mut self, name: Alias, model: Model<C>) -> Result<()> {
        self.check_room(name)?;
        self.set(name, Class::of::<C>(), Target::Model(Box::new(model)))
    }

    /// Lets a name lead to another model of its class.
    ///
    /// # Errors
    /// [`crate::Error::ModelAlias`]: the name is unknown, or of another class.
    pub fn repoint<C: PolicyClass>(&mut self, name: Alias, model: Model<C>) -> Result<()> {
        self.entry(name)?;
        self.set(name, Class::of::<C>(), Target::Model(Box::new(model)))
    }

    /// Lets `name`, new or of the same class, lead to wherever the name `to` leads.
    ///
    /// # Errors
    /// [`crate::Error::ModelAlias`]: `to` is unknown, of another class, or leads to `name`; or there are too many names.
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
    /// [`crate::Error::ModelAlias`]: the name is unknown.
    pub fn remove(&mut self, name: Alias) -> Result<()> {
        self.entry(name)?;
        self.entries.get_mut(&name).expect("looked up above").target = None;
        Ok(())
    }

    /// The model that `name` leads to, of class `C`.
    ///
    /// # Errors
    /// [`crate::Error::ModelAlias`]: the name is unknown, or of another class, which the error names.
    /// [`crate::Error::Request`]: it is no [`Alias`].
    pub fn resolve<C: PolicyClass>(&self, name: &str) -> Result<&Model<C>> {
        let (class, model) = self.follow(Alias::new(name)?)?;
        let crossing = || AliasReason::OtherClass { class: class.name(), wanted: Class::of::<C>().name() };
        model.downcast_ref().ok_or_else(|| crossing().into())
    }

    /// What becomes of content that goes to the model that `name` leads to.
    ///
    /// # Errors
    /// Returns the errors of [`ModelAliases::resolve`], but for the class.
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

#[cfg(test)]
mod tests;
