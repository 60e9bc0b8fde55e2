//! A checkpoint whose files are handed over as bytes gives what its folder gives: replies, the hashes in receipts, errors.

use std::path::{Path, PathBuf};

use amnesic::privacy::FileHash;
use amnesic::testing::LogitsTap;
use amnesic::{Builder, Conversation, Device, Error, Files, Request, SealingKey, Session, user};

use crate::common::{default_model, files_below, fixture};

/// All files of a folder, and of those in it.
fn files(folder: &Path) -> Files {
    files_below(folder).into_iter().fold(Files::new(), |files, (name, path)| match name.ends_with(".json") {
        true => files.file(name, std::fs::read(path).unwrap()),
        false => files.read(name, std::fs::File::open(path).unwrap()).unwrap(),
    })
}

fn small(builder: Builder) -> Session {
    builder.device(Device::Cpu).kv_tokens(1024).max_sequences(4).open().unwrap()
}

fn bits(session: &Session, request: Request) -> Vec<u32> {
    let tap = LogitsTap::default();
    let request = request.max_tokens(8).temperature(0.0).ignore_eos(true);
    session.generate(request.tap_logits(&tap)).unwrap();
    tap.values().iter().map(|value| value.to_bits()).collect()
}

fn hashes(session: &Session) -> Vec<FileHash> {
    assert!(!session.evidence().files.is_empty());
    session.evidence().files.clone()
}

/// Both give the same, and their receipts say the same of the files.
fn same(what: &str, folder: Builder, memory: Builder, request: impl Fn() -> Request) {
    let [folder, memory] = [folder, memory].map(small);
    assert_eq!(bits(&folder, request()), bits(&memory, request()), "{what}");
    assert_eq!(hashes(&folder), hashes(&memory), "{what}");
    let environment = |session: &Session| {
        let reply = session.generate(request().max_tokens(1)).unwrap();
        let environment = reply.receipt.environment.as_ref().unwrap();
        (environment.weights_sha256, environment.configuration_sha256, environment.tokenizer_sha256)
    };
    assert_eq!(environment(&folder), environment(&memory), "{what}");
    assert_eq!(folder.memory().total_bytes(), memory.memory().total_bytes(), "{what}");
}

#[test]
fn a_folder_s_files_as_bytes() {
    let folder = default_model();
    let request = || Request::prompt("A slice is a view into");
    same("the default model", Session::builder(&folder), Session::from_files(files(&folder)), request);
    for name in ["mistral_bf16_sharded", "families/gemma", "quantized/gptq"] {
        let folder = fixture(name);
        let request = || Request::tokens([1, 5, 9, 20]);
        same(name, Session::builder(&folder), Session::from_files(files(&folder)), request);
    }
}

