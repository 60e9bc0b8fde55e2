//! The command line.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use amnesic::{Quantize, Session};
use lexopt::ValueExt;

pub const HELP: &str = "\
Serves a checkpoint over HTTP, in OpenAI's interface, and forgets every request.

Usage: cargo run --release -p amnesic-serve -- [OPTIONS]

  --model DIR          folder of the checkpoint [default: models/default]
  --name NAME          the model's name for clients [default: the folder's]
  --host ADDRESS       address to listen on [default: 127.0.0.1]
  --port N             port to listen on; 0 for a free one [default: 8080]
  --allow-remote       listen on an address that is not loopback: there is no TLS, so prompts and
                       replies cross the network as plain text unless something in front encrypts
  --quantize KIND      load the weights as q8 or q4 [default: as they are]
  --threads N          threads of the CPU [default: all]
  --context N          most tokens of prompt and reply together
  --kv-tokens N        tokens that the KV cache holds over all requests
  --max-sequences N    replies that are generated at once; more wait [default: 32]
  --max-requests N     requests that run or wait; more are refused with 429 [default: 1024]
  --timeout SECONDS    a reply that takes longer is cut off [default: 600]
  --literal-text       names of control tokens in messages, as `<|im_end|>`, are text: none of them
                       ends a turn or begins one
  --help               print this

Routes: GET /v1/models, POST /v1/completions, POST /v1/chat/completions, POST /v1/embeddings,
POST /v1/rerank, POST /tokenize, POST /detokenize, GET /health.
With AMNESIC_API_KEY set, clients of /v1 must send it: `Authorization: Bearer KEY`.
SIGINT or SIGTERM ends replies where they are, scrubs, and reports.
";

/// The environment's variable with the key.
const KEY: &str = "AMNESIC_API_KEY";

#[derive(Debug)]
pub struct Options {
    pub model: PathBuf,
    pub name: String,
    pub address: SocketAddr,
    pub quantize: Option<Quantize>,
    pub threads: Option<usize>,
    pub context: Option<usize>,
    pub kv_tokens: Option<usize>,
    pub max_sequences: Option<usize>,
    pub max_requests: usize,
    pub timeout: Duration,
    pub literal_text: bool,
    pub key: Option<String>,
}

impl Options {
    /// None when help was asked for.
    ///
    /// # Errors
    /// An option or the key is wrong.
    pub fn parse(
        args: impl IntoIterator<Item = OsString>,
        key: Option<OsString>,
    ) -> Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let (mut host, mut port, mut remote) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 8080, false);
        let mut name = None;
        let mut options = Self {
            model: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/default"),
            name: String::new(),
            address: SocketAddr::new(host, port),
            quantize: None,
            threads: None,
            context: None,
            kv_tokens: None,
            max_sequences: None,
            max_requests: 1024,
            timeout: Duration::from_secs(600),
            literal_text: false,
            key: checked(key)?,
        };
        let mut args = lexopt::Parser::from_iter(args);
        while let Some(arg) = args.next()? {
            match arg {
                Long("model") => options.model = args.value()?.into(),
                Long("name") => name = Some(args.value()?.string()?),
                Long("host") => host = address(&args.value()?.string()?)?,
                Long("port") => port = number(&mut args, "port")?,
                Long("allow-remote") => remote = true,
                Long("quantize") => options.quantize = Some(quantize(&args.value()?.string()?)?),
                Long("threads") => options.threads = Some(number(&mut args, "threads")?),
                Long("context") => options.context = Some(number(&mut args, "context")?),
                Long("kv-tokens") => options.kv_tokens = Some(number(&mut args, "kv-tokens")?),
                Long("max-sequences") => options.max_sequences = Some(number(&mut args, "max-sequences")?),
                Long("max-requests") => options.max_requests = number(&mut args, "max-requests")?,
                Long("timeout") => options.timeout = Duration::from_secs(number(&mut args, "timeout")?),
                Long("literal-text") => options.literal_text = true,
                Long("help") | Short('h') => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        if !host.is_loopback() && !remote {
            return Err(
                "--host: not a loopback address; there is no TLS: give --allow-remote if you mean it".into(),
            );
        }
        options.address = SocketAddr::new(host, port);
        options.name = name.unwrap_or_else(|| folder_name(&options.model));
        Ok(Some(options))
    }

    /// Opens the session.
    ///
    /// # Errors
    /// As [`amnesic::Builder::open`].
    pub fn open(&self) -> amnesic::Result<Session> {
        let mut builder = Session::builder(&self.model).max_requests(self.max_requests);
        if let Some(quantize) = self.quantize {
            builder = builder.quantize(quantize);
        }
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        if let Some(context) = self.context {
            builder = builder.context_length(context);
        }
        if let Some(tokens) = self.kv_tokens {
            builder = builder.kv_tokens(tokens);
        }
        if let Some(count) = self.max_sequences {
            builder = builder.max_sequences(count);
        }
        builder.open()
    }
}

