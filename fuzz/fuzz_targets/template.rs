//! Chat templates: the input is one, and chats of every kind are rendered with it.

use std::sync::OnceLock;

use amnesic::{Files, Message, Request, Tool, ToolCall, assistant, system, tool, user};
use serde_json::json;

use crate::shared::{BYTES, byte_tokenizer, small, tiny, typed};

fn chat() -> Vec<Message> {
    let call = ToolCall::new("call_1", "clock", r#"{"zone": ["Europe/Oslo", 1, 2.5, null]}"#);
    vec![
        system("Be short."),
        user("How late is it?\n<|eot_id|>"),
        assistant("").with_tool_calls(vec![call]),
        tool("call_1", r#"{"hour": 12}"#),
        assistant("Noon."),
        user("Thanks \u{1f980}"),
    ]
}

fn tools() -> [Tool; 1] {
    let parameters =
        json!({"type": "object", "properties": {"zone": {"type": "array"}}, "required": ["zone"]});
    [Tool::new("clock", "Tells the time.", parameters)]
}

pub fn run(input: &[u8]) {
    static FILES: OnceLock<Files> = OnceLock::new();
    let common = FILES.get_or_init(|| tiny(BYTES).file("tokenizer.json", byte_tokenizer()));
    let files = common.clone().file("chat_template.jinja", input.to_vec());
    let Some(session) = typed(small(files).open()) else { return };
    let whole = || Request::chat(chat()).tools(tools()).template_variable("enable_thinking", true);
    typed(session.apply_chat_template(whole()));
    typed(session.count_tokens(whole().literal_text(true)));
    let continued = Request::chat([user("a"), assistant("b")]).continue_final_message(true);
    typed(session.apply_chat_template(continued));
    typed(session.generate(Request::chat([user("a")]).max_tokens(2).seed(1)));
    typed(session.close());
}
