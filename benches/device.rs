//! What a CUDA device can do and what our kernels get of it: copies, scrubs, and products from one token to thousands.
//!
//! `cargo bench --all-features --bench device`; without a device on the emulated one, whose times mean nothing.

use std::error::Error;

use amnesic::testing::device::{self, Rate};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let rates = match device::count() {
        0 => {
            println!("No CUDA device here: these are the kernels on the CPU, to see that they run.\n");
            device::emulated_rates((64, 96), &[1, 70], folder.path())?
        }
        _ => {
            // an MLP of Llama 3 8B
            let tokens = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048];
            device::rates(0, (14336, 4096), &tokens, folder.path())?
        }
    };
    println!("| what | time, us | GB/s | TFLOP/s |\n|---|---|---|---|");
    for Rate { what, time, bytes, operations, .. } in rates {
        let seconds = time.as_secs_f64();
        let (gigabytes, tera) = (bytes as f64 / seconds / 1e9, operations as f64 / seconds / 1e12);
        println!("| {what} | {:.1} | {gigabytes:.0} | {tera:.1} |", seconds * 1e6);
    }
    Ok(())
}