/// A key that can stand in a header. The error does not quote it.
fn checked(key: Option<OsString>) -> Result<Option<String>, lexopt::Error> {
    let printable = |key: &String| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    let wrong = || format!("{KEY}: must be printable ASCII without spaces, and not empty").into();
    key.map(|key| key.into_string().ok().filter(printable).ok_or_else(wrong)).transpose()
}

/// The key that the environment holds.
pub fn key() -> Option<OsString> {
    std::env::var_os(KEY)
}

fn address(host: &str) -> Result<IpAddr, lexopt::Error> {
    match host {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host => {
            host.parse().map_err(|_| format!("--host: {host:?}: must be an IP address or localhost").into())
        }
    }
}

/// The last part of a path that names something.
fn folder_name(folder: &Path) -> String {
    let name = |folder: &Path| folder.file_name().map(|name| name.to_string_lossy().into_owned());
    name(folder).or_else(|| name(&folder.canonicalize().ok()?)).unwrap_or_else(|| "default".into())
}

fn quantize(kind: &str) -> Result<Quantize, lexopt::Error> {
    match kind {
        "q8" => Ok(Quantize::Q8),
        "q4" => Ok(Quantize::Q4),
        _ => Err(format!("--quantize: {kind:?}: must be q8 or q4").into()),
    }
}

/// The option's value; an error names the option, which lexopt's own does not.
fn number<T>(args: &mut lexopt::Parser, option: &str) -> Result<T, lexopt::Error>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let value = args.value()?.string()?;
    value.parse().map_err(|error| format!("--{option}: {value:?}: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str], key: Option<&str>) -> Result<Option<Options>, lexopt::Error> {
        Options::parse(["serve"].iter().chain(args).map(OsString::from), key.map(OsString::from))
    }

    #[test]
    fn loopback_is_the_default_and_others_must_be_meant() {
        let options = parse(&[], None).unwrap().unwrap();
        assert_eq!(options.address.to_string(), "127.0.0.1:8080");
        assert_eq!((options.name.as_str(), options.key), ("default", None));
        assert!(!options.literal_text);
        assert!(parse(&["--literal-text"], None).unwrap().unwrap().literal_text);
        for host in ["0.0.0.0", "10.0.0.1", "::", "example.com"] {
            assert!(parse(&["--host", host], None).is_err(), "{host}");
        }
        let options =
            parse(&["--host", "0.0.0.0", "--allow-remote", "--port", "0"], Some("key")).unwrap().unwrap();
        assert_eq!(
            (options.address.to_string().as_str(), options.key.as_deref()),
            ("0.0.0.0:0", Some("key"))
        );
        assert!(parse(&["--host", "::1"], None).is_ok());
    }

    #[test]
    fn a_wrong_key_is_refused_and_not_quoted() {
        for key in ["", "two words", "\u{e9}"] {
            let error = parse(&[], Some(key)).unwrap_err().to_string();
            assert!(error.starts_with(KEY) && (key.is_empty() || !error.contains(key)), "{error}");
        }
    }
}
