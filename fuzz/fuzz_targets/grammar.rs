//! Response formats: the first byte says whether the rest is a regular expression, a JSON schema, one of which what cannot
//! be enforced is left out, a Lark grammar, or the schema of a tool that must be called.

use std::sync::OnceLock;

use amnesic::{Request, ResponseFormat, Session, Tool, ToolCallParser, ToolChoice, user};

use crate::shared::{read, small, tiny, typed};

fn session() -> &'static Session {
    static SESSION: OnceLock<Session> = OnceLock::new();
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    SESSION.get_or_init(|| {
        let files = tiny(1024).file("tokenizer.json", read("tokenizers/llama3_style/tokenizer.json"));
        small(files.file("chat_template.jinja", template)).open().unwrap()
    })
}

pub fn run(input: &[u8]) {
    let Some((which, rest)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let schema = || serde_json::from_str(text).ok();
    let format = match which % 5 {
        0 => ResponseFormat::regex(text),
        1 | 2 => {
            let Some(schema) = schema() else { return };
            let format = ResponseFormat::json_schema(schema);
            if which % 5 == 2 { format.lenient() } else { format }
        }
        3 => ResponseFormat::lark(text),
        _ => {
            let Some(schema) = schema() else { return };
            let request = Request::chat([user("a")]).tools([Tool::new("f", "", schema)]).max_tokens(12).seed(1);
            let parser = [ToolCallParser::Hermes, ToolCallParser::Pythonic][usize::from(which / 5 % 2)];
            typed(session().generate(request.tool_call_parser(parser).tool_choice(ToolChoice::Required)));
            return;
        }
    };
    let request = Request::prompt("a").response_format(format).max_tokens(4).temperature(1.0).seed(1);
    typed(session().generate(request));
}
