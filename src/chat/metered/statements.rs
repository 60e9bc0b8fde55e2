//! Statements: what stands between `{%` and `%}`.

use super::lexer::Kind;
use super::{MALFORMED, Macro, Piece, Result, Rewriter, Why, put};

/// `elif`s of one `if`.
const MAX_ELIF: usize = 200;

impl<'a> Rewriter<'a> {
    pub(super) fn statement(&mut self) -> Result<String> {
        let mut out = String::new();
        let keyword = self.expect_kind(Kind::Name)?;
        out.push_str(keyword.before);
        // transformers marks what the assistant said by `generation`: a scope of its own, and nothing else here
        out.push_str(match keyword.text {
            "generation" => "with",
            "endgeneration" => "endwith",
            "print" => "for",
            text => text,
        });
        match keyword.text {
            "if" => {
                self.elifs.push(0);
                out += &self.any_of()?.text;
            }
            "elif" => {
                let count = self.elifs.last_mut().ok_or(MALFORMED)?;
                *count += 1;
                if *count > MAX_ELIF {
                    return Err(Why::TooLong);
                }
                out += &self.any_of()?.text;
            }
            "for" => {
                self.open("for");
                self.for_loop(&mut out)?;
            }
            "set" => self.set(&mut out)?,
            "with" => {
                self.open("with");
                self.with(&mut out)?;
            }
            "macro" => self.start_macro(&mut out)?,
            "call" => {
                if let Some(open) = self.skip("(")? {
                    put(&mut out, open);
                    self.parameters(&mut out, None)?;
                }
                self.open("call");
                out += &self.expression()?.call.ok_or(MALFORMED)?;
            }
            "do" => out += &self.expression()?.call.ok_or(MALFORMED)?,
            "print" => self.print(&mut out)?,
            "filter" => {
                self.open("filter");
                self.filter_chain(&mut out)?;
            }
            "autoescape" => out += &self.expression()?.text,
            "generation" => self.open("generation"),
            "break" | "continue" if self.blocks.last() != Some(&"for") => {
                let outside = self.blocks.last().copied().unwrap_or("a template");
                return Err(Why::Unknown(format!("{} in {outside}", keyword.text)));
            }
            "block" | "else" | "endautoescape" | "endblock" | "break" | "continue" => self.names(&mut out)?,
            "endfor" | "endset" | "endwith" | "endcall" | "endfilter" | "endgeneration" | "endmacro" => {
                self.blocks.pop();
                if keyword.text == "endmacro" {
                    self.open_macros.pop();
                }
                self.names(&mut out)?;
            }
            "endif" => {
                self.elifs.pop();
            }
            name => return Err(Why::Unknown(name.to_owned())),
        }
        Ok(out)
    }

    /// Remembers a block that minijinja cannot jump out of, a loop's body excepted.
    fn open(&mut self, block: &'static str) {
        self.blocks.push(block);
    }

    fn names(&mut self, out: &mut String) -> Result<()> {
        while self.peek()?.kind == Kind::Name {
            let name = self.next()?;
            put(out, name);
        }
        Ok(())
    }

    fn for_loop(&mut self, out: &mut String) -> Result<()> {
        self.targets(out, &["in"])?;
        put(out, self.expect("in")?);
        *out += &format!(" ({}|__iter)", self.any_of()?.operand());
        if let Some(token) = self.skip("if")? {
            put(out, token);
            *out += &self.expression()?.text;
        }
        if let Some(token) = self.skip("recursive")? {
            put(out, token);
        }
        Ok(())
    }

    fn with(&mut self, out: &mut String) -> Result<()> {
        while self.peek()?.kind != Kind::End {
            self.targets(out, &["="])?;
            put(out, self.expect("=")?);
            *out += &self.expression()?.text;
            match self.skip(",")? {
                Some(comma) => put(out, comma),
                None => break,
            }
        }
        Ok(())
    }

