//! Embeds texts, one a line of a file or of standard input, and prints which of them are most alike.
//!
//! ```sh
//! cargo run --release --example embed -- MODEL [FILE]
//! ```

use std::io::{BufRead, BufReader, Read};
use std::process::ExitCode;

use amnesic::Session;

amnesic::install_scrubbing_allocator!();

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(model) = arguments.next() else {
        eprintln!("usage: embed MODEL [FILE]\n\nMODEL: a folder with the checkpoint of an encoder");
        return ExitCode::from(2);
    };
    match run(model.as_ref(), arguments.next().as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(model: &std::path::Path, file: Option<&std::ffi::OsStr>) -> Result<(), Box<dyn std::error::Error>> {
    let input: Box<dyn Read> = match file {
        Some(file) => {
            let opened = std::fs::File::open(file);
            Box::new(opened.map_err(|error| format!("{}: {error}", file.display()))?)
        }
        None => Box::new(std::io::stdin()),
    };
    let texts = BufReader::new(input).lines().collect::<Result<Vec<String>, _>>()?;
    let session = Session::open(model)?;
    let embeddings = session.embed(&texts)?;
    println!(
        "{} texts, {} tokens, {} dimensions, {:.3} s; {} bytes scrubbed",
        embeddings.len(),
        embeddings.usage.prompt_tokens,
        embeddings.dimensions(),
        embeddings.timing.total.as_secs_f64(),
        embeddings.receipt.bytes(),
    );
    // embeddings of length one: their product is the cosine
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for (index, one) in embeddings.iter().enumerate() {
        let others = embeddings.iter().enumerate().filter(|(other, _)| *other != index);
        let nearest =
            others.map(|(other, values)| (cosine(one, values), other)).max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((cosine, other)) = nearest {
            println!("{index}: {other} ({cosine:.4})");
        }
    }
    Ok(())
}
