//! Schemas of Rust types, as a caller derives them.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Deserialize;

use super::generation::{parsed, reply};
use super::{Draws, Fixture, ResponseFormat, default_model};

/// What a caller would derive.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read by serde only")]
struct Order {
    id: u32,
    customer: Option<Customer>,
    lines: Vec<Line>,
    state: State,
    /// Documented, so that schemars spells its variants with `oneOf`.
    priority: Priority,
    tags: BTreeSet<String>,
    attributes: BTreeMap<String, i8>,
    pair: (bool, char),
    big: u64,
    ratio: f32,
}

#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "read by serde only")]
struct Customer {
    name: String,
    age: Option<u8>,
    referred_by: Option<Box<Customer>>,
}

#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "read by serde only")]
struct Line {
    item: String,
    count: i32,
    #[serde(default)]
    note: String,
}

#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "read by serde only")]
enum State {
    Open,
    Paid { at: i64 },
    Shipped(String),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Priority {
    /// Next week.
    Low,
    /// Today.
    High,
}

#[derive(Deserialize, JsonSchema)]
#[serde(tag = "kind")]
#[expect(dead_code, reason = "read by serde only")]
enum Shape {
    Circle { r: f64 },
    Square { side: f64 },
}

fn every_reply_deserializes<T: JsonSchema + serde::de::DeserializeOwned>() {
    for fixture in [Fixture::by_hand(), default_model()] {
        let mut draws = Draws(43);
        let start = fixture.compile(&ResponseFormat::schema_of::<T>()).unwrap();
        for _ in 0..25 {
            let text = reply(&fixture, start.fork(), &mut draws);
            if parsed(&text).is_some() {
                serde_json::from_slice::<T>(&text).map(|_| ()).unwrap_or_else(|error| {
                    panic!("{error}: {}", String::from_utf8_lossy(&text));
                });
            }
        }
    }
}

#[test]
fn replies_are_values_of_the_derived_type() {
    every_reply_deserializes::<Order>();
    every_reply_deserializes::<Vec<Shape>>();
    every_reply_deserializes::<Option<Customer>>();
}
