//! What a CUDA device can do and what our kernels get of it: copies, scrubs beside the driver's own memset, and products from
//! one token to thousands beside those of cuBLASLt, where it is installed (alone on the device, in turn with ours).
//!
//! `cargo bench -p amnesic-benches --all-features --bench device`, with `-- --quick` for fewer counts of tokens and `-- --json` for one JSON
//! object a line; without a device on the emulated one, whose times mean nothing.

use std::error::Error;
use std::time::Duration;

use amnesic::testing::device::{self, Rate};
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let has = |option: &str| std::env::args().any(|argument| argument == option);
    let (quick, json) = (has("--quick"), has("--json"));
    let folder = tempfile::tempdir()?;
    let rates = match device::count() {
        0 => {
            eprintln!("No CUDA device here: these are the kernels on the CPU, to see that they run.\n");
            device::emulated_rates((64, 96), &[1, 70], folder.path())?
        }
        _ => {
            // an MLP of Llama 3 8B
            let tokens: &[usize] = match quick {
                true => &[1, 8, 64, 512, 2048],
                false => &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096],
            };
            device::rates(0, (14336, 4096), tokens, folder.path())?
        }
    };
    if json {
        for Rate { what, time, library_time, bytes, operations, .. } in rates {
            let library = library_time.map(|time| time.as_secs_f64());
            let rate = json!({ "what": what, "seconds": time.as_secs_f64(), "library_seconds": library, "bytes": bytes, "operations": operations });
            println!("{rate}");
        }
        return Ok(());
    }
    print(&rates);
    if device::count() > 0 {
        println!(
            "{}",
            match device::wgmma(0)? {
                None => "The device, or its driver, does not run our kernels for Hopper.",
                Some(true) => "wgmma gives the same bits as mma, and multiplies many tokens.",
                Some(false) => "wgmma does not give the same bits as mma: it is not used.",
            }
        );
    }
    Ok(())
}

fn print(rates: &[Rate]) {
    let per_second = |count: u64, time: Duration| count as f64 / time.as_secs_f64();
    let bandwidth = |what: &str| {
        let rate = rates.iter().find(|rate| rate.what == what);
        rate.map_or(f64::NAN, |rate| per_second(rate.bytes, rate.time))
    };
    let copy = bandwidth("copy");
    println!("| what | time, us | GB/s | of copy | TFLOP/s | cuBLASLt, TFLOP/s | of cuBLASLt |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for Rate { what, time, library_time, bytes, operations, .. } in rates {
        let (rate, tera) = (per_second(*bytes, *time), per_second(*operations, *time) / 1e12);
        let (tera, library, share) = match (operations, library_time) {
            (0, _) => Default::default(),
            (_, None) => (format!("{tera:.1}"), String::new(), String::new()),
            (_, Some(library)) => {
                let share = 100.0 * library.as_secs_f64() / time.as_secs_f64();
                let library = per_second(*operations, *library) / 1e12;
                (format!("{tera:.1}"), format!("{library:.1}"), format!("{share:.0} %"))
            }
        };
        let (micros, of_copy) = (time.as_secs_f64() * 1e6, 100.0 * rate / copy);
        println!(
            "| {what} | {micros:.1} | {:.0} | {of_copy:.0} % | {tera} | {library} | {share} |",
            rate / 1e9
        );
    }
    let of_memset = 100.0 * bandwidth("scrub") / bandwidth("memset");
    println!("\nA scrub, with what is read back of it, reaches {of_memset:.0} % of the driver's memset.");
    let fastest = |time: fn(&Rate) -> Option<Duration>| {
        let all = rates.iter().filter_map(|rate| time(rate).map(|time| per_second(rate.operations, time)));
        all.fold(0.0, f64::max) / 1e12
    };
    let theirs = fastest(|rate| rate.library_time);
    match theirs > 0.0 {
        true => println!(
            "The most that cuBLASLt reaches: {theirs:.0} TFLOP/s. Ours: {:.0}.",
            fastest(|rate| Some(rate.time))
        ),
        false => println!("cuBLASLt is not installed: nothing to compare products with."),
    }
}
