//! JSON values that callers hand over: their texts, keys and numbers are overwritten before they are freed.

use serde_json::Value;

use super::scrub::keep_stores;
use super::secret::Owner;

/// Drops `value` and overwrites its texts, keys, numbers and truth values. Without recursion: a caller's value can be of
/// any depth.
///
/// Not overwritten: how many values there are and how they nest, and, in the nodes of a map, the hashes of its keys,
/// which are keyed at random for each map.
#[cfg_attr(amnesic_faults, track_caller)]
pub fn wipe(mut value: Value) {
    // In place first: a number lies in the node of its list or map, which is freed as it is when it is taken apart.
    let mut left = vec![&mut value];
    while let Some(value) = left.pop() {
        match value {
            Value::Null => {}
            Value::Bool(truth) => {
                *truth = false;
                keep_stores(truth);
            }
            Value::Number(number) => {
                *number = 0.into();
                keep_stores(number);
            }
            Value::String(text) => drop(std::mem::take(text).wipe()),
            Value::Array(values) => left.extend(values.iter_mut()),
            Value::Object(map) => left.extend(map.values_mut()),
        }
    }
    let mut left = vec![value];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(values) => left.extend(values),
            Value::Object(map) => left.extend(map.into_iter().map(|(key, value)| {
                let _ = key.wipe();
                value
            })),
            _ => {}
        }
    }
}

/// How deep the value is nested; a number is 0 deep. No recursion.
pub fn depth(value: &Value) -> usize {
    let (mut deepest, mut left) = (0, vec![(value, 0)]);
    while let Some((value, depth)) = left.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(values) => left.extend(values.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => left.extend(map.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_any_depth_is_wiped_without_recursion() {
        let mut deep = Value::Null;
        for level in 0..200_000 {
            let mut map = serde_json::Map::new();
            map.insert(format!("key {level}"), deep);
            deep = Value::Array(vec![Value::Object(map), 7.into(), true.into()]);
        }
        wipe(deep);
    }
}
