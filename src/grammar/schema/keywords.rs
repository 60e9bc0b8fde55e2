//! JSON Schema's vocabulary. Errors may name these words, since they are nobody's content.

/// What llguidance does.
pub const SUPPORTED: [&str; 27] = [
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
    "type",
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "minProperties",
    "maxProperties",
    "items",
    "prefixItems",
    "additionalItems",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];

/// From here on the supported ones describe a value by its type.
pub const PLAIN: usize = 6;

/// Keywords of some draft that constrain and that llguidance does not do. Keys that are in neither list are
/// annotations, as the specification has it.
pub const UNSUPPORTED: [&str; 20] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "contentSchema",
    "extends",
];

/// Keywords whose value is a schema, a list of schemas, or an object of schemas by their names.
pub const SCHEMAS: [&str; 13] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "extends",
];
pub const LISTS_OF_SCHEMAS: [&str; 5] = ["allOf", "anyOf", "oneOf", "items", "prefixItems"];
pub const MAPS_OF_SCHEMAS: [&str; 6] =
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"];

/// Whether a keyword says which values are valid; others are annotations, or names.
pub fn constrains(keyword: &str) -> bool {
    let names = ["$dynamicAnchor", "$recursiveAnchor", "contentSchema"];
    SUPPORTED.contains(&keyword) || UNSUPPORTED.contains(&keyword) && !names.contains(&keyword)
}