#[test]
fn a_gguf_file_as_bytes() {
    let all: Vec<PathBuf> =
        std::fs::read_dir(fixture("gguf")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let mut found = 0;
    for path in all {
        let inside = match path.is_dir() {
            true => std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect(),
            false => vec![path],
        };
        let is_gguf = |path: &&PathBuf| path.extension().is_some_and(|end| end == "gguf");
        let Some(file) = inside.iter().find(is_gguf) else { continue };
        let Ok(session) = Session::builder(file).device(Device::Cpu).kv_tokens(1024).open() else { continue };
        drop(session);
        let name = file.file_name().unwrap().to_str().unwrap();
        let memory = Session::from_files(Files::new().file(name, std::fs::read(file).unwrap()));
        same(name, Session::builder(file), memory, || Request::tokens([1, 3, 5]));
        found += 1;
        if found == 3 {
            break;
        }
    }
    assert!(found > 0);
}

#[test]
fn chats_embeddings_adapters_and_drafts() {
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(default_model()).unwrap().map(|entry| entry.unwrap()) {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    for name in ["chat_template.jinja", "additional_chat_templates/loud.jinja"] {
        std::fs::write(folder.path().join(name), template).unwrap();
    }
    let chat = || Request::chat([user("What is a slice?")]).chat_template("loud");
    same("a chat", Session::builder(folder.path()), Session::from_files(files(folder.path())), chat);

    let encoder = fixture("encoders/roberta");
    let embed = |builder: Builder| {
        let session = builder.device(Device::Cpu).open().unwrap();
        (session.embed(&["a", "b c d"]).unwrap().values().to_vec(), hashes(&session))
    };
    assert_eq!(embed(Session::builder(&encoder)), embed(Session::from_files(files(&encoder))));

    let (model, adapter) = (fixture("families/qwen3"), fixture("adapters/qwen3/all"));
    let memory = || Session::from_files(files(&model)).adapter_files("a", files(&adapter));
    let request = || Request::tokens([5, 9, 30]).adapter("a");
    same("an adapter", Session::builder(&model).adapter("a", &adapter), memory(), request);
    let merged = Session::from_files(files(&model)).merge_adapter_files(files(&adapter));
    let request = || Request::tokens([5, 9, 30]);
    same("a merged one", Session::builder(&model).merge_adapter(&adapter), merged, request);
    let draft = fixture("families/qwen3_other");
    let drafted = Session::from_files(files(&model)).draft_files(files(&draft));
    same("a draft", Session::builder(&model).draft(&draft), drafted, request);
}

/// What the checkpoint says of itself, its model card too: one that is cut in a character when its start is read.
#[test]
fn a_model_says_the_same_of_itself() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("families/gemma")).unwrap().map(|entry| entry.unwrap()) {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let card = "---\nlicense: other\nlicense_name: tiny\nlicense_link: https://example.org/license\n---\n";
    for padding in 0..2 {
        let long = format!("{card}{}{}", "x".repeat(padding), "é".repeat(64 << 10));
        std::fs::write(folder.path().join("README.md"), long).unwrap();
        let disk = small(Session::builder(folder.path())).model().clone();
        let memory = small(Session::from_files(files(folder.path()))).model().clone();
        assert_eq!(disk, memory);
        let license = (disk.license.as_deref(), disk.license_name.as_deref(), disk.license_link.as_deref());
        assert_eq!(license, (Some("other"), Some("tiny"), Some("https://example.org/license")));
    }
    std::fs::remove_file(folder.path().join("README.md")).unwrap();
    let without = small(Session::from_files(files(folder.path()))).model().clone();
    assert!(without.license.is_none() && without.parameters > 0);
    let gguf = std::fs::read_dir(fixture("gguf/llama")).unwrap().map(|entry| entry.unwrap().path());
    let gguf = gguf
        .filter(|path| path.is_file())
        .find(|path| path.extension().is_some_and(|end| end == "gguf"))
        .unwrap();
    let memory = Files::new().file("model.gguf", std::fs::read(&gguf).unwrap());
    let (disk, memory) = (small(Session::builder(&gguf)), small(Session::from_files(memory)));
    assert_eq!(disk.model(), memory.model());
}

/// A conversation that a session on a folder exported goes on in one from memory: it is the same model.
#[test]
fn conversations_move_between_both() {
    let folder = default_model();
    let (disk, memory) = (small(Session::builder(&folder)), small(Session::from_files(files(&folder))));
    let key = SealingKey::new(&mut [7; SealingKey::BYTES]);
    let mut conversation: Conversation = disk.conversation();
    conversation.generate(Request::prompt("A slice is").max_tokens(4).temperature(0.0)).unwrap();
    let sealed = conversation.export(&key).unwrap();
    let mut moved = Conversation::import(&memory, &sealed, &key).unwrap();
    let next = || Request::prompt(" and").max_tokens(4).temperature(0.0);
    let (there, here) = (moved.generate(next()).unwrap(), conversation.generate(next()).unwrap());
    assert_eq!(there.tokens(), here.tokens());
}

#[test]
fn what_is_wrong_is_named_as_in_a_folder() {
    let folder = fixture("families/gemma");
    let whole = || files(&folder);
    let told = |files: Files| Session::from_files(files).open().unwrap_err();
    let error = told(Files::new());
    assert!(matches!(error, Error::Read { .. }), "{error}");
    assert!(error.to_string().contains("memory:/config.json"), "{error}");
    let error = told(whole().file("config.json", "{"));
    assert!(error.to_string().contains("config.json: must be a JSON object"), "{error}");
    let error = told(whole().file("config.json", [0xff_u8]));
    assert!(matches!(error, Error::Read { .. }), "{error}");
    let error = told(whole().file("model.safetensors", ""));
    assert!(error.to_string().contains("not empty"), "{error}");
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let error = told(whole().file("model.safetensors", weights[..weights.len() - 1].to_vec()));
    assert!(matches!(error, Error::WeightsFile { .. }), "{error}");
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let error = told(Files::new().file("config.json", config).file("pytorch_model.bin", "x"));
    assert!(error.to_string().contains("save the model as safetensors"), "{error}");
    // the working directory's files are not those in memory
    assert!(std::path::Path::new("Cargo.toml").exists());
    let error = told(Files::new().file("../Cargo.toml", "x"));
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

/// What holds the bytes is dropped when the session is open, and when it does not open.
#[test]
fn a_session_keeps_no_file() {
    struct Counted(Vec<u8>, std::sync::Arc<std::sync::atomic::AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let folder = fixture("families/gemma");
    let dropped = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let weights = || Counted(std::fs::read(folder.join("model.safetensors")).unwrap(), dropped.clone());
    let session = small(Session::from_files(files(&folder).file("model.safetensors", weights())));
    assert_eq!(dropped.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(bits(&session, Request::tokens([5])).len(), 8 * session.vocab_size());
    let broken = files(&folder).file("model.safetensors", weights()).file("config.json", "{}");
    assert!(Session::from_files(broken).open().is_err());
    assert_eq!(dropped.load(std::sync::atomic::Ordering::SeqCst), 2);
}
