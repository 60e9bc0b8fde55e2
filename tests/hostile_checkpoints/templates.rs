//! Templates that recurse, and templates that make much of little.

use std::path::Path;

use crate::common::Recipe;
use crate::nests::{NESTS, depths};
use crate::{Case, Expected};

/// MiB that a template may take: what it makes, half of that once more while a buffer that grows is copied (the scrubbing
/// allocator overwrites the old one, so it cannot grow in place), and the prompt with what a filter works with.
const MOST_MIB: u64 = 512 + 256 + 64 + 64;

fn case(name: &str, expected: Expected, source: impl Fn() -> String + Sync + 'static) -> Case {
    let write = move |folder: &Path| {
        Recipe::small(704).write(folder, Some("byte_level"));
        std::fs::write(folder.join("chat_template.jinja"), source()).unwrap();
    };
    Case { name: name.to_owned(), write: Box::new(write), expected, most_mib: MOST_MIB, locks: false }
}

pub fn cases() -> Vec<Case> {
    [nested(), recursive(), large()].into_iter().flatten().collect()
}

fn nested() -> Vec<Case> {
    let mut cases: Vec<Case> = NESTS
        .iter()
        .map(|(name, nest)| {
            let write = move |folder: &Path| {
                Recipe::small(704).write(folder, Some("byte_level"));
                let further = folder.join("additional_chat_templates");
                std::fs::create_dir(&further).unwrap();
                std::fs::write(folder.join("chat_template.jinja"), "x").unwrap();
                for depth in depths(*nest) {
                    std::fs::write(further.join(format!("{depth}.jinja")), nest(depth) + "x").unwrap();
                }
            };
            let (name, write) = (format!("{name} in {name}"), Box::new(write));
            Case { name, write, expected: Expected::Works, most_mib: MOST_MIB, locks: true }
        })
        .collect();
    const LONG: &[&str] = &["chat_template.jinja: must be at most 262144 bytes"];
    cases.push(case("a million parentheses", Expected::Error(LONG), || (NESTS[0].1)(1_000_000)));
    cases
}

fn recursive() -> Vec<Case> {
    let too_much = || Expected::Error(&["`messages` must be"]);
    let bounded = |name: &str, source: &'static str| case(name, too_much(), move || source.to_owned());
    vec![
        bounded("a macro in itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        bounded(
            "a macro in itself, in loops",
            "{% macro m() %}{% for a in [1] %}{% if 1 %}{% set b %}{{ m() }}{% endset %}{% endif %}{% endfor %}{% endmacro %}{{ m() }}",
        ),
        bounded(
            "a caller in itself",
            "{% macro m() %}{{ caller() if caller }}{% call m() %}1{% endcall %}{% endmacro %}{{ m() }}",
        ),
        bounded("a loop in itself", "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}"),
        bounded("a block in itself", "{% block a %}{{ self.a() }}{% endblock %}"),
        bounded(
            "a list in a list",
            "{% set ns = namespace(a=[]) %}{% for i in range(99999) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
        ),
        bounded(
            "a pair in a pair",
            "{% set ns = namespace(a=1) %}{% for i in range(99999) %}{% set ns.a = ns.a, 1 %}{% endfor %}",
        ),
        bounded(
            "a map in a map",
            "{% set ns = namespace(a=1) %}{% for i in range(99999) %}{% set ns.a = {'a': ns.a} %}{% endfor %}",
        ),
        bounded(
            "a dict in a dict",
            "{% set ns = namespace(a=1) %}{% for i in range(99999) %}{% set ns.a = dict(a=ns.a) %}{% endfor %}",
        ),
        bounded(
            "items in items",
            "{% set ns = namespace(a={}) %}{% for i in range(99999) %}{% set ns.a = {'a': ns.a|items|list} %}{% endfor %}",
        ),
        bounded("a namespace in itself", "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}"),
        bounded("a namespace in a list of itself", "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}"),
        bounded(
            "a namespace in a map of itself",
            "{% set ns = namespace() %}{% set ns.a = dict(b=ns) %}{{ ns }}",
        ),
        bounded(
            "a macro in what it sees",
            "{% set ns = namespace() %}{% macro m() %}{{ ns }}{% endmacro %}{% set ns.m = m %}",
        ),
        bounded("namespaces in namespaces", "{% set a = namespace() %}{% set b = namespace(a=a) %}{{ b.a }}"),
        bounded(
            "a list of itself twice, thirty times, printed",
            "{% set ns = namespace(a=[1]) %}{% for i in range(30) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
        ),
        bounded(
            "a list of itself twice, compared",
            "{% set x = namespace(a=[1], b=[1]) %}{% for i in range(40) %}{% set x.a = [x.a, x.a] %}{% set x.b = [x.b, x.b] %}{% endfor %}{{ x.a == x.b }}",
        ),
        bounded(
            "a map of itself twice, as JSON",
            "{% set x = namespace(a={}) %}{% for i in range(40) %}{% set x.a = {'a': x.a, 'b': x.a} %}{% endfor %}{{ x.a|tojson }}",
        ),
        bounded(
            "a list that doubles",
            "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a|length }}",
        ),
    ]
}

