//! Templates in which something stands in itself, as deep as is asked for.

/// Bytes of the longest template that is read.
pub const MAX_SOURCE: usize = 256 << 10;

/// A way to write something in itself.
pub type Nest = (&'static str, fn(usize) -> String);

pub const NESTS: &[Nest] = &[
    ("parentheses", |depth| format!("{{{{ {}1{} }}}}", "(".repeat(depth), ")".repeat(depth))),
    ("lists", |depth| format!("{{{{ {}{} }}}}", "[".repeat(depth), "]".repeat(depth))),
    ("maps", |depth| format!("{{{{ {}1{} }}}}", "{1:".repeat(depth), "}".repeat(depth))),
    ("subscripts", |depth| {
        format!("{{% set a = [0] %}}{{{{ {}0{} }}}}", "a[".repeat(depth), "]".repeat(depth))
    }),
    ("calls", |depth| format!("{{{{ {}1{} }}}}", "dict(a=".repeat(depth), ")".repeat(depth))),
    ("filters", |depth| format!("{{{{ 'a'{} }}}}", "|upper".repeat(depth))),
    ("filters in arguments", |depth| {
        format!("{{{{ 'a'{}{} }}}}", "|default('a'".repeat(depth), ")".repeat(depth))
    }),
    ("items of items", |depth| format!("{{{{ 'a'{} }}}}", "[0]".repeat(depth))),
    ("slices of slices", |depth| format!("{{{{ 'a'{} }}}}", "[:1]".repeat(depth))),
    ("methods", |depth| format!("{{{{ 'a'{} }}}}", ".strip()".repeat(depth))),
    ("tests", |depth| format!("{{{{ 1{} }}}}", " is defined".repeat(depth))),
    ("nots", |depth| format!("{{{{ {}1 }}}}", "not ".repeat(depth))),
    ("minuses", |depth| format!("{{{{ {}1 }}}}", "-".repeat(depth))),
    ("sums", |depth| format!("{{{{ 1{} }}}}", "+1".repeat(depth))),
    ("sums and differences", |depth| format!("{{{{ 1{} }}}}", "+1-1".repeat(depth))),
    ("texts", |depth| format!("{{{{ 'a'{} }}}}", "~'a'".repeat(depth))),
    ("products", |depth| format!("{{{{ 1{} }}}}", "*1".repeat(depth))),
    ("quotients", |depth| format!("{{{{ 1{} }}}}", "//1".repeat(depth))),
    ("powers", |depth| format!("{{{{ 1{} }}}}", "**1".repeat(depth))),
    ("comparisons", |depth| format!("{{{{ 1{} }}}}", "==1".repeat(depth))),
    ("ors", |depth| format!("{{{{ 0{} }}}}", " or 0".repeat(depth))),
    ("ands", |depth| format!("{{{{ 1{} }}}}", " and 1".repeat(depth))),
    ("choices", |depth| format!("{{{{ 1{} }}}}", " if 1".repeat(depth))),
    ("choices that end otherwise", |depth| format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(depth))),
    ("ifs", |depth| format!("{}1{}", "{% if 1 %}".repeat(depth), "{% endif %}".repeat(depth))),
    ("elifs", |depth| format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(depth))),
    ("loops", |depth| format!("{}1{}", "{% for a in [1] %}".repeat(depth), "{% endfor %}".repeat(depth))),
    ("withs", |depth| format!("{}1{}", "{% with a = 1 %}".repeat(depth), "{% endwith %}".repeat(depth))),
    ("captures", |depth| format!("{}1{}", "{% set a %}".repeat(depth), "{% endset %}".repeat(depth))),
    ("filtered blocks", |depth| {
        format!("{}1{}", "{% filter upper %}".repeat(depth), "{% endfilter %}".repeat(depth))
    }),
    ("macros in macros", |depth| {
        format!("{}1{}", "{% macro m() %}".repeat(depth), "{% endmacro %}".repeat(depth))
    }),
    ("macros one after another", |depth| {
        let macros =
            (1..depth).map(|at| format!("{{% macro m{at}() %}}{{{{ m{}() }}}}{{% endmacro %}}", at - 1));
        format!("{{% macro m0() %}}1{{% endmacro %}}{}", macros.collect::<String>())
    }),
    ("calls of blocks", |depth| {
        let call = "{% call m() %}";
        format!(
            "{{% macro m() %}}{{{{ caller() }}}}{{% endmacro %}}{}1{}",
            call.repeat(depth),
            "{% endcall %}".repeat(depth)
        )
    }),
    ("targets", |depth| format!("{{% set {}a{} = 1 %}}", "(".repeat(depth), ")".repeat(depth))),
];

/// How deep: a little, deeper than is sensible, and as deep as a template's length allows.
pub fn depths(nest: fn(usize) -> String) -> Vec<usize> {
    let each = nest(2000).len() - nest(1999).len();
    let mut depths = vec![10, 1_000, 8_000, MAX_SOURCE / each];
    while depths.last().is_some_and(|depth| nest(*depth).len() >= MAX_SOURCE) {
        *depths.last_mut().expect("one is left") -= 20;
    }
    depths.retain(|depth| nest(*depth).len() < MAX_SOURCE);
    depths
}