    /// `{% print a, b %}` is a loop of one turn: its tags trim white space as a statement's do.
    fn print(&mut self, out: &mut String) -> Result<()> {
        let mut text = format!("({}|__concat(", self.expression()?.operand());
        while let Some(comma) = self.skip(",")? {
            text += &format!("{}{},", comma.before, self.expression()?.text);
        }
        *out += &format!(" __printed in [{text}))] %}}{{{{ __printed }}}}{{% endfor");
        Ok(())
    }

    fn set(&mut self, out: &mut String) -> Result<()> {
        let dotted = self.targets(out, &["=", "|"])?;
        if let Some(pipe) = self.skip("|")? {
            put(out, pipe);
            self.open("set");
            return self.filter_chain(out);
        }
        let Some(assign) = self.skip("=")? else {
            self.open("set");
            return Ok(());
        };
        put(out, assign);
        let value = self.expressions()?;
        match dotted {
            true => *out += &format!("{}|__kept", value.operand()),
            false => *out += &value.text,
        }
        Ok(())
    }

    /// An expression, or a tuple of them without parentheses.
    pub(super) fn expressions(&mut self) -> Result<Piece> {
        let value = self.expression()?;
        let Some(comma) = self.skip(",")? else { return Ok(value) };
        let mut items = value.text;
        put(&mut items, comma);
        while self.peek()?.kind != Kind::End {
            items += &self.expression()?.text;
            match self.skip(",")? {
                Some(comma) => put(&mut items, comma),
                None => break,
            }
        }
        Ok(Piece::closed(format!("(({items})|__tuple)")))
    }

    /// Names that are assigned to, until one of `ends`. Returns whether one of them has a dot.
    fn targets(&mut self, out: &mut String, ends: &[&str]) -> Result<bool> {
        let mut dotted = false;
        loop {
            let token = self.peek()?;
            if token.kind == Kind::End || ends.iter().any(|end| token.is(end)) {
                return Ok(dotted);
            }
            if token.kind != Kind::Name && !["(", ")", ",", "."].contains(&token.text) {
                return Err(MALFORMED);
            }
            if token.is("(") {
                self.link()?;
            }
            dotted |= token.is(".");
            let token = self.next()?;
            put(out, token);
        }
    }

    fn start_macro(&mut self, out: &mut String) -> Result<()> {
        let name = self.expect_kind(Kind::Name)?;
        put(out, name);
        put(out, self.expect("(")?);
        let declared =
            Macro { name: name.text.to_owned(), parameters: Vec::new(), varargs: false, kwargs: false };
        let at = self.macros.len();
        self.open("macro");
        self.open_macros.push(at);
        self.macros.push(declared);
        self.macros[at].parameters = self.parameters(out, Some(at))?;
        Ok(())
    }

    /// Parameters of a macro, to the closing parenthesis; it is the `at`th of the template. Returns their names.
    fn parameters(&mut self, out: &mut String, at: Option<usize>) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut comma = true;
        while self.peek()?.kind == Kind::Name {
            let name = self.next()?;
            put(out, name);
            names.push(name.text.to_owned());
            comma = false;
            if let Some(assign) = self.skip("=")? {
                put(out, assign);
                *out += &self.expression()?.text;
            }
            match self.skip(",")? {
                Some(token) => put(out, token),
                None => break,
            }
            comma = true;
        }
        if let Some(known) = at.and_then(|at| self.known.get(at)) {
            let further = [("varargs", known.varargs, "(()|__tuple)"), ("kwargs", known.kwargs, "{}")];
            for (name, wanted, default) in further {
                if wanted && !names.iter().any(|given| given == name) {
                    *out += &format!("{}{name}={default}", if comma { "" } else { ", " });
                    comma = false;
                }
            }
        }
        put(out, self.expect(")")?);
        Ok(names)
    }

    /// Filters without a value, to the end of the tag.
    fn filter_chain(&mut self, out: &mut String) -> Result<()> {
        loop {
            self.filter(out)?;
            match self.skip("|")? {
                Some(pipe) => put(out, pipe),
                None => return Ok(()),
            }
        }
    }
}
