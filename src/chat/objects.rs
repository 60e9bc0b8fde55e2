//! Objects of Python that minijinja does not have: tuples, generators, views of dictionaries, methods that are not called,
//! and what `cycler` and `joiner` give; and the arguments of calls, which are a text and an object.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, Value};
use minijinja::{Error, ErrorKind, State};

use super::values::wrong;

/// Items that are no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    Tuple,
    /// What `map` and its like give: it can be gone through once, has no length and is always true.
    Generator,
    Keys,
    Values,
    Items,
    /// A pair that `groupby` gives.
    Group,
}

/// See [`Row`].
pub struct Items {
    pub row: Row,
    pub items: Vec<Value>,
    used: AtomicBool,
}

impl Items {
    pub fn value(row: Row, items: Vec<Value>) -> Value {
        Value::from_object(Self { row, items, used: AtomicBool::new(false) })
    }

    fn is_indexed(&self) -> bool {
        matches!(self.row, Row::Tuple | Row::Group)
    }
}

impl fmt::Debug for Items {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Items")
    }
}

impl Object for Items {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.is_indexed() { ObjectRepr::Seq } else { ObjectRepr::Iterable }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (self.row, key.as_str()) {
            (Row::Group, Some("grouper")) => self.items.first().cloned(),
            (Row::Group, Some("list")) => self.items.get(1).cloned(),
            _ if self.is_indexed() => self.items.get(key.as_usize()?).cloned(),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        if self.is_indexed() {
            return Enumerator::Seq(self.items.len());
        }
        if self.row == Row::Generator && self.used.swap(true, Relaxed) {
            return Enumerator::Empty;
        }
        let row = self.clone();
        Enumerator::Iter(Box::new((0..row.items.len()).map(move |at| row.items[at].clone())))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        (self.row != Row::Generator).then_some(self.items.len())
    }
}

/// A method that is not called: `{{ d.items }}`. It cannot be kept in a container.
#[derive(Debug)]
pub struct Method {
    pub value: Value,
    pub name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.value.call_method(state, &self.name, args)
    }
}

/// The arguments of a call that came as the text of a JSON object. Templates are written for the text or for the
/// object: one that tests what it has, or concatenates it, is given the text, any other the object.
pub struct Arguments {
    pub text: Value,
    pub object: Option<DynObject>,
    /// Whether the template has been told that it is a text.
    pub told: AtomicBool,
}

impl Arguments {
    /// `object` is absent where `text` is not that of an object.
    pub fn value(text: &str, object: Option<&Value>) -> Value {
        let object = object.and_then(Value::as_object).cloned();
        Value::from_object(Self { text: Value::from(text), object, told: AtomicBool::new(false) })
    }

    pub fn of(value: &Value) -> Option<&Self> {
        value.downcast_object_ref::<Self>()
    }
}

impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Arguments")
    }
}

impl Object for Arguments {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.object.as_ref()?.get_value(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.object.as_ref().map_or(Enumerator::Empty, DynObject::enumerate)
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.object.as_ref().map_or(Some(0), DynObject::enumerator_len)
    }

    fn is_true(self: &Arc<Self>) -> bool {
        match self.told.load(Relaxed) {
            true => self.text.is_true(),
            false => self.object.as_ref().is_none_or(DynObject::is_true),
        }
    }
}

/// What `cycler` gives.
#[derive(Debug)]
pub struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Cycler {
    /// # Errors
    /// There are no items, or one of them holds others.
    pub fn value(items: &[Value]) -> Result<Value, Error> {
        if items.is_empty() {
            return Err(wrong("at least one item has to be provided"));
        }
        let items = items.iter().map(|item| super::budget::kept(item.clone())).collect::<Result<_, _>>()?;
        Ok(Value::from_object(Self { items, at: AtomicUsize::new(0) }))
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.items[self.at.load(Relaxed)].clone())
    }

    fn call_method(self: &Arc<Self>, _: &State<'_, '_>, method: &str, _: &[Value]) -> Result<Value, Error> {
        let at = self.at.load(Relaxed);
        match method {
            "next" => {
                self.at.store((at + 1) % self.items.len(), Relaxed);
                Ok(self.items[at].clone())
            }
            "reset" => {
                self.at.store(0, Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// What `joiner` gives: nothing at the first call, its text at any later one.
#[derive(Debug)]
pub struct Joiner {
    text: Value,
    used: AtomicBool,
}

impl Joiner {
    pub fn value(text: String) -> Value {
        Value::from_object(Self { text: Value::from(text), used: AtomicBool::new(false) })
    }
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &State<'_, '_>, _: &[Value]) -> Result<Value, Error> {
        Ok(if self.used.swap(true, Relaxed) { self.text.clone() } else { Value::from("") })
    }
}

/// A template asks for the object of arguments that are none.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("arguments that are no JSON object")]
pub struct NoObject;
