//! Expressions: every operator, subscript and attribute becomes a filter.

use super::lexer::{Kind, Literal, literal};
use super::{MALFORMED, Piece, Result, Rewriter, Why, put};

/// Filters whose results share the texts of what they are given.
const SHARING: [&str; 15] = [
    "attr",
    "default",
    "d",
    "dictsort",
    "first",
    "items",
    "last",
    "list",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
];
/// Names that minijinja knows itself; their attributes are looked up by it.
const OWN: [&str; 4] = ["loop", "self", "caller", "super"];
const COMPARISONS: [&str; 8] = ["==", "!=", "<", "<=", ">", ">=", "in", "not"];

/// An argument of a call.
struct Argument {
    name: Option<String>,
    text: String,
    /// Which of `*` and `**` stands before it, and where in the text what they unpack begins.
    unpacks: Option<(Stars, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stars {
    One,
    Two,
}

impl<'a> Rewriter<'a> {
    /// A filter's name and arguments, and the check behind it.
    pub(super) fn filter(&mut self, out: &mut String) -> Result<()> {
        let name = self.name_of_filter(out)?;
        if self.peek()?.is("(") {
            let arguments = self.arguments()?;
            *out += &in_parentheses(&arguments);
        }
        *out += if SHARING.contains(&name) { "|__shared" } else { "|__checked" };
        Ok(())
    }

    fn name_of_filter(&mut self, out: &mut String) -> Result<&'a str> {
        self.link()?;
        let name = self.expect_kind(Kind::Name)?;
        put(out, name);
        while let Some(dot) = self.skip(".")? {
            put(out, dot);
            put(out, self.expect_kind(Kind::Name)?);
        }
        Ok(name.text)
    }

    /// `parse_expr`.
    pub(super) fn expression(&mut self) -> Result<Piece> {
        self.deeper()?;
        let piece = self.choice()?;
        self.depth -= 1;
        Ok(piece)
    }

    /// `parse_ifexpr`.
    fn choice(&mut self) -> Result<Piece> {
        let mut piece = self.any_of()?;
        while let Some(token) = self.skip("if")? {
            self.link()?;
            let mut text = piece.text;
            put(&mut text, token);
            text += &self.any_of()?.text;
            if let Some(token) = self.skip("else")? {
                put(&mut text, token);
                self.deeper()?;
                text += &self.choice()?.text;
                self.depth -= 1;
            }
            piece = Piece::open(text);
        }
        Ok(piece)
    }

    /// `parse_or`.
    pub(super) fn any_of(&mut self) -> Result<Piece> {
        self.chain("or", Self::all_of)
    }

    fn all_of(&mut self) -> Result<Piece> {
        self.chain("and", Self::negation)
    }

    fn negation(&mut self) -> Result<Piece> {
        let Some(token) = self.skip("not")? else { return self.comparison() };
        self.deeper()?;
        let mut text = String::new();
        put(&mut text, token);
        text += &self.negation()?.text;
        self.depth -= 1;
        Ok(Piece::open(text))
    }

    /// A chain of comparisons is one filter: each of its values is compared with the next.
    fn comparison(&mut self) -> Result<Piece> {
        let piece = self.sum()?;
        let mut compared = String::new();
        loop {
            let token = self.peek()?;
            if !COMPARISONS.iter().any(|name| token.is(name)) {
                break;
            }
            self.link()?;
            let token = self.next()?;
            compared += token.before;
            let name = match token.text {
                "not" => {
                    compared += self.expect("in")?.before;
                    "not in"
                }
                name => name,
            };
            compared += &format!("\"{name}\",{},", self.sum()?.text);
        }
        match compared.is_empty() {
            true => Ok(piece),
            false => Ok(Piece::closed(format!("{}|__compare({compared})", piece.operand()))),
        }
    }

    fn sum(&mut self) -> Result<Piece> {
        self.operators(&[("+", "__add"), ("-", "__sub")], Self::concatenation)
    }

    fn concatenation(&mut self) -> Result<Piece> {
        self.operators(&[("~", "__concat")], Self::product)
    }

    fn product(&mut self) -> Result<Piece> {
        let operators = [("*", "__mul"), ("/", "__div"), ("//", "__floordiv"), ("%", "__mod")];
        self.operators(&operators, Self::power)
    }

    fn power(&mut self) -> Result<Piece> {
        self.operators(&[("**", "__pow")], Self::unary)
    }

    /// Operators of one rank that stay as they are.
    fn chain(&mut self, name: &str, next: fn(&mut Self) -> Result<Piece>) -> Result<Piece> {
        let mut piece = next(self)?;
        while self.peek()?.is(name) {
            self.link()?;
            let token = self.next()?;
            put(&mut piece.text, token);
            piece = Piece::open(piece.text + &next(self)?.text);
        }
        Ok(piece)
    }

    /// Operators of one rank, of which a run of the same becomes one call of its filter.
    fn operators(
        &mut self,
        operators: &[(&'static str, &'static str)],
        next: fn(&mut Self) -> Result<Piece>,
    ) -> Result<Piece> {
        let mut piece = next(self)?;
        loop {
            let token = self.peek()?;
            let Some((name, filter)) = operators.iter().find(|(name, _)| token.is(name)) else {
                return Ok(piece);
            };
            let mut text = format!("{}|{filter}(", piece.operand());
            let mut comma = "";
            while let Some(operator) = self.skip(name)? {
                self.link()?;
                text += comma;
                text += operator.before;
                text += &next(self)?.text;
                comma = ",";
            }
            text.push(')');
            piece = Piece::closed(text);
        }
    }

    /// `parse_unary`: a value, what follows it, and filters and tests.
    fn unary(&mut self) -> Result<Piece> {
        let mut piece = self.followed()?;
        loop {
            if let Some(pipe) = self.skip("|")? {
                piece = Piece::closed(piece.operand());
                put(&mut piece.text, pipe);
                self.filter(&mut piece.text)?;
            } else if let Some(token) = self.skip("is")? {
                put(&mut piece.text, token);
                self.test(&mut piece.text)?;
                piece.closed = false;
            } else {
                return Ok(piece);
            }
            piece.call = None;
        }
    }

    fn test(&mut self, out: &mut String) -> Result<()> {
        if let Some(not) = self.skip("not")? {
            put(out, not);
        }
        self.name_of_filter(out)?;
        let token = self.peek()?;
        if token.is("(") {
            let arguments = self.arguments()?;
            *out += &in_parentheses(&arguments);
            return Ok(());
        }
        let argument = match token.kind {
            Kind::Name => !["and", "or", "else", "is", "if", "not", "in", "recursive"].contains(&token.text),
            Kind::Text | Kind::Number => true,
            Kind::Symbol => ["[", "{"].contains(&token.text),
            Kind::End => false,
        };
        // in parentheses, also none: minijinja would take what follows for an argument
        let text = if argument { self.followed()?.text } else { String::new() };
        *out += &format!("({text})");
        Ok(())
    }

    /// `parse_unary_only` and `parse_postfix`.
    fn followed(&mut self) -> Result<Piece> {
        for sign in ["-", "+"] {
            if let Some(token) = self.skip(sign)? {
                self.deeper()?;
                let is_number = self.peek()?.kind == Kind::Number;
                let text = self.followed()?.text;
                self.depth -= 1;
                return Ok(Piece::closed(match sign {
                    "-" if is_number => format!("({}-{text})", token.before),
                    "-" => format!("({}{text}|__neg)", token.before),
                    _ => format!("({}{text}|__pos)", token.before),
                }));
            }
        }
        let mut piece = self.primary()?;
        // Whether the text ends in a filter: nothing but a filter can follow without parentheses.
        let mut filtered = false;
        loop {
            let token = self.peek()?;
            if token.is(".") {
                filtered = self.attribute(&mut piece, filtered)?;
            } else if token.is("[") {
                self.link()?;
                piece.text += &self.subscript()?;
                filtered = true;
            } else if token.is("(") {
                self.link()?;
                let called = if filtered { format!("({})", piece.text) } else { piece.text };
                let arguments = self.arguments()?;
                let text = format!("{called}{}", in_parentheses(&self.packed(called.trim(), arguments)));
                piece = Piece::closed(format!("({text}|__checked)"));
                piece.call = Some(text);
                filtered = false;
                continue;
            } else {
                break;
            }
            piece.call = None;
        }
        if filtered {
            piece.text = format!("({})", piece.text);
        }
        Ok(piece)
    }

    /// What a dot is followed by. Returns whether the text ends in a filter.
    fn attribute(&mut self, piece: &mut Piece, filtered: bool) -> Result<bool> {
        self.link()?;
        let dot = self.next()?;
        let name = self.next()?;
        if !matches!(name.kind, Kind::Name | Kind::Number) {
            return Err(MALFORMED);
        }
        let is_method = name.kind == Kind::Name && self.peek()?.is("(");
        if is_method || OWN.contains(&piece.text.trim()) {
            let value = std::mem::take(&mut piece.text);
            piece.text = if filtered { format!("({value})") } else { value };
            put(&mut piece.text, dot);
            put(&mut piece.text, name);
            return Ok(false);
        }
        piece.text += dot.before;
        piece.text += name.before;
        piece.text += &match name.kind {
            Kind::Number => format!("|__item({})", name.text),
            _ => format!("|__attr(\"{}\")", name.text),
        };
        Ok(true)
    }

    /// `[a]` and `[a:b:c]`, as a filter.
    fn subscript(&mut self) -> Result<String> {
        let open = self.expect("[")?;
        let mut parts = vec![None];
        loop {
            if self.peek()?.is("]") {
                break;
            }
            match self.skip(":")? {
                Some(_) => parts.push(None),
                None => {
                    let last = parts.last_mut().filter(|part| part.is_none()).ok_or(MALFORMED)?;
                    *last = Some(self.expression()?.text);
                }
            }
        }
        let close = self.expect("]")?;
        let [first, others @ ..] = &parts[..] else { return Err(MALFORMED) };
        if others.is_empty() {
            let key = first.as_deref().ok_or(MALFORMED)?;
            return Ok(format!("{}|__item({key}{})", open.before, close.before));
        }
        if others.len() > 2 {
            return Err(MALFORMED);
        }
        parts.resize(3, None);
        let parts: Vec<_> = parts.iter().map(|part| part.as_deref().unwrap_or("none")).collect();
        Ok(format!("{}|__slice({}{})|__sliced", open.before, parts.join(","), close.before))
    }

    fn arguments(&mut self) -> Result<Vec<Argument>> {
        let open = self.expect("(")?;
        let mut arguments = Vec::new();
        let mut before = open.before.to_owned();
        while !self.peek()?.is(")") {
            let unpacked = match self.skip("*")? {
                Some(token) => Some((Stars::One, token)),
                None => self.skip("**")?.map(|token| (Stars::Two, token)),
            };
            let value = self.expression()?;
            let mut argument = Argument { name: None, text: std::mem::take(&mut before), unpacks: None };
            if let Some((stars, token)) = unpacked {
                argument.text += token.before;
                argument.text += token.text;
                argument.unpacks = Some((stars, argument.text.len()));
                argument.text += &format!("({}|__few)", value.operand());
            } else if let Some(assign) = self.skip("=")? {
                let name = value.text.trim_start();
                argument.text += &value.text[..value.text.len() - name.len()];
                argument.name = Some(name.trim_end().to_owned());
                argument.text += &format!("{}{}", assign.before, self.expression()?.text);
            } else {
                argument.text += &value.text;
            }
            arguments.push(argument);
            match self.skip(",")? {
                Some(comma) => before += comma.before,
                None => break,
            }
        }
        let close = self.expect(")")?;
        if let Some(last) = arguments.last_mut() {
            last.text += close.before;
        }
        Ok(arguments)
    }

    /// The arguments of a call of `name`. Those that its macro does not name are put together for it.
    fn packed(&self, name: &str, arguments: Vec<Argument>) -> Vec<Argument> {
        let Some(called) = self.known.iter().rev().find(|known| known.name == name && known.takes_more())
        else {
            return arguments;
        };
        let (mut own, mut varargs, mut kwargs) = (Vec::new(), Vec::new(), Vec::new());
        let mut mapping = None;
        let unpacks = |argument: &Argument, of| argument.unpacks.is_some_and(|(stars, _)| stars == of);
        let spread = called.varargs && arguments.iter().any(|argument| unpacks(argument, Stars::One));
        let mut positional = Vec::new();
        for (at, argument) in arguments.into_iter().enumerate() {
            let named = |name: &String| called.parameters.contains(name) || name == "caller";
            match &argument.name {
                // how many there are shows when the call is made
                None if spread && !unpacks(&argument, Stars::Two) => {
                    positional.push(match argument.unpacks {
                        Some((_, at)) => argument.text[at..].to_owned(),
                        None => format!("[{}]", argument.text),
                    })
                }
                None if called.kwargs && unpacks(&argument, Stars::Two) => {
                    mapping = argument.unpacks.map(|(_, at)| argument.text[at..].to_owned());
                }
                None if at >= called.parameters.len() && called.varargs && argument.unpacks.is_none() => {
                    varargs.push(argument.text);
                }
                Some(name) if !named(name) && called.kwargs => {
                    kwargs.push(format!("\"{name}\":{}", argument.text));
                }
                _ => own.push(argument),
            }
        }
        let mut packed = Vec::new();
        if spread {
            let (count, all) = (called.parameters.len(), format!("([{}]|__spread)", positional.join(",")));
            let text = format!("*({all}|__slice(none,{count},none)|__few)");
            own.insert(0, Argument { name: None, text, unpacks: None });
            packed.push(("varargs", format!("({all}|__slice({count},none,none)|__tuple)")));
        } else if !varargs.is_empty() {
            packed.push(("varargs", format!("(({},)|__tuple)", varargs.join(","))));
        }
        let mut more = format!("{{{}}}", kwargs.join(","));
        if let Some(mapping) = &mapping {
            let names: Vec<String> = called
                .parameters
                .iter()
                .map(|name| format!("\"{name}\""))
                .chain(["\"caller\"".to_owned()])
                .collect();
            let names = names.join(",");
            more = format!("([{more},({mapping}|__named([{names}],false))]|__merged)");
            let text = format!("**({mapping}|__named([{names}],true))");
            own.push(Argument { name: None, text, unpacks: None });
        }
        if mapping.is_some() || !kwargs.is_empty() {
            packed.push(("kwargs", more));
        }
        own.extend(packed.into_iter().map(|(name, text)| Argument {
            name: Some(name.to_owned()),
            text,
            unpacks: None,
        }));
        own
    }

    fn primary(&mut self) -> Result<Piece> {
        self.deeper()?;
        let token = self.next()?;
        let mut text = String::new();
        match (token.kind, token.text) {
            (Kind::Name | Kind::Number, _) => {
                put(&mut text, token);
                self.note(token.text);
            }
            (Kind::Text, _) => {
                text += token.before;
                text += &escaped(token.text)?;
                // as in Python, texts side by side are one
                while self.peek()?.kind == Kind::Text {
                    let token = self.next()?;
                    text += token.before;
                    text += &escaped(token.text)?;
                }
            }
            (Kind::Symbol, "(") => {
                put(&mut text, token);
                let is_tuple = self.items(&mut text, ")", false)?;
                text = if is_tuple { format!("({text}|__tuple)") } else { text };
            }
            (Kind::Symbol, "[") => {
                put(&mut text, token);
                self.items(&mut text, "]", false)?;
                text = format!("({text}|__shared)");
            }
            (Kind::Symbol, "{") => {
                put(&mut text, token);
                self.items(&mut text, "}", true)?;
                text = format!("({text}|__shared)");
            }
            _ => return Err(MALFORMED),
        }
        self.depth -= 1;
        Ok(Piece::closed(text))
    }

    /// Notes that the body of the innermost macro reads what it does not name.
    fn note(&mut self, name: &str) {
        let Some(at) = self.open_macros.last() else { return };
        let reads = &mut self.macros[*at];
        if reads.parameters.iter().any(|parameter| parameter == name) {
            return;
        }
        reads.varargs |= name == "varargs";
        reads.kwargs |= name == "kwargs";
    }

    /// Items to the closing bracket. Returns whether there is a comma, or no item.
    fn items(&mut self, out: &mut String, close: &str, pairs: bool) -> Result<bool> {
        let mut is_list = self.peek()?.is(close);
        while !self.peek()?.is(close) {
            *out += &self.expression()?.text;
            if pairs {
                put(out, self.expect(":")?);
                *out += &self.expression()?.text;
            }
            match self.skip(",")? {
                Some(comma) => put(out, comma),
                None => break,
            }
            is_list = true;
        }
        put(out, self.expect(close)?);
        Ok(is_list)
    }
}

fn escaped(token: &str) -> Result<String> {
    literal(token).map_err(|wrong| match wrong {
        Literal::Malformed => MALFORMED,
        Literal::Named => Why::Unknown("\\N".to_owned()),
    })
}

fn in_parentheses(arguments: &[Argument]) -> String {
    let one = |argument: &Argument| match &argument.name {
        Some(name) => format!("{name}={}", argument.text),
        None => argument.text.clone(),
    };
    format!("({})", arguments.iter().map(one).collect::<Vec<_>>().join(","))
}
