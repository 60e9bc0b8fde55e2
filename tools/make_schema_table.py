#!/usr/bin/env python3
"""Writes tests/fixtures/schemas.json: JSON Schemas with instances, and which of them are valid.

usage: tools/make_schema_table.py        needs: jsonschema 4.26

What is valid is `jsonschema`'s word, without its format checker: formats that it checks are in a table of their own
(src/grammar/tests/generation.rs). `refused` names the keyword that a strict format refuses and a lenient one leaves out.
"""

import json
import pathlib

from jsonschema import Draft4Validator, Draft7Validator, Draft201909Validator, Draft202012Validator

OUT = pathlib.Path(__file__).resolve().parents[1] / "tests/fixtures/schemas.json"
VALIDATORS = {
    "http://json-schema.org/draft-04/schema#": Draft4Validator,
    "http://json-schema.org/draft-07/schema#": Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": Draft201909Validator,
}
STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def closed(properties, **more):
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


PASSWORD = {"type": "string", "pattern": r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d).{8,}$"}
TREE = closed({"value": INTEGER, "next": {"$ref": "#node"}})
PERSON = closed({"name": STRING, "country": {"enum": ["US", "NL"]}, "zip": STRING}, required=["country"])

# name, schema, instances
CASES = [
    # formats
    ("unknown format", {"type": "string", "format": "phone"}, ["", "a", 1]),
    ("format beside no type", {"format": "color", "enum": ["red", 1]}, ["red", 1, "blue"]),
    ("formats of numbers", {"type": "integer", "format": "uint8", "minimum": 0, "maximum": 255}, [0, 255, 256, -1]),
    # references
    ("escaped slash", {"$ref": "#/$defs/a~1b", "$defs": {"a/b": INTEGER}}, [1, "a"]),
    ("escaped tilde", {"$ref": "#/$defs/a~0b", "$defs": {"a~b": INTEGER}}, [1, "a"]),
    ("percent", {"$ref": "#/$defs/a%20b%22", "$defs": {'a b"': INTEGER}}, [1, "a"]),
    ("slash and percent", {"$ref": "#/$defs/a~1b%25c", "$defs": {"a/b%c": INTEGER}}, [1, "a"]),
    ("place in an array", {"prefixItems": [INTEGER, {"$ref": "#/prefixItems/0"}], "items": False, "type": "array"},
     [[1, 2], [1, "a"], [1]]),
    ("anchor", {"$ref": "#number", "$defs": {"a": {"$anchor": "number", **INTEGER}}}, [1, "a"]),
    ("recursive anchor", {"$anchor": "node", **TREE}, [{"value": 1}, {"value": 1, "next": {"value": 2}}, {"next": 3}]),
    ("id", {"$id": "https://example.com/root.json", "$ref": "item.json",
            "$defs": {"a": {"$id": "item.json", **INTEGER}}}, [1, "a"]),
    ("id and place", {"$id": "https://example.com/a/root.json", "$ref": "../b.json#/$defs/c",
                      "$defs": {"b": {"$id": "https://example.com/b.json", "$defs": {"c": INTEGER}}}}, [1, "a"]),
    ("id and anchor", {"$id": "https://example.com/root.json", "$ref": "/b.json#here",
                       "$defs": {"b": {"$id": "/b.json", "$defs": {"c": {"$anchor": "here", **INTEGER}}}}}, [1, "a"]),
    ("urn", {"$id": "urn:example:root", "$ref": "urn:example:item", "$defs": {"a": {"$id": "urn:example:item", **INTEGER}}},
     [1, "a"]),
    ("the document by its id", {"$id": "https://example.com/tree", **closed({"value": INTEGER, "next": {"$ref": "https://example.com/tree"}})},
     [{"value": 1, "next": {"value": 2}}, {"next": 3}]),
    ("dynamic reference", {"$dynamicAnchor": "node", **closed({"value": INTEGER, "next": {"$dynamicRef": "#node"}})},
     [{"value": 1, "next": {"value": 2}}, {"next": 3}]),
    ("recursive reference", {"$schema": "https://json-schema.org/draft/2019-09/schema",
                             **closed({"value": INTEGER, "next": {"$recursiveRef": "#"}})},
     [{"value": 1, "next": {"value": 2}}, {"next": 3}]),
    ("draft 4 id", {"$schema": "http://json-schema.org/draft-04/schema#", "id": "http://example.com/root.json",
                    "allOf": [{"$ref": "item.json"}], "definitions": {"a": {"id": "item.json", "type": "integer"}}}, [1, "a"]),
    ("a name that is a keyword", closed({"$ref": STRING, "not": INTEGER}), [{"$ref": "a", "not": 1}, {"$ref": 1}, {"not": "a"}]),
    # numbers
    ("u64", {"type": "integer", "format": "uint64", "minimum": 0, "maximum": 18446744073709551615},
     [0, 9223372036854775807, -1, 18446744073709551616]),
    ("i64", {"type": "integer", "minimum": -9223372036854775808, "maximum": 9223372036854775807},
     [0, -9000000000000000000, 9223372036854775807, 9223372036854775808, -9223372036854775809]),
    ("f64", {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}, [0, 1.5, -2000000000000000000]),
    ("bounds as decimals", {"type": "integer", "minimum": 0.0, "maximum": 255.0}, [0, 255, 256, -1]),
    ("between two f64", {"type": "integer", "minimum": 0, "maximum": 999999999999999999},
     [0, 999999999999999000, 1000000000000000000]),
    ("tiny bounds", {"type": "number", "exclusiveMinimum": 1e-300, "maximum": 1}, [0.5, 1, 0, -1, 2]),
    ("large bounds", {"type": "number", "minimum": 0, "maximum": 1e20}, [0, 1000000000000000000, -1, 150000000000000000000]),
    ("draft 4 bounds", {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 3,
                        "exclusiveMinimum": True, "maximum": 5}, [3, 4, 5, 6]),
    ("both bounds", {"type": "integer", "minimum": 3, "exclusiveMinimum": 3}, [3, 4]),
    ("counts as decimals", {"type": "string", "minLength": 2.0, "maxLength": 3.0}, ["a", "ab", "abc", "abcd"]),
    # expressions that look around
    ("password", PASSWORD, ["Abcdefg1", "abcdefg1", "ABCDEFG1", "Abcdefgh", "Abcdef1", "xxxA1xxxx"]),
    ("password without an anchor", {"type": "string", "pattern": r"(?=.*\d)(?=.*[a-z]).{4,6}"}, ["abc1", "1abcd", "abcd", "1234", "a1"]),
    ("not a word", {"type": "string", "pattern": "^(?!admin$)[a-z]+$"}, ["admin", "admins", "adm", "user", "User"]),
    ("not a prefix", {"type": "string", "pattern": "^(?!test_|tmp_)[a-z_]+$"}, ["test_a", "tmp_", "test", "atest_", "tm"]),
    ("not blank", {"type": "string", "pattern": r"^(?!\s*$).+"}, ["", " ", "  a", "a", "\t"]),
    ("no two dots", {"type": "string", "pattern": r"^(?!.*\.\.)[a-z.]+$"}, ["a.b", "a..b", "..", ".", "a.b.c"]),
    ("tempered dot", {"type": "string", "pattern": "^((?!foo).)*$"}, ["", "fo", "foo", "a foo b", "f oo", "food"]),
    ("slug", {"type": "string", "pattern": "^(?!-)[a-z0-9-]{1,10}(?<!-)$"}, ["a", "a-b", "-a", "a-", "-", "abc1"]),
    ("no ending", {"type": "string", "pattern": r"^[a-z.]+(?<!\.tmp)$"}, ["a.tmp", "a.txt", "tmp", ".tmp"]),
    ("alternatives that look", {"type": "string", "pattern": "^(?!a)[a-c]+$|^x(?=y)[yz]+$"}, ["abc", "bca", "xyz", "xzy", "x"]),
    ("pattern of any type", {"pattern": "^(?!a)", "enum": ["a", "b", 1, None]}, ["a", "b", 1, None]),
    ("look in a repeated group", {"type": "string", "pattern": "^(?:a(?!b)|c)+d$"}, ["acd", "abd"]),
    # not
    ("not a type", {"not": {"type": "string"}}, ["a", 1, None, [], {}]),
    ("not a value", {"type": "string", "not": {"const": "none"}}, ["none", "non", "nones", "", "x"]),
    ("not among", {"enum": ["a", "b", 1, 2, None, True], "not": {"enum": ["a", 2, None]}}, ["a", "b", 1, 2, None, True]),
    ("not zero", {"type": "integer", "not": {"const": 0}}, [0, 1, -1, 10]),
    ("not in a range", {"type": "integer", "minimum": 0, "maximum": 20, "not": {"minimum": 5, "maximum": 9}}, [4, 5, 9, 10, 21]),
    ("not a pattern", {"type": "string", "not": {"pattern": "^[0-9]"}}, ["1a", "a1", "", "9"]),
    ("not both", closed({"a": INTEGER, "b": INTEGER}, **{"not": {"required": ["a", "b"]}}),
     [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 2}]),
    ("not this property", closed({"a": STRING}, **{"not": {"properties": {"a": {"const": "x"}}, "required": ["a"]}}),
     [{}, {"a": "y"}, {"a": "x"}]),
    ("not any", {"type": "string", "not": {"anyOf": [{"const": "a"}, {"maxLength": 1}]}}, ["a", "b", "ab", ""]),
    ("not not", {"not": {"not": {"type": "integer"}}}, [1, "a"]),
    ("not a reference", {"type": "string", "not": {"$ref": "#/$defs/short"}, "$defs": {"short": {"maxLength": 2}}}, ["ab", "abc"]),
    ("not a list of items", {"type": "array", "not": {"items": INTEGER}}, [[1], ["a"]]),
    # conditions
    ("if on a value", {**PERSON, "if": {"properties": {"country": {"const": "US"}}}, "then": {"required": ["zip"]}},
     [{"country": "NL"}, {"country": "US"}, {"country": "US", "zip": "1"}, {"country": "NL", "zip": "1"}, {"zip": "1"}]),
    ("if, then and else", {**closed({"kind": {"enum": ["n", "s"]}, "value": {"type": ["integer", "string"]}}, required=["kind", "value"]),
                           "if": {"properties": {"kind": {"const": "n"}}, "required": ["kind"]},
                           "then": {"properties": {"value": INTEGER}}, "else": {"properties": {"value": STRING}}},
     [{"kind": "n", "value": 1}, {"kind": "n", "value": "a"}, {"kind": "s", "value": "a"}, {"kind": "s", "value": 1}]),
    ("two conditions", {**closed({"a": {"type": "boolean"}, "b": INTEGER, "c": INTEGER}, required=["a"]), "allOf": [
        {"if": {"properties": {"a": {"const": True}}}, "then": {"required": ["b"]}},
        {"if": {"properties": {"a": {"const": False}}}, "then": {"required": ["c"]}}]},
     [{"a": True}, {"a": True, "b": 1}, {"a": False}, {"a": False, "c": 1}, {"a": False, "b": 1}]),
    ("if that asks for a type", {"type": ["integer", "string"], "if": {"type": "string"}, "then": {"minLength": 2}, "else": {"minimum": 3}},
     ["a", "ab", 2, 3]),
    ("if alone", {"type": "integer", "if": {"contains": {}}}, [1, "a"]),
    ("dependentRequired", closed({"card": INTEGER, "address": STRING}, dependentRequired={"card": ["address"]}),
     [{}, {"address": "a"}, {"card": 1}, {"card": 1, "address": "a"}]),
    ("dependentRequired of open objects", {"dependentRequired": {"a": ["b"]}}, [1, "a", {"b": 1}, {"a": 1}, {"a": 1, "b": 2}]),
    ("dependentSchemas", closed({"a": INTEGER, "b": {}}, dependentSchemas={"a": {"properties": {"b": STRING}, "required": ["b"]}}),
     [{}, {"b": 1}, {"a": 1}, {"a": 1, "b": 1}, {"a": 1, "b": "x"}]),
    ("dependencies", {"$schema": "http://json-schema.org/draft-07/schema#",
                      **closed({"a": INTEGER, "b": INTEGER, "c": INTEGER}, dependencies={"a": ["b"], "b": {"required": ["c"]}})},
     [{}, {"c": 1}, {"a": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1}, {"b": 1}]),
    ("exactly one of two", {**closed({"a": INTEGER, "b": INTEGER}), "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
     [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 1}]),
    ("oneOf references", {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
                          "discriminator": {"propertyName": "kind"},
                          "$defs": {"cat": closed({"kind": {"const": "cat", "type": "string"}, "lives": INTEGER}, required=["kind", "lives"]),
                                    "dog": closed({"kind": {"const": "dog", "type": "string"}, "good": {"type": "boolean"}}, required=["kind", "good"])}},
     [{"kind": "cat", "lives": 9}, {"kind": "dog", "good": True}, {"kind": "dog", "lives": 9}, {"kind": "fox"}]),
    ("oneOf ranges", {"type": "integer", "oneOf": [{"maximum": 5}, {"minimum": 3}]}, [2, 3, 5, 6]),
    ("oneOf integers and numbers", {"oneOf": [INTEGER, {"type": "number"}]}, ["a"]),
    # names
    ("propertyNames", {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": INTEGER},
     [{}, {"abc": 1}, {"Abc": 1}, {"abc": "x"}]),
    ("propertyNames among", {"type": "object", "propertyNames": {"$ref": "#/$defs/E"}, "additionalProperties": INTEGER,
                             "$defs": {"E": {"enum": ["red", "green"], "title": "E", "type": "string"}}},
     [{}, {"red": 1}, {"red": 1, "green": 2}, {"blue": 1}, {"red": "x"}]),
    ("propertyNames of a length", {"type": "object", "propertyNames": {"minLength": 2, "maxLength": 3}}, [{}, {"a": 1}, {"ab": 1}, {"abcd": 1}]),
    ("propertyNames beside properties", {"type": "object", "properties": {"ab": INTEGER, "B": INTEGER}, "propertyNames": {"pattern": "^[a-z]"}},
     [{"ab": 1}, {"B": 1}, {"c": 1}]),
    ("propertyNames that are none", {"type": "object", "propertyNames": False}, [{}, {"a": 1}]),
    ("propertyNames of two kinds", {"type": "object", "propertyNames": {"pattern": "^a", "maxLength": 3}}, [{}, {"ab": 1}, {"b": 1}]),
    ("unevaluatedProperties", {"type": "object", "properties": {"a": INTEGER}, "unevaluatedProperties": False}, [{}, {"a": 1}, {"b": 1}]),
    ("unevaluatedProperties of parts", {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": INTEGER}}], "type": "object",
                                        "unevaluatedProperties": False, "$defs": {"base": {"properties": {"a": STRING}, "required": ["a"]}}},
     [{"a": "x"}, {"a": "x", "b": 1}, {"a": "x", "c": 1}, {"b": 1}]),
    ("unevaluatedProperties by value", {"type": "object", "anyOf": [{"properties": {"a": INTEGER}, "required": ["a"]}, {"properties": {"b": INTEGER}}],
                                        "unevaluatedProperties": False}, [{"a": 1}, {"b": 1}]),
    # arrays
    ("unique values", {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True},
     [[], ["a"], ["b", "a"], ["c", "b", "a"], ["a", "a"], ["d"]]),
    ("unique values by reference", {"type": "array", "items": {"$ref": "#/$defs/E"}, "uniqueItems": True, "minItems": 1,
                                    "$defs": {"E": {"enum": ["x", "y"], "type": "string"}}}, [[], ["x"], ["y", "x"], ["x", "x"]]),
    ("unique and short", {"type": "array", "items": STRING, "uniqueItems": True, "maxItems": 1}, [[], ["a"], ["a", "b"]]),
    ("unique and equal", {"type": "array", "items": {"enum": [1, 1.0, 2]}, "uniqueItems": True}, [[1], [1, 2], [1, 1]]),
    ("not unique", {"type": "array", "items": INTEGER, "uniqueItems": False}, [[1, 1], ["a"]]),
    ("unique strings", {"type": "array", "items": STRING, "uniqueItems": True}, [["a", "b"], ["a", "a"]]),
    ("contains", {"type": "array", "items": INTEGER, "contains": {"minimum": 5}}, [[5], [1, 5], [1, 2, 7, 1], [1], []]),
    ("contains in what is short", {"type": "array", "maxItems": 2, "contains": STRING}, [["a"], [1, "a"], [1, 2], [1, 2, "a"]]),
    ("contains two", {"type": "array", "items": INTEGER, "contains": {"minimum": 5}, "minContains": 2}, [[5, 6], [1, 5, 6], [5], [1]]),
    ("contains at most one", {"type": "array", "items": INTEGER, "contains": {"minimum": 5}, "maxContains": 1}, [[5], [1, 5, 1], [5, 6], [1]]),
    ("contains none", {"type": "array", "items": INTEGER, "contains": {"minimum": 5}, "minContains": 0, "maxContains": 0}, [[], [1], [5]]),
    ("contains perhaps", {"type": "array", "contains": STRING, "minContains": 0}, [[], [1], ["a"]]),
    ("draft 7 items", {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [INTEGER, STRING],
                       "additionalItems": False}, [[], [1, "a"], [1, "a", 2], ["a"]]),
    ("unevaluatedItems", {"type": "array", "prefixItems": [INTEGER], "unevaluatedItems": False}, [[], [1], [1, 2], ["a"]]),
    # as pydantic and schemars write them
    ("pydantic optional", closed({"a": {"anyOf": [INTEGER, {"type": "null"}], "default": None, "title": "A"}}, title="M"),
     [{}, {"a": None}, {"a": 1}, {"a": "x"}]),
    ("contentSchema", {"type": "string", "contentMediaType": "application/json", "contentSchema": {"type": "object"}}, ["{}", "x", 1]),
]
# What a strict format refuses.
REFUSED = {
    "look in a repeated group": "pattern",
    "not a list of items": "not",
    "oneOf integers and numbers": "oneOf",
    "propertyNames of two kinds": "propertyNames",
    "unevaluatedProperties by value": "unevaluatedProperties",
    "unique strings": "uniqueItems",
}


def main():
    lines = []
    for name, schema, instances in CASES:
        validator = VALIDATORS.get(schema.get("$schema"), Draft202012Validator)
        validator.check_schema(schema)
        check = validator(schema)
        # As texts: what reads them must not change how numbers are written.
        texts = [(json.dumps(one, ensure_ascii=False, separators=(",", ":")), check.is_valid(one)) for one in instances]
        case = {"name": name, "schema": schema, "valid": [text for text, valid in texts if valid],
                "invalid": [text for text, valid in texts if not valid]}
        if name in REFUSED:
            case["refused"] = REFUSED[name]
        lines.append(json.dumps(case, ensure_ascii=False))
    OUT.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(lines)} schemas")


if __name__ == "__main__":
    main()