fn large() -> Vec<Case> {
    let too_much = || Expected::Error(&["`messages` must be"]);
    let bounded = |name: &str, source: &'static str| case(name, too_much(), move || source.to_owned());
    let doubles =
        "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}";
    vec![
        Case { locks: true, ..bounded("a text that doubles by ~, in locked memory", doubles) },
        bounded("a text that doubles by ~", doubles),
        bounded("a billion letters", "{{ ('x' * 10**9)|length }}"),
        bounded(
            "a hundred million letters many times",
            "{% for i in range(99) %}{{ ('x' * 99999999)|length }}{% endfor %}",
        ),
        bounded(
            "fifty million letters kept many times",
            "{% set ns = namespace() %}{% set ns.a = 'x' * 50000000 %}{% set b = ns.a ~ 'b' %}{% set c = ns.a ~ 'c' %}{% set d = ns.a ~ 'd' %}{% set e = ns.a ~ 'e' %}{% set f = ns.a ~ 'f' %}{% set g = ns.a ~ 'g' %}{% set h = ns.a ~ 'h' %}{% set i = ns.a ~ 'i' %}{% set j = ns.a ~ 'j' %}{% set k = ns.a ~ 'k' %}{{ 1 }}",
        ),
        bounded("a range of a billion", "{{ range(10**9)|list|length }}"),
        bounded(
            "ranges in lists",
            "{% set ns = namespace(a=[]) %}{% for i in range(9999) %}{% set ns.a = [ns.a, range(99999)|list] %}{% endfor %}",
        ),
        bounded(
            "a text that doubles by +",
            "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
        ),
        bounded(
            "a text that doubles by *",
            "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a * 2 %}{% endfor %}",
        ),
        bounded(
            "a text that doubles by capture",
            "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a %}{{ ns.a }}{{ ns.a }}{% endset %}{% endfor %}",
        ),
        bounded(
            "a text that doubles by a macro",
            "{% macro m(a, n) %}{% if n %}{{ m(a, n - 1) }}{{ m(a, n - 1) }}{% else %}{{ a }}{% endif %}{% endmacro %}{% set b = m('x' * 1000, 20) %}",
        ),
        bounded(
            "a text that doubles by a format",
            "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = '{}{}'.format(ns.a, ns.a) %}{% endfor %}",
        ),
        bounded(
            "a text that doubles by a join",
            "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a]|join %}{% endfor %}",
        ),
        bounded(
            "a text that doubles in a filtered block",
            "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a %}{% filter upper %}{{ ns.a }}{{ ns.a }}{% endfilter %}{% endset %}{% endfor %}",
        ),
        bounded(
            "texts in a list",
            "{% set ns = namespace(a=[]) %}{% for i in range(9999) %}{% set ns.a = ns.a + ['x' * 999999] %}{% endfor %}",
        ),
        bounded(
            "cuts of a text in a list",
            "{% set t = 'x' * 9999999 %}{% set ns = namespace(a=[]) %}{% for i in range(999) %}{% set ns.a = ns.a + [t[i:]] %}{% endfor %}",
        ),
        bounded("letters of a text", "{{ ('x' * 9999999)|list|length }}"),
        bounded("parts of a text", "{{ ('x,' * 9999999).split(',')|length }}"),
        bounded("words of a text", "{{ ('x ' * 9999999).split()|length }}"),
        bounded("lines of a text", "{{ ('x\\n' * 9999999).splitlines()|length }}"),
        bounded("an indented text", "{{ ('x\\n' * 9999999)|indent(64)|length }}"),
        bounded(
            "texts replaced one by one",
            "{{ (['xxxxxxxx'] * 99999)|map('replace', 'x', 'y' * 9999)|list|length }}",
        ),
        bounded("lists joined one by one", "{{ ([['x' * 9999] * 99] * 9999)|map('join')|list|length }}"),
        bounded(
            "texts as JSON one by one",
            "{{ (['x' * 9999] * 99999)|map('tojson', indent=4)|list|length }}",
        ),
        bounded(
            "a namespace that grows",
            "{% set ns = namespace() %}{% macro m(n) %}{% set ns.a = 'x' * 9999999 %}{% endmacro %}{% for i in range(9999) %}{% set ns.b = m(i) ~ ns.a ~ i %}{% endfor %}",
        ),
        bounded("unpacking", "{{ dict(*([1] * 999999), *([1] * 999999)) }}"),
        bounded("a wide text", "{{ 'x'.center(9999999)|center(999999999) }}"),
        bounded("a wide format", "{{ '%*d' % (999999999, 1) }}"),
        bounded("numbers of many digits", "{{ '%.999999999d' % 1 }}"),
        bounded("tabs of a width", "{{ ('\\t' * 9999999).expandtabs(99) }}"),
        bounded("a batch of a size", "{{ [1]|batch(999999999, 1)|list }}"),
        bounded("many slices", "{{ [1]|slice(999999999)|list }}"),
        bounded(
            "texts of a format in lists",
            "{% set ns = namespace(a=[]) %}{% for i in range(9999) %}{% set ns.a = ns.a + ['%s%s' % ('x' * 99999, i)] %}{% endfor %}",
        ),
        bounded(
            "methods in methods",
            "{% set ns = namespace(a={}) %}{% for i in range(99999) %}{% set ns.a = {'a': ns.a.items} %}{% endfor %}",
        ),
        bounded("cyclers in cyclers", "{% set a = cycler(cycler(1)) %}"),
        bounded(
            "tuples in tuples",
            "{% set ns = namespace(a=()) %}{% for i in range(99999) %}{% set ns.a = (ns.a,) %}{% endfor %}",
        ),
        bounded(
            "pairs of what is in itself",
            "{% set ns = namespace(a={}) %}{% for i in range(99999) %}{% set ns.a = ns.a|groupby('x', default=ns.a) %}{% set ns.a = {'a': ns.a} %}{% endfor %}",
        ),
        case("long texts between tags, in a capture", too_much(), || {
            let text = "long ".repeat(20_000);
            format!("{{% set a %}}{{% for i in range(99999) %}}{text}{{% endfor %}}{{% endset %}}")
        }),
        case("blanks between tags, in a capture", too_much(), || {
            let blanks = " ".repeat(100_000);
            format!(
                "{{% set a %}}{{% for i in range(99999) %}}{{{{ '' }}}}{blanks}{{{{ '' }}}}{{% endfor %}}{{% endset %}}"
            )
        }),
        case("a raw block, in a capture", too_much(), || {
            let text = "long ".repeat(20_000);
            format!(
                "{{% set a %}}{{% for i in range(99999) %}}{{% raw %}}{text}{{% endraw %}}{{% endfor %}}{{% endset %}}"
            )
        }),
        case("a literal of 200 kB", Expected::Either, || format!("{{{{ '{}' }}}}", "long ".repeat(40_000))),
        case("a list of 60,000 literals", Expected::Either, || {
            format!("{{{{ [{}1]|length }}}}", "1, ".repeat(60_000))
        }),
        case("products of literals", too_much(), || "{{ ('x' * 99999999)|length }}".repeat(9_000)),
    ]
}
