//! STUB
use crate::memory::Secret; use crate::error::Result; use std::path::Path;
#[derive(Clone, Copy, Debug)] pub enum Role { Assistant }
#[derive(Debug)] pub struct Message; #[derive(Debug)] pub struct Tool; #[derive(Debug)] pub struct ToolCall;
impl Tool { pub fn new(_: &str, _: &str, _: serde_json::Value) -> Self { Tool } }
impl Message { pub fn new(_: Role, _: impl Into<String>) -> Self { Message } pub fn with_reasoning(self, _: impl Into<String>) -> Self {self} pub fn with_tool_calls(self, _: Vec<ToolCall>) -> Self {self} }
impl ToolCall { pub(crate) fn copy(&self) -> Self { ToolCall } }
pub struct ChatInput<'a> { pub messages: &'a [Message], pub tools: &'a [Tool], pub template: Option<&'a str>, pub add_generation_prompt: bool, pub variables: &'a serde_json::Map<String, serde_json::Value> }
#[derive(Debug)] pub struct Templates;
#[derive(Debug)] pub struct Style; #[derive(Debug)] pub struct Splitter; pub struct Parsed { pub content: Secret<String>, pub reasoning: Option<Secret<String>>, pub tool_calls: Vec<ToolCall> }
#[derive(Clone, Copy, Debug, PartialEq, Eq)] pub enum PieceKind { Content, Reasoning }
impl Templates { pub fn open(_: &Path) -> Result<Option<Self>> { Ok(None) } pub fn render(&self, _: &ChatInput<'_>, _: std::time::SystemTime) -> Result<Secret<String>> { todo!() } pub fn markers(&self) -> Vec<String> { vec![] } pub fn style(&self, _: bool) -> Style { Style } }
impl Style { pub fn parse(&self, _: &str) -> Parsed { todo!() } pub fn splitter(&self) -> Splitter { Splitter } }
impl Splitter { pub fn push(&mut self, _: &str, _: &mut dyn FnMut(PieceKind, &str)) {} pub fn finish(&mut self, _: &mut dyn FnMut(PieceKind, &str)) {} }
