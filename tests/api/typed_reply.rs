//! A reply that is parsed as a type leaves nothing, whatever the type's own parsing puts on the stack and drops.

use std::process::Command;

use amnesic::forensics::{Findings, Needles};
use amnesic::{Request, Session};

/// No plain copy of it may be in the program itself.
const CANARY: [u8; 33] = {
    let mut bytes = *b"The patient Zebulon Quartzwick is";
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = !bytes[i];
        i += 1;
    }
    bytes
};

fn canary() -> String {
    let mut text = String::with_capacity(CANARY.len());
    CANARY.iter().for_each(|byte| text.push(char::from(!byte)));
    text
}

/// Keeps nothing of the text that it was, as a name that is looked up, or a date.
struct Looked(usize);

impl<'de> serde::Deserialize<'de> for Looked {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Looked;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Looked, E> {
                Ok(Looked(far_below(text, 24)))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// Copies the text into a frame that is so far down that nothing overwrites it soon.
#[inline(never)]
fn far_below(text: &str, frames: usize) -> usize {
    let mut frame = [0_u8; 8192];
    if frames > 0 {
        let below = far_below(text, frames - 1);
        return below + usize::from(std::hint::black_box(&mut frame)[0]);
    }
    frame[..text.len()].copy_from_slice(text.as_bytes());
    std::hint::black_box(&mut frame).len()
}

impl schemars::JsonSchema for Looked {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Looked".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": format!("^{}$", canary()) })
    }
}

/// Runs in a child, which is told where the needles are.
fn child(file: &std::ffi::OsStr) {
    let needles = serde_json::from_slice::<Needles>(&std::fs::read(file).unwrap()).unwrap().prepare();
    let session = Session::builder(crate::common::default_model()).threads(1).open().unwrap();
    let looked = session.generate_as::<Looked>(Request::prompt("name: ").max_tokens(200)).unwrap();
    assert_eq!(looked.0, 8192);
    let findings = needles.search_self().unwrap();
    println!("FOUND {}", serde_json::to_string(&findings).unwrap());
}

#[test]
fn a_typed_reply_leaves_nothing_where_it_was_parsed() {
    const FILE: &str = "AMNESIC_TYPED_REPLY_NEEDLES";
    if let Some(file) = std::env::var_os(FILE) {
        return child(&file);
    }
    let needles = Needles::default().text("reply", &canary());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("needles.json");
    std::fs::write(&file, serde_json::to_vec(&needles).unwrap()).unwrap();
    let name = "typed_reply::a_typed_reply_leaves_nothing_where_it_was_parsed";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(FILE, &file)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    let line = told.lines().find_map(|line| line.split_once("FOUND ")).expect("the child tells").1;
    let findings: Findings = serde_json::from_str(line).unwrap();
    assert!(findings.bytes() > 1 << 20 && findings.is_empty(), "left in memory: {findings}");
}
